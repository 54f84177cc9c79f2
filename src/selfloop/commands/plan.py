"""Cost of a run: its stored generations, and the estimated time of the remaining generations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from selfloop.engine.tasks import Task, plan_tasks, run_task
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
    backends: frozenset[tuple[str, str]] = frozenset()  # (purpose, backend) of the stored results

    @property
    def seconds(self) -> float | None:
        """Estimated seconds for the generations that are not stored; None if no generation is stored."""
        return self.seconds_stored / self.stored * (self.generations - self.stored) if self.stored else None


def plan(spec: Spec, path: Path) -> list[PolicyCost]:
    """Cost of every policy at every point. Nothing is computed or written."""
    costs: dict[tuple[Coordinates, str], PolicyCost] = {}
    for task in plan_tasks(spec, path)[-1]:
        labels = task.point.spec.policy_labels()
        chains = len(task.seeds)
        for position in task.policies:
            key = task.point.coordinates, labels[position]
            cost = costs.setdefault(key, PolicyCost(*key))
            stored, usage = _replay_generations(replace(task, policies=(position,)), Store(path, read_only=True))
            cost.chains += chains
            cost.generations += chains * task.generations
            cost.stored += chains * stored
            cost.seconds_stored += usage.seconds_saved
            cost.backends |= usage.backends.keys()
    return list(costs.values())


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
