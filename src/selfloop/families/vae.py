"""The variational autoencoder of images (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from selfloop.component import Context, Family, Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.nn.training import Training
from selfloop.types import Columns, Floats, Params, Ragged, Samples

if TYPE_CHECKING:
    from selfloop.families.nn.autoencoder import Autoencoder

BLOCK = 256  # rows decoded together: a partial block is computed whole, so row i does not depend on n
SHAPE = "image_shape"


@dataclass(frozen=True, kw_only=True)
class VaeSampler(Sampler):
    """Images from the prior. The default, decoder means at temperature 1, is what Gerstgrasser et al. 2024 train on."""

    name: ClassVar[str] = "vae"
    temperature: float = 1.0  # standard deviation of the latents
    noise: bool = False  # draw the pixels from the likelihood instead of taking their means

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SpecError(f"family.sampler.temperature: got {self.temperature}; expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Vae(Family):
    """A variational autoencoder: a perceptron for images up to 16 x 16, else strided convolutions.

    Rows are one uint8 column `image` (height, width) or (height, width, depth); other columns are left aside.
    """

    name: ClassVar[str] = "vae"
    columns: ClassVar[tuple[str, ...]] = ("image",)
    metrics: ClassVar[tuple[str, ...]] = ("negative_elbo", "pixel_spread", "frechet")
    sampler: ClassVar[type[Sampler]] = VaeSampler

    latent: int = 8  # dimensions of the latent Gaussian
    hidden: int = 256  # units of the layer between pixels (or convolutions) and latents; 0 = none
    channels: tuple[int, ...] | None = None  # of the convolutions; None: () to 16 x 16, (32, 64) to 32 x 32, then five
    beta: float = 1.0  # weight of the KL term in training (1 = the evidence bound)
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"  # of a pixel's grey value in [0, 1]
    sigma: float = 0.2  # standard deviation of the gaussian likelihood
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for name, value, lowest in (("latent", self.latent, 1), ("hidden", self.hidden, 0)):
            if value < lowest:
                raise SpecError(f"family.{name}: got {value}; expected {lowest} or more.")
        if any(count < 1 for count in self.channels or ()):
            raise SpecError(f"family.channels: got {self.channels}; expected counts of 1 or more.")
        if not 0 <= self.beta < math.inf:
            raise SpecError(f"family.beta: got {self.beta}; expected 0 or more.")
        if not 0 < self.sigma < math.inf:
            raise SpecError(f"family.sigma: got {self.sigma}; expected a number above 0.")
        if self.likelihood not in ("gaussian", "bernoulli"):
            raise SpecError(f"family.likelihood: got {self.likelihood!r}; expected 'gaussian' or 'bernoulli'.")

    def at(self, t: int) -> Vae:
        return replace(self, training=self.training.at(t))

    def fit(self, data: Samples, ctx: Context, start: Params | None) -> Params:
        import torch

        from selfloop.families.nn import autoencoder, trainer

        shape = _image_shape(data.gather(np.zeros(1, np.int64)))
        images = Samples(tuple(({"image": rows["image"]}, chosen, weight) for rows, chosen, weight in data.parts))
        with trainer.seeded(ctx.stream.child("init")):
            model = self._network(shape)
        gather = autoencoder.gatherer(images, "image", trainer.device())

        def loss(indices: torch.Tensor) -> torch.Tensor:
            rows = gather(indices)
            noise = torch.randn(len(rows), self.latent, device=rows.device)
            reconstruction, kl = autoencoder.elbo_parts(model, rows, noise, self._sigma())
            return reconstruction + self.beta * kl

        arrays = trainer.fit(trainer.Task(model, loss, data.weights()), self.training, ctx, start)
        return arrays | {SHAPE: np.array(shape)}

    def sample(self, params: Params, n: int, sampler: Sampler, given: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, VaeSampler)
        import torch

        model = self._loaded(params, ctx)
        shape = tuple(int(side) for side in params[SHAPE])
        images = np.empty((n, *shape), np.uint8)
        for block, first in enumerate(range(0, n, BLOCK)):
            rng = ctx.stream.child("rows", block).generator()
            latents = sampler.temperature * rng.standard_normal((BLOCK, self.latent), np.float32)
            with torch.inference_mode():
                means = torch.sigmoid(model.decode(torch.from_numpy(latents).to(_device_of(model)))).cpu().numpy()
            pixels = np.moveaxis(means, 1, -1).reshape(BLOCK, *shape)
            if sampler.noise and self.likelihood == "bernoulli":
                pixels = rng.random(pixels.shape, np.float32) < pixels
            elif sampler.noise:
                pixels = pixels + self.sigma * rng.standard_normal(pixels.shape, np.float32)
            images[first : first + BLOCK] = np.rint(255 * np.clip(pixels, 0, 1))[: n - first]
        return {"image": images}

    def elbo(self, params: Params, rows: Columns, ctx: Context) -> tuple[Floats, Floats]:
        """Reconstruction loss and KL of each row, nats per image: their sum is the negative evidence bound (beta = 1)."""
        import torch

        from selfloop.families.nn import autoencoder

        _image_shape(rows)
        model = self._loaded(params, ctx)
        parts = []
        for block, first in enumerate(range(0, len(rows["image"]), BLOCK)):
            images = autoencoder.as_tensor(np.asarray(rows["image"])[first : first + BLOCK])
            noise = ctx.stream.child("rows", block).generator().standard_normal((BLOCK, self.latent), np.float32)
            with torch.inference_mode():
                where = _device_of(model)
                parts.append(
                    autoencoder.elbo_parts(
                        model,
                        autoencoder.scale(images.to(where)),
                        torch.from_numpy(noise[: len(images)]).to(where),
                        self._sigma(),
                    )
                )
        reconstruction, kl = (
            np.concatenate([part.double().cpu().numpy() for part in side]) for side in zip(*parts, strict=True)
        )
        return reconstruction, kl

    def _sigma(self) -> float | None:
        return self.sigma if self.likelihood == "gaussian" else None

    def _network(self, shape: tuple[int, ...]) -> Autoencoder:
        from selfloop.families.nn.autoencoder import Autoencoder

        height, width, depth = shape if len(shape) == 3 else (*shape, 1)
        side = max(height, width)
        by_size = () if side <= 16 else (32, 64) if side <= 32 else (32, 64, 128, 256, 512)  # Gerstgrasser et al. 2024
        channels = by_size if self.channels is None else self.channels
        return Autoencoder((height, width, depth), self.latent, self.hidden, channels)

    def _loaded(self, params: Params, ctx: Context) -> Autoencoder:
        import torch

        from selfloop.families.nn import trainer

        torch.set_num_threads(ctx.threads)
        with trainer.seeded(ctx.stream):  # its first parameters are replaced; torch's own random state must not notice
            model = self._network(tuple(int(side) for side in params[SHAPE]))
        trainer.load(model, params)
        return model.to(trainer.device()).eval()


def _device_of(model: Autoencoder) -> str:
    return str(next(model.parameters()).device)


def _image_shape(rows: Columns) -> tuple[int, ...]:
    """Shape of one image; DataError when the rows are no images."""
    images = rows.get("image")
    if images is None or isinstance(images, Ragged):
        raise DataError(f"vae: the rows have columns {', '.join(rows)}; expected a column 'image' of equal-sized images.")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        found = f"{images.dtype}[{', '.join(map(str, images.shape[1:]))}]"
        raise DataError(f"vae: column 'image' is {found}; expected uint8[height, width] or uint8[height, width, depth].")
    return tuple(images.shape[1:])
