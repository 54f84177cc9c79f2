"""Laws of regressions given the initial rows, for every policy on whole copies of one fixed design.

Fits that are linear in the outcomes have fitted values U diag(a_t) U'y on the design, with the eigenvectors U of its Gram
matrix per row, the eigenvalues e and a_t = e / (e + ridge of generation t), 1 or 0 without a ridge. The outcomes of a synthetic
batch are the fitted values of its model plus independent noise. So every generation is a linear function of the real outcomes
and of those noises, one number per eigenvector, and its mean and variance follow. Special cases: t s^2 tr((X'X)^-1 Sigma) for
replace and s^2 tr((X'X)^-1 Sigma) sum 1/i^2 for accumulate (Gerstgrasser et al. 2024, 2404.01413, theorem 2, given X), and
(e / (e + c))^t per eigenvector for self-distillation (Mobahi, Farajtabar, Bartlett 2020, 2002.05715, with one c).
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import NamedTuple, cast

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.columns import Columns, Floats, Params
from selfloop.component import Policy
from selfloop.engine.ensemble import SeedBlock
from selfloop.protocols import SupportsDesignBasis
from selfloop.snapshots import Scenario
from selfloop.spec.point import Point
from selfloop.store.identity import package_of
from selfloop.theory.law import UnmetConditionError, newest_rows, require, schedule_entries, takes_whole_batches
from selfloop.theory.laws import LawCurve, law_curves
from selfloop.theory.laws.linear import repeats_one_design, set_noise_levels
from selfloop.types import real

MAX_NUMBERS = 20_000_000  # coefficients of all generations and seeds, 160 MB
MAX_OPERATIONS = 4_000_000_000  # of all decompositions: a few seconds
METRICS = ("excess_risk", "squared_error")
SOURCE = "Fits are linear in outcomes; Gerstgrasser et al. 2024 (2404.01413), theorem 2, X given; Mobahi 2020 (2002.05715)"
CONDITIONS = (
    "Mean over the seeds of the run, given their inputs and held-out rows (and their initial outcomes, if the truth of the "
    "source is unknown); fixed design, whole batches of whole copies of it, no budget, outcomes of known noise (or that of the "
    "fit: least squares on the newest rows), fitted from scratch."
)


class DesignMoments(NamedTuple):
    """Fitted values per generation, seed and eigenvector: (generations, seeds, r)."""

    mean: Floats
    variance: Floats


def point_laws(point: Point, policy: Policy) -> list[LawCurve]:
    """The curves of all laws for one policy of a point: those of its scenario, and for other metrics those given its rows."""
    scenario, spec = point.spec.scenario(policy, point.n), point.spec
    curves = law_curves(scenario)
    known = {curve.metric for curve in curves if curve.kind == "exact"}
    metrics = [metric.name for metric in spec.metrics if metric.name in METRICS and metric.name not in known]
    if not metrics or not _applies(scenario) or len(spec.seeds) * point.n**3 > MAX_OPERATIONS:
        return curves
    block = SeedBlock.of_point(point, spec.seeds, draws_rows=True)
    # Warnings of the source were given when the run drew its rows. One thread is fastest for many small matrices.
    with warnings.catch_warnings(action="ignore"), threadpool_limits(1), suppress(UnmetConditionError):
        values = design_curves(scenario, block.draw(point.holdout, point.n), block.held_out(), block.truth())
        names = [name for name in metrics if name in values]
        curves += [LawCurve("given the design", x, "exact", SOURCE, CONDITIONS, values[x].mean(axis=0)) for x in names]
    return curves


def design_curves(scenario: Scenario, initial: Columns, holdout: Columns, truth: Params) -> dict[str, Floats]:
    """Expected excess risk and squared error on the holdout given the rows, (seeds, generations).

    Rows and truth have a leading seeds axis. With known true coefficients and noise, the expectation is over all outcomes
    but those of the holdout; otherwise the initial outcomes are given too. UnmetConditionError if the noise is unknown.
    """
    family = cast(SupportsDesignBasis, scenario.family)
    x, y = np.asarray(initial["x"], np.float64), np.asarray(initial["y"], np.float64)
    knows_truth = {"coefficients", "variances", "noise"} <= set(truth)
    real_noise = cast(Floats, truth["noise"]) if knows_truth else np.zeros(len(x))
    labels = (x @ cast(Floats, truth["coefficients"])[..., None])[..., 0] if knows_truth else y
    held_out = np.asarray(holdout["x"], np.float64) if holdout else x[:, :0]
    unit_vectors = np.broadcast_to(np.eye(x.shape[2]), (len(x), *[x.shape[2]] * 2))  # predictions there are coefficients
    values, vectors, at = family.design_basis(x, np.concatenate([held_out, unit_vectors], axis=1))
    start = (vectors.mT @ labels[..., None])[..., 0]
    noise = _noise_variances(scenario, y, vectors, real_noise if knows_truth else None)
    require(scenario.generations**2 * values.size <= MAX_NUMBERS)
    moments = design_moments(scenario, values, start, noise)
    curves = {}
    if knows_truth and scenario.family.name == "linear":
        scale = np.sqrt(cast(Floats, truth["variances"]))
        target = scale * cast(Floats, truth["coefficients"])
        curves["excess_risk"] = _squared_error(moments, scale[..., None] * at[:, held_out.shape[1] :], target).sum(-1)
    if holdout:
        target = np.asarray(holdout["y"], np.float64)
        curves["squared_error"] = _squared_error(moments, at[:, : held_out.shape[1]], target).mean(-1)
    return {name: curve.T for name, curve in curves.items()}


def design_moments(scenario: Scenario, values: Floats, start: Floats, noise: Floats) -> DesignMoments:
    """Mean and variance of the fitted values of every generation, in the coordinates of the eigenvectors.

    `values` are the eigenvalues of the Gram matrix per row, `start` the coordinates of the expected real outcomes (seeds, r);
    `noise` the variances of the outcomes of real rows and of rows of model 1, 2, ... (generations, seeds).
    """
    entries = list(schedule_entries(scenario))
    batches = sorted({take.batch for entry in entries for take in entry.plan.takes}, key=str)
    signals = np.empty((len(entries), *values.shape))
    coefficients = np.zeros((len(entries), len(batches), *values.shape))  # of the mean noise of each batch
    copies = np.array([entries[0].available[batch] // scenario.n for batch in batches])
    variances = noise[[0 if batch.kind == "real" else batch.born for batch in batches]] / copies[:, None]
    for t, entry in enumerate(entries):
        ridge = float(scenario.family.for_generation(t + 1).settings()["ridge"])
        gain = np.divide(values, values + ridge, out=np.zeros_like(values), where=values > 0)
        signals[t] = 0
        for take, share in zip(entry.plan.takes, entry.masses(), strict=True):
            if take.batch.kind == "synthetic":
                signals[t] += share * signals[take.batch.born - 1]
                coefficients[t] += share * coefficients[take.batch.born - 1]
            else:
                signals[t] += share
            coefficients[t, batches.index(take.batch)] += share
        signals[t] *= gain
        coefficients[t] *= gain
    return DesignMoments(signals * start, np.einsum("tbsr,bs->tsr", coefficients**2, variances))


def _applies(scenario: Scenario) -> bool:
    """True if every fit is linear in the outcomes of whole batches of whole copies of one fixed design."""
    built_in = all(package_of(type(component)) == "selfloop" for component in (scenario.family, scenario.source))
    from_scratch = scenario.init_from == "scratch" and scenario.merge is None
    if not built_in or scenario.curators or not from_scratch or not isinstance(scenario.family, SupportsDesignBasis):
        return False
    kinds = {take.batch.kind for entry in schedule_entries(scenario) for take in entry.plan.takes}
    return kinds <= {"real", "synthetic"} and takes_whole_batches(scenario) and repeats_one_design(scenario)


def _noise_variances(scenario: Scenario, y: Floats, vectors: Floats, real_noise: Floats | None) -> Floats:
    """Variance of the noise of outcomes of real rows and of rows of model 1, 2, ..., (generations, seeds).

    Without known noise, least squares on the newest rows alone has the residual variance of generation 1 in expectation.
    """
    takes = [take for entry in schedule_entries(scenario) for take in entry.plan.takes]
    require(real_noise is not None or all(take.batch.kind != "real" or take.batch == real(1) for take in takes))
    levels, shape = set_noise_levels(scenario), (scenario.generations, len(y))
    variances = np.zeros(shape) if real_noise is None else np.tile(real_noise**2, (shape[0], 1))
    if levels is not None:
        variances[1:] = levels[np.minimum(np.arange(shape[0] - 1), len(levels) - 1), None] ** 2
    elif real_noise is None:
        n, r = vectors.shape[1:]
        ridges = {scenario.family.for_generation(t + 1).settings()["ridge"] for t in range(scenario.generations)}
        require(scenario.family.name == "linear" and ridges == {0.0} and n > r)
        newest_rows(scenario)
        residual = np.vecdot(y, y) - ((vectors.mT @ y[..., None]) ** 2).sum(axis=(1, 2))
        variances[1:] = residual / (n - r)
    return variances


def _squared_error(moments: DesignMoments, at: Floats, target: Floats) -> Floats:
    """Expected squared error of linear functions `at` (seeds, k, r) of the fitted values: (generations, seeds, k)."""
    mean = np.einsum("skr,tsr->tsk", at, moments.mean)
    return np.asarray((mean - target) ** 2 + np.einsum("skr,tsr->tsk", at**2, moments.variance), np.float64)
