"""Progress on standard error: a table in a terminal, else a line at least every 5 seconds while a command works."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from selfloop.errors import printable

if TYPE_CHECKING:
    from selfloop.commands.live import RunState
    from selfloop.engine.tasks import TaskOutput
    from selfloop.spec.spec import Spec

FIRST_SECONDS = 2.0  # without a line: an error of the spec comes sooner
PRINT_SECONDS, POLL_SECONDS = 4.0, 0.5  # together below the 5 seconds that a command may print nothing


@contextmanager
def show_progress(quiet: bool, unit: str = "generations") -> Iterator[Progress | None]:
    """Shows progress: a live table in a terminal, plain lines elsewhere; None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _live_display(unit) as display:
            yield display
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
        self.run: RunState | None = None

    def begin(self, spec: Spec) -> None:
        """Tell which spec runs."""
        from selfloop.commands.live import RunState

        self.run = RunState(spec)

    def add_output(self, output: TaskOutput) -> None:
        """Tell the output of a task of it."""
        if self.run:
            self.run.add(output)

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

    def line(self) -> str:
        """The work done, the time, and the present step."""
        elapsed = time.monotonic() - self.started
        left = self.run.seconds_left() if self.run else elapsed / self.done * (self.total - self.done) if self.done else None
        remaining = f", about {left:.0f} s remaining" if left is not None and self.done < self.total else ""
        doing = f"; {self.doing}" if self.doing and (self.done < self.total or not self.total) else ""
        return f"{self.counts()}, {elapsed:.0f} s elapsed{remaining}{doing}\n"

    def show(self) -> None:
        """Print a line, if it is time to."""
        if time.monotonic() >= self.due:
            self.print()

    def print(self) -> None:
        """Print a line."""
        self.due, self.printed_done = time.monotonic() + PRINT_SECONDS, self.done
        sys.stderr.write(self.line())


class _Silent(Progress):
    """Progress that something else displays."""

    def show(self) -> None:
        pass


@contextmanager
def _live_display(unit: str) -> Iterator[Progress]:
    """A line with the progress, under a table of the policies of a run; at the end, also after Ctrl-C, the line stays."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    progress, console = _Silent("starting", unit), Console(stderr=True)

    def render() -> Group:
        table = progress.run.table(console.width) if progress.run else ()
        line = Text(progress.line().rstrip())
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
