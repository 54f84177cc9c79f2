"""The law of kernel density estimates of one bandwidth: each generation's kernels widen the next one's rows."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.component import Context, Setting
from selfloop.rng import Stream
from selfloop.theory.law import Law
from selfloop.theory.moments import Learner, has_law, moment_curves
from selfloop.types import Floats


def _trace(setting: Setting) -> float:
    return float(np.trace(cast(Floats, setting.source.truth(Context(Stream(("law",))))["covariance"])))


def _learner(setting: Setting) -> Learner:
    bandwidth, dim = getattr(setting.family, "bandwidth", 0.0), int(getattr(setting.source, "dim", 1))
    return Learner(kernel=float(bandwidth) ** 2 * dim / _trace(setting))


def _holds(setting: Setting) -> bool:
    if (setting.family.name, setting.source.name) != ("kde", "gaussian"):
        return False
    fixed = not isinstance(getattr(setting.family, "bandwidth", None), str)
    return fixed and has_law(setting.policy, setting.n, setting.generations, _learner(setting))


def _second_moment(setting: Setting) -> Floats:
    curves = moment_curves(setting.policy, setting.n, setting.generations, _learner(setting))
    return _trace(setting) * (curves["mean_error"] + curves["variance_ratio"])


LAWS = (
    Law(
        name="moments of the rows",
        metric="second_moment",
        kind="exact",
        source=(
            "Second moments of any policy with kernel noise, derived in theory/moments.py; special cases of Kazdan et al. 2025 "
            "(2410.16713) and Borji 2024 (2410.12954): 1 + (t - 1) h^2 for replace, 1 + h^2 (H_t - 1) for accumulate"
        ),
        conditions="Gaussian source, kernels of one given bandwidth, fitted from scratch; budgets with one or two weights.",
        holds=_holds,
        values=_second_moment,
    ),
)
