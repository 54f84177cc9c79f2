"""From a spec to rows: checks, tasks, worlds, and what a run gives back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.component import Context, Family, Policy, Source
from selfloop.engine import executors
from selfloop.engine.curves import Curves
from selfloop.engine.ensemble import BLOCK, Block, EnsembleWorld, needs_rows
from selfloop.engine.loop import ScheduleEntry, iter_generations, loop, schedule
from selfloop.engine.stored import Chain, StoredWorld
from selfloop.errors import SpecError
from selfloop.protocols import (
    CorpusSource,
    SupportsCheck,
    SupportsEnsemble,
    SupportsEnsembleMeasure,
    SupportsRelabel,
    SupportsSufficientStatistics,
    UsesEncoder,
)
from selfloop.rng import RandomStream
from selfloop.spec.spec import Coordinates, Spec
from selfloop.store.store import Store, Usage, stage
from selfloop.types import Array, Measurement, Params

DOUBLED = 1.6  # times as fast with twice the threads: small convolutions hardly gain, transformers 1.9
LIVE_BYTES = 1 << 30  # rows an ensemble may hold at once; more seeds are run one group after another
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work: a chain of one policy and seed, or an ensemble block of all policies."""

    coordinates: Coordinates
    spec: Spec  # a point: no sweep, n and holdout resolved
    policies: tuple[int, ...]  # positions in the spec
    seeds: tuple[int, ...]
    generations: int
    store: Path
    threads: int
    rows: int = 0  # of a chain: what it costs


@dataclass(frozen=True, slots=True)
class Done:
    """Part of a task: rows of one generation of a chain, or all curves of one policy of a block; and what it used."""

    coordinates: Coordinates
    policy: int
    rows: tuple[Measurement, ...]
    curves: Curves | None
    generations: int
    usage: Usage
    shared: bool = False  # of the first phase: chains meet its stages again


def store_path(inputs: str | Path | None) -> Path:
    """The store's folder: as given, else $SELFLOOP_STORE, else .selfloop in the working folder."""
    return Path(inputs or os.environ.get("SELFLOOP_STORE") or ".selfloop")


def resolved_points(spec: Spec) -> list[tuple[Coordinates, Spec]]:
    """The sweep's points with n and holdout filled in, every one checked; SpecError before any work."""
    return [(coordinates, _sized(point)) for coordinates, point in spec.points()]


def _sized(spec: Spec) -> Spec:
    size, own = spec.source.n_rows(), spec.source.n_holdout()
    if own is not None and spec.holdout not in (None, own):
        raise SpecError(f"holdout: got {spec.holdout}; source {spec.source.name} sets aside {own} rows itself. Omit the key.")
    holdout = own if own is not None else spec.holdout
    if holdout is None:
        holdout = 500 if size is None else round(0.3 * size)
    if spec.n is None and size is None:
        raise SpecError(f"n: missing; source {spec.source.name} is unlimited, so say how many real rows to start with.")
    n = spec.n if spec.n is not None else cast(int, size) - holdout
    if n < 1:
        raise SpecError(f"holdout: got {holdout}; source {spec.source.name} has {size} rows, so none is left to train on.")
    for policy in spec.policies:
        real_rows = holdout + _real_rows(spec, policy, n)
        if size is not None and real_rows > size:
            raise SpecError(
                f"n: policy {policy.name} with n = {n} and holdout = {holdout} needs {real_rows} real rows; "
                f"source {spec.source.name} has {size}. Lower n, holdout or generations."
            )
    sized = replace(spec, n=n, holdout=holdout)
    _check_abilities(sized)
    _check_memory(sized)
    return sized


def _real_rows(spec: Spec, policy: Policy, n: int) -> int:
    """Real rows a policy uses up: on a fixed design later ones are new outcomes of the initial inputs."""
    stages = list(schedule(policy, n, spec.generations))
    fresh = any(stage.new_rows.real for stage in stages[1:])
    if fresh and spec.source.has_fixed_design() and not isinstance(spec.source, SupportsRelabel):
        raise SpecError(
            f"policies: {policy.name} asks for fresh real rows; source {spec.source.name} has none for its fixed inputs. "
            "Choose another policy."
        )
    return n if spec.source.has_fixed_design() else sum(s.new_rows.real for s in stages)


def check_pair(family: Family, source: Source) -> None:
    """SpecError when the family cannot model what the source gives."""
    if missing := set(family.required_columns) - set(source.schema()):
        raise SpecError(
            f"source: family {family.name} models the columns {', '.join(family.required_columns)}; {source.name} has "
            f"{', '.join(source.schema())} and lacks {', '.join(sorted(missing))}. Choose another source or family."
        )
    if isinstance(family, UsesEncoder) and not isinstance(source, CorpusSource):
        raise SpecError(
            f"source: family {family.name} reads a corpus from files; {source.name} draws its rows. Choose a text source."
        )


def _check_abilities(spec: Spec) -> None:
    """Do source, family and metrics go together?"""
    family, source = spec.family, spec.source
    check_pair(family, source)
    for part in (family, *spec.metrics):
        if isinstance(part, SupportsCheck):
            part.check(source, spec.sampler)
    truth = source.truth(Context(RandomStream(("probe",))))
    for metric in spec.metrics:
        for ability in metric.needs:
            if not isinstance(family, ability):
                raise SpecError(
                    f"metrics: {metric.name!r} needs a family with {ability.__name__}; {family.name} has none. "
                    "Drop the metric or choose another family."
                )
        if metric.uses_holdout and not spec.holdout:
            how = "Set some aside." if source.n_holdout() is None else f"Change the split of source {source.name}."
            raise SpecError(f"holdout: got 0; metric {metric.name!r} is measured on held-out real rows. {how}")
        if unknown := set(metric.true_params) - set(truth):
            raise SpecError(
                f"metrics: {metric.name!r} compares with the true {', '.join(sorted(unknown))}, which {source.name} does not "
                "know. Choose a metric that is measured on held-out rows, such as nll."
            )


def _check_memory(spec: Spec) -> None:
    """A batch that cannot fit fails now, not after minutes of filling the memory."""
    if runs_as_ensemble(spec) and not any(runs_on_rows(spec, policy) for policy in spec.policies):
        return
    stages = (stage for policy in spec.policies for stage in schedule(policy, cast(int, spec.n), spec.generations))
    size = _row_bytes(spec) * max(max(stage.new_rows.real, stage.new_rows.synthetic) for stage in stages)
    if size > executors.memory():
        raise SpecError(
            f"n: got {spec.n}; a batch would be {size / 1e9:.3g} GB, this machine has {executors.memory() / 1e9:.3g} GB of memory. "
            "Lower n."
        )


def _row_bytes(spec: Spec) -> int:
    if isinstance(spec.source, CorpusSource):
        return 0  # its rows stay in files
    return sum(np.dtype(f.dtype).itemsize * math.prod(f.shape) for f in spec.source.schema().values())


def runs_as_ensemble(spec: Spec) -> bool:
    """Can all seeds run at once in memory?"""
    plain = not spec.curators and spec.start == "scratch"
    return (
        plain
        and isinstance(spec.family, SupportsEnsemble | SupportsSufficientStatistics)
        and all(isinstance(metric, SupportsEnsembleMeasure) for metric in spec.metrics)
    )


def plan_tasks(spec: Spec, store: Path, threads: int | None = None) -> list[list[Task]]:
    """Phases of tasks: what all seeds share (a corpus that is read), what a seed's chains share (generation 1), the chains."""
    corpora, shared, chains = dict[object, Task](), list[Task](), list[Task]()
    points = resolved_points(spec)
    rows = [[] if runs_as_ensemble(point) else [rows_of(point, policy) for policy in point.policies] for _, point in points]
    counted = [(each, len(point.seeds)) for each, (_, point) in zip(rows, points, strict=True) if each]
    first = threads or choose_threads([1] * sum(count for _, count in counted))
    later = threads or choose_threads([chain for each, count in counted for chain in each * count])
    for (coordinates, point), chain_rows in zip(points, rows, strict=True):
        everyone = tuple(range(len(point.policies)))
        if runs_as_ensemble(point):
            for seeds in _groups(point):
                chains.append(Task(coordinates, point, everyone, seeds, point.generations, store, threads or executors.cores()))
            continue
        if isinstance(point.source, CorpusSource):
            reader = Task(coordinates, point, (0,), point.seeds[:1], 0, store, executors.cores())
            encoder = point.family.encoder() if isinstance(point.family, UsesEncoder) else None
            corpora.setdefault((point.source, encoder), reader)
        for seed in point.seeds:
            shared.append(Task(coordinates, point, (0,), (seed,), 1, store, first))
            chains += [
                Task(coordinates, point, (p,), (seed,), point.generations, store, later, chain_rows[p]) for p in everyone
            ]
    return [phase for phase in (list(corpora.values()), shared) if phase] + [chains]


def rows_of(spec: Spec, policy: Policy) -> int:
    """What the generations of a chain after the first cost, as rows that they train on or sample."""
    later = list(schedule(policy, cast(int, spec.n), spec.generations))[1:]
    return sum(stage.trained_rows + stage.new_rows.synthetic for stage in later)


def choose_threads(rows: Sequence[int]) -> int:
    """Threads of each chain with which chains of so many rows, the longest first, are all done soonest on this machine."""

    def last_end(threads: int) -> float:
        loads = [0] * (executors.cores() // threads)
        for each in sorted(rows, reverse=True):
            heapreplace(loads, loads[0] + each)
        return max(loads) / math.pow(threads, math.log2(DOUBLED))

    return min(range(1, executors.cores() + 1), key=last_end)


def _groups(spec: Spec) -> list[tuple[int, ...]]:
    """Seeds that run together: within blocks of 256, and few enough for their rows to fit in memory."""
    n = cast(int, spec.n)
    most = max(max(sum(s.available.values()) for s in schedule(p, n, spec.generations)) for p in spec.policies)
    on_rows = any(runs_on_rows(spec, policy) for policy in spec.policies)
    together = min(BLOCK, max(1, LIVE_BYTES // (_row_bytes(spec) * most))) if on_rows else BLOCK
    groups = []
    for _, block in groupby(sorted(spec.seeds), key=lambda seed: seed // BLOCK):
        members = tuple(block)
        groups += [members[i : i + together] for i in range(0, len(members), together)]
    return groups


def runs_on_rows(spec: Spec, policy: Policy) -> bool:
    """Do the ensembles of a point draw this policy's rows, or only their statistics?"""
    return needs_rows(spec.source, spec.family, spec.metrics, policy, cast(int, spec.n), spec.generations)


def work(task: Task) -> Iterator[Done]:
    """Run a task, part by part."""
    store = Store(task.store, threads=task.threads)
    yield from run_task(task, store)


def run_task(task: Task, store: Store) -> Iterator[Done]:
    """The parts of a task: one generation of a chain, or one policy of a block, at a time."""
    if runs_as_ensemble(task.spec):
        parts: Iterator[tuple[int, tuple[Measurement, ...], Curves | None]] = _run_block(task, store)
    else:
        parts = _run_chain(task, store)
    for position, rows, curves in parts:
        used, store.usage = store.usage, Usage()
        yield Done(task.coordinates, position, rows, curves, curves.generations if curves else min(1, task.generations), used)


def _run_chain(task: Task, store: Store) -> Iterator[tuple[int, tuple[Measurement, ...], None]]:
    spec, (position,), (seed,) = task.spec, task.policies, task.seeds
    chain = Chain(
        source=spec.source, family=spec.family, sampler=spec.sampler, metrics=spec.metrics, curators=spec.curators,
        start=spec.start, seed=seed, holdout=cast(int, spec.holdout), threads=task.threads,
    )  # fmt: skip
    world = StoredWorld(spec.policy_labels()[position], chain, store)
    if task.generations == 0:
        world.read()
        yield position, (), None
    for rows in iter_generations(world, spec.policies[position], cast(int, spec.n), task.generations):
        yield position, tuple(row._replace(coordinates=task.coordinates) for row in rows), None


def _run_block(task: Task, store: Store) -> Iterator[tuple[int, tuple[()], Curves]]:
    spec, blocks = task.spec, dict[bool, Block]()
    for position in task.policies:
        on_rows = runs_on_rows(spec, spec.policies[position])
        if on_rows not in blocks:
            first = task.seeds[0] // BLOCK * BLOCK
            seeds = task.seeds if on_rows else tuple(range(first, task.seeds[-1] + 1))
            blocks[on_rows] = block_of(spec, seeds, on_rows=on_rows, threads=task.threads)
        block = blocks[on_rows]
        stored = store.open(store.step(ensemble_curves, block, spec.policies[position], spec.generations))
        curves = Curves(task.seeds, spec.generations)
        curves.merge(Curves.unpack(cast(Params, stored), block.seeds))
        yield position, (), curves


def block_of(spec: Spec, seeds: Sequence[int], *, on_rows: bool, threads: int = 1) -> Block:
    """The chains of a point that run together."""
    return Block(
        source=spec.source, family=spec.family, sampler=spec.sampler, metrics=spec.metrics, seeds=tuple(seeds),
        n=cast(int, spec.n), holdout=cast(int, spec.holdout), on_rows=on_rows, threads=threads,
    )  # fmt: skip


@stage(version=1)
def ensemble_curves(block: Block, policy: Policy, generations: int) -> dict[str, Array]:
    """Every metric of all seeds of a block under one policy."""

    def run_part(part: Block) -> Curves:
        mine = Curves(part.seeds, generations)
        for measured in loop(EnsembleWorld(policy.name, part), policy, part.n, generations):
            mine.enter(measured)
        return mine

    curves = Curves(block.seeds, generations)
    parts = block.parts()
    # the matrices are small: threads over seeds do better than threads inside them, and give the same bits for any number
    with threadpool_limits(1), ThreadPoolExecutor(len(parts)) as pool:
        for mine in pool.map(run_part, parts) if len(parts) > 1 else map(run_part, parts):
            curves.merge(mine)
    return curves.pack()


def stream(
    spec: Spec,
    store: str | Path | None = None,
    *,
    workers: int | None = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Measurement]:
    """Rows as they come, from that many worker processes (None: as many as the cores allow)."""
    labels = spec.policy_labels()
    ledgers = {
        (coordinates, label): schedule_metrics(list(schedule(policy, cast(int, point.n), point.generations)))
        for coordinates, point in resolved_points(spec)
        for label, policy in zip(labels, point.policies, strict=True)
    }
    for part in parts(spec, store, workers=workers, threads=threads, progress=progress):
        label = labels[part.policy]
        ledger = ledgers[part.coordinates, label]
        if part.curves:
            yield from part.curves.rows(label, part.coordinates, ledger)
        elif part.rows:
            yield from part.rows
            first = part.rows[0]
            for name, values in ledger.items():
                yield first._replace(metric=name, value=values[first.generation - 1], status=None)


def schedule_metrics(stages: Sequence[ScheduleEntry]) -> dict[str, list[float]]:
    """What is logged for every generation and follows from the policy alone."""
    return {"real_mass": [stage.real_mass for stage in stages], "data_age": [stage.data_age for stage in stages]}


def parts(
    spec: Spec,
    store: str | Path | None,
    *,
    workers: int | None,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[Done]:
    """Run a spec; yields what is done, part by part, in any order."""
    path = store_path(store)
    phases = plan_tasks(spec, path, threads)
    Store(path)  # an unwritable store is found before any work
    chains = phases[-1]  # what they share counts with them: as many generations as `plan` says
    total = sum(task.generations * (len(task.policies) if runs_as_ensemble(task.spec) else 1) for task in chains)
    finished = 0
    for phase in phases:
        share = phase[0].threads if phase else 1
        pool = max(1, executors.cores() // share) if workers is None else workers
        longest_first = sorted(phase, key=lambda task: -task.rows)
        for done in executors.in_processes(pool)(work, longest_first, share):
            finished += done.generations if phase is chains else 0
            if progress:
                progress(finished, total)
            yield done if phase is chains else replace(done, rows=(), shared=True)  # the chains replay what they share
