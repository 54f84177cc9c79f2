"""Real images: scikit-learn's embedded digits, MNIST-format idx files, CIFAR's binary files. Always bytes, 0 to 255."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, ClassVar, Literal, cast

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import DataError
from selfloop.types import Array, Columns, ColumnType, Ints, concat_rows, count_rows, select_rows

PIECE = 1 << 23  # bytes of images in a piece
UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)  # also of a damaged archive


class ImageFiles(Source):
    """A source of images in files: the same rows for all seeds, read once, in an order of each seed's own."""

    def n_rows(self) -> int:
        raise NotImplementedError

    def chunks(self) -> Iterator[Columns]:
        """Every row once, in pieces of some MB."""
        raise NotImplementedError

    def n_usable_rows(self) -> int:
        """Rows that `chunks` gives; fewer than `capacity` where damaged pictures are left out."""
        return self.n_rows()

    def order(self, ctx: Context) -> Ints:
        """This seed's permutation of the rows."""
        return ctx.stream.child("order").generator().permutation(self.n_rows())

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Rows first .. first + n - 1 of this seed's order, picked out of the files in one pass."""
        order, size = self.order(ctx), self.n_usable_rows()
        wanted = order[order < size][first : first + n]
        _check_range(first, n, size)
        at = np.argsort(wanted, kind="stable")
        places, found, start = wanted[at], list[Columns](), 0
        for rows in self.chunks():
            end = start + count_rows(rows)
            found.append(select_rows(rows, places[(places >= start) & (places < end)] - start))
            start = end
        return select_rows(concat_rows(found), np.argsort(at, kind="stable"))


def _check_range(first: int, n: int, size: int) -> None:
    if not 0 <= first <= first + n <= size:
        raise DataError(f"source: rows {first} to {first + n - 1} were asked for; there are {size}. Lower n or holdout.")


def label_type(classes: int) -> str:
    """The type of a column of class numbers."""
    return "uint8" if classes <= 256 else "uint16"


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 handwritten digits, 8 x 8 grey (UCI optical recognition of handwritten digits, as scikit-learn ships them).

    Their 17 grey levels 0 .. 16 become round(v 255 / 16): one to one, black 0 and white 255.
    """

    name: ClassVar[str] = "digits"
    labels: bool = False  # also give which digit it is

    def schema(self) -> Mapping[str, ColumnType]:
        fields = {"image": ColumnType("uint8", (8, 8), "grey level")}
        return fields | {"label": ColumnType("uint8")} if self.labels else fields

    def n_rows(self) -> int:
        return 1797

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        _check_range(first, n, self.n_rows())
        chosen = ctx.stream.child("order").generator().permutation(self.n_rows())[first : first + n]
        return {name: _digits()[name][chosen] for name in self.schema()}


@lru_cache(maxsize=1)  # the embedded images: they cannot change
def _digits() -> dict[str, Array]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return {"image": np.rint(loaded.images * (255 / 16)).astype(np.uint8), "label": loaded.target.astype(np.uint8)}


LARGEST = 1 << 26  # bytes of an image: what a file announces may be anything
IDX_BYTES = 0x08  # the type code of unsigned bytes, the only one images and labels use


@dataclass(frozen=True, kw_only=True)
class Idx(ImageFiles):
    """Images, and labels if named, of idx files in MNIST's format, gzipped or not."""

    name: ClassVar[str] = "idx"
    images: Path
    labels: Path | None = None

    def schema(self) -> Mapping[str, ColumnType]:
        fields = {"image": ColumnType("uint8", self._shapes()[0][1:], "grey level")}
        return fields if self.labels is None else fields | {"label": ColumnType("uint8")}

    def n_rows(self) -> int:
        return self._shapes()[0][0]

    def chunks(self) -> Iterator[Columns]:
        shape = self._shapes()[0]
        step = max(1, PIECE // math.prod(shape[1:]))
        images = _idx_rows(self.images, step)
        if self.labels is None:
            yield from ({"image": part} for part in images)
        else:
            yield from ({"image": i, "label": n} for i, n in zip(images, _idx_rows(self.labels, step), strict=True))

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the images, and of the labels; from the files' headers."""
        images = _idx_shape(self.images)
        if len(images) not in (3, 4):
            raise DataError(f"{self.images}: holds {len(images)}-dimensional data; expected images. Are these the labels?")
        if not 0 < math.prod(images) <= images[0] * LARGEST:
            raise DataError(f"{self.images}: announces {list(images)}; expected images, each of at most {LARGEST} bytes.")
        if self.labels is None:
            return [images]
        labels = _idx_shape(self.labels)
        if labels != images[:1]:
            raise DataError(f"{self.labels}: holds {list(labels)} labels for {images[0]} images. Use matching files.")
        return [images, labels]


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file, gzipped or not."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if gzipped else file
        except UNREADABLE as problem:
            raise DataError(f"{path}: is damaged or cut short. Get it again.") from problem


def _idx_shape(path: Path) -> tuple[int, ...]:
    """What an idx file announces: rows, and the shape of one."""
    if not path.is_file():
        raise DataError(f"{path}: no such idx file. Check the path.")
    with _unpacked(path) as file:
        begin = file.read(4)
        if len(begin) < 4 or begin[:2] != b"\0\0" or begin[2] != IDX_BYTES or not 1 <= begin[3] <= 4:
            raise DataError(f"{path}: begins with {begin.hex(' ')}; expected an idx file of bytes (00 00 08 and 01 to 04).")
        sizes = file.read(4 * begin[3])
        plain = not isinstance(file, gzip.GzipFile)
    shape = tuple(np.frombuffer(sizes, ">u4").tolist()) if len(sizes) == 4 * begin[3] else (0,)
    held = path.stat().st_size - 4 - 4 * begin[3]
    if plain and held != math.prod(shape):
        raise _other_size(path, shape, f"has {held}")
    return shape


def _other_size(path: Path, shape: tuple[int, ...], found: str) -> DataError:
    return DataError(f"{path}: announces {list(shape)}, which are {math.prod(shape)} bytes, and {found}. Get the file whole.")


def _idx_rows(path: Path, step: int) -> Iterator[Array]:
    """The rows of an idx file, `step` at a time."""
    shape = _idx_shape(path)
    row = math.prod(shape[1:])
    with _unpacked(path) as file:
        file.read(4 + 4 * len(shape))
        for first in range(0, shape[0], step):
            count = min(step, shape[0] - first)
            data = file.read(count * row)
            if len(data) < count * row:
                raise _other_size(path, shape, f"ends after {first * row + len(data)}")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
        if file.read(1):  # reads a gzip file's checksum, too
            raise _other_size(path, shape, "has more")


CIFAR_PIXELS = 3 * 32 * 32
CIFAR = {  # files of the binary versions -> columns before the pixels of each row
    "CIFAR-10": (["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"], ["test_batch"], ["label"]),
    "CIFAR-100": (["train"], ["test"], ["coarse_label", "label"]),
}


@dataclass(frozen=True, kw_only=True)
class Cifar(ImageFiles):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), 32 x 32 RGB with class numbers, from the official *binary version*.

    `path` is cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, or the folder of .bin files that is in it. CIFAR-100 has a
    `coarse_label`, too. The version for Python is refused: it is pickled, and unpickling a file can run any program.
    """

    name: ClassVar[str] = "cifar"
    path: Path
    split: Literal["train", "test"] = "train"

    def schema(self) -> Mapping[str, ColumnType]:
        labels = self._files()[1]
        return {"image": ColumnType("uint8", (32, 32, 3), "grey level")} | {name: ColumnType("uint8") for name in labels}

    def n_rows(self) -> int:
        return sum(self._files()[0].values())

    def chunks(self) -> Iterator[Columns]:
        files, labels = self._files()
        size = len(labels) + CIFAR_PIXELS
        for name, rows in files.items():
            with _cifar_file(self.path, name) as file:
                for first in range(0, rows, PIECE // size):
                    count = min(PIECE // size, rows - first)
                    data = np.frombuffer(file.read(count * size), np.uint8).reshape(count, size)
                    pixels = data[:, len(labels) :].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
                    yield {"image": np.ascontiguousarray(pixels)} | {n: data[:, i].copy() for i, n in enumerate(labels)}

    def _files(self) -> tuple[dict[str, int], list[str]]:
        """Rows of each file, and the columns before the pixels."""
        sizes = _cifar_sizes(self.path)
        known = {Path(name).name: name for name in sizes}
        for train, test, labels in CIFAR.values():
            wanted = [f"{name}.bin" for name in (train if self.split == "train" else test)]
            here = {name: known[name] for name in wanted if name in known}
            if here and len(here) < len(wanted):
                raise DataError(f"source.path: {self.path} lacks {', '.join(sorted(set(wanted) - set(here)))}. Get it whole.")
            if here:
                return {known[name]: self._rows(known[name], sizes, len(labels)) for name in wanted}, labels
        raise self._no_binary(set(known))

    def _rows(self, name: str, sizes: Mapping[str, int], labels: int) -> int:
        rows, rest = divmod(sizes[name], labels + CIFAR_PIXELS)
        if rest or not rows:
            raise DataError(
                f"source.path: {name} in {self.path} has {sizes[name]} bytes; expected rows of {labels + CIFAR_PIXELS} each. "
                "Get it whole."
            )
        return rows

    def _no_binary(self, names: set[str]) -> DataError:
        binary = "the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)"
        if names & {"data_batch_1", "test_batch", "train", "test"}:
            return DataError(
                f"source.path: {self.path} is CIFAR's version for Python, whose pickled files can run any program when they "
                f"are opened. Give {binary}, from the same page."
            )
        return DataError(f"source.path: {self.path} holds no {self.split} files of CIFAR. Give {binary}, or its folder.")


def _cifar_sizes(path: Path) -> Mapping[str, int]:
    """Bytes of each file of a folder or a tar file."""
    if path.is_dir():
        return {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    return _tar_sizes(path, *stamp_of(path))


def stamp_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file does; DataError when there is none."""
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"source.path: {path} does not exist. Check the path.") from problem
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # a tar file has no list of contents: it is read to its end
def _tar_sizes(path: Path, *stamp: int) -> Mapping[str, int]:
    try:
        with tarfile.open(path) as archive:
            return {member.name: member.size for member in archive if member.isfile()}
    except UNREADABLE as problem:
        raise _damaged_tar(path) from problem


def _damaged_tar(path: Path) -> DataError:
    return DataError(f"source.path: {path} is no tar file, damaged or cut short. Give CIFAR's .tar.gz or its folder.")


@contextmanager
def _cifar_file(path: Path, name: str) -> Iterator[IO[bytes]]:
    """One file of a folder or a tar file, which is never unpacked to disk."""
    if path.is_dir():
        with (path / name).open("rb") as file:
            yield file
        return
    try:
        with tarfile.open(path) as archive:
            yield cast("IO[bytes]", archive.extractfile(name))
    except UNREADABLE as problem:
        raise _damaged_tar(path) from problem
