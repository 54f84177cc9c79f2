"""From noise to conformers: annealed Langevin dynamics (Xu et al. 2022, 2203.02923, algorithm 2), and a faster step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from selfloop.families.geodiff.diffusion import sigmas, to_atoms
from selfloop.families.geodiff.graphs import Graphs, edges_within, extended_edges
from selfloop.families.geodiff.network import Network
from selfloop.types import Floats

if TYPE_CHECKING:
    from selfloop.families.geodiff.family import GeoDiffSampler


def conformers(
    network: Network,
    graphs: Graphs,
    alphas: Floats,
    sampler: GeoDiffSampler,
    draw: Callable[[int], Tensor],
    clip_local: float | None,
) -> Tensor:
    """Coordinates of the atoms of all rows, ångström, each row centred; `draw(k)` is standard noise for step k.

    Rows do not touch each other: where one is no longer finite, the others are as without it.
    """
    x: Tensor = draw(0) * sigmas(alphas)[-1]
    for k, (sigma, move, spread) in enumerate(_steps(alphas, sampler)):
        with_global = sigma < sampler.global_below and sampler.global_weight > 0
        local, around = extended_edges(graphs, x), edges_within(graphs, x, network.cutoff) if with_global else None
        near, far = network(graphs, local, around)
        vector = _clipped(to_atoms(graphs, local, near), clip_local)
        if around is not None:
            vector += sampler.global_weight * _clipped(to_atoms(graphs, around, far), sampler.clip)
        x = centred(graphs, x + move * vector + spread * draw(k + 1))
    return x


def _steps(alphas: Floats, sampler: GeoDiffSampler) -> Iterator[tuple[float, float, float]]:
    """From the highest noise level down: sigma, how far to move along the vectors, how much noise to add."""
    last = len(alphas) - (sampler.steps or len(alphas))
    for level in range(len(alphas) - 1, last - 1, -1):
        alpha, after = float(alphas[level]), float(alphas[level - 1]) if level > last else 1.0
        sigma = math.sqrt((1 - alpha) / alpha)
        step = sampler.step * (sigma / 0.01) ** 2
        move, spread = step / sigma, math.sqrt(2 * step)
        if sampler.method == "ddim":  # the published code's generalised step, never longer than Langevin's
            fresh = sampler.eta * math.sqrt((1 - alpha / after) * (1 - after) / (1 - alpha))
            kept = math.sqrt(max(1 - after - fresh**2, 0.0))
            move = min(move, 5 * (sigma - kept / math.sqrt(after)))
            spread = min(spread, 3 * fresh / math.sqrt(after))
        yield sigma, move, spread


def _clipped(vectors: Tensor, limit: float | None) -> Tensor:
    if limit is None:
        return vectors
    lengths = cast(Tensor, torch.linalg.vector_norm(vectors, dim=1, keepdim=True))
    return vectors * (limit / lengths).clamp(max=1)


def centred(graphs: Graphs, x: Tensor) -> Tensor:
    """The same coordinates with the mean of each row at the origin."""
    means = x.new_zeros(len(graphs.sizes), 3).index_add(0, graphs.row, x) / graphs.sizes[:, None]
    return x - means[graphs.row]


def failed(graphs: Graphs, x: Tensor) -> Tensor:
    """Which rows are not finite."""
    return cast(Tensor, torch.unique(graphs.row[~torch.isfinite(x).all(1)]))
