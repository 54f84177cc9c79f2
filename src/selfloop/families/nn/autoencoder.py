"""The variational autoencoder's network and its loss (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.types import Column, Samples

IN_MEMORY_BYTES = 2 << 30  # more rows than this are gathered batch by batch from their files


class Autoencoder(nn.Module):
    """Strided convolutions (none = a plain perceptron), a hidden layer (0 = none), `latent` Gaussian dimensions; the
    decoder is the mirror image. Images of any height and width; pixels leave the decoder as logits."""

    def __init__(self, shape: tuple[int, int, int], latent: int, hidden: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        height, width, depth = shape
        planes = [depth, *channels]
        heights, widths = [height], [width]
        down: list[nn.Module] = []
        for a, b in pairwise(planes):
            down += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
            heights.append((heights[-1] + 1) // 2)
            widths.append((widths[-1] + 1) // 2)
        self.inner = (planes[-1], heights[-1], widths[-1])
        flat = math.prod(self.inner)
        middle = [nn.Linear(flat, hidden), nn.ReLU()] if hidden else []
        self.encoder = nn.Sequential(*down, nn.Flatten(), *middle, nn.Linear(hidden or flat, 2 * latent))
        back: list[nn.Module] = [nn.Linear(latent, hidden), nn.ReLU()] if hidden else []
        back += [nn.Linear(hidden or latent, flat), nn.Unflatten(1, self.inner)]
        for i in range(len(channels), 0, -1):  # 2 h - 1 + odd is the height the encoder had there
            odd = (1 - heights[i - 1] % 2, 1 - widths[i - 1] % 2)
            back += [nn.ReLU(), nn.ConvTranspose2d(planes[i], planes[i - 1], 3, 2, padding=1, output_padding=odd)]
        self.decoder = nn.Sequential(*back)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of images (rows, depth, height, width) in [0, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Logits of the pixels (rows, depth, height, width)."""
        return self.decoder(latents).float()  # type: ignore[no-any-return]  # torch modules are untyped calls


def elbo_parts(model: Autoencoder, images: Tensor, noise: Tensor, sigma: float | None) -> tuple[Tensor, Tensor]:
    """Reconstruction loss -log p(x | z) at z = mean + noise x sd, and KL(q(z | x) || N(0, I)), nats per image.

    `sigma` None is a Bernoulli likelihood of grey values (a cross-entropy), else a Gaussian one with that deviation,
    without its constant log(sigma sqrt(2 pi)) per pixel: a perfect copy has loss 0, so ratios of losses mean something.
    """
    mean, log_variance = model.encode(images)
    logits = model.decode(mean + noise * (0.5 * log_variance).exp())
    if sigma is None:
        pixels = functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    else:
        pixels = (torch.sigmoid(logits) - images).square() / (2 * sigma**2)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)  # Kingma and Welling, appendix B
    return pixels.flatten(1).sum(1), kl


def as_tensor(images: Column) -> Tensor:
    """uint8 images (rows, height, width[, depth]) as they are, with the depth first."""
    tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # stored rows are read-only maps: copied
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def scale(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.float().div_(255)


def gatherer(data: Samples, column: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The images at given indices, in [0, 1]: from one tensor where they fit into memory, else from their batches."""
    first = np.asarray(data.gather(np.zeros(1, np.int64))[column])
    if len(data) * first.nbytes <= IN_MEMORY_BYTES:
        everything = as_tensor(data.all()[column]).to(device)
        return lambda indices: scale(everything[indices])
    return lambda indices: scale(as_tensor(data.gather(indices.cpu().numpy())[column]).to(device))
