"""Checks all files of a run, and recomputes some of its records: equal, or close if another backend made the record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Array, Columns
from selfloop.engine import steps
from selfloop.engine.tasks import plan_tasks, run_task
from selfloop.errors import SpecError, StoreError
from selfloop.formats.safetensors import flatten_columns
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.store.calls import NotStoredError, StepCall
from selfloop.store.checks import provenance_of, recompute
from selfloop.store.identity import ObjectRef, step_name
from selfloop.store.store import Store

TOLERANCE = 1e-3  # between backends: of the largest absolute value of an array, and of a single value
# A rounding difference can change a sampled token and all after it. Training amplifies it: 1e-7 in the initial parameters of
# a VAE on digits became 0.03 of the largest parameter in 300 steps, and 0.14 in 2,000.
UNSTABLE_STEPS = (steps.fit, steps.prepare_features, steps.sample, steps.sample_curated)


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
    damaged = list[str]()
    calls, store = stored_calls([spec], path, damaged), Store(path, read_only=True)
    if not calls and not damaged:
        raise SpecError(f"verify: store {path} has no record of this spec. Run the spec first.")
    verification, keys = Verification(len(calls)), sorted(calls)
    for call in calls.values():
        body = store.files.read_record(call.key) or {"result": {}, "provenance": {"backend": {}}}
        verification.backends.update(body["provenance"]["backend"].items())
        if "object" in body["result"] and not store.files.is_intact(body["result"]["object"]):
            damaged.append(store.files.object_path(body["result"]["object"]))
    rng = RandomStream(("verify", time.time_ns())).generator()
    picks = sorted(rng.choice(len(keys), min(records, len(keys)), replace=False)) if keys else []
    for i in picks:
        _verify_record(store, calls[keys[i]], verification)
        if progress:
            progress(verification.checked, len(picks))
    verification.damaged = sorted({*damaged, *store.files.damaged})
    return verification


def _verify_record(store: Store, call: StepCall, verification: Verification) -> None:
    recorded, provenance, name = store.lookup(call), provenance_of(store, call), f"{step_name(call.step)} {call.key}"
    verification.checked += 1
    if recorded is None:
        verification.wrong.append(f"{name}: the record or its object is damaged.")
        return
    try:
        fresh, value, backend = recompute(store, call, provenance["threads"])
    except StoreError as problem:  # of an object that the step reads
        verification.not_compared.append(f"{name}: {problem}")
        return
    if recorded == fresh:
        return
    stored_backend = provenance["backend"]
    if stored_backend == backend:
        verification.wrong.append(f"{name}: the record has {recorded}; recomputing gives {fresh}.")
        return
    backends = f"made by {_describe_backend(stored_backend)}, recomputed by {_describe_backend(backend)}"
    if call.step in UNSTABLE_STEPS:
        verification.not_compared.append(f"{name}: {backends}. Models and samples of two backends cannot be compared.")
    elif _is_close(store, recorded, fresh, value):
        verification.close += 1
    else:
        verification.wrong.append(f"{name}: {backends}; they differ by more than {TOLERANCE:g} of the largest value.")


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


def stored_calls(specs: Iterable[Spec], path: Path, damaged: list[str] | None = None) -> dict[str, StepCall]:
    """Every call of a stored step that these specs make and the store has a record of, by key. Adds to the damaged files."""
    calls: dict[str, StepCall] = {}
    for spec in specs:
        for phase in plan_tasks(spec, path):
            for task in phase:
                store = Store(path, read_only=True, record_calls=True)
                with suppress(NotStoredError, StoreError):
                    for _ in run_task(task, store):
                        pass
                calls |= {call.key: call for call in store.calls}
                if damaged is not None:
                    damaged += store.files.damaged
    return calls
