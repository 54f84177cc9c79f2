"""The one schedule and the one loop. What a batch and a model *are* is the world's business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from selfloop.component import Policy
from selfloop.errors import ChainEndedError, SpecError
from selfloop.types import Batch, Emission, Part, Plan, Take, real, synthetic

MOST_ROWS = 10**15  # of one batch; more is a slip of the pen, and overflows what counts in 64 bits
B = TypeVar("B")
M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """One generation of a schedule: what comes into being, and what is trained on (every take with its row count)."""

    t: int
    emission: Emission
    plan: Plan
    available: Mapping[Batch, int]  # rows of every batch that exists before this generation's fit

    @property
    def trained_rows(self) -> int:
        """Rows one epoch of this generation's fit goes through."""
        return self.plan.budget or sum(take.rows or 0 for take in self.plan.takes)

    def masses(self) -> list[float]:
        """Share of the training mass (rows x weight) of each take."""
        raw = [(take.rows or 0) * take.weight for take in self.plan.takes]
        total = sum(raw)
        return [mass / total for mass in raw]

    @property
    def real_mass(self) -> float:
        """Share of the training mass that is real."""
        takes = zip(self.plan.takes, self.masses(), strict=True)
        return sum(mass for take, mass in takes if take.batch.kind == "real")

    @property
    def data_age(self) -> float:
        """Mean age of the training mass, in generations: t - b + 1 for real(b), t - k for synthetic(k)."""
        takes = zip(self.plan.takes, self.masses(), strict=True)
        return sum(mass * (self.t - take.batch.born + (take.batch.kind == "real")) for take, mass in takes)


def schedule(policy: Policy, n: int, generations: int) -> Iterator[Stage]:
    """What every generation emits and trains on: the only reader of a policy.

    Raises SpecError when a plan asks for a batch or rows that do not exist, before anything is computed if it is
    exhausted first.
    """
    rows: dict[Batch, int] = {}
    for t in range(1, generations + 1):
        emission = policy.emits(t, n)
        _check_emission(policy.name, t, n, emission)
        if emission.real:
            rows[real(t)] = emission.real
        plan = Plan((Take(real(1)),)) if t == 1 else policy.plan(t, n)
        yield Stage(t, emission, _resolve(policy.name, t, plan, rows), dict(rows))
        rows[synthetic(t)] = emission.synthetic


def _check_emission(name: str, t: int, n: int, emission: Emission) -> None:
    counts = emission.real, emission.synthetic
    if not all(isinstance(rows, int) and 0 <= rows <= MOST_ROWS for rows in counts):
        raise SpecError(
            f"policy {name}, generation {t}: emits {counts[0]:.4g} real and {counts[1]:.4g} synthetic rows; expected whole "
            f"numbers from 0 to {MOST_ROWS:.0e}."
        )
    if t == 1 and emission.real != n:
        raise SpecError(f"policy {name}, generation 1: emits {emission.real} real rows; expected n = {n}, all that there are.")


def _resolve(name: str, t: int, plan: Plan, rows: Mapping[Batch, int]) -> Plan:
    takes = []
    for take in plan.takes:
        where = f"policy {name}, generation {t}"
        if take.batch not in rows:
            raise SpecError(f"{where}: asks for {take.batch}, which does not exist. There are: {', '.join(map(str, rows))}.")
        count = rows[take.batch] if take.rows is None else take.rows
        if not isinstance(count, int) or not 0 <= count <= rows[take.batch] or not 0 <= take.weight < math.inf:
            raise SpecError(
                f"{where}: takes {count} rows of {take.batch} with weight {take.weight:g}; it has {rows[take.batch]} rows "
                "and weights are 0 or more."
            )
        if count and take.weight:
            takes.append(Take(take.batch, count, take.weight))
    total = sum(take.rows or 0 for take in takes)
    if not total:
        raise SpecError(f"policy {name}, generation {t}: trains on no rows. Take at least one row of an existing batch.")
    if plan.budget is not None and plan.budget < 1:
        raise SpecError(f"policy {name}, generation {t}: budget {plan.budget}; expected 1 or more rows.")
    budget = None if plan.budget is None or plan.budget >= total else plan.budget
    return Plan(tuple(takes), budget)


class World(Protocol[B, M, R_co]):
    """What a batch and a model are, for one policy and one seed or many."""

    @property
    def seeds(self) -> Sequence[int]: ...

    def real(self, t: int, n: int) -> B: ...
    def fit(self, t: int, parts: Sequence[Part[B]], budget: int | None, previous: M | None) -> M: ...
    def sample(self, t: int, model: M, n: int) -> B: ...
    def measure(self, t: int, model: M, new: B) -> Iterable[R_co]: ...
    def ended(self, t: int, status: str) -> Iterable[R_co]: ...


def loop(world: World[B, M, R], policy: Policy, n: int, generations: int) -> Iterator[R]:
    """Run a policy in a world; yields what it measures, rows or columns of them, generation by generation."""
    for rows in by_generation(world, policy, n, generations):
        yield from rows


def by_generation(world: World[B, M, R], policy: Policy, n: int, generations: int) -> Iterator[list[R]]:
    """The same, everything of a generation together and before the next one begins. The only loop."""
    stages = list(schedule(policy, n, generations))
    last_use = {take.batch: stage.t for stage in stages for take in stage.plan.takes}
    batches: dict[Batch, B] = {}
    model: M | None = None
    for stage in stages:
        t = stage.t
        if stage.emission.real:
            batches[real(t)] = world.real(t, stage.emission.real)
        parts = [
            Part(batches[take.batch], None if take.rows == stage.available[take.batch] else take.rows, take.weight)
            for take in stage.plan.takes
        ]
        try:
            model = world.fit(t, parts, stage.plan.budget, model)
            new = batches[synthetic(t)] = world.sample(t, model, stage.emission.synthetic)
        except ChainEndedError as end:
            yield list(world.ended(t, end.status))
            return
        yield list(world.measure(t, model, new))
        for batch in [b for b in batches if last_use.get(b, 0) <= t]:
            del batches[batch]  # never trained on again: thousands of chains of `replace` need two batches, not all
