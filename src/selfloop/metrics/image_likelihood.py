"""How well a model describes real images, and how varied its own are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.protocols import SupportsElbo, SupportsLogLikelihood

BLOCK = 4096  # rows held as numbers of 8 bytes at once


@dataclass(frozen=True, kw_only=True)
class NegativeElbo(Metric):
    """Negative evidence lower bound of the held-out real images, and its parts, with the same latent noise every generation.

    A gaussian likelihood goes without its constant, so 0 is a perfect copy at no KL; compare it only at one sigma.
    """

    name: ClassVar[str] = "negative_elbo"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "negative evidence bound of held-out real images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "reconstruction": "reconstruction loss of held-out real images",
        "kl": "KL term of held-out real images",
    }
    unit: ClassVar[str] = "nats per image"
    secondary_units: ClassVar[Mapping[str, str]] = {"reconstruction": "nats per image", "kl": "nats per image"}
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsElbo,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        parts = cast(SupportsElbo, snap.family).elbo(snap.params, snap.holdout, ctx)
        reconstruction, kl = (float(part.mean()) for part in parts)
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Metric):
    """Importance-weighted estimate of log p of the held-out real images, with the same latent noise every generation.

    Burda et al. 2015 (1509.00519), eq. (8): a lower bound on average that rises to log p with `samples`. All constants are in
    it, so that it is a density of grey values in [0, 1] or a probability of grey levels.
    """

    name: ClassVar[str] = "log_likelihood"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "log-likelihood of held-out real images"
    unit: ClassVar[str] = "nats per image"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogLikelihood,)
    samples: int = 100  # of the latents of each image

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SpecError(f"metrics.log_likelihood.samples: got {self.samples}; expected 1 or more.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        estimates = cast(SupportsLogLikelihood, snap.family).log_likelihood(snap.params, snap.holdout, self.samples, ctx)
        return {"log_likelihood": float(estimates.mean())}


@dataclass(frozen=True, kw_only=True)
class PixelSpread(Metric):
    """Standard deviation of a pixel over the newly sampled images, mean over pixels: 0 when all images are the same."""

    name: ClassVar[str] = "pixel_spread"
    title: ClassVar[str] = "spread of sampled images"
    unit: ClassVar[str] = "share of the grey scale"
    better: ClassVar[str] = "higher"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        images = np.asarray(snap.samples["image"])
        n = len(images)
        total = sum(images[rows].sum(axis=0, dtype=np.int64) for rows in _blocks(n))
        squares = sum(np.square(images[rows], dtype=np.int64).sum(axis=0) for rows in _blocks(n))
        return {"pixel_spread": float(np.sqrt(n * squares - np.square(total)).mean()) / n / 255}


def _blocks(n: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, n, BLOCK)]
