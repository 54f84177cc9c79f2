"""Running many tasks: in this process, or in worker processes that each have their share of the cores."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Protocol

from selfloop.errors import SelfloopError, show_warnings_plainly

Work = Callable[[Any], Iterator[Any]]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Mapper(Protocol):
    """How tasks are run: yields what `work` yields for each of them, in any order. Ray can follow."""

    def __call__(self, work: Work, tasks: Sequence[Any], threads: int) -> Iterator[Any]: ...


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory of this machine."""
    return 1 << 40 if sys.platform == "win32" else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_process(work: Work, tasks: Sequence[Any], threads: int) -> Iterator[Any]:
    """One task after another, here."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        for task in tasks:
            yield from work(task)


def in_processes(workers: int) -> Mapper:
    """A mapper over that many worker processes, each started with its thread variables set before any library loads."""

    def run(work: Work, tasks: Sequence[Any], threads: int) -> Iterator[Any]:
        if workers <= 1 or len(tasks) <= 1:
            yield from in_process(work, tasks, threads)
            return
        with _pool(work, min(workers, len(tasks)), threads) as connections:
            yield from _distribute(connections, list(tasks))

    return run


@contextmanager
def _pool(work: Work, workers: int, threads: int) -> Iterator[list[Connection]]:
    spawn = get_context("spawn")
    processes, connections = [], []
    try:
        with _thread_variables(threads), _deaf_children():
            for _ in range(workers):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(work, theirs, threads), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                connections.append(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
            process.join()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal: the parent ends its workers, which must not die of it on their own."""
    if sys.platform == "win32":
        yield
        return
    ensure_running()  # it starts a process of its own, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started now
    pressed: list[int] = []  # a thread of a library may take the signal: it must not stop this one half-way through a start
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def _distribute(connections: list[Connection], tasks: list[Any]) -> Iterator[Any]:
    waiting = tasks[::-1]
    busy = set(connections)
    for connection in connections:
        connection.send(waiting.pop())
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            try:
                kind, value = ready.recv()
            except (EOFError, ConnectionError):
                raise SelfloopError("a worker process died (out of memory?). Run again with --workers 1.") from None
            if kind == "result":
                yield value
            elif kind == "error":
                raise value
            elif waiting:
                ready.send(waiting.pop())
            else:
                busy.discard(ready)


def _serve(work: Work, connection: Connection, threads: int) -> None:
    show_warnings_plainly()
    while True:
        try:
            task = connection.recv()
            for value in in_process(work, [task], threads):
                connection.send(("result", value))
            connection.send(("done", None))
        except (EOFError, ConnectionError):
            return
        except Exception as problem:  # whatever it is, the parent raises it
            if not isinstance(problem, SelfloopError):
                problem.add_note("In a worker process:\n" + "".join(traceback.format_exception(problem)))
            with suppress(ConnectionError):  # it has heard of another one already
                connection.send(("error", problem))
            return


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
