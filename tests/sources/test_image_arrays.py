"""Images stored as arrays: digits of scikit-learn, idx files, CIFAR's binary files."""

import gzip
import tarfile

import numpy as np
import pytest
from real_data import DATA, needs

from selfloop.columns import concat_rows, count_rows
from selfloop.component import Context
from selfloop.errors import DataError
from selfloop.protocols import CorpusSource
from selfloop.rng import RandomStream
from selfloop.sources import image_arrays
from selfloop.sources.image_arrays import Cifar, Digits, Idx
from selfloop.testing import check_source

CTX = Context(RandomStream(("seed", 0, "source")))
MNIST = DATA / "mnist"


def write_idx(path, array, dtype_code=8, cut=0, rows=None):
    shape = array.shape if rows is None else rows if isinstance(rows, tuple) else (rows, *array.shape[1:])
    header = bytes([0, 0, dtype_code, array.ndim]) + np.array(shape, ">u4").tobytes()
    data = (header + array.tobytes())[: len(header) + array.nbytes - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_cifar(folder, rows, hundred=False):
    """Write files of the binary version with `rows` rows each; return the bytes of the training files."""
    rng, labels = np.random.default_rng(1), 2 if hundred else 1
    folder.mkdir()
    names = ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = []
    for name in names:
        data = rng.integers(0, 256, (rows, labels + 3072), np.uint8)
        data[:, :labels] %= 10
        (folder / f"{name}.bin").write_bytes(data.tobytes())
        files.append(data)
    return np.concatenate(files[:-1])


def write_tar(path, folder, inner):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):  # the official file has no order either
            archive.add(file, f"{inner}/{file.name}")
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 5, 7), np.uint8)


def sources(tmp_path, images):
    write_cifar(tmp_path / "bin", rows=6)
    plain, gzipped = write_idx(tmp_path / "i.idx", images), write_idx(tmp_path / "i.gz", images)
    labels = write_idx(tmp_path / "l.idx", np.arange(30, dtype=np.uint8))
    return [
        Digits(),
        Digits(labels=True),
        Idx(images=plain),
        Idx(images=gzipped, labels=labels),
        Cifar(path=tmp_path / "bin"),
    ]


def test_every_source_has_each_row_once_typed_as_its_schema(tmp_path, images):
    for source in sources(tmp_path, images):
        rows = source.draw(0, source.n_rows(), CTX)["image"]
        column_type = source.schema()["image"]
        assert (str(rows.dtype), rows.shape[1:], len(rows)) == (column_type.dtype, column_type.shape, source.n_rows())
        check_source(source)
        parts = [source.draw(first, n, CTX)["image"] for first, n in ((0, 10), (10, 15))]
        assert np.array_equal(np.concatenate(parts), rows[:25])
        other = source.draw(0, source.n_rows(), Context(RandomStream(("seed", 1))))["image"]
        assert not np.array_equal(other, rows)
        assert np.array_equal(np.sort(other.reshape(len(rows), -1), 0), np.sort(rows.reshape(len(rows), -1), 0))


def test_more_rows_than_a_source_has_are_an_error(tmp_path, images):
    for source in sources(tmp_path, images):
        with pytest.raises(DataError, match=f"it has {source.n_rows()}"):
            source.draw(source.n_rows() - 1, 2, CTX)


def test_digits_use_the_whole_gray_scale_and_keep_their_17_levels():
    gray = np.unique(Digits().draw(0, 1797, CTX)["image"])
    assert (gray[0], gray[-1], len(gray)) == (0, 255, 17)


@pytest.mark.parametrize("ending", ["idx", "gz"])
def test_idx_files_gzipped_or_not_with_labels(tmp_path, images, ending):
    labels = np.arange(30, dtype=np.uint8)
    source = Idx(images=write_idx(tmp_path / f"i.{ending}", images), labels=write_idx(tmp_path / f"l.{ending}", labels))
    rows = source.draw(3, 20, CTX)
    assert np.array_equal(rows["image"], images[rows["label"]])
    assert set(source.schema()) == {"image", "label"}


def test_a_changed_idx_file_is_read_again(tmp_path, images):
    path = tmp_path / "i.idx"
    assert Idx(images=write_idx(path, images)).n_rows() == 30
    assert Idx(images=write_idx(path, images[:11])).n_rows() == 11


def broken_idx_files(folder, images):
    yield folder / "missing", "does not exist"
    yield write_idx(folder / "short", images, cut=5), r"has 1045 bytes for shape \[30, 5, 7\]"
    yield write_idx(folder / "none", images[:0]), r"has shape \[0, 5, 7\]; expected"
    yield (
        write_idx(folder / "short.gz", images, cut=5),
        r"has 1045 bytes for shape \[30, 5, 7\]",
    )
    yield write_idx(folder / "long.gz", np.concatenate([images, images])[:31], rows=30), "has 1085 bytes for"
    yield write_idx(folder / "wide.gz", images, rows=(30, 1 << 14, 1 << 14)), "has 1050 bytes for"
    yield write_idx(folder / "floats", images, dtype_code=13), "begins with 00 00 0d 03; expected an idx file of bytes"
    yield write_idx(folder / "labels", np.zeros(9, np.uint8)), r"has shape \[9\]; expected images"
    torn = write_idx(folder / "whole.gz", images)
    for name, data, sentence in (
        ("empty", b"", "begins with ; expected"),
        ("stub", bytes([0, 0, 8, 3, 0]), "begins with 00 00 08 03; expected"),
        ("torn.gz", torn.read_bytes()[:-20], "cannot be read"),
    ):
        (folder / name).write_bytes(data)
        yield folder / name, sentence


def test_errors_name_the_broken_idx_file(tmp_path, images):
    for path, sentence in broken_idx_files(tmp_path, images):
        with pytest.raises(DataError, match=sentence) as caught:
            list(Idx(images=path).chunks())
        assert str(caught.value).startswith("source")
        assert str(path) in str(caught.value)


def test_labels_of_other_images_are_an_error(tmp_path, images):
    labels = write_idx(tmp_path / "l", np.zeros(29, np.uint8))
    with pytest.raises(DataError, match=r"has shape \[29\] for 30 images"):
        Idx(images=write_idx(tmp_path / "i", images), labels=labels).n_rows()


@needs("mnist")
def test_real_mnist_files_are_read_whole():
    source = Idx(images=MNIST / "t10k-images-idx3-ubyte.gz", labels=MNIST / "t10k-labels-idx1-ubyte.gz")
    assert (source.n_rows(), source.schema()["image"].shape) == (10_000, (28, 28))
    rows = source.draw(0, 10_000, CTX)
    assert np.bincount(rows["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert rows["image"].mean() == pytest.approx(33.79, abs=0.01)


def test_images_are_read_in_chunks_of_bounded_size(tmp_path, images, monkeypatch):
    monkeypatch.setattr(image_arrays, "CHUNK_BYTES", 35 * 7)
    labels = write_idx(tmp_path / "l", np.arange(30, dtype=np.uint8))
    for name in ("i.idx", "i.gz"):
        chunks = list(Idx(images=write_idx(tmp_path / name, images), labels=labels).chunks())
        assert [count_rows(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]
        assert np.array_equal(concat_rows(chunks)["image"], images)
        assert np.array_equal(concat_rows(chunks)["label"], np.arange(30))


def test_digits_have_class_labels_if_asked():
    rows = Digits(labels=True).draw(0, 1797, CTX)
    assert np.bincount(rows["label"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.array_equal(rows["image"], Digits().draw(0, 1797, CTX)["image"])
    assert not isinstance(Digits(), CorpusSource)


@pytest.mark.parametrize("hundred", [False, True])
def test_the_binary_version_of_cifar_is_read_from_a_folder_and_from_its_tar_file(tmp_path, hundred, monkeypatch):
    monkeypatch.setattr(image_arrays, "CHUNK_BYTES", 20_000)  # several chunks per file
    data = write_cifar(tmp_path / "bin", rows=9, hundred=hundred)
    archive = write_tar(tmp_path / "cifar.tar.gz", tmp_path / "bin", "cifar-binary")
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "bin", archive):
        source = Cifar(path=path)
        rows = concat_rows(list(source.chunks()))
        assert (source.n_rows(), len(rows["image"]), rows["image"].shape[1:]) == (len(data), len(data), (32, 32, 3))
        assert rows["label"].tolist() == data[:, 1 if hundred else 0].tolist()
        assert [name for name in rows if name != "image"] == [name for name in source.schema() if name != "image"]
        assert not hundred or rows["coarse_label"].tolist() == data[:, 0].tolist()
        red, _, blue = rows["image"][5].transpose(2, 0, 1)
        assert np.array_equal(red.ravel(), data[5, -3072:-2048])
        assert np.array_equal(blue.ravel(), data[5, -1024:])
        assert Cifar(path=path, split="test").n_rows() == 9
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_the_pickled_version_of_cifar_is_an_error(tmp_path):
    (tmp_path / "py").mkdir()
    for name in ("batches.meta", "data_batch_1", "test_batch"):
        (tmp_path / "py" / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", tmp_path / "py", "cifar-10-batches-py")
    for path in (tmp_path / "py", archive):
        with pytest.raises(DataError, match=r"the pickled version is not read\. Give cifar-10-binary\.tar\.gz"):
            Cifar(path=path).n_rows()


def test_errors_name_damaged_and_missing_files_of_cifar(tmp_path):
    write_cifar(tmp_path / "bin", rows=2)
    archive = write_tar(tmp_path / "whole.tar.gz", tmp_path / "bin", "x")
    (tmp_path / "torn.tar.gz").write_bytes(archive.read_bytes()[:-3000])
    (tmp_path / "note.tar.gz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for name, sentence in (
        ("torn.tar.gz", r"cannot be read \(.*It is damaged"),
        ("note.tar.gz", "nor a complete tar file"), ("empty", "has no train files"),
        ("nowhere", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"source.*{name}.*{sentence}"):
            list(Cifar(path=tmp_path / name).chunks())
    (tmp_path / "bin" / "data_batch_2.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError, match=r"data_batch_2\.bin in .* has 3000 bytes; expected rows of 3073"):
        Cifar(path=tmp_path / "bin").n_rows()
    (tmp_path / "bin" / "data_batch_1.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_1\.bin in .* has 0 bytes"):
        Cifar(path=tmp_path / "bin").n_rows()
