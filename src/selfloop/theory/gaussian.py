"""Laws of normal distributions fitted by mean and covariance."""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy.special import digamma

from selfloop.component import Context, Setting
from selfloop.rng import Stream
from selfloop.theory.law import Law, newest_rows
from selfloop.theory.moments import Learner, has_law, moment_curves
from selfloop.types import Floats


def _learner(setting: Setting) -> Learner:
    family = setting.family
    factor = float(getattr(setting.sampler, "variance_factor", 1.0))
    return Learner(ddof=int(getattr(family, "ddof", 0)), pooled=bool(getattr(family, "pooled", True)), variance_factor=factor)


def _holds(setting: Setting) -> bool:
    names = (setting.family.name, setting.source.name)
    return names == ("gaussian", "gaussian") and has_law(setting.policy, setting.n, setting.generations, _learner(setting))


def _moment(setting: Setting, metric: str) -> Floats:
    return moment_curves(setting.policy, setting.n, setting.generations, _learner(setting))[metric]


def _mean_error(setting: Setting) -> Floats:
    covariance = cast(Floats, setting.source.truth(Context(Stream(("law",))))["covariance"])
    return float(np.trace(covariance)) * _moment(setting, "mean_error")


def _rows(setting: Setting) -> list[int] | None:
    names = (setting.family.name, setting.source.name)
    return newest_rows(setting) if names == ("gaussian", "gaussian") and _learner(setting).variance_factor > 0 else None


def _log_variance(setting: Setting) -> Floats:
    learner, rows = _learner(setting), np.array(_rows(setting), np.float64)
    d = int(getattr(setting.source, "dim", 1))
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
        values=lambda setting: _moment(setting, "variance_ratio"),
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
        holds=lambda setting: min(_rows(setting) or [0]) > int(getattr(setting.source, "dim", 1)),
        values=_log_variance,
    ),
)
