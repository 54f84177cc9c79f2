"""GeoDiff's noise, its loss and the vectors of atoms (Xu et al. 2022, 2203.02923, as in the published code)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfloop.columns import Floats
from selfloop.families.geodiff.graphs import Edges, Graphs, cutoff_edges, extended_edges, pair_lengths
from selfloop.families.geodiff.network import GeoDiffNetwork


def alphas(noise_levels: int, beta_start: float, beta_end: float) -> Floats:
    """alpha-bar at each noise level: betas rise from `beta_start` to `beta_end` along a sigmoid from -6 to 6."""
    betas = (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, noise_levels))) + beta_start
    return np.asarray(np.cumprod(1 - betas), np.float64)


def sigmas(alphas: Floats) -> Floats:
    """Standard deviation of the noise on coordinates at each level, ångström: sqrt(1 - alpha-bar) / sqrt(alpha-bar)."""
    return np.asarray(np.sqrt((1 - alphas) / alphas), np.float64)


def antithetic_levels(rows: int, noise_levels: int, device: torch.device) -> Tensor:
    """A uniform noise level for each row; the second half mirrors the first half."""
    half = torch.randint(noise_levels, (rows // 2 + 1,), device=device)
    return torch.cat([half, noise_levels - 1 - half])[:rows]


def atom_vectors(graphs: Graphs, edges: Edges, coefficients: Tensor) -> Tensor:
    """A vector for each atom: coefficients along the first pairs, which move both atoms once per direction."""
    k = len(coefficients)
    pairs, moves = edges.pairs[:, :k], (coefficients * edges.receives[:, :k].sum(0))[:, None] * edges.unit[:k]
    return moves.new_zeros(len(graphs.z), 3).index_add(0, pairs[0], moves).index_add(0, pairs[1], -moves)


def row_losses(network: GeoDiffNetwork, graphs: Graphs, position: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Loss of each row, summed over its atoms: 2 |global error|^2 + 5 |local error|^2 of the vectors at noisy positions.

    `sigma` has one value per row. The target of an edge is (true length - noisy length) / sigma.
    """
    noisy = position + sigma[graphs.row, None] * noise
    edge_sets = extended_edges(graphs, noisy), cutoff_edges(graphs, noisy, network.cutoff)
    error = position.new_zeros(len(position))
    for coefficients, edges, weight in zip(network(graphs, *edge_sets), edge_sets, (5, 2), strict=True):
        pairs, length = edges.pairs[:, : len(coefficients)], edges.length[: len(coefficients)]
        target = (pair_lengths(position, pairs) - length) / sigma[graphs.row[pairs[0]]]
        error = error + weight * atom_vectors(graphs, edges, coefficients - target).square().sum(1)
    return error.new_zeros(len(sigma)).index_add(0, graphs.row, error)
