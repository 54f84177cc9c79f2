"""Families that fit and sample many seeds at once, and the rows of an ensemble's takes, summed if they repeat one design.

Arrays have a leading seeds axis. One chain is an ensemble of one seed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, TypeVar, cast

import numpy as np

from selfloop.columns import Array, Columns, Floats, Ints, Params
from selfloop.component import Context, Family, Sampler
from selfloop.errors import ChainEndedError, DataError
from selfloop.protocols import EnsembleFit, SeedStreams
from selfloop.snapshots import EnsembleTake, scale_row_weights
from selfloop.types import TrainingRows

T = TypeVar("T")


class EnsembleFamily(Family):
    """A family that defines `fit_rows` and `sample_rows` only. `fit` and `sample` follow from them."""

    @abstractmethod
    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        """The models of all seeds."""

    @abstractmethod
    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        """n rows of every seed's model, drawn from the stream of that seed."""

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        previous = None if init is None else {name: array[None] for name, array in init.items()}
        takes = [
            EnsembleTake(
                {name: np.asarray(column)[None] for name, column in take.rows.items()},
                None if take.indices is None else take.indices[None],
                take.weight,
                row_weights=None if take.row_weights is None else take.row_weights[None],
            )
            for take in rows.takes
        ]
        fitted = self.fit_rows(scale_row_weights(takes)[0], previous)
        if fitted.status is not None and fitted.status[0] is not None:
            raise ChainEndedError(fitted.status[0])
        return {name: array[0] for name, array in fitted.params.items()}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        stacked = {name: array[None] for name, array in params.items()}
        inputs = {name: np.asarray(column)[None] for name, column in inputs.items()}
        rows = self.sample_rows(stacked, n, sampler, inputs, [ctx.stream])
        return {name: np.asarray(column)[0] for name, column in rows.items()}


def memoize(take: EnsembleTake, key: str, compute: Callable[[], T]) -> T:
    """The value of `compute()`, computed once per batch."""
    if key not in take.cache:
        take.cache[key] = compute()
    return cast(T, take.cache[key])


def sum_in_order(arrays: Sequence[Floats]) -> Floats:
    """Sum of the arrays, one after another. The rounding of `np.sum` over a leading axis depends on the number of seeds."""
    return reduce(np.add, arrays)


def mass_shares(counts: Sequence[Floats], weights: Sequence[float]) -> list[Floats]:
    """Share of the training mass (rows x weight) of each take, per seed."""
    masses = [weight * count for weight, count in zip(weights, counts, strict=True)]
    total = sum_in_order(masses)
    return [mass / total for mass in masses]


def row_counts(take: EnsembleTake) -> Floats | None:
    """How often each row of the batch is taken times its own weight, (seeds, rows); None if every row counts once."""
    counts = _index_counts(take)
    if take.row_weights is None or counts is None:
        return take.row_weights if counts is None else counts
    return counts * take.row_weights


def _index_counts(take: EnsembleTake) -> Floats | None:
    indices = take.indices
    if indices is None:
        return None
    seeds, n = np.asarray(next(iter(take.rows.values()))).shape[:2]
    if isinstance(indices, slice):
        return np.broadcast_to(np.bincount(np.arange(n)[indices], minlength=n).astype(np.float64), (seeds, n))
    if indices.dtype == np.bool_:
        return indices.astype(np.float64)
    positions = (indices + n * np.arange(seeds)[:, None]).ravel()
    return np.bincount(positions, minlength=seeds * n).reshape(seeds, n).astype(np.float64)


def taken_rows(take: EnsembleTake, name: str) -> Array:
    """One column of the rows of a take, (seeds, rows, ...): a view, or a copy if the take has an array of indices."""
    column, indices = np.asarray(take.rows[name]), take.indices
    if indices is None or isinstance(indices, slice):
        return column if indices is None else column[:, indices]
    return np.asarray(column[np.arange(len(column))[:, None], indices])


def has_budget(takes: Sequence[EnsembleTake]) -> bool:
    """True if the training rows were drawn from all takes under one budget."""
    return any(isinstance(take.indices, np.ndarray) and take.indices.dtype == bool for take in takes)


def weighted_rows(takes: Sequence[EnsembleTake], *names: str) -> tuple[list[Array], Floats]:
    """The named columns of the training rows, (seeds, rows, ...) each, and the weight of every row."""
    if has_budget(takes):
        return budget_rows(takes, *names)
    columns = [np.concatenate([taken_rows(take, name) for take in takes], axis=1) for name in names]
    return columns, np.concatenate([take.weight * take.taken_weights() for take in takes], axis=1)


def budget_rows(takes: Sequence[EnsembleTake], *names: str) -> tuple[list[Array], Floats]:
    """The named columns of the rows drawn under a budget, (seeds, budget, ...) each, and the weight of every row."""
    masks = [np.asarray(take.indices) for take in takes]
    joined = np.concatenate(masks, axis=1)
    is_curated = any(take.row_weights is not None for take in takes)
    if is_curated:  # a seed may have drawn fewer rows than the budget; others of weight 0 fill them up
        drawn = joined.sum(axis=1, keepdims=True)
        positions = np.argsort(~joined, axis=1, kind="stable")[:, : drawn.max()]
    else:
        positions = np.nonzero(joined)[1].reshape(len(joined), -1)
    ends = np.cumsum([mask.shape[1] for mask in masks])
    weights = np.array([take.weight for take in takes])[np.searchsorted(ends, positions, side="right")]
    if is_curated:
        weights = weights * gather_across_takes([take.weights() for take in takes], positions)
        weights = np.where(np.arange(positions.shape[1]) < drawn, weights, 0)
    return [gather_across_takes([np.asarray(take.rows[name]) for take in takes], positions) for name in names], weights


def gather_across_takes(columns: Sequence[Array], positions: Ints) -> Array:
    """Rows at the positions (seeds, k) that count all columns one after another; the columns are not concatenated."""
    ends = np.cumsum([column.shape[1] for column in columns])
    take_of = np.searchsorted(ends, positions, side="right")
    rows = np.empty((*positions.shape, *columns[0].shape[2:]), columns[0].dtype)
    for i in np.unique(take_of):
        s, k = np.nonzero(take_of == i)
        rows[s, k] = columns[i][s, positions[s, k] - (ends[i] - columns[i].shape[1])]
    return rows


class DesignRows(NamedTuple):
    """Design rows, and for each row the mass of its training rows and their sum of outcomes; leading seeds axis."""

    x: Floats
    mass: Floats
    total: Floats


def check_columns(family: str, takes: Sequence[EnsembleTake]) -> None:
    """Raise DataError for rows that are not inputs and outcomes."""
    for take in takes:
        if set(take.rows) != {"x", "y"}:
            columns = ", ".join(take.rows)
            raise DataError(f"{family}: got columns {columns}; expected inputs 'x' and outcomes 'y'. Name a target.")


def sum_design_rows(takes: Sequence[EnsembleTake]) -> DesignRows:
    """The training rows of all seeds; by design row if the inputs of every take repeat those of the first one."""
    if by_design := _sum_by_design_row(takes):
        return by_design
    columns, mass = weighted_rows(takes, "x", "y")
    x, y = (np.asarray(column, np.float64) for column in columns)
    return DesignRows(x, mass, mass * y)


def _sum_by_design_row(takes: Sequence[EnsembleTake]) -> DesignRows | None:
    """The rows of all takes, summed by design row, so that t batches cost as much as one batch.

    None if the takes do not share their inputs: row i must have the inputs of row i mod n.
    """
    design = np.asarray(takes[0].rows["x"])
    seeds, n = len(design), _period(design)
    mass, total = np.zeros((seeds, n)), np.zeros((seeds, n))
    for take in takes:
        if not _repeats_design(take, design):
            return None
        y, counts = np.asarray(take.rows["y"], np.float64), row_counts(take)
        weight = np.broadcast_to(take.weight, y.shape) if counts is None else take.weight * counts
        for first in range(0, y.shape[1], n):
            copy = weight[:, first : first + n]
            mass[:, : copy.shape[1]] += copy
            total[:, : copy.shape[1]] += copy * y[:, first : first + n]
    return DesignRows(np.asarray(design[:, :n], np.float64), mass, total)


def _repeats_design(take: EnsembleTake, design: Array) -> bool:
    """True if the inputs of the batch are the design, repeated as often as needed."""
    x = np.asarray(take.rows["x"])
    if x is design:
        return True
    cached = cast(tuple[Array, bool] | None, take.cache.get("repeats"))
    if cached is None or cached[0] is not design:
        n = design.shape[1]
        copies = (x[:, first : first + n] for first in range(0, x.shape[1], n))
        cached = design, all(np.array_equal(copy, design[:, : copy.shape[1]]) for copy in copies)
        take.cache["repeats"] = cached
    return cached[1]


def _period(x: Array) -> int:
    """Number of rows after which the inputs repeat, in every seed; the number of all rows if they do not repeat."""
    for p in (np.flatnonzero((x[0, 1:] == x[0, 0]).all(axis=1)) + 1).tolist():
        if np.array_equal(x[0, p:], x[0, :-p]) and np.array_equal(x[:, p:], x[:, :-p]):
            return int(p)
    return int(x.shape[1])


def split_generator(rng: np.random.Generator) -> tuple[np.random.Generator, np.random.Generator]:
    """Two generators, one for each of two arrays.

    A generator that draws one array, seeds first, draws the same numbers for a seed whatever the number of later seeds.
    """
    first, second = (np.random.Generator(np.random.SFC64(seed)) for seed in rng.integers(1 << 63, size=2))
    return first, second


def bartlett(rows: int, d: int, seeds: int, rng: np.random.Generator) -> Floats:
    """Lower-trapezoidal A, (seeds, d, min(rows, d)), with A A' distributed as X'X for `rows` standard normal rows X.

    Bartlett (1933): entry (i, i) is chi with rows - i degrees of freedom, the entries below it are standard normal, all
    independent. It holds for fewer rows than d too (singular Wishart). The cost does not depend on the number of rows.
    """
    k = min(rows, d)
    factor = np.zeros((seeds, d, k))
    for_diagonal, for_lower = split_generator(rng)
    factor[:, np.arange(k), np.arange(k)] = np.sqrt(for_diagonal.chisquare(rows - np.arange(k), (seeds, k)))
    lower = np.tril_indices(d, -1, k)
    factor[:, *lower] = for_lower.standard_normal((seeds, len(lower[0])))
    return factor


def matrix_root(covariance: Floats) -> Floats:
    """R with R R' = covariance: the Cholesky factor, or one from eigenvectors if a matrix is singular."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:
        if len(covariance) > 1:  # seed by seed, so that the root of a regular matrix does not depend on the other seeds
            return np.concatenate([matrix_root(matrix[None]) for matrix in covariance])
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0))[:, None], np.float64)
