"""Interrupts during a stored step. A result that was computed while one arrived is never recorded."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from selfloop.errors import SelfloopError

_c_handler = ctypes.pythonapi.PyOS_getsig  # of a signal: it differs from Python's own if a C library has set another
_c_handler.restype = ctypes.c_void_p


@contextmanager
def refuse_interrupted(step: str) -> Iterator[None]:
    """Raise KeyboardInterrupt after a step during which SIGINT or SIGTERM arrived, even if a library caught the exception.

    Raises SelfloopError if the step left another handler, to which an interrupt may have gone. Libraries that replace the
    handler only while they work, as RDKit does, are not noticed: `Component.takes_over_interrupts`. Python runs handlers in
    the main thread, so nothing is checked in others, nor in worker processes, which block interrupts from their start.
    """
    blocks = sys.platform != "win32" and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
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
