"""Stable identities of stored steps and their arguments, as JSON values and as digests. No identity holds a module path.

A stored step is `<package>.<name>@<version>`, a component `<package>/<kind>/<name>@<version>` with its settings, a settings
table its class name with its settings. The package is the top-level package, or the stem of a script. Moving a file
therefore keeps every key; renaming a component or raising its version changes the keys that depend on it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from selfloop.component import Component, Context
from selfloop.errors import DataError, SelfloopError, os_error_reason
from selfloop.rng import RandomStream

F = TypeVar("F", bound=Callable[..., Any])
_CLASSES: dict[str, str] = {}  # identity -> name of the class that has it in this process


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Digest of stored arrays. A stored step that gets it as an argument receives the arrays."""

    digest: str


def stored_step(name: str, version: int) -> Callable[[F], F]:
    """Declare a function of a module as a stored step. Raise the version if equal arguments start to give other results."""

    def declare(function: F) -> F:
        function.__dict__["stored_step"] = (name, version)
        return function

    return declare


def step_name(function: Callable[..., Any]) -> str:
    """Declared name of a stored step; SelfloopError if the function is not one."""
    declared: tuple[str, int] | None = function.__dict__.get("stored_step")
    if declared is None:
        raise SelfloopError(
            f"store: {function.__qualname__} is not a stored step. Declare it with @stored_step(name, version)."
        )
    return declared[0]


def step_identity(function: Callable[..., Any]) -> str:
    """Identity of a stored step: `selfloop.fit@1`."""
    return f"{package_of(function)}.{step_name(function)}@{function.__dict__['stored_step'][1]}"


def component_identity(cls: type[Component]) -> str:
    """Identity of a component class, without its settings: `selfloop/family/vae@3`.

    A class that inherits its name has its own name in addition. Raises SelfloopError for a class without a name, and for a
    second class of a process with the same package, kind, name and version.
    """
    if not hasattr(cls, "name"):
        raise SelfloopError(f"{cls.__qualname__}: has no name, which identifies its results. Set `name: ClassVar[str]`.")
    own = "" if "name" in vars(cls) else f":{cls.__qualname__}"
    result = f"{package_of(cls)}/{cls.component_kind}/{cls.name}{own}@{cls.version}"
    if _CLASSES.setdefault(result, cls.__qualname__) != cls.__qualname__:
        raise SelfloopError(
            f"{cls.__qualname__}: has the name {cls.name!r} of {_CLASSES[result]}. Give each class its own name."
        )
    return result


def package_of(named: type | Callable[..., Any]) -> str:
    """Top-level package of a class or function, or the stem of the script that defines it, in its worker processes too."""
    module = named.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        return spec.name.partition(".")[0] if spec else Path(file).stem if file else "__main__"
    return module.partition(".")[0]


def identity(value: Any) -> Any:
    """A JSON value that is equal exactly for equal arguments; SelfloopError if the argument has no stable identity."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, ObjectRef):
        return {"object": value.digest}
    if isinstance(value, RandomStream | Context):
        return {"stream": list((value.stream if isinstance(value, Context) else value).path)}
    if isinstance(value, Path):
        return {"file": file_digest(value)}
    return _compound_identity(value)


def _compound_identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return [identity(item) for item in value]
    if isinstance(value, list):
        return {"list": [identity(item) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"map": {name: identity(item) for name, item in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":  # object arrays hold addresses, structured ones names
        return {"array": [value.dtype.str, list(value.shape), digest(np.ascontiguousarray(value).tobytes())]}
    if is_dataclass(value) and not isinstance(value, type):
        name = component_identity(type(value)) if isinstance(value, Component) else type(value).__name__
        return {name: {f.name: identity(getattr(value, f.name)) for f in fields(value) if f.metadata.get("identity", True)}}
    raise SelfloopError(f"store: an argument of type {type(value).__name__} has no stable identity. Pass its settings instead.")


def file_digest(path: Path) -> str:
    """Content digest of a file, or of all files below a folder with their relative names."""
    if path.is_dir():
        files = [[str(file.relative_to(path)), file_digest(file)] for file in sorted(path.rglob("*")) if file.is_file()]
        return digest(json.dumps(files).encode())
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({os_error_reason(problem)}). Check the path.") from problem
    return _file_digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, inode: int, size: int, time_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: blake2b(digest_size=20)).hexdigest()


def digest(*chunks: bytes | memoryview) -> str:
    """Digest of bytes, given in any number of chunks: 160 bits in hexadecimal."""
    result = blake2b(digest_size=20)
    for chunk in chunks:
        result.update(chunk)
    return result.hexdigest()
