"""The schedule of a policy: new rows, takes and available rows of every generation. The only reader of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfloop.component import Policy
from selfloop.errors import SettingError, SpecError
from selfloop.types import Batch, NewRows, Plan, Take, real, synthetic

MAX_BATCH_ROWS = 10**15  # Limit per batch. Larger values are typos, and row counts would overflow int64.


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """One generation: its new rows, and its plan in which every take has a row count."""

    t: int
    new_rows: NewRows
    plan: Plan
    available: Mapping[Batch, int]  # rows of every batch that exists before this generation's fit

    @property
    def trained_rows(self) -> int:
        """Number of training rows of one epoch of this generation's fit."""
        return self.plan.budget or sum(take.rows or 0 for take in self.plan.takes)

    def masses(self) -> list[float]:
        """Share of the training mass (rows × weight) of each take."""
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


def schedule(policy: Policy, n: int, generations: int) -> Iterator[ScheduleEntry]:
    """One entry per generation. Raises SpecError if a plan asks for a batch or for rows that do not exist."""
    rows: dict[Batch, int] = {}
    for t in range(1, generations + 1):
        key = f"policy {policy.name}, generation {t}"
        try:
            new_rows = policy.new_rows(t, n)
            plan = Plan((Take(real(1)),)) if t == 1 else policy.plan(t, n)
        except SettingError as problem:  # an expression without a value at this t
            raise SpecError(f"{key}: {problem}") from None
        _check_new_rows(key, t, n, new_rows)
        if new_rows.real:
            rows[real(t)] = new_rows.real
        yield ScheduleEntry(t, new_rows, _resolve_plan(key, plan, rows), dict(rows))
        rows[synthetic(t)] = new_rows.synthetic


def schedule_metrics(entries: Sequence[ScheduleEntry]) -> dict[str, list[float]]:
    """`real_mass` and `data_age` of every generation: metrics that follow from the policy only."""
    return {"real_mass": [entry.real_mass for entry in entries], "data_age": [entry.data_age for entry in entries]}


def _check_new_rows(key: str, t: int, n: int, new_rows: NewRows) -> None:
    counts = new_rows.real, new_rows.synthetic
    if not all(isinstance(rows, int) and 0 <= rows <= MAX_BATCH_ROWS for rows in counts):
        raise SpecError(
            f"{key}: draws {counts[0]:.4g} real and {counts[1]:.4g} synthetic rows; expected whole "
            f"numbers from 0 to {MAX_BATCH_ROWS:.0e}. Lower n or the policy's settings."
        )
    if t == 1 and new_rows.real != n:
        raise SpecError(f"{key}: draws {new_rows.real} real rows; expected the n = {n} initial rows.")


def _resolve_plan(key: str, plan: Plan, rows: Mapping[Batch, int]) -> Plan:
    """The plan with a row count in every take, without empty takes and without a budget that exceeds them."""
    takes = []
    for take in plan.takes:
        if take.batch not in rows:
            raise SpecError(f"{key}: takes {take.batch}, which does not exist. Existing: {', '.join(map(str, rows))}.")
        count = rows[take.batch] if take.rows is None else take.rows
        if not isinstance(count, int) or not 0 <= count <= rows[take.batch] or not 0 <= take.weight < math.inf:
            raise SpecError(
                f"{key}: takes {count} rows of {take.batch} with weight {take.weight:g}; expected at most "
                f"{rows[take.batch]} rows and a weight of 0 or more."
            )
        if count and take.weight:
            takes.append(Take(take.batch, count, take.weight))
    total = sum(take.rows or 0 for take in takes)
    if not total:
        raise SpecError(f"{key}: trains on no rows. Take at least one row of an existing batch.")
    if plan.budget is not None and plan.budget < 1:
        raise SpecError(f"{key}: budget is {plan.budget}; expected 1 row or more.")
    return Plan(tuple(takes), None if plan.budget is None or plan.budget >= total else plan.budget)
