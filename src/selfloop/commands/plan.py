"""Cost of a run: its stored generations, and the time of the others, estimated from ten training steps and a few samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from selfloop.columns import Columns, Params, Ragged
from selfloop.component import Family, Policy
from selfloop.engine import steps
from selfloop.engine.ensemble import SeedBlock, ensemble_curves
from selfloop.engine.executors import count_cores
from selfloop.engine.stored import StoredWorld
from selfloop.engine.tasks import Task, cost_in_rows, count_sampled, plan_tasks, replay_outputs
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.nn.settings import NetworkFamily, TrainingSettings
from selfloop.protocols import SupportsStepCount
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.store.calls import Usage
from selfloop.store.store import Store
from selfloop.types import Coordinates, Take

T = TypeVar("T")
TRIAL_STEPS, TRIAL_ROWS = 10, 32  # of training; sampled
TRIAL_SEEDS, TRIAL_GENERATIONS = 8, 3  # of an ensemble
MAX_CHAINS = 100_000  # that are looked up one by one, in about a millisecond each


class _EnoughError(Exception):
    """A trial fit has done its steps."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds of the parts of generation 1, from which those of later generations follow."""

    fit_start: float  # before the first training step
    fit: float  # all training steps
    sample_row: float
    measure: float  # all metrics
    tokens_per_row: float = math.nan  # of real text

    def chain_seconds(self, point: Point, position: int) -> float:
        """Seconds of one chain of a policy. Generation 1 counts for the first policy: all policies share it."""
        family = point.spec.family
        first = family.for_generation(1).count_work(point.schedule(point.spec.policies[position])[0].trained_rows)
        return sum(
            self.fit_start + self.fit * family.for_generation(entry.t).count_work(entry.trained_rows) / first
            + self.sample_row * count_sampled(point, entry) + self.measure
            for entry in point.schedule(point.spec.policies[position])
            if entry.t > 1 or position == 0
        )  # fmt: skip


def estimate_seconds(task: Task, trials: dict[object, Trial | None]) -> float | None:
    """Seconds of a task of one policy; None if its trial ended. `trials` keeps those of each point for its other tasks."""
    if task.point.runs_as_ensemble:
        return _ensemble_seconds(task)
    key = task.point.coordinates
    if key not in trials:
        trials[key] = _try(task)
    trial = trials[key]
    return None if trial is None else trial.chain_seconds(task.point, task.policies[0])


def _try(task: Task) -> Trial | None:
    """A trial of generation 1 in a store that is deleted; None if it ends the chain."""
    point, spec = task.point, task.point.spec
    family = spec.family.for_generation(1)
    one_step = with_steps(family, 1)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        world = StoredWorld("trial", replace(point, spec=replace(spec, family=one_step)), task.seeds[0], store, task.threads)
        batch = world.draw_real(1, point.n)
        tokens = store.open(batch).get("tokens")
        per_row = len(tokens.values) / len(tokens) if isinstance(tokens, Ragged) else math.nan
        try:
            model = world.fit(1, [Take(batch)], None, None)  # loads libraries, too, which is not counted below
            start, fit = _time_fit(world, family, store.open(batch))
            n = min(point.n, TRIAL_ROWS if spec.unit == "rows" else round(TRIAL_ROWS * per_row))  # also if policies sample none
            world.point = replace(world.point, n=n)  # as many rows are measured
            sampled, samples = _timed(lambda: world.sample(1, model, n))
            measured, _ = _timed(lambda: list(world.measure(1, model, samples)))
        except ChainEndedError:
            return None
    return Trial(start, fit, sampled / n, measured, per_row)


def with_steps(family: Family, steps: int) -> Family:
    """The family with so few training steps, if it trains a network."""
    if not isinstance(family, NetworkFamily):
        return family
    training = replace(family.training, epochs=TrainingSettings.epochs, steps=steps, scale_batch=False)
    return replace(family, training=training)  # type: ignore[type-var]  # families are dataclasses


def _time_fit(world: StoredWorld, family: Family, rows: Columns) -> tuple[float, float]:
    """Seconds before the first training step, and of all training steps; all of a fit without steps."""
    times, totals = [time.perf_counter()], [0]

    def note(done: int, total: int) -> None:
        times.append(time.perf_counter())
        totals.append(total)
        if len(times) > TRIAL_STEPS:
            raise _EnoughError

    refs = map(world.rows.refs.get, ("init", "prepared"))
    init, prepared = (cast(Params, world.store.open(ref)) if ref else None for ref in refs)
    with suppress(_EnoughError):
        steps.fit(family, ((rows, None, 1.0),), None, init, prepared, replace(world.rows.context("fit", 1), progress=note))
    if len(times) < 3:
        return 0.0, time.perf_counter() - times[0]
    step = (times[-1] - times[1]) / (len(times) - 2)
    return max(0.0, times[1] - times[0] - step), step * totals[-1]


def _ensemble_seconds(task: Task) -> float:
    """Seconds of some seeds and generations of an ensemble, times their share of its rows."""
    position, point = task.policies[0], task.point
    policy, draws_rows = point.spec.policies[position], point.worlds[position] == "rows"
    seeds = task.seeds[:TRIAL_SEEDS] if draws_rows else task.seeds  # statistics of all seeds take as long as those of a few
    few = replace(point, spec=replace(point.spec, generations=min(TRIAL_GENERATIONS, point.spec.generations)))

    def run() -> object:
        block = SeedBlock.of_point(point, seeds, draws_rows=draws_rows, threads=task.threads)
        return ensemble_curves(block, policy, few.spec.generations)

    run()  # loads libraries
    share = (1 + cost_in_rows(point, policy)) / (1 + cost_in_rows(few, policy))
    return _timed(run)[0] * share * len(task.seeds) / len(seeds)


def _timed(make: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    value = make()
    return time.perf_counter() - started, value


@dataclass(slots=True)
class PolicyCost:
    """Generations and seconds of one policy at one point."""

    coordinates: Coordinates
    policy: str
    chains: int = 0
    generations: int = 0  # of all chains
    stored: int = 0  # generations that are complete in the store
    seconds_stored: float = 0.0  # that the stored generations took
    seconds_tried: float | None = None  # of all generations, estimated from a trial
    parallel: int = 1  # tasks that run at the same time
    tokens_per_row: float = math.nan  # of real text, from a trial
    backends: frozenset[tuple[str, str]] = frozenset()  # (purpose, backend) of the stored results
    trained_rows: Sequence[float] = ()  # of every generation
    training_steps: Sequence[float] = ()  # of every fit, if the family counts them; NaN where they depend on unknown lengths

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of work for the generations that are not stored; None if none is stored and none was tried."""
        left = self.generations - self.stored
        if self.seconds_tried is not None:
            return self.seconds_tried * left / self.generations
        return self.seconds_stored / self.stored * left if self.stored else None


def total_seconds(costs: Sequence[PolicyCost]) -> float | None:
    """The time until the run ends, in seconds; None if it is not known."""
    seconds = [cost.seconds for cost in costs if cost.generations > cost.stored]
    return None if None in seconds else sum(filter(None, seconds)) / min(cost.parallel for cost in costs)


def describe_total(costs: Sequence[PolicyCost]) -> str:
    """The time until the run ends, in minutes, or how to learn it."""
    if all(cost.generations == cost.stored for cost in costs):
        return "Everything is stored."
    if (seconds := total_seconds(costs)) is None:
        return "Total time: unknown. `--measure` times ten training steps and a few samples of each family."
    workers = min(cost.parallel for cost in costs)
    minutes, shared = seconds / 60, f" with {workers} workers" if workers > 1 else ""
    return f"Total time: about {minutes:.{1 if minutes < 10 else 0}f} minutes{shared}, on this machine when it is idle."


def plan(spec: Spec, path: Path, *, measure: bool = False) -> list[PolicyCost]:
    """Cost of every policy at every point. Nothing is stored, and nothing computed unless `measure` asks for trials."""
    labels, trials = spec.policy_labels(), dict[object, Trial | None]()
    costs = {key: PolicyCost(*key) for point in spec.points() for label in labels if (key := (point.coordinates, label))}
    n_chains = len(labels) * len(spec.seeds) * sum(not point.runs_as_ensemble for point in spec.points())
    if n_chains > MAX_CHAINS:
        problem = f"got {len(spec.seeds):,}, for {n_chains:,} chains, each looked up in the store"
        raise SpecError(f"seeds: {problem}; plan expects at most {MAX_CHAINS:,} chains. Name fewer seeds.")
    tasks = plan_tasks(spec, path)[-1]
    for task in tasks:
        chains = len(task.seeds)
        for position in task.policies:
            cost = costs[task.point.coordinates, labels[position]]
            stored, usage = _replay_generations(replace(task, policies=(position,)), Store(path, read_only=True))
            cost.chains += chains
            cost.generations += chains * task.generations
            cost.stored += chains * stored
            cost.seconds_stored += usage.seconds_saved
            cost.backends |= usage.backends.keys()
            cost.parallel = max(1, min(len(tasks), count_cores() // task.threads))
            if measure and (tried := estimate_seconds(replace(task, policies=(position,)), trials)) is not None:
                cost.seconds_tried = (cost.seconds_tried or 0.0) + tried
            if trial := trials.get(task.point.coordinates):
                cost.tokens_per_row = trial.tokens_per_row
    for point in spec.points():
        for label, policy in zip(labels, point.spec.policies, strict=True):
            cost = costs[point.coordinates, label]
            cost.trained_rows = [entry.trained_rows for entry in point.schedule(policy)]
            if isinstance(spec.family, SupportsStepCount):
                cost.training_steps = count_training_steps(point, policy, cost.tokens_per_row)
    return list(costs.values())


def plan_to_json(spec: Spec, costs: Sequence[PolicyCost]) -> dict[str, Any]:
    point = spec.points()[0]
    sizes = {"source": spec.source.name, "family": spec.family.name, "n": point.n, "holdout": point.holdout}
    policies = [{**asdict(cost), "seconds": cost.seconds} for cost in costs]
    return {**sizes, "seeds": spec.seeds, "unit": spec.unit, "seconds": total_seconds(costs), "policies": policies}


def count_training_steps(point: Point, policy: Policy, tokens_per_row: float) -> list[float]:
    """Training steps of each fit of a policy; NaN where they depend on unknown lengths of texts."""
    steps = []
    for entry in point.schedule(policy):
        family, n = point.spec.family.for_generation(entry.t), entry.trained_rows
        assert isinstance(family, SupportsStepCount)
        rows, tokens = (n, n * tokens_per_row) if point.spec.unit == "rows" else (n / tokens_per_row, n)
        steps.append(family.count_steps(rows, tokens))
    return steps


def _replay_generations(task: Task, store: Store) -> tuple[int, Usage]:
    """Generations of a task that a read-only store has, and its usage. A chain that ended has all its generations."""
    outputs, is_complete = replay_outputs(task, store)
    for output in outputs:
        store.usage.add(output.usage)
    return task.generations if is_complete else sum(output.generations for output in outputs), store.usage
