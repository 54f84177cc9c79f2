"""A law is a curve with its conditions and its source. Here are also the functions of scenarios that laws share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from selfloop.columns import Floats, Ints, Params
from selfloop.component import Context
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.rng import RandomStream
from selfloop.snapshots import Scenario
from selfloop.theory.moments import MomentEstimator, moment_curves
from selfloop.types import Batch, Limit, real, synthetic

Kind = Literal["exact", "bound", "asymptotic"]


class UnmetConditionError(Exception):
    """A scenario does not meet a condition of a law."""


def require(condition: object) -> None:
    """Raise UnmetConditionError if a condition of a law is false."""
    if not condition:
        raise UnmetConditionError


@dataclass(frozen=True, kw_only=True)
class Law:
    """The expectation over seeds of one metric, for the scenarios that meet every condition."""

    name: str
    metric: str
    kind: Kind
    source: str  # authors, year, theorem or equation, arXiv id
    conditions: str  # one sentence
    values: Callable[[Scenario], Floats]  # at generations 1, 2, ... in the metric's unit; UnmetConditionError, SpecError
    limit: Callable[[Scenario], Limit | None] = lambda scenario: None  # as generations go on; None if it is not known
    estimator: Callable[[Scenario], MomentEstimator] | None = None  # of the moments whose values these are


def schedule_entries(scenario: Scenario) -> Iterator[ScheduleEntry]:
    """The schedule of a scenario."""
    return schedule(scenario.policy, scenario.n, scenario.generations)


def true_params(scenario: Scenario) -> Params:
    """The true parameters of the source, for sources whose truth does not depend on the seed."""
    return scenario.source.truth(Context(RandomStream(("law",))))


def true_trace(scenario: Scenario) -> float:
    """Trace of the source's true covariance."""
    return float(np.trace(cast(Floats, true_params(scenario)["covariance"])))


def moment_curve(scenario: Scenario, metric: str, estimator: MomentEstimator | None = None) -> Floats:
    """One metric of the world of expectations, at every generation; SpecError if that world is not exact for the policy."""
    return moment_curves(scenario.policy, scenario.n, scenario.generations, estimator)[metric]


def population_models(scenario: Scenario, truth: Floats, sample: Callable[[Floats], Floats]) -> Floats:
    """Models of endless rows, (generations, ...): the mean, by training mass, of the truth and of samples of earlier models.

    `sample` maps a model, a value that is linear in the distribution of its training rows, to that of the rows drawn from it.
    """
    samples: dict[int, Floats] = {}
    models: list[Floats] = []
    for entry in schedule_entries(scenario):
        masses = zip(entry.plan.takes, entry.masses(), strict=True)
        parts = [mass * (truth if take.batch.kind == "real" else samples[take.batch.born]) for take, mass in masses]
        models.append(np.sum(parts, axis=0))
        samples[entry.t] = sample(models[-1])
    return np.array(models)


def newest_growth(scenario: Scenario) -> float | None:
    """The power of t with which training rows grow under a policy that uses rows of the newest model only; None for others."""
    powers = {"replace": 0.0, "replace_multiple": 1.0, "growing": 1 + scenario.policy.settings().get("exponent", 0.0)}
    return powers.get(scenario.policy.name)


def takes_whole_batches(scenario: Scenario) -> bool:
    """True if every take has all rows of its batch. (A budget may be drawn from them.)"""
    return all(take.rows == entry.available[take.batch] for entry in schedule_entries(scenario) for take in entry.plan.takes)


def newest_rows(scenario: Scenario) -> Ints:
    """Training rows of every generation, each of which uses all rows of the newest batch and no others."""
    return _rows_of_batches(scenario, lambda t: {synthetic(t - 1) if t > 1 else real(1)})


def all_rows(scenario: Scenario) -> Ints:
    """Training rows of every generation, each of which uses real(1) and all synthetic rows so far with equal weights."""
    return _rows_of_batches(scenario, lambda t: {real(1), *(synthetic(k) for k in range(1, t))})


def _rows_of_batches(scenario: Scenario, batches: Callable[[int], Set[Batch]]) -> Ints:
    """Training rows of every generation t, each of which uses all rows of `batches(t)` with equal weights, and no others."""
    entries = list(schedule_entries(scenario))
    for entry in entries:
        takes, expected = entry.plan.takes, {(batch, entry.available[batch]) for batch in batches(entry.t)}
        require(len({take.weight for take in takes}) == 1 and len(takes) == len(expected))
        require(entry.plan.budget is None and {(take.batch, take.rows) for take in takes} == expected)
    return np.array([entry.trained_rows for entry in entries])
