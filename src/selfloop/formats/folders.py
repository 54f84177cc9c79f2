"""The visible files below a folder, which sources read and which identify the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from selfloop.errors import DataError, os_error_reason

HIDDEN = (".", "__MACOSX")  # begins of names that are not read: caches, version control, thumbnails, notes of a Mac


class Listing(NamedTuple):
    """Bytes of each visible file by its name relative to the folder, sorted, and the number of hidden files and folders."""

    sizes: dict[str, int]
    n_hidden: int


def is_hidden(name: str) -> bool:
    """True for a file that is hidden or in a hidden folder."""
    return any(part.startswith(HIDDEN) for part in name.split("/"))


def list_folder(folder: Path) -> Listing:
    """Every visible file below a folder, also in linked folders. The content of a hidden folder is not counted.

    Raises DataError for a folder that cannot be read, for a link to a folder that contains it, and for an entry that is
    neither a file nor a folder, such as a broken link.
    """
    sizes, n_hidden = dict[str, int](), 0
    pending = [(folder, "", frozenset[tuple[int, int]]())]
    try:
        while pending:
            current, prefix, above = pending.pop()
            inode = (current.stat().st_dev, current.stat().st_ino)
            if inode in above:
                raise DataError(f"source.path: {current} is a link to a folder that contains it. Remove the link.")
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith(HIDDEN):
                        n_hidden += 1
                    elif entry.is_dir():
                        pending.append((current / entry.name, f"{prefix}{entry.name}/", above | {inode}))
                    elif entry.is_file():
                        sizes[prefix + entry.name] = entry.stat().st_size
                    else:
                        raise DataError(f"source.path: {entry.path} is neither a file nor a folder. Remove it or fix the link.")
    except OSError as problem:
        raise DataError(f"source.path: {problem.filename} cannot be read ({os_error_reason(problem)}).") from problem
    return Listing({name: sizes[name] for name in sorted(sizes, key=lambda name: name.split("/"))}, n_hidden)
