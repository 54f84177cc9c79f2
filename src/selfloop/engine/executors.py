"""Runs tasks in this process, or in worker processes with their share of the cores and GPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.resource_tracker import ensure_running
from types import ModuleType
from typing import Any

from selfloop.errors import SelfloopError, first_line, os_error_reason, show_warnings_plainly
from selfloop.formats.programs import THREAD_VARIABLES

Notify = Callable[[str], None]  # of what a task does now
RunTask = Callable[[Any, Notify], Iterator[Any]]
INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
UNGUARDED = 77  # exit code of a worker whose main module starts a run when it is imported
UNGUARDED_ADVICE = (
    "workers: the script starts a run when a worker imports it for its components. Put the call under "
    '`if __name__ == "__main__":`.'
)
SECONDS_BETWEEN_NOTES = 0.5
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends

# Torch's random generators, the number of threads of libraries, and the environment belong to the whole process.
_THIS_PROCESS = threading.RLock()


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(  # noqa: PLR0913  # what a worker process gets
    run_task: RunTask,
    tasks: Sequence[Any],
    workers: int,
    threads: int,
    *,
    notify: Notify = lambda note: None,
    isolated: bool = False,
    devices: Sequence[str] = (),
) -> Iterator[Any]:
    """Outputs of `run_task` for each of the tasks, in any order, from worker processes if both are more than one.

    `isolated`: from a worker process in any case, where no interrupt arrives. Workers start with their thread variables set
    before any library is loaded. A task whose worker was killed is run again, once. `devices`: of each worker, as the variable
    CUDA_VISIBLE_DEVICES has them; without any, all workers see the same.
    """
    refuse_import()
    if not tasks or (not isolated and min(workers, len(tasks)) <= 1):
        yield from _execute_here(run_task, tasks, threads, notify)
        return
    pool = _Pool(run_task, tasks, threads, devices)
    try:
        yield from pool.outputs(max(1, min(workers, len(tasks))), notify)
    finally:
        pool.close()


def refuse_import() -> None:
    """Raise SystemExit in a worker that imports its main module, which starts a run: it lacks a guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(UNGUARDED)


def dump_task(part: Any) -> bytes:
    """A task as a worker process gets it; SelfloopError if it cannot be sent, or needs a main module that is in no file."""
    try:
        pickled = bytes(ForkingPickler.dumps(part))
    except Exception as problem:  # of any kind, from a component's own pickling too
        raise SelfloopError(
            f"workers: a component cannot be sent to a worker process ({first_line(problem)}). Define it in a file, at the "
            "top level."
        ) from problem
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if b"__main__" in pickled and not (getattr(main, "__spec__", None) or (file and os.path.exists(file))):
        raise SelfloopError(
            "workers: a component is defined in a notebook or on standard input, which worker processes cannot import. "
            "Define it in a file and import it from there; without molecules, workers=1 helps too."
        )
    return pickled


def _execute_here(run_task: RunTask, tasks: Sequence[Any], threads: int, notify: Notify) -> Iterator[Any]:
    """Outputs of the tasks. Runs in several threads of this process take turns, output by output."""
    end = object()
    for task in tasks:
        outputs = run_task(task, notify)
        while True:
            with _THIS_PROCESS, _thread_pools(len(sys.modules)).limit(limits=threads):
                output = next(outputs, end)
            if output is end:
                break
            yield output


@lru_cache(maxsize=1)
def _thread_pools(n_modules: int) -> Any:
    """The thread pools of the libraries that are loaded, found anew when modules were imported: that takes 13 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    device: str | None  # its GPUs
    position: int | None = None  # of its task; None until it has started
    n_outputs: int = 0  # of its task so far


class _Pool:
    def __init__(self, run_task: RunTask, tasks: Sequence[Any], threads: int, devices: Sequence[str]) -> None:
        self.run_task, self.tasks, self.threads = run_task, tasks, threads
        self.pickled, self.devices = [dump_task(part) for part in (*tasks, run_task)], [*devices]
        self.waiting = deque(range(len(tasks)))
        self.n_yielded, self.n_deaths = Counter[int](), Counter[int | None]()
        self.workers: dict[Connection, _Worker] = {}

    def start(self) -> None:
        """Start one more worker. It imports the main module only if a task has a class of it."""
        spawn, needs_main = get_context("spawn"), any(b"__main__" in part for part in self.pickled)
        if multiprocessing.current_process().daemon:
            raise SelfloopError(
                "workers: this process belongs to multiprocessing.Pool, whose processes cannot start others. Use "
                "concurrent.futures.ProcessPoolExecutor."
            )
        parent_end, worker_end = spawn.Pipe()
        device = self.devices.pop(0) if self.devices else None
        arguments = (self.run_task, worker_end, self.threads, threading.current_thread() is threading.main_thread())
        process = spawn.Process(target=_worker_main, args=arguments, daemon=True)
        try:
            with _THIS_PROCESS, _inherited(self.threads, device, needs_main), _start_with_interrupts_blocked():
                process.start()
        except OSError as problem:
            if not self.workers:  # else the others do the work
                raise SelfloopError(
                    f"workers: no process can be started ({os_error_reason(problem)}). Raise the limit of processes or open "
                    "files (ulimit -u, ulimit -n), or use --workers 1."
                ) from problem
        else:
            self.workers[parent_end] = _Worker(process, device)
        worker_end.close()

    def outputs(self, workers: int, notify: Notify) -> Iterator[Any]:
        """Send a task to every free worker; yields outputs as they arrive."""
        for _ in range(workers):
            self.start()
        while self.workers:
            for connection in wait([*self.workers]):
                assert isinstance(connection, Connection)
                worker = self.workers[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    self.replace(connection, workers)
                    continue
                if kind == "output":
                    assert worker.position is not None
                    worker.n_outputs += 1
                    if worker.n_outputs > self.n_yielded[worker.position]:  # else from the try before
                        self.n_yielded[worker.position] += 1
                        yield value
                elif kind == "note":
                    notify(value)
                elif kind == "error":
                    raise value
                elif self.waiting:
                    worker.position, worker.n_outputs = self.waiting.popleft(), 0
                    connection.send_bytes(self.pickled[worker.position])
                else:
                    del self.workers[connection]
                    connection.close()  # the worker ends
                    worker.process.join()

    def replace(self, connection: Connection, workers: int) -> None:
        """Give the task of a dead worker to a new one; SelfloopError at its second death."""
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        code = worker.process.exitcode or 0
        if code == UNGUARDED:
            raise SelfloopError(UNGUARDED_ADVICE)
        self.devices += [worker.device] if worker.device is not None else []
        self.n_deaths[worker.position] += 1
        if self.n_deaths[worker.position] > 1:
            task = "its start" if worker.position is None else str(self.tasks[worker.position])
            advice = "A library ended it: its message may stand above."
            if code == -signal.SIGKILL:
                less = "--workers 1 uses less" if workers > 1 else "lower n or the size of the model"
                advice = f"The system kills processes that use too much memory: {less}."
            end = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            raise SelfloopError(f"a worker ended by {end}, twice, at {task}. {advice}")
        if worker.position is not None:
            self.waiting.appendleft(worker.position)
        self.start()

    def close(self) -> None:
        for connection, worker in self.workers.items():
            connection.close()
            worker.process.kill()
            worker.process.join()


@contextmanager
def _start_with_interrupts_blocked() -> Iterator[None]:
    """Start processes that ignore Ctrl-C and SIGTERM, which may go to all of a group: the parent ends its workers."""
    ensure_running()  # it starts a process, and would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # workers inherit the mask
    arrived = set[int]()  # a library's thread may receive a signal: it must not interrupt a half-started worker
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: handler for number in INTERRUPTS if in_main_thread and callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.add(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for arrived_number in arrived:
        signal.raise_signal(arrived_number)


def _worker_main(run_task: RunTask, connection: Connection, threads: int, from_main_thread: bool) -> None:
    _end_with_parent(from_main_thread)
    show_warnings_plainly()
    connection.send(("ready", None))
    with suppress(EOFError, ConnectionError):  # the parent has no more tasks, or has ended
        while run_and_send(run_task, connection.recv(), threads, connection.send):
            pass


def run_and_send(run_task: RunTask, task: Any, threads: int, send: Callable[[tuple[str, Any]], None]) -> bool:
    """Run a task and send its notes, outputs and end; True without an error, which is sent, too."""
    last_note = 0.0

    def notify(note: str) -> None:
        nonlocal last_note
        if time.monotonic() > last_note + SECONDS_BETWEEN_NOTES:
            last_note = time.monotonic()
            send(("note", note))

    try:
        for value in _execute_here(run_task, [task], threads, notify):
            send(("output", value))
        send(("done", None))
        return True
    except (EOFError, ConnectionError):
        raise
    except Exception as problem:  # of any kind: the parent raises it
        text = "".join(traceback.format_exception(problem))
        try:
            ForkingPickler.loads(ForkingPickler.dumps(problem))
        except Exception:  # some exceptions of libraries cannot be sent
            problem = RuntimeError(f"{type(problem).__name__}: {first_line(problem)}")
        if not isinstance(problem, SelfloopError):
            problem.add_note(f"In a worker process:\n{text}")
        send(("error", problem))
        return False


def _end_with_parent(from_main_thread: bool) -> None:
    """End this process when its parent ends, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    with suppress(RuntimeError):  # a limit of threads: on Linux, the signal does it alone
        threading.Thread(target=end, daemon=True).start()
    if sys.platform == "linux" and from_main_thread:  # at once, even if a library holds the interpreter's lock
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it counts the end of the thread that started this process


@contextmanager
def _inherited(threads: int, device: str | None, needs_main: bool) -> Iterator[None]:
    """Processes that start inside have these threads and GPUs in variables, and import the main module only if they need it."""
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads)) | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    main, before = sys.modules["__main__"], {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    sys.modules["__main__"] = main if needs_main else ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name in variables:
            del os.environ[name]
        os.environ.update(before)
