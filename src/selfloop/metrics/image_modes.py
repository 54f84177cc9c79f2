"""Modes and attributes of the real images that sampled images still have, according to the classifier of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from selfloop.columns import Floats
from selfloop.component import Better, Context, Sampler, Source
from selfloop.errors import SpecError
from selfloop.metrics.image_features import ImageFeatureExtractor, ImageMetric
from selfloop.snapshots import Snapshot

MAX_LISTED_MODES = 20  # number of modes up to which each mode's share is a secondary value
LOST_SHARE = 0.1  # of the uniform or real share: a mode or attribute below it counts as lost


@dataclass(frozen=True, kw_only=True)
class Modes(ImageMetric):
    """Number of modes that sampled images have. Each image counts for its most probable mode.

    Modes are the classes of the features' classifier, or clusters of the real features if rows have no labels. A mode counts if
    its share is at least a tenth of the share that it has in a uniform distribution. Secondary values: entropy of the shares;
    their total variation distance from the shares of held-out real images; the share of images between modes, whose most
    probable mode has a probability below `min_probability`; and, for at most 20 modes, the share of each mode, also (`_real`)
    among held-out images. Every seed numbers its clusters differently: a mean of their shares over seeds has no meaning.
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
    } | {f"class_share_{mode}": "share of sampled images" for mode in range(MAX_LISTED_MODES)}
    better: ClassVar[Better] = "higher"
    secondary_better: ClassVar[Mapping[str, Better]] = {"mode_distance": "lower", "mode_confusion": "lower"}
    min_probability: Annotated[
        float, Interval(gt=0, le=1), "probability of the most probable mode below which an image lies between modes"
    ] = 0.9

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        sampled, real = (_feature_column(snap, kind, "probabilities", "modes") for kind in ("samples", "holdout"))
        n_modes = sampled.shape[1]
        shares, real_shares = (np.bincount(p.argmax(axis=1), minlength=n_modes) / len(p) for p in (sampled, real))
        positive = shares[shares > 0]
        values = {
            "modes": float(np.count_nonzero(shares >= LOST_SHARE / n_modes)),
            "mode_entropy": float((positive * np.log(1 / positive)).sum()),
            "mode_distance": float(np.abs(shares - real_shares).sum() / 2),
            "mode_confusion": float((sampled.max(axis=1) < self.min_probability).mean()),
        }
        if n_modes <= MAX_LISTED_MODES:
            names = snap.prepared.get("classes", np.arange(n_modes)).tolist()
            values |= _named_shares("class_share", names, shares, real_shares)
        return values


@dataclass(frozen=True, kw_only=True)
class Attributes(ImageMetric):
    """Number of attributes whose share among sampled images is at least a tenth of their share among held-out real images.

    An image has an attribute if the features' classifier, trained on the `attributes` of initial real rows, gives it a
    probability above 0.5. Secondary values: the mean difference of the shares, and the share of each attribute among sampled
    images and (`_real`) among held-out real images. An attribute with a real share of 0 does not count.
    """

    name: ClassVar[str] = "attributes"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "attributes left among sampled images"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "attribute_distance": "difference of the shares of attributes to real ones"
    }
    unit: ClassVar[str] = "attributes"
    secondary_units: ClassVar[Mapping[str, str]] = {"attribute_distance": "mean difference of shares"}
    secondary_better: ClassVar[Mapping[str, Better]] = {"attribute_distance": "lower"}
    better: ClassVar[Better] = "higher"
    names: Annotated[tuple[str, ...], "names of the attributes, in the order of the column; empty: 0, 1, ..."] = ()

    def check(self, source: Source, sampler: Sampler) -> None:
        if not isinstance(self.features, ImageFeatureExtractor):
            return  # other extractors may find attributes that no source has
        column = source.schema().get("attributes")
        if column is None or self.features.kind != "classifier":
            rows = "no column 'attributes'" if column is None else "a column 'attributes'"
            raise SpecError(
                f"metrics.attributes: got features of kind {self.features.kind!r} and rows of {source.name} with {rows}; "
                "expected kind 'classifier' and a column 'attributes'. Change features or source, or drop the metric."
            )
        self._check_names(column.shape[0])

    def _check_names(self, n_attributes: int) -> None:
        if len(set(self.names)) not in (0, n_attributes):
            raise SpecError(
                f"metrics.attributes.names: got {len(self.names)} names for {n_attributes} attributes. Name each once, or none."
            )

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        shares, real_shares = (
            (_feature_column(snap, kind, "attributes", self.name) > 0.5).mean(axis=0) for kind in ("samples", "holdout")
        )
        self._check_names(len(shares))
        values = {
            "attributes": float(np.count_nonzero((shares >= LOST_SHARE * real_shares) & (real_shares > 0))),
            "attribute_distance": float(np.abs(shares - real_shares).mean()),
        }
        return values | _named_shares("attribute_share", self.names or range(len(shares)), shares, real_shares)


def _named_shares(prefix: str, names: Sequence[object], shares: Floats, real_shares: Floats) -> dict[str, float]:
    values = dict[str, float]()
    for name, share, real_share in zip(names, shares.tolist(), real_shares.tolist(), strict=True):
        values |= {f"{prefix}_{name}": share, f"{prefix}_{name}_real": real_share}
    return values


def _feature_column(snap: Snapshot, kind: str, column: str, metric: str) -> Floats:
    columns = snap.features[kind]
    if column not in columns:
        raise SpecError(
            f"metrics.{metric}.features: got features without {column}; expected kind 'classifier' and rows with a column "
            f"{column!r}. Change features or source."
        )
    return np.asarray(columns[column])
