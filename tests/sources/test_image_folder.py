"""Images in folders and ZIP files: which are read, in which order, and which are errors or are skipped."""

import io
import json
import warnings
import zlib

import numpy as np
import pytest
from example_images import CTX, encode, read_all, write
from PIL import Image, ImageOps
from real_data import DATA, needs

import tiny_components
from selfloop.columns import concat_rows, count_rows
from selfloop.errors import DataError
from selfloop.protocols import CorpusSource
from selfloop.sources import images as image_source
from selfloop.sources.images import ImageFolder
from selfloop.spec.spec import Spec
from selfloop.store.identity import identity
from selfloop.testing import check_source


def huge_png(width, height):
    """The header of an image of that size, without pixels."""
    small = bytearray(encode(np.zeros((1, 1), np.uint8)))
    small[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 5, 7), np.uint8)


@pytest.fixture
def files(images):
    """Twelve images in two classes."""
    return {f"{'set/a' if i % 2 else 'set/b/c'}/{i:02}.png": encode(image) for i, image in enumerate(images)}


BOTH = pytest.mark.parametrize("kind", ["images", "images.zip"])


@BOTH
def test_all_images_below_a_folder_are_read_in_order_of_names(tmp_path, images, files, kind, monkeypatch):
    path = write(tmp_path / kind, dict(sorted(files.items(), key=lambda item: item[0][::-1])))
    monkeypatch.setattr(image_source, "CHUNK_BYTES", 35 * 5)
    monkeypatch.setattr(image_source, "MIN_CHUNK_IMAGES", 1)
    source = ImageFolder(path=path)
    by_name = images[[*range(1, 12, 2), *range(0, 12, 2)]]  # a/ before b/
    chunks = list(source.chunks())
    assert [count_rows(chunk) for chunk in chunks] == [5, 5, 2]
    assert np.array_equal(concat_rows(chunks)["image"], by_name)
    assert np.array_equal(source.draw(0, 12, CTX)["image"], by_name[source.order(read_all(source), CTX)])
    assert source.schema()["image"].shape == (5, 7)
    assert isinstance(source, CorpusSource)
    check_source(source, n=12)


@BOTH
def test_the_folder_of_an_image_is_its_class(tmp_path, files, kind):
    source = ImageFolder(path=write(tmp_path / kind, files), labels=True)
    assert read_all(source)["label"].tolist() == [0] * 6 + [1] * 6
    check_source(source, n=12)


def test_images_outside_of_subfolders_have_no_class(tmp_path, files):
    with pytest.raises(DataError, match=r"source\.labels: top\.png is not in a subfolder"):
        ImageFolder(path=write(tmp_path / "p.zip", {**files, "top.png": b""}), labels=True).schema()


def test_more_than_256_classes_have_16_bit_labels(tmp_path):
    data = encode(np.zeros((2, 2), np.uint8))
    source = ImageFolder(path=write(tmp_path / "p.zip", {f"{i:03}/x.png": data for i in range(300)}), labels=True)
    rows = read_all(source)
    assert (str(rows["label"].dtype), source.schema()["label"].dtype) == ("uint16", "uint16")
    assert rows["label"].tolist() == list(range(300))


def test_a_zip_file_is_not_unpacked_and_a_changed_file_changes_the_identity(tmp_path, files):
    path = write(tmp_path / "p.zip", files)
    before = identity(ImageFolder(path=path))
    read_all(ImageFolder(path=path))
    assert list(tmp_path.iterdir()) == [path]
    write(path, {**files, "set/a/99.png": files["set/a/01.png"]})
    assert ImageFolder(path=path).n_rows() == 13
    assert identity(ImageFolder(path=path)) != before


def test_images_are_cropped_to_the_central_square_resized_and_converted(tmp_path, files):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    path = write(tmp_path / "p", {**files, "z.jpg": encode(wide, "JPEG", quality=95)})
    rgb, gray = (
        read_all(ImageFolder(path=path, size=4, color_mode="rgb")),
        read_all(ImageFolder(path=path, size=4, color_mode="grayscale")),
    )
    assert (rgb["image"].shape, gray["image"].shape) == ((13, 4, 4, 3), (13, 4, 4))
    assert np.abs(rgb["image"][-1].astype(int) - 200).max() <= 3
    assert ImageFolder(path=path, size=4, color_mode="rgb").schema()["image"].shape == (4, 4, 3)
    exact = read_all(ImageFolder(path=write(tmp_path / "q", {"x.png": encode(wide)}), size=40))["image"][0]
    assert np.array_equal(exact, wide[:, 20:60])  # a crop alone changes no pixel


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_their_exif_orientation(tmp_path, orientation):
    rng = np.random.default_rng(orientation)
    stored = np.kron(rng.integers(0, 256, (3, 5), np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "JPEG", quality=100, exif=exif.tobytes())
    source = ImageFolder(path=write(tmp_path / "p", {"x.jpg": data}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert source.schema()["image"].shape == expected.shape
    assert np.array_equal(read_all(source)["image"][0], expected)


def test_an_orientation_after_the_pixels_of_a_png_file_is_used(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    stored = np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8)
    png = encode(stored)
    source = ImageFolder(path=write(tmp_path / "p", {"x.png": png[:-12] + chunk + png[-12:]}))
    assert source.schema()["image"].shape == (5, 3)
    assert np.array_equal(read_all(source)["image"][0], np.rot90(stored, -1))


def test_unreadable_exif_data_has_no_effect(tmp_path, images):
    path = write(tmp_path / "p", {"x.jpg": encode(images[0], "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09broken")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_all(ImageFolder(path=path))["image"].shape == (1, 5, 7)


def test_palettes_are_converted_to_colors_and_transparency_is_dropped(tmp_path):
    clear = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    clear.putpalette([255, 0, 0, 0, 0, 255])
    file = io.BytesIO()
    clear.save(file, "PNG", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = read_all(ImageFolder(path=write(tmp_path / "p", {"x.png": file.getvalue()})))["image"]
    assert rows.tolist() == [[[[255, 0, 0], [0, 0, 255]]]]


def bad_images(images):
    """Bytes of unusable images with a part of their error, by the kind of problem."""
    jpeg = encode(images[0], "JPEG", quality=100)
    png = encode(images[0])
    inside = len(png) // 2
    return {
        "empty": (b"", "is not a PNG or JPEG image"),
        "words": (b"not a picture", "it begins with 6e 6f 74 20"),
        "gif": (encode(images[0], "GIF"), "is not a PNG or JPEG image"),
        "torn JPEG": (jpeg[:-20], "is not a readable image (image file is truncated"),
        "JPEG without its end": (jpeg[:-2], "truncated"),
        "torn JPEG header": (jpeg[:100], "is not a readable image"),
        "torn PNG": (png[:-30], "is not a readable image"),
        "torn PNG header": (png[:20], "is not a readable image"),
        "overwritten PNG": (png[:inside] + bytes(10) + png[inside + 10 :], "is not a readable image"),
        "wide": (encode(np.zeros((5, 8), np.uint8)), "is 8 x 5 grayscale; "),
        "color": (encode(np.zeros((5, 7, 3), np.uint8)), "is 7 x 5 RGB; "),
        "16 bits": (encode(np.zeros((5, 7), np.uint16)), "has pixel mode I;16; expected an 8-bit"),
        "four inks": (encode_cmyk(), "has pixel mode CMYK"),
        "10,000 pixels wide": (huge_png(10_000, 10_000), "has 10000 x 10000 pixels; expected at most 67108864"),
        "bomb": (huge_png(1 << 30, 1 << 30), "pixels; expected at most"),
    }


def encode_cmyk():
    file = io.BytesIO()
    Image.new("CMYK", (7, 5)).save(file, "JPEG")
    return file.getvalue()


@BOTH
def test_errors_name_the_unusable_image(tmp_path, images, files, kind):
    for i, (name, (data, sentence)) in enumerate(bad_images(images).items()):
        path = write(tmp_path / f"{i}{kind}", {**files, "set/z.png": data})
        with pytest.raises(DataError) as caught:
            read_all(ImageFolder(path=path))
        message = str(caught.value)
        assert message.startswith(f"{path}/set/z.png: "), name
        assert sentence in message, name
        assert "source.on_bad_image = 'skip'" in message
        assert len(message) < 700
        assert ("source.size" in message, "source.color_mode" in message) == (name == "wide", name == "color")


@BOTH
def test_unusable_images_are_skipped_if_asked(tmp_path, images, files, kind):
    bad = {f"set/a/{i:02}-bad.png": data for i, (data, _) in enumerate(bad_images(images).values())}
    source = ImageFolder(path=write(tmp_path / kind, {**files, **bad}), on_bad_image="skip", labels=True)
    assert (source.n_rows(), source.schema()["image"].shape) == (12 + len(bad), (5, 7))
    with pytest.warns(
        UserWarning, match=rf"image_folder skipped unusable ones of {12 + len(bad)} images \({len(bad)}\):"
    ) as caught:
        rows = read_all(source)
    message = str(caught[0].message)
    assert (len(caught), message.count("-bad.png"), message.count("00-bad.png")) == (1, 3, 1)
    assert len(message) < 900
    whole = read_all(ImageFolder(path=write(tmp_path / f"good{kind}", files), labels=True))
    for name in ("image", "label"):
        assert np.array_equal(rows[name], whole[name])
    with pytest.warns(UserWarning, match="skipped"):
        drawn = source.draw(0, 12, CTX)["image"]
    assert np.array_equal(np.sort(drawn.reshape(12, -1), 0), np.sort(rows["image"].reshape(12, -1), 0))
    with pytest.raises(DataError, match="it has 12 that can be used"):
        source.draw(0, 13, CTX)


def test_the_first_image_is_checked_before_any_work(tmp_path, files):
    for data, sentence in ((b"text", "set/a/00"), (huge_png(10_000, 10_000), "10000 x 10000 pixels")):
        path = write(tmp_path / "p", {**files, "set/a/00.png": data})
        with pytest.raises(DataError, match=sentence):
            ImageFolder(path=path, size=8, color_mode="rgb").schema()
        assert ImageFolder(path=path, on_bad_image="skip").schema()["image"].shape == (5, 7)
    with pytest.raises(DataError, match="none of 1 images can be used"):
        ImageFolder(path=write(tmp_path / "q", {"x.png": b""}), on_bad_image="skip").schema()


def test_a_changed_folder_is_read_again(tmp_path, files):
    source = ImageFolder(path=write(tmp_path / "p", files))
    assert (source.n_rows(), source.schema()["image"].shape) == (12, (5, 7))
    write(tmp_path / "p", {"a.png": encode(np.zeros((3, 3), np.uint8))})
    assert (source.n_rows(), source.schema()["image"].shape) == (13, (3, 3))


def test_an_image_added_to_a_folder_gets_a_label(tmp_path, files):
    source = ImageFolder(path=write(tmp_path / "p", files), labels=True)
    assert read_all(source)["label"].tolist() == [0] * 6 + [1] * 6
    write(tmp_path / "p", {"set/z/z.png": files["set/a/01.png"]})
    assert read_all(source)["label"].tolist() == [0] * 6 + [1] * 6 + [2]


def test_damaged_and_encrypted_zip_files_are_errors(tmp_path, files):
    whole = write(tmp_path / "whole.zip", files).read_bytes()
    for name, data in (("torn", whole[:-50]), ("words", b"no archive"), ("empty", b""), ("cut", whole[len(whole) // 2 :])):
        (tmp_path / f"{name}.zip").write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}\.zip"):
            read_all(ImageFolder(path=tmp_path / f"{name}.zip"))
    locked = bytearray(whole)
    for begin, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = locked.index(begin)
        locked[at + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match="is encrypted"):
        ImageFolder(path=tmp_path / "locked.zip").n_rows()


def test_a_damaged_member_of_a_zip_file_is_an_error_even_if_its_image_can_be_decoded(tmp_path):
    data = encode(np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((9, 9), np.uint8)), "JPEG")
    path = write(tmp_path / "p.zip", {"a.jpg": data, "b.jpg": data})
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(data) + len(data) - 40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"p\.zip/b\.jpg: is damaged in the ZIP file \(Bad CRC"):
        read_all(ImageFolder(path=path))
    with pytest.warns(UserWarning, match=r"unusable ones of 2 images \(1\)"):
        assert count_rows(read_all(ImageFolder(path=path, on_bad_image="skip"))) == 1


def test_a_file_larger_than_any_image_is_not_read(tmp_path, files, monkeypatch):
    monkeypatch.setattr(image_source, "MAX_FILE_BYTES", 10_000)
    for kind in ("p.zip", "p"):
        path = write(tmp_path / kind, {**files, "z.png": bytes(20_000)})
        with pytest.raises(DataError, match=r"z\.png: .*10000"):
            read_all(ImageFolder(path=path))


def test_paths_without_images_are_errors(tmp_path):
    (tmp_path / "note.txt").write_text("text")
    empty = write(tmp_path / "p.zip", {"note.txt": b"text"})
    for path in (tmp_path, empty):
        with pytest.raises(DataError, match=r"has no images; it has .*\(1\)\. "):
            ImageFolder(path=path).n_rows()
    with pytest.raises(DataError, match="nowhere does not exist"):
        ImageFolder(path=tmp_path / "nowhere").n_rows()
    with pytest.raises(DataError, match="is not a complete ZIP file"):
        ImageFolder(path=tmp_path / "note.txt").n_rows()


def test_a_spec_without_n_takes_all_usable_images(tmp_path, images, files):
    bad = {f"set/bad{i:02}.png": data for i, (data, _) in enumerate(bad_images(images).values())}
    source = ImageFolder(path=write(tmp_path / "p", {**files, **bad}), on_bad_image="skip")
    (point,) = Spec(source=source, family="vae", policies=["replace"], holdout=2).points()
    assert (point.n, source.n_rows(), source.n_usable_rows()) == (10, 12 + len(bad), 12)


# through the command line

SPEC = """n = 6
holdout = 2
generations = 2
seeds = 2
policies = ["replace", "accumulate"]
[source]
name = "image_folder"
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


def test_a_run_reads_images_once_for_all_seeds_and_policies(tmp_path, files):
    done = command(tmp_path, write(tmp_path / "p.zip", files), "-q", "--json", tmp_path / "rows")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert {line["seed"] for line in lines if "verdict" not in line} == {0, 1}
    records = [json.loads(path.read_bytes()) for path in (tmp_path / "store" / "records").rglob("*.json")]
    assert sum(record["body"]["provenance"]["step"].endswith(".read_corpus@1") for record in records) == 1


def test_a_run_on_bad_images_ends_with_one_sentence(tmp_path, images, files):
    bad = bad_images(images)
    for i, (name, (data, sentence)) in enumerate((name, bad[name]) for name in ("torn JPEG", "color", "bomb")):
        done = command(tmp_path, write(tmp_path / f"{i}.zip", {**files, "set/z.png": data}))
        assert (done.code, sentence in " ".join(done.err.split())) == (2, True), (name, done.err)
        assert "Traceback" not in done.err
    done = command(tmp_path, write(tmp_path / "none.zip", {}))
    assert (done.code, "has no images" in " ".join(done.err.split())) == (2, True)


def test_a_run_skips_bad_images_if_asked(tmp_path, images, files):
    bad = {f"set/bad{i:02}.png": data for i, (data, _) in enumerate(bad_images(images).values())}
    with warnings.catch_warnings(action="always"):
        done = command(tmp_path, write(tmp_path / "p.zip", {**files, **bad}), "--set", "source.on_bad_image=skip")
    assert done.code == 0, done.err
    assert "selfloop: source: image_folder skipped" in done.err


# real images


@needs("cifar10/cifar10_test_jpg.zip")
def test_real_images_of_ten_classes_are_read(monkeypatch):
    monkeypatch.setattr(image_source, "CHUNK_BYTES", 1 << 17)
    source = ImageFolder(path=DATA / "cifar10" / "cifar10_test_jpg.zip", labels=True)
    chunk = next(source.chunks())
    assert (source.n_rows(), chunk["image"].shape[1:]) == (10_000, (32, 32, 3))
    assert np.bincount(source.label_columns()["label"]).tolist() == [1000] * 10


@needs("fer2013/fer2013_train5000_48x48.zip")
def test_real_grayscale_images_are_read(monkeypatch):
    monkeypatch.setattr(image_source, "CHUNK_BYTES", 1 << 17)
    source = ImageFolder(path=DATA / "fer2013" / "fer2013_train5000_48x48.zip", labels=True)
    chunk = next(source.chunks())
    assert (source.n_rows(), chunk["image"].shape[1:], source.label_columns()["label"].max()) == (5000, (48, 48), 6)
