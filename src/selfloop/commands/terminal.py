"""What a terminal gets: text in an encoding it has, without control characters, problems as one line, and progress.

Progress, on standard error, is a table in a terminal, else a line at least every 5 seconds while a command works.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from io import BufferedWriter, FileIO, StringIO, TextIOWrapper
from pathlib import Path
from shutil import get_terminal_size
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import combining, normalize

from selfloop.errors import SelfloopError, SpecError, os_error_reason, printable, show_warnings_plainly
from selfloop.formats.replacing import write_text
from selfloop.notebook import ProgressLine

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from selfloop.commands.live import RunState
    from selfloop.engine.tasks import TaskOutput
    from selfloop.engine.time_left import TimeLeft
    from selfloop.spec.spec import Spec

MIN_COLUMNS = 80  # below, the terminal breaks lines: narrower tables would break numbers
PIPE_COLUMNS = 240  # line width where standard output is no terminal, so that lines do not wrap
INTERRUPTED = 130  # exit code of typer after Ctrl-C
TERMINATED = 143  # exit code after SIGTERM, with which schedulers end a job
_SIMILAR = str.maketrans("▁▂▃▄▅▆▇█×–−“”·", '12345678x--""-') | {ord("→"): "->", ord("≥"): ">="}
FIRST_SECONDS = 2.0  # without a line: an error of the spec comes sooner
PRINT_SECONDS, POLL_SECONDS = 4.0, 0.5  # together below the 5 seconds that a command may print nothing


@contextmanager
def plain_problems() -> Iterator[None]:
    """Show what a user can correct, and selfloop's warnings, as one line each; the exit code is then 2."""
    codecs.register_error("similar", _similar)
    sys.stdout, sys.stderr = map(_tolerant, (sys.stdout, sys.stderr))
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
    except KeyboardInterrupt:  # before typer has begun, which makes the same of it
        sys.exit(INTERRUPTED)
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


def _tolerant(stream: TextIO | None) -> TextIO:
    """The stream, which takes everything when it is closed, and similar characters for those that its encoding lacks."""
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


def show_progress(quiet: bool, unit: str = "generations") -> AbstractContextManager[ProgressLine | None]:
    """Shows progress: a live table in a terminal, plain lines elsewhere; None if `quiet`."""
    if quiet:
        return nullcontext()
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _live_display(unit) if is_terminal else _plain_lines("starting", unit)


def show_activity(quiet: bool, activity: str) -> AbstractContextManager[object]:
    """Lines such as "writing the report ..." with the elapsed time while the activity lasts."""
    return nullcontext() if quiet else _plain_lines(activity, "")


class LiveProgress(ProgressLine):
    """Progress that a live display shows, with the state of the run that it is about."""

    run: RunState | None = None

    def begin(self, spec: Spec, left: TimeLeft) -> None:
        from selfloop.commands.live import RunState

        super().begin(spec, left)
        self.run = RunState(spec, left)

    def add_output(self, output: TaskOutput) -> None:
        if self.run:
            self.run.add(output)

    def show(self) -> None:
        pass


@contextmanager
def _live_display(unit: str) -> Iterator[ProgressLine]:
    """A line with the progress, under a table of the policies of a run; at the end, also after Ctrl-C, the line stays."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    progress, console = LiveProgress(PRINT_SECONDS, unit=unit), Console(stderr=True)

    def render() -> Group:
        table = progress.run.table(console.width) if progress.run else ()
        line = Text(progress.text())
        line.truncate(console.width - 3, overflow="ellipsis")  # a terminal adds ^C, which is not to begin another line
        return Group(*table, line)

    try:
        with Live(console=console, get_renderable=render, transient=True):
            yield progress
    finally:
        if progress.total:
            progress.doing = ""
            progress.print()


@contextmanager
def _plain_lines(activity: str, unit: str) -> Iterator[ProgressLine]:
    """Progress lines with a background thread, which prints a line if the work reports nothing."""
    lines, stop = ProgressLine(PRINT_SECONDS, activity, unit), threading.Event()
    lines.due += FIRST_SECONDS

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            lines.show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join()
