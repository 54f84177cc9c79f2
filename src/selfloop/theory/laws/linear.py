"""Laws of least squares on Gaussian inputs: the excess risk E (w - w*)' Sigma (w - w*).

On one design X that every batch repeats, w_t - w* is X^+ applied to a mean of label noises, so its risk is
sigma^2 E tr(Sigma (X'X)^-1) = sigma^2 d / (n - d - 1) (inverse Wishart) times the multiplier of a plain mean.
"""

from __future__ import annotations

import numpy as np

from selfloop.component import Scenario
from selfloop.theory.law import Law, all_rows, newest_rows, stages, takes_whole_batches
from selfloop.theory.moments import MomentEstimator, has_law, moment_curves
from selfloop.types import Floats

FEWEST_ROWS_PER_COEFFICIENT = 8  # of an asymptotic law: it is 3 to 8 % off there (accumulate_subsample)


def _dim(scenario: Scenario) -> int:
    return int(getattr(scenario.source, "dim", 1))


def _real_noise(scenario: Scenario) -> float:
    return float(getattr(scenario.source, "noise", 1.0))


def _levels(scenario: Scenario) -> Floats:
    """Variance of the labels of each model's rows, over that of real labels; the last one stays."""
    noise = getattr(scenario.sampler, "noise", None)
    levels = noise if isinstance(noise, tuple) else (_real_noise(scenario) if noise is None else noise,)
    return (np.array(levels, np.float64) / _real_noise(scenario)) ** 2


def _learner(scenario: Scenario) -> MomentEstimator:
    return MomentEstimator(known=tuple(_levels(scenario).tolist()))


def _base(scenario: Scenario) -> float:
    """Expected excess risk of the first fit."""
    d = _dim(scenario)
    return _real_noise(scenario) ** 2 * d / (scenario.n - d - 1)


def _least_squares(scenario: Scenario) -> bool:
    plain = (scenario.family.name, scenario.source.name) == ("linear", "linear") and not getattr(scenario.family, "ridge", 0.0)
    return plain and _real_noise(scenario) > 0 and scenario.n > _dim(scenario) + 1


def _copies(scenario: Scenario) -> bool:
    """Does every fit see whole copies of the one fixed design?"""
    whole = all(
        stage.plan.budget is None and not any((take.rows or 0) % scenario.n for take in stage.plan.takes)
        for stage in stages(scenario)
    )
    return scenario.source.has_fixed_design() and whole


def _fresh(scenario: Scenario) -> bool:
    return not scenario.source.has_fixed_design()


def _enough(scenario: Scenario, rows: list[int] | None) -> bool:
    return rows is not None and min(rows) > _dim(scenario) + 1


def _many_rows(scenario: Scenario) -> bool:
    fewest = min(stage.trained_rows for stage in stages(scenario))
    # the first rows of a batch of a fixed design are the same inputs for every batch: fewer than they seem
    return takes_whole_batches(scenario) and fewest >= FEWEST_ROWS_PER_COEFFICIENT * _dim(scenario)


def _multiplied(scenario: Scenario) -> Floats:
    curves = moment_curves(scenario.policy, scenario.n, scenario.generations, _learner(scenario))
    return _base(scenario) * curves["mean_error_multiplier"]


def _noise_variances(scenario: Scenario) -> Floats:
    """Variance of the labels that come into being with real(1), synthetic(1), synthetic(2), ..."""
    levels = np.r_[1.0, _levels(scenario)]
    last = len(levels) - 1
    return np.asarray(_real_noise(scenario) ** 2 * levels[np.minimum(np.arange(scenario.generations), last)], np.float64)


def _newest_risk(scenario: Scenario) -> Floats:
    d, rows = _dim(scenario), np.array(newest_rows(scenario))
    return np.asarray(np.cumsum(_noise_variances(scenario) * d / (rows - d - 1)), np.float64)


def _total_risk(scenario: Scenario) -> Floats:
    d, total = _dim(scenario), np.array(all_rows(scenario))
    added = np.diff(total, prepend=0)
    return np.asarray(np.cumsum(_noise_variances(scenario) * d * added / total / (total - d - 1)), np.float64)


def _newest(scenario: Scenario) -> bool:
    return _least_squares(scenario) and _fresh(scenario) and _enough(scenario, newest_rows(scenario))


def _total(scenario: Scenario) -> bool:
    return _least_squares(scenario) and _fresh(scenario) and scenario.generations > 1 and _enough(scenario, all_rows(scenario))


def _asymptotic(scenario: Scenario) -> bool:
    if not _least_squares(scenario) or _copies(scenario) or _newest(scenario) or _total(scenario):
        return False
    return _many_rows(scenario) and has_law(scenario.policy, scenario.n, scenario.generations, _learner(scenario))


_SAMPLED = "Gaussian inputs, least squares without ridge, n > d + 1, labels of known noise, fitted from scratch"

LAWS = (
    Law(
        name="fixed design",
        metric="excess_risk",
        kind="exact",
        source=(
            "Gerstgrasser et al. 2024 (2404.01413), theorem 2, for accumulate; Dohmatob, Feng, Kempe 2024 (2402.07712) for "
            "replace; any other policy by the moments of a mean with known noise"
        ),
        conditions=f"{_SAMPLED}; fixed design, takes of whole copies of it, no budget.",
        holds=lambda scenario: _least_squares(scenario) and _copies(scenario),
        values=_multiplied,
    ),
    Law(
        name="fresh designs, newest batch only",
        metric="excess_risk",
        kind="exact",
        source="sigma^2 d sum_i 1/(n_i - d - 1) with n_i rows at fit i: Dohmatob, Feng, Kempe 2024 (2402.07712), sizes unequal",
        conditions=f"{_SAMPLED}; inputs drawn anew, all rows of the newest model only.",
        holds=_newest,
        values=_newest_risk,
    ),
    Law(
        name="fresh designs, every batch so far",
        metric="excess_risk",
        kind="exact",
        source=(
            "sigma^2 d sum_i (n_i/N_i)/(N_i - d - 1), N_i the rows so far: w_i = w_(i-1) + G_i^-1 X_i'E_i with G_i Wishart, "
            "as in the proof of Gerstgrasser et al. 2024 (2404.01413), theorem 2"
        ),
        conditions=f"{_SAMPLED}; inputs drawn anew, all real(1) and synthetic rows so far with equal weights.",
        holds=_total,
        values=_total_risk,
    ),
    Law(
        name="large-n limit",
        metric="excess_risk",
        kind="asymptotic",
        source=(
            "First risk times the multiplier of a mean; for accumulate_subsample V' = V + (2 - 1/t)/(t+1)^2, V + 1 - 1/t, "
            "limit pi^2/2 - 2 (derived from Kazdan et al. 2025, 2410.16713)"
        ),
        conditions=(
            f"{_SAMPLED}; every fit on {FEWEST_ROWS_PER_COEFFICIENT} d rows or more, of whole batches or under a budget with "
            "one or two weights."
        ),
        holds=_asymptotic,
        values=_multiplied,
    ),
    Law(
        name="pi^2/6 of the first error",
        metric="excess_risk",
        kind="bound",
        source="sigma^2 d/(n - d - 1) pi^2/6: Gerstgrasser et al. 2024 (2404.01413), theorem 2",
        conditions=f"{_SAMPLED}; policy accumulate, the same noise at every generation.",
        holds=lambda scenario: (
            _least_squares(scenario) and scenario.policy.name == "accumulate" and bool((_levels(scenario) == 1).all())
        ),
        values=lambda scenario: np.full(scenario.generations, _base(scenario) * np.pi**2 / 6),
    ),
)
