"""Progress on standard error: a line at least every 5 seconds while a command works."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

FIRST_SECONDS = 2.0  # without a line: an error of the spec comes sooner
PRINT_SECONDS, POLL_SECONDS = 4.0, 0.5  # together below the 5 seconds that a command may print nothing

Progress = Callable[[int, int], None]  # of work done and of all work


@contextmanager
def show_progress(quiet: bool, unit: str = "generations") -> Iterator[Progress | None]:
    """A function that shows progress: a bar in a terminal, plain lines elsewhere; None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _progress_bar(unit) as progress:
            yield progress
    else:
        with _plain_lines("starting", unit) as lines:
            yield lines.update
            if lines.printed_done < lines.total:
                lines.print()


@contextmanager
def show_activity(quiet: bool, activity: str) -> Iterator[None]:
    """Lines such as "writing the report ..." with the elapsed time while the activity lasts."""
    with nullcontext() if quiet else _plain_lines(activity, ""):
        yield


@contextmanager
def _progress_bar(unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit},"), TimeElapsedColumn(), TextColumn("elapsed,"),
               TimeRemainingColumn(), TextColumn("remaining"))  # fmt: skip
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("run", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _ProgressLines:
    """Progress as plain lines; a line without counts names the activity."""

    def __init__(self, activity: str, unit: str) -> None:
        self.activity, self.unit, self.done, self.total, self.printed_done = activity, unit, 0, 0, 0
        self.started = time.monotonic()
        self.due = self.started + FIRST_SECONDS

    def update(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.print_if_due()

    def print_if_due(self) -> None:
        if time.monotonic() >= self.due:
            self.print()

    def print(self) -> None:
        self.due, self.printed_done = time.monotonic() + PRINT_SECONDS, self.done
        elapsed = time.monotonic() - self.started
        counts = f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.activity} ..."
        remaining = f", {elapsed / self.done * (self.total - self.done):.0f} s remaining" if self.done else ""
        sys.stderr.write(f"{counts}, {elapsed:.0f} s elapsed{remaining}\n")


@contextmanager
def _plain_lines(activity: str, unit: str) -> Iterator[_ProgressLines]:
    """Progress lines with a background thread, which prints a line if the work reports nothing."""
    lines, stop = _ProgressLines(activity, unit), threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            lines.print_if_due()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join()
