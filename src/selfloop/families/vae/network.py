"""The variational autoencoder's network and its loss (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

BIN_WIDTH = 1 / 255  # of a gray level


class Autoencoder(nn.Module):
    """Strided convolutions (none: a perceptron), a hidden layer (0: none) and `latent` Gaussian dimensions.

    The decoder mirrors the encoder. Images may have any height and width.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent: int, hidden: int, channels: tuple[int, ...], likelihood: Likelihood
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        height, width, depth = shape
        planes = [depth, *channels]
        sizes = [(height, width)]
        for _ in channels:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        coarse = (planes[-1], *sizes[-1])
        flat = math.prod(coarse)
        down = [layer for a, b in pairwise(planes) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU(inplace=True))]
        middle = [nn.Linear(flat, hidden), nn.ReLU(inplace=True)] if hidden else []
        self.encoder = nn.Sequential(*down, _Flatten(), *middle, nn.Linear(hidden or flat, 2 * latent))
        up: list[nn.Module] = [nn.Linear(latent, hidden), nn.ReLU(inplace=True)] if hidden else []
        up += [nn.Linear(hidden or latent, flat), *([nn.ReLU(inplace=True)] if channels else []), _Unflatten(coarse)]
        for i in reversed(range(len(channels))):
            odd = 1 - sizes[i][0] % 2, 1 - sizes[i][1] % 2
            up += [nn.ConvTranspose2d(planes[i + 1], planes[i], 3, 2, 1, odd), *([nn.ReLU(inplace=True)] if i else [])]
        self.decoder = nn.Sequential(*up)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of images (rows, depth, height, width) in [0, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """The likelihood's input (rows, depth, height, width), before its output activation."""
        return self.decoder(latents).float()  # type: ignore[no-any-return]  # torch modules are untyped calls

    def elbo_terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss at z = mean + noise x sd, and KL(q(z | x) || N(0, I)), nats per image."""
        mean, log_variance = self.encode(images)
        decoded = self.decode(mean + noise * (0.5 * log_variance).exp())
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)  # Kingma and Welling, appendix B
        return self.likelihood.loss(decoded, images), kl

    def log_weights(self, images: Tensor, posterior: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        """log p(x, z) / q(z | x) at z = mean + noise x sd, nats, for noise (samples, rows, latent): (samples, rows)."""
        mean, log_variance = posterior
        latents = mean + noise * (0.5 * log_variance).exp()
        copies = images.expand(len(noise), *images.shape).flatten(0, 1)
        reconstruction = self.likelihood.loss(self.decode(latents.flatten(0, 1)), copies).view(noise.shape[:2])
        log_ratio = 0.5 * (noise.square() + log_variance - latents.square()).sum(2)  # log p(z) / q(z | x)
        return log_ratio - reconstruction - self.likelihood.constant(images[0].numel())


class _Flatten(nn.Module):
    """Features (rows, depth, height, width) as vectors, with the channels last in memory: convolutions on a CPU are faster."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class _Unflatten(nn.Module):
    """The inverse of `_Flatten`."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.depth, self.height, self.width = shape

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.view(-1, self.height, self.width, self.depth).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Likelihood:
    """log p(x | z) of gray values in [0, 1] as a function of the decoder's output.

    `discretized_logistic` is a logistic distribution of standard deviation `sigma`, rounded to the 256 gray levels. Its
    probabilities sum to 1 (Salimans et al. 2017, 1701.05517, section 2.1, with one component).
    """

    kind: Literal["gaussian", "bernoulli", "discretized_logistic"]
    sigma: float
    sigmoid: bool  # between the decoder and the mean

    def mean(self, decoded: Tensor) -> Tensor:
        return torch.sigmoid(decoded) if self.sigmoid else decoded

    def loss(self, decoded: Tensor, images: Tensor) -> Tensor:
        """-log p(x | z) - `constant` in nats per image: 0 for a perfect copy under a gaussian likelihood."""
        if self.kind == "bernoulli":
            return functional.binary_cross_entropy_with_logits(decoded, images, reduction="none").sum((1, 2, 3))
        mean = self.mean(decoded)
        if self.kind == "gaussian":
            return functional.mse_loss(mean, images, reduction="none").sum((1, 2, 3)) / (2 * self.sigma**2)
        scale = self.sigma * math.sqrt(3) / math.pi
        above, below = (images + BIN_WIDTH / 2 - mean) / scale, (images - BIN_WIDTH / 2 - mean) / scale
        # F(above) - F(below) = F(above) F(-below) (1 - exp(below - above)); black and white include all values beyond them
        white, black = images >= 1, images <= 0
        log_masses = functional.logsigmoid(above).masked_fill(white, 0) + functional.logsigmoid(-below).masked_fill(black, 0)
        return -(log_masses + math.log(-math.expm1(-BIN_WIDTH / scale)) * ~(white | black)).sum((1, 2, 3))

    def constant(self, pixels: int) -> float:
        """The constant that `loss` omits, in nats per image of `pixels` gray values."""
        return pixels * math.log(self.sigma * math.sqrt(2 * math.pi)) if self.kind == "gaussian" else 0.0
