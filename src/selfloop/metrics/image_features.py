"""What image metrics look at instead of pixels, learned once on the initial real rows of a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from selfloop.component import Context, FeatureExtractor
from selfloop.errors import DataError, SpecError
from selfloop.types import Array, Columns, Floats, Params, Ragged

Singles = npt.NDArray[np.float32]
Kind = Literal["classifier", "pixels", "given", "inception"]
MOST_ROWS = 4096  # that components, clusters and scale are learned from, and that are projected at once
NEEDS = {"given": "a program of torch.export (.pt2)", "inception": "torch-fidelity's weights of Inception (.pth)"}


@dataclass(frozen=True, kw_only=True)
class ImageFeatureExtractor(FeatureExtractor):
    """Features of images, and how probable each mode of the real images is for each.

    "classifier" trains a small convolutional network on the initial real rows: on their `label` and `attributes`, or,
    where they have neither, on telling by how many quarter turns an image was rotated (Gidaris et al. 2018, 1803.07728).
    Features are its last layer but one before the nonlinearity, shifted and scaled by one number so that those of real
    images have mean 0 and total variance `dimensions`: distances of differently trained networks are then comparable.
    "pixels" are principal components of the grey values in [0, 1]. "given" is a network of yours, a program of
    `torch.export` that takes 256 images (256, depth, height, width) as floats in [0, 1] and returns (256, features).
    "inception" are the 2,048 numbers of the Frechet inception distance, by torch-fidelity from its file of weights.

    `describe` gives "features"; "probabilities" of the modes, which are the classifier's classes or else the clusters of
    the real features by k-means, the largest first, seen as Gaussians of one width; and "attributes", the probability of
    each, of a classifier that learned them. Without labels, clusters of "pixels" often say more than those of rotations.
    """

    name: ClassVar[str] = "image_features"
    version: ClassVar[int] = 2
    kind: Kind = "classifier"
    path: Path | None = None  # of the program or the weights, for "given" and "inception"
    dimensions: int = 64  # features, for "classifier" and "pixels"
    epochs: int = 4  # passes of the classifier through the real rows; at least 500 steps of 64 rows
    modes: int = 10  # clusters that are the modes where there are no labels

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpecError(f"metrics.features.kind: got {self.kind!r}; expected one of {', '.join(get_args(Kind))}.")
        for name in ("dimensions", "epochs", "modes"):
            if getattr(self, name) < 1:
                raise SpecError(f"metrics.features.{name}: got {getattr(self, name)}; expected 1 or more.")
        if self.kind in NEEDS and (self.path is None or not self.path.is_file()):
            raise SpecError(f"metrics.features.path: got {self.path}; kind {self.kind!r} needs {NEEDS[self.kind]}.")
        if self.kind not in NEEDS and self.path is not None:
            raise SpecError(f"metrics.features.path: got {self.path}; kind {self.kind!r} takes none. Leave it out.")

    def prepare(self, real: Columns, ctx: Context) -> Params:
        images, prepared = _images(real), dict[str, Array]()
        few = images[:MOST_ROWS]
        if self.kind == "classifier":
            prepared = self._train(images, real, ctx)
            features = self._outputs(few, prepared, ctx)[0]
            deviation = math.sqrt(max(features.var(axis=0).mean(), np.finfo(np.float32).tiny))
            prepared |= {"mean": features.mean(axis=0), "deviation": np.array(deviation, np.float32)}
        elif self.kind == "pixels":
            prepared = _components(few, self.dimensions, ctx)
        if "classes" not in prepared:
            prepared |= _clusters(self._outputs(few, prepared, ctx)[0], self.modes, ctx)
        return prepared

    def extract(self, rows: Columns, prepared: Params, ctx: Context) -> Columns:
        features, logits = self._outputs(_images(rows), prepared, ctx)
        if "classes" not in prepared:
            modes = _cluster_logits(features, prepared)
        else:
            modes, logits = np.split(logits, [len(prepared["classes"])], axis=1)
        described: dict[str, Array] = {"features": features, "probabilities": _softmax(modes)}
        if "attributes" in prepared:
            described["attributes"] = np.exp(-np.logaddexp(0, -logits))
        return described

    def _train(self, images: Array, real: Columns, ctx: Context) -> dict[str, Array]:
        from selfloop.metrics import image_networks

        kept, targets = dict[str, Array](), dict[str, Array]()
        if "label" in real:
            kept["classes"], targets["class"] = np.unique(np.asarray(real["label"]), return_inverse=True)
        if "attributes" in real:
            targets["attributes"] = np.asarray(real["attributes"])
            kept["attributes"] = np.array(targets["attributes"].shape[1])
        return image_networks.train(images, targets, self.dimensions, self.epochs, ctx) | kept

    def _outputs(self, images: Array, prepared: Params, ctx: Context) -> tuple[Singles, Singles]:
        """Features of each image, and the outputs of the classifier where it is one."""
        if self.kind == "pixels":
            features = _projected(images, prepared)
            return features, features[:, :0]
        from selfloop.metrics import image_networks

        if self.kind == "classifier":
            network = image_networks.trained(images.shape[1:], self.dimensions, prepared, ctx)
        else:
            assert self.path is not None
            network = (image_networks.given if self.kind == "given" else image_networks.inception)(self.path)
        features, logits = image_networks.run(network, images, ctx.threads)
        if "deviation" in prepared:
            features = np.asarray((features - np.asarray(prepared["mean"])) / float(prepared["deviation"]), np.float32)
        return features, logits


def _images(rows: Columns) -> Array:
    images = rows.get("image")
    if images is None or isinstance(images, Ragged):
        raise DataError(f"metrics.features: the rows have columns {', '.join(rows)}; expected a column 'image' of images.")
    return images


def _components(images: Array, count: int, ctx: Context) -> dict[str, Array]:
    """Mean and first principal components of the pixels."""
    from sklearn.decomposition import PCA

    pixels = _pixels(images)
    seed = ctx.stream.integer() % 2**32  # of its sketch of large images
    basis = PCA(min(count, *pixels.shape), random_state=seed).fit(pixels)
    return {"mean": basis.mean_, "components": basis.components_}


def _projected(images: Array, prepared: Params) -> Singles:
    mean, components = (cast(Floats, prepared[name]) for name in ("mean", "components"))
    blocks = (images[first : first + MOST_ROWS] for first in range(0, len(images), MOST_ROWS))
    return np.concatenate([(_pixels(block) - mean) @ components.T for block in blocks]).astype(np.float32)


def _pixels(images: Array) -> Floats:
    """Images as rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def _clusters(features: Singles, count: int, ctx: Context) -> dict[str, Array]:
    """Centres of k-means clusters of the features, the largest cluster first, and their common variance per feature."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(features, axis=0)))
    seed = ctx.stream.child("clusters").integer() % 2**32
    with threadpool_limits(1):  # several threads add up their parts in the order in which they are done
        found = KMeans(count, n_init=3, random_state=seed).fit(features.astype(np.float64))
    order = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
    return {"centres": found.cluster_centers_[order], "variance": np.array(found.inertia_ / features.size)}


def _cluster_logits(features: Singles, prepared: Params) -> Array:
    """Log density of each cluster's Gaussian at each row, but for a constant of the row."""
    centres = np.asarray(prepared["centres"], np.float64)
    nearness = features @ centres.T - np.vecdot(centres, centres) / 2
    return np.asarray(nearness / max(float(prepared["variance"]), np.finfo(np.float32).tiny))


def _softmax(logits: Array) -> Array:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1), np.float32)
