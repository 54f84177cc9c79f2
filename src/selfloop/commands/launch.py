"""The command line as one of the processes of torchrun: rank 0 is the command, the others follow it in silence."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from selfloop.commands.cli import main
from selfloop.commands.terminal import plain_problems
from selfloop.engine.together import follow
from selfloop.errors import SelfloopError
from selfloop.ranks import LED, Ranks


def main_of_rank() -> None:
    """Entry point of every process. All end when rank 0 ends: their connections to it close."""
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # until the end
        warnings.simplefilter("ignore")
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 gets them, too
            signal.signal(number, signal.SIG_IGN)
    with plain_problems():
        ranks = Ranks.join()
    if ranks.rank:
        try:
            follow(ranks)
        except Exception as problem:  # of any kind: this process ends
            ranks.leave_words(problem)
        return
    LED.set(ranks)
    try:
        main()
    finally:
        if not ranks.in_step:
            with suppress(SelfloopError):
                ranks.tell(None)
