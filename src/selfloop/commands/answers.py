"""The answer of a command: a table for readers, or one JSON object for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from selfloop.errors import SpecError
from selfloop.formats.replacing import write_text


def give_answer(print_answer: Callable[[], None], *outputs: tuple[str | None, str]) -> None:
    """Print an answer, and write each (file, text); a text whose file is "-" is all that standard output gets."""
    targets = [target for target, _ in outputs]
    if targets.count("-") > 1:
        raise SpecError("-: standard output takes one of --json, --csv and --markdown. Name files for the others.")
    with redirect_stdout(StringIO() if "-" in targets else sys.stdout):  # printing may draw a figure, too
        print_answer()
    for target, text in outputs:
        if target == "-":
            sys.stdout.write(text)
        elif target:
            write_text(Path(target), text)
