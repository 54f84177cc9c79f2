"""Pictures in folders and ZIP files, which are read where they are and never unpacked: any pictures, and CelebA's faces."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ClassVar, Literal, cast
from zipfile import BadZipFile, ZipFile

import numpy as np

from selfloop.errors import DataError, SpecError, unknown_name
from selfloop.sources.decoding import LARGEST_BYTES, Colour, Damaged, Form, Pictures, Reading
from selfloop.sources.images import UNREADABLE, label_type, stamp_of
from selfloop.types import Columns, ColumnType

ENDINGS = (".png", ".jpg", ".jpeg")
BAD_ZIP = (*UNREADABLE, BadZipFile, RuntimeError, ValueError, struct.error)  # RuntimeError: encrypted, or an unknown method
ENCRYPTED = 0x1  # bit of a member's flags


def names_of(path: Path) -> tuple[str, ...]:
    """Names of the pictures in a folder and everything below, or in a ZIP file; sorted, relative to it, with slashes.

    What is hidden is left out. DataError when there is none, and for a ZIP file that cannot be trusted.
    """
    names = _below(path) if path.is_dir() else _inside(path, *stamp_of(path))
    if not names:
        raise DataError(f"source.path: {path} holds no pictures. Expected files ending in {', '.join(ENDINGS)}.")
    return names


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    split = (name.split("/") for name in names if name.lower().endswith(ENDINGS))
    return tuple("/".join(parts) for parts in sorted(split) if not any(p.startswith((".", "__MACOSX")) for p in parts))


def _below(folder: Path) -> tuple[str, ...]:
    def fail(problem: OSError) -> None:
        raise DataError(f"source.path: {problem.filename} cannot be read ({problem.strerror}). Check it.") from problem

    found = list[str]()
    for here, _, files in os.walk(folder, onerror=fail):
        inner = Path(here).relative_to(folder).as_posix()
        found += files if inner == "." else [f"{inner}/{file}" for file in files]
    return _sorted(found)


@lru_cache(maxsize=4)  # a ZIP file's list of contents is long
def _inside(path: Path, *stamp: int) -> tuple[str, ...]:
    with _zip(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
                raise DataError(f"source.path: {path} has a file named {name!r}, which would lie outside. Do not trust it.")
            if member.flag_bits & ENCRYPTED:
                raise DataError(f"source.path: {path} is encrypted ({name}). Unpack it, and give the folder.")
        return _sorted(set(archive.namelist()))


@contextmanager
def _zip(path: Path) -> Iterator[ZipFile]:
    try:
        archive = ZipFile(path)
    except BAD_ZIP as problem:
        raise DataError(f"source.path: {path} is no whole ZIP file ({problem}). Give a folder or a ZIP file.") from problem
    with archive:
        yield archive


@contextmanager
def reading(path: Path, names: tuple[str, ...]) -> Iterator[Reading]:
    """Access to those pictures of a folder or a ZIP file."""
    if path.is_dir():
        yield len(names), lambda place: (str(path / names[place]), _file(path / names[place]))
        return
    with _zip(path) as archive:
        yield len(names), lambda place: (str(path / names[place]), _member(archive, path, names[place]))


def _file(file: Path) -> bytes:
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_BYTES:
            raise DataError(f"{file}: is no file, or longer than any picture that can be decoded ({LARGEST_BYTES} bytes).")
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file}: cannot be read ({problem.strerror}).") from problem


def _member(archive: ZipFile, path: Path, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > LARGEST_BYTES:
        raise DataError(f"{path / name}: unpacks to {size} bytes, more than any picture that can be decoded ({LARGEST_BYTES}).")
    try:
        return archive.read(name)
    except BAD_ZIP as problem:
        raise DataError(f"{path / name}: is damaged in the ZIP file ({problem}).") from problem


def _first_stamp(path: Path, names: tuple[str, ...]) -> object:
    return names[0], stamp_of(path / names[0] if path.is_dir() else path)


@dataclass(frozen=True, kw_only=True)
class Images(Pictures):
    """PNG and JPEG pictures of a folder and everything below it, or of a ZIP file, in the order of their names.

    With `size` each is cropped to its central square and resized to size x size (bicubic); without, all must have one size.
    They are turned upright as their cameras noted (Exif); transparency is dropped; 16-bit and CMYK ones cannot be used.
    """

    name: ClassVar[str] = "images"
    path: Path
    size: int | None = None  # pixels
    colour: Colour | None = None  # convert all to it; None = as the first picture, and all the same
    damaged: Damaged = "refuse"  # or "skip" pictures that cannot be used: damaged, too large, unlike the first
    labels: bool = False  # the folder a picture lies in is its class; numbers in order of their sorted names

    def form(self) -> Form:
        return Form(self.size, self.colour)

    def n_rows(self) -> int:
        return len(names_of(self.path))

    def stamp(self) -> object:
        return _first_stamp(self.path, names_of(self.path))

    def reading(self) -> AbstractContextManager[Reading]:
        return reading(self.path, names_of(self.path))

    def classes(self) -> list[str]:
        """Name of each class, by its number."""
        return sorted(set(self._folders()))

    def _folders(self) -> list[str]:
        names = names_of(self.path)
        folders = [PurePosixPath(name).parent.name for name in names]
        if "" in folders:
            raise DataError(
                f"source.labels: {names[folders.index('')]} lies in no folder of {self.path}, so it has no class. Sort the "
                "pictures into a folder for each class, or leave out labels."
            )
        return folders

    def label_fields(self) -> Mapping[str, ColumnType]:
        return {"label": ColumnType(label_type(len(self.classes())))} if self.labels else {}

    def labels_of(self) -> Columns:
        if not self.labels:
            return {}
        classes, numbers = np.unique(self._folders(), return_inverse=True)
        return {"label": numbers.astype(label_type(len(classes)))}


PAGE = "its authors' page (CelebA, mmlab.ie.cuhk.edu.hk; for research only)"
WIDTH = 178  # pixels of an aligned face; 218 high
PARTITIONS = {"train": "0", "valid": "1", "test": "2"}  # as their list calls them


@dataclass(frozen=True, kw_only=True)
class CelebA(Pictures):
    """Aligned faces of celebrities (Liu, Luo, Wang & Tang 2015, arXiv 1411.7766): the central square, resized (bicubic), RGB.

    `path` is img_align_celeba.zip, the folder img_align_celeba, or the folder that holds either. Lists of attributes and of
    the official partition, as text or as CSV, are found beside them.
    """

    name: ClassVar[str] = "celeba"
    path: Path
    size: int = 64  # pixels
    crop: int | None = None  # side of the square, in pixels of the original width of 178; None = all of it
    attributes: tuple[str, ...] = ()  # such as ["Male", "Eyeglasses"]: 1 or 0 each
    partition: Literal["train", "valid", "test"] | None = None  # None = all faces
    damaged: Damaged = "refuse"  # or "skip" pictures that cannot be used
    attribute_list: Path | None = None  # list_attr_celeba.txt or .csv; None = the one beside the faces
    partition_list: Path | None = None  # list_eval_partition.txt or .csv; None = the one beside the faces

    def __post_init__(self) -> None:
        if self.crop is not None and not 1 <= self.crop <= WIDTH:
            raise SpecError(f"source.crop: got {self.crop}; expected 1 to {WIDTH} pixels, the width of a face's picture.")
        super().__post_init__()
        if self.partition not in (None, *PARTITIONS):
            raise SpecError(f"source.partition: got {self.partition!r}; expected one of {', '.join(PARTITIONS)}, or omit it.")
        object.__setattr__(self, "attributes", tuple(self.attributes))
        if not self.path.exists():
            return  # a spec can be read without the files it names; who uses them is told
        beside = _around(self.path)
        object.__setattr__(self, "path", _faces(self.path))
        # the lists are settings, so that a change of theirs is another source
        if self.attributes and self.attribute_list is None:
            object.__setattr__(self, "attribute_list", _list(beside, "source.attributes", "list_attr_celeba"))
        if self.partition and self.partition_list is None:
            object.__setattr__(self, "partition_list", _list(beside, "source.partition", "list_eval_partition"))

    def form(self) -> Form:
        return Form(self.size, "rgb", (self.crop or WIDTH) / WIDTH)

    def names(self) -> tuple[str, ...]:
        """Names of the faces of the partition."""
        if not self.path.exists():
            raise DataError(f"source.path: {self.path} does not exist. Get img_align_celeba.zip from {PAGE}.")
        names = names_of(self.path)
        if self.partition is None:
            return names
        listed = _listed(cast(Path, self.partition_list), ("partition",), names)
        chosen = tuple(name for name, (part,) in zip(names, listed, strict=True) if part == PARTITIONS[self.partition])
        if not chosen:
            raise DataError(
                f"source.partition: none of the {len(names)} faces of {self.path} is in {self.partition!r}. Omit it."
            )
        return chosen

    def n_rows(self) -> int:
        return len(self.names())

    def stamp(self) -> object:
        return _first_stamp(self.path, self.names())

    def reading(self) -> AbstractContextManager[Reading]:
        return reading(self.path, self.names())

    def label_fields(self) -> Mapping[str, ColumnType]:
        if not self.attributes:
            return {}
        path = cast(Path, self.attribute_list)
        _table(path, self.attributes, *stamp_of(path))
        return {"attributes": ColumnType("uint8", (len(self.attributes),))}

    def labels_of(self) -> Columns:
        if not self.attributes:
            return {}
        path = cast(Path, self.attribute_list)
        listed = np.array(_listed(path, self.attributes, self.names()))
        if len(odd := listed[~np.isin(listed, ("1", "-1"))]):
            raise DataError(f"{path}: holds {str(odd[0])!r}; expected 1 or -1 for each attribute. Get the list from {PAGE}.")
        return {"attributes": (listed == "1").astype(np.uint8)}


def _around(path: Path) -> list[Path]:
    """Where CelebA's lists may lie: beside the faces, and where the official download has them."""
    inner = [path] if path.is_dir() else []
    return [folder / part for folder in [*inner, path.parent, path.parent.parent] for part in (".", "Anno", "Eval")]


def _faces(path: Path) -> Path:
    """The ZIP file or folder of the faces."""
    places = [path / part / f"img_align_celeba{end}" for part in (".", "Img") for end in (".zip", "")]
    return next((place for place in places if place.exists()), path)


def _list(folders: list[Path], setting: str, name: str) -> Path:
    """A list found beside the faces."""
    for file in (folder / f"{name}{ending}" for folder in folders for ending in (".txt", ".csv")):
        if file.is_file():
            return file
    raise DataError(f"{setting}: needs {name}.txt, which is not beside the faces. Get it from {PAGE}, or omit the setting.")


def _listed(path: Path, columns: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What a list says in those columns of each of the faces."""
    table = _table(path, columns, *stamp_of(path))
    files = [name.rpartition("/")[2] for name in names]
    if missing := next((file for file in files if file not in table), None):
        raise DataError(f"{path}: has no line for {missing}. Get the whole list from {PAGE}.")
    return [table[file] for file in files]


@lru_cache(maxsize=4)  # 200,000 lines
def _table(path: Path, columns: tuple[str, ...], *stamp: int) -> Mapping[str, tuple[str, ...]]:
    """Columns of each face in a list: CSV with a header; or text, with a count and the columns' names, or with one column."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    sign, counted = "," if path.suffix == ".csv" else None, len(lines) > 1 and lines[0].strip().isdecimal()
    if sign:
        header, rows = lines[0].split(sign)[1:], lines[1:]
    else:
        header, rows = (lines[1].split(), lines[2:]) if counted else (["partition"], lines)
    if counted and int(lines[0]) != len(rows):
        raise DataError(f"{path}: announces {lines[0].strip()} faces and lists {len(rows)}. Get the whole list from {PAGE}.")
    for column in columns:
        if column not in header:
            raise SpecError(unknown_name(f"source, {path.name}", column, header))
    at = [header.index(column) + 1 for column in columns]
    table = {}
    for number, row in enumerate(rows, 1 + len(lines) - len(rows)):
        values = row.split(sign)
        if len(values) != len(header) + 1:
            raise DataError(f"{path} line {number}: has {len(values)} values; expected {len(header) + 1}. Get the list again.")
        table[values[0]] = tuple(values[i].strip() for i in at)
    return table
