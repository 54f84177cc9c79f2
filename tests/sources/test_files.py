"""Which files a source reads: every visible one, also behind links, and none that is a pointer, an archive or too large."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import numpy as np
import pytest
from example_images import encode, read_all, write
from example_texts import read_corpus
from PIL import Image

from selfloop.errors import DataError
from selfloop.formats.folders import list_folder
from selfloop.sources import files
from selfloop.sources.files import list_files_in, open_file, read_files
from selfloop.sources.images import ImageFolder
from selfloop.sources.tables import TableSource
from selfloop.sources.text_corpora import TinyStories
from selfloop.sources.text_files import JsonlSource, TextSource
from selfloop.store.identity import file_digest, identity

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def solid(value, kind="PNG"):
    return encode(np.full((4, 4), value, np.uint8), kind)


def test_linked_folders_are_read_and_identify_the_source(tmp_path):
    path = write(tmp_path / "set", {"cat/1.png": solid(1), "dog/1.png": solid(2)})
    elsewhere = write(tmp_path / "elsewhere", {"1.png": solid(3)})
    before = identity(ImageFolder(path=path))
    (path / "owl").symlink_to(elsewhere)
    source = ImageFolder(path=path, labels=True)
    assert source.label_columns()["label"].tolist() == [0, 1, 2]
    assert read_all(source)["image"][:, 0, 0].tolist() == [1, 2, 3]
    linked = identity(ImageFolder(path=path))
    assert linked != before
    write(elsewhere, {"1.png": solid(4)})
    assert identity(ImageFolder(path=path)) != linked


def test_links_inside_a_cache_of_the_hub_are_read(tmp_path):
    blobs = write(tmp_path / ".cache" / "blobs", {"ab12": b"one\n\ntwo", "cd34": b"three"})
    snapshot = tmp_path / ".cache" / "snapshots" / "0f3a"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "a.txt").symlink_to(blobs / "ab12")
    (snapshot / "b.txt").symlink_to("../../blobs/cd34")
    assert read_corpus(TextSource(path=snapshot)) == ["three", "one", "two"]
    copy = write(tmp_path / "copy", {"data/a.txt": b"one\n\ntwo", "b.txt": b"three"})
    assert file_digest(snapshot) == file_digest(copy)


def test_a_cache_of_the_hub_is_read_by_its_links_and_equal_content_stays_two_files(tmp_path):
    cache = tmp_path / "models"
    blobs, snapshot = write(cache / "blobs", {"ab12": solid(1)}), cache / "snapshots" / "0f3a"
    snapshot.mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (snapshot / name).symlink_to(blobs / "ab12")
    for path in (cache, snapshot):
        assert list_folder(path).repeated == ()
        assert read_all(ImageFolder(path=path))["image"][:, 0, 0].tolist() == [1, 1]


def test_a_file_that_links_name_again_is_read_once_and_counted(tmp_path):
    path = write(tmp_path / "set", {"b/1.png": solid(1), "b/2.png": solid(2)})
    elsewhere = write(tmp_path / "elsewhere", {"3.png": solid(3)})
    before = identity(ImageFolder(path=path))
    (path / "a").symlink_to("b")
    (path / "b" / "0.png").symlink_to("1.png")
    (path / "c").symlink_to(elsewhere)
    (path / "d").symlink_to(elsewhere)
    source = ImageFolder(path=path, labels=True)
    with pytest.warns(UserWarning, match=r"skipped files linked twice \(5\)$"):
        rows = read_all(source)
    assert (rows["image"][:, 0, 0].tolist(), rows["label"].tolist()) == ([1, 2, 3], [0, 0, 1])
    assert identity(source) != before


def test_a_document_that_links_name_again_is_read_once_and_counted(tmp_path):
    path = write(tmp_path / "set", {"b.txt": b"one"})
    (path / "a.txt").symlink_to("b.txt")
    with pytest.warns(UserWarning, match=r"skipped files linked twice \(1\)$"):
        assert read_corpus(TextSource(path=path)) == ["one"]


def test_links_that_lead_nowhere_or_around_are_errors(tmp_path):
    path = write(tmp_path / "set", {"a/1.txt": b"one"})
    (path / "a" / "up").symlink_to(path)
    with pytest.raises(DataError, match=r"a/up is a link to a folder that contains it"):
        TextSource(path=path).n_rows()
    (path / "a" / "up").unlink()
    (path / "a" / "gone.txt").symlink_to("nothing")
    with pytest.raises(DataError, match=r"a/gone\.txt is neither a file nor a folder"):
        file_digest(path)
    (path / "a" / "gone.txt").unlink()
    os.mkfifo(path / "a" / "pipe")
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        TextSource(path=path).n_rows()


HIDDEN = {".cache/huggingface/a.txt": b"x", ".git/objects/ab": b"x", "sub/._b.txt": b"x", "__MACOSX/b.txt": b"x",
          "sub/.DS_Store": b"x"}  # fmt: skip


def test_hidden_files_are_not_read_but_counted_and_change_no_identity(tmp_path):
    path = write(tmp_path / "set", {"sub/b.txt": b"one"})
    before = identity(TextSource(path=path))
    write(path, HIDDEN)
    with pytest.warns(UserWarning, match=r"source: text skipped hidden files or folders \(5\)$"):
        assert read_corpus(TextSource(path=path)) == ["one"]
    assert identity(TextSource(path=path)) == before
    assert list_folder(path).sizes == {"sub/b.txt": 3}


@pytest.mark.parametrize("kind", ["set", "set.zip"])
def test_other_files_beside_images_are_counted(tmp_path, kind):
    names = ["1.PNG", "2.jfif", "3.jpe"]
    images = {name: solid(i, "PNG" if i == 0 else "JPEG") for i, name in enumerate(names)}
    others = {".hidden.png": b"x", "a/note.txt": b"x", "b.txt": b"x", "README": b"x"}
    path = write(tmp_path / kind, images | others)
    expected = (
        r"skipped (?=.*hidden files or folders \(1\))(?=.*files ending in \.txt \(2\))(?=.*files ending in no suffix \(1\))"
    )
    with pytest.warns(UserWarning, match=expected):
        assert read_all(ImageFolder(path=path))["image"][:, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["2.webp", "2.GIF", "2.tiff"])
def test_images_of_other_formats_are_errors_and_not_lost(tmp_path, name):
    path = write(tmp_path / "set", {"1.png": solid(1), name: solid(2, name.rpartition(".")[2].upper())})
    with pytest.raises(DataError, match=rf"{name}: is not a PNG or JPEG image"):
        read_all(ImageFolder(path=path))


def test_an_animated_png_is_no_image(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2, 3)]
    path = write(tmp_path / "set", {"1.png": solid(1)})
    frames[0].save(path / "2.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"2\.png: is an animation of 3 images; expected one image"):
        read_all(ImageFolder(path=path))
    with pytest.warns(UserWarning, match=r"unusable ones of 2 images \(1\)"):
        assert len(read_all(ImageFolder(path=path, on_bad_image="skip"))["image"]) == 1


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_pointer_among_images_has_one_remedy(tmp_path, on_bad_image):
    path = write(tmp_path / "set", {"1.png": solid(1), "2.png": POINTER})
    with pytest.raises(DataError, match=r"2\.png: is a Git LFS pointer: its data were not downloaded\. Run: git lfs pull$"):
        read_all(ImageFolder(path=path, on_bad_image=on_bad_image))


def test_empty_files_of_images_are_called_so(tmp_path):
    with pytest.raises(DataError, match=r"1\.png: is not a PNG or JPEG image \(it is empty\)"):
        read_all(ImageFolder(path=write(tmp_path / "set", {"1.png": b""})))
    with pytest.raises(DataError, match=r"set\.zip has no images\. Check the path\.$"):
        read_all(ImageFolder(path=write(tmp_path / "set.zip", {})))


def test_names_with_backslashes_in_a_zip_file_are_folders(tmp_path):
    path = write(tmp_path / "set.zip", {"cat\\1.png": solid(1), "dog\\1.png": solid(2), "dog/.hidden\\2.png": b"x"})
    with pytest.warns(UserWarning, match=r"hidden files or folders \(1\)"):
        rows = read_all(ImageFolder(path=path, labels=True))
    assert (rows["image"][:, 0, 0].tolist(), rows["label"].tolist()) == ([1, 2], [0, 1])


def test_a_zip_file_of_zip_files_is_an_error_that_names_them(tmp_path):
    inner = write(tmp_path / "train.zip", {"1.png": solid(1)}).read_bytes()
    path = write(tmp_path / "set.zip", {"train.zip": inner, "test.zip": inner})
    with pytest.raises(DataError, match=r"has no images; it has files ending in \.zip \(2\)\. Unpack its archives"):
        ImageFolder(path=path).n_rows()


def make_tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def make_zip(*names, content=b"one"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


OTHER_CONTENT = {
    "a Git LFS pointer": POINTER,
    "an archive of 2 files. Unpack": make_zip("a.txt", "b.txt"),
    "in a binary": make_zip("a.npy", content=b"\x93NUMPY"),
    "an archive. Unpack": make_tar([("a.txt", b"one")]),
    "an archive. ": gzip.compress(make_tar([("a.txt", b"one")])),
    "compressed twice": gzip.compress(bz2.compress(b"one")),
    "compressed by zstd": b"\x28\xb5\x2f\xfd\x04\x00",
    "text in UTF-16": "one\n\ntwo".encode("utf-16"),
    "not text in UTF-8": "one\n\ntwo".encode("utf-16-le"),
    "in a binary format": b"PAR1\x15\x04",
}


@pytest.mark.parametrize("problem", OTHER_CONTENT)
def test_what_is_not_text_is_refused_by_name(tmp_path, problem):
    path = write(tmp_path / "set", {"a.txt": b"good\n", "b.txt": OTHER_CONTENT[problem]})
    with pytest.raises(DataError, match=rf"set/b\.txt is {problem}") as caught:
        TextSource(path=path, errors="replace").n_rows()
    assert len(str(caught.value)) < 700


def test_a_pointer_in_the_place_of_any_file_is_named(tmp_path):
    for name in ("a.zip", "a.tar", "1.png", "x-train.txt", "x-valid.txt"):
        (tmp_path / name).write_bytes(POINTER)
    sources = [ImageFolder(path=tmp_path / "a.zip"), ImageFolder(path=tmp_path), TinyStories(path=tmp_path),
               JsonlSource(path=tmp_path / "x-train.txt")]  # fmt: skip
    for source in sources:
        with pytest.raises(DataError, match=r"is a Git LFS pointer.* Run: git lfs pull"):
            list(source.chunks())
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        list_files_in(tmp_path / "a.tar")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.jsonl.GZ", "a.jsonl"])
def test_compressed_files_are_read_whatever_their_name(tmp_path, compress, name):
    (tmp_path / name).write_bytes(compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert read_corpus(JsonlSource(path=tmp_path / name)) == ["one", "two"]
    (tmp_path / name).write_bytes(compress(b'{"text": "one"}\n' * 99)[:-9])
    with pytest.raises(DataError, match=r"cannot be read .* It is damaged"):
        JsonlSource(path=tmp_path / name).n_rows()


def test_a_zip_file_of_one_file_is_read(tmp_path):
    (tmp_path / "a.jsonl.zip").write_bytes(make_zip("a/", "__MACOSX/._a.jsonl", "a/a.jsonl", content=b'{"text": "one"}\n'))
    assert read_corpus(JsonlSource(path=tmp_path / "a.jsonl.zip")) == ["one"]
    (tmp_path / "t.csv.zip").write_bytes(make_zip("t.csv", content=b"a,b\n1,2\n3,4\n"))
    assert TableSource(path=tmp_path / "t.csv.zip").n_rows() == 2
    (tmp_path / "t.csv.zip").write_bytes((tmp_path / "t.csv.zip").read_bytes().replace(b"1,2", b"1,5"))
    with pytest.raises(DataError, match=r"t\.csv\.zip cannot be read \(Bad CRC"):
        TableSource(path=tmp_path / "t.csv.zip").n_rows()


def test_two_files_of_one_name_in_a_zip_file_are_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/1.png", "a\\1.png"):
            archive.writestr(name, solid(1))
    with pytest.raises(DataError, match=r"two files named a/1\.png"):
        ImageFolder(path=tmp_path / "a.zip").n_rows()


# archives and limits


READERS = {
    "a.txt.gz": (gzip.compress("one\n\ntwo é\n\n".encode() * 20), TextSource),
    "a.jsonl": ('{"text": "one é", "n": 1.5}\n'.encode() * 9, JsonlSource),
    "a.jsonl.xz": (lzma.compress(b'{"text": "one"}\n' * 9), JsonlSource),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_is_an_error_in_one_sentence(tmp_path, name):
    whole, source = READERS[name]
    rng = np.random.default_rng(0)
    problems = list[str]()
    for i in range(150):
        data = bytearray(whole[: rng.integers(len(whole))] if i % 3 == 0 else whole)
        for position in rng.integers(max(len(data), 1), size=rng.integers(1, 4)) if data else ():
            data[position] = rng.integers(256)
        (tmp_path / name).write_bytes(data)
        try:
            read_corpus(source(path=tmp_path / name))
        except DataError as problem:
            problems.append(str(problem))
    assert len(problems) > 20
    assert all(len(problem) < 700 and "\n" not in problem for problem in problems)


def test_hidden_members_of_a_tar_file_are_counted_and_not_read(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar([("./a.xyz", b"1"), ("./._a.xyz", b"2"), ("__MACOSX/a.xyz", b"3")]))
    assert list_files_in(tmp_path / "a.tar") == ({"a.xyz": 1}, 2, ())
    assert list(read_files(tmp_path / "a.tar", lambda name: True)) == [("a.xyz", b"1")]


def test_links_and_repeated_names_in_a_tar_file_are_errors(tmp_path):
    (tmp_path / "twice.tar").write_bytes(make_tar([("a", b"1"), ("a", b"2")]))
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("a")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    for name in ("twice", "link"):
        with pytest.raises(DataError, match=r"a in .*\.tar is a link, repeated or too large"):
            list_files_in(tmp_path / f"{name}.tar")


def test_files_lines_and_members_have_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_READ_BYTES", 1000)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"a" * 1001))
    with open_file(bomb) as file, pytest.raises(DataError, match="more than 1000 bytes in one piece"):
        file.read()
    with pytest.raises(DataError, match=r"bomb\.gz has a line of more than 1000 bytes"):
        JsonlSource(path=bomb).n_rows()
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(make_tar([("a", b"a" * 1001)])))
    with pytest.raises(DataError, match="too large"):
        list_files_in(tmp_path / "bomb.tar.gz")
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 100_000
    (tmp_path / "pax.tar.gz").write_bytes(gzip.compress(pax.tobuf(tarfile.USTAR_FORMAT) + b"a" * 100_000))
    with pytest.raises(DataError, match="more than 1000 bytes in one piece"):
        list_files_in(tmp_path / "pax.tar.gz")
    bomb.write_bytes(gzip.compress(b"a" * 999))
    with open_file(bomb) as file:
        assert len(file.read()) == 999
