"""Sampled images among their nearest real neighbours: how many are credible, how much they cover, which are copies.

Distances are exact but for one comparison, whether a row lies within another row's radius: there, differences of less than
3e-7 of the largest distance from the centre count as none. Equal rows are neighbours at distance 0, so rows of which there
are more than k copies have radius 0 and reach only their equals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from selfloop.component import Context, FeatureExtractor, Metric, Snapshot
from selfloop.metrics.image_distances import MOST_ROWS, check_least, new_and_initial, new_and_real, vectors
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.vector_distances import distance_blocks
from selfloop.types import Floats, Ints

TIE = 1e-13  # of the largest |row|^2: what squared distances from a matrix product may be off by
COPY = 1 / 3  # of the distance to the second nearest row


class Reach(NamedTuple):
    """Points in balls: how many balls each point lies in, and how many points each ball holds."""

    balls: Ints
    points: Ints


def nearest(a: Floats, b: Floats, k: int, *, itself: bool = True) -> Floats:
    """Distances of each row of a to its k nearest rows of b, ascending; without `itself`, row i of a is no neighbour of it."""
    import torch

    distances = np.empty((len(a), k))
    centre = b.mean(axis=0)
    for part, squares in distance_blocks(a - centre, b - centre):
        if not itself:
            np.fill_diagonal(squares[:, part], np.inf)
        chosen = torch.topk(torch.from_numpy(squares), k, largest=False).indices.numpy()  # numpy's partition takes longer
        distances[part] = np.sort(np.linalg.norm(a[part, None] - b[chosen], axis=2), axis=1)
    return distances


def reach(points: Floats, centres: Floats, radii: Floats) -> Reach:
    """Which of the points lie in which balls, boundaries included."""
    middle = centres.mean(axis=0)
    points, centres = points - middle, centres - middle
    limits = np.square(radii) + TIE * max(np.vecdot(rows, rows).max() for rows in (points, centres))
    found = Reach(np.zeros(len(points), np.int64), np.zeros(len(centres), np.int64))
    for part, squares in distance_blocks(points, centres):
        inside = squares <= limits
        found.balls[part] = np.count_nonzero(inside, axis=1)
        found.points[:] += np.count_nonzero(inside, axis=0)
    return found


@dataclass(frozen=True, kw_only=True)
class Precision(Metric):
    """Share of the newly sampled images that lie among the held-out real ones, and the reverse, which is the recall.

    A row lies among others when it is within the distance of one of them to its k-th nearest among themselves
    (Kynkaanniemi et al. 2019, 1904.06991, eq. 1 and 2). As many rows of each kind, for both numbers depend on it.
    """

    name: ClassVar[str] = "precision"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "sampled images among real ones (precision)"
    secondary_titles: ClassVar[Mapping[str, str]] = {"recall": "real images among sampled ones (recall)"}
    unit: ClassVar[str] = "share of sampled images"
    secondary_units: ClassVar[Mapping[str, str]] = {"recall": "share of real images"}
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    k: int = 3
    rows: int = MOST_ROWS  # of each kind, at most

    def __post_init__(self) -> None:
        check_least(self.name, "k", self.k, 1)
        check_least(self.name, "rows", self.rows, 2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := _as_many(snap, self.rows)) is None:
            return {}
        new, real = pair
        if len(new) <= self.k:
            return {"precision": math.nan, "recall": math.nan}
        radii = [nearest(rows, rows, self.k, itself=False)[:, -1] for rows in pair]
        precision, recall = reach(new, real, radii[1]).balls > 0, reach(real, new, radii[0]).balls > 0
        return {"precision": float(precision.mean()), "recall": float(recall.mean())}


@dataclass(frozen=True, kw_only=True)
class Coverage(Metric):
    """Share of the held-out real images with a newly sampled one nearer than their k-th nearest real one, and the density.

    Density is how many real images' neighbourhoods a sampled image lies in, over k: about 1 for a perfect model, and more
    for one that stays where real images are dense. Naeem et al. 2020 (2002.09797), section 3: unlike recall and precision,
    neither is moved by single outliers. As many rows of each kind.
    """

    name: ClassVar[str] = "coverage"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "real images near a sampled one (coverage)"
    secondary_titles: ClassVar[Mapping[str, str]] = {"density": "real neighbourhoods around a sampled image (density)"}
    unit: ClassVar[str] = "share of real images"
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    k: int = 5
    rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        check_least(self.name, "k", self.k, 1)
        check_least(self.name, "rows", self.rows, 2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := _as_many(snap, self.rows)) is None:
            return {}
        new, real = pair
        if len(real) <= self.k:
            return {"coverage": math.nan, "density": math.nan}
        found = reach(new, real, nearest(real, real, self.k, itself=False)[:, -1])
        return {"coverage": float((found.points > 0).mean()), "density": float(found.balls.mean()) / self.k}


@dataclass(frozen=True, kw_only=True)
class TrainingDistance(Metric):
    """Mean distance of a newly sampled image to the nearest initial real one, over that of a held-out real image.

    1 is as far as fresh real images are; well below it, rows are near copies (Shi et al. 2025, 2509.16499, measure
    generalisation by the distance to the nearest training row) or all of one typical kind. `near_copies` is the share of
    sampled images less than a third as far from the nearest initial image as from the second nearest one (Yoon et al. 2023;
    Gu et al. 2023, 2310.02664), equal initial images counted once; `near_copies_real` that of the held-out ones.
    """

    name: ClassVar[str] = "training_distance"
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
    better: ClassVar[str] = ""
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    rows: int = MOST_ROWS  # new and held-out ones, at most; they are compared with all initial ones

    def __post_init__(self) -> None:
        check_least(self.name, "rows", self.rows, 1)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if (pair := new_and_real(snap, self.rows)) is None:
            return {}
        initial = np.unique(vectors(snap, "initial"), axis=0)
        if len(initial) < 2:
            return {"training_distance": math.nan}
        new, real = (nearest(rows, initial, 2) for rows in pair)
        fresh = real[:, 0].mean()
        copies, expected = (float((each[:, 0] < COPY * each[:, 1]).mean()) for each in (new, real))
        ratio = float(new[:, 0].mean() / fresh) if fresh else math.nan
        return {"training_distance": ratio, "near_copies": copies, "near_copies_real": expected}


@dataclass(frozen=True, kw_only=True)
class Entropy(Metric):
    """Entropy of the newly sampled images' features by the distances to their k-th nearest, and of as many initial real ones.

    psi(n) - psi(k) + log(volume of the unit ball) + d mean(log distance): Kozachenko and Leonenko 1987, in the form of
    Kraskov et al. 2004 (cond-mat/0305641), eq. (20). No number once a row has k copies: the entropy is then minus infinity.
    Its bias grows with the dimensions: compare it with `entropy_real` and between generations only.
    """

    name: ClassVar[str] = "entropy"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "entropy of sampled images"
    secondary_titles: ClassVar[Mapping[str, str]] = {"entropy_real": "entropy of initial real images"}
    unit: ClassVar[str] = "nats"
    secondary_units: ClassVar[Mapping[str, str]] = {"entropy_real": "nats"}
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    k: int = 3
    rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        check_least(self.name, "k", self.k, 1)
        check_least(self.name, "rows", self.rows, 2)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if "new" not in snap.features:
            return {}
        new, initial = new_and_initial(snap, self.rows)
        return {"entropy": entropy(new, self.k), "entropy_real": entropy(initial, self.k)}


def entropy(rows: Floats, k: int) -> float:
    """Kozachenko-Leonenko estimate of the differential entropy, nats; NaN with k rows or fewer."""
    from scipy.special import digamma, gammaln

    n, d = rows.shape
    if n <= k:
        return math.nan
    distances = nearest(rows, rows, k, itself=False)[:, -1]
    if not distances.all():
        return -math.inf
    ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return float(digamma(n) - digamma(k) + ball + d * np.log(distances).mean())


def _as_many(snap: Snapshot, most: int) -> tuple[Floats, Floats] | None:
    """Features of equally many newly sampled and held-out rows."""
    if (pair := new_and_real(snap, most)) is None:
        return None
    count = min(map(len, pair))
    return pair[0][:count], pair[1][:count]
