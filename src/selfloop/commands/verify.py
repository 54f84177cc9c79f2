"""Checks all files of a run, and recomputes some of its records: equal, or close if another backend made the record."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.columns import Array, Columns
from selfloop.engine import steps
from selfloop.engine.executors import Notify, count_cores, execute
from selfloop.engine.tasks import plan_tasks, run_task
from selfloop.engine.token_counts import sample_tokens
from selfloop.errors import ChainEndedError, SpecError, StoreError
from selfloop.formats.safetensors import flatten_columns
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.store.calls import NotStoredError, StepCall
from selfloop.store.identity import ObjectRef, step_name
from selfloop.store.interrupts import refuse_interrupted
from selfloop.store.store import Store, as_result

TOLERANCE = 1e-3  # between backends: of the largest absolute value of an array, and of a single value
# A rounding difference can change a sampled token and all after it. Training amplifies it: 1e-7 in the initial parameters of
# a VAE on digits became 0.03 of the largest parameter in 300 steps, and 0.14 in 2,000.
UNSTABLE_STEPS = (steps.fit, steps.prepare_features, steps.sample, steps.sample_curated, sample_tokens)


@dataclass(slots=True)
class Verification:
    """Comparison of stored records with recomputed ones."""

    records: int  # of the spec in the store
    checked: int = 0
    close: int = 0  # made by another backend, and equal within the tolerance
    wrong: list[str] = field(default_factory=list)  # one sentence per record that differs
    not_compared: list[str] = field(default_factory=list)  # one sentence per record that cannot be compared
    damaged: list[str] = field(default_factory=list)  # files, records and objects, that are damaged or missing
    backends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (purpose, backend) -> records of the spec


def verify(spec: Spec, path: Path, records: int, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check every file that a spec uses, recompute randomly chosen records and compare. The store stays as it is.

    Raises SpecError if the store has no record of the spec.
    """
    store = Store(path, read_only=True, record_calls=True)
    tasks = [task for phase in plan_tasks(spec, path) for task in phase]
    for task in tasks:
        with suppress(NotStoredError, StoreError):
            for _ in run_task(task, store):
                pass
    calls = {call.key: call for call in store.calls}
    if not calls and not store.files.damaged:
        raise SpecError(f"verify: store {path} has no record of this spec. Run the spec first.")
    verification = Verification(len(calls))
    for key in calls:
        if body := store.files.read_record(key):
            verification.backends.update(body["provenance"]["backend"].items())
            if "object" in body["result"] and not store.files.is_intact(body["result"]["object"]):
                store.files.damaged.append(store.files.object_path(body["result"]["object"]))
    verification.damaged = sorted(set(store.files.damaged))
    rng = RandomStream(("verify", time.time_ns())).generator()
    picks = [calls[key] for key in rng.permutation(sorted(calls))[:records]]
    isolated = any(task.takes_over_interrupts for task in tasks)
    for outcome, sentence in execute(_compare_calls, [(path, picks)], 1, count_cores(), isolated=isolated):
        verification.checked += 1
        verification.close += outcome == "close"
        {"wrong": verification.wrong, "not compared": verification.not_compared}.get(outcome, []).append(sentence)
        if progress:
            progress(verification.checked, len(picks))
    return verification


def _compare_calls(work: tuple[Path, list[StepCall]], notify: Notify) -> Iterator[tuple[str, str]]:
    """Recompute calls and compare them with their records: "equal", "close", "wrong" or "not compared", and a sentence."""
    path, calls = work
    store = Store(path, read_only=True)
    for call in calls:
        outcome, problem = _compare(store, call)
        yield outcome, f"{step_name(call.step)} {call.key}: {problem}"


def _compare(store: Store, call: StepCall) -> tuple[str, str]:
    body = store.files.read_record(call.key, call.step)
    if body is None or not store.files.has_object(body):
        return "wrong", "the record or its object is damaged."
    recorded, provenance, backend = body["result"], body["provenance"], dict[str, str]()
    try:
        fresh, value = _recompute(store, call, provenance["threads"], backend)
    except StoreError as problem:  # of an object that the step reads
        return "not compared", str(problem)
    if recorded == fresh:
        return "equal", ""
    if provenance["backend"] == backend:
        return "wrong", f"the record has {recorded}; recomputing gives {fresh}."
    backends = f"made by {_describe_backend(provenance['backend'])}, recomputed by {_describe_backend(backend)}"
    if call.step in UNSTABLE_STEPS:
        return "not compared", f"{backends}. Models and samples of two backends cannot be compared."
    if _is_close(store, recorded, fresh, value):
        return "close", ""
    return "wrong", f"{backends}; they differ by more than {TOLERANCE:g} of the largest value."


def _recompute(store: Store, call: StepCall, threads: int, backend: dict[str, str]) -> tuple[Mapping[str, Any], Any]:
    """The result of a call as a record holds it, and its value (None if the chain ended). Enters its backends."""
    scratch = store.path / "scratch"
    with (
        TemporaryDirectory(prefix="verify-", dir=scratch if os.access(scratch, os.W_OK) else None) as folder,
        refuse_interrupted(step_name(call.step)),
        threadpool_limits(threads),
    ):
        try:
            value = call.step(*(store.open_argument(a, Path(folder), backend, threads) for a in call.arguments))
        except ChainEndedError as end:
            return {"ended": end.status}, None
    return as_result(value)[0], value


def _describe_backend(backend: Mapping[str, str]) -> str:
    return ", ".join(backend.values()) or "an unknown backend"


def _is_close(store: Store, recorded: Mapping[str, Any], fresh: Mapping[str, Any], value: Any) -> bool:
    """True if a recorded result equals a recomputed one within the tolerance."""
    if recorded.keys() != fresh.keys() or "ended" in fresh:
        return False
    columns = store.open(ObjectRef(recorded["object"])) if "object" in recorded else _as_columns(recorded["value"])
    stored, computed = flatten_columns(columns), flatten_columns(value if "object" in fresh else _as_columns(fresh["value"]))
    return stored.keys() == computed.keys() and all(_arrays_are_close(stored[name], computed[name]) for name in stored)


def _as_columns(value: Any) -> Columns:
    """A value, or a mapping of values, as arrays."""
    return {name: np.asarray(item) for name, item in (value.items() if isinstance(value, dict) else [("value", value)])}


def _arrays_are_close(stored: Array, computed: Array) -> bool:
    if stored.dtype != computed.dtype or stored.shape != computed.shape:
        return False
    if not np.issubdtype(stored.dtype, np.floating):
        return np.array_equal(stored, computed)
    largest = float(np.max(np.abs(stored), where=np.isfinite(stored), initial=0.0))
    return np.allclose(stored, computed, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
