"""Features of images: a classifier of labels, attributes or rotations, principal components, an exported program, Inception."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import nn

from selfloop.columns import Params
from selfloop.component import Context
from selfloop.errors import DataError, MissingExtraError, SettingError, SpecError
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


class Halves(nn.Module):
    """Mean of the upper and of the lower half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.unflatten(2, (2, 4)).mean((1, 3, 4))


def save_program(path: Path, network: nn.Module) -> Path:
    torch.export.save(torch.export.export(network, (torch.zeros(256, 1, 8, 8),)), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(tmp_path_factory.mktemp("program") / "halves.pt2", Halves())


@pytest.mark.slow
def test_an_exported_program_returns_the_features(program: Path) -> None:
    extractor = ImageFeatureExtractor(kind="exported", path=program, modes=3)
    prepared = extractor.prepare({"image": IMAGES[REAL]}, CTX)
    features = extractor.extract({"image": IMAGES[:300]}, prepared, CTX)["features"]
    assert np.allclose(features, IMAGES[:300].reshape(300, 2, -1).mean(2) / 255, atol=1e-6)
    with pytest.raises(SpecError, match=r"halves\.pt2 does not accept images float32\[256, 3, 8, 8\]"):
        extractor.prepare({"image": np.zeros((5, 8, 8, 3), np.uint8)}, CTX)


def test_the_content_of_a_program_is_part_of_the_identity(tmp_path: Path) -> None:
    path, copy, other = (tmp_path / name for name in ("a.pt2", "b.pt2", "c.pt2"))
    for file, content in ((path, b"a program"), (copy, b"a program"), (other, b"another program")):
        file.write_bytes(content)
    first, same, another = (identity(ImageFeatureExtractor(kind="exported", path=file)) for file in (path, copy, other))
    assert first == same != another


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no program at all"])
def test_a_file_that_is_no_program_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*broken\.pt2"):
        ImageFeatureExtractor(kind="exported", path=path).prepare({"image": IMAGES[:9]}, CTX)


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> Any:
        return Path.touch, (self.created,)


@pytest.mark.slow
def test_code_that_is_pickled_in_a_program_does_not_run(program: Path, tmp_path: Path) -> None:
    harmful, created, pickled = tmp_path / "b.pt2", tmp_path / "created", io.BytesIO()
    torch.save({"x": Harmful(created)}, pickled)
    with ZipFile(program) as good, ZipFile(harmful, "w") as bad:
        for member in good.namelist():
            bad.writestr(member, pickled.getvalue() if "sample_inputs" in member else good.read(member))
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*b\.pt2 cannot be opened"):
        ImageFeatureExtractor(kind="exported", path=harmful).prepare({"image": IMAGES[:9]}, CTX)
    assert not created.exists()


@pytest.mark.slow
def test_a_program_that_returns_no_features_is_an_error(tmp_path: Path) -> None:
    path = save_program(tmp_path / "wrong.pt2", nn.ReLU())
    with pytest.raises(SpecError, match="does not return an array \\(256, features\\)"):
        ImageFeatureExtractor(kind="exported", path=path).prepare({"image": IMAGES[:9]}, CTX)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch_fidelity is installed")
def test_inception_without_its_library_names_the_command_that_installs_it(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    with pytest.raises(MissingExtraError, match=r"kind 'inception': needs torch_fidelity.* pip install"):
        ImageFeatureExtractor(kind="inception", path=weights).prepare({"image": IMAGES[:9]}, CTX)


class Extractor(nn.Module):
    """Opens a file of weights and accepts images as torch-fidelity's Inception does."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048"])
        self.last = nn.Linear(3, 2048)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 8, 8))
        return (self.last(images.float().mean((2, 3))),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("fidelity")
def test_inception_receives_bytes_in_three_channels_and_returns_2048_features(tmp_path: Path) -> None:
    torch.save(nn.ModuleDict({"last": nn.Linear(3, 2048)}).state_dict(), path := tmp_path / "weights.pth")
    extractor = ImageFeatureExtractor(kind="inception", path=path, modes=2)
    prepared = extractor.prepare({"image": IMAGES[:9]}, CTX)
    assert np.asarray(extractor.extract({"image": IMAGES[:9]}, prepared, CTX)["features"]).shape == (9, 2048)
    with pytest.raises(SpecError, match="got 'inception' for images of 4 channels; it accepts 1 or 3"):
        extractor.prepare({"image": np.zeros((5, 8, 8, 4), np.uint8)}, CTX)


@pytest.mark.usefixtures("fidelity")
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short", "harmful", "other"])
def test_a_file_without_weights_of_inception_is_an_error_and_its_code_does_not_run(
    content: bytes | str, tmp_path: Path
) -> None:
    path, created = tmp_path / "weights.pth", tmp_path / "created"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"x": Harmful(created)} if content == "harmful" else nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*weights\.pth does not hold the weights of Inception"):
        ImageFeatureExtractor(kind="inception", path=path).prepare({"image": IMAGES[:9]}, CTX)
    assert not created.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "inception"}, "got None; expected torch-fidelity's weights"),
        ({"kind": "exported", "path": Path("none.pt2")}, r"got none\.pt2; expected a program"),
        ({"path": Path("some.pt2")}, r"got some\.pt2; kind 'classifier' reads no file"),
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
