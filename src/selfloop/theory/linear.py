"""Laws of least squares on Gaussian inputs: the excess risk E (w - w*)' Sigma (w - w*).

On one design X that every batch repeats, w_t - w* is X^+ applied to a mean of label noises, so its risk is
sigma^2 E tr(Sigma (X'X)^-1) = sigma^2 d / (n - d - 1) (inverse Wishart) times the multiplier of a plain mean.
"""

from __future__ import annotations

import numpy as np

from selfloop.component import Setting
from selfloop.theory.law import Law, all_rows, newest_rows, stages, takes_whole_batches
from selfloop.theory.moments import Learner, has_law, moment_curves
from selfloop.types import Floats

FEWEST_ROWS_PER_COEFFICIENT = 8  # of an asymptotic law: it is 3 to 8 % off there (accumulate_subsample)


def _dim(setting: Setting) -> int:
    return int(getattr(setting.source, "dim", 1))


def _real_noise(setting: Setting) -> float:
    return float(getattr(setting.source, "noise", 1.0))


def _levels(setting: Setting) -> Floats:
    """Variance of the labels of each model's rows, over that of real labels; the last one stays."""
    noise = getattr(setting.sampler, "noise", None)
    levels = noise if isinstance(noise, tuple) else (_real_noise(setting) if noise is None else noise,)
    return (np.array(levels, np.float64) / _real_noise(setting)) ** 2


def _learner(setting: Setting) -> Learner:
    return Learner(known=tuple(_levels(setting).tolist()))


def _base(setting: Setting) -> float:
    """Expected excess risk of the first fit."""
    d = _dim(setting)
    return _real_noise(setting) ** 2 * d / (setting.n - d - 1)


def _least_squares(setting: Setting) -> bool:
    plain = (setting.family.name, setting.source.name) == ("linear", "linear") and not getattr(setting.family, "ridge", 0.0)
    return plain and _real_noise(setting) > 0 and setting.n > _dim(setting) + 1


def _copies(setting: Setting) -> bool:
    """Does every fit see whole copies of the one fixed design?"""
    whole = all(
        stage.plan.budget is None and not any((take.rows or 0) % setting.n for take in stage.plan.takes)
        for stage in stages(setting)
    )
    return setting.source.has_fixed_design() and whole


def _fresh(setting: Setting) -> bool:
    return not setting.source.has_fixed_design()


def _enough(setting: Setting, rows: list[int] | None) -> bool:
    return rows is not None and min(rows) > _dim(setting) + 1


def _many_rows(setting: Setting) -> bool:
    fewest = min(stage.trained_rows for stage in stages(setting))
    # the first rows of a batch of a fixed design are the same inputs for every batch: fewer than they seem
    return takes_whole_batches(setting) and fewest >= FEWEST_ROWS_PER_COEFFICIENT * _dim(setting)


def _multiplied(setting: Setting) -> Floats:
    curves = moment_curves(setting.policy, setting.n, setting.generations, _learner(setting))
    return _base(setting) * curves["mean_error_multiplier"]


def _noise_variances(setting: Setting) -> Floats:
    """Variance of the labels that come into being with real(1), synthetic(1), synthetic(2), ..."""
    levels = np.r_[1.0, _levels(setting)]
    last = len(levels) - 1
    return np.asarray(_real_noise(setting) ** 2 * levels[np.minimum(np.arange(setting.generations), last)], np.float64)


def _newest_risk(setting: Setting) -> Floats:
    d, rows = _dim(setting), np.array(newest_rows(setting))
    return np.asarray(np.cumsum(_noise_variances(setting) * d / (rows - d - 1)), np.float64)


def _total_risk(setting: Setting) -> Floats:
    d, total = _dim(setting), np.array(all_rows(setting))
    added = np.diff(total, prepend=0)
    return np.asarray(np.cumsum(_noise_variances(setting) * d * added / total / (total - d - 1)), np.float64)


def _newest(setting: Setting) -> bool:
    return _least_squares(setting) and _fresh(setting) and _enough(setting, newest_rows(setting))


def _total(setting: Setting) -> bool:
    return _least_squares(setting) and _fresh(setting) and setting.generations > 1 and _enough(setting, all_rows(setting))


def _asymptotic(setting: Setting) -> bool:
    if not _least_squares(setting) or _copies(setting) or _newest(setting) or _total(setting):
        return False
    return _many_rows(setting) and has_law(setting.policy, setting.n, setting.generations, _learner(setting))


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
        holds=lambda setting: _least_squares(setting) and _copies(setting),
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
        holds=lambda setting: (
            _least_squares(setting) and setting.policy.name == "accumulate" and bool((_levels(setting) == 1).all())
        ),
        values=lambda setting: np.full(setting.generations, _base(setting) * np.pi**2 / 6),
    ),
)
