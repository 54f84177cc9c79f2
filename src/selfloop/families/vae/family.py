"""The variational autoencoder of images (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from selfloop.component import Context, Family, Sampler
from selfloop.errors import SpecError
from selfloop.families.nn.settings import Training
from selfloop.types import Columns, Floats, Params, TrainingRows

if TYPE_CHECKING:
    import torch

    from selfloop.families.vae.network import Autoencoder, Likelihood

BLOCK = 256  # rows decoded together: a partial block is computed whole, so row i does not depend on n
SHAPE = "image_shape"
Shades = npt.NDArray[np.float32]  # grey values in [0, 1]


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
    version: ClassVar[int] = 3
    required_columns: ClassVar[tuple[str, ...]] = ("image",)
    default_metrics: ClassVar[tuple[str, ...]] = ("negative_elbo", "pixel_spread", "frechet")
    sampler_class: ClassVar[type[Sampler]] = VaeSampler

    latent: int = 8  # dimensions of the latent Gaussian
    hidden: int = 256  # units of the layer between pixels (or convolutions) and latents; 0 = none
    channels: tuple[int, ...] | None = None  # of the convolutions; None: () to 16 x 16, (32, 64) to 32 x 32, then five
    beta: float = 1.0  # weight of the KL term in training (1 = the evidence bound)
    likelihood: Literal["gaussian", "bernoulli", "discretised"] = "gaussian"  # of a pixel's grey value in [0, 1]
    sigma: float = 0.2  # standard deviation of the gaussian and of the discretised (logistic) likelihood
    mean: Literal["sigmoid", "identity"] = "sigmoid"  # what makes the decoder's numbers mean grey values
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
        if self.likelihood not in ("gaussian", "bernoulli", "discretised"):
            raise SpecError(f"family.likelihood: got {self.likelihood!r}; expected 'gaussian', 'bernoulli' or 'discretised'.")
        if self.mean not in ("sigmoid", "identity") or (self.mean, self.likelihood) == ("identity", "bernoulli"):
            raise SpecError(
                f"family.mean: got {self.mean!r}; expected 'sigmoid', or 'identity' without a bernoulli likelihood."
            )

    def for_generation(self, t: int) -> Vae:
        return replace(self, training=self.training.for_generation(t))

    def fit(self, data: TrainingRows, ctx: Context, start: Params | None) -> Params:
        import torch

        from selfloop.families.nn import trainer
        from selfloop.families.vae import network as autoencoder

        shape = autoencoder.shape_of(self.name, data.gather(np.zeros(1, np.int64)))
        with trainer.seeded(ctx.stream.child("init")):
            model = self._network(shape)
        gather, likelihood = autoencoder.gatherer(data, "image", trainer.device()), self._likelihood()

        def noise(rows: int) -> torch.Tensor:
            return torch.randn(rows, self.latent, device=trainer.device())

        def loss(indices: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            reconstruction, kl = autoencoder.elbo_parts(model, gather(indices), noise, likelihood)
            return reconstruction + self.beta * kl

        aside = trainer.device().type == "cpu" and bool(self._channels(shape))  # a perceptron's steps are too short to share
        task = trainer.Task(model, loss, data.weights(), threads=ctx.threads if aside else 1, noise=noise)
        return trainer.fit(task, self.training, ctx, start) | {SHAPE: np.array(shape)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, VaeSampler)
        import torch

        model, likelihood = self._loaded(params, ctx), self._likelihood()
        shape = tuple(int(side) for side in params[SHAPE])
        images = np.empty((n, *shape), np.uint8)
        for block, first in enumerate(range(0, n, BLOCK)):
            rng = ctx.stream.child("rows", block).generator()
            latents = sampler.temperature * rng.standard_normal((BLOCK, self.latent), np.float32)
            with torch.inference_mode():
                means = likelihood.mean(model.decode(torch.from_numpy(latents).to(_device_of(model))))
            pixels = means.permute(0, 2, 3, 1).reshape(BLOCK, *shape).cpu().numpy()
            if sampler.noise:
                pixels = self._draw(pixels, rng)
            images[first : first + BLOCK] = np.rint(255 * np.clip(pixels, 0, 1))[: n - first]
        return {"image": images}

    def elbo(self, params: Params, rows: Columns, ctx: Context) -> tuple[Floats, Floats]:
        """Reconstruction loss and KL of each row, nats per image: their sum is the negative evidence bound (beta = 1)."""
        import torch

        from selfloop.families.vae import network as autoencoder

        model, parts = self._loaded(params, ctx), []
        for images, rng in _blocks(rows, ctx):
            noise = torch.from_numpy(rng.standard_normal((BLOCK, self.latent), np.float32)[: len(images)])
            with torch.inference_mode():
                where = _device_of(model)
                both = autoencoder.elbo_parts(model, images.to(where), noise.to(where), self._likelihood())
                parts.append(torch.stack(both).double().cpu().numpy())
        reconstruction, kl = np.concatenate(parts, axis=1)
        return reconstruction, kl

    def log_likelihood(self, params: Params, rows: Columns, samples: int, ctx: Context) -> Floats:
        """Importance-weighted estimate of log p of each row, nats (Burda et al. 2015, 1509.00519, eq. 8).

        A lower bound on average, and the nearer the more samples. Densities are of grey values in [0, 1], masses of the
        256 levels; for a bernoulli likelihood it is one only of images in black and white.
        """
        import torch

        from selfloop.families.vae import network as autoencoder

        model, parts = self._loaded(params, ctx), []
        for images, rng in _blocks(rows, ctx):
            images = images.to(_device_of(model))
            total, together = np.full(len(images), -np.inf), max(1, BLOCK // len(images))
            with torch.inference_mode():
                posterior = model.encode(images)
                for done in range(0, samples, together):
                    draws = (min(together, samples - done), BLOCK, self.latent)
                    noise = torch.from_numpy(rng.standard_normal(draws, np.float32)[:, : len(images)]).to(images.device)
                    weights = autoencoder.log_weights(model, images, posterior, noise, self._likelihood())
                    total = np.logaddexp(total, weights.double().logsumexp(0).cpu().numpy())
            parts.append(total - math.log(samples))
        return np.concatenate(parts)

    def _draw(self, means: Shades, rng: np.random.Generator) -> Shades:
        """Grey values drawn from the likelihood."""
        if self.likelihood == "bernoulli":
            return (rng.random(means.shape, np.float32) < means).astype(np.float32)
        if self.likelihood == "gaussian":
            return means + self.sigma * rng.standard_normal(means.shape, np.float32)
        return means + rng.logistic(scale=self.sigma * math.sqrt(3) / math.pi, size=means.shape).astype(np.float32)

    def _likelihood(self) -> Likelihood:
        from selfloop.families.vae.network import Likelihood

        return Likelihood(self.likelihood, self.sigma, self.mean == "sigmoid")

    def _channels(self, shape: Sequence[int]) -> tuple[int, ...]:
        side = max(shape[:2])
        by_size = () if side <= 16 else (32, 64) if side <= 32 else (32, 64, 128, 256, 512)  # Gerstgrasser et al. 2024
        return by_size if self.channels is None else self.channels

    def _network(self, shape: Sequence[int]) -> Autoencoder:
        from selfloop.families.vae.network import Autoencoder, height_width_depth

        return Autoencoder(height_width_depth(shape), self.latent, self.hidden, self._channels(shape))

    def _loaded(self, params: Params, ctx: Context) -> Autoencoder:
        from selfloop.families.nn import trainer

        return trainer.loaded(lambda: self._network(params[SHAPE].tolist()), params, ctx)


def _device_of(model: Autoencoder) -> str:
    return str(next(model.parameters()).device)


def _blocks(rows: Columns, ctx: Context) -> Iterator[tuple[torch.Tensor, np.random.Generator]]:
    """Images in [0, 1], block by block, each with a generator of its own."""
    from selfloop.families.vae import network as autoencoder

    autoencoder.shape_of(Vae.name, rows)
    images = np.asarray(rows["image"])
    for block, first in enumerate(range(0, len(images), BLOCK)):
        yield (
            autoencoder.scale(autoencoder.as_tensor(images[first : first + BLOCK])),
            ctx.stream.child("rows", block).generator(),
        )
