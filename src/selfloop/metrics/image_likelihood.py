"""Likelihood of real images, and the pixel standard deviation of sampled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
from annotated_types import Ge

from selfloop.component import Context, Metric, SampleMetric
from selfloop.protocols import SupportsElbo, SupportsLogLikelihood
from selfloop.snapshots import Snapshot

CHUNK_ROWS = 4096  # rows that are converted to 8-byte numbers at a time


@dataclass(frozen=True, kw_only=True)
class NegativeElbo(Metric):
    """Negative evidence lower bound of the held-out real images and its two terms, with the same latent noise every generation.

    A gaussian likelihood has no constant here, so 0 is a perfect copy without KL. Compare it at equal sigma only.
    """

    name: ClassVar[str] = "negative_elbo"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "negative evidence bound of held-out real images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "elbo_reconstruction": "reconstruction loss of held-out real images",
        "kl": "KL term of held-out real images",
    }
    unit: ClassVar[str] = "nats per image"
    secondary_units: ClassVar[Mapping[str, str]] = dict.fromkeys(secondary_titles, unit)
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsElbo,)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        terms = cast(SupportsElbo, snap.family).elbo(snap.params, snap.holdout, ctx)
        reconstruction, kl = (float(term.mean()) for term in terms)
        return {"negative_elbo": reconstruction + kl, "elbo_reconstruction": reconstruction, "kl": kl}


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Metric):
    """Importance-weighted estimate of log p of the held-out real images, with the same latent noise every generation.

    Burda et al. 2015 (1509.00519), eq. (8): in expectation a lower bound, which rises to log p with the number of importance
    samples. It has all constants: it is the density of gray values in [0, 1] or the probability of gray levels.
    """

    name: ClassVar[str] = "log_likelihood"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "log-likelihood of held-out real images"
    unit: ClassVar[str] = "nats per image"
    better: ClassVar[str] = "higher"
    family_protocols: ClassVar[tuple[type, ...]] = (SupportsLogLikelihood,)
    importance_samples: Annotated[int, Ge(1), "samples of the latent variables per image"] = 100

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        family = cast(SupportsLogLikelihood, snap.family)
        estimates = family.log_likelihood(snap.params, snap.holdout, self.importance_samples, ctx)
        return {"log_likelihood": float(estimates.mean())}


@dataclass(frozen=True, kw_only=True)
class PixelStd(SampleMetric):
    """Standard deviation of a pixel over the sampled images, mean over pixels; 0 if all images are equal."""

    name: ClassVar[str] = "pixel_std"
    title: ClassVar[str] = "standard deviation of sampled pixels"
    unit: ClassVar[str] = "share of the gray scale"
    better: ClassVar[str] = "higher"

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        images = np.asarray(snap.samples["image"])
        n = len(images)
        chunks = [images[first : first + CHUNK_ROWS] for first in range(0, n, CHUNK_ROWS)]
        total = sum(chunk.sum(axis=0, dtype=np.int64) for chunk in chunks)
        squares = sum(np.square(chunk, dtype=np.int64).sum(axis=0) for chunk in chunks)
        return {"pixel_std": float(np.sqrt(n * squares - np.square(total)).mean()) / n / 255}
