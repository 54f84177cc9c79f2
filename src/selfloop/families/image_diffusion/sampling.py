"""From noise to images along a path.

All methods follow dx = x_0 d(signal) + e d(noise), with the image x_0 and the noise e that the network's answer implies.
To first order that is DDIM (Song et al. 2020, 2010.02502, eq. 12), and Euler's method on a straight path; `heun` averages
x_0 and e over both ends of a step; `ancestral` swaps part of e for fresh noise, DDPM's posterior variance.

Few steps change the spread: with an exact denoiser of Gaussian pixels of deviation 0.25, 20 equal DDIM steps of the linear
schedule keep 75 % of it. 20 quadratic steps of `heun` (39 calls of the network) are within 2 % of it for deviations from
0.05 to 0.5 on all three paths, 10 between 87 % and 106 %; 20 of DPM-Solver++ (2M) would be between 93 % and 108 %.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from selfloop.families.image_diffusion.noise import Path

Network = Callable[[Tensor, Tensor], Tensor]  # noisy images and their time -> the noise, or the velocity, of each


def times_of(path: Path, steps: int, power: float) -> Tensor:
    """Times from the noise to the image, (k / steps)^power of the way; those that are one step of diffusion count once."""
    shares = (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** power
    times: Tensor = torch.unique_consecutive(path.spread(shares))
    return times.float()


def images_from(network: Network, path: Path, times: Tensor, draw: Callable[[], Tensor], method: str) -> Tensor:
    """Images in [-1, 1] that start from what `draw` gives, standard noise unless it is truncated."""
    signals, noises = (levels.tolist() for levels in path.levels(times))

    def parts(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        image = path.image(x, network(x, times[k]), signals[k], noises[k]).clamp(-1, 1)
        return image, (x - signals[k] * image) / noises[k]

    x = draw()
    for k in range(len(times) - 1):
        image, noise = parts(x, k)
        signal, level = signals[k + 1], noises[k + 1]
        fresh = 0.0
        if method == "ancestral":  # eq. (16) of DDIM at eta = 1
            fresh = level * max(0.0, 1 - (signals[k] * level / (signal * noises[k])) ** 2) ** 0.5
        x = signal * image + (level**2 - fresh**2) ** 0.5 * noise
        if fresh:
            x += fresh * draw()
        if method == "heun" and level:
            image_then, noise_then = parts(x, k + 1)
            x += (signal - signals[k]) / 2 * (image_then - image) + (level - noises[k]) / 2 * (noise_then - noise)
    return x
