"""GeoDiff's network (Xu et al. 2022, 2203.02923): two graph encoders that return one coefficient per pair of atoms.

Features of a pair are symmetric, so they are computed once per pair and used in both directions. torch-geometric's layers,
which treat the directions as two edges, take more than twice as long; a test compares with them.

A ReLU perceptron of a pair's length is linear between the lengths at which one of its units switches. Linear layers after it
are computed once per piece and not once per pair: exactly, up to rounding, with half of all products. Sums use
`embedding_bag`, the fastest sum of rows on a CPU. Its own derivatives are slow, so they are written out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import embedding_bag
from torch.nn.functional import linear as linear_layer

from selfloop.families.geodiff.graphs import DirectedPairs, Edges, Graphs
from selfloop.families.geodiff.schema import KINDS


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
    """Pieces of a linear layer's output."""
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
    """The segments of the first `pairs` pairs."""
    length = edges.length[:pairs]
    segment = edges.kind[:pairs] * (len(breakpoints) + 1) + torch.bucketize(length, breakpoints)
    return PairSegments.of(segment, length, edge.shape[1])
