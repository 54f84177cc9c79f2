"""Runs tasks on a Ray cluster, in batches. Their messages come back through an actor: Ray's client has no streaming tasks."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import current_process, spawn
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, cast

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from selfloop.engine.executors import (
    INTERRUPTS,
    UNGUARDED_ADVICE,
    Notify,
    RunTask,
    count_cores,
    dump_task,
    refuse_import,
    run_and_send,
)
from selfloop.engine.tasks import Task, find_blockers
from selfloop.errors import SelfloopError, SpecError, first_line, show_warnings_plainly
from selfloop.formats.programs import THREAD_VARIABLES
from selfloop.source_code import is_installed, source_roots
from selfloop.spec.resources import GIGABYTE
from selfloop.spec.spec import Spec
from selfloop.store.inputs import inputs_of

MAX_TRIES = 4  # of a task whose worker or node dies
BATCHES_PER_SLOT = 8  # into which the tasks that wait are divided, so that slots end at about the same time
CONNECT_SECONDS, ANSWER_SECONDS, CHECK_SECONDS = 5.0, 60.0, 5.0
OBJECT_STORE_BYTES = 100 << 20  # of a local cluster: only messages pass through it
DIED = exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError


class Mailbox:
    """The actor that keeps messages of tasks until the driver takes them. They may arrive in any order."""

    def __init__(self) -> None:
        self.messages, self.arrived = list[Any](), asyncio.Event()

    async def put(self, *message: Any) -> None:
        """Add a message."""
        self.messages.append(message)
        self.arrived.set()

    async def take(self) -> list[Any]:
        """All messages since the last time, at least one."""
        await self.arrived.wait()
        self.arrived.clear()
        messages, self.messages = self.messages, []
        return messages


def _enter(place: Mapping[str, Any]) -> None:
    """Make this process import what the driver imports, from its folder if there is such a folder here."""
    sys.path += [path for path in place["sys_path"] if path not in sys.path]
    with suppress(OSError):
        os.chdir(place["folder"])
    main = {**place["main"]}
    if (path := main.get("init_main_from_path")) and not os.path.exists(path) and (found := find_spec(Path(path).stem)):
        main["init_main_from_path"] = found.origin  # it traveled
    current_process()._inheriting = True  # type: ignore[attr-defined]  # a run that starts now is refused
    try:
        spawn.prepare(main)
    finally:
        del current_process()._inheriting  # type: ignore[attr-defined]


def _run_batch(batch: int, pickled: Sequence[bytes], place: Mapping[str, Any], threads: int, mailbox: Any) -> None:
    """Run tasks one after another in a worker of the cluster, and send their messages."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    show_warnings_plainly()
    sent = list[Any]()

    def send(message: tuple[str, Any]) -> None:
        sent.append(mailbox.put.remote(batch, len(sent), message))

    try:
        _enter(place)
        run_task, *tasks = map(ForkingPickler.loads, pickled)
    except SystemExit:
        send(("error", SelfloopError(UNGUARDED_ADVICE)))
        tasks = []
    all(run_and_send(run_task, task, threads, send) for task in tasks)
    ray.get(sent)  # a worker that ends drops what it has not sent


def _probe(place: Mapping[str, Any], token: str, files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Versions on a node, and the files that it does not see."""
    _enter({**place, "main": {}})
    return _versions(), [file for file in (token, *files) if not os.path.exists(file)]


def _versions() -> dict[str, str]:
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "selfloop": version("selfloop")}


@dataclass(slots=True)
class _Batch:
    """Tasks that one Ray task runs."""

    positions: deque[int]  # of those that have not ended
    n_outputs: int = 0  # of the first of them
    n_messages: int = 0  # that were treated
    early: dict[int, tuple[str, Any]] = field(default_factory=dict)  # messages that arrived before others, by number


@contextmanager
def open_cluster(on: str, spec: Spec, store: Path) -> Iterator[RayExecutor]:
    """The cluster that `on` names: "ray" starts one here, "auto" and "ray://host:port" are running ones.

    A cluster to which this process is connected already is used as it is. Raises SelfloopError for one that cannot be reached,
    and for nodes without the same versions, the store or the files that the spec reads.
    """
    refuse_import()
    pickled, address = dump_task(spec), on.removeprefix("ray://")
    if on not in ("ray", "auto") and (address == on or not address.rpartition(":")[2].isdecimal()):
        raise SpecError(f'on: got {on!r}; expected "ray", "auto" or "ray://HOST:PORT". Correct it.')
    connects = not ray.is_initialized()
    if connects:
        _connect(on, pickled)
    try:
        executor = RayExecutor(on, pickled)
        executor.check_nodes(
            store, [str(path) for path in inputs_of([spec, *(p.arrivals for p in spec.points())]) if isinstance(path, Path)]
        )
        yield executor
    finally:
        if connects:
            ray.shutdown()


def _connect(on: str, pickled: bytes) -> None:
    options: dict[str, Any] = {"address": on}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS if in_main_thread}
    try:
        if on == "ray":
            for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):  # reports to the network; last to get a core
                os.environ.setdefault(name, "0")
            size = {"num_cpus": count_cores(), "object_store_memory": OBJECT_STORE_BYTES}
            options = {"address": "local", "include_dashboard": False, **size}
        else:
            modules = [name for name in [*sys.modules] if name.encode() in pickled and not is_installed(name)]
            roots = {str(root) for name in modules for root in source_roots(name)}
            options["runtime_env"] = {"py_modules": sorted(roots)} if roots else {}
        if on.startswith("ray://"):  # Ray itself tries for half a minute
            host, _, port = on.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as problem:
        reason = " ".join(str(problem).split())[:300].rstrip(".")
        raise SelfloopError(
            f"on: {on}: no cluster can be used ({reason}). Check the address and the versions there."
        ) from problem
    finally:
        for number, handler in handlers.items():  # Ray replaces them
            signal.signal(number, handler)


class RayExecutor:
    """A cluster on which tasks run. `place`: what its workers need to import what this process has."""

    def __init__(self, on: str, pickled: bytes) -> None:
        main = spawn.get_preparation_data("") if b"__main__" in pickled else {}
        main = {key: value for key, value in main.items() if key.startswith("init_main")}
        self.on, self.place = on, {"folder": os.getcwd(), "sys_path": [*map(os.path.abspath, sys.path)], "main": main}

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of every node on which tasks can run, as Ray names them."""
        alive = [cast(dict[str, Any], node) for node in ray.nodes() if node["Alive"]]
        return [{**node["Resources"], "id": node["NodeID"]} for node in alive if node["Resources"].get("CPU")]

    def cores(self) -> list[int]:
        """Cores of every node."""
        return [int(node["CPU"]) for node in self.nodes()]

    def gpus(self) -> float:
        """GPUs of the node with most of them."""
        return max((node.get("GPU", 0.0) for node in self.nodes()), default=0.0)

    def check_nodes(self, store: Path, files: Sequence[str]) -> None:
        """Raise SelfloopError for a node with other versions, without the store, or without a file."""
        token = store.absolute() / f"probe-{os.getpid()}-{os.urandom(4).hex()}"
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        nodes = self.nodes()
        if not nodes:
            raise SelfloopError(f"on: {self.on}: the cluster has no node with a CPU. Start one (ray start).")
        token.touch()
        try:
            for node in nodes:
                where = NodeAffinitySchedulingStrategy(node["id"], soft=False)
                answer = probe.options(scheduling_strategy=where).remote(self.place, str(token), files)
                self._check_answer(f"on: {self.on}: node {str(node['id'])[:8]}", answer, store)
        finally:
            token.unlink(missing_ok=True)

    def _check_answer(self, node: str, answer: Any, store: Path) -> None:
        try:
            versions, missing = ray.get(answer, timeout=ANSWER_SECONDS)
        except exceptions.RayError as problem:
            advice = f"Install selfloop {version('selfloop')} there, with the same Python"
            raise SelfloopError(f"{node} cannot run selfloop ({_reason(problem)}). {advice}.") from problem
        for name, own in _versions().items():
            if versions[name] != own:
                raise SelfloopError(f"{node} has {name} {versions[name]}; here it is {own}. Install the same version there.")
        if missing:
            what = f"the store {store}" if Path(missing[0]).name.startswith("probe-") else missing[0]
            raise SelfloopError(f"{node} does not see {what}. Put it into a folder that all nodes share, under the same path.")

    def count_slots(self, needs: Mapping[str, float]) -> int:
        """How many tasks with these needs can run at a time; SpecError if no node has what one task needs."""
        nodes, asked = self.nodes(), {name: amount for name, amount in needs.items() if amount}
        if slots := sum(min(int(node.get(name, 0) // amount) for name, amount in asked.items()) for node in nodes):
            return slots
        words = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
        largest = ", ".join(f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}" for name in asked)
        raise SpecError(f"resources: a chain needs {words}; no node has that (at most {largest}). Ask for less, or add a node.")

    def execute(
        self, run_task: RunTask, phases: Sequence[Sequence[Task]], spec: Spec, workers: int | None, notify: Notify
    ) -> Iterator[Any]:
        """Outputs of `run_task` for the tasks of all phases, in any order. A task starts once what it reuses is stored."""
        sweep = _Sweep(self, run_task, [task for phase in phases for task in phase], spec)
        try:
            yield from sweep.outputs(workers, notify)
        finally:
            sweep.close()


class _Sweep:
    """Tasks on a cluster: those that wait, those that are ready, and batches of those that run."""

    def __init__(self, executor: RayExecutor, run_task: RunTask, tasks: Sequence[Task], spec: Spec) -> None:
        self.executor, self.tasks, self.spec = executor, tasks, spec
        self.needs = [self._needs(task.threads) for task in tasks]
        for threads in {task.threads for task in tasks}:
            executor.count_slots(self._needs(threads))
        self.run_task, self.pickled = dump_task(run_task), [dump_task(task) for task in tasks]
        self.blockers = find_blockers(tasks)
        self.ready = [i for i, others in enumerate(self.blockers) if not others]
        self.n_left, self.n_yielded, self.n_tries = len(tasks), Counter[int](), Counter[int]()
        self.batches, self.running, self.n_batches = dict[int, _Batch](), dict[Any, int](), 0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()

    def _needs(self, threads: int) -> dict[str, float]:
        needs = self.spec.needs(self.executor.gpus())
        return {"CPU": threads, "GPU": needs.gpus or 0.0, "memory": int((needs.memory_gb or 0.0) * GIGABYTE)}

    def outputs(self, workers: int | None, notify: Notify) -> Iterator[Any]:
        """Submit batches and yield outputs as they arrive."""
        messages = self.mailbox.take.remote()
        while self.n_left:
            self.submit(workers)
            done, _ = ray.wait([*self.running, messages], num_returns=1, timeout=CHECK_SECONDS)
            if not done:  # nodes may have gone
                self.executor.count_slots(self.needs[0])
            elif done[0] is messages or done[0] == messages:
                yield from self.treat(_get(messages), notify)
                messages = self.mailbox.take.remote()
            else:
                self.end(done[0])

    def submit(self, workers: int | None) -> None:
        """Submit batches until twice as many as slots wait or run, so that no slot waits for this process."""
        self.ready.sort(key=lambda i: (self.tasks[i].shared, self.tasks[i].cost))  # the last one starts first
        while self.ready:
            threads = self.tasks[self.ready[-1]].threads
            needs = self._needs(threads)
            slots = self.executor.count_slots(needs)
            if len(self.batches) >= (workers or 2 * slots):
                return
            positions = deque[int]()
            for _ in range(1 + len(self.ready) // (BATCHES_PER_SLOT * slots)):
                if self.tasks[self.ready[-1]].threads == threads:
                    positions.append(self.ready.pop())
            self.start(positions, threads, needs)

    def start(self, positions: deque[int], threads: int, needs: Mapping[str, float]) -> None:
        """Submit one batch."""
        self.n_batches += 1
        self.batches[self.n_batches] = _Batch(positions)
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        task = ray.remote(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"] or None, max_retries=0,
            runtime_env={"env_vars": variables},
        )(_run_batch)  # fmt: skip
        pickled = [self.run_task, *(self.pickled[i] for i in positions)]
        self.running[task.remote(self.n_batches, pickled, self.executor.place, threads, self.mailbox)] = self.n_batches

    def treat(self, messages: Sequence[Any], notify: Notify) -> Iterator[Any]:
        """Yield the outputs among messages, each once; raises the error of a task."""
        for number, position, message in messages:
            if batch := self.batches.get(number):  # else from a worker that died
                batch.early[position] = message
                while batch.n_messages in batch.early:
                    kind, value = batch.early.pop(batch.n_messages)
                    batch.n_messages += 1
                    if kind == "output":
                        batch.n_outputs += 1
                        if batch.n_outputs > self.n_yielded[batch.positions[0]]:
                            self.n_yielded[batch.positions[0]] += 1
                            yield value
                    elif kind == "note":
                        notify(value)
                    elif kind == "error":
                        raise value
                    else:
                        self.finish(number, batch)

    def finish(self, number: int, batch: _Batch) -> None:
        """Count the end of a batch's first task, and release the tasks that waited for it."""
        ended, batch.n_outputs = batch.positions.popleft(), 0
        self.n_left -= 1
        for i, others in enumerate(self.blockers):
            if ended in others:
                others.remove(ended)
                if not others:
                    self.ready.append(i)
        if not batch.positions:
            del self.batches[number]

    def end(self, reference: Any) -> None:
        """Forget a Ray task that ended; if its worker died, what it had left is run again."""
        number = self.running.pop(reference)
        try:
            _get(reference)
        except DIED as problem:
            if batch := self.batches.pop(number, None):
                self.n_tries[batch.positions[0]] += 1
                if self.n_tries[batch.positions[0]] >= MAX_TRIES:
                    task, reason = self.tasks[batch.positions[0]], type(problem).__name__
                    advice = "It may use too much memory: set resources.memory_gb"
                    raise SelfloopError(f"workers ended {MAX_TRIES} times at {task} ({reason}). {advice}.") from problem
                self.ready += batch.positions

    def close(self) -> None:
        """End all workers at once."""
        with suppress(exceptions.RayError, ConnectionError):
            for reference in self.running:
                ray.cancel(reference, force=True)
            ray.kill(self.mailbox)


def _get(reference: Any) -> Any:
    """The value of a reference; a death of its worker is passed on, and other problems of Ray are one sentence."""
    try:
        return ray.get(reference)
    except DIED:
        raise
    except exceptions.RayError as problem:
        raise SelfloopError(f"on: the cluster failed ({_reason(problem)}). Run the same command to continue.") from problem


def _reason(problem: BaseException) -> str:
    cause = getattr(problem, "cause", None)
    return first_line(cause if isinstance(cause, BaseException) else problem)
