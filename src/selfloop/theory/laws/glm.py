"""Law of logistic and Poisson regression on Gaussian inputs, for many rows.

A maximum-likelihood fit is asymptotically linear: each generation's error is a weighted mean of label noises as in a
mean, and one noise contributes the trace of the inverse information at the true coefficients.
"""

from __future__ import annotations

import numpy as np

from selfloop.component import Scenario
from selfloop.theory.law import Law, stages, takes_whole_batches
from selfloop.theory.moments import MomentEstimator, has_law, moment_curves
from selfloop.types import Floats

KNOWN = MomentEstimator(known=(1.0,))
FEWEST_ROWS_PER_COEFFICIENT = 50  # below, the curvature of the likelihood adds more than about a tenth
LARGEST_ERROR = 0.2  # squared; beyond, models are far from the truth, where the information was taken


def _information(link: str, norm: float) -> tuple[float, float]:
    """Fisher information per row along the true coefficients and across them, for x ~ N(0, I) and canonical link."""
    z = np.linspace(-12, 12, 24001)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    variance = 0.25 / np.cosh(norm * z / 2) ** 2 if link == "logit" else np.exp(norm * z)  # of an outcome given x
    weight = variance * density * (z[1] - z[0])
    return float(weight @ z**2), float(weight.sum())


def _parameter_error(scenario: Scenario) -> Floats:
    source = scenario.source
    along, across = _information(getattr(source, "link", ""), float(getattr(source, "norm", 0.0)))
    trace = 1 / along + (int(getattr(source, "dim", 1)) - 1) / across
    return trace * moment_curves(scenario.policy, scenario.n, scenario.generations, KNOWN)["mean_error"]


def _holds(scenario: Scenario) -> bool:
    source, family = scenario.source, scenario.family
    links = {getattr(source, "link", None), getattr(family, "link", None)}
    if (family.name, source.name) != ("glm", "logistic") or len(links) > 1:
        return False
    fewest = min(stage.trained_rows for stage in stages(scenario))
    enough = fewest >= FEWEST_ROWS_PER_COEFFICIENT * int(getattr(source, "dim", 1))
    known = has_law(scenario.policy, scenario.n, scenario.generations, KNOWN)
    return takes_whole_batches(scenario) and enough and known and bool(_parameter_error(scenario).max() <= LARGEST_ERROR)


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
            f"Gaussian inputs, one link for source and family, {FEWEST_ROWS_PER_COEFFICIENT} rows per coefficient or more in "
            f"every fit, squared error up to {LARGEST_ERROR:g}, fitted from scratch, budgets with one or two weights."
        ),
        holds=_holds,
        values=_parameter_error,
    ),
)
