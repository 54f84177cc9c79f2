"""The rows of a regression's takes, summed by design row if the takes repeat one design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from selfloop.columns import Array, Floats
from selfloop.errors import DataError
from selfloop.families.ensemble import row_counts, weighted_rows
from selfloop.snapshots import EnsembleTake


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
    return _sum_by_design_row(takes) or _concat_rows(takes)


def _concat_rows(takes: Sequence[EnsembleTake]) -> DesignRows:
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
