"""A run's progress in a file beside that of the run, twice a second, and a control file with which others pause or cancel it.

A thread of the run writes and reads them, so that stored steps cost no file access. Workers look at the control file between
steps. A store that cannot be written has neither.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SelfloopError, SettingError, first_line
from selfloop.formats.replacing import write_text
from selfloop.settings import check_setting, setting_types
from selfloop.store.records import file_stat

if TYPE_CHECKING:
    from selfloop.engine.time_left import TimeLeft

POLL_SECONDS = 0.5  # between two looks at the control file
MAX_SILENCE, MAX_SILENCE_HERE = 30.0, 600.0  # seconds after which a process is gone, on another machine and on this one
Action = Literal["pause", "cancel"]
State = Literal["running", "paused", "finished", "interrupted", "failed"]


@dataclass(slots=True)
class RunProgress:
    """How far a run is, as its file has it."""

    pid: int
    host: str
    total: int  # generations of all chains, as a run counts them
    done: int = 0  # those that are finished
    elapsed: float = 0.0  # seconds without pauses
    remaining: float | None = None  # estimate of the seconds until the end
    doing: str = ""  # the present step
    state: State = "running"
    problem: str = ""  # why it failed
    folder: str = ""  # in which it runs: relative paths of its spec begin there
    risk: str = ""  # the metric of `losses`
    # By policy and point: newest generation with a risk, its mean, its seeds, and chains that ended so far
    losses: dict[str, tuple[int, float, int, int]] = field(default_factory=dict)

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions that the run obeys now, as `watch` names them."""
        return {"running": ("pause", "cancel"), "paused": ("continue", "cancel")}.get(self.state, ())

    def add(self, title: str, risks: Floats | None, ended: int, done: int) -> None:
        """Count new generations and chains that ended, and note risks (seeds, generations), NaN where there is none."""
        self.done += done
        if risks is None or not (ended or np.isfinite(risks).any()):
            return
        newest, mean, seeds, before = self.losses.get(title, (0, 0.0, 0, 0))
        t = int(np.max(~np.isnan(risks) * np.arange(1, risks.shape[1] + 1)))
        if 0 < t >= newest:
            new, old = risks[~np.isnan(risks[:, t - 1]), t - 1], seeds * (t == newest)
            newest, mean, seeds = t, float(new.sum() + old * mean) / (len(new) + old), len(new) + old
        self.losses = {**self.losses, title: (newest, mean, seeds, before + ended)}  # a new table: a thread reads it


def progress_file(store: Path, run: str) -> Path:
    """The file with the progress of a run."""
    return store / "runs" / f"{run}.progress"


def control_file(store: Path, run: str) -> Path:
    """The file with which a run is paused or canceled."""
    return store / "runs" / f"{run}.control"


def read_progress(store: Path, run: str) -> RunProgress | None:
    """The progress of a run with its state now: interrupted if its process is gone. None without a readable file."""
    file = progress_file(store, run)
    try:
        silence = time.time() - file.stat().st_mtime
        body = json.loads(_read_text(file))
        progress = RunProgress(
            **{name: check_setting(hint, body[name], name) for name, hint in setting_types(RunProgress).items()}
        )
    except (OSError, SettingError, LookupError, ValueError, TypeError, RecursionError):
        return None
    if progress.state == "running":
        if not _is_alive(progress, silence):
            progress.state = "interrupted"
        elif _read_action(control_file(store, run)) == "pause":
            progress.state = "paused"
    return progress


def _is_alive(progress: RunProgress, silence: float) -> bool:
    if progress.host != platform.node():
        return silence < MAX_SILENCE
    try:
        os.kill(progress.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    return silence < MAX_SILENCE_HERE  # a library may hold the interpreter, but after a restart the pid is that of another


def control_run(store: Path, run: str, action: Action | None) -> None:
    """Ask a run to pause or to end, or with None to continue. SelfloopError if the store cannot be written."""
    if action is None:
        control_file(store, run).unlink(missing_ok=True)
    elif _is_obstructed(file := control_file(store, run)):
        raise SelfloopError(f"{file}: is no file. Delete it, then ask again.")
    else:
        write_text(file, action)


def _is_obstructed(file: Path) -> bool:
    """True if something else is in the place of a file, such as a pipe, whose reader or writer would be waited for."""
    return os.path.lexists(file) and file_stat(file) is None


def _read_action(file: Path) -> str:
    with suppress(OSError):
        return _read_text(file)
    return ""


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if not _is_obstructed(file) else ""


def pause_between_steps(file: Path | None, notify: Callable[[str], None]) -> Callable[[str], float]:
    """`notify` that returns only after a pause, with the seconds that it took. It looks at the file twice a second."""
    due = 0.0

    def note(text: str) -> float:
        nonlocal due
        notify(text)
        started = time.monotonic()
        if file is None or started < due:
            return 0.0
        while _read_action(file) == "pause":
            time.sleep(POLL_SECONDS)
        due = time.monotonic() + POLL_SECONDS
        return time.monotonic() - started

    return note


class LiveRun:
    """A run that writes its progress and obeys its control file while the block lasts.

    "cancel" does what Ctrl-C does: it interrupts the main thread, or raises KeyboardInterrupt at the next note of a run in
    another thread, or where Ctrl-C is ignored. Of several processes that compute one run, all obey and one writes.
    """

    def __init__(self, store: Path, run: str, total: int, notify: Callable[[str], None], risk: str, left: TimeLeft) -> None:
        self.progress = RunProgress(os.getpid(), platform.node(), total, risk=risk)
        self.store, self.run, self.control = store, run, control_file(store, run)
        self.notify, self.canceled, self.stop, self.left = notify, False, threading.Event(), left
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    def note(self, text: str) -> None:
        self.progress.doing = text
        if self.canceled:
            raise KeyboardInterrupt
        self.notify(text)

    def __enter__(self) -> LiveRun:
        with suppress(OSError):
            self.progress.folder = os.getcwd()
            if self._is_mine():  # a request to another process is not over
                self.control.unlink(missing_ok=True)
        if self._write():
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        if self.thread.ident:
            failed = isinstance(problem, Exception)
            state: State = "finished" if problem is None else "failed" if failed else "interrupted"
            try:
                self.thread.join()
            finally:  # it may interrupt even now
                self.progress.state, self.progress.problem = state, first_line(problem) if problem and failed else ""
                self._write()

    def _follow(self) -> None:
        before = time.monotonic()
        while not self.stop.wait(POLL_SECONDS):
            action, now = _read_action(self.control), time.monotonic()
            self.progress.elapsed += (now - before) * (action != "pause")
            self.left.paused += (now - before) * (action == "pause")
            before = now
            self._write()
            if action == "cancel" and not self.canceled:
                self.canceled = True
                self._interrupt()

    def _interrupt(self) -> None:
        numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
        if not self.in_main_thread or not numbers:  # the next note raises
            return
        signal.pthread_kill(threading.main_thread().ident or 0, numbers[0])

    def _is_mine(self) -> bool:
        """True unless another process computes this run now, which writes the progress."""
        other = read_progress(self.store, self.run)
        return not other or not other.actions or (other.pid, other.host) == (self.progress.pid, self.progress.host)

    def _write(self) -> bool:
        file = progress_file(self.store, self.run)
        if _is_obstructed(file):
            return False
        try:
            if self._is_mine():
                self.progress.remaining = self.left.seconds()
                write_text(file, json.dumps(asdict(self.progress)))
        except (OSError, SelfloopError):
            return False
        return True
