"""Runs tasks in this process, or in worker processes with their share of the cores."""

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
from typing import Any

from selfloop.errors import SelfloopError, show_warnings_plainly

RunTask = Callable[[Any], Iterator[Any]]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(run_task: RunTask, tasks: Sequence[Any], workers: int, threads: int) -> Iterator[Any]:
    """Outputs of `run_task` for each of the tasks, in any order, from worker processes if both are more than one.

    Workers start with their thread variables set before any library is loaded.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from _execute_here(run_task, tasks, threads)
        return
    with _start_workers(run_task, min(workers, len(tasks)), threads) as connections:
        yield from _distribute(connections, list(tasks))


def _execute_here(run_task: RunTask, tasks: Sequence[Any], threads: int) -> Iterator[Any]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        for task in tasks:
            yield from run_task(task)


@contextmanager
def _start_workers(run_task: RunTask, workers: int, threads: int) -> Iterator[list[Connection]]:
    spawn = get_context("spawn")
    processes, connections = [], []
    try:
        with _thread_variables(threads), _start_with_sigint_blocked():
            for _ in range(workers):
                parent_end, worker_end = spawn.Pipe()
                process = spawn.Process(target=_worker_main, args=(run_task, worker_end, threads), daemon=True)
                process.start()
                worker_end.close()
                processes.append(process)
                connections.append(parent_end)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
            process.join()


@contextmanager
def _start_with_sigint_blocked() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which a terminal sends to all of them: the parent ends its workers."""
    if sys.platform == "win32":
        yield
        return
    ensure_running()  # it starts a process, and would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit the mask
    pressed: list[int] = []  # a library's thread may receive the signal: it must not interrupt a half-started worker
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
    """Send a task to every free worker; yields outputs as they arrive."""
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
            if kind == "output":
                yield value
            elif kind == "error":
                raise value
            elif waiting:
                ready.send(waiting.pop())
            else:
                busy.discard(ready)


def _worker_main(run_task: RunTask, connection: Connection, threads: int) -> None:
    show_warnings_plainly()
    while True:
        try:
            task = connection.recv()
            for value in _execute_here(run_task, [task], threads):
                connection.send(("output", value))
            connection.send(("done", None))
        except (EOFError, ConnectionError):
            return
        except Exception as problem:  # of any kind: the parent raises it
            if not isinstance(problem, SelfloopError):
                problem.add_note("In a worker process:\n" + "".join(traceback.format_exception(problem)))
            with suppress(ConnectionError):  # the parent ended because of another error
                connection.send(("error", problem))
            return


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    before = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name in THREAD_VARIABLES:
            del os.environ[name]
        os.environ.update(before)
