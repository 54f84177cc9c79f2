"""From noise to conformers: annealed Langevin dynamics (Xu et al. 2022, 2203.02923, algorithm 2), and a faster step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from selfloop.columns import Floats
from selfloop.families.geodiff.diffusion import atom_vectors, sigmas
from selfloop.families.geodiff.graphs import Graphs, cutoff_edges, extended_edges
from selfloop.families.geodiff.network import GeoDiffNetwork

if TYPE_CHECKING:
    from selfloop.families.geodiff.family import GeoDiffSampler


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
        if global_edges is not None:
            clipped = _clip(atom_vectors(graphs, global_edges, global_coefficients), sampler.clip_global)
            vectors += sampler.global_weight * clipped
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
        yield sigma, move, noise_level


def _clip(vectors: Tensor, max_length: float | None) -> Tensor:
    if max_length is None:
        return vectors
    lengths = cast(Tensor, torch.linalg.vector_norm(vectors, dim=1, keepdim=True))
    return vectors * (max_length / lengths).clamp(max=1)
