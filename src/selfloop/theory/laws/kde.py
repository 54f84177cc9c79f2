"""The law of kernel density estimates of one bandwidth: each generation's kernels widen the next one's rows."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.component import Context, Scenario
from selfloop.rng import RandomStream
from selfloop.theory.law import Law
from selfloop.theory.moments import MomentEstimator, has_law, moment_curves
from selfloop.types import Floats


def _trace(scenario: Scenario) -> float:
    return float(np.trace(cast(Floats, scenario.source.truth(Context(RandomStream(("law",))))["covariance"])))


def _learner(scenario: Scenario) -> MomentEstimator:
    bandwidth, dim = getattr(scenario.family, "bandwidth", 0.0), int(getattr(scenario.source, "dim", 1))
    return MomentEstimator(kernel=float(bandwidth) ** 2 * dim / _trace(scenario))


def _holds(scenario: Scenario) -> bool:
    if (scenario.family.name, scenario.source.name) != ("kde", "gaussian"):
        return False
    fixed = not isinstance(getattr(scenario.family, "bandwidth", None), str)
    return fixed and has_law(scenario.policy, scenario.n, scenario.generations, _learner(scenario))


def _second_moment(scenario: Scenario) -> Floats:
    curves = moment_curves(scenario.policy, scenario.n, scenario.generations, _learner(scenario))
    return _trace(scenario) * (curves["mean_error"] + curves["variance_ratio"])


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
