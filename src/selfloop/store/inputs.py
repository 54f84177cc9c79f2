"""What must not happen while a stored step runs: a change of the files that it reads, and an interrupt.

Its result would not belong to its key, and is never recorded.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from selfloop.component import Context
from selfloop.errors import DataError, SelfloopError, StoreError
from selfloop.formats.folders import list_folder
from selfloop.store.calls import StepCall
from selfloop.store.identity import ObjectRef, step_name
from selfloop.store.records import file_stat

if TYPE_CHECKING:
    from selfloop.store.store import Store

_c_handler = ctypes.pythonapi.PyOS_getsig  # of a signal: it differs from Python's own if a C library has set another
_c_handler.restype = ctypes.c_void_p


@contextmanager
def unchanged_inputs(store: Store, call: StepCall) -> Iterator[None]:
    """Raise DataError or StoreError after the block if the files that a step has just read are not those of its key."""
    inputs = list(inputs_of(call.arguments))
    before = _source_stats(inputs)
    try:
        yield
    finally:  # the step may have ended its chain, or failed, because of the change
        after = _source_stats(inputs)
        changed = [file for file in before | after if before.get(file) != after.get(file)]
        if before and not changed and store.key(call.step, *call.arguments) != call.key:  # changed after the key was made
            changed = list(before)
        if changed:
            raise DataError(f"{step_name(call.step)}: {changed[0]} changed while it was read. Nothing was stored; run again.")
        for ref in inputs:
            if isinstance(ref, ObjectRef) and not store.files.is_intact(ref.digest):
                raise StoreError(f"store {store.path}: object {ref.digest} changed while it was read. Run again.")


def inputs_of(value: Any) -> Iterator[Path | ObjectRef]:
    """Every path and every reference to stored arrays in an argument and its settings."""
    if isinstance(value, Path | ObjectRef):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from inputs_of(item)
    elif is_dataclass(value) and not isinstance(value, type | Context):
        yield from inputs_of([getattr(value, f.name) for f in fields(value) if f.metadata.get("identity", True)])


def _source_stats(inputs: Iterable[Path | ObjectRef]) -> dict[Path, Any]:
    """The files at and below the paths, and what changes when they are written."""
    paths = [path for path in inputs if isinstance(path, Path)]
    files = [path / name for path in paths for name in (list_folder(path).sizes if path.is_dir() else ("",))]
    return {file: file_stat(file) for file in files}


@contextmanager
def refuse_interrupted(step: str) -> Iterator[None]:
    """Raise KeyboardInterrupt after a step during which SIGINT or SIGTERM arrived, even if a library caught the exception.

    Raises SelfloopError if the step left another handler, to which an interrupt may have gone. Libraries that replace the
    handler only while they work, as RDKit does, are not noticed: `Component.takes_over_interrupts`. Python runs handlers in
    the main thread, so nothing is checked in others, nor in worker processes, which block interrupts from their start.
    """
    blocks = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    if blocks or threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, note)
    set_by_python = {number: _c_handler(number) for number in handlers}
    try:
        yield
    finally:  # whatever the step made of it: it may have ended its chain
        replaced = any(signal.getsignal(n) is not note or _c_handler(n) != set_by_python[n] for n in handlers)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            raise KeyboardInterrupt
        if replaced:
            raise SelfloopError(
                f"{step}: a library replaced the handler of Ctrl-C, so an interrupt may have changed the result. Set "
                "`takes_over_interrupts = True` in the component that uses the library: its steps then run in a worker process."
            )
