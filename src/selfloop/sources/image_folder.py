"""Images in folders and ZIP files. ZIP files are never unpacked to disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, NamedTuple
from zipfile import ZipFile

import numpy as np

from selfloop.columns import Array
from selfloop.errors import DataError, first_line
from selfloop.formats.folders import list_folder
from selfloop.sources.archives import ZIP_ERRORS, is_hidden, open_zip
from selfloop.sources.files import HIDDEN_FILES, cached_until_change, describe_counts
from selfloop.sources.image_base import MAX_FILE_BYTES, ConvertedImageSource, EncodedImageSource, ImageReader, read_image

# endings of images; those of other formats than PNG and JPEG are listed, so that the images are refused and not lost
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm",
                  ".ppm", ".tif", ".tiff", ".webp")  # fmt: skip


class ImageListing(NamedTuple):
    """Names of the images of a folder or ZIP file, as stored in it, and the number of other files by reason."""

    images: Mapping[str, str]  # sorted names with slashes, relative to the folder, and names as stored
    unread: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str], n_hidden: int = 0) -> ImageListing:
        """The listing of stored names."""
        images, unread = dict[str, str](), Counter[str]({HIDDEN_FILES: n_hidden})
        for stored in names:
            name = stored.replace("\\", "/")  # as some programs write into ZIP files
            if name.endswith("/"):
                continue
            if is_hidden(name):
                unread[HIDDEN_FILES] += 1
            elif name.lower().endswith(IMAGE_SUFFIXES):
                images[name] = stored
            else:
                unread[f"files ending in {PurePosixPath(name).suffix or 'no suffix'}"] += 1
        return cls({name: images[name] for name in sorted(images, key=lambda name: name.split("/"))}, unread)


def list_images(path: Path) -> ImageListing:
    """The images in a ZIP file or below a folder. Raises DataError without one, and for a ZIP file that cannot be trusted."""
    if path.is_dir():
        files = list_folder(path)
        listing = ImageListing.of(files.sizes, files.n_hidden)
    else:
        listing = _list_zip(path)
    if not listing.images:
        advice = "Unpack its archives and give the folder" if "files ending in .zip" in listing.unread else "Check the path"
        others = describe_counts(listing.unread) or "nothing else"
        raise DataError(f"source.path: {path} has no images; it has {others}. {advice}.")
    return listing


@cached_until_change()  # the index of a ZIP file is long
def _list_zip(path: Path) -> ImageListing:
    with open_zip(path) as archive:
        return ImageListing.of(dict.fromkeys(archive.namelist()))


def _read_member(archive: ZipFile, file: Path, stored: str) -> bytes:
    size = archive.getinfo(stored).file_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"{file}: has {size} bytes when unpacked; expected at most {MAX_FILE_BYTES}.")
    try:
        return archive.read(stored)
    except ZIP_ERRORS as problem:
        raise DataError(f"{file}: is damaged in the ZIP file ({first_line(problem)}).") from problem


@dataclass(frozen=True, kw_only=True)
class ImageFileSource(EncodedImageSource):
    """A source of image files below a folder or in a ZIP file."""

    path: Annotated[Path, "folder or ZIP file"]

    def names(self) -> tuple[str, ...]:
        """Sorted names of the images, relative to `path`."""
        return tuple(list_images(self.path).images)

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
            yield lambda i: (str(path / names[i]), read_image(path / names[i]))
        else:
            stored = list_images(path).images
            with open_zip(path) as archive:
                yield lambda i: (str(path / names[i]), _read_member(archive, path / names[i], stored[names[i]]))


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ConvertedImageSource, ImageFileSource):
    """PNG and JPEG images below a folder or in a ZIP file, in order of their names.

    With `size`, each image is cropped to its central square and resized (bicubic). Images are rotated upright by their Exif
    orientation. Transparency is dropped. 16-bit and CMYK images cannot be used.
    """

    name: ClassVar[str] = "image_folder"
    labels: Annotated[bool, "add a column with the class label: the index of the image's folder in the sorted folders"] = False

    def classes(self) -> list[str]:
        """Name of each class; the index is its class label."""
        return sorted(set(self._folders()))

    def _folders(self) -> list[str]:
        names = self.names()
        folders = [PurePosixPath(name).parent.name for name in names]
        if "" in folders:
            raise DataError(
                f"source.labels: {names[folders.index('')]} is not in a subfolder of {self.path}, so it has no class. Put the "
                "images of each class into a folder, or remove labels."
            )
        return folders

    def label_columns(self) -> Mapping[str, Array]:
        if not self.labels:
            return {}
        classes, numbers = np.unique(self._folders(), return_inverse=True)
        return {"label": numbers.astype(np.min_scalar_type(len(classes) - 1))}
