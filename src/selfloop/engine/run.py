"""Runs a spec: phases of tasks, and measurements as they arrive."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from selfloop.engine.curves import Curves
from selfloop.engine.executors import Notify, count_cores, execute, refuse_import
from selfloop.engine.tasks import Task, TaskOutput, plan_tasks, replay_outputs, run_task_in_worker
from selfloop.engine.time_left import TimeLeft
from selfloop.errors import SettingError, SpecError, StoreError, missing_extra
from selfloop.notebook import ProgressLine, choose_callbacks
from selfloop.policies.schedule import schedule_metrics
from selfloop.ranks import LED, Ranks
from selfloop.settings import check_setting, check_size
from selfloop.spec.components import policy_label
from selfloop.spec.parse import fresh_spec
from selfloop.spec.resources import Resources, check_machine, count_workers, share_gpus, visible_gpus
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.calls import NotStoredError, StepCall
from selfloop.store.live import LiveRun
from selfloop.store.runs import note_run, open_place, run_name
from selfloop.store.store import Store
from selfloop.types import Measurement

if TYPE_CHECKING:
    from selfloop.engine.ray_executor import RayExecutor

MAX_WORKERS = 10_000  # also threads; larger values are typos
Progress = Callable[[int, int], None]  # generations finished, generations in all
OnMeasured = Callable[[list[Measurement]], None]  # a chain's new measurements of one generation, or an ensemble's of all


def store_path(path: str | Path | None) -> Path:
    """The store's folder: the given path, else $SELFLOOP_STORE, else .selfloop in the working folder.

    Of the address of a bucket, it is a folder in the cache, after the bucket has answered.
    """
    check_size(check_setting(str | Path | None, path, "store"), "store")
    if path == "":
        raise SettingError("store", "got ''; expected a folder or an address. Name one, or leave it out.")
    place = os.path.expanduser(path or os.environ.get("SELFLOOP_STORE") or ".selfloop")  # unlike Path's, it never fails
    return open_place(place)


def run_tasks(  # noqa: PLR0913  # three are callbacks
    spec: Spec,
    store: str | Path | None,
    *,
    workers: int | None,
    threads: int | None,
    progress: Progress | None,
    notify: Notify | None = None,
    on_measured: OnMeasured | None = None,
    on: str | None = None,
) -> Iterator[TaskOutput]:
    """Run a spec; yields the outputs of its tasks in any order. `notify` gets notes on the present step, often.

    `on_measured` gets every measurement once, stored ones too, in this process and before its output is yielded. `on`: a Ray
    cluster, as `open_cluster` names it.
    """
    path = store_path(store)
    for name, count in (("workers", workers), ("threads", threads)):
        check_setting(Annotated[int, Interval(ge=1, le=MAX_WORKERS)] | None, count, name)
    if (ranks := LED.get()).count > 1:
        _check_ranks(spec, ranks, workers, on)
        workers, threads = 1, threads or spec.needs().cpus or max(1, count_cores() // ranks.local)
    # shared steps count with the chains that reuse them: as many generations as `plan` shows
    total = sum(point.spec.generations for point in spec.points()) * len(spec.policies) * len(spec.seeds)
    progress, notify = choose_callbacks(progress, notify)
    progress(0, total)
    labels, risk, text = spec.policy_labels(), spec.risk_metric() or "", spec_text(spec)
    title = f"{spec.family.name} on {spec.source.name}: {', '.join(policy_label(p, True) for p in spec.policies)}"
    left = TimeLeft(spec)
    live = LiveRun(path, run_name(text), total, notify, risk, left)
    if isinstance(progress, ProgressLine):
        progress.begin(spec, left)
    with _open_cluster(on, spec, path, threads) as cluster, note_run(path, title, text) as keys, live:
        phases = plan_tasks(spec, path, threads, cluster.cores() if cluster else ())
        phases = [[replace(task, control=live.control) for task in phase] for phase in phases]
        for output in _execute(spec, phases, workers, live.note, cluster):
            seen = replace(output, curves=Curves((), 0)) if output.shared else output  # the chains replay what they share
            keys |= output.usage.keys
            new = output.generations * len(output.curves.seeds)
            left.add(output)
            name = labels[output.policy] + "".join(f"; {key} = {value}" for key, value in output.coordinates)
            live.progress.add(name, seen.curves.values.get(risk), seen.curves.count_ended(risk), 0 if seen.shared else new)
            progress(live.progress.done, total)
            if on_measured and not seen.shared:
                on_measured([*output.curves.measurements(labels[output.policy], output.coordinates, {})])
            if isinstance(progress, ProgressLine):
                progress.add_output(seen)
            yield seen


def _check_ranks(spec: Spec, ranks: Ranks, workers: int | None, on: str | None) -> None:
    """SpecError if several ranks cannot compute a spec."""
    if on or (workers or 1) > 1:
        option = f"on: got {on}" if on else f"workers: got {workers}"
        raise SpecError(f"{option}; the {ranks.count} ranks of torchrun work on one task. Leave it out.")
    for family in (point.spec.family for point in spec.points()):
        if (shares := family.count_shares()) == 0 or family.takes_over_interrupts:
            problem = f"got {family.name}, which one process fits; torchrun started {ranks.count}. Use selfloop run."
            raise SettingError("family.name", problem)
        if shares % ranks.count:
            problem = f"got {shares}; expected a multiple of {ranks.count}, the ranks of torchrun. Change one."
            raise SettingError("family.training.shares", problem)


def _check_store(path: Path, ranks: Ranks) -> None:
    """StoreError before any work if the store cannot be written, or is another one for another rank."""
    files = Store(path).files
    if ranks.count > 1:
        with files.own_scratch(secrets.token_hex(20)) as folder:
            ranks.tell(folder)
            if not ranks.all_see(folder):
                problem = f"not all {ranks.count} ranks of torchrun see {path}"
                raise StoreError(f"store: {problem}. Choose a folder that their machines share, under one path.")


def _open_cluster(on: str | None, spec: Spec, store: Path, threads: int | None) -> AbstractContextManager[RayExecutor | None]:
    """The cluster, if there is anything to compute, and a store that can be written."""
    if on not in (None, "ray", "auto") and not (on.startswith("ray://") and on.rpartition(":")[2].isdecimal()):
        raise SpecError(f'on: got {on!r}; expected "ray", "auto" or "ray://HOST:PORT". Correct it.')
    if on is None or _is_stored(plan_tasks(spec, store, threads)):
        _check_store(store, LED.get())
        return nullcontext()
    if find_spec("ray") is None:
        raise missing_extra("on", "ray")
    from selfloop.engine.ray_executor import open_cluster

    return open_cluster(on, spec, store, threads)


def _is_stored(phases: Sequence[Sequence[Task]]) -> bool:
    return all(replay_outputs(task, Store(task.store, read_only=True))[1] for phase in phases for task in phase)


def _execute(
    spec: Spec, phases: Sequence[Sequence[Task]], workers: int | None, notify: Notify, cluster: RayExecutor | None
) -> Iterator[TaskOutput]:
    if cluster:
        yield from cluster.execute(phases, workers, notify)
        return
    gpus = visible_gpus()
    needs = spec.needs(len(gpus))
    try:
        check_machine(needs, count_cores(), gpus)
    except SpecError:  # a report is also written where nothing of the run could be computed
        if not _is_stored(phases):
            raise
        needs = Resources()
    is_blind = bool(gpus) and spec.resources.gpus == 0  # then no process of a chain sees a GPU
    devices = [""] * MAX_WORKERS if is_blind else share_gpus(gpus, needs.gpus or 0.0)
    refuse_import()  # before anything is read
    for phase in phases:
        threads, longest_first = phase[0].threads, sorted(phase, key=lambda task: -task.cost)
        most = count_workers(needs, workers or count_cores() // threads, devices)
        isolated = any(task.takes_over_interrupts for task in phase) or (is_blind and LED.get().count == 1)
        if isolated or min(most, len(phase)) > 1:  # else all are read in this process anyway
            yield from _take_stored(longest_first)
        yield from execute(run_task_in_worker, longest_first, most, threads, notify=notify, isolated=isolated, devices=devices)


def _take_stored(tasks: list[Task]) -> Iterator[TaskOutput]:
    """Outputs of the first tasks if all their steps are stored; removes these, as they need no worker process."""

    def refuse(step: str) -> float:
        raise NotStoredError(StepCall(step, refuse, ()))

    while tasks:
        outputs, is_complete = replay_outputs(tasks[0], Store(tasks[0].store, note=refuse))
        if not is_complete:
            return
        del tasks[0]
        yield from outputs


def iter_measurements(
    spec: Spec | str | Path,
    store: str | Path | None = None,
    *,
    workers: int | None = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Measurement]:
    """Measurements of a spec as they arrive, from `workers` processes (None: as many as the cores allow)."""
    spec = fresh_spec(spec)
    labels = spec.policy_labels()
    derived = {
        (point.coordinates, label): schedule_metrics(point.schedule(policy))
        for point in spec.points()
        for label, policy in zip(labels, point.spec.policies, strict=True)
    }
    for output in run_tasks(spec, store, workers=workers, threads=threads, progress=progress):
        label = labels[output.policy]
        yield from output.curves.measurements(label, output.coordinates, derived[output.coordinates, label])
