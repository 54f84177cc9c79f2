"""Progress on standard error: a table in a terminal, else a line at least every 5 seconds while a command works."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from selfloop.notebook import ProgressLine

if TYPE_CHECKING:
    from selfloop.commands.live import RunState
    from selfloop.engine.tasks import TaskOutput
    from selfloop.engine.time_left import TimeLeft
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


@contextmanager
def show_activity(quiet: bool, activity: str) -> Iterator[None]:
    """Lines such as "writing the report ..." with the elapsed time while the activity lasts."""
    with nullcontext() if quiet else _plain_lines(activity, ""):
        yield


class Progress(ProgressLine):
    """Lines on standard error, and the state of the run that they are about."""

    def __init__(self, activity: str, unit: str) -> None:
        super().__init__(PRINT_SECONDS, activity, unit)
        self.due = self.started + FIRST_SECONDS
        self.run: RunState | None = None

    def begin(self, spec: Spec, left: TimeLeft) -> None:
        from selfloop.commands.live import RunState

        super().begin(spec, left)
        self.run = RunState(spec, left)

    def add_output(self, output: TaskOutput) -> None:
        if self.run:
            self.run.add(output)


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
