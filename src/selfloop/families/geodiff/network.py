"""GeoDiff's network (Xu et al. 2022, 2203.02923): two graph encoders that return one coefficient per pair of atoms.

The molecules of a minibatch are side by side: their atoms and pairs of atoms are flat arrays, without a loop over molecules.

Features of a pair are symmetric, so they are computed once per pair and used in both directions. torch-geometric's layers,
which treat the directions as two edges, take more than twice as long; a test compares with them.

A ReLU perceptron of a pair's length is linear between the lengths at which one of its units switches. Linear layers after it
are computed once per piece and not once per pair: exactly, up to rounding, with half of all products. Sums use
`embedding_bag`, the fastest sum of rows on a CPU. Its own derivatives are slow, so they are written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import embedding_bag
from torch.nn.functional import linear as linear_layer

from selfloop.columns import Array, Ragged

KINDS = 100  # rows of the tables of atomic numbers and of edge types
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


class PairSegments(NamedTuple):
    """The segment and the length of some pairs. A segment is a range of lengths of one edge type."""

    rows: Tensor  # (pairs, 2) rows of a flat table of pieces: value at length 0, slope
    weights: Tensor  # (pairs, 2) weights of these rows: 1, length
    order: Tensor  # (2 * pairs,) pairs by row of the table
    order_weights: Tensor
    starts: Tensor  # (2 * segments,) index in `order` of the first pair of each row of the table

    @classmethod
    def of(cls, segment: Tensor, length: Tensor, n_segments: int) -> PairSegments:
        one = torch.ones_like(length)
        rows, weights = torch.stack([segment, segment + n_segments], 1), torch.stack([one, length], 1)
        if not torch.is_grad_enabled():
            return cls(rows, weights, segment, length, segment)
        order = segment.argsort(stable=True)
        counts = torch.bincount(segment, minlength=n_segments)
        starts = counts.cumsum(0) - counts
        by_row = torch.cat([order, order]), torch.cat([one, length[order]]), torch.cat([starts, starts + len(segment)])
        return cls(rows, weights, *by_row)

    def evaluate(self, pieces: Tensor) -> Tensor:
        """Features (pairs, features) of pieces (2, segments, features): values at length 0, and slopes per ångström."""
        return _Evaluate.apply(pieces.flatten(0, 1), *self)  # type: ignore[no-any-return,no-untyped-call]  # autograd is untyped


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, *by_row: Tensor) -> Tensor:
        ctx.save_for_backward(*by_row)
        return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, weights, starts = ctx.saved_tensors
        grad_table = embedding_bag(order, gradients[0].contiguous(), starts, per_sample_weights=weights, mode="sum")
        return grad_table, *[None] * 5


def perceptron_pieces(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Pieces (2, segments, features) of second(relu(first(length))), and the breakpoints above 0."""
    slope, start = first.weight[:, 0], first.bias
    with torch.no_grad():
        breakpoints = -start / slope
        breakpoints = breakpoints[(breakpoints > 0) & breakpoints.isfinite()].sort().values
        last = breakpoints[-1:] + 1 if len(breakpoints) else breakpoints.new_ones(1)
        ends = torch.cat([breakpoints.new_zeros(1), breakpoints, last])
        on = ((ends[1:] + ends[:-1]) / 2)[:, None] * slope + start > 0  # (segments, units)
    return linear_pieces(torch.stack([on * start, on * slope]), second.weight, second.bias), breakpoints


def linear_pieces(pieces: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_layer(pieces, weight) + torch.stack([bias, torch.zeros_like(bias)])[:, None]


class Convolve(torch.autograd.Function):
    """For each atom the sum of x_other * filters * weights: filters per pair, weights per direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, weights: Tensor, *directions: Tensor) -> Tensor:
        _, source, order, starts = directions
        ctx.save_for_backward(x, filters, weights, *directions)
        messages = x.index_select(0, source)
        messages.view(2, *filters.shape).mul_(filters)
        return embedding_bag(order, messages, starts, per_sample_weights=weights[order], mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, weights, target, source, order, starts = ctx.saved_tensors
        weighted = embedding_bag(target[:, None], gradients[0].contiguous(), per_sample_weights=weights[:, None], mode="sum")
        forward, backward = x.index_select(0, source).mul_(weighted).view(2, *filters.shape)
        weighted.view(2, *filters.shape).mul_(filters)
        opposite = (order + len(order) // 2) % len(order)  # direction of each direction
        grad_x = embedding_bag(opposite, weighted, starts, mode="sum")
        return grad_x, forward.add_(backward), *[None] * 5


class EdgeEncoder(nn.Module):
    """Features of a pair of atoms: perceptron of its length times embedding of its edge type."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, hidden)
        self.of_kind = nn.Embedding(KINDS, hidden)

    def forward(self, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Pieces (2, segments, hidden), with the segments of each edge type in turn, and the breakpoints."""
        pieces, breakpoints = perceptron_pieces(self.first, self.second)
        return (pieces[:, None] * self.of_kind(kinds)[:, None]).flatten(1, 2), breakpoints


class Interaction(nn.Module):
    """SchNet's interaction (Schütt et al. 2017, 1706.08566): continuous-filter convolution, then an atom-wise layer."""

    def __init__(self, hidden: int, filters: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(hidden, filters), nn.Linear(filters, filters)  # of the filters
        self.enter, self.leave = nn.Linear(hidden, filters, bias=False), nn.Linear(filters, hidden)
        self.last = nn.Linear(hidden, hidden)
        for layer in (self.enter, self.leave):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, edge: Tensor, segments: PairSegments, weights: Tensor, directions: DirectedPairs) -> Tensor:
        inputs = segments.evaluate(linear_pieces(edge, self.first.weight, self.first.bias))
        filters = _linear_of_softplus(self.second, inputs)
        messages = Convolve.apply(self.enter(h), filters, weights, *directions)  # type: ignore[no-untyped-call]  # autograd is untyped
        return _linear_of_softplus(self.last, self.leave(messages))


def _linear_of_softplus(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer of softplus(x) - log 2. The shift is in the bias, which saves one pass over every pair's features."""
    return functional.linear(functional.softplus(x), layer.weight, layer.bias - math.log(2) * layer.weight.sum(1))


class Convolution(nn.Module):
    """GIN with edge features (Hu et al. 2020, 1905.12265): a perceptron of x_i + sum of relu(x_j + edge)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, edge: Tensor, directions: DirectedPairs) -> Tensor:
        messages = functional.relu(h.index_select(0, directions.source).view(2, *edge.shape) + edge)
        return self.perceptron(h.index_add(0, directions.target, messages.flatten(0, 1)))  # type: ignore[no-any-return]  # torch is untyped


class Head(nn.Module):
    """A coefficient for each pair: perceptron of h_i * h_j and of the pair's features."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * hidden, hidden)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))

    def forward(self, h: Tensor, edge: Tensor, segments: PairSegments, pairs: Tensor) -> Tensor:
        atom_weight, edge_weight = self.first.weight.chunk(2, dim=1)
        product = h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])
        edge_part = segments.evaluate(linear_pieces(edge, edge_weight, self.first.bias))
        return self.rest(torch.addmm(edge_part, product, atom_weight.T)).squeeze(1)  # type: ignore[no-any-return]  # torch modules are untyped calls


class GeoDiffNetwork(nn.Module):
    """Both encoders. As in the published code, the local encoder also uses the edge encoder of the global encoder."""

    def __init__(
        self, hidden: int, filters: int, interactions: int, convolutions: int, cutoff: float, smooth_cutoff: bool
    ) -> None:
        super().__init__()
        self.cutoff, self.smooth_cutoff = cutoff, smooth_cutoff
        self.encode_edges = EdgeEncoder(hidden)
        self.global_atoms = nn.Embedding(KINDS, hidden, max_norm=10.0)
        self.interactions = nn.ModuleList([Interaction(hidden, filters) for _ in range(interactions)])
        self.local_atoms = nn.Embedding(KINDS, hidden)
        self.convolutions = nn.ModuleList([Convolution(hidden) for _ in range(convolutions)])
        self.global_head, self.local_head = Head(hidden), Head(hidden)

    def forward(self, graphs: Graphs, local_edges: Edges, global_edges: Edges | None) -> tuple[Tensor, Tensor]:
        """A coefficient for each pair of the extended graph, and for each pair of `global_edges` outside it, if any."""
        edge, breakpoints = self.encode_edges(graphs.kinds)
        local = self._local(graphs, local_edges, edge, breakpoints)
        if global_edges is None:
            return local, local.new_zeros(0)
        return local, self._global(graphs.z, global_edges, edge, breakpoints)

    def _global(self, z: Tensor, edges: Edges, edge: Tensor, breakpoints: Tensor) -> Tensor:
        window = 0.5 * (torch.cos(edges.length * math.pi / self.cutoff) + 1) if self.smooth_cutoff else 1.0
        weights, directions = (edges.receives * window).flatten(), DirectedPairs.of(edges.pairs, len(z))
        segments = _find_segments(edges, edge, breakpoints)
        h = self.global_atoms(z)
        for interaction in self.interactions:
            h = h + interaction(h, edge, segments, weights, directions)
        outside = _find_segments(edges, edge, breakpoints, edges.n_outside)
        return self.global_head(h, edge, outside, edges.pairs[:, : edges.n_outside])  # type: ignore[no-any-return]  # torch modules are untyped calls

    def _local(self, graphs: Graphs, edges: Edges, edge: Tensor, breakpoints: Tensor) -> Tensor:
        segments = _find_segments(edges, edge, breakpoints)
        pair_features = segments.evaluate(edge)
        h = self.local_atoms(graphs.z)
        for k, convolution in enumerate(self.convolutions):
            update = convolution(h, pair_features, graphs.directions)
            h = h + (update if k + 1 == len(self.convolutions) else functional.relu(update))
        return self.local_head(h, edge, segments, edges.pairs)  # type: ignore[no-any-return]  # torch modules are untyped calls


def _find_segments(edges: Edges, edge: Tensor, breakpoints: Tensor, pairs: int | None = None) -> PairSegments:
    length = edges.length[:pairs]
    segment = edges.kind[:pairs] * (len(breakpoints) + 1) + torch.bucketize(length, breakpoints)
    return PairSegments.of(segment, length, edge.shape[1])
