"""The command line as one of the processes of torchrun: rank 0 is the command, the others compute its steps in silence."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from selfloop.commands.terminal import INTERRUPTED, plain_problems
from selfloop.component import Context
from selfloop.engine.executors import Notify, execute
from selfloop.errors import ChainEndedError
from selfloop.ranks import LED, LostRankError, Ranks
from selfloop.store.calls import StepCall
from selfloop.store.store import Store

Message = Path | tuple[Path, StepCall, Path]  # a folder that all must see; the store's folder, a call, and its scratch folder


def main_of_rank(command: Callable[[], object]) -> None:
    """Entry point of every process; `command` is that of rank 0. All end when one ends."""
    if os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # until the end
        warnings.simplefilter("ignore")
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 gets them, too
            signal.signal(number, signal.SIG_IGN)
    with plain_problems():
        ranks = Ranks.join()
        if ranks.rank == 0:
            _lead(ranks, command)
            return
    try:
        follow(ranks)
    except LostRankError:
        return  # the other one gives the reason
    except Exception as problem:  # of any kind
        ranks.leave_words(problem)
        os._exit(1)  # torchrun ends the others; NCCL would wait for them while Python ends


def _lead(ranks: Ranks, command: Callable[[], object]) -> None:
    LED.set(ranks)
    threading.Thread(target=end_after_another, args=(ranks,), daemon=True).start()
    try:
        command()
    except (SystemExit, KeyboardInterrupt) as end:
        if getattr(end, "code", INTERRUPTED) == INTERRUPTED and ranks.problem():  # by torchrun, as another rank has ended
            raise ranks.lost() from None
        raise
    finally:
        if not ranks.in_step:
            with suppress(LostRankError):
                ranks.tell(None)


def end_after_another(ranks: Ranks) -> None:
    """End this process, rank 0, after another rank left words: torchrun does not from afar, and NCCL would wait for a day."""
    while not ranks.problem():
        time.sleep(1)
    time.sleep(5)  # mostly it ends by itself now
    interrupt_main()
    time.sleep(10)  # nor does a wait of NCCL end by an interrupt
    sys.stderr.write(f"selfloop: {ranks.lost()}\n")
    sys.stderr.flush()
    os._exit(2)


def follow(ranks: Ranks) -> None:
    """Compute every step that rank 0 computes, until it ends."""
    message: Message | None
    while message := ranks.tell(None):
        if isinstance(message, Path):
            ranks.all_see(message)
            continue
        path, call, scratch = message
        threads = next(argument.threads for argument in call.arguments if isinstance(argument, Context))
        store = Store(path, read_only=True, threads=threads, ranks=ranks)
        for _ in execute(_compute, [(store, call, scratch)], workers=1, threads=threads):
            pass


def _compute(task: tuple[Store, StepCall, Path], notify: Notify) -> Iterator[None]:
    store, call, scratch = task
    arguments = [store.open_argument(argument, scratch, {}, ranks=store.ranks) for argument in call.arguments]
    try:
        yield call.step(*arguments)
    except ChainEndedError:  # on rank 0, too, which records it
        yield None
