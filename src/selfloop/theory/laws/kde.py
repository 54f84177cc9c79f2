"""The law of kernel density estimates of one bandwidth: the kernels of each generation widen the rows of the next one."""

from __future__ import annotations

from typing import cast

import numpy as np

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, has_exact_moments, true_params
from selfloop.theory.moments import MomentEstimator, moment_curves


def _true_trace(scenario: Scenario) -> float:
    return float(np.trace(cast(Floats, true_params(scenario)["covariance"])))


def _estimator(scenario: Scenario) -> MomentEstimator:
    bandwidth, dim = scenario.family.settings()["bandwidth"], scenario.source.settings()["dim"]
    return MomentEstimator(kernel_variance=float(bandwidth) ** 2 * dim / _true_trace(scenario))


def _has_one_bandwidth(scenario: Scenario) -> bool:
    if (scenario.family.name, scenario.source.name) != ("kde", "gaussian"):
        return False
    is_number = not isinstance(scenario.family.settings()["bandwidth"], str)
    return is_number and has_exact_moments(scenario, _estimator(scenario))


def _second_moment(scenario: Scenario) -> Floats:
    curves = moment_curves(scenario.policy, scenario.n, scenario.generations, _estimator(scenario))
    return _true_trace(scenario) * (curves["mean_error"] + curves["variance_ratio"])


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
        is_met=_has_one_bandwidth,
        values=_second_moment,
    ),
)
