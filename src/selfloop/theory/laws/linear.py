"""Laws of regressions on Gaussian inputs: least squares, logistic and Poisson regression, and labels that feed back.

Least squares has laws of the excess risk E (w - w*)' Sigma (w - w*).
On one design X that every batch repeats, w_t - w* is X^+ applied to a mean of the noises of outcomes. So its risk is
sigma^2 E tr(Sigma (X'X)^-1) = sigma^2 d / (n - d - 1) (inverse Wishart) times the multiplier of a plain mean.

Any maximum-likelihood fit is asymptotically linear: the error of a generation is a weighted mean of the noises of outcomes,
as the error of a mean is, and one noise contributes the trace of the inverse information at the true coefficients.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
from scipy.special import ndtr

from selfloop.columns import Floats, Ints
from selfloop.snapshots import Scenario
from selfloop.theory import law
from selfloop.theory.law import Law, require
from selfloop.theory.moments import MomentEstimator
from selfloop.types import Limit

KNOWN_NOISE = MomentEstimator(known_variances=(1.0,))
MIN_ROWS_PER_GLM_COEFFICIENT = 50  # with fewer rows the curvature of the likelihood adds more than about a tenth
MAX_SQUARED_ERROR = 0.2  # larger: models are far from the truth, where the information is evaluated
MIN_SPECTRAL_WIDTH = 6.0  # of the law of ridge in numbers of eigenvalues: it is up to 10 % off there, more with fewer inputs
MIN_ROWS_PER_COEFFICIENT = 8  # of the asymptotic law, which is 3 to 8 % off there (accumulate_subsample)


def _dim(scenario: Scenario) -> int:
    return int(scenario.source.settings()["dim"])


def _real_noise(scenario: Scenario) -> float:
    return float(scenario.source.settings()["noise"])


def set_noise_levels(scenario: Scenario) -> Floats | None:
    """Standard deviation of the noise of outcomes of model 1, 2, ..., whose last one stays; None if the sampler sets none."""
    settings = scenario.sampler.settings()
    noise = 0.0 if settings["labels"] == "noiseless" else settings["noise"]
    return None if noise is None else np.atleast_1d(np.array(noise, np.float64))


def _noise_levels(scenario: Scenario) -> Floats:
    levels = set_noise_levels(scenario)
    return np.array([_real_noise(scenario)]) if levels is None else levels


def _estimator(scenario: Scenario) -> MomentEstimator:
    ratios = (_noise_levels(scenario) / _real_noise(scenario)) ** 2
    return MomentEstimator(known_variances=tuple(ratios.tolist()))


def _first_risk(scenario: Scenario) -> float:
    """Expected excess risk of generation 1."""
    d = _dim(scenario)
    return _real_noise(scenario) ** 2 * d / (scenario.n - d - 1)


def _require_least_squares(scenario: Scenario) -> None:
    require(not np.any(scenario.family.settings()["ridge"]) and _real_noise(scenario) > 0 and scenario.n > _dim(scenario) + 1)


def _multiplied_risk(scenario: Scenario) -> Floats:
    _require_least_squares(scenario)
    return _first_risk(scenario) * law.moment_curve(scenario, "mean_error_multiplier", _estimator(scenario))


def _limit(scenario: Scenario) -> Limit | None:
    """The limit of the risk: a sum over t of 1/rows with the newest rows only, of 1/t^2 for accumulate."""
    if scenario.policy.name == "accumulate":
        return "finite"  # Gerstgrasser et al. 2024 (2404.01413), theorem 2
    power = law.newest_growth(scenario)
    if power is None or not _estimator(scenario).known_variances[-1]:
        return None
    return "infinite" if power <= 1 else "finite"


def repeats_one_design(scenario: Scenario) -> bool:
    """True if every fit is on whole copies of the one fixed design."""
    return scenario.source.has_fixed_design() and all(
        entry.plan.budget is None
        and not any((take.rows or 0) % scenario.n or take.start % scenario.n for take in entry.plan.takes)
        for entry in law.schedule_entries(scenario)
    )


def _fixed_design_risk(scenario: Scenario) -> Floats:
    require(repeats_one_design(scenario))
    return _multiplied_risk(scenario)


def _require_fresh_designs(scenario: Scenario, rows: Ints) -> None:
    """Each fit has enough training rows, with fresh inputs."""
    _require_least_squares(scenario)
    require(not scenario.source.has_fixed_design() and rows.min() > _dim(scenario) + 1)


def _noise_variances(scenario: Scenario) -> Floats:
    """Variance of the noise of the outcomes in real(1), synthetic(1), synthetic(2), ..."""
    levels = np.r_[_real_noise(scenario), _noise_levels(scenario)]
    return np.asarray(levels[np.minimum(np.arange(scenario.generations), len(levels) - 1)] ** 2, np.float64)


def _newest_risk(scenario: Scenario) -> Floats:
    d, rows = _dim(scenario), law.newest_rows(scenario)
    _require_fresh_designs(scenario, rows)
    return np.asarray(np.cumsum(_noise_variances(scenario) * d / (rows - d - 1)), np.float64)


def _all_rows_risk(scenario: Scenario) -> Floats:
    d, total = _dim(scenario), law.all_rows(scenario)
    _require_fresh_designs(scenario, total)
    require(len(total) > 1)
    added = np.diff(total, prepend=0)
    return np.cumsum(_noise_variances(scenario) * d * added / total / (total - d - 1))


def _asymptotic_risk(scenario: Scenario) -> Floats:
    # A fixed design repeats its inputs: the first rows of several batches have fewer distinct inputs than rows.
    require(law.takes_whole_batches(scenario) and _fewest_rows(scenario) >= MIN_ROWS_PER_COEFFICIENT * _dim(scenario))
    return _multiplied_risk(scenario)


def _fewest_rows(scenario: Scenario) -> float:
    """Rows of the smallest training set."""
    return min(entry.trained_rows for entry in law.schedule_entries(scenario))


def _equal_variance_risk(scenario: Scenario, *, has_ridge: bool) -> Floats:
    """Risk of fits with and without ridge on fresh inputs of one variance v, each on the newest rows alone.

    In inputs of variance 1, fit t is B w_(t-1) plus noise. B has no preferred direction, so the products E w_t'w* and E |w_t|^2
    follow from E tr B / d, E tr B^2 / d and the noise that one fit adds.
    """
    d, rows = _dim(scenario), law.newest_rows(scenario)
    variances = np.unique(cast(Floats, law.true_params(scenario)["variances"]))
    ridges = [float(scenario.family.for_generation(t).settings()["ridge"]) for t in range(1, scenario.generations + 1)]
    require(not scenario.source.has_fixed_design() and len(variances) == 1 and any(ridges) == has_ridge)
    start = float(variances[0]) * d  # of |w*|^2, with w* ~ N(0, I)
    overlap, square, risks = start, start, []
    for n, ridge, noise in zip(rows, ridges, _noise_variances(scenario), strict=True):
        require(ridge or abs(n - d) > 1)  # else expectations are infinite
        penalty = ridge / float(variances[0])
        require(not ridge or d * np.sqrt((1 - d / n + penalty) ** 2 + 4 * penalty * d / n) >= MIN_SPECTRAL_WIDTH)
        of_overlap, of_square, added = _shrinkage(d, n, penalty)
        overlap, square = of_overlap * overlap, of_square * square + noise * added
        risks.append(start + square - 2 * overlap)
    return np.array(risks)


def _shrinkage(d: int, n: int, ridge: float) -> tuple[float, float, float]:
    """E tr B / d, E tr B^2 / d and E tr (S + ridge)^-2 S / n with B = (S + ridge)^-1 S, S = X'X/n, X standard normal."""
    if not ridge:  # exact: B projects on min(n, d) dimensions
        return (1.0, 1.0, d / (n - d - 1)) if n > d else (n / d, n / d, n / (d - n - 1))
    phi, b = d / n, 1 - d / n + ridge
    m = (np.sqrt(b**2 + 4 * phi * ridge) - b) / (2 * phi * ridge)  # Marchenko-Pastur: E tr (S + ridge)^-1 / d
    slope = (phi * m**2 + m) / (2 * phi * ridge * m + b)  # -dm / d ridge
    return 1 - ridge * m, 1 - 2 * ridge * m + ridge**2 * slope, phi * (m - ridge * slope)


def _least_norm_risk(scenario: Scenario) -> Floats:
    has_short_fit, ridge = _fewest_rows(scenario) <= _dim(scenario) + 1, scenario.family.settings()["ridge"]
    require(has_short_fit or ridge or not _real_noise(scenario))  # else the law of the newest batch applies
    return _equal_variance_risk(scenario, has_ridge=False)


def _accumulate_bound(scenario: Scenario) -> Floats:
    _require_least_squares(scenario)
    require(scenario.policy.name == "accumulate" and set(_noise_levels(scenario)) == {_real_noise(scenario)})
    return np.full(scenario.generations, _first_risk(scenario) * np.pi**2 / 6)


def _information(link: str, norm: float) -> tuple[float, float]:
    """Fisher information per row along the true coefficients and across them, for x ~ N(0, I) and canonical link."""
    z = np.linspace(-12, 12, 24001)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    variance = 0.25 / np.cosh(norm * z / 2) ** 2 if link == "logit" else np.exp(norm * z)  # of an outcome given x
    weight = variance * density * (z[1] - z[0])
    return float(weight @ z**2), float(weight.sum())


def _parameter_error(scenario: Scenario) -> Floats:
    source = scenario.source.settings()
    require(_fewest_rows(scenario) >= MIN_ROWS_PER_GLM_COEFFICIENT * source["dim"] and law.takes_whole_batches(scenario))
    require(source["link"] == scenario.family.settings()["link"] and scenario.sampler.settings()["labels"] == "sampled")
    along, across = _information(source["link"], source["coefficient_norm"])
    trace: float = 1 / along + (source["dim"] - 1) / across
    error = trace * law.moment_curve(scenario, "mean_error", KNOWN_NOISE)
    require(error.max() <= MAX_SQUARED_ERROR)
    return error


_SHARED = "no ridge, n > d + 1, outcomes of known noise"
_EQUAL_VARIANCE = "inputs of one variance, fresh at every generation, outcomes of known noise, rows of the newest model only"

LAWS = (
    Law(
        name="fixed design", metric="excess_risk", kind="exact",
        source="Moments of a mean; Gerstgrasser et al. 2024 (2404.01413), theorem 2; Dohmatob, Feng, Kempe 2024 (2402.07712)",
        conditions=f"{_SHARED}; fixed design, takes of whole copies of it, no budget.", values=_fixed_design_risk, limit=_limit,
        estimator=_estimator,
    ),
    Law(
        name="fresh designs, newest batch only", metric="excess_risk", kind="exact",
        source="sigma^2 d sum_i 1/(n_i - d - 1) with n_i rows at fit i: Dohmatob, Feng, Kempe 2024 (2402.07712), sizes unequal",
        conditions=f"{_SHARED}; fresh inputs, all rows of the newest model only.", values=_newest_risk, limit=_limit,
    ),
    Law(
        name="least norm on fresh designs", metric="excess_risk", kind="exact",
        source="E |w*|^2 (1 - prod n_i/d), as projections keep n_i/d of squares, + s^2 n/(d - n - 1) per fit (inverse Wishart)",
        conditions=f"{_EQUAL_VARIANCE}; no ridge, some fit with n < d - 1, no n from d - 1 to d + 1.", values=_least_norm_risk,
    ),
    Law(
        name="ridge on fresh designs", metric="excess_risk", kind="asymptotic",
        source="Dohmatob, Feng, Kempe 2024 (2402.07712), for any order of ridges; exact as d and n grow at one ratio",
        conditions=f"{_EQUAL_VARIANCE}; a ridge l (over that variance) at some generation, there "
            f"d ((1 - d/n + l)^2 + 4 l d/n)^1/2 >= {MIN_SPECTRAL_WIDTH:g}.",
        values=partial(_equal_variance_risk, has_ridge=True),
    ),
    Law(
        name="fresh designs, every batch so far", metric="excess_risk", kind="exact",
        source="s^2 d sum (n_i/N_i)/(N_i - d - 1), N_i rows so far: Gerstgrasser et al. 2024 (2404.01413), proof of theorem 2",
        conditions=f"{_SHARED}; fresh inputs, all real(1) and synthetic rows so far with equal weights.", values=_all_rows_risk,
        limit=_limit,
    ),
    Law(
        name="large-n limit", metric="excess_risk", kind="asymptotic",
        source="First risk times the multiplier of a mean; accumulate_subsample: to pi^2/2 - 2, Kazdan et al. 2025, 2410.16713",
        conditions=f"{_SHARED}; every fit on {MIN_ROWS_PER_COEFFICIENT} d rows or more, of whole batches or under a budget "
            "with one or two weights.",
        values=_asymptotic_risk,
    ),
    Law(
        name="pi^2/6 of the first error", metric="excess_risk", kind="bound",
        source="sigma^2 d/(n - d - 1) pi^2/6: Gerstgrasser et al. 2024 (2404.01413), theorem 2",
        conditions=f"{_SHARED}; policy accumulate, the same noise at every generation.", values=_accumulate_bound, limit=_limit,
    ),
)  # fmt: skip

GLM_LAWS = (
    Law(
        name="large-n limit", metric="parameter_error", kind="asymptotic",
        source="First error tr(information^-1)/n times the multiplier of a mean: Dey, Donoho 2024 (2410.22812)",
        conditions=f"one link for both, sampled labels, {MIN_ROWS_PER_GLM_COEFFICIENT} rows per coefficient or more in every "
            f"fit, squared error up to {MAX_SQUARED_ERROR:g}, whole batches or budgets with one or two weights.",
        values=_parameter_error,
    ),
)  # fmt: skip


def feedback_multipliers(scenario: Scenario) -> Floats:
    """Bias of the model of every generation over that of the first, at most, if each fit adds that bias to its training rows.

    c_t = 1 + sum of the training mass of synthetic(k) times c_k: theorem 1 of Taori and Hashimoto 2022 (2209.03942) for
    `accumulate_real`, here for any policy. With m real and k synthetic rows per generation the limit is (m + k)/m.
    """
    return 1 + law.population_models(scenario, np.zeros(1), lambda bias: bias + 1)[:, 0]


def _predicted_share(scenario: Scenario) -> Floats:
    source = scenario.source.settings()
    share, distance = source["share"], source["distance"]
    require(scenario.sampler.settings()["labels"] == "argmax" and scenario.family.settings()["link"] == "logit")
    require(share < 0.5 and _fewest_rows(scenario) >= MIN_ROWS_PER_GLM_COEFFICIENT * (source["dim"] + 1))
    border = np.log(1 / share - 1) / distance  # on the first coordinate, where both outcomes are equally probable
    predicted = share * ndtr(distance / 2 - border) + (1 - share) * ndtr(-distance / 2 - border)
    return np.asarray(np.maximum(share - (share - predicted) * feedback_multipliers(scenario), 0), np.float64)


FEEDBACK_LAWS = (
    Law(
        name="feedback, at least", metric="predicted_share", kind="bound",
        source="Share minus first bias (normal tails) times c_t: Taori and Hashimoto 2022 (2209.03942), theorem 1",
        conditions=f"rare outcome 1, link logit, labels by argmax, {MIN_ROWS_PER_GLM_COEFFICIENT} rows per coefficient or "
            "more.",
        values=_predicted_share,
    ),
)  # fmt: skip
