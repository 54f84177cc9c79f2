"""Features of images: a classifier of labels, attributes or rotations, principal components, a network in ONNX."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from selfloop.columns import Params
from selfloop.component import Context
from selfloop.errors import DataError, SettingError, SpecError
from selfloop.metrics import image_features, image_networks
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.rng import RandomStream
from selfloop.sources.image_arrays import Idx
from selfloop.spec.components import make_component
from selfloop.store.identity import identity

CTX = Context(RandomStream(("features",)))
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
DIGITS, ORDER = load_digits(), np.random.default_rng(0).permutation(1797)  # in their own order, the last have other writers
IMAGES = np.rint(DIGITS.images[ORDER] * (255 / 16)).astype(np.uint8)
LABELS = DIGITS.target[ORDER].astype(np.uint8)
REAL, HOLDOUT = slice(0, 1200), slice(1200, 1797)
CLOSED = (np.isin(LABELS, [0, 6, 8, 9])[:, None] * [1, 0] + np.isin(LABELS, [1, 4, 7])[:, None] * [0, 1]).astype(np.uint8)


@contextmanager
def training_steps(n: int) -> Iterator[None]:
    """Inside, a classifier of few rows is trained for n steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_networks, "MIN_STEPS", n)
        yield


@pytest.fixture(scope="module")
def labeled() -> Params:
    with training_steps(300):
        return ImageFeatureExtractor().prepare(
            {"image": IMAGES[REAL], "label": LABELS[REAL] + 3, "attributes": CLOSED[REAL]}, CTX
        )


@pytest.fixture(scope="module")
def unlabeled() -> Params:
    with training_steps(200):
        return ImageFeatureExtractor().prepare({"image": IMAGES[REAL]}, CTX)


def extract(images: Any, prepared: Params, **settings: Any) -> Mapping[str, Any]:
    return ImageFeatureExtractor(**settings).extract({"image": images}, prepared, CTX)


def purity(modes: Any, labels: Any) -> float:
    """Share of rows that have the most frequent label of their mode."""
    return sum(np.bincount(labels[modes == mode]).max() for mode in np.unique(modes)) / len(labels)


def test_a_classifier_learns_labels_and_attributes(labeled: Params) -> None:
    extracted = extract(IMAGES[HOLDOUT], labeled)
    assert {name: (str(column.dtype), column.shape[1:]) for name, column in extracted.items()} == {
        "features": ("float32", (64,)), "probabilities": ("float32", (10,)), "attributes": ("float32", (2,)),
    }  # fmt: skip
    assert labeled["classes"].tolist() == list(range(3, 13))  # the labels of the rows
    assert (extracted["probabilities"].argmax(1) == LABELS[HOLDOUT]).mean() > 0.93
    assert ((extracted["attributes"] > 0.5) == CLOSED[HOLDOUT]).mean() > 0.93
    assert np.allclose(extracted["probabilities"].sum(1), 1, atol=1e-5)
    assert 0 <= extracted["attributes"].min() <= extracted["attributes"].max() <= 1


def test_features_of_real_images_have_mean_0_and_mean_variance_1(labeled: Params) -> None:
    features = extract(IMAGES[REAL], labeled)["features"]
    assert np.abs(features.mean(0)).max() < 1e-4
    assert features.var(0).mean() == pytest.approx(1, rel=1e-4)


def test_attributes_without_labels_are_learned_and_modes_are_then_clusters() -> None:
    extractor = ImageFeatureExtractor(modes=4)
    with training_steps(150):
        prepared = extractor.prepare({"image": IMAGES[REAL], "attributes": CLOSED[REAL]}, CTX)
    extracted = extractor.extract({"image": IMAGES[HOLDOUT]}, prepared, CTX)
    assert ((np.asarray(extracted["attributes"]) > 0.5) == CLOSED[HOLDOUT]).mean() > 0.9
    assert np.asarray(extracted["probabilities"]).shape == (597, 4)


def test_without_labels_the_classifier_learns_rotations_and_clusters_are_the_modes(unlabeled: Params) -> None:
    extracted = extract(IMAGES[HOLDOUT], unlabeled)
    assert set(extracted) == {"features", "probabilities"}
    assert "classes" not in unlabeled
    modes = extracted["probabilities"].argmax(1)
    assert purity(modes, LABELS[HOLDOUT]) > 2 * purity(np.arange(597) % 10, LABELS[HOLDOUT])
    sizes = np.bincount(extract(IMAGES[REAL], unlabeled)["probabilities"].argmax(1))
    assert (np.diff(sizes) <= 0).all()  # the largest first


def test_rows_have_the_nearest_cluster_and_a_row_between_two_is_less_certain() -> None:
    black, white = np.zeros((40, 8, 8), np.uint8), np.full((30, 8, 8), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 20, (70, 8, 8), np.uint8)
    extractor = ImageFeatureExtractor(kind="pixels", dimensions=3, modes=2)
    prepared = extractor.prepare({"image": np.concatenate([black, white]) + noise}, CTX)
    images = np.concatenate([black[:1] + 10, white[:1] + 10, np.full((1, 8, 8), 110, np.uint8)])
    probabilities = np.asarray(extractor.extract({"image": images}, prepared, CTX)["probabilities"])
    assert probabilities[:2].argmax(1).tolist() == [0, 1]  # the larger cluster is the first
    assert probabilities[:2].max(1).min() > 0.99
    assert probabilities[2].max() <= probabilities[:2].max(1).min()


def test_components_are_directions_in_which_the_images_differ() -> None:
    prepared = ImageFeatureExtractor(kind="pixels", dimensions=32, modes=2).prepare({"image": IMAGES[:20]}, CTX)
    assert np.shape(prepared["components"]) == (19, 64)  # 20 images differ from their mean in 19 directions


def test_components_are_those_of_the_pixels() -> None:
    extractor = ImageFeatureExtractor(kind="pixels", dimensions=5)
    prepared = extractor.prepare({"image": IMAGES[REAL]}, CTX)
    features = np.asarray(extractor.extract({"image": IMAGES[REAL]}, prepared, CTX)["features"])
    variances = np.linalg.eigvalsh(np.cov(IMAGES[REAL].reshape(-1, 64).T / 255))[::-1][:5]
    assert np.allclose(np.cov(features.T), np.diag(variances), atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_features, "CHUNK_ROWS", 97)
        in_chunks = extractor.extract({"image": IMAGES[REAL]}, prepared, CTX)["features"]
    assert np.allclose(in_chunks, features, rtol=1e-6, atol=1e-6)


def test_clusters_have_the_same_bits_for_any_number_of_threads() -> None:
    rows = np.random.default_rng(0).standard_normal((2048, 64)).astype(np.float32)
    centers = set()
    for threads in (1, 4, 4):
        with threadpool_limits(threads):
            centers.add(np.asarray(image_features._fit_modes(rows, 10, CTX)["centers"]).tobytes())
    assert len(centers) == 1


def test_equal_images_have_equal_features_at_any_position(labeled: Params) -> None:
    features = extract(np.tile(IMAGES[:3], (100, 1, 1)), labeled)["features"]
    assert len(np.unique(features, axis=0)) == 3
    assert np.array_equal(features[:3], extract(IMAGES[:3], labeled)["features"])


def test_prepared_arrays_depend_on_rows_and_stream_only_and_torch_keeps_its_state() -> None:
    rows = {"image": IMAGES[:100], "label": LABELS[:100]}
    before, ctx = torch.random.get_rng_state(), Context(RandomStream(("features",)))
    with training_steps(20):
        first, again = (ImageFeatureExtractor().prepare(rows, ctx) for _ in range(2))
        other = ImageFeatureExtractor().prepare(rows, ctx.child("other"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["0.weight"], other["0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(ctx.backends) == {"training", "measuring"}


@pytest.mark.parametrize("shape", [(64, 64, 3), (12, 20), (1, 1), (33, 31, 3)])
def test_images_of_any_size_and_depth_have_features(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_networks, "CHUNK_ROWS", 32)
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    extractor = ImageFeatureExtractor(dimensions=4, modes=3)
    for rows in ({"image": images}, {"image": images, "label": np.arange(20, dtype=np.uint8) % 3}):
        with training_steps(2):
            prepared = extractor.prepare(rows, CTX)
        extracted = extractor.extract({"image": images[:9]}, prepared, CTX)
        assert np.asarray(extracted["features"]).shape == (9, 4)
        assert np.isfinite(np.asarray(extracted["probabilities"])).all()


def test_equal_images_are_one_mode() -> None:
    rows, extractor = {"image": np.full((30, 8, 8), 9, np.uint8)}, ImageFeatureExtractor(kind="pixels")
    assert np.array_equal(extractor.extract(rows, extractor.prepare(rows, CTX), CTX)["probabilities"], np.ones((30, 1)))


def onnx_model(output: str = "halves", arrays_in: str | None = None) -> bytes:
    """Mean of the upper and of the lower half of images of 8 x 8, plus 1 if that is in another file."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Reshape", ["images", "shape"], ["rows"]), helper.make_node("ReduceMean", ["rows", "axis"],
             ["mean"], keepdims=0), helper.make_node("Add", ["mean", "shift"], ["halves"]),
             helper.make_node("Log", ["images"], ["logs"])]  # fmt: skip
    shift = helper.make_tensor("shift", TensorProto.FLOAT, [2], [0.0, 0.0])
    if arrays_in:
        shift.ClearField("float_data")
        shift.data_location = TensorProto.EXTERNAL
        for key, value in (("location", arrays_in), ("length", "8")):
            pair = shift.external_data.add()
            pair.key, pair.value = key, value
    constants = [helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 2, 32]),
                 helper.make_tensor("axis", TensorProto.INT64, [1], [2]), shift]  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "halves", [images], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (path := tmp_path / "halves.onnx").write_bytes(onnx_model())
    return path


def test_a_network_in_onnx_returns_the_features(network: Path) -> None:
    extractor, ctx = ImageFeatureExtractor(kind="onnx", path=network, modes=3), Context(RandomStream(("onnx",)))
    prepared = extractor.prepare({"image": IMAGES[REAL]}, ctx)
    features = extractor.extract({"image": IMAGES[:300]}, prepared, ctx)["features"]
    assert np.allclose(features, IMAGES[:300].reshape(300, 2, -1).mean(2) / 255, atol=1e-6)
    assert ctx.backends == {"measuring": "onnxruntime cpu float32"}
    with pytest.raises(SpecError, match=r"the network does not accept images float32\[256, 3, 8, 8\]"):
        extractor.prepare({"image": np.zeros((5, 8, 8, 3), np.uint8)}, CTX)


@pytest.mark.parametrize("output", ["logs", "rows"])
def test_a_network_without_finite_features_is_an_error(output: str, tmp_path: Path) -> None:
    (path := tmp_path / "wrong.onnx").write_bytes(onnx_model(output))
    with pytest.raises(SpecError, match="does not return finite numbers \\(256, features\\)"):
        ImageFeatureExtractor(kind="onnx", path=path).prepare({"image": IMAGES[:9]}, CTX)


def test_the_content_of_a_network_is_part_of_the_identity(network: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "b.onnx", tmp_path / "c.onnx"
    copy.write_bytes(network.read_bytes())
    other.write_bytes(onnx_model("rows"))
    first, same, another = (identity(ImageFeatureExtractor(kind="onnx", path=file)) for file in (network, copy, other))
    assert first == same != another


def harmful_pickle(created: Path) -> bytes:
    """torch.load of these bytes would create a file."""

    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (created,)

    torch.save({"x": Harmful()}, pickled := io.BytesIO())
    return pickled.getvalue()


@pytest.mark.parametrize(
    "content", ["", "PK\x03\x04 cut short", "no network at all", "version https://git-lfs", "pickle", "cut"]
)
def test_a_file_that_is_no_network_is_an_error_and_runs_no_code(content: str, tmp_path: Path) -> None:
    created = tmp_path / "created"
    special = {"pickle": harmful_pickle(created), "cut": onnx_model()[:-30]}
    (path := tmp_path / "broken.onnx").write_bytes(special.get(content, content.encode()))
    with pytest.raises(SettingError, match=r"^path: .*broken\.onnx (cannot be opened|is a Git LFS pointer)"):
        ImageFeatureExtractor(kind="onnx", path=path)
    assert not created.exists()


@pytest.mark.parametrize("place", ["beside", "above", "absolute"])
def test_arrays_of_a_network_in_other_files_are_not_read(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.chdir(folder)
    location, file = {"beside": ("w", folder / "w"), "above": ("../w", tmp_path / "w")}.get(
        place, (str(tmp_path / "v"), tmp_path / "v")
    )
    np.ones(2, np.float32).tofile(file)
    (path := folder / "n.onnx").write_bytes(onnx_model(arrays_in=location))
    with pytest.raises(SettingError, match="to one ONNX file, its arrays included"):
        ImageFeatureExtractor(kind="onnx", path=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "onnx"}, "got None; expected an ONNX file"),
        ({"kind": "onnx", "path": Path("none.onnx")}, r"got none\.onnx; expected an ONNX file"),
        ({"path": Path("some.onnx")}, r"got some\.onnx; kind 'classifier' reads no file"),
    ],
)
def test_a_path_that_does_not_fit_the_kind_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^path: {message}"):
        ImageFeatureExtractor(**settings)


def test_rows_without_images_are_an_error() -> None:
    with pytest.raises(DataError, match="rows with columns x; expected a column 'image'"):
        ImageFeatureExtractor().prepare({"x": np.zeros(3)}, CTX)


def test_a_spec_sets_the_features_of_a_metric() -> None:
    metric = make_component("metric", {"name": "precision", "features": {"kind": "pixels", "dimensions": 8}}, "metrics")
    assert metric.features == ImageFeatureExtractor(kind="pixels", dimensions=8)
    for settings, key in (({"kind": "vgg"}, "kind: got 'vgg'"), ({"path": "x"}, "path: got x")):
        with pytest.raises(SpecError, match=rf"^metrics\.features\.{key}"):
            make_component("metric", {"name": "precision", "features": settings}, "metrics")


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} does not exist")
def test_the_classifier_recognizes_the_digits_of_mnist() -> None:
    files = [MNIST / f"{split}-{kind}.gz" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    train, holdout = Idx(images=files[0], labels=files[1]), Idx(images=files[2], labels=files[3])
    prepared = ImageFeatureExtractor(epochs=2).prepare(train.draw(0, 5000, CTX), CTX)
    rows = holdout.draw(0, 2000, CTX)
    modes = np.asarray(ImageFeatureExtractor().extract(rows, prepared, CTX)["probabilities"]).argmax(1)
    assert (modes == rows["label"]).mean() > 0.94
