"""The files of a model's folder as named arrays of bytes, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Array, Params
from selfloop.errors import DataError
from selfloop.formats.programs import ProgramError

MAX_PACKED_BYTES = 1 << 20  # of a file that shares an array with others; larger ones have their own, which is not copied
INDEX, SMALL_FILES, LARGE_FILE = "index", "files", "file/"  # names of arrays


def pack_folder(folder: Path) -> dict[str, Array]:
    """Every file below a folder, empty files and folders too. The bytes of large files are mapped from the disk.

    Raises ProgramError without files, and for a link or anything else that is neither a file nor a folder.
    """
    names: list[Any] = []  # of files with their sizes, and of folders with None, in order
    large, small = dict[str, Array](), list[bytes]()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ProgramError(f"wrote {name} into {{model}}, which is a link or a device; expected files and folders")
        names.append([name, None if path.is_dir() else (size := path.stat().st_size)])
        if path.is_file() and size > MAX_PACKED_BYTES:
            large[f"{LARGE_FILE}{name}"] = np.memmap(path, np.uint8, "r")
        elif path.is_file():
            small.append(path.read_bytes())
    if not large and not small:
        raise ProgramError("wrote no file into {model}")
    packed = {SMALL_FILES: np.frombuffer(b"".join(small), np.uint8)} if any(small) else {}
    try:
        return {INDEX: np.frombuffer(json.dumps(names, ensure_ascii=False).encode(), np.uint8), **packed, **large}
    except UnicodeEncodeError as problem:
        raise ProgramError("wrote a file into {model} whose name is not UTF-8") from problem


def unpack_folder(params: Params, folder: Path) -> None:
    """Create a folder with the files of a model. DataError for a model of another family, and for names outside of it."""
    if INDEX not in params:
        raise DataError("family.command: the model has no list of files, so it is one of another family. Give another model.")
    start = 0
    folder.mkdir(exist_ok=True)
    for name, size in json.loads(np.asarray(params[INDEX]).tobytes()):
        path = folder / name
        if ".." in path.parts or Path(name).is_absolute():
            raise DataError(f"family.command: the model has a file {name!r} outside of its folder. Give another model.")
        if size is None:
            path.mkdir()
        elif size > MAX_PACKED_BYTES:
            np.asarray(params[f"{LARGE_FILE}{name}"]).tofile(path)
        else:
            path.write_bytes(np.asarray(params[SMALL_FILES][start : start + size]).tobytes() if size else b"")
            start += size
