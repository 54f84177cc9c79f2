"""Laws of normal distributions fitted by mean and covariance."""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy.special import digamma

from selfloop.component import Context, Scenario
from selfloop.rng import RandomStream
from selfloop.theory.law import Law, newest_rows
from selfloop.theory.moments import MomentEstimator, has_law, moment_curves
from selfloop.types import Floats


def _learner(scenario: Scenario) -> MomentEstimator:
    family = scenario.family
    factor = float(getattr(scenario.sampler, "variance_factor", 1.0))
    return MomentEstimator(
        ddof=int(getattr(family, "ddof", 0)), pooled=bool(getattr(family, "pooled", True)), variance_factor=factor
    )


def _holds(scenario: Scenario) -> bool:
    names = (scenario.family.name, scenario.source.name)
    return names == ("gaussian", "gaussian") and has_law(scenario.policy, scenario.n, scenario.generations, _learner(scenario))


def _moment(scenario: Scenario, metric: str) -> Floats:
    return moment_curves(scenario.policy, scenario.n, scenario.generations, _learner(scenario))[metric]


def _mean_error(scenario: Scenario) -> Floats:
    covariance = cast(Floats, scenario.source.truth(Context(RandomStream(("law",))))["covariance"])
    return float(np.trace(covariance)) * _moment(scenario, "mean_error")


def _rows(scenario: Scenario) -> list[int] | None:
    names = (scenario.family.name, scenario.source.name)
    return newest_rows(scenario) if names == ("gaussian", "gaussian") and _learner(scenario).variance_factor > 0 else None


def _log_variance(scenario: Scenario) -> Floats:
    learner, rows = _learner(scenario), np.array(_rows(scenario), np.float64)
    d = int(getattr(scenario.source, "dim", 1))
    fits = digamma((rows[:, None] - np.arange(1, d + 1)) / 2).sum(axis=1) + d * np.log(2 / (rows - learner.ddof))
    return np.asarray(np.cumsum(fits) + d * np.log(learner.variance_factor) * np.arange(len(rows)), np.float64)


_SOURCE = (
    "Second moments of any policy, derived in theory/moments.py; special cases: Shumailov et al. 2023 (2305.17493) and "
    "Alemohammad et al. 2023 (2307.01850) for replace, Kazdan et al. 2025 (2410.16713) for accumulate, "
    "He, Xu, Cheng 2025 (2502.18049) for fresh"
)
_CONDITIONS = (
    "Gaussian source and family, any divisor and sampler variance factor, fitted from scratch; budgets with one or two weights."
)

LAWS = (
    Law(
        name="moments of the mean",
        metric="mean_error",
        kind="exact",
        source=_SOURCE,
        conditions=_CONDITIONS,
        holds=_holds,
        values=_mean_error,
    ),
    Law(
        name="moments of the variance",
        metric="variance_ratio",
        kind="exact",
        source=_SOURCE,
        conditions=_CONDITIONS,
        holds=_holds,
        values=lambda scenario: _moment(scenario, "variance_ratio"),
    ),
    Law(
        name="log variance under replacement",
        metric="log_variance",
        kind="exact",
        source=(
            "E log det of a Wishart matrix (Bartlett 1933) added up over fits: sum over j = 1 .. d of digamma((n_t - j)/2) "
            "+ d log(2/(n_t - ddof)); its sign is the collapse of Shumailov et al. 2023 (2305.17493)"
        ),
        conditions=(
            "Gaussian source and family, any divisor and sampler variance factor, all rows of the newest model only, "
            "more than d of them, fitted from scratch."
        ),
        holds=lambda scenario: min(_rows(scenario) or [0]) > int(getattr(scenario.source, "dim", 1)),
        values=_log_variance,
    ),
)
