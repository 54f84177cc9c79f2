"""Linear regression with normal noise: least squares, ridge, minimum norm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self, cast

import numpy as np
from annotated_types import Ge, MinLen
from numpy.random import Generator

from selfloop.columns import Columns, Floats, Params
from selfloop.component import Context, Sampler
from selfloop.errors import SpecError
from selfloop.families.ensemble import EnsembleFamily, bartlett, mass_shares, memoize, row_counts, split_generator, sum_in_order
from selfloop.families.trivial import normal_nll, risk_without_inputs, squared_error_of_mean
from selfloop.protocols import EnsembleFit, SeedStreams, SufficientStatistics
from selfloop.settings import UNLESS_DEFAULT
from selfloop.snapshots import EnsembleTake

MIN_UNEXPLAINED_SHARE = 1e-12  # of the square of a column, by the columns before it; less is rounding
MIN_SINGULAR_VALUE = 1e-11  # over the largest one
ROUNDING = 1e-9  # residuals of this share of the predictions are rounding errors
NoiseLevel = Annotated[float, Ge(0)]
RidgeLevel = Annotated[float, Ge(0)]
Ridge = Annotated[
    RidgeLevel | Annotated[tuple[RidgeLevel, ...], MinLen(1)],
    "penalty of a squared coefficient per row, in squared units of x; in a list, entry t is for generation t and the last one "
    "for all later fits",
]


@dataclass(frozen=True, kw_only=True)
class LinearSampler(Sampler):
    """Outcomes drawn from a fitted regression."""

    name: ClassVar[str] = "linear"
    noise: Annotated[
        NoiseLevel | Annotated[tuple[NoiseLevel, ...], MinLen(1)] | None,
        "standard deviation of the noise; in a list, entry k is for rows of model k and the last one for all later rows; "
        "by default that of the source, or of the fit if the source's is unknown",
    ] = None
    labels: Annotated[
        Literal["sampled", "noiseless"],
        "outcomes of new rows: `sampled` with that noise around the prediction, or the prediction (self-distillation)",
    ] = field(default="sampled", metadata=UNLESS_DEFAULT)

    def unused_settings(self) -> Mapping[str, str]:
        return {"noise": "labels are noiseless"} if self.labels == "noiseless" else {}

    def for_generation(self, t: int, truth: Params) -> LinearSampler:
        """The noise of rows of model t. By default it is the source's, as the laws assume."""
        if isinstance(self.noise, tuple):
            return replace(self, noise=entry_of(self.noise, t))
        if self.noise is None and "noise" in truth and self.labels == "sampled":
            return replace(self, noise=float(np.ravel(truth["noise"])[0]))  # a setting of the source: equal for all seeds
        return self

    def noise_levels(self, fitted: Floats) -> Floats:
        if isinstance(self.noise, tuple):
            raise SpecError(
                f"family.sampler.noise: got {self.noise}; expected one number. Call `for_generation(t, truth)` first."
            )
        if self.labels == "noiseless":
            return np.zeros_like(fitted)
        return fitted if self.noise is None else np.full_like(fitted, self.noise)


def entry_of(levels: float | tuple[float, ...], t: int) -> float:
    """The number for generation t in a list, whose last entry stays."""
    return levels[min(t, len(levels)) - 1] if isinstance(levels, tuple) else levels


def single_ridge(ridge: float | tuple[float, ...]) -> float:
    """The ridge of one fit; SpecError for a list."""
    if isinstance(ridge, tuple):
        raise SpecError(f"family.ridge: got {ridge}; expected one number. Call `for_generation(t)` first.")
    return ridge


@dataclass(frozen=True, kw_only=True)
class NormalRegression(EnsembleFamily):
    """A model of outcomes with normal noise, whose standard deviation is its param `noise`, fitted with a ridge."""

    required_columns: ClassVar[tuple[str, ...]] = ("x", "y")
    sampler_class: ClassVar[type[Sampler]] = LinearSampler
    trivial_model: ClassVar[str] = "the same prediction for every row"
    ridge: Ridge = 0.0

    def for_generation(self, t: int) -> Self:
        return replace(self, ridge=entry_of(self.ridge, t)) if isinstance(self.ridge, tuple) else self

    @abstractmethod
    def predict_mean(self, params: Params, rows: Columns) -> Floats:
        """Mean outcome of each row given its inputs; one chain or with a leading seeds axis."""

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        levels = cast(LinearSampler, sampler).noise_levels(cast(Floats, params["noise"]))
        noise = np.stack([stream.generator().standard_normal(n) for stream in streams])
        return {**inputs, "y": self.predict_mean(params, inputs) + levels[:, None] * noise}

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        if metric == "squared_error":
            return squared_error_of_mean(initial["y"], holdout["y"])
        return normal_nll(initial["y"], holdout["y"], {}) if metric == "nll" else risk_without_inputs(metric, truth)

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density of each row's y given its x, in nats; -inf for a model that interpolates its rows, up to rounding."""
        y, noise, mean = np.asarray(rows["y"]), float(params["noise"]), self.predict_mean(params, rows)
        if noise <= ROUNDING * float(np.sqrt(np.mean(mean**2))):
            return np.full(len(y), -np.inf)
        deviation = (y - mean) / noise
        return np.asarray(-0.5 * deviation**2 - np.log(noise * np.sqrt(2 * np.pi)))


@dataclass(frozen=True, kw_only=True)
class Linear(NormalRegression):
    """Coefficients w that minimize the weighted mean of squared residuals + ridge ||w||^2; of several, those of least norm.

    `ridge` scales with the number N of training rows: (X'X/N + ridge I) w = X'y/N. The param `noise` is the standard deviation
    of the residuals (divisor N - d). Runs on statistics do not estimate it: their outcomes have the noise of the source.

    Statistics of a batch of n rows are the triangular `root` R with R'R = X'X/n and the `response` u with R'u = X'y/n:
    u = R w + noise z/sqrt(n), z standard normal. Batches of one fixed design share one `root` *object*. They merge by
    averaging responses, and a fit is one triangular solve in O(d^2) for any n. Different roots merge into gram and moment.
    """

    name: ClassVar[str] = "linear"
    default_metrics: ClassVar[tuple[str, ...]] = ("excess_risk",)
    mergeable: ClassVar[Mapping[str, bool]] = {"coefficients": False, "noise": True}

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        sums = _sum_rows(takes)
        penalty = single_ridge(self.ridge) * sums["mass"]
        w = self._solve(sums["gram"], sums["moment"], penalty)
        # at the solution w' gram w = w' moment - penalty |w|^2
        squared_residuals = sums["square"] - np.vecdot(w, sums["moment"]) - penalty * np.vecdot(w, w)
        variance = np.maximum(squared_residuals, 0) / sums["mass"]
        unbiased = sums["rows"] / np.maximum(sums["rows"] - w.shape[1], 1)
        return EnsembleFit({"coefficients": w, "noise": np.sqrt(variance * unbiased)})

    def predict_mean(self, params: Params, rows: Columns) -> Floats:
        x, w = cast(Floats, rows["x"]), cast(Floats, params["coefficients"])
        return np.asarray((x @ w[..., None])[..., 0], np.float64)

    def design_basis(self, x: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        u, values, v = np.linalg.svd(x, full_matrices=False)
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > MIN_SINGULAR_VALUE * values[:, :1])
        return np.where(inverse > 0, values**2, 0) / x.shape[1], u, z @ v.mT * inverse[:, None]

    def merge(self, takes: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        counts, responses, roots = (
            [cast(Floats, statistics[name]) for statistics, _ in takes] for name in ("count", "response", "root")
        )
        shares = mass_shares(counts, [weight for _, weight in takes])
        if all(root is roots[0] for root in roots):
            response = sum_in_order([share[:, None] * of_take for share, of_take in zip(shares, responses, strict=True)])
            return {"root": roots[0], "response": response, "count": sum_in_order(counts)}
        gram = sum_in_order([share[:, None, None] * (root.mT @ root) for share, root in zip(shares, roots, strict=True)])
        moments = [share[:, None] * (u[:, None] @ root)[:, 0] for share, u, root in zip(shares, responses, roots, strict=True)]
        return {"gram": gram, "moment": sum_in_order(moments), "count": sum_in_order(counts)}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        penalty = np.full(len(statistics["count"]), single_ridge(self.ridge))  # statistics are per row
        if "gram" in statistics:
            gram, moment = cast(Floats, statistics["gram"]), cast(Floats, statistics["moment"])
            return EnsembleFit({"coefficients": self._solve(gram, moment, penalty)})
        root, response = cast(Floats, statistics["root"]), cast(Floats, statistics["response"])
        if self.ridge:
            return EnsembleFit({"coefficients": self._solve(root.mT @ root, (response[:, None] @ root)[:, 0], penalty)})
        if root.shape[1] < root.shape[2]:  # fewer rows than coefficients: the least-norm solution R'(R R')^-1 u
            dual = np.linalg.solve(root @ root.mT, response[..., None])
            return EnsembleFit({"coefficients": (root.mT @ dual)[..., 0]})
        return EnsembleFit({"coefficients": _solve_triangular(root, response)})

    def draw_statistics(
        self, params: Params, n: int, sampler: Sampler, truth: Params, initial: SufficientStatistics | None, rng: Generator
    ) -> SufficientStatistics:
        w = cast(Floats, params["coefficients"])
        levels = cast(LinearSampler, sampler).noise_levels(cast(Floats, truth["noise"]))
        seeds, d = w.shape
        if initial is None:
            for_design, rng = split_generator(rng)
            root = bartlett(n, d, seeds, for_design).mT * np.sqrt(cast(Floats, truth["variances"]) / n)[:, None]
            root = np.ascontiguousarray(root)
        elif np.any(n % initial["count"]):
            raise SpecError("linear: on a fixed design, statistics describe whole copies of it; this policy needs rows.")
        else:
            root = cast(Floats, initial["root"])
        response = (root @ w[..., None])[..., 0]
        response += levels[:, None] / np.sqrt(n) * rng.standard_normal(response.shape)
        return {"root": root, "response": response, "count": np.full(seeds, float(n))}

    def _solve(self, gram: Floats, moment: Floats, penalty: Floats) -> Floats:
        """Solution of (gram + penalty I) w = moment of each seed; the one of least norm if there are several."""
        if self.ridge:
            gram = gram + penalty[:, None, None] * np.eye(gram.shape[1])
        return np.stack([_solve_one(*of_seed) for of_seed in zip(gram, moment, strict=True)])


def _solve_one(gram: Floats, moment: Floats) -> Floats:
    from scipy.linalg.lapack import dposv  # imported here because it takes 0.1 s, and statistics of a fixed design need none

    root, w, failed = dposv(gram.T, moment)  # in the memory order that LAPACK reads without a copy
    if failed or np.any(root.diagonal() ** 2 < MIN_UNEXPLAINED_SHARE * gram.diagonal()):
        return _least_norm(gram, moment)
    return np.asarray(w, np.float64)


def _least_norm(gram: Floats, moment: Floats) -> Floats:
    """The shortest of all solutions of gram w = moment; columns may have any units."""
    scale = np.sqrt(gram.diagonal())
    scale = np.where(scale > 0, scale, 1)
    values, vectors = np.linalg.eigh(gram / scale / scale[:, None])  # the rank is that of columns of equal length
    identified = values > MIN_UNEXPLAINED_SHARE * values[-1]
    w = vectors[:, identified] @ (vectors[:, identified].T @ (moment / scale) / values[identified]) / scale
    null_space = np.linalg.qr(vectors[:, ~identified] / scale[:, None]).Q
    return np.asarray(w - null_space @ (null_space.T @ w), np.float64)


def _solve_triangular(root: Floats, response: Floats) -> Floats:
    """w with root w = response for the upper-triangular roots of all seeds: faster than one LAPACK call per seed."""
    w = np.empty_like(response)
    for j in range(w.shape[1] - 1, -1, -1):
        w[:, j] = (response[:, j] - np.vecdot(root[:, j, j + 1 :], w[:, j + 1 :])) / root[:, j, j]
    return w


def _sum_rows(takes: Sequence[EnsembleTake]) -> dict[str, Floats]:
    """Weighted sums over the training rows of x x', x y, y^2 and 1, and the number of rows, per seed."""
    designs: dict[int, list[EnsembleTake]] = {}
    for take in takes:  # batches of a fixed design hold the same array of inputs
        designs.setdefault(id(take.rows["x"]), []).append(take)
    sums = [_sum_rows_of_design(of_design) for of_design in designs.values()]
    return {name: sum_in_order([of_design[name] for of_design in sums]) for name in sums[0]}


def _sum_rows_of_design(takes: Sequence[EnsembleTake]) -> dict[str, Floats]:
    x = cast(Floats, takes[0].rows["x"])
    mass, outcomes = np.zeros((2, *x.shape[:2]))  # of each row of the design, summed over batches
    square, rows = np.zeros((2, len(x)))
    for take in takes:
        y, counts = cast(Floats, take.rows["y"]), row_counts(take)
        weighted = take.weight * y if counts is None else take.weight * counts * y
        mass += take.weight if counts is None else take.weight * counts
        outcomes += weighted
        square += np.vecdot(weighted, y)
        rows += y.shape[1] if counts is None else counts.sum(1)
    if all(take.indices is None and take.row_weights is None for take in takes):
        whole = memoize(takes[0], "gram", lambda: x.mT @ x)
        gram, moment = mass[:, :1, None] * whole, (outcomes[:, None] @ x)[:, 0]
    else:
        gram, moment = _weighted_sums(x, mass, outcomes)
    return {"gram": gram, "moment": moment, "square": square, "mass": mass.sum(1), "rows": rows}


def _weighted_sums(x: Floats, mass: Floats, outcomes: Floats) -> tuple[Floats, Floats]:
    """X' diag(mass) X and X' outcomes of each seed. Rows that are not taken, a third of a subsample, cost nothing."""
    gram, moment = [], []
    for s in range(len(x)):
        indices = np.concatenate([np.flatnonzero(mass[s] == 1), np.flatnonzero((mass[s] != 0) & (mass[s] != 1))])
        scale = np.sqrt(mass[s, indices])
        rows = x[s, indices] * scale[:, None]
        gram.append(rows.T @ rows)
        moment.append((outcomes[s, indices] / scale) @ rows)
    return np.stack(gram), np.stack(moment)
