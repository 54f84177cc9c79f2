"""A law is a curve with its conditions and its source. Here are also the functions of scenarios that laws share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from selfloop.columns import Floats, Params
from selfloop.component import Context
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.rng import RandomStream
from selfloop.snapshots import Scenario
from selfloop.theory.moments import MomentEstimator, moment_curves, moments_are_exact
from selfloop.types import real, synthetic

MAX_TAKES = 50_000  # of all generations together; `accumulate` reaches it at generation 315
Kind = Literal["exact", "bound", "asymptotic"]


@dataclass(frozen=True, kw_only=True)
class Law:
    """The expectation over seeds of one metric, for the scenarios that meet every condition."""

    name: str
    metric: str
    kind: Kind
    source: str  # authors, year, theorem or equation, arXiv id
    conditions: str  # one sentence
    is_met: Callable[[Scenario], bool]
    values: Callable[[Scenario], Floats]  # at generations 1 .. scenario.generations, in the metric's unit

    def applies(self, scenario: Scenario) -> bool:
        """True if all conditions are met; never for curated rows or for models that start from another model."""
        return not scenario.curated and scenario.init_from == "scratch" and _is_small(scenario) and self.is_met(scenario)


def _is_small(scenario: Scenario) -> bool:
    """True if moments take seconds: their cost is quadratic in the batches in use (`accumulate` to t = 1000: a minute)."""
    return sum(len(entry.plan.takes) for entry in schedule_entries(scenario)) <= MAX_TAKES


def schedule_entries(scenario: Scenario) -> Iterator[ScheduleEntry]:
    """The schedule of a scenario."""
    return schedule(scenario.policy, scenario.n, scenario.generations)


def true_params(scenario: Scenario) -> Params:
    """The true parameters of the source, for sources whose truth does not depend on the seed."""
    return scenario.source.truth(Context(RandomStream(("law",))))


def moment_curve(scenario: Scenario, metric: str, estimator: MomentEstimator | None = None) -> Floats:
    """One metric of the world of expectations, at generations 1 .. scenario.generations."""
    return moment_curves(scenario.policy, scenario.n, scenario.generations, estimator)[metric]


def has_exact_moments(scenario: Scenario, estimator: MomentEstimator | None = None) -> bool:
    """True if the world of expectations is exact for the scenario's policy."""
    return moments_are_exact(scenario.policy, scenario.n, scenario.generations, estimator)


def takes_whole_batches(scenario: Scenario) -> bool:
    """True if every take has all rows of its batch. (A budget may be drawn from them.)"""
    return all(take.rows == entry.available[take.batch] for entry in schedule_entries(scenario) for take in entry.plan.takes)


def newest_rows(scenario: Scenario) -> list[int] | None:
    """Training rows of every generation, if each uses all rows of the newest batch and no others; otherwise None."""
    rows = []
    for entry in schedule_entries(scenario):
        newest = real(1) if entry.t == 1 else synthetic(entry.t - 1)
        is_only_take = len(entry.plan.takes) == 1 and entry.plan.budget is None
        if not is_only_take or (entry.plan.takes[0].batch, entry.trained_rows) != (newest, entry.available[newest]):
            return None
        rows.append(entry.trained_rows)
    return rows


def all_rows(scenario: Scenario) -> list[int] | None:
    """Training rows of every generation, if each uses all rows so far with equal weights and no fresh real rows; or None."""
    rows = []
    for entry in schedule_entries(scenario):
        expected = {real(1), *(synthetic(k) for k in range(1, entry.t))}
        whole = {take.batch: take.rows for take in entry.plan.takes} == dict(entry.available)
        equal = len({take.weight for take in entry.plan.takes}) == 1 and len(entry.plan.takes) == entry.t
        if not whole or not equal or entry.plan.budget is not None or set(entry.available) != expected:
            return None
        rows.append(entry.trained_rows)
    return rows
