"""Results of stored steps in a folder, named by a digest of the step and its arguments. `records.py` writes the files.

A damaged file is set aside and counts as absent: its result is computed again, unless the store is read-only. A finished store
is only read, so it may be of another user, or on a medium that cannot be written.
Processes share a store without waiting for each other's steps. If two compute one step, the first record stands for both.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from selfloop.columns import Column
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, StoreError, is_selfloop_warning
from selfloop.formats.safetensors import read_safetensors
from selfloop.ranks import ALONE, Ranks
from selfloop.store import records
from selfloop.store.calls import NotStoredError, StepCall, Usage
from selfloop.store.folder import StoreFolder
from selfloop.store.identity import CodeDigest, ObjectRef, code_digest, digest, identity, step_identity, step_name
from selfloop.store.inputs import refuse_interrupted, unchanged_inputs

ON_ALL_RANKS = ("fit", "sample", "sample_tokens")  # steps; only rank 0 computes the others


@dataclass
class Store:
    """Results of stored steps in a folder.

    `read_only`: raise `NotStoredError` instead of computing. `record_calls`: keep calls with a result, for `verify` and `gc`.
    """

    path: Path
    read_only: bool = False
    record_calls: bool = False
    threads: int = 1  # in the provenance of steps that get no Context
    note: Callable[[str], float] = field(default=lambda step: 0.0, repr=False)  # of the present step; seconds that it waited
    ranks: Ranks = ALONE  # processes that compute the steps in ON_ALL_RANKS together
    usage: Usage = field(default_factory=Usage)
    calls: list[StepCall] = field(default_factory=list)
    files: StoreFolder = field(init=False, repr=False)
    _makers: dict[str, StepCall] = field(default_factory=dict)  # object digest -> a call with that result, to rebuild it
    _code: CodeDigest = field(default_factory=lambda: cache(code_digest), repr=False)
    _step: str = ""  # that is computed now
    _waited: float = 0.0  # seconds inside it

    def __post_init__(self) -> None:
        self.files = StoreFolder(self.path, self.read_only)

    def call(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """The result of step(*arguments), from its record or computed and recorded.

        Arrays are returned as an `ObjectRef`, everything else as JSON reads it (tuples as lists). Raises ChainEndedError,
        replayed or fresh, if the step ended its chain; SelfloopError if an argument has no stable identity.
        """
        call = StepCall(self.key(step, *arguments), step, arguments)
        result = self.lookup(call)
        if result is None:
            if self.read_only:
                raise NotStoredError(call)
            result = self._compute(call)
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
        """Digest of the identities of a stored step and of its arguments. Code is read once by a store."""
        parts = [step_identity(step, self._code), [identity(argument, self._code) for argument in arguments]]
        return digest(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())

    def open(self, ref: ObjectRef) -> dict[str, Column]:
        """The arrays of an object, memory-mapped. Its digest is verified if its file has changed; if damaged, it is rebuilt."""
        path = self.files.object_path(ref.digest)
        if not self.files.obtain(ref.digest):
            self._rebuild_object(ref, path)
        try:
            return read_safetensors(path)
        except (FileNotFoundError, DataError):  # set aside by another process, or no safetensors file from the start
            self._rebuild_object(ref, path)
            return read_safetensors(path)

    def lookup(self, call: StepCall) -> Mapping[str, Any] | None:
        """Result in a call's record; None if there is none, or if it or its object is damaged. Counts the usage."""
        body = self.files.read_record(call.key)
        if body is None or not self.files.has_object(body):
            return None
        self.usage.reused += 1
        self.usage.seconds_saved += body["provenance"]["seconds"]
        self.usage.warnings |= dict.fromkeys(body["warnings"])
        self.usage.backends.update(body["provenance"]["backend"].items())
        return cast(Mapping[str, Any], body["result"])

    def _compute(self, call: StepCall) -> Mapping[str, Any]:
        """Compute and record a call. If interrupted, nothing is recorded and its scratch folder stays for the next try."""
        self._step = step_name(call.step).replace("_", " ")
        self.note(self._step)
        with self.files.own_scratch(call.key) as scratch:
            return self._compute_in(scratch, call)

    def _compute_in(self, scratch: Path, call: StepCall) -> Mapping[str, Any]:
        name, backends, started = step_name(call.step), dict[str, str](), time.perf_counter()
        self._waited = 0.0
        try:
            ranks = self.ranks if name in ON_ALL_RANKS else ALONE
            arguments = [self.open_argument(argument, scratch, backends, ranks=ranks) for argument in call.arguments]
            with warnings.catch_warnings(record=True) as caught, refuse_interrupted(name), unchanged_inputs(self, call):
                value = ranks.compute((self.path, call, scratch), call.step, arguments)
            seconds = time.perf_counter() - started - self._waited
            result, chunks = records.as_result(value)
            if "object" in result:
                self.files.write_object(result["object"], *chunks)
                self.usage.bytes += sum(map(len, chunks))
        except ChainEndedError as end:
            seconds, result = time.perf_counter() - started - self._waited, {"ended": end.status}
        except OSError as problem:
            raise records.step_error(self.path, name, problem) from problem
        except MemoryError as problem:
            raise records.memory_error(name, problem) from problem
        messages = [str(w.message) for w in caught if is_selfloop_warning(w.category, w.filename)]
        for w in caught:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        counts = Counter(backends.items())
        self.usage.add(Usage(1, 0, seconds, by_step={name: (1, seconds)}, warnings=dict.fromkeys(messages), backends=counts))
        threads = next((a.threads for a in call.arguments if isinstance(a, Context)), self.threads)
        provenance = records.provenance(step_identity(call.step, self._code), seconds, threads, backends)
        body = {"key": call.key, "result": result, "provenance": provenance, "warnings": messages}
        stands = self.files.write_record(body)  # that of another process if it was faster, whose result may differ
        shutil.rmtree(scratch, ignore_errors=True)  # this process alone has it
        return cast(Mapping[str, Any], stands["result"])

    def open_argument(
        self, argument: Any, scratch: Path, backends: dict[str, str], threads: int | None = None, ranks: Ranks = ALONE
    ) -> Any:
        """The argument as the step receives it: objects opened, contexts with a scratch folder."""
        if isinstance(argument, ObjectRef):
            return self.open(argument)
        if isinstance(argument, Context):
            return replace(
                argument, scratch=scratch, threads=threads or argument.threads, backends=backends, progress=self._note_progress,
                ranks=ranks,
            )  # fmt: skip
        if type(argument) is tuple:
            return tuple(self.open_argument(item, scratch, backends, threads, ranks) for item in argument)
        return argument

    def _note_progress(self, done: int, total: int) -> None:
        self._waited += self.note(f"{self._step}, step {done:,} of {total:,}")

    def _rebuild_object(self, ref: ObjectRef, path: str) -> None:
        self.files.set_aside(path)
        maker, place = self._makers.get(ref.digest), records.place_of(self.path)
        if maker is None or self.read_only:
            raise StoreError(f"store {place}: object {ref.digest} is missing or damaged. Run the spec again to recompute it.")
        self.files.drop_record(maker.key, ref.digest)
        if self._compute(maker).get("object") != ref.digest:
            raise StoreError(
                f"store {place}: recomputing object {ref.digest} gave other bytes, as other machines or libraries may. "
                "Run the spec again: what depends on the object is computed again, too."
            )
