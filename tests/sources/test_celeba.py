"""CelebA in all common layouts: faces, and the lists of their attributes and official split."""

import io
import zipfile

import numpy as np
import pytest
from example_images import encode, read_all, write
from PIL import Image
from real_data import DATA, needs

from selfloop.errors import DataError
from selfloop.sources import images as image_source
from selfloop.sources.celeba import CelebA
from selfloop.store.identity import identity
from selfloop.testing import check_source


@pytest.fixture
def faces():
    """Six images of the official size and name."""
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (6, 22, 18, 3), np.uint8)
    arrays = [np.asarray(Image.fromarray(array).resize((178, 218), Image.Resampling.BICUBIC)) for array in small]
    return {f"{i:06}.jpg": encode(array, "JPEG", quality=95) for i, array in enumerate(arrays, 1)}


ATTRIBUTES = "6\nBald Eyeglasses Male\n" + "".join(
    f"{i:06}.jpg  {'1' if i == 3 else '-1'} {'1' if i % 2 else '-1'}  {'1' if i > 2 else '-1'}\n" for i in range(1, 7)
)
PARTITION = "".join(f"{i:06}.jpg {min(i // 3, 2)}\n" for i in range(1, 7))  # 2 train, 3 valid, 1 test


def as_csv(text, header):
    rows = [line.split() for line in text.splitlines() if line.split()[0].endswith(".jpg")]
    return "".join(f"{','.join(row)}\n" for row in [["image_id", *header], *rows])


LISTS = {"list_attr_celeba.txt": ATTRIBUTES.encode(), "list_eval_partition.txt": PARTITION.encode()}
KAGGLE = {
    "list_attr_celeba.csv": as_csv(ATTRIBUTES, ["Bald", "Eyeglasses", "Male"]).encode(),
    "list_eval_partition.csv": as_csv(PARTITION, ["partition"]).encode(),
}


def layouts(root, faces):
    """Paths of CelebA in the layouts of its authors, torchvision and Kaggle."""
    inside = {f"img_align_celeba/{name}": data for name, data in faces.items()}
    root.mkdir()
    for folder in ("zip", "official/Img"):
        (root / folder).mkdir(parents=True)
        write(root / folder / "img_align_celeba.zip", inside)
    write(root / "zip", LISTS)
    yield root / "zip" / "img_align_celeba.zip"
    yield root / "zip"
    write(root / "official", {f"Anno/{n}" if "attr" in n else f"Eval/{n}": data for n, data in LISTS.items()})
    yield root / "official"
    yield write(root / "torchvision", {**inside, **LISTS})
    yield write(root / "torchvision", {}) / "img_align_celeba"
    yield write(root / "kaggle", {**{f"img_align_celeba/{name}": data for name, data in inside.items()}, **KAGGLE})


def test_celeba_is_read_in_every_layout(tmp_path, faces):
    expected = None
    for path in layouts(tmp_path / "celeba", faces):
        source = CelebA(path=path, size=32, attributes=("Male", "Eyeglasses"))
        rows = read_all(source)
        expected = rows if expected is None else expected
        assert rows["image"].shape == (6, 32, 32, 3)
        assert rows["attributes"].tolist() == [[int(i > 2), i % 2] for i in range(1, 7)]
        assert np.array_equal(rows["image"], expected["image"])
        assert [CelebA(path=path, split=part).n_rows() for part in ("train", "valid", "test")] == [2, 3, 1]
        valid = read_all(CelebA(path=path, size=32, split="valid", attributes=("Bald",)))
        assert np.array_equal(valid["image"], expected["image"][2:5])
        assert valid["attributes"].tolist() == [[1], [0], [0]]
        assert source.schema()["attributes"].shape == (2,)
    check_source(source, n=6)


def test_crop_size_is_in_pixels_of_the_original_for_smaller_copies_too(tmp_path):
    face = np.zeros((218, 178, 3), np.uint8)
    face[39:179, 19:159] = 255  # 140 x 140 in the middle
    path = write(tmp_path / "a", {"000001.png": encode(face)})
    assert (read_all(CelebA(path=path, crop_size=140))["image"] == 255).all()
    assert (read_all(CelebA(path=path, crop_size=144))["image"] == 255).mean() < 0.99
    full = read_all(CelebA(path=path, size=178))["image"][0]
    assert np.array_equal(full, face[20:198])
    half = np.asarray(Image.fromarray(face).resize((89, 109), Image.Resampling.BOX))
    copy = write(tmp_path / "b", {"000001.png": encode(half)})
    assert (read_all(CelebA(path=copy, crop_size=136))["image"] > 250).all()


def test_a_changed_list_changes_the_identity_of_the_source(tmp_path, faces):
    path = write(tmp_path / "celeba", {**{f"img_align_celeba/{n}": d for n, d in faces.items()}, **LISTS})
    source = CelebA(path=path, attributes=("Male",))
    before = identity(source)
    (path / "list_attr_celeba.txt").write_text(ATTRIBUTES.replace("-1", " 1"))
    assert identity(source) != before
    assert read_all(source)["attributes"].all()


def test_errors_name_missing_lists_faces_and_attributes(tmp_path, faces):
    path = write(tmp_path / "celeba", {f"img_align_celeba/{n}": d for n, d in faces.items()})
    for settings, sentence in (
        ({"attributes": ("Male",)}, r"source\.attributes: needs list_attr_celeba\.txt.*mmlab\.ie\.cuhk\.edu\.hk; for research"),
        ({"split": "train"}, r"source\.split: needs list_eval_partition\.txt"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=sentence):
            CelebA(path=path, **settings)
    write(path, LISTS)
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt: unknown name 'Eyeglases'\. Did you mean 'Eyeglasses'\?"):
        CelebA(path=path, attributes=["Eyeglases"]).schema()
    write(path, {"empty.csv": b""})
    with pytest.raises(DataError, match=r"empty\.csv: unknown name 'Male'"):
        CelebA(path=path, attributes=("Male",), attributes_file=path / "empty.csv").schema()
    for text, sentence in (
        (ATTRIBUTES.replace("000004.jpg", "000014.jpg"), r"has no line for 000004\.jpg"),
        (ATTRIBUTES.replace("6\n", "7\n", 1), "announces 7 faces and lists 6"),
        (ATTRIBUTES.replace("-1 1  1", "-1 1"), "line 7: has 3 values; expected 4"),
        (ATTRIBUTES.replace("-1 1  1", "-1 1  2"), "has the attribute value '2'; expected 1 or -1"),
    ):
        assert text != ATTRIBUTES
        write(path, {"list_attr_celeba.txt": text.encode()})
        with pytest.raises(DataError, match=sentence):
            read_all(CelebA(path=path, attributes=("Male",)))
    write(path, {"list_eval_partition.txt": PARTITION.replace(" 2", " 1").encode()})
    with pytest.raises(DataError, match=r"source\.split: no face of .* is in 'test'"):
        CelebA(path=path, split="test").n_rows()


def test_the_error_for_missing_faces_says_where_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist\. Get img_align_celeba\.zip from its authors' page"):
        CelebA(path=tmp_path / "nowhere").n_rows()


@needs("celeba/img_align_celeba.zip")
def test_real_faces_are_read_from_their_zip_file(monkeypatch):
    monkeypatch.setattr(image_source, "CHUNK_BYTES", 32 * 64 * 64 * 3)
    source = CelebA(path=DATA / "celeba")
    assert (source.n_rows(), source.schema()["image"].shape) == (9000, (64, 64, 3))
    first = next(source.chunks())["image"]
    with zipfile.ZipFile(DATA / "celeba" / "img_align_celeba.zip") as archive:
        face = Image.open(io.BytesIO(archive.read("img_align_celeba/000001.jpg")))
    expected = face.crop((0, 10, 89, 99)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(first[0], np.asarray(expected))
    originals = CelebA(path=DATA / "celeba" / "original_178x218_first32.zip", crop_size=148)
    small, large = (
        next(s.chunks())["image"][:32].astype(int) for s in (CelebA(path=DATA / "celeba", crop_size=148), originals)
    )
    distance = np.abs(small - large).mean()  # the same faces at half their size
    assert distance < 10
    assert np.abs(small - np.roll(large, 1, 0)).mean() > 4 * distance
