"""GeoDiff's noise, its loss and its sampling (Xu et al. 2022, 2203.02923, as in the published code)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from selfloop.columns import Floats
from selfloop.families.geodiff.network import Edges, GeoDiffNetwork, Graphs, cutoff_edges, extended_edges, pair_lengths

if TYPE_CHECKING:
    from selfloop.families.geodiff.family import GeoDiffSampler

GAUSS_NEWTON_STEP = 0.5  # share of the whole step
DAMPING = 1.0  # of least squares; a pair along an axis adds 2. Without it, rotations would have no stiffness


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


def sample_positions(
    network: GeoDiffNetwork,
    graphs: Graphs,
    alphas: Floats,
    sampler: GeoDiffSampler,
    draw_noise: Callable[[int], Tensor],
    clip_local: float | None,
) -> Tensor:
    """Coordinates of the atoms of all rows, ångström, each row centered; `draw_noise(k)` is standard noise for step k.

    Rows are independent: a row that is not finite does not change the other rows.
    """
    x: Tensor = draw_noise(0) * sigmas(alphas)[-1]
    for k, (sigma, move, noise_level) in enumerate(_sampling_steps(alphas, sampler)):
        uses_global = sigma < sampler.global_start_sigma and sampler.global_weight > 0
        local_edges, global_edges = extended_edges(graphs, x), cutoff_edges(graphs, x, network.cutoff) if uses_global else None
        local_coefficients, global_coefficients = network(graphs, local_edges, global_edges)
        vectors = _clip(atom_vectors(graphs, local_edges, local_coefficients), clip_local)
        stiffness = [(local_edges, len(local_coefficients), 1.0)]
        if global_edges is not None:
            clipped = _clip(atom_vectors(graphs, global_edges, global_coefficients), sampler.clip_global)
            vectors += sampler.global_weight * clipped
            stiffness.append((global_edges, len(global_coefficients), sampler.global_weight))
        if sampler.method == "least_squares":
            vectors = least_squares(graphs, vectors, stiffness)
        x = x + move * vectors + noise_level * draw_noise(k + 1)
        means = x.new_zeros(len(graphs.sizes), 3).index_add(0, graphs.row, x) / graphs.sizes[:, None]
        x = x - means[graphs.row]
    return x


def _sampling_steps(alphas: Floats, sampler: GeoDiffSampler) -> Iterator[tuple[float, float, float]]:
    """From the highest noise level down: sigma, factor of the vectors, factor of the noise."""
    last = len(alphas) - (sampler.steps or len(alphas))
    for level in range(len(alphas) - 1, last - 1, -1):
        alpha, next_alpha = float(alphas[level]), float(alphas[level - 1]) if level > last else 1.0
        sigma = math.sqrt((1 - alpha) / alpha)
        step_size = sampler.step_size * (sigma / 0.01) ** 2
        move, noise_level = step_size / sigma, math.sqrt(2 * step_size)
        if sampler.method == "ddim":  # the published code's generalized step, never longer than Langevin's
            fresh = sampler.eta * math.sqrt((1 - alpha / next_alpha) * (1 - next_alpha) / (1 - alpha))
            predicted = math.sqrt(max(1 - next_alpha - fresh**2, 0.0))
            move = min(move, 5 * (sigma - predicted / math.sqrt(next_alpha)))
            noise_level = min(noise_level, 3 * fresh / math.sqrt(next_alpha))
        if sampler.method == "least_squares":
            move, noise_level = GAUSS_NEWTON_STEP * sigma, 0.0
        yield sigma, move, noise_level


def least_squares(graphs: Graphs, vectors: Tensor, stiffness: list[tuple[Edges, int, float]]) -> Tensor:
    """The moves of atoms that change the lengths of pairs by the predicted amounts, to first order: damped least squares.

    With J the derivatives of lengths by positions, `vectors` are J^T times the predicted changes, and the moves solve
    (J^T J + damping) moves = vectors, a Gauss-Newton step. `stiffness`: edges, the number of first ones, their weight.
    """
    rows, largest = len(graphs.sizes), int(graphs.sizes.max())
    local = torch.arange(len(vectors), device=vectors.device) - (graphs.sizes.cumsum(0) - graphs.sizes)[graphs.row]
    products = vectors.new_zeros(rows * largest * largest, 9)
    for edges, k, weight in stiffness:
        pairs, unit = edges.pairs[:, :k], edges.unit[:k]
        outer = (unit[:, :, None] * unit[:, None]).flatten(1) * (weight * edges.receives[:, :k].sum(0))[:, None]
        (i, j), start = local[pairs], graphs.row[pairs[0]] * largest
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            products.index_add_(0, (start + a) * largest + b, outer, alpha=sign)
    matrices = products.view(rows, largest, largest, 3, 3).transpose(2, 3).reshape(rows, 3 * largest, 3 * largest)
    matrices.diagonal(dim1=1, dim2=2).add_(DAMPING)
    padded = vectors.new_zeros(rows, largest, 3)
    padded[graphs.row, local] = vectors
    moves: Tensor = torch.linalg.solve_ex(matrices, padded.view(rows, -1, 1))[0]
    return moves.view(rows, largest, 3)[graphs.row, local]


def _clip(vectors: Tensor, max_length: float | None) -> Tensor:
    if max_length is None:
        return vectors
    lengths = cast(Tensor, torch.linalg.vector_norm(vectors, dim=1, keepdim=True))
    return vectors * (max_length / lengths).clamp(max=1)
