"""Nearest neighbors of sampled and real images: precision, coverage, near copies and entropy.

Distances are exact. The test whether a row lies within another row's radius ignores differences below 3e-7 of the largest
distance from the center. Equal rows are neighbors at distance 0, so the ball of a row with more than k copies has radius 0
and contains its equals only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge

from selfloop.columns import Floats, Ints
from selfloop.component import Better, Context
from selfloop.metrics.image_distances import MAX_ROWS, MaxRows
from selfloop.metrics.image_features import ImageMetric, feature_vectors
from selfloop.metrics.vector_distances import distance_chunks
from selfloop.snapshots import Snapshot

TIE_TOLERANCE = 1e-13  # error of squared distances from a matrix product, relative to the largest |row|^2
NEAR_COPY_RATIO = 1 / 3  # a near copy is closer than this share of the distance to the second nearest row
Neighbor = Annotated[int, Ge(1), "the k-th nearest neighbor sets the radius"]


class BallCounts(NamedTuple):
    """Points in balls: the number of balls around each point, and the number of points in each ball."""

    balls: Ints
    points: Ints


def k_nearest(a: Floats, b: Floats, k: int, *, include_self: bool = True) -> Floats:
    """Distances of each row of a to its k nearest rows of b, ascending. Without `include_self`, rows i are no neighbors."""
    import torch

    distances = np.empty((len(a), k))
    center = b.mean(axis=0)
    for rows, squares in distance_chunks(a - center, b - center):
        if not include_self:
            np.fill_diagonal(squares[:, rows], np.inf)
        indices = torch.topk(torch.from_numpy(squares), k, largest=False).indices.numpy()  # faster than numpy's partition
        distances[rows] = np.sort(np.linalg.norm(a[rows, None] - b[indices], axis=2), axis=1)
    return distances


def count_in_balls(points: Floats, centers: Floats, radii: Floats) -> BallCounts:
    """Numbers of points in balls, boundaries included."""
    middle = centers.mean(axis=0)
    points, centers = points - middle, centers - middle
    limits = np.square(radii) + TIE_TOLERANCE * max(np.vecdot(rows, rows).max() for rows in (points, centers))
    counts = BallCounts(np.zeros(len(points), np.int64), np.zeros(len(centers), np.int64))
    for rows, squares in distance_chunks(points, centers):
        inside = squares <= limits
        counts.balls[rows] = np.count_nonzero(inside, axis=1)
        counts.points[:] += np.count_nonzero(inside, axis=0)
    return counts


@dataclass(frozen=True, kw_only=True)
class Precision(ImageMetric):
    """Share of sampled images among held-out real images, and the reverse share, the recall.

    A row is among others if it lies within the distance of one of them to its k-th nearest row of the same kind
    (Kynkaanniemi et al. 2019, 1904.06991, eq. 1 and 2). Both shares depend on the number of rows, so both kinds have equally
    many.
    """

    name: ClassVar[str] = "precision"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "sampled images among real ones (precision)"
    secondary_titles: ClassVar[Mapping[str, str]] = {"recall": "real images among sampled ones (recall)"}
    unit: ClassVar[str] = "share of sampled images"
    secondary_units: ClassVar[Mapping[str, str]] = {"recall": "share of real images"}
    secondary_better: ClassVar[Mapping[str, Better]] = {"recall": "higher"}
    better: ClassVar[Better] = "higher"
    k: Neighbor = 3
    max_rows: MaxRows = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled, real = self.feature_pair(snap, "holdout", self.max_rows, equal_rows=True)
        if len(sampled) <= self.k:
            return {"precision": math.nan, "recall": math.nan}
        radii = [k_nearest(rows, rows, self.k, include_self=False)[:, -1] for rows in (sampled, real)]
        precision, recall = count_in_balls(sampled, real, radii[1]).balls > 0, count_in_balls(real, sampled, radii[0]).balls > 0
        return {"precision": float(precision.mean()), "recall": float(recall.mean())}


@dataclass(frozen=True, kw_only=True)
class Coverage(ImageMetric):
    """Share of held-out real images with a sampled image closer than their k-th nearest real image, and the density.

    The density is the mean number of balls of real images that contain a sampled image, over k: about 1 for a perfect model,
    more for a model that samples only where real images are dense. Naeem et al. 2020 (2002.09797), section 3: unlike
    precision and recall, both are robust to single outliers. Both kinds have equally many rows.
    """

    name: ClassVar[str] = "coverage"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "real images near a sampled one (coverage)"
    secondary_titles: ClassVar[Mapping[str, str]] = {"density": "real neighborhoods around a sampled image (density)"}
    secondary_units: ClassVar[Mapping[str, str]] = {"density": ""}  # 1 as in real images
    secondary_better: ClassVar[Mapping[str, Better]] = {"density": 1.0}
    unit: ClassVar[str] = "share of real images"
    better: ClassVar[Better] = "higher"
    k: Neighbor = 5
    max_rows: MaxRows = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled, real = self.feature_pair(snap, "holdout", self.max_rows, equal_rows=True)
        if len(real) <= self.k:
            return {"coverage": math.nan, "density": math.nan}
        counts = count_in_balls(sampled, real, k_nearest(real, real, self.k, include_self=False)[:, -1])
        return {"coverage": float((counts.points > 0).mean()), "density": float(counts.balls.mean()) / self.k}


@dataclass(frozen=True, kw_only=True)
class TrainingDistance(ImageMetric):
    """Mean distance of a sampled image to its nearest initial real image, over the mean distance of a held-out real image.

    1 if sampled images are as far away as fresh real images. Far below 1, they are near copies (Shi et al. 2025, 2509.16499,
    measure generalization by the distance to the nearest training row) or all of one typical kind. `near_copies` is the share
    of sampled images whose distance to the nearest initial image is below a third of the distance to the second nearest (Yoon
    et al. 2023; Gu et al. 2023, 2310.02664). Equal initial images count once. `near_copies_real` is the share among held-out
    images.
    """

    name: ClassVar[str] = "training_distance"
    has_zero: ClassVar[bool] = True
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "distance to the nearest initial real image"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "near_copies": "sampled images that are near copies of an initial one",
        "near_copies_real": "held-out real images that are near copies of an initial one",
    }
    unit: ClassVar[str] = "share of that of held-out real images"
    secondary_units: ClassVar[Mapping[str, str]] = {
        "near_copies": "share of sampled images",
        "near_copies_real": "share of held-out real images",
    }
    better: ClassVar[Better] = 1.0
    secondary_better: ClassVar[Mapping[str, Better]] = {"near_copies": "near_copies_real"}
    max_rows: Annotated[int, Ge(1), "number of sampled and of held-out rows, at most; all initial rows are used"] = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = self.feature_pair(snap, "holdout", self.max_rows)
        initial = np.unique(feature_vectors(snap, "initial"), axis=0)
        if len(initial) < 2:
            return {"training_distance": math.nan}
        sampled, real = (k_nearest(rows, initial, 2) for rows in pair)
        copies, copies_real = (float((d[:, 0] < NEAR_COPY_RATIO * d[:, 1]).mean()) for d in (sampled, real))
        real_distance = real[:, 0].mean()
        ratio = float(sampled[:, 0].mean() / real_distance) if real_distance else math.nan
        return {"training_distance": ratio, "near_copies": copies, "near_copies_real": copies_real}


@dataclass(frozen=True, kw_only=True)
class FeatureEntropy(ImageMetric):
    """Entropy of the features of sampled images, estimated from distances to k-th nearest neighbors.

    psi(n) - psi(k) + log(volume of the unit ball) + d mean(log distance): Kozachenko and Leonenko 1987, in the form of
    Kraskov et al. 2004 (cond-mat/0305641), eq. (20). No value if a row has k copies: the entropy is then minus infinity. The
    bias grows with the number of dimensions: compare only with `feature_entropy_real`, the entropy of equally many initial
    real images that the features were not learned from, and between generations.
    """

    name: ClassVar[str] = "feature_entropy"
    version: ClassVar[int] = 3
    title: ClassVar[str] = "entropy of sampled images"
    secondary_titles: ClassVar[Mapping[str, str]] = {"feature_entropy_real": "entropy of initial real images"}
    unit: ClassVar[str] = "nats"
    better: ClassVar[Better] = "feature_entropy_real"
    k: Neighbor = 3
    max_rows: MaxRows = MAX_ROWS

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        pair = self.feature_pair(snap, "initial", self.max_rows, equal_rows=True)
        sampled, initial = (entropy(rows, self.k) for rows in pair)
        return {"feature_entropy": sampled, "feature_entropy_real": initial}


def entropy(rows: Floats, k: int) -> float:
    """Kozachenko-Leonenko estimate of the differential entropy, in nats; NaN for k rows or fewer."""
    from scipy.special import digamma, gammaln

    n, d = rows.shape
    if n <= k:
        return math.nan
    distances = k_nearest(rows, rows, k, include_self=False)[:, -1]
    if not distances.all():
        return -math.inf
    log_volume = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return float(digamma(n) - digamma(k) + log_volume + d * np.log(distances).mean())
