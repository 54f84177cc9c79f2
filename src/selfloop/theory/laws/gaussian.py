"""Laws of normal distributions, fitted by mean and covariance or as kernel densities of one bandwidth.

Kernels widen the distribution: the variance of a row grows every generation.
"""

from __future__ import annotations

import numpy as np
from scipy.special import digamma

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, newest_growth, newest_rows, true_trace
from selfloop.theory.moments import MomentEstimator
from selfloop.types import Limit


def _estimator(scenario: Scenario) -> MomentEstimator:
    family, sampler = scenario.family.settings(), scenario.sampler.settings()
    return MomentEstimator(ddof=family["ddof"], pooled=family["pooled"], variance_factor=sampler["variance_factor"])


def _mean_error(scenario: Scenario) -> Floats | None:
    curve = moment_curve(scenario, "mean_error", _estimator(scenario))
    return None if curve is None else true_trace(scenario) * curve


def _mean_error_limit(scenario: Scenario) -> Limit | None:
    """The limit of the mean's error.

    With the divisor n and a factor up to 1, error + variance of a fit is at most the mean square of its rows around the truth,
    which is at most the largest error + variance of earlier models: never above the true variance. With rows of the newest
    model only, the variance is multiplied by factor (rows - 1) / (rows - ddof), and an error of variance / rows is added.
    """
    estimator, power = _estimator(scenario), newest_growth(scenario)
    if estimator.ddof == 0 and estimator.variance_factor <= 1:
        return "finite"
    if power is None:
        return None
    change = estimator.variance_factor * ((scenario.n - 1) / (scenario.n - estimator.ddof) if power == 0 else 1.0)
    return "infinite" if change > 1 or (change == 1 and power <= 1) else "finite"


def _log_variance_ratio(scenario: Scenario) -> Floats | None:
    estimator, d = _estimator(scenario), scenario.source.settings()["dim"]
    rows = np.array(newest_rows(scenario) or [0], np.float64)
    if estimator.variance_factor == 0 or rows.min() <= d:
        return None
    fits = digamma((rows[:, None] - np.arange(1, d + 1)) / 2).sum(axis=1) + d * np.log(2 / (rows - estimator.ddof))
    return np.asarray(np.cumsum(fits) + d * np.log(estimator.variance_factor) * np.arange(len(rows)), np.float64)


def _second_moment(scenario: Scenario) -> Floats | None:
    family, dim = scenario.family.settings(), scenario.source.settings()["dim"]
    bandwidth = family["bandwidth"]
    if isinstance(bandwidth, str) or family["standardize"]:
        return None
    estimator = MomentEstimator(kernel_variance=float(bandwidth) ** 2 * dim / true_trace(scenario))
    mean_error, variance_ratio = (moment_curve(scenario, name, estimator) for name in ("mean_error", "variance_ratio"))
    return None if mean_error is None or variance_ratio is None else true_trace(scenario) * (mean_error + variance_ratio)


_MOMENTS_SOURCE = (
    "Second moments of any policy, derived in theory/moments.py; special cases: Shumailov et al. 2023 (2305.17493) and "
    "Alemohammad et al. 2023 (2307.01850) for replace, Kazdan et al. 2025 (2410.16713) for accumulate, "
    "He, Xu, Cheng 2025 (2502.18049) for fresh"
)
_MOMENTS_CONDITIONS = (
    "Gaussian source and family, any divisor and sampler variance factor, fitted from scratch; budgets with one or two weights."
)

LAWS = (
    Law(
        name="moments of the mean",
        metric="mean_error",
        kind="exact",
        source=_MOMENTS_SOURCE,
        conditions=_MOMENTS_CONDITIONS,
        values=_mean_error,
        limit=_mean_error_limit,
    ),
    Law(
        name="moments of the variance",
        metric="variance_ratio",
        kind="exact",
        source=_MOMENTS_SOURCE,
        conditions=_MOMENTS_CONDITIONS,
        values=lambda scenario: moment_curve(scenario, "variance_ratio", _estimator(scenario)),
    ),
    Law(
        name="log variance under replacement",
        metric="log_variance_ratio",
        kind="exact",
        source=(
            "E log det of a Wishart matrix (Bartlett 1933) added up over fits: sum over j = 1 .. d of digamma((n_t - j)/2) "
            "+ d log(2/(n_t - ddof)); its sign is the collapse of Shumailov et al. 2023 (2305.17493)"
        ),
        conditions=(
            "Gaussian source and family, any divisor and sampler variance factor, all rows of the newest model only, "
            "more than d of them, fitted from scratch."
        ),
        values=_log_variance_ratio,
        # of the variance itself, whose log falls by the same amount at every generation
        limit=lambda run: "zero" if run.policy.name == "replace" and _estimator(run).variance_factor <= 1 else None,
    ),
)

KERNEL_LAWS = (
    Law(
        name="moments of the rows",
        metric="second_moment",
        kind="exact",
        source=(
            "Second moments of any policy with kernel noise, derived in theory/moments.py; special cases of Kazdan et al. 2025 "
            "(2410.16713) and Borji 2024 (2410.12954): 1 + (t - 1) h^2 for replace, 1 + h^2 (H_t - 1) for accumulate"
        ),
        conditions=(
            "Gaussian source, kernels of one given bandwidth, not standardized, fitted from scratch; budgets with one or two "
            "weights."
        ),
        values=_second_moment,
    ),
)
