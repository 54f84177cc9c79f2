"""What image metrics look at: a classifier of labels, attributes or rotations, principal components, a given network."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Mapping
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

from selfloop.component import Context
from selfloop.errors import DataError, MissingExtraError, SpecError
from selfloop.metrics import image_features
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.rng import RandomStream
from selfloop.sources.image_arrays import Idx
from selfloop.store.identity import identity
from selfloop.types import Columns, Params

CTX = Context(RandomStream(("features",)))
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
DIGITS, ORDER = load_digits(), np.random.default_rng(0).permutation(1797)  # as they come, the last are other writers'
IMAGES = np.rint(DIGITS.images[ORDER] * (255 / 16)).astype(np.uint8)
LABELS = DIGITS.target[ORDER].astype(np.uint8)
REAL, HELD = slice(0, 1200), slice(1200, 1797)
CLOSED = (np.isin(LABELS, [0, 6, 8, 9])[:, None] * [1, 0] + np.isin(LABELS, [1, 4, 7])[:, None] * [0, 1]).astype(np.uint8)


@pytest.fixture(scope="module")
def labelled() -> Params:
    return ImageFeatureExtractor().prepare({"image": IMAGES[REAL], "label": LABELS[REAL] + 3, "attributes": CLOSED[REAL]}, CTX)


@pytest.fixture(scope="module")
def plain() -> Params:
    return ImageFeatureExtractor().prepare({"image": IMAGES[REAL]}, CTX)


def describe(images: Any, learned: Params, **settings: Any) -> Mapping[str, Any]:
    return ImageFeatureExtractor(**settings).describe({"image": images}, learned, CTX)


def purity(modes: Any, labels: Any) -> float:
    """Share of rows that have the most frequent label of their mode."""
    return sum(np.bincount(labels[modes == mode]).max() for mode in np.unique(modes)) / len(labels)


def test_a_classifier_learns_labels_and_attributes(labelled: Params) -> None:
    found = describe(IMAGES[HELD], labelled)
    assert {name: (str(each.dtype), each.shape[1:]) for name, each in found.items()} == {
        "features": ("float32", (64,)), "probabilities": ("float32", (10,)), "attributes": ("float32", (2,)),
    }  # fmt: skip
    assert labelled["classes"].tolist() == list(range(3, 13))  # as the rows call them
    assert (found["probabilities"].argmax(1) == LABELS[HELD]).mean() > 0.93
    assert ((found["attributes"] > 0.5) == CLOSED[HELD]).mean() > 0.93
    assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-5)
    assert 0 <= found["attributes"].min() <= found["attributes"].max() <= 1


def test_features_of_real_images_have_mean_0_and_a_variance_of_1_on_average(labelled: Params) -> None:
    features = describe(IMAGES[REAL], labelled)["features"]
    assert np.abs(features.mean(0)).max() < 1e-4
    assert features.var(0).mean() == pytest.approx(1, rel=1e-4)


def test_attributes_alone_are_learned_and_modes_are_then_clusters() -> None:
    features = ImageFeatureExtractor(modes=4)
    learned = features.prepare({"image": IMAGES[REAL], "attributes": CLOSED[REAL]}, CTX)
    found = features.extract({"image": IMAGES[HELD]}, learned, CTX)
    assert ((np.asarray(found["attributes"]) > 0.5) == CLOSED[HELD]).mean() > 0.93
    assert np.asarray(found["probabilities"]).shape == (597, 4)


def test_without_labels_the_classifier_tells_rotations_apart_and_clusters_are_the_modes(plain: Params) -> None:
    found = describe(IMAGES[HELD], plain)
    assert set(found) == {"features", "probabilities"}
    assert "classes" not in plain
    modes = found["probabilities"].argmax(1)
    assert purity(modes, LABELS[HELD]) > 2 * purity(np.arange(597) % 10, LABELS[HELD])  # the clusters have to do with digits
    sizes = np.bincount(describe(IMAGES[REAL], plain)["probabilities"].argmax(1))
    assert (np.diff(sizes) <= 0).all()  # the largest first


def test_clusters_go_to_the_nearest_centre_and_rows_between_two_are_unsure() -> None:
    black, white = np.zeros((40, 8, 8), np.uint8), np.full((30, 8, 8), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 20, (70, 8, 8), np.uint8)
    features = ImageFeatureExtractor(kind="pixels", dimensions=3, modes=2)
    learned = features.prepare({"image": np.concatenate([black, white]) + noise}, CTX)
    seen = np.concatenate([black[:1] + 10, white[:1] + 10, np.full((1, 8, 8), 110, np.uint8)])
    found = np.asarray(features.extract({"image": seen}, learned, CTX)["probabilities"])
    assert found[:2].argmax(1).tolist() == [0, 1]  # 40 are more than 30
    assert found[:2].max(1).min() > 0.99
    middle = np.asarray(learned["centres"], float).mean(0)
    assert np.linalg.norm(middle) < np.linalg.norm(learned["centres"][0])
    assert found[2].max() <= found[:2].max(1).min()


def test_components_are_those_of_the_pixels() -> None:
    features = ImageFeatureExtractor(kind="pixels", dimensions=5)
    learned = features.prepare({"image": IMAGES[REAL]}, CTX)
    found = np.asarray(features.extract({"image": IMAGES[REAL]}, learned, CTX)["features"])
    values = np.linalg.eigvalsh(np.cov(IMAGES[REAL].reshape(-1, 64).T / 255))[::-1][:5]
    assert np.allclose(np.cov(found.T), np.diag(values), atol=1e-5)


def test_blocks_of_rows_change_no_component(monkeypatch: pytest.MonkeyPatch) -> None:
    features = ImageFeatureExtractor(kind="pixels", dimensions=5)
    learned = features.prepare({"image": IMAGES[REAL]}, CTX)
    whole = features.extract({"image": IMAGES[HELD]}, learned, CTX)["features"]
    monkeypatch.setattr(image_features, "MOST_ROWS", 97)
    assert np.allclose(features.extract({"image": IMAGES[HELD]}, learned, CTX)["features"], whole, rtol=1e-6, atol=1e-6)


def test_clusters_are_the_same_bits_however_many_threads_there_are() -> None:
    rows = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    found = set()
    for threads in (1, 4, 4, 4, 4, 4, 4):
        with threadpool_limits(threads):
            found.add(np.asarray(image_features._clusters(rows, 10, CTX)["centres"]).tobytes())
    assert len(found) == 1


def test_equal_images_have_equal_features_wherever_they_stand(labelled: Params) -> None:
    copies = np.tile(IMAGES[:3], (100, 1, 1))
    found = describe(copies, labelled)["features"]
    assert len(np.unique(found, axis=0)) == 3
    assert np.array_equal(found[:3], describe(IMAGES[:3], labelled)["features"])


def test_learning_is_a_function_of_rows_and_stream_and_leaves_torch_as_it_was() -> None:
    rows = {"image": IMAGES[:100], "label": LABELS[:100]}
    before = torch.random.get_rng_state()
    first, again = (ImageFeatureExtractor().prepare(rows, CTX) for _ in range(2))
    other = ImageFeatureExtractor().prepare(rows, CTX.child("other"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["0.weight"], other["0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(64, 64, 3), (12, 20), (1, 1), (33, 31, 3)])
def test_images_of_any_size_and_depth_have_features(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    features = ImageFeatureExtractor(dimensions=4, modes=3)
    for rows in ({"image": images}, {"image": images, "label": np.arange(20, dtype=np.uint8) % 3}):
        found = features.extract({"image": images}, _shortly(features, rows), CTX)
        assert np.asarray(found["features"]).shape == (20, 4)
        assert np.isfinite(np.asarray(found["probabilities"])).all()


def _shortly(features: ImageFeatureExtractor, rows: Columns) -> Params:
    import selfloop.metrics.image_networks as networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "LEAST_STEPS", 2)
        return features.prepare(rows, CTX)


def test_images_that_are_all_the_same_are_one_mode() -> None:
    rows = {"image": np.full((30, 8, 8), 9, np.uint8)}
    found = ImageFeatureExtractor(kind="pixels").describe(rows, ImageFeatureExtractor(kind="pixels").prepare(rows, CTX), CTX)
    assert np.array_equal(found["probabilities"], np.ones((30, 1)))


class Halves(nn.Module):
    """Mean of the upper and of the lower half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.unflatten(2, (2, 4)).mean((1, 3, 4))


def program(path: Path, network: nn.Module, rows: Any) -> Path:
    torch.export.save(torch.export.export(network, (torch.zeros(256, 1, 8, 8),), dynamic_shapes=({0: rows},)), path)
    return path


def test_a_given_program_is_asked(tmp_path: Path) -> None:
    path = program(tmp_path / "halves.pt2", Halves(), None)
    features = ImageFeatureExtractor(kind="given", path=path, modes=3)
    learned = features.prepare({"image": IMAGES[REAL]}, CTX)
    found = features.extract({"image": IMAGES[:300]}, learned, CTX)
    expected = IMAGES[:300].reshape(300, 2, -1).mean(2) / 255
    assert np.allclose(found["features"], expected, atol=1e-6)
    with pytest.raises(SpecError, match=r"halves\.pt2 does not take images float32\[256, 3, 8, 8\]"):
        features.prepare({"image": np.zeros((5, 8, 8, 3), np.uint8)}, CTX)


def test_a_given_program_is_known_by_its_content(tmp_path: Path) -> None:
    path, copy, other = (tmp_path / name for name in ("a.pt2", "b.pt2", "c.pt2"))
    copy.write_bytes(program(path, Halves(), None).read_bytes())
    other.write_bytes(b"something else")
    first, same, another = (identity(ImageFeatureExtractor(kind="given", path=each)) for each in (path, copy, other))
    assert first == same != another


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no program at all"])
def test_what_is_no_program_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*broken\.pt2"):
        ImageFeatureExtractor(kind="given", path=path).prepare({"image": IMAGES[:9]}, CTX)


class Harmful:
    """What makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return Path.touch, (self.made,)


def test_a_program_that_hides_another_is_not_run(tmp_path: Path) -> None:
    path, hidden = program(tmp_path / "a.pt2", Halves(), None), io.BytesIO()
    harmful, made = tmp_path / "b.pt2", tmp_path / "made"
    torch.save({"x": Harmful(made)}, hidden)
    with ZipFile(path) as good, ZipFile(harmful, "w") as bad:
        for member in good.namelist():
            bad.writestr(member, hidden.getvalue() if "sample_inputs" in member else good.read(member))
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*b\.pt2 cannot be opened"):
        ImageFeatureExtractor(kind="given", path=harmful).prepare({"image": IMAGES[:9]}, CTX)
    assert not made.exists()


def test_a_program_that_returns_no_features_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path / "wrong.pt2", nn.ReLU(), None)
    with pytest.raises(SpecError, match="does not return \\(256, features\\)"):
        ImageFeatureExtractor(kind="given", path=path).prepare({"image": IMAGES[:9]}, CTX)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="it is installed")
def test_inception_says_what_to_install(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    with pytest.raises(MissingExtraError, match=r"kind 'inception': needs torch_fidelity.* pip install"):
        ImageFeatureExtractor(kind="inception", path=weights).prepare({"image": IMAGES[:9]}, CTX)


class Extractor(nn.Module):
    """Opens a file of weights and takes images as torch-fidelity's Inception does."""

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
def test_inception_is_asked_for_its_2048_numbers_of_bytes_in_three_colours(tmp_path: Path) -> None:
    torch.save(nn.ModuleDict({"last": nn.Linear(3, 2048)}).state_dict(), path := tmp_path / "weights.pth")
    features = ImageFeatureExtractor(kind="inception", path=path, modes=2)
    learned = features.prepare({"image": IMAGES[:9]}, CTX)
    assert np.asarray(features.extract({"image": IMAGES[:9]}, learned, CTX)["features"]).shape == (9, 2048)
    with pytest.raises(SpecError, match="looks at 1 or 3 channels; the images have 4"):
        features.prepare({"image": np.zeros((5, 8, 8, 4), np.uint8)}, CTX)


@pytest.mark.usefixtures("fidelity")
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short", "harmful", "other"])
def test_what_is_no_file_of_weights_is_refused_and_never_run(content: bytes | str, tmp_path: Path) -> None:
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"x": Harmful(made)} if content == "harmful" else nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(SpecError, match=r"metrics\.features\.path: .*weights\.pth does not hold the weights of Inception"):
        ImageFeatureExtractor(kind="inception", path=path).prepare({"image": IMAGES[:9]}, CTX)
    assert not made.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "vgg"}, "kind: got 'vgg'; expected one of classifier, pixels, given, inception"),
        ({"dimensions": 0}, "dimensions: got 0; expected 1 or more"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"modes": 0}, "modes: got 0"),
        ({"kind": "inception"}, "path: got None; kind 'inception' needs torch-fidelity's weights"),
        ({"kind": "given", "path": Path("none.pt2")}, r"path: got none\.pt2; kind 'given' needs a program"),
        ({"path": Path("some.pt2")}, r"path: got some\.pt2; kind 'classifier' takes none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.features\.{says}"):
        ImageFeatureExtractor(**settings)


def test_rows_without_images_are_refused() -> None:
    with pytest.raises(DataError, match="have columns x; expected a column 'image'"):
        ImageFeatureExtractor().prepare({"x": np.zeros(3)}, CTX)


def test_a_spec_sets_the_features_of_a_metric() -> None:
    from selfloop.spec.components import make_component

    made = make_component("metric", {"name": "precision", "features": {"kind": "pixels", "dimensions": 8}}, "metrics")
    assert made.features == ImageFeatureExtractor(kind="pixels", dimensions=8)
    with pytest.raises(SpecError, match=r"metrics\.features\.kind: got 'vgg'"):
        make_component("metric", {"name": "precision", "features": {"kind": "vgg"}}, "metrics")


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} is not there")
def test_the_classifier_knows_the_digits_of_mnist() -> None:
    files = [
        MNIST / f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")
    ]
    train, held = Idx(images=files[0], labels=files[1]), Idx(images=files[2], labels=files[3])
    learned = ImageFeatureExtractor(epochs=2).prepare(train.draw(0, 5000, CTX), CTX)
    rows = held.draw(0, 2000, CTX)
    found = np.asarray(ImageFeatureExtractor().describe(rows, learned, CTX)["probabilities"]).argmax(1)
    assert (found == rows["label"]).mean() > 0.94
