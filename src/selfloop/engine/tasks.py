"""Tasks: units of work of a spec, their threads, and how one of them runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import chain, groupby
from pathlib import Path
from typing import cast

import numpy as np

from selfloop.columns import Params
from selfloop.component import Policy
from selfloop.engine.curation import Curation
from selfloop.engine.curves import NOT_FINITE, STATUSES, TRIVIAL, VALUE, Curves
from selfloop.engine.ensemble import SEEDS_PER_BLOCK, SeedBlock, ensemble_copies, ensemble_curves, ensemble_trivial
from selfloop.engine.executors import Notify, count_cores
from selfloop.engine.loop import iter_generations
from selfloop.engine.stored import StoredWorld
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.protocols import ControlsPolicy, CorpusSource, CuratesRows, SupportsTrivialModel, UsesEncoder
from selfloop.ranks import LED
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.store.calls import NotStoredError, Usage
from selfloop.store.identity import ObjectRef
from selfloop.store.live import pause_between_steps
from selfloop.store.store import Store
from selfloop.types import Coordinates, Measurement

SPEEDUP_PER_DOUBLING = 1.6  # of threads per chain: small convolutions hardly gain, transformers 1.9
MAX_ENSEMBLE_BYTES = 1 << 30  # rows that an ensemble holds together; more seeds run one group after another


@dataclass(frozen=True, slots=True)
class Task:
    """A chain of one policy and seed (and those of its controls), or an ensemble of some seeds under all policies."""

    point: Point
    policies: tuple[int, ...]  # positions in the spec
    seeds: tuple[int, ...]
    generations: int  # 0: only the corpus is read
    store: Path
    threads: int
    cost: int = 0  # of a chain, in rows; longer chains start first
    control: Path | None = None  # the file with which the run is paused
    shared: bool = False  # its steps are shared by chains, which reuse them

    @property
    def takes_over_interrupts(self) -> bool:
        """True if a component of the spec does: the task then runs in a worker process."""
        spec = self.point.spec
        curators = [curator for policy in spec.policies if isinstance(policy, CuratesRows) for curator in policy.curators]
        return any(part.takes_over_interrupts for part in (spec.source, spec.family, *spec.metrics, *curators))

    def __str__(self) -> str:
        labels, seeds = self.point.spec.policy_labels(), self.seeds
        at = "".join(f", {key} = {value}" for key, value in self.point.coordinates)
        if self.generations == 0:
            return f"the corpus{at}"
        if self.point.runs_as_ensemble:
            return f"{len(seeds)} seeds{at}"
        return f"{labels[self.policies[0]]}, seed {seeds[0]}{at}"


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """One generation of a chain, or all curves of one policy of an ensemble, and the store's usage for it."""

    coordinates: Coordinates
    policy: int
    curves: Curves
    generations: int
    usage: Usage
    shared: bool = False  # from a task whose steps chains share and reuse


def plan_tasks(spec: Spec, store: Path, threads: int | None = None, cores: Sequence[int] = ()) -> list[list[Task]]:
    """Phases of tasks: reading corpora for all seeds, generation 1 for all policies of a seed, then the chains.

    `cores`: of each machine that runs them; default: those of this one.
    """
    cores, threads = cores or (count_cores(),), threads or spec.needs().cpus
    corpora, shared, chains = dict[object, Task](), list[Task](), list[Task]()
    points = spec.points()
    costs = {
        point.coordinates: [cost_in_rows(point, policy) for policy in point.spec.policies]
        for point in points
        if not point.runs_as_ensemble
    }
    seeds = len(spec.seeds)
    first_threads = threads or choose_threads([1] * seeds * len(costs), cores)
    all_costs = [cost for point_costs in costs.values() for cost in point_costs * seeds]
    chain_threads = threads or choose_threads(all_costs, cores)
    for point in points:
        policies, generations, source = tuple(range(len(point.spec.policies))), point.spec.generations, point.spec.source
        if point.runs_as_ensemble:
            for group in _seed_groups(point):
                chains.append(Task(point, policies, group, generations, store, threads or max(cores)))
            continue
        if isinstance(source, CorpusSource):
            encoder = point.spec.family.encoder() if isinstance(point.spec.family, UsesEncoder) else None
            corpus = Task(point, (0,), spec.seeds[:1], 0, store, max(cores), shared=True)
            corpora.setdefault((point.used_sources(), encoder), corpus)
        for seed in spec.seeds:
            shared.append(Task(point, (0,), (seed,), 1, store, first_threads, shared=True))
            for group in _control_groups(spec.policies):
                cost = sum(costs[point.coordinates][position] for position in group)
                chains.append(Task(point, group, (seed,), generations, store, chain_threads, cost))
    return [phase for phase in (list(corpora.values()), shared) if phase] + [chains]


def _control_groups(policies: Sequence[Policy]) -> list[tuple[int, ...]]:
    """Positions of policies that run one after another: a policy, and then its controls, which replay its chain."""
    compared = [_compared(policy, policies) for policy in policies]  # not in a table by policy: `custom` has no hash
    firsts = [i if other is None else policies.index(other) for i, other in enumerate(compared)]
    return [(first, *(i for i, f in enumerate(firsts) if f == first != i)) for first in dict.fromkeys(firsts)]


def _compared(policy: Policy, policies: Sequence[Policy]) -> Policy | None:
    """The policy that another one controls, if it is one of these policies."""
    return policy.of if isinstance(policy, ControlsPolicy) and policy.of in policies else None


def cost_in_rows(point: Point, policy: Policy) -> int:
    """Cost of a chain's generations after the first, as the rows that they train on and sample."""
    return sum(entry.trained_rows + count_sampled(point, entry) for entry in point.schedule(policy)[1:])


def count_sampled(point: Point, entry: ScheduleEntry) -> int:
    """Rows that are sampled at a generation: for the policy, and for metrics if they read another number of rows."""
    n = entry.new_rows.synthetic
    return n + point.n_measured(n) * (point.n_measured(n) != n)


def find_blockers(tasks: Sequence[Task]) -> list[set[int]]:
    """For each task, the positions of those that must end before it: reading corpora, and generation 1 of its seed."""
    corpora = {i for i, task in enumerate(tasks) if task.generations == 0}
    firsts = {(task.point.coordinates, task.seeds): i for i, task in enumerate(tasks) if task.shared}
    firsts_of_chains = [{firsts.get((task.point.coordinates, task.seeds), i)} - {i} for i, task in enumerate(tasks)]
    return [set() if i in corpora else corpora | first for i, first in enumerate(firsts_of_chains)]


def choose_threads(costs: Sequence[int], cores: Sequence[int]) -> int:
    """Number of threads per chain that minimizes the time until the last chain ends.

    `costs`: of each chain, in rows. Chains start in order of decreasing cost. `cores`: of each machine.
    """

    def last_end(threads: int) -> float:
        loads = [0] * sum(each // threads for each in cores)
        for cost in sorted(costs, reverse=True):
            heapreplace(loads, loads[0] + cost)
        return max(loads) / math.pow(threads, math.log2(SPEEDUP_PER_DOUBLING))

    return min(range(1, max(cores) + 1), key=last_end)


def _seed_groups(point: Point) -> list[tuple[int, ...]]:
    """Seeds that run together: within one block, and few enough for their rows to fit in memory."""
    together, spec = SEEDS_PER_BLOCK, point.spec
    if "rows" in point.worlds:
        rows = max(sum(point.schedule(policy)[-1].available.values()) for policy in spec.policies)
        together = min(SEEDS_PER_BLOCK, max(1, MAX_ENSEMBLE_BYTES // (point.row_bytes() * rows)))
    groups = []
    for _, block in groupby(sorted(spec.seeds), key=lambda seed: seed // SEEDS_PER_BLOCK):
        members = tuple(block)
        groups += [members[i : i + together] for i in range(0, len(members), together)]
    return groups


def run_task_in_worker(task: Task, notify: Notify) -> Iterator[TaskOutput]:
    """Outputs of a task with a store of its own. `notify` gets notes on the present step."""
    store, place = Store(task.store, threads=task.threads, ranks=LED.get()), ""
    store.note = pause_between_steps(task.control, lambda step: notify(f"{place}: {step}"))
    for part in _parts(task):
        is_chain = not part.point.runs_as_ensemble and part.generations
        place = f"{part}, generation 1" if is_chain else str(part)
        for generation, output in enumerate(run_task(part, store), 2):
            yield output
            place = f"{part}, generation {generation}" if is_chain else place


def _parts(task: Task) -> list[Task]:
    """An ensemble, or the chains of a policy and its controls one by one."""
    return [task] if task.point.runs_as_ensemble else [replace(task, policies=(position,)) for position in task.policies]


def run_task(task: Task, store: Store) -> Iterator[TaskOutput]:
    """Outputs of a task: one generation of a chain, or one policy of an ensemble, at a time."""
    ensemble = task.point.runs_as_ensemble
    for position, curves in chain.from_iterable((_run_ensemble if ensemble else _run_chain)(p, store) for p in _parts(task)):
        usage, store.usage = store.usage, Usage()
        generations = task.generations if ensemble else min(1, task.generations)
        yield TaskOutput(task.point.coordinates, position, curves, generations, usage, task.shared)


def replay_outputs(task: Task, store: Store) -> tuple[list[TaskOutput], bool]:
    """Outputs of a task that a store has which computes nothing, and True if they are all."""
    outputs: list[TaskOutput] = []
    with suppress(NotStoredError):
        outputs.extend(run_task(task, store))  # those before an error stay
        return outputs, True
    return outputs, False


def replay_chain(task: Task) -> StoredWorld:
    """The world of a chain, with references to all of its generations that are stored. Computes nothing."""
    world = _chain_world(task, Store(task.store, read_only=True), measures=False)
    with suppress(NotStoredError):
        for _ in _generations(task, world):
            pass
    return world


def _chain_world(task: Task, store: Store, *, measures: bool = True) -> StoredWorld:
    label = task.point.spec.policy_labels()[task.policies[0]]
    curation = Curation.of_policy(task.point.spec.policies[task.policies[0]])
    return StoredWorld(label, task.point, task.seeds[0], store, task.threads, measures, curation=curation)


def _generations(task: Task, world: StoredWorld) -> Iterator[list[Measurement]]:
    policy, spec, n, store = task.point.spec.policies[task.policies[0]], task.point.spec, task.point.n, world.store
    may_differ = isinstance(spec.family, UsesEncoder) and spec.unit == "rows"  # in tokens, with equal numbers of rows
    if isinstance(policy, ControlsPolicy) and policy.rows == "fresh" and may_differ:
        curation = Curation.of_policy(policy.of)
        other = StoredWorld("", task.point, task.seeds[0], store, task.threads, measures=False, curation=curation)
        others = iter_generations(other, schedule(policy.of, n, task.generations))

        def matched(k: int) -> tuple[ObjectRef | None, int]:
            """The rows of model k of the policy itself (None after its chain's end), and how many it asks for."""
            usage, store.usage = store.usage, Usage()
            try:
                while k not in other.samples and next(others, None) is not None:
                    pass
            finally:
                if _compared(policy, spec.policies):  # its own chain counts these steps
                    store.usage = Usage(keys=store.usage.keys, warnings=store.usage.warnings)
                usage.add(store.usage)
                store.usage = usage
            return other.samples.get(k), policy.n_synthetic(k, n)

        world.rows.matched = matched
    return iter_generations(world, schedule(policy, n, task.generations))


def _run_chain(task: Task, store: Store) -> Iterator[tuple[int, Curves]]:
    world = _chain_world(task, store)
    if task.generations == 0:
        for source in task.point.used_sources():
            world.rows.read_corpus(source)
        yield task.policies[0], Curves(task.seeds, 0)
    for measurements in _generations(task, world):
        curves = Curves(task.seeds, task.generations)
        for measurement in measurements:
            curves.add(measurement, 0)
        yield task.policies[0], curves


def _run_ensemble(task: Task, store: Store) -> Iterator[tuple[int, Curves]]:
    point, blocks = task.point, dict[bool, SeedBlock]()
    for position in task.policies:
        draws_rows = point.worlds[position] == "rows"
        if draws_rows not in blocks:
            first = task.seeds[0] // SEEDS_PER_BLOCK * SEEDS_PER_BLOCK
            seeds = task.seeds if draws_rows else tuple(range(first, task.seeds[-1] + 1))
            blocks[draws_rows] = SeedBlock.of_point(point, seeds, draws_rows=draws_rows, threads=task.threads)
            if draws_rows and point.counts_copies(task.seeds[0]):
                store.call(ensemble_copies, replace(blocks[draws_rows], seeds=task.seeds[:1], shared={}))
        block = blocks[draws_rows]
        stored = store.open(store.call(ensemble_curves, block, point.spec.policies[position], task.generations))
        curves = Curves(task.seeds, task.generations)
        curves.merge(Curves.unpack(cast(Params, stored), block.seeds))
        if (risk := point.spec.risk_metric()) and isinstance(block.family, SupportsTrivialModel):
            trivial = np.asarray(store.open(store.call(ensemble_trivial, block, risk))["trivial"])
            for s, value in enumerate(trivial[np.isin(block.seeds, task.seeds)].tolist()):
                has_begun = curves.statuses[curves.codes[risk][s, 0]] in (STATUSES[VALUE], NOT_FINITE)
                if has_begun and math.isfinite(value):
                    curves.add(Measurement("", task.seeds[s], 1, f"{risk}{TRIVIAL}", value), s)
        yield position, curves
