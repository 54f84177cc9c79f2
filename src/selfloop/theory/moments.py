"""The world of expectations: exact squared error of the mean, and variance, of any policy that counts rows.

Derivation, in one dimension with truth mean 0 and variance 1 (coordinates add up). Given its model, the rows of a batch
are independent with the model's mean and variance, so the error of any later mean is a sum of uncorrelated noises: one
per *piece* of a batch (its rows between two prefix lengths in use) and one per budget drawn. A mean is kept as the
vector of its coefficients on the noises, in units of their standard deviations: inner products are covariances, and the
expected mean square of rows is linear in those of the models. Only second moments enter; rows need not be Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from selfloop.component import Policy
from selfloop.engine.loop import ScheduleEntry, loop, schedule
from selfloop.errors import SpecError
from selfloop.types import Batch, Floats, Ints, Measurement, Part, real, synthetic


@dataclass(frozen=True, kw_only=True)
class MomentEstimator:
    """How a model's variance comes from its training rows, and a sampled row's variance from its model."""

    ddof: int = 0  # the sum of squares is divided by rows - ddof
    pooled: bool = True  # around the mean of all rows; False: around each batch's own (He, Xu, Cheng 2025)
    variance_factor: float = 1.0  # variance of a sampled row over its model's
    kernel: float = 0.0  # variance a sampled row has in addition (squared bandwidth), over the true variance
    known: tuple[float, ...] = ()  # rows' variance if nobody estimates it: entry k - 1 for model k, the last one stays


class MomentBatch(NamedTuple):
    """Rows scattered with variance `spread` around a mean whose error is the vector `center`."""

    center: Floats
    spread: float
    first: int  # noise of its first piece
    ends: Ints  # prefix lengths in use; the last one is all rows
    noise: Floats  # standard deviations of the pieces' sums


class MomentModel(NamedTuple):
    """Error vector of the mean, expected squared error (a fresh draw's noise included), expected variance."""

    center: Floats
    squared_error: float
    variance: float


class Pool(NamedTuple):
    """A weighted mean of rows: its error vector, and the rows' expected mean square around the truth."""

    center: Floats
    second: float


class MomentsWorld:
    """The world whose batches and models are expectations: `loop` in it yields exact predictions of a policy.

    Metrics: `mean_error` (over the trace of the true covariance), `mean_error_multiplier` (n times that) and
    `variance_ratio`. Exact for models that keep mean and variance, whatever the law of the rows: Gaussians, symbol
    frequencies (variance 1 - sum p^2), kernel density estimates of fixed bandwidth; a budget is a fresh uniform draw
    without replacement (variance of its mean: Cochran, Sampling Techniques, 1977, theorem 2.2).
    Raises SpecError for a budget over rows of three or more weights or with `pooled=False`, and without a divisor.
    """

    seeds: Sequence[int] = (0,)

    def __init__(self, policy: Policy, n: int, generations: int, learner: MomentEstimator | None = None) -> None:
        self.label = policy.name
        self.n = n
        self.learner = learner or MomentEstimator()
        ends: dict[Batch, set[int]] = {}
        budgets = []
        for stage in schedule(policy, n, generations):
            self._require_law(stage)
            if stage.new_rows.real:
                ends[real(stage.t)] = {stage.new_rows.real}
            for take in stage.plan.takes:
                ends[take.batch].add(take.rows or 0)
            if stage.plan.budget is not None:
                budgets.append(stage.t)
            ends[synthetic(stage.t)] = {stage.new_rows.synthetic}
        places = np.cumsum([0, *map(len, ends.values())])
        self._pieces = {batch: (int(i), np.array(sorted(ends[batch]))) for batch, i in zip(ends, places, strict=False)}
        self._drawn = {t: int(places[-1]) + i for i, t in enumerate(budgets)}  # noise of generation t's budget
        self._noises = int(places[-1]) + len(budgets)

    def _require_law(self, stage: ScheduleEntry) -> None:
        where, plan, learner = f"{self.label}, generation {stage.t}", stage.plan, self.learner
        sizes = [take.rows or 0 for take in plan.takes] if not learner.pooled else [stage.trained_rows]
        if min(sizes) <= learner.ddof and not learner.known:
            raise SpecError(f"{where}: a variance of {min(sizes)} rows has no divisor above 0 with ddof {learner.ddof}.")
        weights = {take.weight for take in plan.takes}
        if plan.budget is not None and (len(weights) > 2 or not learner.pooled):
            raise SpecError(
                f"{where}: a budget over rows of {len(weights)} weights has no exact law; use one or two, and pooled = true."
            )

    def real(self, t: int, n: int) -> MomentBatch:
        return self._batch(real(t), np.zeros(self._noises), 1.0)

    def sample(self, t: int, model: MomentModel, n: int) -> MomentBatch:
        known = self.learner.known
        spread = self.learner.variance_factor * model.variance + self.learner.kernel
        return self._batch(synthetic(t), model.center, known[min(t, len(known)) - 1] if known else spread)

    def _batch(self, batch: Batch, center: Floats, spread: float) -> MomentBatch:
        first, ends = self._pieces[batch]
        return MomentBatch(center, spread, first, ends, np.sqrt(spread * np.diff(ends, prepend=0)))

    def fit(self, t: int, parts: Sequence[Part[MomentBatch]], budget: int | None, previous: MomentModel | None) -> MomentModel:
        learner = self.learner
        rows = np.array([part.batch.ends[-1] if part.rows is None else part.rows for part in parts], np.float64)
        weights = np.array([part.weight for part in parts])
        trained = float(rows.sum()) if budget is None else budget
        pool = _pool(parts, rows, weights) if budget is None else _draw(parts, rows, weights, budget, self._drawn[t])
        squared_error = float(pool.center @ pool.center)
        variance = max(pool.second - squared_error, 0.0) * trained / (trained - learner.ddof)
        if not learner.pooled:
            within = np.array([part.batch.spread for part in parts]) * (rows - 1) / (rows - learner.ddof)
            variance = float(rows * weights @ within / (rows @ weights))
        return MomentModel(pool.center, squared_error, variance)

    def measure(self, t: int, model: MomentModel, new: MomentBatch) -> Iterator[Measurement]:
        yield Measurement(self.label, 0, t, "mean_error", model.squared_error)
        yield Measurement(self.label, 0, t, "mean_error_multiplier", self.n * model.squared_error)
        yield Measurement(self.label, 0, t, "variance_ratio", model.variance)

    def ended(self, t: int, status: str) -> Iterator[Measurement]:
        yield from ()  # expectations never end


def _pool(parts: Sequence[Part[MomentBatch]], rows: Floats, weights: Floats) -> Pool:
    """The weighted mean of all rows taken."""
    shares = rows * weights / (rows @ weights)
    centers = np.array([part.batch.center for part in parts])
    spreads = np.array([part.batch.spread for part in parts])
    center = np.asarray(shares @ centers, np.float64)
    for part, k, mass in zip(parts, rows, shares / rows, strict=True):
        _, _, first, ends, noise = part.batch
        pieces = len(ends) if part.rows is None else int(ends.searchsorted(k)) + 1
        center[first : first + pieces] += mass * noise[:pieces]
    return Pool(center, float(shares @ (np.einsum("ij,ij->i", centers, centers) + spreads)))


def _draw(parts: Sequence[Part[MomentBatch]], rows: Floats, weights: Floats, budget: int, noise: int) -> Pool:
    """The weighted mean of `budget` rows drawn from all rows taken; `noise` is the place of the draw's own noise.

    Given how many drawn rows have each weight, they are uniform draws from the rows of that weight.
    """
    levels, which = np.unique(weights, return_inverse=True)
    groups = [np.flatnonzero(which == g).tolist() for g in range(len(levels))]
    pools = [_pool([parts[i] for i in group], rows[group], weights[group]) for group in groups]
    sizes = np.array([rows[group].sum() for group in groups])
    counts, chances = _counts(sizes, budget)
    per_row = levels / (counts @ levels)[:, None]  # mass of one drawn row of each weight
    masses = counts * per_row
    centers = np.array([pool.center for pool in pools])
    second = np.array([pool.second for pool in pools])
    scatter = (second - np.einsum("ij,ij->i", centers, centers)) * sizes / np.maximum(sizes - 1, 1)
    products = np.einsum("o,og,oh->gh", chances, masses, masses)
    within = chances @ (masses * per_row) - np.diag(products) / sizes  # E[mass^2 (1/drawn - 1/size)]
    center = np.asarray(chances @ masses @ centers, np.float64)
    squared_error = float((products * (centers @ centers.T)).sum() + within @ scatter)
    center[noise] = max(squared_error - float(center @ center), 0.0) ** 0.5
    return Pool(center, float(chances @ masses @ second))


def _counts(sizes: Floats, budget: int) -> tuple[Floats, Floats]:
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
    """What a policy does to a mean and a variance, generation by generation (index 0 is generation 1)."""

    policy: str
    n: int
    trained_rows: Ints
    real_mass: Floats
    data_age: Floats  # generations
    mean_error_multiplier: Floats  # n x expected squared error of the mean over the true variance
    variance_ratio: Floats  # expected fitted variance over the true one

    @property
    def generation(self) -> Ints:
        return np.arange(1, len(self.trained_rows) + 1)


def predict(policy: Policy, n: int, generations: int, learner: MomentEstimator | None = None) -> PolicyPrediction:
    """The exact course of a policy for a mean and variance fitted to n real rows at first; maximum likelihood by default."""
    stages = list(schedule(policy, n, generations))
    curves = moment_curves(policy, n, generations, learner)
    return PolicyPrediction(
        policy=policy.name,
        n=n,
        trained_rows=np.array([stage.trained_rows for stage in stages]),
        real_mass=np.array([stage.real_mass for stage in stages]),
        data_age=np.array([stage.data_age for stage in stages]),
        mean_error_multiplier=curves["mean_error_multiplier"],
        variance_ratio=curves["variance_ratio"],
    )


def moment_curves(policy: Policy, n: int, generations: int, learner: MomentEstimator | None = None) -> dict[str, Floats]:
    """Every metric of `MomentsWorld` by name: its values at generations 1 .. generations."""
    curves: dict[str, list[float]] = {}
    for row in loop(MomentsWorld(policy, n, generations, learner), policy, n, generations):
        curves.setdefault(row.metric, []).append(float(row.value or 0.0))
    return {metric: np.array(values) for metric, values in curves.items()}


def has_law(policy: Policy, n: int, generations: int, learner: MomentEstimator | None = None) -> bool:
    """Is `moment_curves` exact here?"""
    try:
        MomentsWorld(policy, n, generations, learner)
    except SpecError:
        return False
    return True
