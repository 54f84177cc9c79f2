"""Which modes of the real images sampled ones still show, and which attributes, as the classifier of the features sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from selfloop.component import Context, FeatureExtractor, Metric, Sampler, Snapshot, Source
from selfloop.errors import SpecError
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.types import Floats

SHOWN = 20  # modes at most that get a number each
LOST = 0.1  # of its fair or real share: below, a mode or attribute counts as lost


@dataclass(frozen=True, kw_only=True)
class Modes(Metric):
    """Number of modes that are left, each newly sampled image counted for its most probable one.

    Modes are the classes of the features' classifier, or clusters of the real features where rows have no labels. One is
    left with at least a tenth of the rows of equally frequent ones. Further: entropy of the shares, how far they are from
    those of held-out real images (total variation), the share of images whose most probable mode is less probable than
    `sure` (they lie between modes), and the share of each mode, for at most 20 modes, also (`_real`) among held-out images.
    Clusters are numbered anew for each seed, so that a mean of their shares over seeds means nothing.
    """

    name: ClassVar[str] = "modes"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "modes left among sampled images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "mode_entropy": "entropy of the modes of sampled images",
        "mode_distance": "distance of the shares of modes to real ones",
        "mode_confusion": "sampled images between modes",
    }
    unit: ClassVar[str] = "modes"
    secondary_units: ClassVar[Mapping[str, str]] = {
        "mode_entropy": "nats",
        "mode_distance": "total variation",
        "mode_confusion": "share of sampled images",
    } | {f"class_share_{mode}": "share of sampled images" for mode in range(SHOWN)}
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    sure: float = 0.9  # probability of a mode from which on an image does not lie between modes

    def __post_init__(self) -> None:
        if not 0 < self.sure <= 1:
            raise SpecError(f"metrics.modes.sure: got {self.sure}; expected a probability above 0.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if "new" not in snap.features:
            return {}
        new, real = (_column(snap, kind, "probabilities", "modes") for kind in ("new", "holdout"))
        count = new.shape[1]
        shares, expected = (np.bincount(each.argmax(axis=1), minlength=count) / len(each) for each in (new, real))
        there = shares[shares > 0]
        numbers = {
            "modes": float(np.count_nonzero(shares >= LOST / count)),
            "mode_entropy": float((there * np.log(1 / there)).sum()),
            "mode_distance": float(np.abs(shares - expected).sum() / 2),
            "mode_confusion": float((new.max(axis=1) < self.sure).mean()),
        }
        names = snap.prepared.get("classes", np.arange(count)).tolist()
        for name, share, of_real in zip(names, shares, expected, strict=True) if count <= SHOWN else ():
            numbers |= {f"class_share_{name}": float(share), f"class_share_{name}_real": float(of_real)}
        return numbers


@dataclass(frozen=True, kw_only=True)
class Attributes(Metric):
    """Number of attributes that are left: those with at least a tenth of their share among held-out real images.

    An image has an attribute when the features' classifier, trained on the `attributes` of the initial real rows, finds it
    more probable than not. Further: the mean difference of the shares, and for each attribute its share among sampled
    images and, ending in `_real`, among held-out real ones. An attribute that is not recognised in real images is not left.
    """

    name: ClassVar[str] = "attributes"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "attributes left among sampled images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "attribute_distance": "difference of the shares of attributes to real ones"
    }
    unit: ClassVar[str] = "attributes"
    secondary_units: ClassVar[Mapping[str, str]] = {"attribute_distance": "mean difference of shares"}
    better: ClassVar[str] = "higher"
    features: FeatureExtractor = field(default_factory=ImageFeatureExtractor)
    names: tuple[str, ...] = ()  # of the attributes, in the order of the column; none = their places 0, 1, ...

    def check(self, source: Source, sampler: Sampler) -> None:
        if not isinstance(self.features, ImageFeatureExtractor):
            return  # which may find attributes that no source names
        found = source.schema().get("attributes")
        if found is None or self.features.kind != "classifier":
            raise SpecError(
                f"metrics.attributes: learns attributes from the rows; {source.name} gives "
                f"{'none as it is set' if found is None else 'some'}, the features' kind is {self.features.kind!r}. Take "
                "kind 'classifier' and a source whose rows have a column 'attributes', or drop the metric."
            )
        self._check_names(found.shape[0])

    def _check_names(self, count: int) -> None:
        if len(set(self.names)) not in (0, count):
            raise SpecError(
                f"metrics.attributes.names: got {len(self.names)} names for {count} attributes. Name each once, or none."
            )

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if "new" not in snap.features:
            return {}
        new, real = ((_column(snap, kind, "attributes", self.name) > 0.5).mean(axis=0) for kind in ("new", "holdout"))
        self._check_names(len(new))
        names = self.names or range(len(new))
        numbers = {
            "attributes": float(np.count_nonzero((new >= LOST * real) & (real > 0))),
            "attribute_distance": float(np.abs(new - real).mean()),
        }
        for name, share, expected in zip(names, new.tolist(), real.tolist(), strict=True):
            numbers |= {f"attribute_share_{name}": share, f"attribute_share_{name}_real": expected}
        return numbers


def _column(snap: Snapshot, kind: str, column: str, metric: str) -> Floats:
    columns = snap.features[kind]
    if column not in columns:
        raise SpecError(
            f"metrics.{metric}.features: they tell no {column}. Take kind 'classifier' and a source whose rows have a "
            f"column {column!r}."
        )
    return np.asarray(columns[column])
