"""How far sampled images are from held-out real ones, and how varied they are, on features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from selfloop.component import Context, FeatureExtractor, Metric, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.vector_distances import frechet_distance, kernel_distance, mean_distance
from selfloop.types import Floats

MOST_ROWS = 5000  # of a kind in what compares all pairs of rows: its time grows with their square


@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """Squared Frechet distance between newly sampled and held-out real images, on principal components of their pixels.

    As `feature_frechet`, with linear features instead of a network's: it sees means and covariances of pixels only.
    """

    name: ClassVar[str] = "frechet"
    version: ClassVar[int] = 2
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "Frechet distance of sampled images to real ones"
    secondary_titles: ClassVar[Mapping[str, str]] = {"frechet_real": "Frechet distance of initial to held-out real images"}
    unit: ClassVar[str] = "squared grey scales"
    secondary_units: ClassVar[Mapping[str, str]] = {"frechet_real": unit}
    features: FeatureExtractor = field(default_factory=lambda: ImageFeatureExtractor(kind="pixels", dimensions=32))

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return _frechet(self.name, snap)


@dataclass(frozen=True, kw_only=True)
class FeatureFrechet(Metric):
    """Squared Frechet distance between newly sampled and held-out real images on features: with Inception's, the FID.

    Heusel et al. 2017 (1706.08500). `feature_frechet_real` is that of as many initial real images, which is what the
    distance of a perfect model would be: finite numbers of rows bias both upwards (Chong and Forsyth 2020, 1911.07023).
    Of more sampled rows than there are initial ones, only so many are looked at.
    """

    name: ClassVar[str] = "feature_frechet"
    version: ClassVar[int] = 2
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "Frechet distance of sampled images to real ones, on features"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "feature_frechet_real": "Frechet distance of initial to held-out real images, on features",
    }
    unit: ClassVar[str] = "squared units of the features"
    secondary_units: ClassVar[Mapping[str, str]] = {"feature_frechet_real": unit}
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return _frechet(self.name, snap)


def _frechet(name: str, snap: Snapshot) -> Mapping[str, float]:
    """The distance of sampled and that of initial real rows, equally many, to the held-out ones."""
    if "new" not in snap.features:
        return {}
    new, initial = new_and_initial(snap)
    real = vectors(snap, "holdout")
    return {name: frechet_distance(new, real), f"{name}_real": frechet_distance(initial, real)}


@dataclass(frozen=True, kw_only=True)
class KernelDistance(Metric):
    """Kernel distance between newly sampled and held-out real images on features: with Inception's, the KID.

    Binkowski et al. 2018 (1801.01401). Without bias, whatever the number of rows; around 0 for a perfect model.
    """

    name: ClassVar[str] = "kernel_distance"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "kernel distance of sampled images to real ones"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    rows: int = MOST_ROWS  # of each kind, at most

    def __post_init__(self) -> None:
        check_least(self.name, "rows", self.rows, 2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := new_and_real(snap, self.rows)) is None:
            return {}
        return {"kernel_distance": kernel_distance(*pair) if min(map(len, pair)) > 1 else math.nan}


@dataclass(frozen=True, kw_only=True)
class FeatureDiversity(Metric):
    """Mean distance between two newly sampled images over that between two held-out real ones, on features.

    1 is as varied as real images, 0 when all are the same.
    """

    name: ClassVar[str] = "feature_diversity"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "diversity of sampled images"
    unit: ClassVar[str] = "share of that of real images"
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        check_least(self.name, "rows", self.rows, 2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := new_and_real(snap, self.rows)) is None:
            return {}
        spreads = [mean_distance(rows) if len(rows) > 1 else math.nan for rows in pair]
        return {"feature_diversity": spreads[0] / spreads[1] if spreads[1] else math.nan}


def new_and_real(snap: Snapshot, most: int | None = None) -> tuple[Floats, Floats] | None:
    """Features of the newly sampled and of the held-out rows, the first `most` of each; None where nothing was sampled."""
    return (vectors(snap, "new", most), vectors(snap, "holdout", most)) if "new" in snap.features else None


def new_and_initial(snap: Snapshot, most: int | None = None) -> tuple[Floats, Floats]:
    """Features of equally many newly sampled and initial real rows, at most `most`: what depends on how many compares them."""
    new, initial = vectors(snap, "new", most), vectors(snap, "initial", most)
    count = min(len(new), len(initial))
    return new[:count], initial[:count]


def vectors(snap: Snapshot, kind: str, most: int | None = None) -> Floats:
    """Features of the first `most` rows of a kind."""
    return np.asarray(np.asarray(snap.features[kind]["features"])[:most], np.float64)


def check_least(metric: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise SpecError(f"metrics.{metric}.{name}: got {value}; expected {least} or more.")
