"""Features of images, prepared once per seed on every second initial real row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge

from selfloop.columns import Array, Columns, Floats, Params, Ragged
from selfloop.component import Context, SampleMetric
from selfloop.errors import DataError, SettingError, first_line, missing_extra
from selfloop.formats.folders import POINTER_PROBLEM, is_pointer
from selfloop.metrics.vector_distances import fit_clusters
from selfloop.snapshots import Snapshot
from selfloop.transforms import FeatureExtractor

if TYPE_CHECKING:
    from selfloop.metrics.image_networks import Float32s

MAX_PREPARE_ROWS = 4096  # rows that determine components, clusters and scale
CHUNK_ROWS = 4096  # rows that are projected at a time
FATAL = 4  # onnxruntime prints such errors only, and raises the others


@dataclass(frozen=True, kw_only=True)
class ImageFeatureExtractor(FeatureExtractor):
    """Features of images, and the probability of each mode of the real images.

    "classifier" trains a small convolutional network on real rows: to predict their `label` and `attributes`, or,
    without either, the number of quarter turns by which an image was rotated (Gidaris et al. 2018, 1803.07728). Features are
    the last hidden layer before its nonlinearity, shifted and scaled by one number: features of real images then have mean 0
    and total variance `dimensions`, and distances in differently trained networks are comparable. "pixels" are principal
    components of the gray values in [0, 1]. "onnx" is a network in one ONNX file, such as the Inception of the Frechet
    inception distance. It maps 256 images (256, depth, height, width), as floats in [0, 1], to (256, features).

    `extract` returns "features"; "probabilities" of the modes; and "attributes", the probability of each attribute, if the
    classifier learned attributes. Modes are the classifier's classes. Without classes, modes are k-means clusters of the real
    features, the largest first, modeled as Gaussians of equal width; clusters of "pixels" are then often closer to the classes
    of the data than clusters of rotation features.
    """

    name: ClassVar[str] = "image_features"
    version: ClassVar[int] = 3
    kind: Annotated[Literal["classifier", "pixels", "onnx"], "how an image becomes features"] = "classifier"
    path: Annotated[Path | None, "the ONNX file, for `onnx`"] = None
    dimensions: Annotated[int, Ge(1), "number of features, for `classifier` and `pixels`"] = 64
    epochs: Annotated[int, Ge(1), "passes of the classifier through the real rows; at least 500 steps of 64 rows"] = 4
    modes: Annotated[int, Ge(1), "number of clusters that are the modes of rows without labels"] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "onnx":
            open_session(self.path)
        elif self.path is not None:
            raise SettingError("path", f"got {self.path}; kind {self.kind!r} reads no file. Remove the key.")

    def unused_settings(self) -> Mapping[str, str]:
        unused = {} if self.kind == "classifier" else {"epochs": "it belongs to kind 'classifier'"}
        return {**unused, "dimensions": "the network of the file decides"} if self.kind == "onnx" else unused

    def prepare(self, real: Columns, ctx: Context) -> Params:
        images, prepared = _images(real), dict[str, Array]()
        first_images = images[:MAX_PREPARE_ROWS]
        if self.kind == "classifier":
            prepared = self._train(images, real, ctx)
            features = self._outputs(first_images, prepared, ctx)[0]
            deviation = math.sqrt(max(features.var(axis=0).mean(), np.finfo(np.float32).tiny))
            prepared |= {"mean": features.mean(axis=0), "deviation": np.array(deviation, np.float32)}
        elif self.kind == "pixels":
            prepared = _fit_components(first_images, self.dimensions, ctx)
        if "classes" not in prepared:
            prepared |= _fit_modes(self._outputs(first_images, prepared, ctx)[0], self.modes, ctx)
        return prepared

    def learns_features(self) -> bool:
        return self.kind != "onnx"

    def extract(self, rows: Columns, prepared: Params, ctx: Context) -> Columns:
        from scipy.special import softmax

        features, logits = self._outputs(_images(rows), prepared, ctx)
        if "classes" not in prepared:
            mode_logits = _cluster_logits(features, prepared)
        else:
            mode_logits, logits = np.split(logits, [len(prepared["classes"])], axis=1)
        extracted: dict[str, Array] = {"features": features, "probabilities": softmax(mode_logits, axis=1).astype(np.float32)}
        if "attributes" in prepared:
            extracted["attributes"] = np.exp(-np.logaddexp(0, -logits))
        return extracted

    def _train(self, images: Array, real: Columns, ctx: Context) -> dict[str, Array]:
        from selfloop.metrics import image_networks

        names, targets = dict[str, Array](), dict[str, Array]()
        if "label" in real:
            names["classes"], targets["class"] = np.unique(np.asarray(real["label"]), return_inverse=True)
        if "attributes" in real:
            targets["attributes"] = np.asarray(real["attributes"])
            names["attributes"] = np.array(targets["attributes"].shape[1])
        return image_networks.train_classifier(images, targets, self.dimensions, self.epochs, ctx) | names

    def _outputs(self, images: Array, prepared: Params, ctx: Context) -> tuple[Float32s, Float32s]:
        """Features of each image, and the logits of a classifier (no columns for other kinds)."""
        if self.kind == "pixels":
            features = _project(images, prepared)
            return features, features[:, :0]
        from selfloop.metrics import image_networks

        if self.kind == "classifier":
            network = image_networks.open_classifier(images.shape[1:], self.dimensions, prepared, ctx)
        else:
            network = image_networks.use_onnx(open_session(self.path, ctx.threads), ctx)
        features, logits = image_networks.run_network(network, images, ctx)
        if "deviation" in prepared:
            features = np.asarray((features - np.asarray(prepared["mean"])) / float(prepared["deviation"]), np.float32)
        return features, logits


@dataclass(frozen=True, kw_only=True)
class ImageMetric(SampleMetric):
    """A metric of sampled images on their features."""

    features: Annotated[FeatureExtractor, "features of the images"] = field(default_factory=ImageFeatureExtractor)

    def feature_pair(
        self, snap: Snapshot, kind: Literal["holdout", "initial"], max_rows: int | None = None, *, equal_rows: bool = False
    ) -> tuple[Floats, Floats]:
        """Features of the first `max_rows` sampled rows and of the first `max_rows` rows of a kind.

        `equal_rows` cuts both to the same number of rows, for values that depend on it. Initial rows that the features were
        learned from, which fresh rows are not like, are left out.
        """
        sampled, real = (np.asarray(snap.features[name]["features"]) for name in ("samples", kind))
        step = 2 if kind == "initial" and self.features.learns_features() else 1
        n_rows = min(len(sampled), len(real) // step, max_rows or len(real)) if equal_rows else max_rows
        n_read = None if n_rows is None else n_rows * step
        return np.asarray(sampled[:n_rows], np.float64), np.asarray(real[:n_read], np.float64)[step - 1 :: step]


def feature_vectors(snap: Snapshot, kind: str) -> Floats:
    """Features of the rows of a kind."""
    return np.asarray(snap.features[kind]["features"], np.float64)


def open_session(path: Path | None, threads: int = 1) -> Any:
    """An onnxruntime session of a file. ONNX is a graph of named operators, which cannot hold other code. SettingError."""
    if find_spec("onnxruntime") is None:
        raise missing_extra("metrics.features.kind: 'onnx'", "onnxruntime")
    if path is None or not path.is_file():
        raise SettingError("path", f"got {path}; expected an ONNX file. Name an existing file.")
    if is_pointer(path):
        raise SettingError("path", f"{path} {POINTER_PROBLEM}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, FATAL
    # arrays in other files, which are not part of a key, are looked for below this file and never found
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path))
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # the library's errors have no other class in common
        raise SettingError(
            "path", f"{path} cannot be opened ({first_line(problem)}). Export a network to one ONNX file, its arrays included."
        ) from problem


def _images(rows: Columns) -> Array:
    images = rows.get("image")
    if images is None or isinstance(images, Ragged):
        raise DataError(
            f"metrics.features: got rows with columns {', '.join(rows)}; expected a column 'image'. Use a source of images."
        )
    return images


def _fit_components(images: Array, n_components: int, ctx: Context) -> dict[str, Array]:
    """Mean and first principal components of the pixels, those along which the images differ."""
    from sklearn.decomposition import PCA

    pixels = _pixels(images)
    seed = ctx.stream.integer() % 2**32  # large images are decomposed at random
    basis = PCA(min(n_components, *pixels.shape), random_state=seed).fit(pixels)
    differs = basis.singular_values_ > basis.singular_values_[0] * max(pixels.shape) * np.finfo(np.float64).eps
    return {"mean": basis.mean_, "components": basis.components_[differs]}  # the rest would be directions of rounding errors


def _project(images: Array, prepared: Params) -> Float32s:
    mean, components = (cast(Floats, prepared[name]) for name in ("mean", "components"))
    chunks = (images[first : first + CHUNK_ROWS] for first in range(0, len(images), CHUNK_ROWS))
    return np.concatenate([(_pixels(chunk) - mean) @ components.T for chunk in chunks]).astype(np.float32)


def _pixels(images: Array) -> Floats:
    """Images as rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def _fit_modes(features: Float32s, n_clusters: int, ctx: Context) -> dict[str, Array]:
    """Centers of k-means clusters of the features, the largest cluster first, and their common variance per feature."""
    fitted = fit_clusters(features.astype(np.float64), n_clusters, ctx, n_init=3)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=len(fitted.cluster_centers_)), kind="stable")
    return {"centers": fitted.cluster_centers_[order], "variance": np.array(fitted.inertia_ / features.size)}


def _cluster_logits(features: Float32s, prepared: Params) -> Array:
    """Log density of each cluster's Gaussian at each row, up to a constant of the row."""
    centers = np.asarray(prepared["centers"], np.float64)
    scores = features @ centers.T - np.vecdot(centers, centers) / 2
    return np.asarray(scores / max(float(prepared["variance"]), np.finfo(np.float32).tiny))
