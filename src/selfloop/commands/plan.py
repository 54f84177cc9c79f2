"""Cost of a run: its stored generations, and the estimated time of the remaining generations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfloop.commands.trial import Trial, estimate_seconds
from selfloop.component import Policy
from selfloop.engine.executors import count_cores
from selfloop.engine.tasks import Task, plan_tasks, run_task
from selfloop.protocols import SupportsStepCount
from selfloop.spec.point import Point
from selfloop.spec.spec import Spec
from selfloop.store.calls import NotStoredError, Usage
from selfloop.store.store import Store
from selfloop.types import Coordinates


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

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of work for the generations that are not stored; None if none is stored and none was tried."""
        left = self.generations - self.stored
        if self.seconds_tried is not None:
            return self.seconds_tried * left / self.generations
        return self.seconds_stored / self.stored * left if self.stored else None


def describe_total(costs: Sequence[PolicyCost]) -> str:
    """The time until the run ends, in minutes, or how to learn it."""
    seconds = [cost.seconds for cost in costs if cost.generations > cost.stored]
    if not seconds:
        return "Everything is stored."
    if None in seconds:
        return "Total time: unknown. `--measure` times ten training steps and a few samples of each family."
    workers = min(cost.parallel for cost in costs)
    minutes, shared = sum(filter(None, seconds)) / 60 / workers, f" with {workers} workers" if workers > 1 else ""
    return f"Total time: about {minutes:.{1 if minutes < 10 else 0}f} minutes{shared}, on this machine when it is idle."


def plan(spec: Spec, path: Path, *, measure: bool = False) -> list[PolicyCost]:
    """Cost of every policy at every point. Nothing is stored, and nothing computed unless `measure` asks for trials."""
    keys = [(point.coordinates, label) for point in spec.points() for label in spec.policy_labels()]
    costs = {key: PolicyCost(*key) for key in keys}
    trials: dict[object, Trial | None] = {}
    tasks = plan_tasks(spec, path)[-1]
    for task in tasks:
        labels = task.point.spec.policy_labels()
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
    return list(costs.values())


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
    generations, usage = 0, Usage()
    try:
        for output in run_task(task, store):
            generations += output.generations
            usage.add(output.usage)
        generations = task.generations
    except NotStoredError:
        usage.add(store.usage)
    return generations, usage
