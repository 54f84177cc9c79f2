"""Stable identities of stored steps and their arguments, as JSON values and as digests. No identity holds a module path.

A stored step is `<package>.<name>@<version>`, a component `<package>/<kind>/<name>@<version>` with its settings, a settings
table its class name with its settings. The package is the top-level package, or the stem of a script. Moving a file
therefore keeps every key; renaming a component or raising its version changes the keys that depend on it. Code that is
not installed has a digest of itself in its identity: `code_digest`.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import json
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np

from selfloop.component import Component, Context
from selfloop.errors import DataError, SelfloopError, os_error_reason
from selfloop.formats.folders import list_folder
from selfloop.rng import RandomStream
from selfloop.settings import default_of, has_default_settings
from selfloop.source_code import cell_digests, is_installed, is_installed_file, source_digests

F = TypeVar("F", bound=Callable[..., Any])
CodeDigest = Callable[[Any], str]
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


def step_identity(function: Callable[..., Any], code: CodeDigest | None = None) -> str:
    """Identity of a stored step: `selfloop.fit@1`."""
    name, code = step_name(function), code or code_digest
    return f"{package_of(function)}.{name}@{function.__dict__['stored_step'][1]}{code(function)}"


def component_identity(cls: type[Component], code: CodeDigest | None = None) -> str:
    """Identity of a component class, without its settings: `selfloop/family/vae@3`.

    A class that inherits its name has its own name in addition. Raises SelfloopError for a class without a name or source
    code, and for a second class of a process with the same package, kind, name, version and code.
    """
    if not hasattr(cls, "name"):
        raise SelfloopError(f"{cls.__qualname__}: has no name, which identifies its results. Set `name: ClassVar[str]`.")
    own = "" if "name" in vars(cls) else f":{cls.__qualname__}"
    result = f"{package_of(cls)}/{cls.component_kind}/{cls.name}{own}@{cls.version}{(code or code_digest)(cls)}"
    if _CLASSES.setdefault(result, cls.__qualname__) != cls.__qualname__:
        raise SelfloopError(
            f"{cls.__qualname__}: has the name {cls.name!r} of {_CLASSES[result]}. Give each class its own name."
        )
    return result


def code_digest(code: type | Callable[..., Any]) -> str:
    """`+` and a digest of the code of a class or function, with the plain values that it reads; empty if it is installed.

    Its source files count whole, with those of the modules that they import. Outside of files (in a notebook) the cells count
    of all functions that it can reach. Raises SelfloopError for code without source, and for a value that it reads, of a
    notebook or of a function around it, without a stable identity.
    """
    parts = sorted(set(_code_parts(code, set())))
    return f"+{digest(json.dumps(parts).encode())}" if parts else ""


def _code_parts(code: type | Callable[..., Any] | ModuleType, seen: set[int]) -> Iterator[str]:
    """Digests of source, and plain values with their names, that decide what a module, class or function does."""
    module = code.__name__ if isinstance(code, ModuleType) else code.__module__
    if id(code) in seen or is_installed(module):
        return
    seen.add(id(code))
    files = source_digests(module)
    yield from files
    if isinstance(code, ModuleType):
        for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
            yield from source_digests(name)
    elif isinstance(code, FunctionType):
        yield from _function_parts(code, seen)
    elif isinstance(code, type):
        functions: list[Any] = [function for member in vars(code).values() for function in _functions_of(member)]
        if not functions and not files:
            raise _no_source(code)
        for part in (*functions, *code.__mro__[1:]):
            yield from _code_parts(part, seen)
        for name, value in vars(code).items():
            changeable = not files and isinstance(value, list | tuple | dict | np.ndarray)  # it may come from another cell
            if not name.startswith("__") and (changeable or _is_constant(value)):
                yield _value_part(code, name, value)


def _functions_of(member: Any) -> list[FunctionType]:
    """The functions in an attribute of a class that a person wrote: a method, or those of a property."""
    values = [member, *(getattr(member, name, None) for name in ("__func__", "fget", "fset", "func"))]
    functions = [value for value in values if isinstance(value, FunctionType)]
    return [f for f in functions if inspect.unwrap(f).__code__.co_filename != "<string>"]  # which dataclasses generate


def _function_parts(function: FunctionType, seen: set[int]) -> Iterator[str]:
    file, written_in = str(getattr(sys.modules.get(function.__module__), "__file__", "")), function.__code__.co_filename
    is_wrapper = is_installed_file(written_in)  # of a decorator: what it wraps is in its closure
    in_file = is_wrapper or (bool(source_digests(function.__module__)) and Path(file).name == Path(written_in).name)
    if not in_file:
        if not (text := "".join(linecache.getlines(written_in, function.__globals__))):
            raise _no_source(function)
        yield from cell_digests(text)
    defaults = {f"default {i}": value for i, value in enumerate(function.__defaults__ or ())}
    around = {**inspect.getclosurevars(function).nonlocals, **defaults, **(function.__kwdefaults__ or {})}
    global_names = () if is_wrapper else _global_names(function.__code__) & function.__globals__.keys()
    for name, value in ({name: function.__globals__[name] for name in global_names} | around).items():
        if isinstance(value, type | FunctionType | ModuleType):
            yield from _code_parts(value, seen)
        elif _is_constant(value) or not (
            is_wrapper or (in_file and name not in around) or isinstance(value, BuiltinFunctionType | np.ufunc)
        ):
            yield _value_part(function, name, value)


@cache
def _global_names(code: CodeType) -> frozenset[str]:
    """Names of the globals that code, and the functions in it, read."""
    inner = [_global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return frozenset(own).union(*inner)


def _is_constant(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool | int | float | str) or (type(value) is tuple and all(map(_is_constant, value)))
    )


def _value_part(code: type | FunctionType, name: str, value: Any) -> str:
    try:
        return f"{name} = {json.dumps(identity(value), sort_keys=True)}"
    except (SelfloopError, RecursionError):
        raise SelfloopError(
            f"{code.__qualname__}: reads {name!r}, a {type(value).__name__} without a stable identity. "
            "Make it a setting, or write both in a Python file."
        ) from None


def _no_source(code: type | FunctionType) -> SelfloopError:
    problem = "has no source code, which is a part of the identity of its results"
    return SelfloopError(f"{code.__qualname__}: {problem}. Write it in a Python file, or in a cell of a notebook.")


def package_of(named: type | Callable[..., Any]) -> str:
    """Top-level package of a class or function, or the stem of the script that defines it, in its worker processes too."""
    module = named.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        return spec.name.partition(".")[0] if spec else Path(file).stem if file else "__main__"
    return module.partition(".")[0]


def identity(value: Any, code: CodeDigest | None = None) -> Any:
    """A JSON value that is equal exactly for equal arguments; SelfloopError if the argument has no stable identity.

    `code`: a cached `code_digest`, whose digests hold as long as its cache.
    """
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
    return _compound_identity(value, code or code_digest)


def _compound_identity(value: Any, code: CodeDigest) -> Any:
    if isinstance(value, tuple):
        return [identity(item, code) for item in value]
    if isinstance(value, list):
        return {"list": [identity(item, code) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"map": {name: identity(item, code) for name, item in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":  # object arrays hold addresses, structured ones names
        return {"array": [value.dtype.str, list(value.shape), digest(np.ascontiguousarray(value).tobytes())]}
    if is_dataclass(value) and not isinstance(value, type):
        cls: type[Any] = type(value)
        default = vars(cls).get("default_identity")  # a subclass may give other results
        if isinstance(value, Component) and default is not None and has_default_settings(value):
            return identity(default(), code)
        name = component_identity(cls, code) if isinstance(value, Component) else f"{cls.__name__}{code(cls)}"
        settings = [f.name for f in fields(value) if _identifies(f, getattr(value, f.name))]
        result = {setting: identity(getattr(value, setting), code) for setting in settings}
        if isinstance(value, Component) and (versions := value.program_versions()):
            result["@programs"] = {**versions}
        return {name: result}
    raise SelfloopError(f"store: an argument of type {type(value).__name__} has no stable identity. Pass its settings instead.")


def _identifies(f: Field[Any], value: Any) -> bool:
    """True if the value of a field is a part of the identity."""
    kind = f.metadata.get("identity", True)
    return bool(kind) and (kind is True or value != default_of(f))


def file_digest(path: Path) -> str:
    """Content digest of a file, or of all visible files below a folder with their relative names."""
    if path.is_dir():
        listing = list_folder(path)
        files = [[name, file_digest(path / name)] for name in (*listing.sizes, *listing.repeated)]
        return digest(json.dumps(files).encode())
    try:
        status = path.stat()
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({os_error_reason(problem)}). Check the path.") from problem
    return _file_digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, inode: int, size: int, time_ns: int) -> str:
    with path.open("rb") as file:
        return digest_file(file)


def digest_file(file: Any) -> str:
    """As `digest`, of the bytes of an open file."""
    return hashlib.file_digest(file, lambda: blake2b(digest_size=20)).hexdigest()


def digest(*chunks: bytes | memoryview) -> str:
    """Digest of bytes, given in any number of chunks: 160 bits in hexadecimal."""
    result = blake2b(digest_size=20)
    for chunk in chunks:
        result.update(chunk)
    return result.hexdigest()
