"""Files of sources: rows in files, caches that last until a file changes, and files that are compressed or in archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import struct
import tarfile
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast
from zipfile import BadZipFile, ZipFile, ZipInfo

from selfloop.columns import Columns, Ints, concat_rows, count_rows, select_rows
from selfloop.component import Context, Source
from selfloop.errors import DataError, first_line, os_error_reason
from selfloop.formats.folders import Listing, is_hidden, list_folder, refuse_pointer

CHUNK_BYTES = 1 << 23  # of the rows in one chunk of a corpus
MAX_READ_BYTES = 1 << 30  # read at once: a damaged or hostile file may announce any number
MAX_LINE_BYTES = 1 << 26  # of a line, and of a row that consists of lines
# of missing, unreadable and damaged files
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, BadZipFile)
# what parsing a damaged file may raise
PARSE_ERRORS = (*READ_ERRORS, pickle.UnpicklingError, struct.error, ArithmeticError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError)  # fmt: skip
TAR, ZIP, NOTHING = rb"(?s:.{257})ustar", rb"PK\x03\x04", rb"(?!)"
REFUSED = {
    rb"7z\xbc\xaf|Rar!\x1a|" + TAR: "an archive. Unpack it and give one file or the folder",
    rb"\(\xb5\x2f\xfd": "compressed by zstd. Decompress it",
    rb"\xff\xfe|\xfe\xff": "text in UTF-16. Convert it to UTF-8",
    rb"PAR1|%PDF-|\x89PNG|\xff\xd8\xff|\x89HDF|\x93NUMPY|SQLite format 3": "in a binary format (it begins with {head}). "
    "Convert it, or choose another source",
    rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\0|" + ZIP: "compressed twice. Decompress it",
}  # fmt: skip
ENCRYPTED_FLAG = 0x1  # of a member of a ZIP file
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
        """The files that the rows are read from: those at and below the paths among the settings."""
        return [file for path in self.settings().values() if isinstance(path, Path) for file in list_files(path)]

    def stamp(self) -> Hashable:
        """A value that changes when the files change."""
        return tuple(map(file_stamp, self.files()))

    def unread_files(self) -> Mapping[str, int]:
        """Number of files that the source does not read, by reason; none if the source has no local folder."""
        path = getattr(self, "path", None)
        return count_unlisted(list_folder(path)) if isinstance(path, Path) and path.is_dir() else {}

    def order(self, corpus: Columns, ctx: Context) -> Ints:
        """This seed's permutation of the rows, without the number of rows that the corpus lacks as unusable."""
        order = ctx.stream.child("order").generator().permutation(self.n_rows())
        return order[order < count_rows(corpus)]

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        """Rows first .. first + n - 1 of this seed's order. A run instead stores the corpus and draws from that."""
        corpus = read_corpus(self)
        order = self.order(corpus, ctx)
        check_range(self, first, n, len(order))
        return select_rows(corpus, order[first : first + n])


def check_range(source: Source, first: int, n: int, n_rows: int) -> None:
    """Raise DataError if a source with n_rows rows has no rows first .. first + n - 1."""
    if not 0 <= first <= first + n <= n_rows:
        raise DataError(
            f"source: got rows {first} to {first + n - 1} of {source.title()}; it has {n_rows} that can be used. Set n so that "
            f"the holdout and all batches of real rows have at most {n_rows} rows together."
        )


def count_unlisted(files: Listing) -> dict[str, int]:
    """Number of files that are not in a listing, by reason."""
    return {"hidden files or folders": files.n_hidden, "files linked twice": len(files.repeated)}


def describe_counts(counts: Mapping[str, int]) -> str:
    """Reasons with their numbers; empty if all numbers are 0."""
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items() if count)


def warn_of_unread(source: Source, unread: Mapping[str, int], examples: str = "") -> None:
    """One warning with the number of everything that a source did not read, by reason."""
    if parts := describe_counts(unread):
        warnings.warn(f"source: {source.name} skipped {parts}{examples}", stacklevel=3)


def file_stamp(path: Path) -> tuple[str, int, int, int, int]:
    """Name, inode, size and times of change of a file or folder. Raises DataError if it does not exist."""
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"source: {path} does not exist. Check the path.") from problem
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


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


@cached_until_change(maxsize=1)
def read_corpus(source: FileSource) -> Columns:
    return concat_rows(list(source.chunks()))


def list_files(path: Path) -> list[Path]:
    """The file, or every visible file below a folder, sorted by name. Raises DataError if there is none."""
    files = [path] if path.is_file() else [path / name for name in list_folder(path).sizes] if path.is_dir() else []
    if not files:
        raise DataError(f"source.path: {path} is not a file or a folder with files. Set it: --set source.path=FOLDER_OR_FILE.")
    return files


def read_error(path: Path, problem: Exception) -> DataError:
    if isinstance(problem, OSError) and problem.errno:
        return DataError(f"source: {path} cannot be read ({os_error_reason(problem)}). Check the path and its permissions.")
    return DataError(f"source: {path} cannot be read ({first_line(problem)}). It is damaged: download or write it again.")


class BoundedReader(io.BufferedReader):
    """A file whose reads and lines are limited, so that no file can fill the memory. Raises DataError at a limit."""

    def __init__(self, raw: Any, path: Path) -> None:
        super().__init__(raw)
        self.path = path

    def read(self, size: int | None = -1, /) -> bytes:
        end = MAX_READ_BYTES + 1 if size is None or size < 0 else min(size, MAX_READ_BYTES + 1)
        data = bytearray()
        while piece := super().read(min(end - len(data), 1 << 20)):  # Python would allocate all bytes at once
            data += piece
        if len(data) > MAX_READ_BYTES:
            raise DataError(f"source: {self.path} has more than {MAX_READ_BYTES} bytes in one piece. Check or divide the file.")
        return bytes(data)

    def __next__(self) -> bytes:
        line = self.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"source: {self.path} has a line of more than {MAX_LINE_BYTES} bytes. Check or divide the line.")
        if not line:
            raise StopIteration
        return line


@contextmanager
def open_file(path: Path, *, allowed: bytes = NOTHING) -> Iterator[io.BufferedReader]:
    """A file, decompressed if it begins as gzip, bzip2 or xz files do, or is a ZIP file of one file.

    Raises DataError if it cannot be read, now or in the `with` block, and for a file whose content is of another kind than a
    source reads, such as a pointer of Git LFS or an archive. `allowed`: pattern of the begin of an archive that is opened.
    """
    try:
        with path.open("rb", buffering=0) as raw, BoundedReader(raw, path) as file:
            for begin, decompressor in DECOMPRESSORS.items():
                if re.match(begin, head := file.peek(16)) and not re.match(allowed, head):
                    # buffered, because gzip's own lines are slow
                    file = BoundedReader(decompressor(file), path)
                    break
            head = file.peek(512)[:512]
            refuse_pointer(f"source: {path}", head)
            for begin, kind in REFUSED.items():
                if re.match(begin, head) and not re.match(allowed, head):
                    raise DataError(f"source: {path} is {kind.format(head=head[:4].hex(' '))}.")
            yield file
    except READ_ERRORS as problem:
        raise read_error(path, problem) from problem


def _open_only_member(file: io.BufferedReader) -> IO[bytes]:
    """The content of a ZIP file with a single visible file."""
    try:
        archive = ZipFile(file)
        names = [name for name in archive.namelist() if not name.endswith("/") and not is_hidden(name)]
        if len(names) != 1:
            raise DataError(f"source: {file.name} is an archive of {len(names)} files. Unpack it.")
        return archive.open(names[0])
    except RuntimeError as problem:  # encrypted, or compressed by an unknown method
        raise DataError(f"source: {file.name} cannot be read ({first_line(problem)}). Unpack it.") from problem


# a file is decompressed by how its content begins, whatever its name is
DECOMPRESSORS: dict[bytes, Any] = {
    rb"\x1f\x8b": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\0": lzma.open, ZIP: _open_only_member
}  # fmt: skip


def list_files_in(path: Path) -> Listing:
    """Visible files below a folder, sorted by name, or of a tar file, in its order. Raises DataError for damaged ones."""
    return list_folder(path) if path.is_dir() else _list_tar(path)


@cached_until_change()  # a tar file has no index: listing it reads the whole file
def _list_tar(path: Path) -> Listing:
    sizes = {name: size for name, size, _ in _iter_tar(path, lambda name: False)}
    return _visible(sizes)


def _visible(sizes: Mapping[str, int]) -> Listing:
    visible = {name: size for name, size in sizes.items() if not is_hidden(name)}
    return Listing(visible, len(sizes) - len(visible))


def read_files(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted visible file, in the order of `list_files_in`."""
    if not path.is_dir():
        yield from ((name, data) for name, _, data in _iter_tar(path, is_wanted) if is_wanted(name) and not is_hidden(name))
        return
    for name in filter(is_wanted, list_folder(path).sizes):
        with open_file(path / name) as file:
            yield name, file.read()


def _iter_tar(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, int, bytes]]:
    """Name, size and, if wanted, content of every file. Raises DataError for links, and for two files of one name."""
    seen = set[str]()
    with open_file(path, allowed=TAR) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isdir():
                        continue
                    if not member.isfile() or name in seen or member.size > MAX_READ_BYTES:
                        raise DataError(
                            f"source.path: {name} in {path} is a link, repeated or too large. Unpack it and give the folder."
                        )
                    seen.add(name)
                    yield name, member.size, cast("IO[bytes]", archive.extractfile(member)).read() if is_wanted(name) else b""
        except (tarfile.TarError, ValueError, OverflowError) as problem:
            raise DataError(f"source: {path} is neither a folder nor a complete tar file ({first_line(problem)}).") from problem


@contextmanager
def open_zip(path: Path) -> Iterator[tuple[ZipFile, dict[str, ZipInfo]]]:
    """A file that is stored as a ZIP file, and its files by name with slashes, as some programs write backslashes.

    Raises DataError if it is damaged or encrypted, and if it has two files of one name. It is never unpacked.
    """
    with open_file(path, allowed=ZIP) as file:
        try:
            archive = ZipFile(file)
        except PARSE_ERRORS as problem:
            raise DataError(f"source.path: {path} is not a complete ZIP file ({first_line(problem)}).") from problem
        members = dict[str, ZipInfo]()
        for member in archive.infolist():
            name = member.filename.replace("\\", "/")
            if name in members or member.flag_bits & ENCRYPTED_FLAG:
                raise DataError(
                    f"source.path: {path} is encrypted or has two files named {name}. Unpack it and give the folder."
                )
            if not name.endswith("/"):
                members[name] = member
        yield archive, members


def list_zip(path: Path) -> Listing:
    with open_zip(path) as (_, members):
        return _visible({name: member.file_size for name, member in members.items()})
