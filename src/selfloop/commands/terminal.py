"""What a terminal gets: text without control characters, in an encoding it has, and problems as one line with an exit code."""

from __future__ import annotations

import codecs
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from shutil import get_terminal_size
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import combining, normalize

from selfloop.errors import SelfloopError, os_error_reason, printable, show_warnings_plainly

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MIN_COLUMNS = 80  # below, the terminal breaks lines: narrower tables would break numbers
PIPE_COLUMNS = 240  # line width where standard output is no terminal, so that lines do not wrap
INTERRUPTED = 130  # exit code of typer after Ctrl-C
TERMINATED = 143  # exit code after SIGTERM, with which schedulers end a job
_SIMILAR = str.maketrans("▁▂▃▄▅▆▇█×–−“”·", '12345678x--""-') | {ord("→"): "->", ord("≥"): ">="}


@contextmanager
def plain_problems() -> Iterator[None]:
    """Show what a user can correct, and selfloop's warnings, as one line each; the exit code is then 2."""
    _prepare_streams()
    show_warnings_plainly()
    terminated: list[int] = []
    try:
        try:
            with _interrupt_at_sigterm(terminated):
                yield
        finally:
            sys.stdout.flush()  # a full disk is noticed here and not while Python ends
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _write("interrupted. Finished steps are stored; run the same command to continue.")
            end.code = TERMINATED if terminated else INTERRUPTED
        raise
    except SelfloopError as problem:
        _exit(" ".join(str(problem).split()))
    except (MemoryError, RuntimeError) as problem:
        if "start new thread" in str(problem):
            _exit("no thread can be started. Raise the limit of processes (ulimit -u), or use --workers 1 --threads 1.")
        if isinstance(problem, RuntimeError) and "allocate" not in str(problem):  # torch raises RuntimeError without memory
            raise
        _exit("out of memory. Lower n, the number of seeds or the size of the model.")
    except OSError as problem:  # a file that was writable at the start and no longer is
        _exit(f"{problem.filename or 'standard output'}: {os_error_reason(problem)}.")


@contextmanager
def _interrupt_at_sigterm(terminated: list[int]) -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, and is noted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(sentence: str) -> None:
    _write(sentence)
    sys.exit(2)


def _write(sentence: str) -> None:
    with suppress(OSError):  # nobody reads standard error
        sys.stderr.write(printable(f"selfloop: {sentence}\n"))


class _Output(FileIO):
    """A file that fails at most once: the next write is dropped, and so is all that the reader of a pipe does not read.

    After `| head` the command goes on and writes its files.
    """

    failed = False

    def write(self, data: Any, /) -> int:
        try:
            return len(data) if self.failed else super().write(data)
        except OSError as problem:
            self.failed = True
            if isinstance(problem, BrokenPipeError):
                return len(data)
            raise


def _prepare_streams() -> None:
    """From now on a closed stream takes everything, and characters that an encoding lacks become similar ones."""
    codecs.register_error("similar", _similar)
    sys.stdout, sys.stderr = map(_tolerant, (sys.stdout, sys.stderr))


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w")  # open until the end
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="similar")
        if stream in (sys.__stdout__, sys.__stderr__) and not stream.isatty():
            buffer = BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            by_line = stream.line_buffering or stream.write_through  # the latter with PYTHONUNBUFFERED
            return TextIOWrapper(buffer, stream.encoding, "similar", line_buffering=by_line)
    return stream


def _similar(problem: UnicodeError) -> tuple[str, int]:
    assert isinstance(problem, UnicodeEncodeError)
    text = normalize("NFKD", problem.object[problem.start : problem.end].translate(_SIMILAR))
    without_accents = "".join(character for character in text if not combining(character))
    return without_accents.encode("ascii", "backslashreplace").decode(), problem.end


def show(output: str | Table) -> None:
    """Print a table, or lines of text, which a terminal may break anywhere."""
    from rich.console import Console

    class PlainConsole(Console):
        """Prints all text as it is: without markup and emoji codes, control characters in names as escapes."""

        def render_str(self, text: str, **settings: Any) -> Text:  # also cells, headers and titles of tables
            return super().render_str(printable(text), **settings)

    width = max(get_terminal_size().columns, MIN_COLUMNS) if sys.stdout.isatty() else PIPE_COLUMNS
    console = PlainConsole(highlight=False, markup=False, emoji=False, width=width)
    console.print(output, soft_wrap=isinstance(output, str))
