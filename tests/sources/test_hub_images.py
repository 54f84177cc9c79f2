"""Images of data sets in the format of the hub."""

import sys

import numpy as np
import pytest
from example_images import encode, read_all

from selfloop.errors import DataError, MissingExtraError, SpecError
from selfloop.protocols import CorpusSource
from selfloop.sources.hub import HubImages
from selfloop.store.identity import identity
from selfloop.testing import check_source

datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), np.uint8)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write(folder, images, split="train"):
    """Write a split in the format of the hub: Parquet with images and class labels."""
    features = datasets.Features(
        {
            "image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"]),
            "number": datasets.Value("int64"), "words": datasets.Value("string"), "some": datasets.Value("int64"),
        }
    )  # fmt: skip
    count = len(images)
    rows = {
        "image": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
        "label": [i % 2 for i in range(count)], "number": [-i for i in range(count)], "words": ["x"] * count,
        "some": [None if i % 4 == 1 else i for i in range(count)],
    }  # fmt: skip
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_images_of_a_local_copy_are_read_in_order(tmp_path, images):
    path = write(write(tmp_path / "set", encode_all(images)), encode_all(images[:3]), split="test")
    source = HubImages(path=str(path), label="label")
    rows = read_all(source)
    assert np.array_equal(rows["image"], images)
    assert rows["label"].tolist() == [0, 1] * 20
    assert (source.schema()["image"].shape, source.schema()["label"].dtype) == ((6, 6, 3), "uint8")
    assert isinstance(source, CorpusSource)
    check_source(source)
    check_source(HubImages(path=path, size=4, color_mode="grayscale"))
    assert HubImages(path=path, split="test").n_rows() == 3
    before = identity(source)
    write(path, encode_all(images[:7]))
    assert (identity(source) != before, source.n_rows()) == (True, 7)


def encode_all(images):
    return [encode(image) for image in images]


def test_a_folder_of_images_is_read_through_the_library(tmp_path, images):
    for i, image in enumerate(images):
        target = tmp_path / "set" / "train" / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(image))
    source = HubImages(path=tmp_path / "set", label="label")
    rows = read_all(source)
    assert np.array_equal(np.sort(rows["image"].ravel()), np.sort(images.ravel()))
    assert np.bincount(rows["label"]).tolist() == [20, 20]


def test_bad_images_are_an_error_or_are_skipped(tmp_path, images):
    encoded = encode_all(images)
    encoded[5], encoded[8], encoded[9] = encoded[5][:60], encode(images[0][:3]), b""
    path = write(tmp_path / "set", encoded)
    with pytest.raises(DataError, match=r"set 'train' row 5: is not a readable image.*source\.on_bad_image = 'skip'"):
        list(HubImages(path=path).chunks())
    source = HubImages(path=path, on_bad_image="skip", label="label")
    with pytest.warns(UserWarning, match=r"hub_images skipped unusable ones of 40 images \(3\): .*row 5.*row 8.*row 9"):
        rows = read_all(source)
    good = np.delete(np.arange(40), [5, 8, 9])
    assert np.array_equal(rows["image"], images[good])
    assert rows["label"].tolist() == (good % 2).tolist()


def test_rows_that_name_files_outside_of_the_folder_are_errors(tmp_path, images):
    write(tmp_path / "set", encode_all(images[:1]))
    (tmp_path / "secret.png").write_bytes(encode(images[0]))
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}, features=features)
    rows.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"row 0: names the file .*secret\.png, which is hidden or outside of the data set"):
        list(HubImages(path=tmp_path / "set").chunks())


def test_metadata_that_names_files_outside_of_the_folder_are_errors(tmp_path, images):
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encode(images[0]))
    (tmp_path / "set" / "train" / "1.png").write_bytes(encode(images[1]))
    (tmp_path / "set" / "train" / "metadata.csv").write_text("file_name,text\n../../secret.png,x\n")
    with pytest.raises(DataError):
        list(HubImages(path=tmp_path / "set").chunks())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image": "picture"}, r"source\.image: .* unknown column 'picture'. Allowed: image, label, number, some, words"),
        ({"label": "class"}, r"source\.label: .* unknown column 'class'"),
        ({"image": "number"}, r"source\.image: 'number' has type .* expected images"),
        ({"label": "words"}, r"source\.label: 'words' has values that are no whole numbers"),
        ({"label": "number"}, r"source\.label: 'number' has .* from 0 to 65535"),
        ({"label": "some"}, r"source\.label: 'some' has values that are no whole numbers"),
        ({"split": "valid"}, "cannot read 'valid' of"),
        ({"config": "large"}, "cannot read 'train' of .*large"),
    ],
)
def test_errors_name_missing_columns_splits_and_labels(tmp_path, images, settings, sentence):
    with pytest.raises(DataError, match=sentence):
        list(HubImages(path=write(tmp_path / "set", encode_all(images)), **settings).chunks())


def test_a_name_on_the_hub_needs_its_commit_and_a_folder_has_none(tmp_path):
    with pytest.raises(SpecError, match=r"^revision: got None; there is no folder 'someone/faces'"):
        HubImages(path="someone/faces")
    with pytest.raises(SpecError, match=r"^revision: got .* is a local path, which has no revision"):
        HubImages(path=tmp_path, revision="a" * 40)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"source: hub_images: needs datasets.*selfloop\[hub\]"):
        HubImages(path="someone/faces", revision="0" * 40).n_rows()
