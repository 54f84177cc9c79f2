"""Law of logistic and Poisson regression on Gaussian inputs, for many rows.

A maximum-likelihood fit is asymptotically linear: the error of a generation is a weighted mean of the noises of outcomes,
as the error of a mean is, and one noise contributes the trace of the inverse information at the true coefficients.
"""

from __future__ import annotations

import numpy as np

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Law, moment_curve, schedule_entries, takes_whole_batches
from selfloop.theory.moments import MomentEstimator

KNOWN_NOISE = MomentEstimator(known_variances=(1.0,))
MIN_ROWS_PER_COEFFICIENT = 50  # with fewer rows the curvature of the likelihood adds more than about a tenth
MAX_SQUARED_ERROR = 0.2  # larger: models are far from the truth, where the information is evaluated


def _information(link: str, norm: float) -> tuple[float, float]:
    """Fisher information per row along the true coefficients and across them, for x ~ N(0, I) and canonical link."""
    z = np.linspace(-12, 12, 24001)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    variance = 0.25 / np.cosh(norm * z / 2) ** 2 if link == "logit" else np.exp(norm * z)  # of an outcome given x
    weight = variance * density * (z[1] - z[0])
    return float(weight @ z**2), float(weight.sum())


def _parameter_error(scenario: Scenario) -> Floats | None:
    source = scenario.source.settings()
    has_many_rows = min(entry.trained_rows for entry in schedule_entries(scenario)) >= MIN_ROWS_PER_COEFFICIENT * source["dim"]
    has_one_link = source["link"] == scenario.family.settings()["link"]
    if not has_many_rows or not has_one_link or not takes_whole_batches(scenario):
        return None
    along, across = _information(source["link"], source["coefficient_norm"])
    trace: float = 1 / along + (source["dim"] - 1) / across
    curve = moment_curve(scenario, "mean_error", KNOWN_NOISE)
    return trace * curve if curve is not None and (trace * curve).max() <= MAX_SQUARED_ERROR else None


LAWS = (
    Law(
        name="large-n limit",
        metric="parameter_error",
        kind="asymptotic",
        source=(
            "Dey, Donoho 2024 (2410.22812): the multiplier of a mean holds for every asymptotically linear estimator; "
            "first error tr(information^-1)/n"
        ),
        conditions=(
            f"Gaussian inputs, one link for source and family, {MIN_ROWS_PER_COEFFICIENT} rows per coefficient or more in "
            f"every fit, squared error up to {MAX_SQUARED_ERROR:g}, fitted from scratch, budgets with one or two weights."
        ),
        values=_parameter_error,
    ),
)
