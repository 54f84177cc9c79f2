"""Files of a store: immutable objects and records, written whole or not at all, each with a checksum.

`objects/ab/....safetensors` are arrays named by their content; `records/cd/....json` map a key to an object, a value or the
status that ended a chain, with provenance. The first writer of a file wins. No locks but those of scratch folders, no pickle,
nothing is overwritten. What cannot be read is renamed to `....damaged`, by `StoreFolder.set_aside` alone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from selfloop.errors import DataError, SelfloopError, StoreError, os_error_reason
from selfloop.formats.safetensors import is_columns, to_safetensors
from selfloop.store.identity import digest

UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO)  # of one file
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # only writing raises them
FORMAT = 2  # of a store's folder
MAX_TRIES = 100  # to open a folder that other processes remove
CLAIM_SECONDS = 2.0  # after which the claim of a name is taken from a process
MARKER = f"{FORMAT}\nA store of selfloop. Delete the whole folder, or use `selfloop gc`.\n".encode()  # of the file FORMAT


def create_folders(path: Path, marker_content: bytes = b"") -> None:
    """Create the folders of a store and its FORMAT file, of that content if it is given. OSError if that is impossible."""
    for name in ("objects", "records", "scratch"):
        if not os.path.lexists(path / name):
            (path / name).mkdir(parents=True, exist_ok=True)
    if (marker := path / "FORMAT").is_file() and not _read_format(marker).isdecimal():
        marker.unlink(missing_ok=True)
    write_new(f"{path}/FORMAT", marker_content or MARKER)


def _read_format(marker: Path) -> str:
    return marker.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()[:20]


def check_format(path: Path) -> bool:
    """True if the folder is a store, False if it is none or does not exist; StoreError if it is one of another format.

    If the file FORMAT is damaged, the records show the format.
    """
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return False
    marker = path / "FORMAT"
    if not marker.is_file():
        return False
    number = _read_format(marker)
    if not number.isdecimal():
        if any(read_record(file, file.stem) for file in path.glob("records/*/*.json")):
            return True
        raise StoreError(f"store {path}: its file FORMAT is damaged, and it has no readable records. Choose another folder.")
    if number != str(FORMAT):
        raise StoreError(
            f"store {place_of(path)}: has format {number}; this version of selfloop uses format {FORMAT}. Choose another "
            "folder with --store, or delete this one."
        )
    return True


def place_of(path: Path) -> str:
    """What users call a store: the address of its bucket, if the folder holds files of one, else the folder."""
    if (file := path / "BUCKET").is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    return str(path)


def store_error(path: Path, action: str, problem: OSError) -> StoreError:
    """The error for a store that cannot be read or written."""
    advice = "Free some space, then run again." if problem.errno in DISK_ERRORS else "Choose another folder for the store."
    return StoreError(f"store {place_of(path)}: cannot {action} ({os_error_reason(problem)}). {advice}")


def step_error(path: Path, step: str, problem: OSError) -> SelfloopError:
    """The error for a file that a step could not read or write: one of the store, of the user, or a temporary one."""
    file, reason = problem.filename, os_error_reason(problem)
    if problem.errno == errno.ENOMEM:
        return memory_error(step, problem)
    if str(path) in str(problem) or (file is None and problem.errno in (*DISK_ERRORS, errno.EROFS)):
        return store_error(path, "write", problem)
    if file is None:
        return DataError(f"{step}: {reason}." + " Set TMPDIR to a folder that can be written." * ("temporary" in reason))
    return DataError(f"{step}: {file}: {reason}. {'Free some space' if problem.errno in DISK_ERRORS else 'Check that file'}.")


def memory_error(step: str, problem: Exception) -> SelfloopError:
    """The error for a step that needs more memory than there is."""
    return SelfloopError(f"{step}: not enough memory ({problem}). Lower n or the number of seeds.")


def with_checksum(body: bytes) -> bytes:
    """Content of a record file: its body and the digest of the body's bytes."""
    return b'{"body": %b, "checksum": "%b"}' % (body, digest(body).encode())


def as_result(value: Any) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """What the record of a step with that value holds, and the content of its object."""
    if not is_columns(value):
        return {"value": json.loads(json.dumps(value, allow_nan=False))}, []
    chunks = to_safetensors(value)
    return {"object": digest(*chunks)}, chunks


def read_record(path: str | Path, key: str) -> dict[str, Any] | None:
    """The body of a record file; None if there is no readable file, any byte was changed, or it is of another key."""
    if file_stat(path) is None:
        return None
    try:
        return parse_record(Path(path).read_bytes(), key)
    except OSError as problem:
        if problem.errno not in UNREADABLE:
            raise
        return None


def parse_record(data: bytes, key: str) -> dict[str, Any] | None:
    """The body in the content of a record file; None if any byte was changed, or if it is of another key."""
    body = data.removeprefix(b'{"body": ').rpartition(b', "checksum": "')[0]
    try:
        parsed = json.loads(body) if with_checksum(body) == data else None
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) and parsed.get("key") == key else None


def file_stat(path: str | Path) -> list[int] | None:
    """Size and modification time of a file, a cheap sign that it is unchanged; None if there is no file."""
    return list(stamp(path)[1:3]) or None


def stamp(path: str | Path) -> tuple[int, ...]:
    """What differs when a file was written, even if its time of writing was set back; empty if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    is_file = stat.S_ISREG(status.st_mode)
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) if is_file else ()


def obstacle(root: Path, path: str | Path) -> Path | None:
    """What stands in the place of a folder on the way to a path in a store, such as a file or a link to itself."""
    folders = [folder for folder in reversed(Path(path).parents) if root in folder.parents]
    return next((folder for folder in folders if not _is_free(folder)), None)


def _is_free(folder: Path) -> bool:
    """True if a folder is there or can be created. It is looked at once: other processes create and remove it."""
    try:
        return stat.S_ISDIR(os.lstat(folder).st_mode) or folder.is_dir()
    except OSError:
        return True


def write_new(path: str, *chunks: bytes | memoryview, mode: int = 0o666) -> bool:
    """Create the file whole or not at all. False if there is one, which is kept: another process wrote it first."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/.{os.getpid()}-{time.monotonic_ns()}.tmp"
    os.makedirs(folder, exist_ok=True)
    file = open(temporary, "xb")  # noqa: SIM115  # outside the try: a file of another process is not removed
    try:
        with file:
            file.writelines(chunks)
        if mode & 0o222 == 0:
            os.chmod(temporary, mode & os.stat(temporary).st_mode)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links, as of memory sticks and of clouds
            return _move_new(temporary, path)
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def _move_new(temporary: str, path: str) -> bool:
    """Move a file to a path where there is none; False if there is one. Of several processes, that which has the claim moves.

    The claim is the folder with the file to move, under a name that only one folder can have. From a process that was killed
    or is slow it is taken by renaming that folder back: then moving fails there, so that nothing is ever replaced.
    """
    (folder, name), deadline = os.path.split(temporary), time.monotonic() + CLAIM_SECONDS
    claim, own = f"{folder}/.{os.path.basename(path)}.claim", f"{temporary}.claim"
    os.mkdir(own)
    try:
        os.rename(temporary, f"{own}/{name}")
        while not os.path.exists(path):
            if not _has_claimed(own, claim):
                if time.monotonic() > deadline:
                    deadline += CLAIM_SECONDS
                    with suppress(OSError, IndexError):  # it ended at this moment
                        os.rename(claim, f"{folder}/{os.listdir(claim)[0]}.claim")
                time.sleep(0.01)
            elif not os.path.exists(path):
                with suppress(FileNotFoundError):  # the claim was taken
                    os.rename(f"{claim}/{name}", path)
                    return True
        return False
    finally:
        for place in (claim, own):
            Path(place, name).unlink(missing_ok=True)
            with suppress(OSError):  # absent, or of another process
                os.rmdir(place)


def _has_claimed(own: str, claim: str) -> bool:
    try:
        os.rename(own, claim)
    except OSError as problem:
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@contextmanager
def own_scratch(scratch: Path) -> Iterator[Path]:
    """A step's folder for this process alone. If another one has it, at the same step, a new folder, which does not stay.

    The lock of the folder ends with its process. On a file system without locks the folder is always new, so that an
    interrupted step begins again. OSError if no folder can be created.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(scratch, os.O_RDONLY)
            break
        except (FileNotFoundError, FileExistsError):  # another process has just removed it
            if not tries_left:
                raise
    try:
        has_it = _is_locked(descriptor, scratch)
        own = scratch if has_it else Path(tempfile.mkdtemp(prefix=f"{scratch.name}.", dir=scratch.parent))
        try:
            yield own
        finally:
            if not has_it:
                shutil.rmtree(own, ignore_errors=True)
            with suppress(OSError):  # it is not empty, for the next try
                (scratch if has_it is None else own).rmdir()
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, folder: Path) -> bool | None:
    """True if this process has the lock of an open folder now; False if it was removed; None if there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except OSError as problem:
        return False if problem.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT) else None


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
