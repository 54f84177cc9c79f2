"""Real images: embedded digits, idx files, folders of pictures."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.rng import Stream
from selfloop.sources.images import Digits, Idx, Images

CTX = Context(Stream(("seed", 0, "source")))
MNIST = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"


def write_idx(path, array, dtype_code=8, cut=0):
    header = bytes([0, 0, dtype_code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = (header + array.tobytes())[: len(header) + array.nbytes - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 5, 7), np.uint8)


@pytest.fixture
def folder(tmp_path, images):
    for i, image in enumerate(images[:12]):
        write_picture(tmp_path / ("a" if i % 2 else "b/c") / f"{i:02}.png", image)
    return tmp_path


def sources(tmp_path, images):
    for i, image in enumerate(images):
        write_picture(tmp_path / "pictures" / f"{i:02}.png", image)
    return [Digits(), Idx(images=write_idx(tmp_path / "i.idx", images)), Images(path=tmp_path / "pictures")]


def test_every_source_gives_the_rows_its_schema_promises_and_each_once(tmp_path, images):
    for source in sources(tmp_path, images):
        rows = source.draw(0, source.capacity(), CTX)["image"]
        field = source.schema()["image"]
        assert (str(rows.dtype), rows.shape[1:], len(rows)) == (field.dtype, field.shape, source.capacity())
        parts = [source.draw(first, n, CTX)["image"] for first, n in ((0, 10), (10, 15))]
        assert np.array_equal(np.concatenate(parts), rows[:25])
        other = source.draw(0, source.capacity(), Context(Stream(("seed", 1))))["image"]
        assert not np.array_equal(other, rows)
        assert np.array_equal(np.sort(other.reshape(len(rows), -1), 0), np.sort(rows.reshape(len(rows), -1), 0))


def test_more_rows_than_there_are_is_an_error(tmp_path, images):
    for source in sources(tmp_path, images):
        with pytest.raises(DataError, match=f"there are {source.capacity()}"):
            source.draw(source.capacity() - 1, 2, CTX)


def test_digits_use_the_whole_grey_scale_and_keep_their_17_levels():
    grey = np.unique(Digits().draw(0, 1797, CTX)["image"])
    assert (grey[0], grey[-1], len(grey)) == (0, 255, 17)


@pytest.mark.parametrize("ending", ["idx", "gz"])
def test_idx_files_gzipped_or_not_with_labels(tmp_path, images, ending):
    labels = np.arange(30, dtype=np.uint8)
    source = Idx(images=write_idx(tmp_path / f"i.{ending}", images), labels=write_idx(tmp_path / f"l.{ending}", labels))
    rows = source.draw(3, 20, CTX)
    assert np.array_equal(rows["image"], images[rows["label"]])
    assert set(source.schema()) == {"image", "label"}


def test_a_changed_idx_file_is_read_again(tmp_path, images):
    path = tmp_path / "i.idx"
    assert Idx(images=write_idx(path, images)).capacity() == 30
    assert Idx(images=write_idx(path, images[:11])).capacity() == 11


def broken_idx_files(folder, images):
    yield folder / "missing", "no such idx file"
    yield write_idx(folder / "short", images, cut=5), r"has 1061 bytes; a header of 16 and \[30, 5, 7\] were announced"
    yield write_idx(folder / "floats", images, dtype_code=13), "begins with 00 00 0d 03; expected an idx file of bytes"
    yield write_idx(folder / "labels", np.zeros(9, np.uint8)), "holds 1-dimensional data; expected images"
    for name, data, sentence in (
        ("empty", b"", "begins with ; expected"),
        ("stub", bytes([0, 0, 8, 3, 0]), "has 5 bytes"),
        ("torn.gz", gzip.compress(images.tobytes())[:-20], "damaged or cut short"),
    ):
        (folder / name).write_bytes(data)
        yield folder / name, sentence


def test_broken_idx_files_are_named_in_one_sentence(tmp_path, images):
    for path, sentence in broken_idx_files(tmp_path, images):
        with pytest.raises(DataError, match=sentence) as caught:
            Idx(images=path).capacity()
        assert str(caught.value).startswith(str(path))


def test_labels_of_other_images_are_refused(tmp_path, images):
    labels = write_idx(tmp_path / "l", np.zeros(29, np.uint8))
    with pytest.raises(DataError, match=r"holds \[29\] labels for 30 images"):
        Idx(images=write_idx(tmp_path / "i", images), labels=labels).capacity()


def test_a_folder_is_read_recursively_in_order_of_names(folder, images):
    rows = Images(path=folder).draw(0, 12, CTX)["image"]
    order = CTX.stream.child("order").generator().permutation(12)
    by_name = images[[*range(1, 12, 2), *range(0, 12, 2)]]  # a/ before b/
    assert np.array_equal(rows, by_name[order])


def test_pictures_are_cropped_resized_and_converted(folder):
    write_picture(folder / "z.png", np.full((40, 20, 3), 200, np.uint8))
    assert Images(path=folder, size=4, colour="grey").draw(0, 13, CTX)["image"].shape == (13, 4, 4)
    rgb = Images(path=folder, size=4, colour="rgb").draw(0, 13, CTX)["image"]
    assert rgb.shape == (13, 4, 4, 3)
    assert (rgb == 200).all(axis=(1, 2, 3)).sum() == 1
    assert Images(path=folder, size=4, colour="rgb").schema()["image"].shape == (4, 4, 3)


def test_the_crop_is_the_central_square(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 255
    write_picture(tmp_path / "w.png", wide)
    assert (Images(path=tmp_path, size=4).draw(0, 1, CTX)["image"] == 255).all()


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (np.zeros((6, 7), np.uint8), "is 7 x 6 grey; 01.png is 7 x 5 grey. Set source.size"),
        (np.zeros((5, 7, 3), np.uint8), "is 7 x 5 RGB; 01.png is 7 x 5 grey. Set source.size"),
        (np.zeros((5, 7), np.uint16), "has pixel mode I;16; expected an 8-bit"),
    ],
)
def test_a_picture_unlike_the_others_is_named(folder, picture, sentence):
    odd = write_picture(folder / "odd.png", picture)
    with pytest.raises(DataError, match=sentence) as caught:
        Images(path=folder).draw(0, 13, CTX)
    assert str(caught.value).startswith(str(odd))


def test_damaged_pictures_are_named(folder):
    whole = (folder / "a" / "01.png").read_bytes()
    for damaged in (b"", b"not a picture", whole[:-30], whole[:40] + b"\0" * 30 + whole[70:]):
        (folder / "zz.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"zz\.png: is no readable picture"):
            Images(path=folder).draw(0, 13, CTX)


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_picture(folder / "bomb.png", np.zeros((12, 12), np.uint8))
    with pytest.raises(DataError, match=r"bomb\.png: unpacks to more pixels than is safe"):
        Images(path=folder).draw(0, 13, CTX)


def test_folders_without_pictures_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(DataError, match="holds no pictures"):
        Images(path=tmp_path).capacity()
    with pytest.raises(DataError, match="is no folder"):
        Images(path=tmp_path / "nowhere").capacity()


def test_impossible_settings_are_refused_by_name(tmp_path):
    with pytest.raises(SpecError, match=r"source\.size: got 0"):
        Images(path=tmp_path, size=0)
    with pytest.raises(SpecError, match=r"source\.colour: got 'sepia'"):
        Images(path=tmp_path, colour="sepia")


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not beside the repository")
def test_real_mnist_files_are_read_whole():
    source = Idx(images=MNIST / "t10k-images-idx3-ubyte.gz", labels=MNIST / "t10k-labels-idx1-ubyte.gz")
    assert (source.capacity(), source.schema()["image"].shape) == (10_000, (28, 28))
    rows = source.draw(0, 10_000, CTX)
    assert np.bincount(rows["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert rows["image"].mean() == pytest.approx(33.79, abs=0.01)
