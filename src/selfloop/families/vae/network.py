"""The variational autoencoder's network and its loss (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.errors import DataError
from selfloop.families.vae.strided_conv import Double, Halve
from selfloop.types import Column, Columns, Ragged, TrainingRows

IN_MEMORY_BYTES = 2 << 30  # more rows than this are gathered batch by batch from their files
BIN = 1 / 255  # width of a grey level


class Autoencoder(nn.Module):
    """Strided convolutions (none = a plain perceptron), a hidden layer (0 = none), `latent` Gaussian dimensions; the
    decoder is the mirror image. Images of any height and width."""

    def __init__(self, shape: tuple[int, int, int], latent: int, hidden: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        height, width, depth = shape
        planes = [depth, *channels]
        sizes = [(height, width)]
        for _ in channels:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        inner = (planes[-1], *sizes[-1])
        flat = math.prod(inner)
        down = [Halve(a, b) for a, b in pairwise(planes)]
        middle = [nn.Linear(flat, hidden), nn.ReLU(inplace=True)] if hidden else []
        self.encoder = nn.Sequential(*down, _Flatten(), *middle, nn.Linear(hidden or flat, 2 * latent))
        back: list[nn.Module] = [nn.Linear(latent, hidden), nn.ReLU(inplace=True)] if hidden else []
        back += [nn.Linear(hidden or latent, flat), *([nn.ReLU(inplace=True)] if channels else []), _Unflatten(inner)]
        back += [Double(planes[i + 1], planes[i], sizes[i], relu=i > 0) for i in reversed(range(len(channels)))]
        self.decoder = nn.Sequential(*back)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of images (rows, depth, height, width) in [0, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """What the likelihood makes grey values of (rows, depth, height, width)."""
        return self.decoder(latents).float()  # type: ignore[no-any-return]  # torch modules are untyped calls


class _Flatten(nn.Module):
    """Features (rows, depth, height, width) as rows of numbers, in the order that convolutions keep them in: channels last."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class _Unflatten(nn.Module):
    """The inverse of `_Flatten`."""

    def __init__(self, inner: tuple[int, int, int]) -> None:
        super().__init__()
        self.depth, self.height, self.width = inner

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.view(-1, self.height, self.width, self.depth).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Likelihood:
    """log p(x | z) of grey values in [0, 1], given what the decoder says of them.

    `discretised` is a logistic law of standard deviation `sigma`, rounded to the 256 grey levels, whose masses sum to 1
    (Salimans et al. 2017, 1701.05517, section 2.1, with one component).
    """

    kind: Literal["gaussian", "bernoulli", "discretised"]
    sigma: float
    sigmoid: bool  # between the decoder and the mean

    def mean(self, decoded: Tensor) -> Tensor:
        """Mean grey values."""
        return torch.sigmoid(decoded) if self.sigmoid else decoded

    def loss(self, decoded: Tensor, images: Tensor) -> Tensor:
        """-log p(x | z) in nats per image, without `constant`: a gaussian's perfect copy has loss 0."""
        if self.kind == "bernoulli":
            return functional.binary_cross_entropy_with_logits(decoded, images, reduction="none").sum((1, 2, 3))
        mean = self.mean(decoded)
        if self.kind == "gaussian":
            return functional.mse_loss(mean, images, reduction="none").sum((1, 2, 3)) / (2 * self.sigma**2)
        scale = self.sigma * math.sqrt(3) / math.pi
        above, below = (images + BIN / 2 - mean) / scale, (images - BIN / 2 - mean) / scale
        # F(above) - F(below) = F(above) F(-below) (1 - exp(below - above)); black and white take in all beyond them
        white, black = images >= 1, images <= 0
        masses = functional.logsigmoid(above).masked_fill(white, 0) + functional.logsigmoid(-below).masked_fill(black, 0)
        return -(masses + math.log(-math.expm1(-BIN / scale)) * ~(white | black)).sum((1, 2, 3))

    def constant(self, pixels: int) -> float:
        """What `loss` leaves out, nats per image of so many grey values."""
        return pixels * math.log(self.sigma * math.sqrt(2 * math.pi)) if self.kind == "gaussian" else 0.0


def elbo_parts(model: Autoencoder, images: Tensor, noise: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Reconstruction loss at z = mean + noise x sd, and KL(q(z | x) || N(0, I)), nats per image."""
    mean, log_variance = model.encode(images)
    decoded = model.decode(mean + noise * (0.5 * log_variance).exp())
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)  # Kingma and Welling, appendix B
    return likelihood.loss(decoded, images), kl


def log_weights(
    model: Autoencoder, images: Tensor, posterior: tuple[Tensor, Tensor], noise: Tensor, likelihood: Likelihood
) -> Tensor:
    """log p(x, z) / q(z | x) at z = mean + noise x sd, nats, for noise (samples, rows, latent): (samples, rows)."""
    mean, log_variance = posterior
    latents = mean + noise * (0.5 * log_variance).exp()
    copies = images.expand(len(noise), *images.shape).flatten(0, 1)
    reconstruction = likelihood.loss(model.decode(latents.flatten(0, 1)), copies).view(noise.shape[:2])
    ratio = 0.5 * (noise.square() + log_variance - latents.square()).sum(2)  # log p(z) / q(z | x)
    return ratio - reconstruction - likelihood.constant(images[0].numel())


def shape_of(family: str, rows: Columns) -> tuple[int, ...]:
    """Shape of one image; DataError when the rows are no images."""
    images = rows.get("image")
    if images is None or isinstance(images, Ragged):
        raise DataError(f"{family}: the rows have columns {', '.join(rows)}; expected a column 'image' of equal-sized images.")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        found = f"{images.dtype}[{', '.join(map(str, images.shape[1:]))}]"
        raise DataError(f"{family}: column 'image' is {found}; expected uint8[height, width] or uint8[height, width, depth].")
    return tuple(images.shape[1:])


def height_width_depth(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of an image, whose depth is 1 where it has none."""
    height, width, depth = (*shape, 1)[:3]
    return int(height), int(width), int(depth)


def as_tensor(images: Column) -> Tensor:
    """uint8 images (rows, height, width[, depth]) as they are, with the depth first."""
    tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # stored rows are read-only maps: copied
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def scale(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.float().div_(255)


def gatherer(data: TrainingRows, column: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The images at given indices, in [0, 1]: from one tensor where they fit into memory, else from their batches."""
    first = np.asarray(data.gather(np.zeros(1, np.int64))[column])
    if len(data) * first.nbytes <= IN_MEMORY_BYTES:
        everything = as_tensor(data.all()[column]).to(device)
        return lambda indices: scale(everything[indices])
    return lambda indices: scale(as_tensor(data.gather(indices.cpu().numpy())[column]).to(device))
