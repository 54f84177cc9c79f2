"""The law of kernel density estimates of one bandwidth: the kernels of each generation widen the rows of the next one."""

from __future__ import annotations

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, true_trace
from selfloop.theory.moments import MomentEstimator


def _second_moment(scenario: Scenario) -> Floats | None:
    bandwidth, dim = scenario.family.settings()["bandwidth"], scenario.source.settings()["dim"]
    if isinstance(bandwidth, str):
        return None
    estimator = MomentEstimator(kernel_variance=float(bandwidth) ** 2 * dim / true_trace(scenario))
    mean_error, variance_ratio = (moment_curve(scenario, name, estimator) for name in ("mean_error", "variance_ratio"))
    return None if mean_error is None or variance_ratio is None else true_trace(scenario) * (mean_error + variance_ratio)


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
        values=_second_moment,
    ),
)
