"""Encoded images (PNG, JPEG) as arrays of one shape. Headers are checked before pixels are decoded, on all cores."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Interval

from selfloop.columns import Array, Columns, ColumnType, count_rows, select_rows
from selfloop.errors import DataError, first_line, os_error_reason
from selfloop.sources.files import CHUNK_BYTES, GIT_LFS, FileSource, cached_until_change, refuse_content, warn_of_unread

MAX_PIXELS = 1 << 26  # of an image that is decoded: 8,192 x 8,192
MAX_FILE_BYTES = 4 * MAX_PIXELS  # of an encoded image: the size of its pixels without compression
MAX_SIDE = 4096  # pixels of `size`
MIN_CHUNK_IMAGES = 8  # in a chunk of large images too, so that all cores have work
PIXEL_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}  # Pillow's; it would clip other modes
# what Pillow raises for damaged files
DECODE_ERRORS = (OSError, SyntaxError, ValueError, zlib.error, struct.error, KeyError, IndexError, TypeError)
EXIF_ORIENTATION = 274  # tag of the camera's orientation
EXIF_TRANSPOSES = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
                   7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
ImageSize = Annotated[int, Interval(ge=1, le=MAX_SIDE)]
ColorMode = Literal["grayscale", "rgb"]
OnBadImage = Annotated[Literal["error", "skip"], "action for images that are damaged, too large or unlike the first image"]
ImageReader = Callable[[int], tuple[str, bytes]]  # name and bytes of image i


class FirstImage(NamedTuple):
    """Name of the first usable image and the shape of its pixels, which all images must have."""

    name: str
    shape: tuple[int, ...]


class ImageForm(NamedTuple):
    """Size and color mode that images are converted to; None keeps those of the image."""

    size: int | None = None  # pixels
    color_mode: ColorMode | None = None
    crop_width: float = math.inf  # side of the central square, in widths of the image; limited to the largest square

    def shape(self, image: Any) -> tuple[int, ...]:
        """Shape of the converted pixels of an opened image."""
        height, width = image.size if _orientation(image) >= 5 else image.size[::-1]
        sides = (self.size, self.size) if self.size else (height, width)
        return (*sides, 3) if self._pixel_mode(image) == "RGB" else sides

    def _pixel_mode(self, image: Any) -> str:
        return {None: PIXEL_MODES[image.mode], "grayscale": "L", "rgb": "RGB"}[self.color_mode]

    def decode(self, image: Any) -> Array:
        """Converted pixels of an opened image, upright and without transparency. Raises DECODE_ERRORS for a damaged image."""
        from PIL import Image

        transpose, mode = EXIF_TRANSPOSES.get(_orientation(image)), self._pixel_mode(image)
        image.load()
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        image = image.convert(mode)
        if transpose is not None:
            image = image.transpose(Image.Transpose[transpose])
        if self.size is not None:
            width, height = image.size
            side = max(1, round(min(self.crop_width * width, width, height)))
            left, top = (width - side) // 2, (height - side) // 2
            # cropped first, because a resize of a box also reads pixels outside the box
            square = image.crop((left, top, left + side, top + side))
            image = square.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image)


def _orientation(image: Any) -> int:
    """Orientation of the camera (Exif 2.3): 1 is upright, 5 to 8 are on a side."""
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except DECODE_ERRORS:  # unreadable notes do not damage the image
        return 1


def read_image(file: Path) -> bytes:
    """The bytes of an encoded image. Raises DataError if it cannot be read or is too large."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file}: is not a file of at most {MAX_FILE_BYTES} bytes.")
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file}: cannot be read ({os_error_reason(problem)}).") from problem


def open_image(name: str, data: bytes) -> Any:
    """An image of which only the header was read. Raises DataError if it cannot be used."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # by content, whatever the name; Pillow's other formats are not opened
    formats = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile}
    image_format = next((image_format for begin, image_format in formats.items() if data.startswith(begin)), None)
    if image_format is None:
        if data.startswith(GIT_LFS):
            refuse_content(Path(name), data)
        raise DataError(f"{name}: is not a PNG or JPEG image (it begins with {data[:4].hex(' ') or 'nothing'}).")
    with _decoding(name):
        image = image_format(BytesIO(data))
    if math.prod(image.size) > MAX_PIXELS:
        raise DataError(f"{name}: has {image.width} x {image.height} pixels; expected at most {MAX_PIXELS} pixels in total.")
    if image.mode not in PIXEL_MODES:
        raise DataError(f"{name}: has pixel mode {image.mode}; expected an 8-bit grayscale or RGB image.")
    if b"eXIf" in data and "exif" not in image.info:  # the orientation of a PNG file may stand after its pixels
        with _decoding(name):
            image.load()
    return image


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Raises DataError if Pillow cannot decode an image in the `with` block."""
    try:
        yield
    except DECODE_ERRORS as problem:
        raise DataError(f"{name}: is not a readable image ({first_line(problem)}).") from problem


class EncodedImageSource(FileSource):
    """A source of encoded images in order of their names. Bad images are an error, or are skipped with a warning."""

    on_bad_image: OnBadImage

    @abstractmethod
    def form(self) -> ImageForm:
        """Size and color mode that images are converted to."""

    @abstractmethod
    def open_reader(self) -> AbstractContextManager[ImageReader]:
        """Access to the encoded images. Raises DataError for an image that cannot be read."""

    def label_columns(self) -> Mapping[str, Array]:
        """Columns besides the images, with one row per image."""
        return {}

    def schema(self) -> Mapping[str, ColumnType]:
        labels = {name: ColumnType(str(column.dtype), column.shape[1:]) for name, column in _label_columns(self).items()}
        return {"image": ColumnType("uint8", _first_image(self).shape, "gray level"), **labels}

    def n_corpus_rows(self) -> int:
        return self.n_rows() if self.on_bad_image == "error" else _count_usable(self)

    def n_usable_rows(self) -> int:
        return self.n_corpus_rows()

    def chunks(self) -> Iterator[Columns]:
        first, labels, skipped = _first_image(self), _label_columns(self), list[str]()
        chunk_rows = max(MIN_CHUNK_IMAGES, CHUNK_BYTES // math.prod(first.shape))
        n_images = self.n_rows()
        with self.open_reader() as read, ThreadPoolExecutor() as pool:
            decode = partial(self._decode_into, first, read, Lock())
            for start in range(0, n_images, chunk_rows):
                indices = np.arange(start, min(start + chunk_rows, n_images))
                images = np.empty((len(indices), *first.shape), np.uint8)
                with warnings.catch_warnings(action="ignore"):  # Pillow's, about metadata
                    problems = list(pool.map(decode, indices.tolist(), images))
                skipped += filter(None, problems)
                good = np.flatnonzero([problem is None for problem in problems])
                yield {"image": images[good], **select_rows(labels, indices[good])}
        examples = f": {' '.join(skipped[:3])}" if skipped else ""
        warn_of_unread(self, {**self.unread_files(), f"unusable ones of {n_images} images": len(skipped)}, examples)

    def _decode_into(self, first: FirstImage, read: ImageReader, lock: Lock, index: int, row: Array) -> str | None:
        """Write the pixels of an image into a row; the reason if the image is skipped."""
        try:
            with lock:
                name, data = read(index)
            row[...] = self._decode(name, data, first)
        except DataError as problem:
            if self.on_bad_image == "error":
                raise _bad_image_error(problem) from problem
            return str(problem)
        return None

    def _decode(self, name: str, data: bytes, first: FirstImage) -> Array:
        image, form = open_image(name, data), self.form()
        shape = form.shape(image)
        if shape != first.shape:
            resize = ["source.size to resize all images"] if shape[:2] != first.shape[:2] else []
            convert = ["source.color_mode to convert all images"] if shape[2:] != first.shape[2:] else []
            advice = f" Set {' and '.join(resize + convert)}." if self.on_bad_image == "error" else ""
            raise DataError(f"{name}: is {_describe(shape)}; {first.name} is {_describe(first.shape)}.{advice}")
        with _decoding(name):
            return form.decode(image)


@dataclass(frozen=True, kw_only=True)
class ConvertedImageSource(EncodedImageSource):
    """Encoded images of one size and color mode, or converted to one."""

    version: ClassVar[int] = 2  # images in linked folders and with other endings are not lost

    size: Annotated[ImageSize | None, "side of the square images in pixels; unset: the size of the images"] = None
    color_mode: Annotated[ColorMode | None, "color mode of the converted images; unset: the color mode of the images"] = None
    on_bad_image: OnBadImage = "error"

    def form(self) -> ImageForm:
        return ImageForm(self.size, self.color_mode)


def _describe(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'RGB' if len(shape) == 3 else 'grayscale'}"


def _bad_image_error(problem: DataError) -> DataError:
    return DataError(f"{problem} Replace or remove the image, or set source.on_bad_image = 'skip' to skip such images.")


@cached_until_change()
def _label_columns(source: EncodedImageSource) -> Mapping[str, Array]:
    return source.label_columns()


@cached_until_change(maxsize=16)
def _count_usable(source: EncodedImageSource) -> int:
    with warnings.catch_warnings(action="ignore"):  # the reading itself reports the skipped ones
        return sum(map(count_rows, source.chunks()))


@cached_until_change(maxsize=16)
def _first_image(source: EncodedImageSource) -> FirstImage:
    """The first image whose header is usable."""
    first_problem = None
    with source.open_reader() as read, warnings.catch_warnings(action="ignore"):  # Pillow's, about metadata
        for index in range(source.n_rows()):
            try:
                name, data = read(index)
                return FirstImage(name, source.form().shape(open_image(name, data)))
            except DataError as problem:
                if source.on_bad_image == "error":
                    raise _bad_image_error(problem) from problem
                first_problem = first_problem or problem
    raise DataError(f"source.path: none of {source.n_rows()} images can be used. {first_problem} Check the path.")
