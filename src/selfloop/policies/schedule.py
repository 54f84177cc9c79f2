"""The schedule of a policy: new rows, takes and available rows of every generation. The only reader of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from selfloop.component import Policy
from selfloop.errors import SettingError, SpecError
from selfloop.types import Batch, NewRows, Plan, Take, external, real, synthetic

MAX_BATCH_ROWS = 10**15  # Limit per batch. Larger values are typos, and row counts would overflow int64.
MAX_TAKES = 10_000_000  # Limit per schedule, whose time and memory grow with it; `accumulate` reaches it at t = 4,472.


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """One generation: its new rows, its plan in which every take has a row count, and the rows of the schedule's batches."""

    t: int
    new_rows: NewRows
    plan: Plan
    available: Mapping[Batch, int]  # one table for all generations: only a batch that exists before the fit can be taken

    @property
    def trained_rows(self) -> int:
        """Number of training rows of one epoch of this generation's fit."""
        return self.plan.budget or sum(take.rows or 0 for take in self.plan.takes)

    def rows_by_kind(self) -> tuple[float, float]:
        """Real and synthetic training rows; expected numbers for a budget."""
        kinds = ("real", "synthetic")
        rows = [sum(take.rows or 0 for take in self.plan.takes if take.batch.kind == kind) for kind in kinds]
        return rows[0] * self.trained_rows / sum(rows), rows[1] * self.trained_rows / sum(rows)

    def masses(self) -> list[float]:
        """Share of the training mass (rows × weight) of each take."""
        raw = [(take.rows or 0) * take.weight for take in self.plan.takes]
        total = math.fsum(raw)  # the sum of floats differs between versions of Python
        return [mass / total for mass in raw]

    @property
    def real_mass(self) -> float:
        """Share of the training mass that is real. A prompt from a real row is a part of a synthetic row."""
        takes = zip(self.plan.takes, self.masses(), strict=True)
        return math.fsum(mass for take, mass in takes if take.batch.kind == "real")

    @property
    def data_age(self) -> float:
        """Mean age of the training mass, in generations: t - b + 1 for real(b) and external(b), t - k for synthetic(k)."""
        takes = zip(self.plan.takes, self.masses(), strict=True)
        return math.fsum(mass * (self.t - take.batch.first_use + 1) for take, mass in takes)


def schedule(policy: Policy, n: int, generations: int) -> Iterator[ScheduleEntry]:
    """One entry per generation. Raises SpecError if a plan asks for a batch or for rows that do not exist."""
    rows: dict[Batch, int] = {}
    asked = resolved = Plan(())  # of the generation before
    n_takes = 0
    for t in range(1, generations + 1):
        key = f"policy {policy.name}, generation {t}"
        try:
            new_rows = policy.new_rows(t, n)
            plan = Plan((Take(real(1)),)) if t == 1 else policy.plan(t, n)
        except SettingError as problem:  # an expression without a value at this t
            raise SpecError(f"{key}: {problem}") from None
        except OverflowError:
            raise SpecError(f"{key}: draws more rows than a computer can count. Lower n or the policy's settings.") from None
        _check_new_rows(key, t, n, new_rows)
        if new_rows.real:
            rows[real(t)] = new_rows.real
        if new_rows.external:
            rows[external(t)] = new_rows.external
        if not asked.takes or plan.takes[: len(asked.takes)] != asked.takes:
            asked = resolved = Plan(())
        later = _resolve_takes(key, plan.takes[len(asked.takes) :], rows)  # accumulate has one take more than before
        asked, resolved = plan, _resolve_budget(key, (*resolved.takes, *later), plan.budget)
        n_takes += len(plan.takes)
        if n_takes > MAX_TAKES:
            raise SpecError(f"{key}: takes more than {MAX_TAKES:,} batches, all generations together. Lower generations.")
        yield ScheduleEntry(t, new_rows, resolved, rows)
        rows[synthetic(t)] = new_rows.synthetic


def schedule_metrics(entries: Sequence[ScheduleEntry]) -> dict[str, list[float]]:
    """`real_mass` and `data_age` of every generation: metrics that follow from the policy only."""
    return {"real_mass": [entry.real_mass for entry in entries], "data_age": [entry.data_age for entry in entries]}


def rows_of_share(setting: str, share: float, n: int, *, of_total: bool = False) -> int:
    """A share of n rows, rounded. Raises SettingError if it is above 0 and no row, or (`of_total`) below 1 and all rows."""
    rows = round(share * n)
    if share > 0 and not rows:
        raise SettingError(setting, f"got {share:g}, which is no row of n = {n}, rounded. Raise it or n.")
    if of_total and share < 1 and rows == n:
        raise SettingError(setting, f"got {share:g}, which is every row of n = {n}, rounded. Lower it, or raise n.")
    return rows


def rows_of_batch(policy: Policy, batch: Batch, n: int) -> int:
    return int(getattr(policy.new_rows(batch.born, n), batch.kind))


def _check_new_rows(key: str, t: int, n: int, new_rows: NewRows) -> None:
    counts = new_rows.real, new_rows.synthetic, new_rows.external
    if not all(isinstance(rows, int) and 0 <= rows <= MAX_BATCH_ROWS for rows in counts):
        others = f" and {counts[2]:.4g} external ones" if counts[2] else ""
        raise SpecError(
            f"{key}: draws {counts[0]:.4g} real and {counts[1]:.4g} synthetic rows{others}; expected whole "
            f"numbers from 0 to {MAX_BATCH_ROWS:.0e}. Lower n or the policy's settings."
        )
    if t == 1 and new_rows.real != n:
        raise SpecError(f"{key}: draws {new_rows.real} real rows; expected the n = {n} initial rows.")


def _resolve_takes(key: str, asked: tuple[Take[Batch], ...], rows: Mapping[Batch, int]) -> list[Take[Batch]]:
    """The takes with a row count each, without empty ones."""
    takes = []
    for take in asked:
        if take.batch not in rows:
            existing = ", ".join(map(str, islice(rows, 5))) + (f", ... ({len(rows)} batches)" if len(rows) > 5 else "")
            raise SpecError(f"{key}: takes {take.batch}, which does not exist. Existing: {existing}.")
        available, start, count = rows[take.batch], take.start, take.rows
        if count is None:
            count = available - start
        if not (isinstance(count, int) and isinstance(start, int) and 0 <= start <= start + count <= available):
            asked_for = f"{take.rows or 'all'} rows of {take.batch}" + (f" from row {start} on" if start else "")
            raise SpecError(f"{key}: takes {asked_for}; expected at most the {available} rows that it has. Take fewer.")
        if not 0 <= take.weight < math.inf:
            raise SpecError(f"{key}: takes {take.batch} with weight {take.weight:g}; expected 0 or more. Change the weight.")
        if count and take.weight:
            takes.append(take if take.rows is not None else Take(take.batch, count, take.weight, start))
    return takes


def _resolve_budget(key: str, takes: tuple[Take[Batch], ...], budget: int | None) -> Plan:
    """The plan of the takes, without a budget that exceeds their rows."""
    total = sum(take.rows or 0 for take in takes)
    if not total:
        raise SpecError(f"{key}: trains on no rows. Take at least one row of an existing batch.")
    if budget is not None and budget < 1:
        raise SpecError(f"{key}: budget is {budget}; expected 1 row or more.")
    return Plan(takes, None if budget is None or budget >= total else budget)
