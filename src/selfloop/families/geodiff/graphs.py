"""Molecules of a minibatch side by side: their atoms and pairs of atoms as flat arrays, without a loop over molecules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from selfloop.columns import Array, Ragged

MAX_NEIGHBORS = 32  # of an atom in the cutoff graph, the nearest atoms; the published code's number


class DirectedPairs(NamedTuple):
    """Both directions of pairs (i, j), in two halves: messages from j to i, then messages from i to j."""

    target: Tensor  # (2 * pairs,) atoms
    source: Tensor
    order: Tensor  # the directions by target
    starts: Tensor  # (atoms,) index in `order` of the first direction of each target

    @classmethod
    def of(cls, pairs: Tensor, atoms: int) -> DirectedPairs:
        target = pairs.flatten()
        counts = torch.bincount(target, minlength=atoms)
        return cls(target, pairs.flip(0).flatten(), target.argsort(stable=True), counts.cumsum(0) - counts)


class Graphs(NamedTuple):
    """The molecular graphs, without positions. Atoms of all rows are numbered consecutively; a pair is listed once."""

    z: Tensor  # (atoms,) atomic numbers
    row: Tensor  # (atoms,) row of each atom
    sizes: Tensor  # (rows,) atoms of each row
    pairs: Tensor  # (2, pairs) all pairs of atoms of the same row
    extended: Tensor  # indices of the pairs of the extended graph
    kind: Tensor  # (extended,) their edge types, as indices in `kinds`
    kinds: Tensor  # the edge types that occur; the first is 0, of pairs outside the extended graph
    directions: DirectedPairs  # of the extended graph


class Edges(NamedTuple):
    """Pairs of atoms at some positions, first those outside the extended graph."""

    pairs: Tensor  # (2, edges)
    kind: Tensor  # (edges,) indices in the graphs' `kinds`
    length: Tensor  # (edges,) in ångström
    unit: Tensor  # (edges, 3) unit vector from j to i
    receives: Tensor  # (2, edges) 1 if i receives a message from j, and if j receives a message from i, else 0
    n_outside: int  # number of edges outside the extended graph


def build_graphs(rows: Mapping[str, Ragged], device: torch.device) -> Graphs:
    """The graphs of rows with the columns z, edges and edge_type."""
    z, edges = rows["z"], rows["edges"]
    sizes = np.diff(z.offsets)
    counts = sizes * (sizes - 1) // 2
    starts = np.cumsum(counts) - counts
    rank = np.arange(counts.sum()) - np.repeat(starts, counts)  # of a pair within its molecule
    triangle = np.tril_indices(int(sizes.max(initial=2)), -1)  # pairs j > i; those of fewer atoms come first
    pairs = np.stack(triangle[::-1])[:, rank] + np.repeat(z.offsets[:-1] - z.offsets[0], counts)
    i, j = edges.values.astype(np.int64).T
    extended = np.repeat(starts, np.diff(edges.offsets)) + j * (j - 1) // 2 + i
    kinds, kind = np.unique(np.append(rows["edge_type"].values, np.uint8(0)), return_inverse=True)

    def to_device(array: Array) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Graphs(
        z=to_device(z.values.astype(np.int64)), row=to_device(np.repeat(np.arange(len(sizes)), sizes)), sizes=to_device(sizes),
        pairs=to_device(pairs), extended=to_device(extended), kind=to_device(kind[:-1]),
        kinds=to_device(kinds.astype(np.int64)), directions=DirectedPairs.of(to_device(pairs[:, extended]), len(z.values)),
    )  # fmt: skip


def pair_lengths(position: Tensor, pairs: Tensor) -> Tensor:
    """Distance between the atoms of each pair, ångström."""
    offset = position.index_select(0, pairs[0]) - position.index_select(0, pairs[1])
    return cast(Tensor, torch.linalg.vector_norm(offset, dim=1))


def extended_edges(graphs: Graphs, position: Tensor) -> Edges:
    """The extended graph, whose edges have both directions."""
    pairs = graphs.directions.target.view(2, -1)
    return _measure_edges(position, pairs, graphs.kind, torch.ones_like(pairs), 0)


def cutoff_edges(graphs: Graphs, position: Tensor, cutoff: float) -> Edges:
    """Pairs within `cutoff` that are in the extended graph or of which one atom is among the other's nearest neighbors."""
    length = pair_lengths(position, graphs.pairs)
    inside = length <= cutoff
    receives = _nearest(graphs, length) & inside
    receives[:, graphs.extended] = False
    outside_graph, in_graph = receives.any(0).nonzero().squeeze(1), inside[graphs.extended].nonzero().squeeze(1)
    receives[:, graphs.extended] = True
    indices = torch.cat([outside_graph, graphs.extended[in_graph]])
    kind = torch.cat([torch.zeros_like(outside_graph), graphs.kind[in_graph]])
    return _measure_edges(position, graphs.pairs[:, indices], kind, receives[:, indices], len(outside_graph))


def _measure_edges(position: Tensor, pairs: Tensor, kind: Tensor, receives: Tensor, n_outside: int) -> Edges:
    offset = position.index_select(0, pairs[0]) - position.index_select(0, pairs[1])
    length = torch.linalg.vector_norm(offset, dim=1)
    return Edges(pairs, kind, length, offset / length[:, None], receives.to(length.dtype), n_outside)


def _nearest(graphs: Graphs, length: Tensor) -> Tensor:
    """(2, pairs): True if j is among the nearest neighbors of i, and if i is among those of j."""
    largest, atoms = int(graphs.sizes.max()), len(graphs.z)
    if largest <= MAX_NEIGHBORS + 1:
        return torch.ones_like(graphs.pairs, dtype=torch.bool)
    first = (graphs.sizes.cumsum(0) - graphs.sizes)[graphs.row]
    local = graphs.pairs - first[graphs.pairs]
    table = length.new_full((atoms, largest), torch.inf)  # of each atom to the others of its molecule
    for a, b in ((0, 1), (1, 0)):
        table[graphs.pairs[a], local[b]] = length
    return length <= table.kthvalue(MAX_NEIGHBORS, dim=1).values[graphs.pairs]
