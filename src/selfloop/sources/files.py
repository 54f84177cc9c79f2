"""Files of sources: rows in files, caches that last until a file changes, gzip and tar files, errors for unreadable files."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import IO, ParamSpec, TypeVar, cast

import numpy as np

from selfloop.columns import Columns, Ints, concat_rows, count_rows, select_rows
from selfloop.component import Context, Source
from selfloop.errors import DataError

CHUNK_BYTES = 1 << 23  # of the rows in one chunk of a corpus
READ_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError)  # of missing, unreadable and damaged files
# what parsing a damaged file may raise
PARSE_ERRORS = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError,
                TypeError, ValueError)  # fmt: skip
P = ParamSpec("P")
T = TypeVar("T")


class FileSource(Source):
    """A source whose rows are in files. All seeds have the same rows, each seed in its own order."""

    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows that the source can give."""

    @abstractmethod
    def chunks(self) -> Iterator[Columns]:
        """Every row once, in the order of the files, in chunks of some MB."""

    def files(self) -> list[Path]:
        """The files that the rows are read from: `path`, or all files below it, if the source has a local path."""
        path = getattr(self, "path", None)
        return list_files(path) if isinstance(path, Path) else []

    def stamp(self) -> Hashable:
        """A value that changes when the files change."""
        return tuple(map(file_stamp, self.files()))

    def n_corpus_rows(self) -> int:
        """Number of rows that `chunks` yields."""
        return self.n_rows()

    def order(self, ctx: Context) -> Ints:
        """This seed's permutation of the rows."""
        return ctx.stream.child("order").generator().permutation(self.n_rows())

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Rows first .. first + n - 1 of this seed's order, read in one pass over the files."""
        order = self.order(ctx)
        order = order[order < self.n_corpus_rows()]
        check_range(self, first, n, len(order))
        indices = order[first : first + n]
        in_file_order, tables, start = np.sort(indices), list[Columns](), 0
        for rows in self.chunks():
            end = start + count_rows(rows)
            tables.append(select_rows(rows, in_file_order[(in_file_order >= start) & (in_file_order < end)] - start))
            start = end
        return select_rows(concat_rows(tables), np.searchsorted(in_file_order, indices))


def check_range(source: Source, first: int, n: int, n_rows: int) -> None:
    """Raise DataError if a source with n_rows rows has no rows first .. first + n - 1."""
    if not 0 <= first <= first + n <= n_rows:
        raise DataError(f"source: got rows {first} to {first + n - 1} of {source.name}; it has {n_rows}. Lower n or holdout.")


def file_stamp(path: Path) -> tuple[str, int, int, int]:
    """Name, inode, size and time of change of a file or folder. Raises DataError if it does not exist."""
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"source: {path} does not exist. Check the path.") from problem
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def cached_until_change(maxsize: int = 4) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator for functions of a file or of a source: results are kept until the file, or a file of the source, changes."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @lru_cache(maxsize=maxsize)
        def cached(stamp: Hashable, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            owner = cast("Path | FileSource", args[0])
            stamp = file_stamp(owner) if isinstance(owner, Path) else owner.stamp()
            return cached(stamp, *args, **kwargs)  # type: ignore[arg-type]  # the stubs of lru_cache know no ParamSpec

        return call

    return decorate


def list_files(path: Path) -> list[Path]:
    """The file, or every visible file below a folder, sorted by name. Raises DataError if there is none."""
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise DataError(f"source.path: {path} is not a file or a folder with files. Set it: --set source.path=FOLDER_OR_FILE.")
    return files


def read_error(path: Path, problem: Exception) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(f"source: {path} cannot be read ({problem}). Check the path, or download the file again.")


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """A file, decompressed if it begins as gzip files do. Raises DataError if it cannot be read, now or in the `with` block."""
    try:
        with path.open("rb") as file:
            # buffered, because gzip's own lines are slow
            is_gzipped = file.peek(2).startswith(b"\x1f\x8b")
            yield io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file))) if is_gzipped else file
    except READ_ERRORS as problem:
        raise read_error(path, problem) from problem


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except READ_ERRORS as problem:
        raise DataError(f"source.path: {path} is neither a folder nor a complete tar file. Download it again.") from problem


def file_sizes(path: Path) -> Mapping[str, int]:
    """Bytes of every file below a folder, sorted by name, or of a tar file, in its order."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    return _tar_sizes(path)


@cached_until_change()  # a tar file has no index: listing it reads the whole file
def _tar_sizes(path: Path) -> Mapping[str, int]:
    with _open_tar(path) as archive:
        return {member.name.removeprefix("./"): member.size for member in archive if member.isfile()}


def read_files(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file, in the order of `file_sizes`. A tar file is never unpacked to disk."""
    if path.is_dir():
        yield from ((name, (path / name).read_bytes()) for name in file_sizes(path) if is_wanted(name))
        return
    with _open_tar(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if is_wanted(name) and member.isfile():
                yield name, cast("IO[bytes]", archive.extractfile(member)).read()
