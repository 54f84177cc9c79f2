"""The world of expectations: exact squared error of the mean, and variance, of any policy over whole batches or counts.

Derivation, in one dimension with true mean 0 and variance 1 (coordinates add up). Given its model, the rows of a batch
are independent with the model's mean and variance. So the error of any later mean is a sum of uncorrelated noises: one
per *segment* of a batch (its rows between two neighboring cuts, the ends of all takes) and one per drawn budget. A mean is
represented by its coefficients on the noises, in units of their standard deviations: inner products are covariances, the
squares of its coefficients are its noise ledger, and the expected mean square of rows is linear in those of the models.
Only second moments enter; rows need not be Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Floats, Ints
from selfloop.component import Policy
from selfloop.engine.loop import iter_generations
from selfloop.errors import SpecError
from selfloop.notebook import table_html
from selfloop.policies.schedule import ScheduleEntry, schedule
from selfloop.settings import check_setting
from selfloop.spec.components import make_component
from selfloop.types import Batch, Take, real, synthetic


@dataclass(frozen=True, kw_only=True)
class MomentEstimator:
    """How a model's variance follows from its training rows, and a sampled row's variance from its model."""

    ddof: int = 0  # the sum of squares is divided by rows - ddof
    pooled: bool = True  # around the mean of all rows; False: around the mean of each batch (He, Xu, Cheng 2025)
    variance_factor: float = 1.0  # variance of a sampled row over the variance of its model
    kernel_variance: float = 0.0  # added to a sampled row (squared bandwidth), over the true variance
    known_variances: tuple[float, ...] = ()  # of rows of model 1, 2, ... if not estimated; the last one stays


class NoiseSource(NamedTuple):
    """Where a noise comes from: the rows of a batch, or the budget drawn at generation `born`."""

    kind: Literal["real", "draw", "synthetic"]
    born: int

    def __str__(self) -> str:
        return f"{self.kind}({self.born})"


class MomentBatch(NamedTuple):
    """Rows with `variance` around the mean of a model."""

    model: int  # generation; 0 is the truth
    variance: float
    mean_square: float  # expected, around the truth
    rows: int
    noises: Mapping[int, int]  # index of the noise of the segment from a cut to the next cut


class MomentModel(NamedTuple):
    """Expected squared error of the mean (with the noise of a drawn budget), expected variance."""

    squared_error: float
    variance: float


class PooledRows(NamedTuple):
    """A weighted mean of rows: its error vector, and the expected mean square of the rows around the truth."""

    center: Floats
    mean_square: float


class MomentsWorld:
    """The world whose batches and models are expectations: a loop in it yields the models of a policy.

    They are exact for models of a mean and a variance, whatever the distribution of the rows: Gaussians, symbol frequencies
    (variance 1 - sum p^2), kernel density estimates of fixed bandwidth. A budget is a uniform draw without replacement
    (variance of its mean: Cochran, Sampling Techniques, 1977, theorem 2.2).
    Raises SpecError for a budget over rows of three or more weights or with `pooled=False`, and without a divisor.
    """

    def __init__(self, policy: Policy, n: int, generations: int, estimator: MomentEstimator | None = None) -> None:
        self.label = policy.name
        self.n = n
        self.estimator = estimator or MomentEstimator()
        self.entries = list(schedule(policy, n, generations))
        cuts: dict[tuple[str, int], set[int]] = {}
        for entry in self.entries:  # noises are in order of birth
            self._require_exact(entry)
            cuts[real(entry.t)] = set()
            if entry.plan.budget is not None:
                cuts["draw", entry.t] = {0, 1}
            for take in entry.plan.takes:
                cuts[take.batch].update((take.start, take.start + (take.rows or 0)))
            cuts[synthetic(entry.t)] = set()
        used = {source: sorted(points) for source, points in cuts.items() if points}
        self.sources = tuple(NoiseSource(*cast(Any, source)) for source in used)
        self._offsets = np.cumsum([0, *(len(points) - 1 for points in used.values())])  # of the noises of each source
        first_use = [born + (kind == "synthetic") for kind, born in self.sources]
        self._n_noises = self._offsets[np.searchsorted(first_use, np.arange(generations + 1), side="right")]
        self._noises = {
            source: dict(zip(points, range(first, first + len(points)), strict=True))
            for (source, points), first in zip(used.items(), self._offsets.tolist(), strict=False)
        }
        self._sizes = np.concatenate([np.diff(points) for points in used.values()])
        self._deviations = np.zeros(self._offsets[-1])  # of the sum of the rows of each segment
        self._centers = np.zeros((generations + 1, self._offsets[-1]))  # errors of the truth (0) and of the models' means

    def _require_exact(self, entry: ScheduleEntry) -> None:
        if entry.new_rows.external:
            raise SpecError(f"policy {self.label}: has external rows, of an unknown mean. Predict a policy without them.")
        key, plan, estimator = f"policy {self.label}, generation {entry.t}", entry.plan, self.estimator
        rows = min(take.rows or 0 for take in plan.takes) if not estimator.pooled else entry.trained_rows
        if rows <= estimator.ddof and not estimator.known_variances:
            raise SpecError(f"{key}: got {rows} rows; a variance with ddof {estimator.ddof} needs more. Raise n.")
        weights = {take.weight for take in plan.takes}
        if plan.budget is not None and (len(weights) > 2 or not estimator.pooled):
            problem = f"got a budget over rows of {len(weights)} weights"
            raise SpecError(f"{key}: {problem}; expected one or two weights, and pooled = true. Change the takes.")

    def draw_real(self, t: int, n: int) -> MomentBatch:
        return self._batch(real(t), n, 0, 0.0, 1.0)

    def draw_external(self, t: int, n: int) -> MomentBatch:
        raise NotImplementedError  # refused before the loop

    def sample(self, t: int, model: MomentModel, n: int) -> MomentBatch:
        variances = self.estimator.known_variances
        estimated = self.estimator.variance_factor * model.variance + self.estimator.kernel_variance
        variance = variances[min(t, len(variances)) - 1] if variances else estimated
        return self._batch(synthetic(t), n, t, model.squared_error, variance)

    def _batch(self, batch: Batch, n: int, model: int, squared_error: float, variance: float) -> MomentBatch:
        noises = self._noises.get(batch, {})
        if noises:
            segments = slice(min(noises.values()), max(noises.values()))
            self._deviations[segments] = np.sqrt(variance * self._sizes[segments])
        return MomentBatch(model, variance, squared_error + variance, n, noises)

    def fit(self, t: int, takes: Sequence[Take[MomentBatch]], budget: int | None, previous: MomentModel | None) -> MomentModel:
        ddof = self.estimator.ddof
        rows = np.array([take.batch.rows if take.rows is None else take.rows for take in takes], np.float64)
        weights = np.array([take.weight for take in takes])
        if budget is None:
            trained, pooled = float(rows.sum()), self._pool(t, takes, rows, weights)
        else:
            pools = [
                (level, rows[weights == level].sum(), self._pool(t, group, rows[weights == level], np.ones(len(group))))
                for level in np.unique(weights)
                if (group := [take for take in takes if take.weight == level])
            ]
            trained, pooled = budget, _draw(pools, budget, self._noises["draw", t][0])
        self._centers[t, : len(pooled.center)] = pooled.center
        squared_error = float(pooled.center @ pooled.center)
        variance = max(pooled.mean_square - squared_error, 0.0) * trained / (trained - ddof)
        if not self.estimator.pooled:
            within = np.array([take.batch.variance for take in takes]) * (rows - 1) / (rows - ddof)
            variance = float(rows * weights @ within / (rows @ weights))
        return MomentModel(squared_error, variance)

    def _pool(self, t: int, takes: Sequence[Take[MomentBatch]], rows: Floats, weights: Floats) -> PooledRows:
        """The weighted mean of the rows of all takes, at generation t."""
        shares, n_noises = rows * weights / (rows @ weights), self._n_noises[t]
        masses = np.bincount([take.batch.model for take in takes], shares, minlength=t)  # of the rows of each model
        starts = np.array([take.batch.noises[take.start] for take in takes])
        stops = [take.batch.noises[take.start + (take.batch.rows if take.rows is None else take.rows)] for take in takes]
        lengths = np.array(stops) - starts
        segments = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        per_row = np.bincount(segments, np.repeat(shares / rows, lengths), minlength=n_noises)  # mass of a row of each segment
        center = np.asarray(masses @ self._centers[:t, :n_noises] + per_row * self._deviations[:n_noises], np.float64)
        return PooledRows(center, float(shares @ [take.batch.mean_square for take in takes]))

    def squared_coefficients(self) -> Floats:
        """What each source adds to the squared error of each model's mean, (generations, sources), after the loop."""
        return np.array([np.add.reduceat(center**2, self._offsets[:-1]) for center in self._centers[1:]])

    def measure(self, t: int, model: MomentModel, samples: MomentBatch) -> Iterable[MomentModel]:
        return (model,)

    def end_chain(self, t: int, status: str) -> Iterable[MomentModel]:
        return ()  # expectations never end


def _draw(pools: Sequence[tuple[float, float, PooledRows]], budget: int, noise: int) -> PooledRows:
    """The weighted mean of `budget` rows drawn from pools (weight, rows, mean); `noise` is the index of the noise of the draw.

    Given the number of drawn rows of each weight, they are uniform draws from the rows of that weight.
    """
    levels, sizes = np.array([level for level, _, _ in pools]), np.array([size for _, size, _ in pools])
    counts, chances = _drawn_counts(sizes, budget)
    per_row = levels / (counts @ levels)[:, None]  # mass of one drawn row of each weight
    masses = counts * per_row
    centers = np.array([pool.center for _, _, pool in pools])
    mean_square = np.array([pool.mean_square for _, _, pool in pools])
    scatter = (mean_square - np.einsum("ij,ij->i", centers, centers)) * sizes / np.maximum(sizes - 1, 1)
    products = np.einsum("o,og,oh->gh", chances, masses, masses)
    within = chances @ (masses * per_row) - np.diag(products) / sizes  # E[mass^2 (1/drawn - 1/size)]
    center = np.asarray(chances @ masses @ centers, np.float64)
    squared_error = float((products * (centers @ centers.T)).sum() + within @ scatter)
    center[noise] = max(squared_error - float(center @ center), 0.0) ** 0.5
    return PooledRows(center, float(chances @ masses @ mean_square))


def _drawn_counts(sizes: Floats, budget: int) -> tuple[Floats, Floats]:
    """Possible numbers of drawn rows of each of one or two groups, with their (hypergeometric) probabilities."""
    from scipy.special import gammaln  # inside, as it takes longer to load than most predictions to compute

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

    def _repr_html_(self) -> str:
        names = ("generation", "trained_rows", "real_mass", "data_age", "mean_error_multiplier", "variance_ratio")
        columns = [getattr(self, name).tolist() for name in names]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return table_html(f"{self.policy}, n = {self.n:,}: exact expectations", rows)


def _checked_world(
    policy: Policy | str | Mapping[str, Any], n: int, generations: int, estimator: MomentEstimator | None
) -> MomentsWorld:
    for name, value in (("n", n), ("generations", generations)):
        check_setting(Annotated[int, Ge(1)], value, name)
    return MomentsWorld(make_component("policy", policy, "policy"), n, generations, estimator)


def predict(
    policy: Policy | str | Mapping[str, Any], n: int = 1000, generations: int = 10, estimator: MomentEstimator | None = None
) -> PolicyPrediction:
    """Expected error and variance of a mean and a variance under a policy (a name, a table with a name, or an object).

    They are first fitted to n real rows, by default with maximum likelihood.
    """
    world = _checked_world(policy, n, generations, estimator)
    curves = _follow(world)
    names = ("trained_rows", "real_mass", "data_age")
    columns = {name: np.array([getattr(entry, name) for entry in world.entries]) for name in names}
    columns |= {name: curves[name] for name in ("mean_error_multiplier", "variance_ratio")}
    return PolicyPrediction(policy=world.label, n=n, **columns)


def moment_curves(policy: Policy, n: int, generations: int, estimator: MomentEstimator | None = None) -> dict[str, Floats]:
    """`mean_error` (over the trace of the true covariance), `mean_error_multiplier` (n times that) and `variance_ratio`.

    At generations 1 .. generations. Errors are those of `MomentsWorld`.
    """
    return _follow(MomentsWorld(policy, n, generations, estimator))


def _follow(world: MomentsWorld) -> dict[str, Floats]:
    error, variance = np.array([model for (model,) in iter_generations(world, world.entries)]).T
    return {"mean_error": error, "mean_error_multiplier": world.n * error, "variance_ratio": variance}


@dataclass(frozen=True)
class NoiseLedger:
    """The expected squared error of every model's mean as a sum of what each source of noise adds to it.

    An entry is the square of the mean's coefficient on that noise: at least 0, and rows sum to the error. Whole batches of n
    rows of equal variance add 1/n each under `replace` and 1/(n k^2) from synthetic(k - 1) under `accumulate`.
    """

    policy: str
    n: int
    sources: tuple[NoiseSource, ...]  # in order of birth
    squared_error: Floats  # (generations, sources), over the true variance

    def by_birth(self) -> Floats:
        """The same with one column per generation: its real rows, its drawn budget, and the rows sampled for it."""
        table = np.zeros((len(self.squared_error),) * 2)
        for i, (kind, born) in enumerate(self.sources):
            table[:, born + (kind == "synthetic") - 1] += self.squared_error[:, i]
        return table


def noise_ledger(
    policy: Policy | str | Mapping[str, Any], n: int = 1000, generations: int = 10, estimator: MomentEstimator | None = None
) -> NoiseLedger:
    """How much each batch and each drawn budget adds to the expected squared error of the mean of every model.

    Arguments and errors are those of `predict`.
    """
    world = _checked_world(policy, n, generations, estimator)
    _follow(world)
    return NoiseLedger(world.label, n, world.sources, world.squared_coefficients())
