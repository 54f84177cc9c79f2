"""Images in folders and ZIP files. ZIP files are never unpacked to disk."""

from __future__ import annotations

import os
import struct
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, ClassVar
from zipfile import BadZipFile, ZipFile

import numpy as np

from selfloop.columns import Array
from selfloop.errors import DataError, os_error_reason
from selfloop.sources.files import READ_ERRORS, cached_until_change
from selfloop.sources.image_base import MAX_FILE_BYTES, ConvertedImageSource, EncodedImageSource, ImageReader

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
ZIP_ERRORS = (*READ_ERRORS, BadZipFile, RuntimeError, ValueError, struct.error)  # RuntimeError: encrypted, or unknown method
ENCRYPTED_FLAG = 0x1  # of a member of a ZIP file


def list_images(path: Path) -> tuple[str, ...]:
    """Sorted names of the images in a ZIP file or below a folder, relative to it, with slashes; hidden files are skipped.

    Raises DataError if there is none, and for a ZIP file that cannot be trusted.
    """
    names = _list_folder(path) if path.is_dir() else _list_zip(path)
    if not names:
        raise DataError(f"source.path: {path} has no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return names


def _sort_images(names: Iterable[str]) -> tuple[str, ...]:
    split = (name.split("/") for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    return tuple("/".join(parts) for parts in sorted(split) if not any(p.startswith((".", "__MACOSX")) for p in parts))


def _list_folder(folder: Path) -> tuple[str, ...]:
    def fail(problem: OSError) -> None:
        raise DataError(f"source.path: {problem.filename} cannot be read ({os_error_reason(problem)}). Check it.") from problem

    names = list[str]()
    for subfolder, _, files in os.walk(folder, onerror=fail):
        prefix = Path(subfolder).relative_to(folder).as_posix()
        names += files if prefix == "." else [f"{prefix}/{file}" for file in files]
    return _sort_images(names)


@cached_until_change()  # the index of a ZIP file is long
def _list_zip(path: Path) -> tuple[str, ...]:
    with _open_zip(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
                raise DataError(f"source.path: {path} has a file named {name!r}, which points outside. Do not use this file.")
            if member.flag_bits & ENCRYPTED_FLAG:
                raise DataError(f"source.path: {path} is encrypted ({name}). Unpack it and give the folder.")
        return _sort_images(set(archive.namelist()))


def _open_zip(path: Path) -> ZipFile:
    try:
        return ZipFile(path)
    except ZIP_ERRORS as problem:
        raise DataError(
            f"source.path: {path} is not a complete ZIP file ({problem}). Give a folder or a ZIP file."
        ) from problem


def _read_file(file: Path) -> bytes:
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file}: is not a file of at most {MAX_FILE_BYTES} bytes.")
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file}: cannot be read ({os_error_reason(problem)}).") from problem


def _read_member(archive: ZipFile, path: Path, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path / name}: has {size} bytes when unpacked; expected at most {MAX_FILE_BYTES}.")
    try:
        return archive.read(name)
    except ZIP_ERRORS as problem:
        raise DataError(f"{path / name}: is damaged in the ZIP file ({problem}).") from problem


@dataclass(frozen=True, kw_only=True)
class ImageFileSource(EncodedImageSource):
    """A source of image files below a folder or in a ZIP file."""

    path: Annotated[Path, "folder or ZIP file"]

    def names(self) -> tuple[str, ...]:
        """Sorted names of the images, relative to `path`."""
        return list_images(self.path)

    def n_rows(self) -> int:
        return len(self.names())

    def files(self) -> list[Path]:
        """The ZIP file, or the first image of the folder, which decides the shape of all images."""
        return [self.path / self.names()[0] if self.path.is_dir() else self.path]

    def stamp(self) -> Hashable:
        return hash(self.names()), super().stamp()  # an image more in a folder changes the labels

    @contextmanager
    def open_reader(self) -> Iterator[ImageReader]:
        path, names = self.path, self.names()
        if path.is_dir():
            yield lambda i: (str(path / names[i]), _read_file(path / names[i]))
        else:
            with _open_zip(path) as archive:
                yield lambda i: (str(path / names[i]), _read_member(archive, path, names[i]))


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
