"""The visible files below a folder, which sources read and which identify the folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from selfloop.errors import DataError, os_error_reason

POINTER_PROBLEM = "is a Git LFS pointer: its data were not downloaded. Run: git lfs pull"
HUB_CONTENT = "blobs"  # the folder of a hub's cache that holds the content of its files
HIDDEN = (".", "__MACOSX", "__pycache__")  # begins of names that are not read: caches, version control, notes of a Mac


class Listing(NamedTuple):
    """Bytes of each visible file by its name relative to the folder, sorted, and the number of hidden files and folders.

    `repeated` are names that links give to files of `sizes`.
    """

    sizes: dict[str, int]
    n_hidden: int
    repeated: tuple[str, ...] = ()


class PointerError(DataError):
    """A pointer of Git LFS in place of data."""


def is_pointer(file: bytes | Path) -> bool:
    """True for a file, or the begin of one, that is a pointer of Git LFS."""
    head = file if isinstance(file, bytes) else b""
    if isinstance(file, Path) and file.is_file():
        with suppress(OSError), file.open("rb") as content:
            head = content.read(64)
    return head.startswith(b"version https://git-lfs")


def refuse_pointer(place: str, file: bytes | Path) -> None:
    """Raise PointerError for a file, or the begin of one, that is a pointer of Git LFS."""
    if is_pointer(file):
        raise PointerError(f"{place} {POINTER_PROBLEM}")


def is_hidden(name: str) -> bool:
    """True for a file that is hidden or in a hidden folder."""
    return any(part.startswith(HIDDEN) for part in name.split("/"))


def list_folder(folder: Path) -> Listing:
    """Every visible file below a folder once, also in linked folders. The content of a hidden folder is not counted.

    Raises DataError for a folder that cannot be read, for a link to a folder that contains it, and for an entry that is
    neither a file nor a folder, such as a broken link.
    """
    sizes, linked, n_hidden = dict[str, int](), set[str](), 0
    pending = [(folder, "", frozenset[tuple[int, int]](), False)]
    try:
        while pending:
            current, prefix, above, is_linked = pending.pop()
            inode = (current.stat().st_dev, current.stat().st_ino)
            if inode in above:
                raise DataError(f"source.path: {current} is a link to a folder that contains it. Remove the link.")
            with os.scandir(current) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.name.startswith(HIDDEN) or _is_hub_content(current, entry.name):
                        n_hidden += 1
                    elif entry.is_dir():
                        pending.append((current / entry.name, f"{name}/", above | {inode}, is_linked or entry.is_symlink()))
                    elif entry.is_file():
                        sizes[name] = entry.stat().st_size
                        if is_linked or entry.is_symlink():
                            linked.add(name)
                    else:
                        raise DataError(f"source.path: {entry.path} is neither a file nor a folder. Remove it or fix the link.")
        repeated = _find_repeated(folder, sizes, linked) if linked else ()
    except OSError as problem:
        raise DataError(f"source.path: {problem.filename} cannot be read ({os_error_reason(problem)}).") from problem
    names = sorted(sizes.keys() - set(repeated), key=lambda name: name.split("/"))
    return Listing({name: sizes[name] for name in names}, n_hidden, repeated)


def _is_hub_content(folder: Path, name: str) -> bool:
    """True for the folder of a hub's cache whose files are also named, by links, in its snapshots."""
    return name == HUB_CONTENT and (folder / "snapshots").is_dir()


def _find_repeated(folder: Path, names: Iterable[str], linked: set[str]) -> tuple[str, ...]:
    """Linked names of files that have another name. Links into a hub's cache are files: it keeps equal content once."""
    seen, repeated = set[tuple[int, int]](), list[str]()
    for name in sorted(names, key=lambda name: (name in linked, name.split("/"))):
        file = folder / name
        is_hub_link = file.is_symlink() and file.readlink().parent.name == HUB_CONTENT
        status = file.stat(follow_symlinks=not is_hub_link)
        inode = (status.st_dev, status.st_ino)
        if name in linked and inode in seen:
            repeated.append(name)
        seen.add(inode)
    return tuple(repeated)
