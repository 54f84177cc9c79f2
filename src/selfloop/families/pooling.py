"""Rows of an ensemble's parts: what a part takes of its batch, and rows picked from several parts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfloop.protocols import EnsembleTake
from selfloop.types import Array, Floats, Ints, TrainingRows


def lift(data: TrainingRows) -> list[EnsembleTake]:
    """The parts of one chain as those of an ensemble of one seed."""
    return [
        EnsembleTake({name: np.asarray(column)[None] for name, column in rows.items()}, None if k is None else k[None], weight)
        for rows, k, weight in data.parts
    ]


def is_masked(parts: Sequence[EnsembleTake]) -> bool:
    """Were the training rows drawn from all parts under one budget?"""
    return any(isinstance(part.indices, np.ndarray) and part.indices.dtype == bool for part in parts)


def taken(part: EnsembleTake, name: str) -> Array:
    """The column of the rows a part takes, (seeds, rows, ...): a view, unless rows are named one by one."""
    column, chosen = np.asarray(part.rows[name]), part.indices
    if chosen is None or isinstance(chosen, slice):
        return column if chosen is None else column[:, chosen]
    return np.asarray(column[np.arange(len(column))[:, None], chosen])


def masked_positions(parts: Sequence[EnsembleTake]) -> Ints:
    """Positions, in all parts one after another, of the rows a budget chose: (seeds, budget)."""
    masks = np.concatenate([np.asarray(part.indices) for part in parts], axis=1)
    return np.nonzero(masks)[1].reshape(len(masks), -1)


def pick(columns: Sequence[Array], positions: Ints) -> Array:
    """Rows at those positions (seeds, k) of all columns one after another, without joining them."""
    ends = np.cumsum([column.shape[1] for column in columns])
    part_of = np.searchsorted(ends, positions, side="right")
    picked = np.empty((*positions.shape, *columns[0].shape[2:]), columns[0].dtype)
    for p in np.unique(part_of):
        s, k = np.nonzero(part_of == p)
        picked[s, k] = columns[p][s, positions[s, k] - (ends[p] - columns[p].shape[1])]
    return picked


def part_weights(parts: Sequence[EnsembleTake], positions: Ints) -> Floats:
    """Weight of the row at each of those positions."""
    ends = np.cumsum([np.asarray(part.indices).shape[1] for part in parts])
    return np.array([part.weight for part in parts])[np.searchsorted(ends, positions, side="right")]
