"""Laws of normal distributions, fitted by mean and covariance or as kernel densities of one bandwidth.

Kernels widen the distribution: the variance of a row grows every generation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import cast

import numpy as np
from scipy.special import digamma, gammaln

from selfloop.columns import Floats, Ints
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, newest_growth, newest_rows, require, schedule_entries, true_trace
from selfloop.theory.moments import MomentEstimator
from selfloop.types import Limit, synthetic


def _estimator(scenario: Scenario) -> MomentEstimator:
    family, sampler = scenario.family.settings(), scenario.sampler.settings()
    return MomentEstimator(ddof=family["ddof"], pooled=family["pooled"], variance_factor=sampler["variance_factor"])


def _mean_error(scenario: Scenario) -> Floats:
    return true_trace(scenario) * moment_curve(scenario, "mean_error", _estimator(scenario))


def _variance_ratio(scenario: Scenario) -> Floats:
    return moment_curve(scenario, "variance_ratio", _estimator(scenario))


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


def _fitted_rows(scenario: Scenario) -> Ints:
    """Training rows of every generation; fitted covariances are products of independent Wishart matrices."""
    rows = newest_rows(scenario)
    require(_estimator(scenario).variance_factor > 0 and rows.min() > scenario.source.settings()["dim"])
    return rows


def _log_determinants(scenario: Scenario, power: float, of_chi: Callable[[Floats], Floats]) -> Floats:
    """Log of a moment of det S_t / det S*: a Wishart determinant is a product of chi-squared variables with halved degrees."""
    estimator, d, rows = _estimator(scenario), scenario.source.settings()["dim"], _fitted_rows(scenario)
    halves = (rows[:, None] - np.arange(1, d + 1)) / 2
    fits = of_chi(halves).sum(axis=1) + power * d * np.log(2 / (rows - estimator.ddof))
    return np.asarray(np.cumsum(fits) + power * d * np.log(estimator.variance_factor) * np.arange(len(rows)), np.float64)


def _log_variance_ratio(scenario: Scenario) -> Floats:
    return _log_determinants(scenario, 1.0, digamma)


def _sd_ratio(scenario: Scenario) -> Floats:
    power = 0.5 / scenario.source.settings()["dim"]
    return np.exp(_log_determinants(scenario, power, lambda halves: gammaln(halves + power) - gammaln(halves)))


def _wasserstein(scenario: Scenario) -> Floats:
    """E (m - m*)^2 + E v + 1 - 2 E sd, times the true variance."""
    require(scenario.source.settings()["dim"] == 1)
    return _mean_error(scenario) + true_trace(scenario) * (_variance_ratio(scenario) + 1 - 2 * _sd_ratio(scenario))


def _kl_divergence(scenario: Scenario) -> Floats:
    log_det, rows, d = _log_variance_ratio(scenario), _fitted_rows(scenario), scenario.source.settings()["dim"]
    require(rows.min() > d + 2)
    changes = (rows - _estimator(scenario).ddof) / (rows - d - 2)  # E of an inverse Wishart matrix
    ratios = changes / np.r_[1.0, np.full(len(rows) - 1, _estimator(scenario).variance_factor)]
    steps = zip(ratios, changes * d / rows, strict=True)
    _, *distances = accumulate(steps, lambda before, step: before * step[0] + step[1], initial=0.0)
    traces = d * np.cumprod(ratios)  # of S_t^-1 S*; distances are (m_t - m*)' S_t^-1 (m_t - m*)
    return np.asarray(0.5 * (log_det + traces + distances - d), np.float64)


def _merged_variance(scenario: Scenario) -> Floats:
    """E tr S_t over its true value, if all merges are covariances, but for a chance below 4e-6 per fit.

    Singular values of n - 1 standard normal rows are within (n - 1)^1/2 +- (d^1/2 + x) but for exp(-x^2/2) on either side
    (Davidson and Szarek 2001).
    """
    estimator, d, merge = _estimator(scenario), scenario.source.settings()["dim"], cast(float, scenario.merge)
    rows = newest_rows(scenario)
    require(rows.min() > estimator.ddof)
    roots = np.sqrt(rows[1:] - 1) + np.array([[-1], [1]]) * (d**0.5 + 5)
    extremes = estimator.variance_factor * np.maximum(roots, 0) ** 2 / (rows[1:] - estimator.ddof)
    require((1 - merge + merge * extremes >= 0).all())
    changes = (rows - 1) / (rows - estimator.ddof)
    changes[1:] = 1 - merge + merge * estimator.variance_factor * changes[1:]
    return np.asarray(np.cumprod(changes), np.float64)


def _vanishing(scenario: Scenario) -> Limit | None:
    """The limit of typical variances, whose log falls by the same amount at every generation."""
    return "zero" if scenario.policy.name == "replace" and _estimator(scenario).variance_factor <= 1 else None


def _kernel_variance(scenario: Scenario) -> float:
    """Sum over columns of the variance of kernel noise, if the bandwidth does not depend on the rows."""
    bandwidth, standardize = (scenario.family.settings()[name] for name in ("bandwidth", "standardize"))
    require(not isinstance(bandwidth, str) and not standardize)
    return float(bandwidth) ** 2 * int(scenario.source.settings()["dim"])


def _second_moment(scenario: Scenario) -> Floats:
    estimator = MomentEstimator(kernel_variance=_kernel_variance(scenario) / true_trace(scenario))
    mean_error, variance_ratio = (moment_curve(scenario, name, estimator) for name in ("mean_error", "variance_ratio"))
    return true_trace(scenario) * (mean_error + variance_ratio)


def _real_share(scenario: Scenario) -> float:
    """The share a of real rows after generation 1; 0 if it varies, or if other rows are not of the newest model."""
    later = list(schedule_entries(scenario))[1:]
    masses = {round(entry.real_mass, 12) for entry in later}
    is_newest = all(take.batch == synthetic(e.t - 1) or take.batch.kind == "real" for e in later for take in e.plan.takes)
    return masses.pop() if len(masses) == 1 and is_newest else 0.0


def _limiting_second_moment(scenario: Scenario) -> Floats:
    """The second moment of a sum over k >= 0 of a (1 - a)^k times the truth with k kernels of noise: mean k = (1 - a)/a."""
    added, a = _kernel_variance(scenario), _real_share(scenario)
    require(a)
    return np.full(scenario.generations, true_trace(scenario) + added * (1 - a) / a)


def _second_moment_limit(scenario: Scenario) -> Limit | None:
    if _real_share(scenario):
        return "finite"
    return "infinite" if scenario.policy.name in ("replace", "accumulate") else None  # sums of 1 and of 1/t


_MOMENTS_SOURCE = (
    "Second moments of any policy, derived in theory/moments.py; special cases: Shumailov et al. 2023 (2305.17493) and "
    "Alemohammad et al. 2023 (2307.01850) for replace, Kazdan et al. 2025 (2410.16713) for accumulate, "
    "He, Xu, Cheng 2025 (2502.18049) for fresh"
)
_MOMENTS_CONDITIONS = "any divisor and sampler variance factor; budgets with one or two weights."
_NEWEST_CONDITIONS = "any divisor and sampler variance factor, all rows of the newest model only, more than d of them."
_KERNEL_CONDITIONS = "kernels of one given bandwidth, not standardized"

LAWS = (
    Law(
        name="moments of the mean", metric="mean_error", kind="exact", source=_MOMENTS_SOURCE, conditions=_MOMENTS_CONDITIONS,
        values=_mean_error, limit=_mean_error_limit, estimator=_estimator,
    ),
    Law(
        name="moments of the variance", metric="variance_ratio", kind="exact", source=_MOMENTS_SOURCE,
        conditions=_MOMENTS_CONDITIONS, values=_variance_ratio,
    ),
    Law(
        name="log variance under replacement", metric="log_variance_ratio", kind="exact",
        source="E log det of Wishart matrices (Bartlett 1933): sum_j digamma((n_t - j)/2) + d log(2/(n_t - ddof)) per fit",
        conditions=_NEWEST_CONDITIONS, values=_log_variance_ratio, limit=_vanishing,
    ),
    Law(
        name="standard deviation under replacement", metric="sd_ratio", kind="exact",
        source="Chi: (2/(n_t - ddof))^1/2 prod_j G((n_t - j)/2 + 1/2d)/G((n_t - j)/2); Bertrand et al. 2024 (2310.00429)",
        conditions=_NEWEST_CONDITIONS, values=_sd_ratio, limit=_vanishing,
    ),
    Law(
        name="Wasserstein distance under replacement", metric="wasserstein", kind="exact",
        source="E |m_t - m|^2 + E (sd_t - sd)^2, of Shumailov et al. 2023 (2305.17493): t/n + 2 - 2 c^t if unbiased, c: E sd_1",
        conditions=f"one dimension, {_NEWEST_CONDITIONS}", values=_wasserstein, limit=_mean_error_limit,
    ),
    Law(
        name="divergence under replacement", metric="kl_divergence", kind="exact",
        source="E S_t^-1 = (n_t - ddof)/(n_t - d - 2) E S_(t-1)^-1 (inverse Wishart), and E log det S_t",
        conditions=f"more than d + 2 rows in every fit, {_NEWEST_CONDITIONS}", values=_kl_divergence,
        # the trace grows by a factor above 1, or, with a large variance factor, log det by the same amount, at every generation
        limit=lambda scenario: "infinite" if scenario.policy.name == "replace" else None,
    ),
)  # fmt: skip

MERGE_LAWS = (
    Law(
        name="variance of merged models", metric="variance_ratio", kind="exact",
        source="S_t = (1 - m) S_(t-1) + m fit, E fit = factor (n_t - 1)/(n_t - ddof) E S_(t-1); m = -w: Neon (2510.03597)",
        conditions=f"merged models that are covariances, but for a chance below 4e-6 per fit; {_NEWEST_CONDITIONS}",
        values=_merged_variance,
    ),
)  # fmt: skip

KERNEL_LAWS = (
    Law(
        name="moments of the rows", metric="second_moment", kind="exact",
        source="Second moments of any policy with kernel noise, derived in theory/moments.py; special cases of Kazdan et al. "
            "2025 (2410.16713) and Borji 2024 (2410.12954): 1 + (t - 1) h^2 for replace, 1 + h^2 (H_t - 1) for accumulate",
        conditions=f"{_KERNEL_CONDITIONS}; budgets with one or two weights.", values=_second_moment, limit=_second_moment_limit,
    ),
    Law(
        name="smoothed mixture, at most", metric="second_moment", kind="bound",
        source="With a share a of real rows, rows tend to the mixture sum a (1-a)^k P * N(0, k h^2), geometrically and for any "
            "number of rows, as an expected kernel density is linear in its rows; Khelifa, Turner, Venkataramanan 2026 "
            "(2606.13796) for diffusion with early stopping",
        conditions=f"{_KERNEL_CONDITIONS}; the same real share at every generation, other rows from the newest model.",
        values=_limiting_second_moment, limit=_second_moment_limit,
    ),
)  # fmt: skip
