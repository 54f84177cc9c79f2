"""Pictures in folders and ZIP files: what is read, in which order, and what is refused or left out."""

import io
import json
import warnings
import zlib

import numpy as np
import pytest
from picture_files import CTX, DATA, all_of, encoded, needs, write
from PIL import Image, ImageOps

import tiny_components
from selfloop.errors import DataError, SpecError
from selfloop.protocols import CorpusSource
from selfloop.sources import decoding
from selfloop.sources.image_folder import ImageFolder
from selfloop.store.identity import identity
from selfloop.testing import check_source
from selfloop.types import concat_rows, count_rows


def huge_png(width, height):
    """A picture of that size by its header; nothing follows."""
    small = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    small[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 5, 7), np.uint8)


@pytest.fixture
def files(images):
    """Twelve pictures in two classes, and what is none."""
    named = {f"{'set/a' if i % 2 else 'set/b/c'}/{i:02}.png": encoded(image) for i, image in enumerate(images)}
    hidden = {".hidden.png": b"x", "set/.thumbs/a.png": b"x", "__MACOSX/set/a/._01.png": b"x", "set/note.txt": b"x"}
    return named | hidden


BOTH = pytest.mark.parametrize("kind", ["pictures", "pictures.zip"])


@BOTH
def test_everything_below_is_read_in_the_order_of_names(tmp_path, images, files, kind, monkeypatch):
    path = write(tmp_path / kind, dict(sorted(files.items(), key=lambda item: item[0][::-1])))
    monkeypatch.setattr(decoding, "PIECE", 35 * 5)
    monkeypatch.setattr(decoding, "FEWEST", 1)
    source = ImageFolder(path=path)
    by_name = images[[*range(1, 12, 2), *range(0, 12, 2)]]  # a/ before b/
    pieces = list(source.chunks())
    assert [count_rows(piece) for piece in pieces] == [5, 5, 2]
    assert np.array_equal(concat_rows(pieces)["image"], by_name)
    assert np.array_equal(source.draw(0, 12, CTX)["image"], by_name[source.order(CTX)])
    assert source.schema()["image"].shape == (5, 7)
    assert isinstance(source, CorpusSource)
    check_source(source, n=12)


@BOTH
def test_a_picture_s_folder_is_its_class(tmp_path, files, kind):
    source = ImageFolder(path=write(tmp_path / kind, files), labels=True)
    assert source.classes() == ["a", "c"]
    assert all_of(source)["label"].tolist() == [0] * 6 + [1] * 6
    check_source(source, n=12)


def test_pictures_of_no_folder_have_no_class(tmp_path, files):
    with pytest.raises(DataError, match=r"source\.labels: top\.png lies in no folder"):
        ImageFolder(path=write(tmp_path / "p.zip", {**files, "top.png": b""}), labels=True).schema()


def test_many_classes_have_wider_numbers(tmp_path):
    data = encoded(np.zeros((2, 2), np.uint8))
    source = ImageFolder(path=write(tmp_path / "p.zip", {f"{i:03}/x.png": data for i in range(300)}), labels=True)
    rows = all_of(source)
    assert (str(rows["label"].dtype), source.schema()["label"].dtype) == ("uint16", "uint16")
    assert rows["label"].tolist() == list(range(300))


def test_a_zip_file_is_not_unpacked_and_another_file_is_another_source(tmp_path, files):
    path = write(tmp_path / "p.zip", files)
    before = identity(ImageFolder(path=path))
    all_of(ImageFolder(path=path))
    assert list(tmp_path.iterdir()) == [path]
    write(path, {**files, "set/a/99.png": files["set/a/01.png"]})
    assert ImageFolder(path=path).n_rows() == 13
    assert identity(ImageFolder(path=path)) != before


def test_pictures_are_cropped_to_the_central_square_resized_and_converted(tmp_path, files):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    path = write(tmp_path / "p", {**files, "z.jpg": encoded(wide, "JPEG", quality=95)})
    rgb, grey = all_of(ImageFolder(path=path, size=4, color_mode="rgb")), all_of(ImageFolder(path=path, size=4, color_mode="grayscale"))
    assert (rgb["image"].shape, grey["image"].shape) == ((13, 4, 4, 3), (13, 4, 4))
    assert np.abs(rgb["image"][-1].astype(int) - 200).max() <= 3
    assert ImageFolder(path=path, size=4, color_mode="rgb").schema()["image"].shape == (4, 4, 3)
    exact = all_of(ImageFolder(path=write(tmp_path / "q", {"x.png": encoded(wide)}), size=40))["image"][0]
    assert np.array_equal(exact, wide[:, 20:60])  # a crop alone changes no pixel


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_cameras_noted(tmp_path, orientation):
    rng = np.random.default_rng(orientation)
    stored = np.kron(rng.integers(0, 256, (3, 5), np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", quality=100, exif=exif.tobytes())
    seen = ImageFolder(path=write(tmp_path / "p", {"x.jpg": data}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert seen.schema()["image"].shape == expected.shape
    assert np.array_equal(all_of(seen)["image"][0], expected)


def test_unreadable_notes_leave_a_picture_as_it_is(tmp_path, images):
    path = write(tmp_path / "p", {"x.jpg": encoded(images[0], "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09broken")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all_of(ImageFolder(path=path))["image"].shape == (1, 5, 7)


def test_colours_of_a_palette_are_looked_up_and_transparency_is_dropped(tmp_path):
    clear = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    clear.putpalette([255, 0, 0, 0, 0, 255])
    file = io.BytesIO()
    clear.save(file, "PNG", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = all_of(ImageFolder(path=write(tmp_path / "p", {"x.png": file.getvalue()})))["image"]
    assert rows.tolist() == [[[[255, 0, 0], [0, 0, 255]]]]


def bad_pictures(images):
    """Name of each way to be unusable -> bytes, and what is said."""
    jpeg = encoded(images[0], "JPEG", quality=100)
    png = encoded(images[0])
    inside = len(png) // 2
    return {
        "empty": (b"", "is no PNG or JPEG picture"),
        "words": (b"not a picture", "it begins with 6e 6f 74 20"),
        "gif": (encoded(images[0], "GIF"), "is no PNG or JPEG picture"),
        "torn JPEG": (jpeg[:-20], "is no readable picture (image file is truncated"),
        "JPEG without its end": (jpeg[:-2], "truncated"),
        "torn JPEG header": (jpeg[:100], "is no readable picture"),
        "torn PNG": (png[:-30], "is no readable picture"),
        "torn PNG header": (png[:20], "is no readable picture"),
        "overwritten PNG": (png[:inside] + bytes(10) + png[inside + 10 :], "is no readable picture"),
        "wide": (encoded(np.zeros((5, 8), np.uint8)), "is 8 x 5 grey; "),
        "coloured": (encoded(np.zeros((5, 7, 3), np.uint8)), "is 7 x 5 RGB; "),
        "16 bits": (encoded(np.zeros((5, 7), np.uint16)), "has pixel mode I;16; expected an 8-bit"),
        "four inks": (encoded_cmyk(), "has pixel mode CMYK"),
        "10,000 pixels wide": (huge_png(10_000, 10_000), "has 10000 x 10000 pixels; at most 67108864"),
        "bomb": (huge_png(1 << 30, 1 << 30), "pixels; at most"),
    }


def encoded_cmyk():
    file = io.BytesIO()
    Image.new("CMYK", (7, 5)).save(file, "JPEG")
    return file.getvalue()


@BOTH
def test_a_picture_that_cannot_be_used_is_named(tmp_path, images, files, kind):
    for i, (name, (data, sentence)) in enumerate(bad_pictures(images).items()):
        path = write(tmp_path / f"{i}{kind}", {**files, "set/z.png": data})
        with pytest.raises(DataError) as caught:
            all_of(ImageFolder(path=path))
        said = str(caught.value)
        assert said.startswith(f"{path}/set/z.png: "), name
        assert sentence in said, name
        assert "source.damaged = 'skip'" in said
        assert len(said) < 700
        assert ("source.size" in said, "source.colour" in said) == (name == "wide", name == "coloured")


@BOTH
def test_pictures_that_cannot_be_used_are_left_out_when_asked(tmp_path, images, files, kind):
    bad = {f"set/a/{i:02}-bad.png": data for i, (data, _) in enumerate(bad_pictures(images).values())}
    source = ImageFolder(path=write(tmp_path / kind, {**files, **bad}), on_bad_image="skip", labels=True)
    assert (source.n_rows(), source.schema()["image"].shape) == (12 + len(bad), (5, 7))
    with pytest.warns(UserWarning, match=rf"source\.images: left out {len(bad)} of {12 + len(bad)} pictures:") as caught:
        rows = all_of(source)
    said = str(caught[0].message)
    assert (len(caught), said.count("-bad.png"), said.count("00-bad.png")) == (1, 3, 1)
    assert len(said) < 900
    whole = all_of(ImageFolder(path=write(tmp_path / f"good{kind}", files), labels=True))
    for name in ("image", "label"):
        assert np.array_equal(rows[name], whole[name])
    with pytest.warns(UserWarning, match="left out"):
        drawn = source.draw(0, 12, CTX)["image"]
    assert np.array_equal(np.sort(drawn.reshape(12, -1), 0), np.sort(rows["image"].reshape(12, -1), 0))
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="there are 12"):
        source.draw(0, 13, CTX)


def test_the_first_picture_is_looked_at_before_any_work(tmp_path, files):
    for data, sentence in ((b"no picture", "set/a/00"), (huge_png(10_000, 10_000), "10000 x 10000 pixels")):
        path = write(tmp_path / "p", {**files, "set/a/00.png": data})
        with pytest.raises(DataError, match=sentence):
            ImageFolder(path=path, size=8, color_mode="rgb").schema()
        assert ImageFolder(path=path, on_bad_image="skip").schema()["image"].shape == (5, 7)
    with pytest.raises(DataError, match="none of 1 pictures can be used"):
        ImageFolder(path=write(tmp_path / "q", {"x.png": b""}), on_bad_image="skip").schema()


def test_a_changed_folder_is_another_source(tmp_path, files):
    source = ImageFolder(path=write(tmp_path / "p", files))
    assert (source.n_rows(), source.schema()["image"].shape) == (12, (5, 7))
    write(tmp_path / "p", {"a.png": encoded(np.zeros((3, 3), np.uint8))})
    assert (source.n_rows(), source.schema()["image"].shape) == (13, (3, 3))


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png", "C:out.png"])
def test_zip_files_with_names_that_lead_out_are_refused(tmp_path, files, name):
    path = write(tmp_path / "p.zip", {**files, name: files["set/a/01.png"]})
    with pytest.raises(DataError, match=r"has a file named .*out\.png', which would lie outside"):
        ImageFolder(path=path, on_bad_image="skip").n_rows()
    assert list(tmp_path.parent.rglob("out.png")) == []


def test_damaged_and_encrypted_zip_files_are_refused(tmp_path, files):
    whole = write(tmp_path / "whole.zip", files).read_bytes()
    for name, data in (("torn", whole[:-50]), ("words", b"no archive"), ("empty", b""), ("cut", whole[len(whole) // 2 :])):
        (tmp_path / f"{name}.zip").write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}\.zip"):
            all_of(ImageFolder(path=tmp_path / f"{name}.zip"))
    locked = bytearray(whole)
    for begin, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = locked.index(begin)
        locked[at + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match="is encrypted"):
        ImageFolder(path=tmp_path / "locked.zip").n_rows()


def test_a_damaged_member_of_a_zip_file_is_named_even_where_its_picture_could_be_decoded(tmp_path):
    data = encoded(np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((9, 9), np.uint8)), "JPEG")
    path = write(tmp_path / "p.zip", {"a.jpg": data, "b.jpg": data})
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(data) + len(data) - 40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"p\.zip/b\.jpg: is damaged in the ZIP file \(Bad CRC"):
        all_of(ImageFolder(path=path))
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert count_rows(all_of(ImageFolder(path=path, on_bad_image="skip"))) == 1


def test_a_member_that_unpacks_to_more_than_any_picture_is_not_unpacked(tmp_path, files, monkeypatch):
    monkeypatch.setattr(decoding, "LARGEST_BYTES", 10_000)
    monkeypatch.setattr("selfloop.sources.pictures.LARGEST_BYTES", 10_000)
    for kind in ("p.zip", "p"):
        path = write(tmp_path / kind, {**files, "z.png": bytes(20_000)})
        with pytest.raises(DataError, match=r"z\.png: .*10000"):
            all_of(ImageFolder(path=path))


def test_places_without_pictures_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("no picture")
    empty = write(tmp_path / "p.zip", {"note.txt": b"no picture"})
    for path in (tmp_path, empty):
        with pytest.raises(DataError, match=r"holds no pictures\. Expected files ending in \.png"):
            ImageFolder(path=path).n_rows()
    with pytest.raises(DataError, match="nowhere does not exist"):
        ImageFolder(path=tmp_path / "nowhere").n_rows()
    with pytest.raises(DataError, match="is no whole ZIP file"):
        ImageFolder(path=tmp_path / "note.txt").n_rows()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"size": 0}, r"source\.size: got 0"),
        ({"size": 5000}, r"source\.size: got 5000"),
        ({"colour": "sepia"}, r"source\.colour: got 'sepia'"),
        ({"damaged": "mend"}, r"source\.damaged: got 'mend'"),
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path, settings, sentence):
    with pytest.raises(SpecError, match=sentence):
        ImageFolder(path=tmp_path, **settings)


# through the command line

SPEC = """n = 6
holdout = 2
generations = 2
seeds = 2
policies = ["replace", "accumulate"]
[source]
name = "images"
path = "PATH"
[family]
name = "vae"
latent = 2
hidden = 8
training = { steps = 2, batch_size = 4 }
"""


def command(folder, path, *arguments):
    (folder / "spec.toml").write_text(SPEC.replace("PATH", str(path)))
    return tiny_components.selfloop("run", folder / "spec.toml", "--store", folder / "store", "--workers", "1", *arguments)


def test_a_run_reads_pictures_once_for_all_seeds_and_policies(tmp_path, files):
    done = command(tmp_path, write(tmp_path / "p.zip", files), "-q", "--json", tmp_path / "rows")
    assert (done.code, done.err) == (0, "")
    assert {json.loads(line)["seed"] for line in (tmp_path / "rows").read_text().splitlines()} == {0, 1}
    stages = [
        json.loads(p.read_bytes())["body"]["provenance"]["stage"] for p in (tmp_path / "store" / "records").rglob("*.json")
    ]
    assert sum(stage.endswith(".read_rows") for stage in stages) == 1


def test_a_run_on_bad_pictures_ends_with_one_sentence(tmp_path, images, files):
    for i, (name, (data, sentence)) in enumerate(bad_pictures(images).items()):
        done = command(tmp_path, write(tmp_path / f"{i}.zip", {**files, "set/z.png": data}))
        assert (done.code, sentence in " ".join(done.err.split())) == (2, True), (name, done.err)
        assert "Traceback" not in done.err
    done = command(tmp_path, write(tmp_path / "none.zip", {}))
    assert (done.code, "holds no pictures" in " ".join(done.err.split())) == (2, True)


def test_a_run_leaves_bad_pictures_out_when_asked(tmp_path, images, files):
    bad = {f"set/bad{i:02}.png": data for i, (data, _) in enumerate(bad_pictures(images).values())}
    with warnings.catch_warnings(action="always"):
        done = command(tmp_path, write(tmp_path / "p.zip", {**files, **bad}), "--set", "source.damaged=skip")
    assert done.code == 0, done.err
    assert "selfloop: source.images: left out" in done.err


# real pictures


@needs("cifar10/cifar10_test_jpg.zip")
def test_real_pictures_of_ten_classes_are_read():
    source = ImageFolder(path=DATA / "cifar10" / "cifar10_test_jpg.zip", labels=True)
    piece = next(source.chunks())
    assert (source.n_rows(), piece["image"].shape[1:]) == (10_000, (32, 32, 3))
    assert np.bincount(source.labels_of()["label"]).tolist() == [1000] * 10
    assert source.classes()[:3] == ["airplane", "automobile", "bird"]


@needs("fer2013/fer2013_train5000_48x48.zip")
def test_real_grey_pictures_are_read():
    source = ImageFolder(path=DATA / "fer2013" / "fer2013_train5000_48x48.zip", labels=True)
    piece = next(source.chunks())
    assert (source.n_rows(), piece["image"].shape[1:], len(source.classes())) == (5000, (48, 48), 7)
