"""GeoDiff's network (Xu et al. 2022, 2203.02923): two graph encoders that give one number per pair of atoms.

What is computed of a pair is symmetric, so it is computed once per pair and used in both directions. torch-geometric's
layers, which see two edges, take more than twice as long; a test compares with them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.geodiff import piecewise_linear
from selfloop.families.geodiff.family import KINDS
from selfloop.families.geodiff.graphs import Directions, Edges, Graphs
from selfloop.families.geodiff.piecewise_linear import Cells


class EdgeEncoder(nn.Module):
    """What is known of a pair of atoms: perceptron of its length times embedding of its type."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, hidden)
        self.of_kind = nn.Embedding(KINDS, hidden)

    def forward(self, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Lines (2, cells, hidden), a cell for each type and stretch of lengths, and where stretches end."""
        of_length, bends = piecewise_linear.perceptron(self.first, self.second)
        return (of_length[:, None] * self.of_kind(kinds)[:, None]).flatten(1, 2), bends


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

    def forward(self, h: Tensor, edge: Tensor, cells: Cells, weights: Tensor, ways: Directions) -> Tensor:
        filters = _after_softplus(self.second, cells.read(piecewise_linear.linear(edge, self.first.weight, self.first.bias)))
        heard = piecewise_linear.convolve(self.enter(h), filters, weights, ways)
        return _after_softplus(self.last, self.leave(heard))


def _after_softplus(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer on softplus(x) - log 2, with the shift in the bias: one pass less over every pair's features."""
    return functional.linear(functional.softplus(x), layer.weight, layer.bias - math.log(2) * layer.weight.sum(1))


class Convolution(nn.Module):
    """GIN with edge features (Hu et al. 2020, 1905.12265): a perceptron on x_i + sum of relu(x_j + edge)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, edge: Tensor, ways: Directions) -> Tensor:
        return self.perceptron(h + piecewise_linear.hear(h, edge, ways))  # type: ignore[no-any-return]  # torch modules are untyped calls


class Head(nn.Module):
    """A number for each pair: perceptron of h_i * h_j and of what is known of the pair."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * hidden, hidden)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1))

    def forward(self, h: Tensor, edge: Tensor, cells: Cells, pairs: Tensor) -> Tensor:
        of_both, of_edge = self.first.weight.chunk(2, dim=1)
        both = h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])
        x = torch.addmm(cells.read(piecewise_linear.linear(edge, of_edge, self.first.bias)), both, of_both.T)
        return self.rest(x).squeeze(1)  # type: ignore[no-any-return]  # torch modules are untyped calls


class Network(nn.Module):
    """Both encoders. As in the published code, the local one uses the edge encoder of the global one, too."""

    def __init__(self, hidden: int, filters: int, interactions: int, convolutions: int, cutoff: float, smooth: bool) -> None:
        super().__init__()
        self.cutoff, self.smooth = cutoff, smooth
        self.encode_edges = EdgeEncoder(hidden)
        self.global_atoms = nn.Embedding(KINDS, hidden, max_norm=10.0)
        self.interactions = nn.ModuleList([Interaction(hidden, filters) for _ in range(interactions)])
        self.local_atoms = nn.Embedding(KINDS, hidden)
        self.convolutions = nn.ModuleList([Convolution(hidden) for _ in range(convolutions)])
        self.global_head, self.local_head = Head(hidden), Head(hidden)

    def forward(self, graphs: Graphs, local: Edges, around: Edges | None) -> tuple[Tensor, Tensor]:
        """A number for each pair of the extended graph `local`, and for each pair `around` that is not in it, if any."""
        edge, bends = self.encode_edges(graphs.kinds)
        near = self._local(graphs, local, edge, bends)
        return near, near.new_zeros(0) if around is None else self._global(graphs.z, around, edge, bends)

    def _global(self, z: Tensor, edges: Edges, edge: Tensor, bends: Tensor) -> Tensor:
        window = 0.5 * (torch.cos(edges.length * math.pi / self.cutoff) + 1) if self.smooth else 1.0
        weights, ways = (edges.hears * window).flatten(), Directions.of(edges.pairs, len(z))
        cells = _cells(edges, edge, bends)
        h = self.global_atoms(z)
        for interaction in self.interactions:
            h = h + interaction(h, edge, cells, weights, ways)
        far = _cells(edges, edge, bends, edges.radius)
        return self.global_head(h, edge, far, edges.pairs[:, : edges.radius])  # type: ignore[no-any-return]  # untyped calls

    def _local(self, graphs: Graphs, edges: Edges, edge: Tensor, bends: Tensor) -> Tensor:
        cells = _cells(edges, edge, bends)
        of_pair = cells.read(edge)
        h = self.local_atoms(graphs.z)
        for k, convolution in enumerate(self.convolutions):
            new = convolution(h, of_pair, graphs.directions)
            h = h + (new if k + 1 == len(self.convolutions) else functional.relu(new))
        return self.local_head(h, edge, cells, edges.pairs)  # type: ignore[no-any-return]  # torch modules are untyped calls


def _cells(edges: Edges, edge: Tensor, bends: Tensor, pairs: int | None = None) -> Cells:
    """The cells of the first `pairs` pairs."""
    length = edges.length[:pairs]
    return Cells.of(edges.kind[:pairs] * (len(bends) + 1) + torch.bucketize(length, bends), length, edge.shape[1])
