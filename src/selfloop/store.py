"""The store: results of stages by the digest of what they were made from. No locks, no pickle, nothing overwritten.

`objects/ab/....safetensors` are immutable arrays named by their content; `records/cd/....json` map a key (a digest of the
stage's function and its arguments) to an object, a value, or the reason a chain ended, with provenance. Files appear whole
(temp file, then an atomic link; the first writer wins); a damaged one counts as absent and is computed again.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from selfloop.arrays import packed, read_arrays
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, SelfloopError, StoreError, is_ours
from selfloop.identity import Ref, digest_of, file_digest, identity, qualified_name, reason_of
from selfloop.types import Column, Ragged

F = TypeVar("F", bound=Callable[..., Any])
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what only writing meets


def stage(version: int) -> Callable[[F], F]:
    """Declare the version of a stage function; raise it when the same arguments start to give other results."""

    def declare(function: F) -> F:
        function.__dict__["stage_version"] = version
        return function

    return declare


class NotStoredError(Exception):
    """A store that only looks was asked for a stage it does not have."""


@dataclass(frozen=True, slots=True)
class Call:
    """One use of the store: enough to recompute it."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Usage:
    """What a run cost and what it found already stored."""

    computed: int = 0
    reused: int = 0
    seconds: float = 0.0  # spent on computed stages
    saved: float = 0.0  # seconds the reused stages took when they were computed
    bytes: int = 0  # of arrays written
    by_stage: dict[str, tuple[int, float]] = field(default_factory=dict)  # stage -> (computed, seconds)
    said: dict[str, None] = field(default_factory=dict)  # our warnings of stages computed or reused, each once

    def add(self, other: Usage) -> None:
        """Count another run's use in."""
        for name in ("computed", "reused", "seconds", "saved", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, (count, seconds) in other.by_stage.items():
            before = self.by_stage.get(name, (0, 0.0))
            self.by_stage[name] = (before[0] + count, before[1] + seconds)
        self.said |= other.said


@dataclass
class Store:
    """A folder of stage results. `looking` = never compute; `remembering` = keep the calls for a later audit."""

    path: Path
    looking: bool = False
    remembering: bool = False
    threads: int = 1  # that stages without a Context may use; for the provenance
    usage: Usage = field(default_factory=Usage)
    calls: list[Call] = field(default_factory=list)
    _makers: dict[str, Call] = field(default_factory=dict)  # object -> the call that gives it
    _checked: set[str] = field(default_factory=set)  # objects whose digest this process has seen to be right

    def __post_init__(self) -> None:
        if self.looking:
            return
        try:
            for part in ("objects", "records", "scratch"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            _write_new(f"{self.path}/.selfloop", b"A selfloop store. Delete it as a whole, or with `selfloop gc`.\n")
        except OSError as problem:
            raise self._unusable("write", problem) from problem

    def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of function(*arguments): from its record, or computed and recorded.

        Arrays come back as a `Ref`, everything else as JSON reads it. Raises ChainEndedError, replayed or fresh, when the
        stage ended its chain; SelfloopError when an argument has no stable identity.
        """
        key = self.key(function, *arguments)
        call = Call(key, function, arguments)
        if self.remembering:
            self.calls.append(call)
        result = self._recall(call)
        if result is None:
            if self.looking:
                raise NotStoredError(key)
            result = self._compute(call)
        else:
            self.usage.reused += 1
        return self._deliver(call, result)

    def key(self, function: Callable[..., Any], *arguments: Any) -> str:
        """Digest of the function's qualified name and declared version and of every argument."""
        name = qualified_name(function)
        if "<" in name:
            raise SelfloopError(f"store: {name} has no stable identity; a stored step is a function of a module.")
        version = function.__dict__.get("stage_version", 1)
        text = json.dumps([name, version, [identity(a) for a in arguments]], sort_keys=True, separators=(",", ":"))
        return digest_of(text.encode())

    def open(self, ref: Ref) -> dict[str, Column]:
        """The arrays of an object, memory-mapped; its digest is checked on first sight and a damaged one is remade."""
        path = self._object(ref.digest)
        if ref.digest not in self._checked:
            if not _intact(path, ref.digest):
                self._remake(ref, path)
            self._checked.add(ref.digest)
        try:
            return read_arrays(path)
        except FileNotFoundError:  # deleted since: by hand, or by another process that found it damaged
            self._remake(ref, path)
            return read_arrays(path)

    def _deliver(self, call: Call, result: Mapping[str, Any]) -> Any:
        if "ended" in result:
            raise ChainEndedError(result["ended"])
        if "object" not in result:
            return result["value"]
        self._makers[result["object"]] = call
        return Ref(result["object"])

    def _recall(self, call: Call) -> Mapping[str, Any] | None:
        """What the record says; None when there is none, or it or its object is damaged."""
        path = self._record(call.key)
        try:
            with open(path, "rb") as file:
                body = _unsealed(file.read())
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise self._unusable("read", problem) from problem
        if body is None or body["key"] != call.key:
            self._discard(path)
            return None
        result = cast(Mapping[str, Any], body["result"])
        if "object" in result:
            target = self._object(result["object"])
            if _stamp(target) != body["stamp"] and result["object"] not in self._checked:
                if not _intact(target, result["object"]):
                    self._discard(target)
                    if not self.looking:
                        Path(path).unlink(missing_ok=True)  # replaced too: what is computed now may be kept under another name
                    return None
                self._checked.add(result["object"])
        self.usage.saved += body["provenance"]["seconds"]
        self.usage.said |= dict.fromkeys(body.get("said", ()))  # records of before have none
        return result

    def _compute(self, call: Call) -> Mapping[str, Any]:
        scratch = self.path / "scratch" / call.key
        started = time.perf_counter()
        try:
            arguments = [self._ready(argument, scratch) for argument in call.arguments]  # warns of damaged files
            with warnings.catch_warnings(record=True) as heard:
                value = call.function(*arguments)
            seconds = time.perf_counter() - started
            result = self._keep(value)
        except ChainEndedError as end:
            seconds, result = time.perf_counter() - started, {"ended": end.status}
        except OSError as problem:
            raise self._failure(call, problem) from problem
        except MemoryError as problem:
            raise SelfloopError(
                f"{call.function.__name__}: not enough memory ({problem}). Lower n or the number of seeds."
            ) from problem
        self._note(call, seconds)
        said = [str(each.message) for each in heard if is_ours(each.category, each.filename)]
        self.usage.said |= dict.fromkeys(said)
        for each in heard:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        threads = next((a.threads for a in call.arguments if isinstance(a, Context)), self.threads)
        stamp = _stamp(self._object(result["object"])) if "object" in result else None
        made = provenance(call, seconds, threads)
        body = {"key": call.key, "result": result, "stamp": stamp, "provenance": made, "said": said}
        self._write(self._record(call.key), _sealed(json.dumps(body).encode()))
        _remove(scratch)
        return result

    def _note(self, call: Call, seconds: float) -> None:
        name = call.function.__name__
        count, total = self.usage.by_stage.get(name, (0, 0.0))
        self.usage.by_stage[name] = (count + 1, total + seconds)
        self.usage.computed += 1
        self.usage.seconds += seconds

    def _keep(self, value: Any) -> dict[str, Any]:
        if not _is_columns(value):
            return {"value": json.loads(json.dumps(value, allow_nan=False))}
        pieces = packed(value)
        digest = digest_of(*pieces)
        path = self._object(digest)
        if os.path.exists(path) and not _intact(path, digest):
            self._discard(path)
        self._write(path, *pieces)
        self._checked.add(digest)
        self.usage.bytes += sum(map(len, pieces))
        return {"object": digest}

    def _ready(self, argument: Any, scratch: Path) -> Any:
        """The argument as the function gets it: references opened, contexts with a scratch folder."""
        if isinstance(argument, Ref):
            return self.open(argument)
        if isinstance(argument, Context):
            return replace(argument, scratch=scratch)
        if isinstance(argument, tuple) and type(argument) is tuple:
            return tuple(self._ready(part, scratch) for part in argument)
        return argument

    def recompute(self, call: Call) -> Mapping[str, Any]:
        """The result of a call computed afresh with the record's number of threads, to be compared; nothing is recorded."""
        from threadpoolctl import threadpool_limits

        scratch = self.path / "scratch" / f"audit-{call.key}"
        body = _unsealed(Path(self._record(call.key)).read_bytes())
        threads = body["provenance"]["threads"] if body else self.threads
        ready = (self._ready(argument, scratch) for argument in call.arguments)
        try:
            with threadpool_limits(threads):
                value = call.function(*(replace(a, threads=threads) if isinstance(a, Context) else a for a in ready))
        except ChainEndedError as end:
            return {"ended": end.status}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if _is_columns(value):
            return {"object": digest_of(*packed(value))}
        return {"value": json.loads(json.dumps(value, allow_nan=False))}

    def recorded(self, call: Call) -> Mapping[str, Any] | None:
        """What the store says of a call; None when it says nothing."""
        return self._recall(call)

    def object_of(self, record: Path) -> str | None:
        """Digest of the object a record file speaks of; None when it is damaged or holds a value."""
        body = _unsealed(record.read_bytes())
        return None if body is None else cast("str | None", body["result"].get("object"))

    def _remake(self, ref: Ref, path: str) -> None:
        if os.path.exists(path):
            self._discard(path)
        maker = self._makers.get(ref.digest)
        if maker is None or self.looking:
            raise StoreError(f"store {self.path}: object {ref.digest} is missing. Run the spec again to recompute it.")
        if self._compute(maker).get("object") != ref.digest:
            raise StoreError(f"store {self.path}: recomputing object {ref.digest} gave other bytes. Use another store.")

    def _discard(self, path: str) -> None:
        warnings.warn(f"{'damaged' if os.path.exists(path) else 'missing'} file {path}: computed again", stacklevel=2)
        if not self.looking:
            Path(path).unlink(missing_ok=True)

    def _write(self, path: str, *pieces: bytes | memoryview) -> None:
        try:
            _write_new(path, *pieces)
        except OSError as problem:
            raise self._unusable("write", problem) from problem

    def _unusable(self, deed: str, problem: OSError) -> StoreError:
        advice = "Free some space, then run again." if problem.errno in FULL else "Choose another folder with --store."
        return StoreError(f"store {self.path}: cannot {deed} ({reason_of(problem)}). {advice}")

    def _failure(self, call: Call, problem: OSError) -> SelfloopError:
        """What a stage could not read or write: something of the store, or a user's file."""
        where = str(problem.filename or problem)
        if problem.errno in FULL or str(self.path) in where:
            return self._unusable("write", problem)
        return DataError(f"{call.function.__name__}: {where}: {reason_of(problem)}. Check that file.")

    def _object(self, digest: str) -> str:  # strings: paths would be a third of the cost of a replay
        return f"{self.path}/objects/{digest[:2]}/{digest}.safetensors"

    def _record(self, key: str) -> str:
        return f"{self.path}/records/{key[:2]}/{key}.json"


def provenance(call: Call, seconds: float, threads: int) -> dict[str, Any]:
    """Where and how a record was made. Not part of its identity."""
    return {
        "stage": qualified_name(call.function),
        "seconds": round(seconds, 6),
        "threads": threads,
        "device": _device(),
        **_machine(),
    }


@cache
def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    libraries = {library: version(library) for library in ("selfloop", "numpy", "scipy", "torch")}
    machine = {"host": platform.node(), "machine": platform.machine(), "python": platform.python_version()}
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)  # decides how transformers are run
    return {**machine, "compiler": compiler and os.path.realpath(compiler), "libraries": libraries}


def _device() -> str:
    """What networks run on; a run that has not loaded torch has none."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _is_columns(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(v, np.ndarray | np.generic | Ragged) for v in value.values())
    )


def _sealed(body: bytes) -> bytes:
    """A record file: its body and the digest of the body's bytes."""
    return b'{"body": %b, "check": "%b"}' % (body, digest_of(body).encode())


def _unsealed(data: bytes) -> dict[str, Any] | None:
    """The body of a record file; None when any byte of it is not as written."""
    body = data.removeprefix(b'{"body": ').rpartition(b', "check": "')[0]
    return cast("dict[str, Any]", json.loads(body)) if body and _sealed(body) == data else None


def _remove(scratch: Path) -> None:
    """Remove a stage's folder in one step: a process at the same stage finds it as it was, or gone and makes it again."""
    away = scratch.with_name(f"{scratch.name}.{os.getpid()}.gone")
    with suppress(OSError):
        os.rename(scratch, away)
        for _ in range(3):  # what another process was writing there may come between
            shutil.rmtree(away, ignore_errors=True)


def _stamp(path: str) -> list[int] | None:
    """Size and time of change of a file: cheap signs that it is the one that was written."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _intact(path: str, digest: str) -> bool:
    return os.path.exists(path) and file_digest(Path(path)) == digest


def _write_new(path: str, *pieces: bytes | memoryview) -> None:
    """Create the file whole or not at all; one that exists is left alone (another process was first, with the same)."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/.{os.getpid()}-{time.monotonic_ns()}.tmp"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "wb") as file:
            file.writelines(pieces)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
