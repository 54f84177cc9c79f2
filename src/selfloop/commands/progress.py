"""Progress on standard error: a line at least every 5 seconds while a command works."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from selfloop.errors import printable

FIRST_SECONDS = 2.0  # without a line: an error of the spec comes sooner
PRINT_SECONDS, POLL_SECONDS = 4.0, 0.5  # together below the 5 seconds that a command may print nothing


@contextmanager
def show_progress(quiet: bool, unit: str = "generations") -> Iterator[Progress | None]:
    """Shows progress: a bar in a terminal, plain lines elsewhere; None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _progress_bar(unit) as bar:
            yield bar
    else:
        with _plain_lines("starting", unit) as lines:
            yield lines
            if lines.printed_done < lines.total:
                lines.print()


@contextmanager
def show_activity(quiet: bool, activity: str) -> Iterator[None]:
    """Lines such as "writing the report ..." with the elapsed time while the activity lasts."""
    with nullcontext() if quiet else _plain_lines(activity, ""):
        yield


class Progress:
    """Work done and all work, and a note on the present step, as plain lines. Called with both numbers."""

    def __init__(self, activity: str, unit: str) -> None:
        self.activity, self.unit, self.doing, self.done, self.total = activity, unit, "", 0, 0
        self.printed_done, self.started = 0, time.monotonic()
        self.due = self.started + FIRST_SECONDS

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.show()

    def note(self, doing: str) -> None:
        """Tell which chain computes which step now."""
        self.doing = printable(doing)
        self.show()

    def counts(self) -> str:
        """The numbers as text; the activity while they are unknown."""
        return f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.activity} ..."

    def show(self) -> None:
        """Print a line, if it is time to."""
        if time.monotonic() >= self.due:
            self.print()

    def print(self) -> None:
        """Print a line."""
        self.due, self.printed_done = time.monotonic() + PRINT_SECONDS, self.done
        elapsed = time.monotonic() - self.started
        remaining = f", {elapsed / self.done * (self.total - self.done):.0f} s remaining" if self.done else ""
        doing = f"; {self.doing}" if self.doing and (self.done < self.total or not self.total) else ""
        sys.stderr.write(f"{self.counts()}, {elapsed:.0f} s elapsed{remaining}{doing}\n")


@contextmanager
def _progress_bar(unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    counts, doing = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("counts", "doing"))
    columns = (BarColumn(20), counts, TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(),
               TextColumn("remaining;"), doing)  # fmt: skip
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("run", total=None, counts="starting ...", doing="")

        class Bar(Progress):
            def show(self) -> None:
                bar.update(task, completed=self.done, total=self.total or None, counts=self.counts(), doing=self.doing)

        yield Bar("starting", unit)


@contextmanager
def _plain_lines(activity: str, unit: str) -> Iterator[Progress]:
    """Progress lines with a background thread, which prints a line if the work reports nothing."""
    lines, stop = Progress(activity, unit), threading.Event()

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
