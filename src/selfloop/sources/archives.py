"""Files in folders, tar files and ZIP files. Archives are never unpacked to disk."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast
from zipfile import ZipFile, ZipInfo

from selfloop.errors import DataError, first_line
from selfloop.formats.folders import Listing, is_hidden, list_folder
from selfloop.sources.files import MAX_READ_BYTES, READ_ERRORS, TAR, ZIP, cached_until_change, open_file

ZIP_ERRORS = (*READ_ERRORS, RuntimeError, ValueError, struct.error)  # RuntimeError: encrypted, or unknown method
ENCRYPTED_FLAG = 0x1  # of a member of a ZIP file


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
                            f"source.path: {name} in {path} is a link, a repeated name or larger than {MAX_READ_BYTES} bytes. "
                            "Unpack the archive and give the folder."
                        )
                    seen.add(name)
                    yield name, member.size, cast("IO[bytes]", archive.extractfile(member)).read() if is_wanted(name) else b""
        except (tarfile.TarError, ValueError, OverflowError) as problem:
            raise DataError(
                f"source.path: {path} is neither a folder nor a complete tar file ({first_line(problem)}). Download it again."
            ) from problem


@contextmanager
def open_zip(path: Path, kind: str = "ZIP file") -> Iterator[ZipFile]:
    """A file that is stored as a ZIP file. Raises DataError if it is damaged, encrypted or names files outside of it."""
    with open_file(path, allowed=ZIP) as file:
        try:
            archive = ZipFile(file)
        except ZIP_ERRORS as problem:
            raise DataError(
                f"source.path: {path} is not a complete {kind} ({first_line(problem)}). Download it again."
            ) from problem
        for member in archive.infolist():
            name = member.filename
            if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
                raise DataError(f"source.path: {path} has a file named {name!r}, which points outside. Do not use this file.")
            if member.flag_bits & ENCRYPTED_FLAG:
                raise DataError(f"source.path: {path} is encrypted ({name}). Unpack it and give the folder.")
        yield archive


def zip_members(archive: ZipFile) -> dict[str, ZipInfo]:
    """The files of a ZIP file by name. Some programs write backslashes. Raises DataError for two files of one name."""
    members = dict[str, ZipInfo]()
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        if name in members:
            raise DataError(f"source.path: {archive.filename} has two files named {name}. Unpack it and give the folder.")
        if not name.endswith("/"):
            members[name] = member
    return members


def list_zip(path: Path) -> Listing:
    """The visible files of a ZIP file."""
    with open_zip(path) as archive:
        return _visible({name: member.file_size for name, member in zip_members(archive).items()})
