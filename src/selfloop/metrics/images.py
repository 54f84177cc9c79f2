"""How well a model describes real images, how varied its own are, and how far they are from real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.distances import frechet_distance
from selfloop.types import Array, Columns, Floats, Params

BLOCK = 4096  # rows held as floating-point numbers at once; also the most rows that principal components are learned from


@runtime_checkable
class HasElbo(Protocol):
    """A family with an evidence lower bound: reconstruction loss and KL of each row, in nats."""

    def elbo(self, params: Params, rows: Columns, ctx: Context) -> tuple[Floats, Floats]: ...


@runtime_checkable
class EstimatesLikelihood(Protocol):
    """A family that estimates log p of each row, in nats, from that many samples of its latents."""

    def log_likelihood(self, params: Params, rows: Columns, samples: int, ctx: Context) -> Floats: ...


@dataclass(frozen=True, kw_only=True)
class NegativeElbo(Metric):
    """Negative evidence lower bound of the held-out real images, and its parts, with the same latent noise every generation.

    A gaussian likelihood goes without its constant, so 0 is a perfect copy at no KL; compare it only at one sigma.
    """

    name: ClassVar[str] = "negative_elbo"
    on_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "negative evidence bound of held-out real images"
    unit: ClassVar[str] = "nats per image"
    needs: ClassVar[tuple[type, ...]] = (HasElbo,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        rows = held_out(self.name, snap)
        reconstruction, kl = (float(part.mean()) for part in cast(HasElbo, snap.family).elbo(snap.params, rows, ctx))
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Metric):
    """Importance-weighted estimate of log p of the held-out real images, with the same latent noise every generation.

    Burda et al. 2015 (1509.00519), eq. (8): a lower bound on average that rises to log p with `samples`. All constants are in
    it, so that it is a density of grey values in [0, 1] or a probability of grey levels.
    """

    name: ClassVar[str] = "log_likelihood"
    on_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "log-likelihood of held-out real images"
    unit: ClassVar[str] = "nats per image"
    better: ClassVar[str] = "higher"
    needs: ClassVar[tuple[type, ...]] = (EstimatesLikelihood,)
    samples: int = 100  # of the latents of each image

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SpecError(f"metrics.log_likelihood.samples: got {self.samples}; expected 1 or more.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        rows = held_out(self.name, snap)
        estimates = cast(EstimatesLikelihood, snap.family).log_likelihood(snap.params, rows, self.samples, ctx)
        return {"log_likelihood": float(estimates.mean())}


@dataclass(frozen=True, kw_only=True)
class PixelSpread(Metric):
    """Standard deviation of a pixel over the newly sampled images, mean over pixels: 0 when all images are the same."""

    name: ClassVar[str] = "pixel_spread"
    title: ClassVar[str] = "spread of sampled images"
    unit: ClassVar[str] = "share of the grey scale"
    better: ClassVar[str] = "higher"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.new:
            return {}
        images = np.asarray(snap.new["image"])
        n = len(images)
        total = sum(images[rows].sum(axis=0, dtype=np.int64) for rows in _blocks(n))
        squares = sum(np.square(images[rows], dtype=np.int64).sum(axis=0) for rows in _blocks(n))
        return {"pixel_spread": float(np.sqrt(n * squares - np.square(total)).mean()) / n / 255}


@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """Squared Frechet distance between newly sampled and held-out real images, on principal components of real(1).

    The Frechet inception distance (Heusel et al. 2017, 1706.08500) with linear features instead of a network's: it
    sees means and covariances only. Biased upwards by finite samples, so compare it at equal numbers of rows.
    """

    name: ClassVar[str] = "frechet"
    on_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "Frechet distance of sampled images to real ones"
    unit: ClassVar[str] = "squared grey scales"
    components: int = 32  # principal ones

    def __post_init__(self) -> None:
        if self.components < 1:
            raise SpecError(f"metrics.frechet.components: got {self.components}; expected 1 or more.")

    def prepare(self, real: Columns, ctx: Context) -> Params:
        from sklearn.decomposition import PCA

        pixels = _pixels(np.asarray(real["image"])[:BLOCK])
        count = min(self.components, *pixels.shape)
        basis = PCA(count, random_state=ctx.stream.integer() % 2**32).fit(pixels)  # seeds its sketch of large images
        return {"mean": basis.mean_, "components": basis.components_}

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        real = held_out(self.name, snap)
        if not snap.new:
            return {}
        return {"frechet": frechet_distance(_features(snap.new, snap.prepared), _features(real, snap.prepared))}


def held_out(metric: str, snap: Snapshot) -> Columns:
    if not snap.holdout:
        raise SpecError(f"metrics: {metric!r} is measured on held-out real rows and there are none. Set holdout to 1 or more.")
    return snap.holdout


def _features(rows: Columns, prepared: Params) -> Floats:
    images = np.asarray(rows["image"])
    mean, components = (cast(Floats, prepared[name]) for name in ("mean", "components"))
    return np.concatenate([(_pixels(images[part]) - mean) @ components.T for part in _blocks(len(images))])


def _blocks(n: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, n, BLOCK)]


def _pixels(images: Array) -> Floats:
    """Images as rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float64) / 255
