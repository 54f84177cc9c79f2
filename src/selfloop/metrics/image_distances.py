"""Distances of sampled images to held-out real images on features, and diversity of sampled images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from selfloop.columns import Array
from selfloop.component import Better, Context, SampleMetric
from selfloop.metrics.image_features import ImageFeatureExtractor, ImageMetric, feature_vectors
from selfloop.metrics.vector_distances import frechet_distance, kernel_distance, mean_distance
from selfloop.snapshots import Snapshot
from selfloop.transforms import FeatureExtractor

MAX_ROWS = 5000  # default limit of metrics that compare all pairs of rows, whose time grows with the square
CHUNK_ROWS = 4096  # rows that are converted to 8-byte numbers at a time
MaxRows = Annotated[int, Ge(2), "number of sampled and of real rows, at most"]


class ImageFrechetMetric(ImageMetric):
    """Frechet distances of equally many sampled and initial real images to the held-out real images.

    The initial images are those that the features were not learned from: every second one.
    """

    version: ClassVar[int] = 3
    has_zero: ClassVar[bool] = True
    uses_holdout: ClassVar[bool] = True

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = self.feature_pair(snap, "initial", equal_rows=True)
        real = feature_vectors(snap, "holdout")
        return {f"{self.name}{end}": frechet_distance(rows, real) for end, rows in zip(("", "_real"), pair, strict=True)}


@dataclass(frozen=True, kw_only=True)
class PixelFrechet(ImageFrechetMetric):
    """Squared Frechet distance between sampled and held-out real images, on principal components of their pixels.

    As `feature_frechet`, with linear features: it compares means and covariances of pixels only.
    """

    name: ClassVar[str] = "pixel_frechet"
    title: ClassVar[str] = "Frechet distance of sampled images to real ones"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "pixel_frechet_real": "Frechet distance of initial to held-out real images",
    }
    unit: ClassVar[str] = "squared gray scales"
    features: Annotated[FeatureExtractor, "features of the images"] = field(
        default_factory=lambda: ImageFeatureExtractor(kind="pixels", dimensions=32)
    )


@dataclass(frozen=True, kw_only=True)
class FeatureFrechet(ImageFrechetMetric):
    """Squared Frechet distance between sampled and held-out real images on features; on Inception's features, the FID.

    Heusel et al. 2017 (1706.08500). `feature_frechet_real` is the distance of equally many initial real images, the expected
    value for a perfect model: finite numbers of rows bias both upwards (Chong and Forsyth 2020, 1911.07023).
    """

    name: ClassVar[str] = "feature_frechet"
    title: ClassVar[str] = "Frechet distance of sampled images to real ones, on features"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "feature_frechet_real": "Frechet distance of initial to held-out real images, on features",
    }
    unit: ClassVar[str] = "squared units of the features"


@dataclass(frozen=True, kw_only=True)
class KernelDistance(ImageMetric):
    """Kernel distance between sampled and held-out real images on features; on Inception's features, the KID.

    Binkowski et al. 2018 (1801.01401). Unbiased for any number of rows; about 0 for a perfect model.
    """

    name: ClassVar[str] = "kernel_distance"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "kernel distance of sampled images to real ones"
    max_rows: MaxRows = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = self.feature_pair(snap, "holdout", self.max_rows)
        return {"kernel_distance": kernel_distance(*pair) if min(map(len, pair)) > 1 else math.nan}


@dataclass(frozen=True, kw_only=True)
class FeatureDiversity(ImageMetric):
    """Mean distance between two sampled images over the mean distance between two held-out real images, on features.

    1 if sampled images are as varied as real images, 0 if all are equal.
    """

    name: ClassVar[str] = "feature_diversity"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "diversity of sampled images"
    unit: ClassVar[str] = "share of that of real images"
    better: ClassVar[Better] = 1.0
    max_rows: MaxRows = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = self.feature_pair(snap, "holdout", self.max_rows)
        sampled, real = (mean_distance(rows) if len(rows) > 1 else math.nan for rows in pair)
        return {"feature_diversity": sampled / real if real else math.nan}


@dataclass(frozen=True, kw_only=True)
class PixelStd(SampleMetric):
    """Standard deviation of a pixel over the sampled images, mean over pixels; 0 if all images are equal.

    `pixel_std_real` is that of the initial real images, which is right.
    """

    name: ClassVar[str] = "pixel_std"
    compares_samples: ClassVar[bool] = True
    has_zero: ClassVar[bool] = True
    version: ClassVar[int] = 2
    title: ClassVar[str] = "standard deviation of sampled pixels"
    secondary_titles: ClassVar[Mapping[str, str]] = {"pixel_std_real": "standard deviation of initial real pixels"}
    unit: ClassVar[str] = "share of the gray scale"
    better: ClassVar[Better] = "pixel_std_real"

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled, initial = (pixel_std(np.asarray(rows["image"])) for rows in (snap.samples, snap.initial))
        return {"pixel_std": sampled, "pixel_std_real": initial}


def pixel_std(images: Array) -> float:
    """Standard deviation of a pixel over uint8 images, mean over pixels, as a share of the gray scale."""
    n = len(images)
    chunks = [images[first : first + CHUNK_ROWS] for first in range(0, n, CHUNK_ROWS)]
    total = sum(chunk.sum(axis=0, dtype=np.int64) for chunk in chunks)
    squares = sum(np.square(chunk, dtype=np.int64).sum(axis=0) for chunk in chunks)
    return float(np.sqrt(n * squares - np.square(total)).mean()) / n / 255
