"""Molecules of a batch side by side: their atoms and pairs of atoms as flat arrays, without a loop over molecules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from selfloop.types import Array, Ints, Ragged

NEIGHBOURS = 32  # of the radius graph that an atom hears at most, the nearest ones; the published code's number


class Directions(NamedTuple):
    """Both directions of pairs (i, j), as two halves: what i hears from j, then what j hears from i."""

    target: Tensor  # (2 * pairs,) atoms
    source: Tensor
    order: Tensor  # the directions by target
    starts: Tensor  # (atoms,) where those of an atom begin in `order`

    @classmethod
    def of(cls, pairs: Tensor, atoms: int) -> Directions:
        target = pairs.flatten()
        counts = torch.bincount(target, minlength=atoms)
        return cls(target, pairs.flip(0).flatten(), target.argsort(stable=True), counts.cumsum(0) - counts)


class Graphs(NamedTuple):
    """What does not depend on positions. Atoms of all rows are numbered through; a pair of atoms is listed once."""

    z: Tensor  # (atoms,) atomic numbers
    row: Tensor  # (atoms,) which row an atom belongs to
    sizes: Tensor  # (rows,) atoms of each row
    pairs: Tensor  # (2, pairs) every two atoms of the same row
    extended: Tensor  # which pairs are in the extended graph
    kind: Tensor  # (extended,) their edge types, as places in `kinds`
    kinds: Tensor  # edge types there are; the first one is 0, of pairs that are not in the extended graph
    directions: Directions  # of the extended graph


class Edges(NamedTuple):
    """Pairs of atoms at some positions, first those that are not in the extended graph."""

    pairs: Tensor  # (2, edges)
    kind: Tensor  # (edges,) places in the graphs' `kinds`
    length: Tensor  # (edges,) in ångström
    unit: Tensor  # (edges, 3) unit vector from j to i
    hears: Tensor  # (2, edges) 1 where i hears j, and where j hears i, else 0
    radius: int  # how many are not in the extended graph


@lru_cache(maxsize=1)
def _triangle(size: int) -> Ints:
    """Pairs i < j < size, ordered so that the pairs of fewer atoms come first: one list serves every size."""
    j, i = np.tril_indices(size, -1)
    return np.stack([i, j])


def place(rows: Mapping[str, Ragged], device: torch.device) -> Graphs:
    """The graphs of rows with the columns z, edges and edge_type."""
    z, edges = rows["z"], rows["edges"]
    sizes = np.diff(z.offsets)
    counts = sizes * (sizes - 1) // 2
    starts = np.cumsum(counts) - counts
    rank = np.arange(counts.sum()) - np.repeat(starts, counts)  # of a pair within its molecule
    size = 1 << int(sizes.max(initial=2) - 1).bit_length()  # few different lists
    pairs = _triangle(size)[:, rank] + np.repeat(z.offsets[:-1] - z.offsets[0], counts)
    i, j = edges.values.astype(np.int64).T
    extended = np.repeat(starts, np.diff(edges.offsets)) + j * (j - 1) // 2 + i
    kinds, kind = np.unique(np.append(rows["edge_type"].values, np.uint8(0)), return_inverse=True)

    def moved(array: Array) -> Tensor:
        return torch.from_numpy(array).to(device)

    of_atoms, row, of_pairs = moved(z.values.astype(np.int64)), moved(np.repeat(np.arange(len(sizes)), sizes)), moved(pairs)
    directions = Directions.of(moved(pairs[:, extended]), len(z.values))
    types = (moved(kind[:-1]), moved(kinds.astype(np.int64)))
    return Graphs(of_atoms, row, moved(sizes), of_pairs, moved(extended), *types, directions)


def lengths(position: Tensor, pairs: Tensor) -> Tensor:
    """Distance of each pair, ångström."""
    apart = position.index_select(0, pairs[0]) - position.index_select(0, pairs[1])
    return cast(Tensor, torch.linalg.vector_norm(apart, dim=1))


def extended_edges(graphs: Graphs, position: Tensor) -> Edges:
    """The extended graph, whose edges always go both ways."""
    pairs = graphs.directions.target.view(2, -1)
    return _edges(position, pairs, graphs.kind, torch.ones_like(pairs), 0)


def edges_within(graphs: Graphs, position: Tensor, cutoff: float) -> Edges:
    """Pairs within `cutoff`, if they are in the extended graph or one of the two is among the other's nearest neighbours."""
    length = lengths(position, graphs.pairs)
    inside = length <= cutoff
    hears = _nearest(graphs, length) & inside
    hears[:, graphs.extended] = False
    radius, near = hears.any(0).nonzero().squeeze(1), inside[graphs.extended].nonzero().squeeze(1)
    hears[:, graphs.extended] = True
    chosen = torch.cat([radius, graphs.extended[near]])
    kind = torch.cat([torch.zeros_like(radius), graphs.kind[near]])
    return _edges(position, graphs.pairs[:, chosen], kind, hears[:, chosen], len(radius))


def _edges(position: Tensor, pairs: Tensor, kind: Tensor, hears: Tensor, radius: int) -> Edges:
    apart = position.index_select(0, pairs[0]) - position.index_select(0, pairs[1])
    length = torch.linalg.vector_norm(apart, dim=1)
    return Edges(pairs, kind, length, apart / length[:, None], hears.to(length.dtype), radius)


def _nearest(graphs: Graphs, length: Tensor) -> Tensor:
    """(2, pairs): is j among the nearest neighbours of i, and i among those of j?"""
    largest, atoms = int(graphs.sizes.max()), len(graphs.z)
    if largest <= NEIGHBOURS + 1:
        return torch.ones_like(graphs.pairs, dtype=torch.bool)
    first = (graphs.sizes.cumsum(0) - graphs.sizes)[graphs.row]
    local = graphs.pairs - first[graphs.pairs]
    table = length.new_full((atoms, largest), torch.inf)  # of each atom to the others of its molecule
    for a, b in ((0, 1), (1, 0)):
        table[graphs.pairs[a], local[b]] = length
    return length <= table.kthvalue(NEIGHBOURS, dim=1).values[graphs.pairs]
