"""Files of a store: immutable objects and records, written whole or not at all, each with a checksum.

`objects/ab/....safetensors` are arrays named by their content; `records/cd/....json` map a key to an object, a value or the
status that ended a chain, with provenance. The first writer of a file wins. No locks, no pickle, nothing is overwritten.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from selfloop.errors import DataError, SelfloopError, StoreError, os_error_reason
from selfloop.store.identity import digest, file_digest

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # only writing raises them
FORMAT = 2  # of a store's folder; 1 was written by selfloop 0.1, whose keys held module paths


def create_folders(path: Path) -> None:
    """Create the folders of a store and its FORMAT file. OSError if that is impossible."""
    for name in ("objects", "records", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    write_new(f"{path}/FORMAT", f"{FORMAT}\nA store of selfloop. Delete the whole folder, or use `selfloop gc`.\n".encode())


def check_format(path: Path) -> None:
    """Raise StoreError if the folder is a store of another format."""
    marker = path / "FORMAT"
    if marker.is_file():
        number = marker.read_text(encoding="utf-8", errors="replace").split("\n")[0][:20]
    elif (path / ".selfloop").is_file():  # the marker of version 0.1
        number = "1"
    else:
        return
    if number != str(FORMAT):
        raise StoreError(
            f"store {path}: has format {number}; this version of selfloop uses format {FORMAT}. Choose another "
            "folder with --store, or delete this one."
        )


def store_error(path: Path, action: str, problem: OSError) -> StoreError:
    """The error for a store that cannot be read or written."""
    advice = "Free some space, then run again." if problem.errno in DISK_ERRORS else "Choose another folder with --store."
    return StoreError(f"store {path}: cannot {action} ({os_error_reason(problem)}). {advice}")


def step_error(path: Path, step: str, problem: OSError) -> SelfloopError:
    """The error for a file that a step could not read or write: one of the store, or one of the user."""
    file = str(problem.filename or problem)
    if problem.errno in DISK_ERRORS or str(path) in file:
        return store_error(path, "write", problem)
    return DataError(f"{step}: {file}: {os_error_reason(problem)}. Check that file.")


def with_checksum(body: bytes) -> bytes:
    """Content of a record file: its body and the digest of the body's bytes."""
    return b'{"body": %b, "checksum": "%b"}' % (body, digest(body).encode())


def verify_checksum(data: bytes) -> dict[str, Any] | None:
    """The body of a record file; None if any byte of it was changed."""
    body = data.removeprefix(b'{"body": ').rpartition(b', "checksum": "')[0]
    return cast("dict[str, Any]", json.loads(body)) if body and with_checksum(body) == data else None


def file_stat(path: str) -> list[int] | None:
    """Size and modification time of a file: a cheap sign that it is unchanged."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def is_intact(path: str, content: str) -> bool:
    """True if the file exists and has that content digest."""
    return os.path.exists(path) and file_digest(Path(path)) == content


def write_new(path: str, *chunks: bytes | memoryview) -> None:
    """Create the file whole or not at all. An existing file is kept: another process wrote the same content first."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/.{os.getpid()}-{time.monotonic_ns()}.tmp"
    os.makedirs(folder, exist_ok=True)
    file = open(temporary, "xb")  # noqa: SIM115  # outside the try: a file of another process is not removed
    try:
        with file:
            file.writelines(chunks)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def remove_scratch(scratch: Path) -> None:
    """Remove a step's folder at once: another process at the same step finds it complete, or absent and creates it."""
    doomed = scratch.with_name(f"{scratch.name}.{os.getpid()}.removed")
    with suppress(OSError):
        os.rename(scratch, doomed)
        for _ in range(3):  # another process may still write into it
            shutil.rmtree(doomed, ignore_errors=True)


def provenance(step: str, seconds: float, threads: int, backend: dict[str, str]) -> dict[str, Any]:
    """Where, when and with what a record was made. It is not part of the record's key."""
    torch = sys.modules.get("torch")
    return {
        "step": step,
        "seconds": round(seconds, 6),
        "threads": threads,
        "device": "cuda" if torch is not None and torch.cuda.is_available() else "cpu",  # cpu if torch was not loaded
        "backend": backend,
        **_machine(),
    }


@cache
def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    libraries = {library: version(library) for library in ("selfloop", "numpy", "scipy", "torch")}
    return {
        "host": platform.node(), "machine": platform.machine(), "python": platform.python_version(), "libraries": libraries
    }  # fmt: skip
