"""Stable identities: what makes two arguments of a stage the same, as a JSON value and as a digest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.component import Component, Context
from selfloop.errors import DataError, SelfloopError
from selfloop.rng import Stream


@dataclass(frozen=True, slots=True)
class Ref:
    """Stored arrays, by content; as an argument of a stage it arrives opened."""

    digest: str


def identity(value: Any) -> Any:
    """A JSON value that is the same exactly when the argument is; SelfloopError when it has no stable one."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Ref):
        return {"object": value.digest}
    if isinstance(value, Stream | Context):
        return {"stream": list((value.stream if isinstance(value, Context) else value).path)}
    if isinstance(value, Path):
        return {"file": file_digest(value)}
    return _of_many(value)


def _of_many(value: Any) -> Any:
    if isinstance(value, tuple):
        return [identity(part) for part in value]
    if isinstance(value, list):
        return {"list": [identity(part) for part in value]}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"map": {name: identity(part) for name, part in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":  # objects are addresses, records lose their names
        return {"array": [value.dtype.str, list(value.shape), digest_of(np.ascontiguousarray(value).tobytes())]}
    if is_dataclass(value) and not isinstance(value, type):
        version = type(value).version if isinstance(value, Component) else 1
        settings = {f.name: identity(getattr(value, f.name)) for f in fields(value) if f.metadata.get("identity", True)}
        return {"component": [qualified_name(type(value)), version, settings]}
    raise SelfloopError(f"store: an argument of type {type(value).__name__} has no stable identity; pass its settings instead.")


def qualified_name(named: type | Callable[..., Any]) -> str:
    """Module and name of a class or function; the same in a script, in its worker processes, and where it is imported."""
    module = named.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else "__main__"
    return f"{module}.{named.__qualname__}"


def file_digest(path: Path) -> str:
    """Content digest of a file, or of all files below a folder with their relative names."""
    if path.is_dir():
        parts = [[str(p.relative_to(path)), file_digest(p)] for p in sorted(path.rglob("*")) if p.is_file()]
        return digest_of(json.dumps(parts).encode())
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({reason_of(problem)}). Check the path.") from problem
    return _file_digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, inode: int, size: int, time_ns: int) -> str:
    digest = blake2b(digest_size=20)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digest_of(*pieces: bytes | memoryview) -> str:
    """Digest of bytes, which may come in pieces: 160 bits in hexadecimal."""
    digest = blake2b(digest_size=20)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def reason_of(problem: OSError) -> str:
    """What the operating system says, in a few words."""
    return (problem.strerror or type(problem).__name__).lower()
