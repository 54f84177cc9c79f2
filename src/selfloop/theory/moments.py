"""The world of expectations: exact squared error of the mean, and variance, of any policy over whole batches or counts.

Derivation, in one dimension with true mean 0 and variance 1 (coordinates add up). Given its model, the rows of a batch
are independent with the model's mean and variance. So the error of any later mean is a sum of uncorrelated noises: one
per *segment* of a batch (its rows between two prefix lengths in use) and one per drawn budget. A mean is represented by
its coefficients on the noises, in units of their standard deviations: inner products are covariances, and the expected
mean square of rows is linear in those of the models. Only second moments enter; rows need not be Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge
from scipy.special import gammaln

from selfloop.columns import Floats, Ints
from selfloop.component import Policy
from selfloop.engine.loop import loop
from selfloop.errors import SpecError
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.settings import check_setting
from selfloop.spec.components import make_component
from selfloop.types import Batch, Measurement, Take, real, synthetic


@dataclass(frozen=True, kw_only=True)
class MomentEstimator:
    """How a model's variance follows from its training rows, and a sampled row's variance from its model."""

    ddof: int = 0  # the sum of squares is divided by rows - ddof
    pooled: bool = True  # around the mean of all rows; False: around the mean of each batch (He, Xu, Cheng 2025)
    variance_factor: float = 1.0  # variance of a sampled row over the variance of its model
    kernel_variance: float = 0.0  # added to a sampled row (squared bandwidth), over the true variance
    known_variances: tuple[float, ...] = ()  # of rows of model 1, 2, ... if not estimated; the last one stays


class MomentBatch(NamedTuple):
    """Rows with `variance` around a mean whose error is the vector `center`."""

    center: Floats
    variance: float
    first: int  # index of the noise of its first segment
    ends: Ints  # prefix lengths in use; the last one is all rows
    noise: Floats  # standard deviations of the sums of the segments


class MomentModel(NamedTuple):
    """Error vector of the mean, expected squared error (with the noise of a drawn budget), expected variance."""

    center: Floats
    squared_error: float
    variance: float


class PooledRows(NamedTuple):
    """A weighted mean of rows: its error vector, and the expected mean square of the rows around the truth."""

    center: Floats
    mean_square: float


class MomentsWorld:
    """The world whose batches and models are expectations: `loop` in it yields exact predictions of a policy.

    Metrics: `mean_error` (over the trace of the true covariance), `mean_error_multiplier` (n times that) and
    `variance_ratio`. They are exact for models of a mean and a variance, whatever the distribution of the rows: Gaussians,
    symbol frequencies (variance 1 - sum p^2), kernel density estimates of fixed bandwidth. A budget is a uniform draw
    without replacement (variance of its mean: Cochran, Sampling Techniques, 1977, theorem 2.2).
    Raises SpecError for a budget over rows of three or more weights or with `pooled=False`, and without a divisor.
    """

    def __init__(self, policy: Policy, n: int, generations: int, estimator: MomentEstimator | None = None) -> None:
        self.label = policy.name
        self.n = n
        self.estimator = estimator or MomentEstimator()
        ends: dict[Batch, set[int]] = {}
        budgets = []
        for entry in schedule(policy, n, generations):
            self._require_exact(entry)
            if entry.new_rows.real:
                ends[real(entry.t)] = {entry.new_rows.real}
            for take in entry.plan.takes:
                ends[take.batch].add(take.rows or 0)
            if entry.plan.budget is not None:
                budgets.append(entry.t)
            ends[synthetic(entry.t)] = {entry.new_rows.synthetic}
        offsets = np.cumsum([0, *map(len, ends.values())])
        self._segments = {batch: (int(i), np.array(sorted(ends[batch]))) for batch, i in zip(ends, offsets, strict=False)}
        self._budget_noise = {t: int(offsets[-1]) + i for i, t in enumerate(budgets)}
        self._n_noises = int(offsets[-1]) + len(budgets)

    def _require_exact(self, entry: ScheduleEntry) -> None:
        key, plan, estimator = f"policy {self.label}, generation {entry.t}", entry.plan, self.estimator
        rows = min(take.rows or 0 for take in plan.takes) if not estimator.pooled else entry.trained_rows
        if rows <= estimator.ddof and not estimator.known_variances:
            raise SpecError(f"{key}: got {rows} rows; a variance with ddof {estimator.ddof} needs more. Raise n.")
        weights = {take.weight for take in plan.takes}
        if plan.budget is not None and (len(weights) > 2 or not estimator.pooled):
            problem = f"got a budget over rows of {len(weights)} weights"
            raise SpecError(f"{key}: {problem}; expected one or two weights, and pooled = true. Change the takes.")

    def draw_real(self, t: int, n: int) -> MomentBatch:
        return self._batch(real(t), np.zeros(self._n_noises), 1.0)

    def sample(self, t: int, model: MomentModel, n: int) -> MomentBatch:
        variances = self.estimator.known_variances
        estimated = self.estimator.variance_factor * model.variance + self.estimator.kernel_variance
        return self._batch(synthetic(t), model.center, variances[min(t, len(variances)) - 1] if variances else estimated)

    def _batch(self, batch: Batch, center: Floats, variance: float) -> MomentBatch:
        first, ends = self._segments[batch]
        return MomentBatch(center, variance, first, ends, np.sqrt(variance * np.diff(ends, prepend=0)))

    def fit(self, t: int, takes: Sequence[Take[MomentBatch]], budget: int | None, previous: MomentModel | None) -> MomentModel:
        ddof = self.estimator.ddof
        rows = np.array([take.batch.ends[-1] if take.rows is None else take.rows for take in takes], np.float64)
        weights = np.array([take.weight for take in takes])
        if budget is None:
            trained, pooled = float(rows.sum()), _pool(takes, rows, weights)
        else:
            trained, pooled = budget, _draw(takes, rows, weights, budget, self._budget_noise[t])
        squared_error = float(pooled.center @ pooled.center)
        variance = max(pooled.mean_square - squared_error, 0.0) * trained / (trained - ddof)
        if not self.estimator.pooled:
            within = np.array([take.batch.variance for take in takes]) * (rows - 1) / (rows - ddof)
            variance = float(rows * weights @ within / (rows @ weights))
        return MomentModel(pooled.center, squared_error, variance)

    def measure(self, t: int, model: MomentModel, samples: MomentBatch) -> Iterator[Measurement]:
        yield Measurement(self.label, 0, t, "mean_error", model.squared_error)
        yield Measurement(self.label, 0, t, "mean_error_multiplier", self.n * model.squared_error)
        yield Measurement(self.label, 0, t, "variance_ratio", model.variance)

    def end_chain(self, t: int, status: str) -> Iterable[Measurement]:
        return ()  # expectations never end


def _pool(takes: Sequence[Take[MomentBatch]], rows: Floats, weights: Floats) -> PooledRows:
    """The weighted mean of the rows of all takes."""
    shares = rows * weights / (rows @ weights)
    centers = np.array([take.batch.center for take in takes])
    variances = np.array([take.batch.variance for take in takes])
    center = np.asarray(shares @ centers, np.float64)
    for take, k, mass in zip(takes, rows, shares / rows, strict=True):
        _, _, first, ends, noise = take.batch
        segments = len(ends) if take.rows is None else int(ends.searchsorted(k)) + 1
        center[first : first + segments] += mass * noise[:segments]
    return PooledRows(center, float(shares @ (np.einsum("ij,ij->i", centers, centers) + variances)))


def _draw(takes: Sequence[Take[MomentBatch]], rows: Floats, weights: Floats, budget: int, noise: int) -> PooledRows:
    """The weighted mean of `budget` rows drawn from the rows of all takes; `noise` is the index of the noise of the draw.

    Given the number of drawn rows of each weight, they are uniform draws from the rows of that weight.
    """
    levels, level_of = np.unique(weights, return_inverse=True)
    groups = [np.flatnonzero(level_of == g).tolist() for g in range(len(levels))]
    pools = [_pool([takes[i] for i in group], rows[group], weights[group]) for group in groups]
    sizes = np.array([rows[group].sum() for group in groups])
    counts, chances = _drawn_counts(sizes, budget)
    per_row = levels / (counts @ levels)[:, None]  # mass of one drawn row of each weight
    masses = counts * per_row
    centers = np.array([pool.center for pool in pools])
    mean_square = np.array([pool.mean_square for pool in pools])
    scatter = (mean_square - np.einsum("ij,ij->i", centers, centers)) * sizes / np.maximum(sizes - 1, 1)
    products = np.einsum("o,og,oh->gh", chances, masses, masses)
    within = chances @ (masses * per_row) - np.diag(products) / sizes  # E[mass^2 (1/drawn - 1/size)]
    center = np.asarray(chances @ masses @ centers, np.float64)
    squared_error = float((products * (centers @ centers.T)).sum() + within @ scatter)
    center[noise] = max(squared_error - float(center @ center), 0.0) ** 0.5
    return PooledRows(center, float(chances @ masses @ mean_square))


def _drawn_counts(sizes: Floats, budget: int) -> tuple[Floats, Floats]:
    """Possible numbers of drawn rows of each of one or two groups, with their (hypergeometric) probabilities."""
    if len(sizes) == 1:
        return np.array([[float(budget)]]), np.ones(1)
    k = np.arange(max(0, budget - sizes[1]), min(budget, sizes[0]) + 1, dtype=np.float64)
    counts = np.stack([k, budget - k], axis=1)
    logs = np.asarray(-(gammaln(counts + 1) + gammaln(sizes - counts + 1)).sum(axis=1), np.float64)
    chances = np.exp(logs - np.max(logs))
    return counts, chances / chances.sum()


@dataclass(frozen=True)
class PolicyPrediction:
    """Expected error and variance of a policy, generation by generation (index 0 is generation 1)."""

    policy: str
    n: int
    trained_rows: Ints
    real_mass: Floats
    data_age: Floats  # generations
    mean_error_multiplier: Floats  # n x expected squared error of the mean over the true variance
    variance_ratio: Floats  # expected fitted variance over the true variance

    @property
    def generation(self) -> Ints:
        return np.arange(1, len(self.trained_rows) + 1)


def predict(
    policy: Policy | str | Mapping[str, Any], n: int = 1000, generations: int = 10, estimator: MomentEstimator | None = None
) -> PolicyPrediction:
    """Expected error and variance of a mean and a variance under a policy (a name, a table with a name, or an object).

    They are first fitted to n real rows, by default with maximum likelihood.
    """
    for name, value in (("n", n), ("generations", generations)):
        check_setting(Annotated[int, Ge(1)], value, name)
    component: Policy = make_component("policy", policy, "policy")
    entries = list(schedule(component, n, generations))
    curves = moment_curves(component, n, generations, estimator)
    return PolicyPrediction(
        policy=component.name,
        n=n,
        trained_rows=np.array([entry.trained_rows for entry in entries]),
        real_mass=np.array([entry.real_mass for entry in entries]),
        data_age=np.array([entry.data_age for entry in entries]),
        mean_error_multiplier=curves["mean_error_multiplier"],
        variance_ratio=curves["variance_ratio"],
    )


def moment_curves(policy: Policy, n: int, generations: int, estimator: MomentEstimator | None = None) -> dict[str, Floats]:
    """Values of every metric of `MomentsWorld`, by name, at generations 1 .. generations."""
    curves: dict[str, list[float]] = {}
    for measurement in loop(MomentsWorld(policy, n, generations, estimator), policy, n, generations):
        curves.setdefault(measurement.metric, []).append(float(measurement.value or 0.0))
    return {metric: np.array(values) for metric, values in curves.items()}
