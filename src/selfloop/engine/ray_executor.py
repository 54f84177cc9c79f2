"""Runs tasks on a Ray cluster, in batches that return their messages, which come before by a queue, an actor that may die."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import current_process, spawn
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

from selfloop.engine.executors import INTERRUPTS, UNGUARDED_ADVICE, Notify, count_cores, dump_task, refuse_import, run_and_send
from selfloop.engine.tasks import Task, TaskOutput, find_blockers, run_task_in_worker
from selfloop.errors import SelfloopError, SpecError, first_line, show_warnings_plainly
from selfloop.formats.programs import THREAD_VARIABLES
from selfloop.source_code import is_installed
from selfloop.spec.resources import GIGABYTE, memory_bytes, visible_gpus
from selfloop.spec.spec import Spec
from selfloop.store.folder import StoreFolder
from selfloop.store.inputs import inputs_of
from selfloop.store.records import place_of, store_error
from selfloop.store.runs import open_place

MAX_TRIES = 4  # of a task whose worker or node dies before it gave anything new
BATCHES_PER_SLOT = 8  # into which the tasks that wait are divided, so that all slots end at about the same time
CONNECT_SECONDS, ANSWER_SECONDS, CHECK_SECONDS = 5.0, 60.0, 5.0
OBJECT_STORE_BYTES = 100 << 20  # of a cluster started here: only messages pass through it
SECONDS_BETWEEN_POSTS = 0.5  # of a batch that runs
DIED = exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError, exceptions.ObjectLostError


@lru_cache(maxsize=1)
def _enter(pickled: bytes) -> Path:
    """The store. Makes this process import what the driver can, in the driver's folder if it exists here.

    Raises SelfloopError on a node with other versions, and for a file that it does not see.
    """
    place = ForkingPickler.loads(pickled)
    sys.path += [path for path in place["sys_path"] if path not in sys.path]
    with suppress(OSError):
        os.chdir(place["folder"])
    for name, own in _versions().items():
        if place["versions"][name] != own:
            problem = f"on: node {platform.node()} has {name} {own}"
            raise SelfloopError(f"{problem}; the driver has {place['versions'][name]}. Install the same version there.")
    if missing := [file for file in place["files"] if not os.path.exists(file)]:
        raise SelfloopError(f"on: node {platform.node()} does not see {missing[0]}. Share its folder, under the same path.")
    main = {**place["main"]}
    if (path := main.get("init_main_from_path")) and not os.path.exists(path) and (module := find_spec(Path(path).stem)):
        main["init_main_from_path"] = module.origin  # it traveled
    current_process()._inheriting = True  # type: ignore[attr-defined]  # a run that starts now is refused
    try:
        spawn.prepare(main)
    except SystemExit:
        raise SelfloopError(UNGUARDED_ADVICE) from None
    finally:
        del current_process()._inheriting  # type: ignore[attr-defined]
    return open_place(place["store"])


def _versions() -> dict[str, str]:
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "selfloop": version("selfloop")}


def _run_batch(number: int, pickled: Sequence[bytes], place: bytes, threads: int, queue: Any) -> list[Any]:
    """Messages of tasks that run one after another in a worker of the cluster. While they run, they are posted, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    show_warnings_plainly()
    store = _enter(place)
    messages, notes, ended = list[tuple[str, Any]](), deque[str](maxlen=1), threading.Event()

    def send(message: tuple[str, Any]) -> None:
        notes.append(message[1]) if message[0] == "note" else messages.append(message)

    def post() -> None:
        n_posted = 0
        while not ended.wait(SECONDS_BETWEEN_POSTS):
            if (new := messages[n_posted:]) or notes:  # the one before has arrived: they may overtake each other
                ray.get(queue.put.remote((number, n_posted, new, [notes.popleft() for _ in [*notes]])))
                n_posted += len(new)

    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(ended.set)
        pool.submit(post)
        tasks = (replace(ForkingPickler.loads(task), store=store) for task in pickled)
        all(run_and_send(run_task_in_worker, task, threads, send) for task in tasks)
    return messages


@contextmanager
def open_cluster(on: str, spec: Spec, store: Path, threads: int | None) -> Iterator[RayExecutor]:
    """The cluster that `on` names: "ray" starts one here, "auto" and "ray://HOST:PORT" are running ones.

    A cluster to which this process is connected already is used as it is. Raises SelfloopError for one that cannot be reached,
    or that would lack what a chain with that number of threads needs, and StoreError if the store cannot be written.
    """
    refuse_import()
    token = store.absolute() / f"seen-by-all-nodes-{os.urandom(4).hex()}"
    executor, connects = RayExecutor(spec, token), not ray.is_initialized()
    starts = connects and on == "ray"
    if starts:  # which takes half a minute
        machine = {"CPU": count_cores(), "GPU": len(visible_gpus()), "memory": memory_bytes()}
        executor.check(threads or spec.needs().cpus or 1, [machine])
    try:
        if connects and not starts:  # first, so that a refusal leaves no empty store
            _connect(on)
        _create(token)
        if starts:
            _connect(on)
        yield executor
    finally:
        token.unlink(missing_ok=True)
        if connects:
            with _own_handlers(signal.SIG_IGN):  # the run is complete, or has been interrupted
                ray.shutdown()


def _create(token: Path) -> None:
    StoreFolder(token.parent)
    try:
        token.touch()
    except OSError as problem:
        raise store_error(token.parent, "write", problem) from problem


@contextmanager
def _own_handlers(meanwhile: signal.Handlers | None = None) -> Iterator[None]:
    """Afterwards, interrupts do what they did before: Ray replaces their handlers."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS if in_main_thread}
    try:
        for number in handlers if meanwhile is not None else ():
            signal.signal(number, meanwhile)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _connect(on: str) -> None:
    options: dict[str, Any] = {"address": "local" if on == "ray" else on}
    if on == "ray":
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):  # reports to the network; last to get a core
            os.environ.setdefault(name, "0")
        options |= {"num_cpus": count_cores(), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:  # the modules of the user that are loaded travel
        own = [module for name, module in sys.modules.items() if "." not in name and not is_installed(name)]
        files = [Path(file).absolute() for module in own if (file := getattr(module, "__file__", None))]
        roots = [file.parent if file.name == "__init__.py" else file for file in files if file.suffix == ".py"]
        options["runtime_env"] = {"py_modules": sorted(map(str, roots))} if roots else {}
    try:
        named = on if on.startswith("ray://") else os.environ.get("RAY_ADDRESS", "") * (on == "auto")
        host, _, port = named.removeprefix("ray://").rpartition(":")
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with _own_handlers(), warnings.catch_warnings(action="ignore"):  # of Ray's client, about what becomes a sentence here
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as problem:
        if on == "auto" and "Could not find any running Ray instance" in str(problem):
            raise SelfloopError("on: auto: no cluster runs here. Start one on this machine: --on ray.") from problem
        reason = " ".join(str(problem).split())[-300:].rstrip(".")
        raise SelfloopError(f"on: {on}: cannot be used ({reason}). Check the address, and the versions there.") from problem
    except SystemExit:  # of Ray's own handler of SIGTERM
        raise KeyboardInterrupt from None


@dataclass(slots=True)
class _Batch:
    """Tasks that one Ray task runs."""

    positions: deque[int]  # of those that have not ended
    n_messages: int = 0  # of the batch
    n_outputs: int = 0  # of the first of the positions
    has_started: bool = False


class RayExecutor:
    """A cluster, the tasks of a run that wait for others, those that are ready, and batches of those that run."""

    def __init__(self, spec: Spec, token: Path) -> None:
        main = spawn.get_preparation_data("") if b"__main__" in dump_task(spec) else {}
        files = [path for path in inputs_of([spec, *(point.arrivals for point in spec.points())]) if isinstance(path, Path)]
        store = place_of(token.parent)
        if store == str(token.parent):  # else it is a bucket, and its folder here is for this machine
            files.append(token)
        place = {
            "folder": os.getcwd(), "sys_path": [*map(os.path.abspath, sys.path)], "store": store, "versions": _versions(),
            "files": [*map(str, files)], "main": {key: main[key] for key in main if key.startswith("init_main")},
        }  # fmt: skip
        self.spec, self.place = spec, bytes(ForkingPickler.dumps(place))
        self.n_yielded, self.n_tries = Counter[int](), Counter[tuple[int, int]]()
        self.asked, self.slots = dict[int, dict[str, float]](), dict[int, int]()  # by threads: of a task; tasks at a time
        self.batches, self.running, self.n_batches = dict[int, _Batch](), dict[Any, int](), 0

    def nodes(self) -> dict[str, Mapping[str, float]]:
        """The resources of every node on which tasks can run, as Ray names them, by the node's id."""
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}

    def cores(self) -> list[int]:
        """Of each node that has the GPUs and the memory of a chain; of all nodes if none has them."""
        with _as_sentences():
            nodes = [*self.nodes().values()]
        suitable = [node for node in nodes if _count_slots(self.needs(1, nodes), [node])]
        return [int(node["CPU"]) for node in suitable or nodes]

    def needs(self, threads: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """What one task gets of a node, as Ray names it."""
        needs = self.spec.needs(max((node.get("GPU", 0.0) for node in nodes), default=0.0))
        all_needs = {"CPU": threads, "GPU": needs.gpus, "memory": int((needs.memory_gb or 0.0) * GIGABYTE)}
        return {name: amount for name, amount in all_needs.items() if amount}

    def check(self, threads: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """What one task gets of a node; SpecError if none of the nodes has it."""
        if _count_slots(needs := self.needs(threads, nodes), nodes):
            return needs
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needs}
        words = f"a chain needs {_describe(needs)}; no node has that (at most {_describe(most)})"
        raise SpecError(f"resources: {words}. Ask for less, or add a node.")

    def check_and_declare(self, threads: int) -> Any:
        """The Ray function that runs batches of tasks with that number of threads. SelfloopError if a node cannot."""
        nodes = self.nodes()
        needs = self.asked[threads] = self.check(threads, [*nodes.values()])
        self.slots[threads] = _count_slots(needs, nodes.values())
        environment = {"env_vars": dict.fromkeys(THREAD_VARIABLES, str(threads))}
        function = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(_run_batch)
        on_nodes = [function.options(scheduling_strategy=OnNode(node, soft=False)) for node in nodes]
        for answer in [node.remote(0, [], self.place, threads, None) for node in on_nodes]:
            with suppress(*DIED, exceptions.TaskUnschedulableError):  # the node is gone
                ray.get(answer, timeout=ANSWER_SECONDS)
        return function.options(num_cpus=threads, num_gpus=needs.get("GPU"), memory=needs.get("memory"))

    def execute(self, phases: Sequence[Sequence[Task]], workers: int | None, notify: Notify) -> Iterator[TaskOutput]:
        """Outputs of the tasks of all phases, in any order. A task starts as soon as all that it reuses is stored.

        Raises SelfloopError before any work if no node has what a task needs, or a node has other versions or files.
        """
        with _as_sentences():
            yield from self._execute(phases, workers, notify)

    def _execute(self, phases: Sequence[Sequence[Task]], workers: int | None, notify: Notify) -> Iterator[TaskOutput]:
        self.tasks = [task for phase in phases for task in phase]
        self.functions = {threads: self.check_and_declare(threads) for threads in {task.threads for task in self.tasks}}
        self.pickled, self.blockers = [*map(dump_task, self.tasks)], find_blockers(self.tasks)
        self.followers = defaultdict[int, list[int]](list)
        for i, others in enumerate(self.blockers):
            for other in others:
                self.followers[other].append(i)
        self.ready = [i for i, others in enumerate(self.blockers) if not others]
        driver_node = OnNode(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": driver_node}
        self.queue = Queue(actor_options=options).actor
        self.post = self.queue.get.remote()
        try:
            yield from self.outputs(workers, notify)
        finally:
            with suppress(exceptions.RayError, ConnectionError):
                for reference in self.running:
                    ray.cancel(reference, force=True)
                self.queue.put.remote((0, 0, [], []))  # so that nothing waits for it: Ray would print that
                ray.wait([self.post], timeout=CHECK_SECONDS)
                ray.kill(self.queue)

    def outputs(self, workers: int | None, notify: Notify) -> Iterator[TaskOutput]:
        checked = time.monotonic()
        while self.ready or self.batches:
            if time.monotonic() > checked + CHECK_SECONDS:  # nodes come and go
                nodes, checked = self.nodes().values(), time.monotonic()
                for threads, needs in self.asked.items():
                    self.slots[threads] = _count_slots(needs, nodes) or self.slots[threads]  # lost nodes may come back
                if not any(batch.has_started for batch in self.batches.values()):
                    notify(f"waiting for nodes that have {' or '.join(map(_describe, self.asked.values()))} free")
            self.submit(workers)
            for ended in ray.wait([*self.running, self.post], num_returns=1, timeout=CHECK_SECONDS)[0]:
                if ended in self.running:
                    yield from self.end(ended)
                    continue
                number, first, messages, notes = ray.get(self.post)
                self.post = self.queue.get.remote()
                if number in self.batches:
                    self.batches[number].has_started = True
                for note in notes:
                    notify(note)
                yield from self.treat(number, first, messages)

    def submit(self, workers: int | None) -> None:
        """Submit batches until twice as many as slots wait or run, so that no slot waits for this process."""
        self.ready.sort(key=lambda i: (self.tasks[i].shared, self.tasks[i].cost))  # the last one starts first
        while self.ready:
            threads = self.tasks[self.ready[-1]].threads
            if len(self.batches) >= (workers if workers and workers > 1 else 2 * self.slots[threads]):  # 1 is Python's default
                return
            size = 1 + len(self.ready) // (BATCHES_PER_SLOT * self.slots[threads])
            positions = deque(i for i in self.ready[: -size - 1 : -1] if self.tasks[i].threads == threads)
            batch = {*positions}
            self.ready = [i for i in self.ready if i not in batch]
            self.n_batches += 1
            self.batches[self.n_batches] = _Batch(positions)
            arguments = [self.pickled[i] for i in positions], self.place, threads, self.queue
            self.running[self.functions[threads].remote(self.n_batches, *arguments)] = self.n_batches

    def treat(self, number: int, first: int, messages: Sequence[tuple[str, Any]]) -> Iterator[TaskOutput]:
        """Yield outputs that are new; raise the error of a task; release the tasks that waited for one that is done.

        `first`: the number of messages of the batch before these. Some may have come before; others may never have.
        """
        batch = self.batches.get(number)
        if batch is None or first > batch.n_messages:  # from a worker that died, or lost with a queue: the batch returns them
            return
        for kind, value in messages[batch.n_messages - first :]:
            position = batch.positions[0]
            batch.n_messages += 1
            if kind == "error":
                raise value
            if kind == "output":
                batch.n_outputs += 1
                if batch.n_outputs > self.n_yielded[position]:  # else from the try before
                    self.n_yielded[position] += 1
                    yield value
                continue
            batch.positions.popleft()
            batch.n_outputs = 0
            for i in self.followers[position]:
                self.blockers[i].remove(position)
                self.ready += [] if self.blockers[i] else [i]
        if not batch.positions:
            del self.batches[number]

    def end(self, reference: Any) -> Iterator[TaskOutput]:
        """Yield what a Ray task that ended has left to yield; if its worker died, what it had left is run again."""
        number = self.running.pop(reference)
        try:
            yield from self.treat(number, 0, ray.get(reference))
        except DIED as problem:
            if batch := self.batches.pop(number, None):
                position = batch.positions[0]
                self.n_tries[at := (position, self.n_yielded[position])] += 1
                if self.n_tries[at] >= MAX_TRIES:
                    how = f"a worker ended {MAX_TRIES} times at {self.tasks[position]} ({type(problem).__name__})"
                    raise SelfloopError(f"{how}. If it needs more memory than it gets, set resources.memory_gb.") from problem
                self.ready += batch.positions


def _count_slots(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """How many tasks can run on these nodes at a time."""
    return sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()) for node in nodes)


def _describe(resources: Mapping[str, float]) -> str:
    """Resources with the names and in the units of a spec."""
    gigabytes = {name: amount / GIGABYTE if name == "memory" else amount for name, amount in resources.items()}
    names = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}
    return ", ".join(f"{names[name]} = {amount:.4g}" for name, amount in gigabytes.items())


@contextmanager
def _as_sentences() -> Iterator[None]:
    """Problems of a cluster and of its tasks are one sentence."""
    try:
        yield
    except (ConnectionError, exceptions.RayError) as problem:
        cause = getattr(problem, "cause", None) or problem
        if isinstance(cause, SelfloopError):
            raise cause from None
        raise SelfloopError(f"on: the cluster failed ({first_line(cause)}). Correct that; run again to continue.") from problem
