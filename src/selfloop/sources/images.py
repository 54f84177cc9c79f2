"""PNG and JPEG images as arrays of one shape, decoded on all cores: those of a folder or of a ZIP file, which stays packed."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Interval

from selfloop.columns import Array, Columns, ColumnType, count_rows, select_rows
from selfloop.errors import DataError, first_line, os_error_reason
from selfloop.formats.folders import Listing, PointerError, list_folder, refuse_pointer
from selfloop.sources import files as source_files
from selfloop.sources.files import CHUNK_BYTES, FileSource, cached_until_change

MAX_PIXELS = 1 << 26  # of an image that is decoded: 8,192 x 8,192
MAX_FILE_BYTES = 4 * MAX_PIXELS  # of an encoded image: the size of its pixels without compression
MAX_SIDE = 4096  # pixels of `size`
MIN_CHUNK_IMAGES = 8  # in a chunk of large images too, so that all cores have work
PIXEL_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}  # Pillow's; it would clip other modes
# what Pillow raises for damaged files
DECODE_ERRORS = (OSError, SyntaxError, ValueError, zlib.error, struct.error, KeyError, IndexError, TypeError)
# endings of images; those of other formats than PNG and JPEG are listed, so that the images are refused and not lost
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm",
                  ".ppm", ".tif", ".tiff", ".webp")  # fmt: skip
ImageSize = Annotated[int, Interval(ge=1, le=MAX_SIDE)]
ColorMode = Literal["grayscale", "rgb"]
OnBadImage = Annotated[Literal["error", "skip"], "action for images that are damaged, too large or unlike the first image"]
ImageReader = Callable[[int], tuple[str, bytes]]  # name and bytes of image i


class ImageForm(NamedTuple):
    """Size and color mode that images are converted to; None keeps those of the image."""

    size: int | None = None  # pixels
    color_mode: ColorMode | None = None
    crop_width: float = math.inf  # side of the central square, in widths of the image; limited to the largest square

    def decode(self, image: Any) -> Array:
        """Converted pixels of an opened image, upright and without transparency. Raises DECODE_ERRORS for a damaged image."""
        from PIL import Image, ImageOps

        image.load()  # the orientation of a PNG file may stand after its pixels
        if "exif" in image.info:
            with suppress(*DECODE_ERRORS):  # unreadable notes do not damage the image
                ImageOps.exif_transpose(image, in_place=True)
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        image = image.convert({None: PIXEL_MODES[image.mode], "grayscale": "L", "rgb": "RGB"}[self.color_mode])
        if self.size is not None:
            width, height = image.size
            side = max(1, round(min(self.crop_width * width, width, height)))
            left, top = (width - side) // 2, (height - side) // 2
            # cropped first, because a resize of a box also reads pixels outside the box
            square = image.crop((left, top, left + side, top + side))
            image = square.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image)


def read_image(file: Path) -> bytes:
    """The bytes of an encoded image. Raises DataError if it cannot be read or is too large."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file}: is not a file of at most {MAX_FILE_BYTES} bytes.")
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file}: cannot be read ({os_error_reason(problem)}).") from problem


def decode_image(name: str, data: bytes, form: ImageForm) -> Array:
    """The converted pixels of an encoded image. Raises DataError, before pixels are decoded, for one that is too large."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # by content, whatever the name; Pillow's other formats are not opened
    formats = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile}
    image_format = next((image_format for begin, image_format in formats.items() if data.startswith(begin)), None)
    if image_format is None:
        refuse_pointer(f"{name}:", data)
        begin = f"begins with {data[:4].hex(' ')}" if data else "is empty"
        raise DataError(f"{name}: is not a PNG or JPEG image (it {begin}).")
    try:
        image: Any = image_format(BytesIO(data))
        if math.prod(image.size) > MAX_PIXELS:
            raise DataError(f"{name}: has {image.width} x {image.height} pixels; expected at most {MAX_PIXELS} in total.")
        if (n := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"{name}: is an animation of {n} images; expected one image.")
        if image.mode not in PIXEL_MODES:
            raise DataError(f"{name}: has pixel mode {image.mode}; expected an 8-bit grayscale or RGB image.")
        return form.decode(image)
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
        labels = {name: ColumnType(str(column.dtype), column.shape[1:]) for name, column in self.label_columns().items()}
        return {"image": ColumnType("uint8", self.first_shape(), "gray level"), **labels}

    @cached_until_change(maxsize=16)
    def n_usable_rows(self) -> int:
        with warnings.catch_warnings(action="ignore"):  # the reading itself reports the skipped ones
            return self.n_rows() if self.on_bad_image == "error" else sum(map(count_rows, self.chunks()))

    @cached_until_change(maxsize=16)
    def first_shape(self) -> tuple[int, ...]:
        """Shape of the first usable image, which all must have. Raises DataError if it cannot be used, or if none can."""
        problems, lock = list[str](), Lock()
        with self.open_reader() as read, warnings.catch_warnings(action="ignore"):  # Pillow's, about metadata
            for index in range(self.n_rows()):
                problem, pixels = self._read_pixels(read, lock, index)
                if pixels is not None:
                    return pixels.shape
                problems.append(problem)
        raise DataError(f"source.path: none of {len(problems)} images can be used. {problems[0]} Check the path.")

    def chunks(self) -> Iterator[Columns]:
        shape, labels, skipped, lock = self.first_shape(), self.label_columns(), list[str](), Lock()
        chunk_rows = max(MIN_CHUNK_IMAGES, CHUNK_BYTES // math.prod(shape))
        n_images = self.n_rows()
        with self.open_reader() as read, ThreadPoolExecutor() as pool:
            for start in range(0, n_images, chunk_rows):
                indices = np.arange(start, min(start + chunk_rows, n_images))
                with warnings.catch_warnings(action="ignore"):  # Pillow's, about metadata
                    results = list(pool.map(lambda index: self._read_pixels(read, lock, index, shape), indices.tolist()))
                skipped += [problem for problem, pixels in results if pixels is None]
                images = [pixels for _, pixels in results if pixels is not None]
                good = indices[[pixels is not None for _, pixels in results]]
                yield {"image": np.array(images, np.uint8).reshape(-1, *shape), **select_rows(labels, good)}
        examples = f": {' '.join(skipped[:3])}" if skipped else ""
        source_files.warn_of_unread(
            self, {**self.unread_files(), f"unusable ones of {n_images} images": len(skipped)}, examples
        )

    def _read_pixels(self, read: ImageReader, lock: Lock, index: int, shape: tuple[int, ...] = ()) -> tuple[str, Array | None]:
        """Pixels of an image, of that shape; the reason and None if it is skipped."""
        try:
            with lock:
                name, data = read(index)
            pixels = decode_image(name, data, self.form())
            if shape and pixels.shape != shape:
                key = "source.size" if pixels.shape[:2] != shape[:2] else "source.color_mode"
                raise DataError(f"{name}: is {_describe(pixels.shape)}; the first is {_describe(shape)}. Set {key}.")
        except PointerError:
            raise
        except DataError as problem:
            if self.on_bad_image == "error":
                raise DataError(f"{problem} Or replace or remove the image, or set source.on_bad_image = 'skip'.") from problem
            return str(problem), None
        return "", pixels


def _describe(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'RGB' if len(shape) == 3 else 'grayscale'}"


@dataclass(frozen=True, kw_only=True)
class ConvertedImageSource(EncodedImageSource):
    """Encoded images of one size and color mode, or converted to one."""

    version: ClassVar[int] = 2  # images in linked folders and with other endings are not lost

    size: Annotated[ImageSize | None, "side of the square images in pixels; unset: the size of the images"] = None
    color_mode: Annotated[ColorMode | None, "color mode of the converted images; unset: the color mode of the images"] = None
    on_bad_image: OnBadImage = "error"

    def form(self) -> ImageForm:
        return ImageForm(self.size, self.color_mode)


class ImageListing(NamedTuple):
    """Sorted names of the images of a folder or ZIP file, relative to it, and the number of other files by reason."""

    images: tuple[str, ...]
    unread: Mapping[str, int]

    @classmethod
    def of(cls, files: Listing) -> ImageListing:
        images, unread = list[str](), Counter[str](source_files.count_unlisted(files))
        for name in files.sizes:
            if name.lower().endswith(IMAGE_SUFFIXES):
                images.append(name)
            else:
                unread[f"files ending in {PurePosixPath(name).suffix or 'no suffix'}"] += 1
        return cls(tuple(sorted(images, key=lambda name: name.split("/"))), unread)


@cached_until_change()  # the index of a ZIP file is long
def _list_zip_images(path: Path) -> ImageListing:
    return ImageListing.of(source_files.list_zip(path))


def list_images(path: Path) -> ImageListing:
    """The images in a ZIP file or below a folder. Raises DataError without one, and for a ZIP file that cannot be trusted."""
    listing = ImageListing.of(list_folder(path)) if path.is_dir() else _list_zip_images(path)
    if not listing.images:
        advice = "Unpack its archives and give the folder" if "files ending in .zip" in listing.unread else "Check the path"
        others = f"; it has {counts}" if (counts := source_files.describe_counts(listing.unread)) else ""
        raise DataError(f"source.path: {path} has no images{others}. {advice}.")
    return listing


@dataclass(frozen=True, kw_only=True)
class ImageFileSource(EncodedImageSource):
    """A source of image files below a folder or in a ZIP file."""

    path: Annotated[Path, "folder or ZIP file"]

    def names(self) -> tuple[str, ...]:
        return list_images(self.path).images

    def n_rows(self) -> int:
        return len(self.names())

    def unread_files(self) -> Mapping[str, int]:
        return list_images(self.path).unread

    def files(self) -> list[Path]:
        """The ZIP file, or the first image of the folder, which decides the shape of all images."""
        return [self.path / self.names()[0] if self.path.is_dir() else self.path]

    def stamp(self) -> Hashable:
        return hash(self.names()), super().stamp()  # an image more in a folder changes the labels

    @contextmanager
    def open_reader(self) -> Iterator[ImageReader]:
        path, names = self.path, self.names()
        if path.is_dir():
            yield lambda index: (str(path / names[index]), read_image(path / names[index]))
            return
        with source_files.open_zip(path) as (archive, members):

            def read(index: int) -> tuple[str, bytes]:
                file, member = path / names[index], members[names[index]]
                if member.file_size > MAX_FILE_BYTES:
                    raise DataError(f"{file}: has {member.file_size} bytes when unpacked; expected at most {MAX_FILE_BYTES}.")
                try:
                    return str(file), archive.read(member)
                except source_files.PARSE_ERRORS as problem:
                    raise DataError(f"{file}: is damaged in the ZIP file ({first_line(problem)}).") from problem

            yield read


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ConvertedImageSource, ImageFileSource):
    """PNG and JPEG images below a folder or in a ZIP file, in order of their names.

    With `size`, each image is cropped to its central square and resized (bicubic). Images are rotated upright by their Exif
    orientation. Transparency is dropped. 16-bit and CMYK images cannot be used.
    """

    name: ClassVar[str] = "image_folder"
    labels: Annotated[bool, "add a column with the class label: the index of the image's folder in the sorted folders"] = False

    def label_columns(self) -> Mapping[str, Array]:
        if not self.labels:
            return {}
        names = self.names()
        folders = [PurePosixPath(name).parent.name for name in names]
        if "" in folders:
            raise DataError(f"source.labels: {names[folders.index('')]} is not in a subfolder. Move it into one.")
        classes, numbers = np.unique(folders, return_inverse=True)
        return {"label": numbers.astype(np.min_scalar_type(len(classes) - 1))}
