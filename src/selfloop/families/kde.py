"""Gaussian kernel density estimates: a model is its training rows and a bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, ClassVar, Literal, cast

import numpy as np

from selfloop.columns import Array, Columns, Floats, Ints, Params
from selfloop.component import Context, Sampler
from selfloop.errors import DataError
from selfloop.families.ensemble import EnsembleFamily, gather_across_takes, has_budget, taken_rows, weighted_rows
from selfloop.families.trivial import normal_nll
from selfloop.protocols import EnsembleFit, SeedStreams
from selfloop.settings import PositiveFloat
from selfloop.snapshots import EnsembleTake

MIN_EXPONENT = -700.0  # exp of less is a denormal number: 30 times slower, and negligible beside a kernel value of 1
CHUNK_EXPONENTS = 1 << 16  # computed together, so that they stay in the cache


@dataclass(frozen=True, kw_only=True)
class Kde(EnsembleFamily):
    """Mean of Gaussian kernels at the training rows, weighted by row. A sample is a training row plus kernel noise.

    A model contains its rows as `x.0`, `x.1`, ... (for whole batches the arrays of the batches, not copies), in groups of equal
    weight: group after group, `length` rows of `weight` each. Its `bandwidth` has one number per column, in that column's unit.
    """

    name: ClassVar[str] = "kde"
    version: ClassVar[int] = 2
    required_columns: ClassVar[tuple[str, ...]] = ("x",)
    default_metrics: ClassVar[tuple[str, ...]] = ("nll",)
    trivial_model: ClassVar[str] = "a normal distribution of each column"
    bandwidth: Annotated[
        PositiveFloat | Literal["scott", "silverman"],
        "width of the kernels, or scikit-learn's rule for n rows in d dimensions",
    ] = "scott"
    standardize: Annotated[
        bool,
        "the bandwidth is in standard deviations of each column of the training rows, as columns have different units; "
        "false: in the unit of the data, equal for all columns, as in scikit-learn",
    ] = True

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        for take in takes:
            if set(take.rows) != {"x"} or np.asarray(take.rows["x"]).ndim != 3:
                columns = ", ".join(take.rows)
                raise DataError(
                    f"kde: got columns {columns}; expected one column 'x' of vectors and no target. Drop the target."
                )
        if has_budget(takes) or any(take.row_weights is not None for take in takes):
            arrays, weight = weighted_rows(takes, "x")
            length = np.ones(weight.shape[1], np.int64)
        else:
            arrays = [taken_rows(take, "x") for take in takes]
            weight = np.tile([take.weight for take in takes], (len(arrays[0]), 1)).astype(np.float64)
            length = np.array([array.shape[1] for array in arrays])
        n, seeds = (weight > 0).astype(np.int64) @ length, len(arrays[0])  # rows of weight 0 do not exist
        if (weight == weight[:, :1]).all():
            weight, length = np.ones((seeds, 1)), n[:1]
        rows: dict[str, Array] = {f"x.{i}": array for i, array in enumerate(arrays)}
        params = {"weight": weight, "length": np.tile(length, (seeds, 1)), **rows}
        d = arrays[0].shape[2]
        bandwidth = self._width(n, d)[:, None] * (_column_spreads(params) if self.standardize else np.ones((seeds, d)))
        return EnsembleFit({"bandwidth": bandwidth, **params})

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        arrays = _model_rows(params)
        weight, length = np.asarray(params["weight"], np.float64), np.asarray(params["length"], np.int64)
        positions = np.empty((len(streams), n), np.int64)
        noise = np.empty((len(streams), n, arrays[0].shape[2]))
        for s, stream in enumerate(streams):
            rng = stream.generator()
            positions[s] = _weighted_positions(rng.random(n), weight[s], length[s])
            rng.standard_normal(out=noise[s])
        noise *= np.asarray(params["bandwidth"], np.float64)[:, None]
        noise += np.asarray(gather_across_takes(arrays, positions), np.float64)
        return {"x": noise}

    def second_moment(self, params: Params) -> Floats:
        """Weighted mean of |x|^2 over the training rows of each seed; the density has the sum of squared bandwidths more."""
        mass = _row_weights(params)
        squares = np.concatenate([np.vecdot(x, x) for x in _model_rows(params)], axis=1)
        return np.asarray((mass * squares).sum(axis=1) / mass.sum(axis=1))

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return normal_nll(initial["x"], holdout["x"], truth) if metric == "nll" else None

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        one = {name: array[None] for name, array in params.items()}
        return np.asarray(_log_density(one, np.asarray(rows["x"], np.float64)[None])[0])

    def log_prob_rows(self, params: Params, takes: Sequence[EnsembleTake], rows: Columns) -> Floats:
        """Log density of every seed's model, fitted on `takes`, at the rows of that seed, in nats: (seeds, rows).

        A whole batch contributes the log of a sum of kernels, which is computed once per batch and bandwidth. (A standardized
        bandwidth is another one for every fit.)
        """
        if any(isinstance(take.indices, np.ndarray) or take.row_weights is not None for take in takes):
            return _log_density(params, np.asarray(rows["x"], np.float64))
        points, width = np.asarray(rows["x"], np.float64), np.asarray(params["bandwidth"], np.float64)
        sums = [_cached_log_sum(take, points, width) for take in takes]
        top = reduce(np.maximum, sums)
        total, share = np.zeros_like(top), np.empty_like(top)
        for take, of_take in zip(takes, sums, strict=True):
            np.maximum(np.subtract(of_take, top, out=share), MIN_EXPONENT, out=share)
            total += take.weight * np.exp(share, out=share)
        mass = sum(take.weight * taken_rows(take, "x").shape[1] for take in takes)
        return np.asarray(top + np.log(total / mass) - _log_normalizer(width)[:, None])

    def _width(self, n: Ints, d: int) -> Floats:
        """The bandwidth of each seed for n rows in d dimensions (weights do not count), as in scikit-learn's KernelDensity."""
        if isinstance(self.bandwidth, str):
            rows = n if self.bandwidth == "scott" else n * (d + 2) / 4
            return np.array([float(k) ** (-1 / (d + 4)) for k in rows])
        return np.full(len(n), self.bandwidth)


def _model_rows(params: Params) -> list[Floats]:
    return [np.asarray(params[f"x.{i}"], np.float64) for i in range(sum(name.startswith("x.") for name in params))]


def _row_weights(params: Params) -> Floats:
    """Weight of every training row: (seeds, rows)."""
    return np.stack([np.repeat(w, k) for w, k in zip(params["weight"], params["length"], strict=True)])


def _column_spreads(params: Params) -> Floats:
    """Weighted standard deviation of each column of the training rows, (seeds, d); 1 for a constant column."""
    x, mass = np.concatenate(_model_rows(params), axis=1), _row_weights(params)
    share = (mass / mass.sum(axis=1, keepdims=True))[:, None]
    mean = share @ x
    spread = np.sqrt(share @ np.square(x - mean))
    return np.asarray(np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)[:, 0], np.float64)


def _weighted_positions(uniform: Floats, weight: Floats, length: Ints) -> Ints:
    """Positions of rows drawn with probability proportional to their weight, one per uniform number."""
    edges = np.cumsum(weight * length)
    mass = uniform * edges[-1]
    group = np.minimum(np.searchsorted(edges, mass, side="right"), len(edges) - 1)
    in_group = ((mass - (edges - weight * length)[group]) / weight[group]).astype(np.int64)
    return np.asarray((np.cumsum(length) - length)[group] + np.clip(in_group, 0, length[group] - 1))


def _log_normalizer(width: Floats) -> Floats:
    return np.asarray((np.log(width) + 0.5 * np.log(2 * np.pi)).sum(axis=1))


def _cached_log_sum(take: EnsembleTake, points: Floats, width: Floats) -> Floats:
    """Log of the sum of the kernels of a take at the points; the newest result stays in the cache of the batch."""
    interval = (take.indices.start, take.indices.stop) if isinstance(take.indices, slice) else None
    cached = cast(tuple[Floats, Floats, object, Floats] | None, take.cache.get("log kernel sum"))
    if cached is not None and cached[0] is points and cached[2] == interval and np.array_equal(cached[1], width):
        return cached[3]
    sums = _log_kernel_sum(np.asarray(taken_rows(take, "x"), np.float64), points, width)
    take.cache["log kernel sum"] = (points, width, interval, sums)
    return sums


def _log_density(params: Params, points: Floats) -> Floats:
    arrays, width = _model_rows(params), np.asarray(params["bandwidth"], np.float64)
    x = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
    weights = _row_weights(params)
    sums = _log_kernel_sum(x, points, width, np.log(np.maximum(weights, 1e-300)))  # 0: a row that does not exist
    return np.asarray(sums - np.log(weights.sum(axis=1, keepdims=True)) - _log_normalizer(width)[:, None])


def _log_kernel_sum(x: Floats, points: Floats, width: Floats, log_weight: Floats | None = None) -> Floats:
    """Log of the sum over rows of weight times exp(-|(point - row) / h|^2 / 2), (seeds, points); never minus infinity.

    One matrix product gives all exponents of a chunk of rows. The largest exponent of a point is subtracted before `exp`.
    """
    seeds, n = x.shape[:2]
    m = points.shape[1]
    chunk = max(1, CHUNK_EXPONENTS // m)  # rows
    buffer = np.empty((min(chunk, n), m))
    sums = np.full((seeds, m), -np.inf)
    for s in range(seeds):
        center = points[s].mean(axis=0)
        rows, columns = (x[s] - center) / width[s], ((points[s] - center) / width[s]).T
        bias = -0.5 * (rows * rows).sum(axis=1, keepdims=True)
        left = np.concatenate([rows, bias if log_weight is None else bias + log_weight[s, :, None]], axis=1)
        right = np.concatenate([columns, np.ones((1, m))])
        for first in range(0, n, chunk):
            exponents = np.matmul(left[first : first + chunk], right, out=buffer[: min(chunk, n - first)])
            top = exponents.max(axis=0)
            exponents -= top
            np.exp(np.maximum(exponents, MIN_EXPONENT, out=exponents), out=exponents)
            log_sum = top + np.log(exponents.sum(axis=0))
            sums[s] = log_sum if first == 0 else np.logaddexp(sums[s], log_sum)
        sums[s] -= 0.5 * (columns * columns).sum(axis=0)
    return sums
