"""The variational autoencoder of images (Kingma and Welling 2013, 1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from selfloop.columns import Array, Columns, Floats, Params
from selfloop.component import Context, Sampler
from selfloop.errors import SettingError
from selfloop.families.lazy import image_tensors, torch, trainer, vae_networks
from selfloop.families.nn.settings import NetworkFamily, TrainingSettings
from selfloop.settings import PositiveFloat
from selfloop.types import TrainingRows

ROWS_PER_BLOCK = 256  # a block is always sampled whole, so that row i does not depend on n
SHAPE = "image_shape"
LikelihoodKind = Literal["gaussian", "bernoulli", "discretized_logistic"]
GrayValues = npt.NDArray[np.float32]  # in [0, 1]


@dataclass(frozen=True, kw_only=True)
class VaeSampler(Sampler):
    """Images from the prior. Gerstgrasser et al. 2024 train on the default: decoder means at temperature 1."""

    name: ClassVar[str] = "vae"
    temperature: Annotated[float, Ge(0), "standard deviation of the latents"] = 1.0
    sample_pixels: Annotated[bool, "draw pixels from the likelihood instead of using their means"] = False


@dataclass(frozen=True, kw_only=True)
class Vae(NetworkFamily):
    """A variational autoencoder: a perceptron for images up to 16 x 16, else strided convolutions.

    Rows are one uint8 column `image` (height, width) or (height, width, depth); other columns are ignored.
    """

    name: ClassVar[str] = "vae"
    version: ClassVar[int] = 4
    required_columns: ClassVar[tuple[str, ...]] = ("image",)
    default_metrics: ClassVar[tuple[str, ...]] = ("negative_elbo", "pixel_std", "pixel_frechet")
    sampler_class: ClassVar[type[Sampler]] = VaeSampler
    trivial_model: ClassVar[str] = "the mean image"

    latent: Annotated[int, Ge(1), "dimensions of the latent Gaussian"] = 8
    hidden: Annotated[int, Ge(0), "units of the layer between pixels (or convolutions) and latents; 0: no layer"] = 256
    channels: Annotated[
        tuple[Annotated[int, Ge(1)], ...] | None,
        "channels of the convolutions; unset: none up to 16 x 16, (32, 64) up to 32 x 32, else five layers",
    ] = None
    beta: Annotated[float, Ge(0), "weight of the KL term in training; 1: the evidence lower bound"] = 1.0
    likelihood: Annotated[LikelihoodKind, "distribution of a pixel's gray value in [0, 1]"] = "gaussian"
    sigma: Annotated[PositiveFloat, "standard deviation of a gaussian or discretized_logistic likelihood"] = 0.2
    output_activation: Annotated[Literal["sigmoid", "identity"], "function from decoder output to mean gray value"] = "sigmoid"
    training: Annotated[TrainingSettings, "how the network is trained"] = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.output_activation, self.likelihood) == ("identity", "bernoulli"):
            raise SettingError(
                "output_activation", "got 'identity'; expected 'sigmoid' with likelihood 'bernoulli'. Change one of them."
            )

    def unused_settings(self) -> Mapping[str, str]:
        bernoulli = {"sigma": "a bernoulli likelihood has no standard deviation"} if self.likelihood == "bernoulli" else {}
        return {**super().unused_settings(), **bernoulli}

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        shape = image_tensors.image_shape(self.name, rows.gather(np.zeros(1, np.int64)))
        with trainer.seed_torch(ctx.stream.child("init")):
            network = self._network(shape)
        images_at = image_tensors.image_loader(rows)

        def noise(n: int) -> torch.Tensor:
            return torch.randn(n, self.latent, device=trainer.device())

        def loss(indices: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            reconstruction, kl = network.elbo_terms(images_at(indices), noise)
            return reconstruction + self.beta * kl

        in_parallel = trainer.device().type == "cpu" and bool(self._channels(shape))  # a perceptron's steps are too short
        problem = trainer.TrainingProblem(network, loss, rows.weights(), threads=ctx.threads if in_parallel else 1, noise=noise)
        return trainer.fit(problem, self.training, ctx, init) | {SHAPE: np.array(shape)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        assert isinstance(sampler, VaeSampler)
        network = self._load(params, ctx, "sampling")
        shape = tuple(int(side) for side in params[SHAPE])

        def sample_block(block: int) -> Array:
            rng = ctx.stream.child("rows", block).generator()
            latents = sampler.temperature * rng.standard_normal((ROWS_PER_BLOCK, self.latent), np.float32)
            with torch.inference_mode():
                means = network.likelihood.mean(network.decode(torch.from_numpy(latents).to(trainer.device())))
            pixels = means.permute(0, 2, 3, 1).reshape(ROWS_PER_BLOCK, *shape).cpu().numpy()
            if sampler.sample_pixels:
                pixels = self._sample_pixels(pixels, rng)
            return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)  # type: ignore[no-any-return]  # pixels are torch's

        blocks = ctx.ranks.map(sample_block, -(-n // ROWS_PER_BLOCK))
        return {"image": np.concatenate([np.empty((0, *shape), np.uint8), *blocks])[:n]}

    def elbo(self, params: Params, rows: Columns, ctx: Context) -> tuple[Floats, Floats]:
        """Reconstruction loss and KL of each row, nats per image. With beta = 1 their sum is the negative ELBO."""
        network = self._load(params, ctx, "measuring")
        blocks = []
        for _, images, rng in image_tensors.image_blocks(self.name, rows, ROWS_PER_BLOCK, ctx):
            noise = torch.from_numpy(rng.standard_normal((ROWS_PER_BLOCK, self.latent), np.float32)[: len(images)])
            with torch.inference_mode():
                terms = network.elbo_terms(images, noise.to(images.device))
                blocks.append(torch.stack(terms).double().cpu().numpy())
        reconstruction, kl = np.concatenate(blocks, axis=1)
        return reconstruction, kl

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        """The negative ELBO of a decoder that returns the mean image for all latents, whose KL term is then 0."""
        if metric != "negative_elbo":
            return None
        likelihood, (mean, _) = self._likelihood(), image_tensors.pixel_moments(initial, gray_rows=1)
        mean_image = image_tensors.to_tensor(mean[None]).float()
        decoded = torch.logit(mean_image) if likelihood.sigmoid else mean_image
        blocks = (images for _, images, _ in image_tensors.image_blocks(self.name, holdout, ROWS_PER_BLOCK, ctx))
        losses = [likelihood.loss(decoded.to(images.device).expand_as(images), images) for images in blocks]
        return float(torch.cat(losses).double().mean())

    def log_likelihood(self, params: Params, rows: Columns, samples: int, ctx: Context) -> Floats:
        """Importance-weighted estimate of log p of each row, nats (Burda et al. 2015, 1509.00519, eq. 8).

        Its expectation is a lower bound that tightens with `samples`. Gaussian likelihoods give densities of gray values in
        [0, 1], discretized ones probabilities of the 256 levels. A bernoulli likelihood is one only for black and white.
        """
        network = self._load(params, ctx, "measuring")
        blocks = []
        for _, images, rng in image_tensors.image_blocks(self.name, rows, ROWS_PER_BLOCK, ctx):
            total, samples_per_pass = np.full(len(images), -np.inf), max(1, ROWS_PER_BLOCK // len(images))
            with torch.inference_mode():
                posterior = network.encode(images)
                for done in range(0, samples, samples_per_pass):
                    draws = (min(samples_per_pass, samples - done), ROWS_PER_BLOCK, self.latent)
                    noise = torch.from_numpy(rng.standard_normal(draws, np.float32)[:, : len(images)]).to(images.device)
                    weights = network.log_weights(images, posterior, noise)
                    total = np.logaddexp(total, weights.double().logsumexp(0).cpu().numpy())
            blocks.append(total - math.log(samples))
        return np.concatenate(blocks)

    def _sample_pixels(self, means: GrayValues, rng: np.random.Generator) -> GrayValues:
        if self.likelihood == "bernoulli":
            return (rng.random(means.shape, np.float32) < means).astype(np.float32)
        if self.likelihood == "gaussian":
            return means + self.sigma * rng.standard_normal(means.shape, np.float32)
        return means + rng.logistic(scale=self.sigma * math.sqrt(3) / math.pi, size=means.shape).astype(np.float32)

    def _channels(self, shape: Sequence[int]) -> tuple[int, ...]:
        side = max(shape[:2])
        by_size = () if side <= 16 else (32, 64) if side <= 32 else (32, 64, 128, 256, 512)  # Gerstgrasser et al. 2024
        return by_size if self.channels is None else self.channels

    def _network(self, shape: Sequence[int]) -> vae_networks.Autoencoder:
        return vae_networks.Autoencoder(
            image_tensors.height_width_depth(shape), self.latent, self.hidden, self._channels(shape), self._likelihood()
        )

    def _likelihood(self) -> vae_networks.Likelihood:
        return vae_networks.Likelihood(self.likelihood, self.sigma, self.output_activation == "sigmoid")

    def _load(self, params: Params, ctx: Context, purpose: Literal["sampling", "measuring"]) -> vae_networks.Autoencoder:
        return trainer.load_network(lambda: self._network(params[SHAPE].tolist()), params, ctx, purpose)
