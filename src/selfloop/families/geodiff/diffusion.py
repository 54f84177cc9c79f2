"""GeoDiff's noise, loss and steps of sampling (Xu et al. 2022, 2203.02923, as the published code has them)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfloop.families.geodiff.graphs import Edges, Graphs, edges_within, extended_edges, lengths
from selfloop.families.geodiff.network import Network
from selfloop.types import Floats


def alphas(levels: int, first: float, last: float) -> Floats:
    """alpha-bar at each level: betas rise from `first` to `last` along a sigmoid from -6 to 6."""
    betas = (last - first) / (1 + np.exp(-np.linspace(-6, 6, levels))) + first
    return np.asarray(np.cumprod(1 - betas), np.float64)


def sigmas(alphas: Floats) -> Floats:
    """Standard deviation of the noise on coordinates at each level, ångström: sqrt(1 - alpha-bar) / sqrt(alpha-bar)."""
    return np.asarray(np.sqrt((1 - alphas) / alphas), np.float64)


def antithetic(rows: int, levels: int, device: torch.device) -> Tensor:
    """A level for each row: uniform, and the second half are mirror images of the first."""
    half = torch.randint(levels, (rows // 2 + 1,), device=device)
    return torch.cat([half, levels - 1 - half])[:rows]


def to_atoms(graphs: Graphs, edges: Edges, along: Tensor) -> Tensor:
    """A vector for each atom: numbers along the first pairs, each moving both of its atoms once per direction."""
    k = len(along)
    pairs, moved = edges.pairs[:, :k], (along * edges.hears[:, :k].sum(0))[:, None] * edges.unit[:k]
    return moved.new_zeros(len(graphs.z), 3).index_add(0, pairs[0], moved).index_add(0, pairs[1], -moved)


def losses(network: Network, graphs: Graphs, position: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Loss of each row, summed over its atoms: 2 |global error|^2 + 5 |local error|^2 of the vectors at noisy positions.

    `sigma` is of each row. The target of an edge is (true length - noisy length) / sigma.
    """
    noisy = position + sigma[graphs.row, None] * noise
    local, around = extended_edges(graphs, noisy), edges_within(graphs, noisy, network.cutoff)
    error = position.new_zeros(len(position))
    for numbers, edges, weight in zip(network(graphs, local, around), (local, around), (5, 2), strict=True):
        pairs, length = edges.pairs[:, : len(numbers)], edges.length[: len(numbers)]
        target = (lengths(position, pairs) - length) / sigma[graphs.row[pairs[0]]]
        error = error + weight * to_atoms(graphs, edges, numbers - target).square().sum(1)
    return error.new_zeros(len(sigma)).index_add(0, graphs.row, error)
