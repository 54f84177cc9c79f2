"""Results of stored steps in a folder, named by a digest of the step and its arguments. `records.py` writes the files.

A damaged file is set aside and counts as absent: its result is computed again, unless the store is read-only. A finished store
is only read, so it may be of another user, or on a medium that cannot be written.
Processes share a store without locks: equal keys give equal files, and the first writer of a file wins.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from selfloop.columns import Column
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, StoreError, is_selfloop_warning
from selfloop.formats.safetensors import is_columns, read_safetensors, to_safetensors
from selfloop.store import records
from selfloop.store.calls import NotStoredError, StepCall, Usage, inputs_of, source_stamps
from selfloop.store.identity import ObjectRef, digest, identity, step_identity, step_name
from selfloop.store.interrupts import refuse_interrupted


@dataclass
class Store:
    """Results of stored steps in a folder.

    `read_only`: raise `NotStoredError` instead of computing. `record_calls`: keep calls with a result, for `verify` and `gc`.
    """

    path: Path
    read_only: bool = False
    record_calls: bool = False
    threads: int = 1  # in the provenance of steps that get no Context
    note: Callable[[str], None] = field(default=lambda step: None, repr=False)  # is told what is computed now
    usage: Usage = field(default_factory=Usage)
    calls: list[StepCall] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # files that this store found damaged or missing
    _makers: dict[str, StepCall] = field(default_factory=dict)  # object digest -> a call with that result, to rebuild it
    _is_writable: bool = False
    _step: str = ""  # that is computed now
    _checked: dict[str, Hashable] = field(default_factory=dict)  # digests that were verified -> the files' stamps then

    def __post_init__(self) -> None:
        try:
            if not records.check_format(self.path) and not self.read_only:
                records.create_folders(self.path)
        except OSError as problem:
            raise records.store_error(self.path, "read" if self.read_only else "write", problem) from problem

    def call(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """The result of step(*arguments), from its record or computed and recorded.

        Arrays are returned as an `ObjectRef`, everything else as JSON reads it (tuples as lists). Raises ChainEndedError,
        replayed or fresh, if the step ended its chain; SelfloopError if an argument has no stable identity.
        """
        call = StepCall(self.key(step, *arguments), step, arguments)
        result = self.lookup(call)
        if result is None:
            if self.read_only:
                raise NotStoredError(call.key)
            result = self._compute(call)
        else:
            self.usage.reused += 1
        self.usage.keys.add(call.key)
        if self.record_calls:
            self.calls.append(call)
        if "ended" in result:
            raise ChainEndedError(result["ended"])
        if "object" not in result:
            return result["value"]
        self._makers[result["object"]] = call
        return ObjectRef(result["object"])

    def key(self, step: Callable[..., Any], *arguments: Any) -> str:
        """Digest of the identities of a stored step and of its arguments."""
        parts = [step_identity(step), [identity(argument) for argument in arguments]]
        return digest(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())

    def open(self, ref: ObjectRef) -> dict[str, Column]:
        """The arrays of an object, memory-mapped. Its digest is verified if its file has changed; if damaged, it is rebuilt."""
        path = self.object_path(ref.digest)
        if not self.is_intact(ref.digest):
            self._rebuild_object(ref, path)
        try:
            return read_safetensors(path)
        except (FileNotFoundError, DataError):  # set aside by another process, or no safetensors file from the start
            self._rebuild_object(ref, path)
            return read_safetensors(path)

    def is_intact(self, content: str) -> bool:
        """True if an object has its digest, which is computed again only if its file changed."""
        path = self.object_path(content)
        stamp = records.stamp(path)
        if self._checked.get(content) != stamp and records.is_intact(path, content):
            self._checked[content] = stamp
        return self._checked.get(content) == stamp

    def lookup(self, call: StepCall) -> Mapping[str, Any] | None:
        """Result in a call's record; None if there is none. A damaged record or object is set aside. Counts the usage."""
        path = self.record_path(call.key)
        body = self.read_record(path, call.key)
        if body is None:
            return None
        result = cast(Mapping[str, Any], body["result"])
        if not records.is_result_of(call.step, result):
            self._set_aside(path)
            return None
        target = self.object_path(result["object"]) if "object" in result else None
        if target and (records.file_stat(target) or ()) != body["file_stat"] and not self.is_intact(result["object"]):
            self._set_aside(target)
            if not self.read_only:
                Path(path).unlink(missing_ok=True)  # a step that is not reproducible gives an object of another name
            return None
        self.usage.seconds_saved += body["provenance"]["seconds"]
        self.usage.warnings |= dict.fromkeys(body["warnings"])
        self.usage.backends.update(body["provenance"]["backend"].items())
        return result

    def read_record(self, path: str, key: str) -> dict[str, Any] | None:
        """The body of a record file; None if there is none, or if it is damaged."""
        exists = os.path.lexists(path)  # asked first: another process may write it now
        try:
            body = records.read_record(path, key)
        except OSError as problem:
            raise records.store_error(self.path, "read", problem) from problem
        if body is None and exists:
            self._set_aside(path)
        return body

    def _compute(self, call: StepCall) -> Mapping[str, Any]:
        """Compute and record a call. If interrupted, nothing is recorded and its scratch folder stays for the next try."""
        scratch, name = self.path / "scratch" / call.key, step_name(call.step)
        backends: dict[str, str] = {}
        started = time.perf_counter()
        self._step = name.replace("_", " ")
        self.note(self._step)
        self._make_ready(scratch)
        inputs = list(inputs_of(call.arguments))
        before = source_stamps(inputs)
        try:
            arguments = [self.open_argument(argument, scratch, backends) for argument in call.arguments]
            with warnings.catch_warnings(record=True) as caught, refuse_interrupted(name):
                value = call.step(*arguments)
            seconds = time.perf_counter() - started
            result = self._write_result(value)
        except ChainEndedError as end:
            seconds, result = time.perf_counter() - started, {"ended": end.status}
        except OSError as problem:
            raise records.step_error(self.path, name, problem) from problem
        except MemoryError as problem:
            raise records.memory_error(name, problem) from problem
        self._check_unchanged(call, inputs, before)
        self.usage.computed += 1
        self.usage.seconds += seconds
        self.usage.count_step(name, 1, seconds)
        self.usage.backends.update(backends.items())
        messages = [str(w.message) for w in caught if is_selfloop_warning(w.category, w.filename)]
        self.usage.warnings |= dict.fromkeys(messages)
        for w in caught:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        threads = next((a.threads for a in call.arguments if isinstance(a, Context)), self.threads)
        body = {
            "key": call.key,
            "result": result,
            "file_stat": records.file_stat(self.object_path(result["object"])) if "object" in result else None,
            "provenance": records.provenance(step_identity(call.step), seconds, threads, backends),
            "warnings": messages,
        }
        self._write(self.record_path(call.key), records.with_checksum(json.dumps(body).encode()))
        records.remove_scratch(scratch)
        return result

    def _write_result(self, value: Any) -> dict[str, Any]:
        if not is_columns(value):
            return {"value": json.loads(json.dumps(value, allow_nan=False))}
        chunks = to_safetensors(value)
        name = digest(*chunks)
        path = self.object_path(name)
        if os.path.lexists(path) and not records.is_intact(path, name):
            self._set_aside(path)
        self._write(path, *chunks, mode=0o444)  # its pages are mapped by the steps that read it
        self._checked[name] = records.stamp(path)
        self.usage.bytes += sum(map(len, chunks))
        return {"object": name}

    def open_argument(self, argument: Any, scratch: Path, backends: dict[str, str], threads: int | None = None) -> Any:
        """The argument as the step receives it: objects opened, contexts with a scratch folder."""
        if isinstance(argument, ObjectRef):
            return self.open(argument)
        if isinstance(argument, Context):
            return replace(
                argument, scratch=scratch, threads=threads or argument.threads, backends=backends, progress=self._note_progress
            )
        if type(argument) is tuple:
            return tuple(self.open_argument(item, scratch, backends, threads) for item in argument)
        return argument

    def _note_progress(self, done: int, total: int) -> None:
        self.note(f"{self._step}, step {done:,} of {total:,}")

    def _rebuild_object(self, ref: ObjectRef, path: str) -> None:
        self._set_aside(path)
        maker = self._makers.get(ref.digest)
        if maker is None or self.read_only:
            raise StoreError(
                f"store {self.path}: object {ref.digest} is missing or damaged. Run the spec again to recompute it."
            )
        if self._compute(maker).get("object") != ref.digest:
            raise StoreError(
                f"store {self.path}: recomputing object {ref.digest} gave other bytes, as other machines or libraries may. "
                "Run the spec again: what depends on the object is computed again, too."
            )

    def _make_ready(self, scratch: Path) -> None:
        """Raise StoreError before any work if the store cannot be written; clear the place of the scratch folder."""
        if not self._is_writable:
            try:
                records.create_folders(self.path)
            except OSError as problem:
                raise records.store_error(self.path, "write", problem) from problem
            self._is_writable = True
        if records.obstacle(self.path, scratch / "file"):
            self._set_aside(str(scratch))

    def _check_unchanged(self, call: StepCall, inputs: list[Path | ObjectRef], before: Mapping[Path, Hashable]) -> None:
        """Raise DataError or StoreError if the files that a step has just read are not those of its key."""
        after = source_stamps(inputs)
        changed = [str(file) for file in before.keys() | after.keys() if before.get(file) != after.get(file)]
        if before and not changed and self.key(call.step, *call.arguments) != call.key:
            changed = [str(file) for file in before]
        if changed:
            raise DataError(f"{step_name(call.step)}: {changed[0]} changed while it was read. Nothing was stored; run again.")
        for ref in inputs:
            if isinstance(ref, ObjectRef) and not self.is_intact(ref.digest):
                raise StoreError(f"store {self.path}: object {ref.digest} changed while it was read. Run again.")

    def _set_aside(self, path: str) -> None:
        """Warn of a damaged or missing file, and rename it so that it can be computed again."""
        self.damaged.append(path)
        exists = os.path.lexists(path) or records.obstacle(self.path, path)
        remedy = "" if self.read_only else ": set aside and computed again" if exists else ": computed again"
        warnings.warn(f"{'damaged' if exists else 'missing'} file {path}{remedy}", stacklevel=2)
        if not self.read_only:
            try:
                records.set_aside(self.path, path)
            except OSError as problem:
                raise records.store_error(self.path, "write", problem) from problem

    def _write(self, path: str, *chunks: bytes | memoryview, mode: int = 0o666) -> None:
        try:
            if records.obstacle(self.path, path):
                self._set_aside(path)
            records.write_new(path, *chunks, mode=mode)
        except OSError as problem:
            raise records.store_error(self.path, "write", problem) from problem

    def object_path(self, content: str) -> str:  # text, not Path: creating paths would be a third of the cost of a replay
        return f"{self.path}/objects/{content[:2]}/{content}.safetensors"

    def record_path(self, key: str) -> str:
        return f"{self.path}/records/{key[:2]}/{key}.json"
