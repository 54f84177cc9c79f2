"""Gaussian kernel density estimates: a model is its training rows and a bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.ensemble import EnsembleFamily
from selfloop.families.pooling import is_masked, masked_positions, part_weights, pick, taken
from selfloop.protocols import EnsembleFit, EnsembleTake
from selfloop.rng import RandomStream
from selfloop.types import Array, Columns, Floats, Ints, Params

RULES = ("scott", "silverman")
LEAST = -700.0  # exp of less is a denormal number: thirty times slower, and nothing beside a kernel of 1


@dataclass(frozen=True, kw_only=True)
class Kde(EnsembleFamily):
    """Mean of Gaussian kernels at the training rows, weighted by row; a sample is a training row plus kernel noise.

    A model keeps its rows as `x.0`, `x.1`, ... (for whole batches the batches themselves, never a copy), in groups of equal
    weight: `length` rows each of `weight`, one group after another.
    """

    name: ClassVar[str] = "kde"
    required_columns: ClassVar[tuple[str, ...]] = ("x",)
    default_metrics: ClassVar[tuple[str, ...]] = ("nll",)
    bandwidth: float | str = "scott"  # of the data's unit; or scikit-learn's rules for n rows in d dimensions, unscaled

    def __post_init__(self) -> None:
        known = self.bandwidth in RULES if isinstance(self.bandwidth, str) else 0 < self.bandwidth < np.inf
        if not known:
            raise SpecError(f"family.bandwidth: got {self.bandwidth!r}; expected a number above 0, 'scott' or 'silverman'.")

    def width(self, n: int, d: int) -> float:
        """The bandwidth for n rows in d dimensions (weights do not count), as in scikit-learn's KernelDensity."""
        if self.bandwidth == "scott":
            return float(n ** (-1 / (d + 4)))
        if self.bandwidth == "silverman":
            return float((n * (d + 2) / 4) ** (-1 / (d + 4)))
        return float(self.bandwidth)

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        for part in parts:
            if set(part.rows) != {"x"} or np.asarray(part.rows["x"]).ndim != 3:
                raise DataError(f"kde: got columns {', '.join(part.rows)}; expected one column 'x' of vectors and no target.")
        if is_masked(parts):
            positions = masked_positions(parts)
            blocks = [pick([np.asarray(part.rows["x"]) for part in parts], positions)]
            weight, length = part_weights(parts, positions), np.ones(positions.shape[1], np.int64)
        else:
            blocks = [taken(part, "x") for part in parts]
            weight = np.tile([part.weight for part in parts], (len(blocks[0]), 1)).astype(np.float64)
            length = np.array([block.shape[1] for block in blocks])
        n, seeds = int(length.sum()), len(blocks[0])
        if (weight == weight[:, :1]).all():
            weight, length = np.ones((seeds, 1)), np.array([n])
        bandwidth = np.full(seeds, self.width(n, blocks[0].shape[2]))
        named: dict[str, Array] = {f"x.{i}": block for i, block in enumerate(blocks)}
        return EnsembleFit({"bandwidth": bandwidth, "weight": weight, "length": np.tile(length, (seeds, 1)), **named})

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        blocks, weight, length = (
            _blocks(params),
            np.asarray(params["weight"], np.float64),
            np.asarray(params["length"], np.int64),
        )
        positions = np.empty((len(streams), n), np.int64)
        noise = np.empty((len(streams), n, blocks[0].shape[2]))
        for s, stream in enumerate(streams):
            rng = stream.generator()
            positions[s] = _positions(rng.random(n), weight[s], length[s])
            rng.standard_normal(out=noise[s])
        noise *= np.asarray(params["bandwidth"], np.float64)[:, None, None]
        noise += np.asarray(pick(blocks, positions), np.float64)
        return {"x": noise}

    def second_moment(self, params: Params) -> Floats:
        """Mean of |x|^2 over the training rows of each seed, by weight; the density's own has d h^2 more."""
        mass = _row_weights(params)
        squares = np.concatenate([np.vecdot(block, block) for block in _blocks(params)], axis=1)
        return np.asarray((mass * squares).sum(axis=1) / mass.sum(axis=1))

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density of one model at each row, in nats."""
        one = {name: array[None] for name, array in params.items()}
        return np.asarray(_log_density(one, np.asarray(rows["x"], np.float64)[None])[0])

    def log_prob_rows(self, params: Params, parts: Sequence[EnsembleTake], rows: Columns) -> Floats:
        """Log density of every seed's model, fitted on `parts`, at that seed's rows, in nats: (seeds, rows).

        A whole batch contributes the log of a sum of kernels, which is computed once per batch and bandwidth.
        """
        if is_masked(parts) or any(isinstance(part.indices, np.ndarray) for part in parts):
            return _log_density(params, np.asarray(rows["x"], np.float64))
        points, width = np.asarray(rows["x"], np.float64), np.asarray(params["bandwidth"], np.float64)
        sums = [_kept_log_sum(part, points, width) for part in parts]
        top = sums[0].copy()
        for each in sums[1:]:
            np.maximum(top, each, out=top)
        total, share = np.zeros_like(top), np.empty_like(top)
        for part, each in zip(parts, sums, strict=True):
            np.maximum(np.subtract(each, top, out=share), LEAST, out=share)
            total += part.weight * np.exp(share, out=share)
        mass = sum(part.weight * taken(part, "x").shape[1] for part in parts)
        return np.asarray(top + np.log(total / mass) - _log_normaliser(width, points.shape[2])[:, None])


def _blocks(params: Params) -> list[Floats]:
    return [np.asarray(params[f"x.{i}"], np.float64) for i in range(sum(name.startswith("x.") for name in params))]


def _row_weights(params: Params) -> Floats:
    """Weight of every training row: (seeds, rows)."""
    return np.stack([np.repeat(w, k) for w, k in zip(params["weight"], params["length"], strict=True)])


def _positions(u: Floats, weight: Floats, length: Ints) -> Ints:
    """The rows that uniform numbers fall on when row i is as wide as its weight."""
    edges = np.cumsum(weight * length)
    at = u * edges[-1]
    group = np.minimum(np.searchsorted(edges, at, side="right"), len(edges) - 1)
    within = ((at - (edges - weight * length)[group]) / weight[group]).astype(np.int64)
    return np.asarray((np.cumsum(length) - length)[group] + np.clip(within, 0, length[group] - 1))


def _log_normaliser(width: Floats, d: int) -> Floats:
    return np.asarray(d * (np.log(width) + 0.5 * np.log(2 * np.pi)))


def _kept_log_sum(part: EnsembleTake, points: Floats, width: Floats) -> Floats:
    stop = part.indices.stop if isinstance(part.indices, slice) else None
    key = (id(points), float(width[0]), stop)
    kept = cast(tuple[object, Floats, Floats] | None, part.cache.get("log kernel sum"))
    if kept is None or kept[0] != key:
        sums = _log_kernel_sum(np.asarray(taken(part, "x"), np.float64), points, width)
        kept = part.cache["log kernel sum"] = (key, points, sums)  # with the points, so that their id stays theirs
    return kept[2]


def _log_density(params: Params, points: Floats) -> Floats:
    blocks, width = _blocks(params), np.asarray(params["bandwidth"], np.float64)
    x = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    weights = _row_weights(params)
    sums = _log_kernel_sum(x, points, width, np.log(weights))
    return np.asarray(sums - np.log(weights.sum(axis=1, keepdims=True)) - _log_normaliser(width, points.shape[2])[:, None])


def _log_kernel_sum(x: Floats, points: Floats, width: Floats, log_weight: Floats | None = None) -> Floats:
    """Log of the sum over rows of weight times exp(-|point - row|^2 / 2 h^2), (seeds, points); never minus infinity.

    One small matrix product gives all exponents; the largest of a point is taken out before the exponential.
    """
    seeds, n = x.shape[:2]
    m = points.shape[1]
    step = max(1, (1 << 16) // m)  # rows at a time, so that the exponents stay in the cache
    exponents = np.empty((min(step, n), m))
    sums = np.full((seeds, m), -np.inf)
    for s in range(seeds):
        centre = points[s].mean(axis=0)
        rows, at = (x[s] - centre) / width[s], (points[s] - centre).T / width[s]
        bias = -0.5 * (rows * rows).sum(axis=1, keepdims=True)
        left = np.concatenate([rows, bias if log_weight is None else bias + log_weight[s, :, None]], axis=1)
        right = np.concatenate([at, np.ones((1, m))])
        for first in range(0, n, step):
            e = np.matmul(left[first : first + step], right, out=exponents[: min(step, n - first)])
            top = e.max(axis=0)
            e -= top
            np.exp(np.maximum(e, LEAST, out=e), out=e)
            part = top + np.log(e.sum(axis=0))
            sums[s] = part if first == 0 else np.logaddexp(sums[s], part)
        sums[s] -= 0.5 * (at * at).sum(axis=0)
    return sums
