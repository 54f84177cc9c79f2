"""Checks all files of a run, and recomputes some of its records: equal, or close if another backend made the record."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.columns import Array, Columns
from selfloop.engine import steps
from selfloop.engine.curves import Curves
from selfloop.engine.ensemble import ensemble_curves
from selfloop.engine.executors import Notify, count_cores, execute
from selfloop.engine.tasks import Task, plan_tasks, run_task
from selfloop.errors import ChainEndedError, SpecError, StoreError
from selfloop.formats.safetensors import flatten_columns
from selfloop.report.theme import format_count
from selfloop.rng import RandomStream
from selfloop.spec.spec import Spec
from selfloop.store.calls import NotStoredError, StepCall
from selfloop.store.identity import ObjectRef, step_name
from selfloop.store.inputs import refuse_interrupted
from selfloop.store.records import as_result, place_of
from selfloop.store.store import Store

TOLERANCE = 1e-3  # between backends: of the largest absolute value of an array, and of a single value
# A rounding difference can change a sampled token and all after it. Training amplifies it: 1e-7 in the initial parameters of
# a VAE on digits became 0.03 of the largest parameter in 300 steps, and 0.14 in 2,000.
UNSTABLE_STEPS = (steps.fit, steps.prepare_features, steps.sample, steps.sample_tokens)


@dataclass(slots=True)
class _Use:
    """The step of a record or file, and the places in chains that use it, in their order."""

    step: Callable[..., Any]
    places: dict[str, None] = field(default_factory=dict)

    def __str__(self) -> str:
        first, *others = self.places
        more = f", and {format_count(len(others), 'other')}" if others else ""
        return f"{first}{more}: {step_name(self.step).replace('_', ' ')}"


@dataclass(slots=True)
class Verification:
    """Comparison of stored records with recomputed ones."""

    records: int  # of the spec in the store
    checked: int = 0
    skipped: int = 0  # of programs that are not reproducible
    close: int = 0  # made by another backend, and equal within the tolerance
    wrong: list[str] = field(default_factory=list)  # one sentence per record that differs, with the chains that use it
    not_compared: list[str] = field(default_factory=list)  # one sentence per record that cannot be compared
    damaged: list[str] = field(default_factory=list)  # chains, steps and files, records and objects, damaged or missing
    backends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (purpose, backend) -> records of the spec


def verify(spec: Spec, path: Path, records: int, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check every file that a spec uses, recompute randomly chosen records and compare. The store stays as it is.

    Raises SpecError if the store has no record of the spec.
    """
    store = Store(path, read_only=True, record_calls=True)
    tasks = [task for phase in plan_tasks(spec, path) for task in phase]
    uses = _find_uses(tasks, store)
    calls = {call.key: call for call in store.calls}
    if not calls and not store.files.damaged:
        raise SpecError(f"verify: store {place_of(path)} has no record of this spec. Run the spec first.")
    verification = Verification(len(calls))
    for key, call in calls.items():
        if body := store.files.read_record(key):
            verification.backends.update(body["provenance"]["backend"].items())
            if "object" in body["result"] and not store.files.is_sound(body["result"]["object"]):
                uses.setdefault(store.files.damaged[-1], _Use(call.step)).places.update(uses[key].places)
    verification.damaged = [f"{uses[file]} ({file})" if file in uses else file for file in sorted(set(store.files.damaged))]
    rng = RandomStream(("verify", time.time_ns())).generator()
    keys = sorted(key for key, call in calls.items() if _is_reproducible(call.arguments))
    verification.skipped = len(calls) - len(keys)
    picks = [(calls[key], str(uses[key])) for key in rng.permutation(keys)[:records]] if keys else []
    isolated = any(task.takes_over_interrupts for task in tasks)
    for outcome, sentence in execute(_compare_calls, [(path, picks)], 1, count_cores(), isolated=isolated):
        verification.checked += 1
        verification.close += outcome == "close"
        {"wrong": verification.wrong, "not compared": verification.not_compared}.get(outcome, []).append(sentence)
        if progress:
            progress(verification.checked, len(picks))
    return verification


def verification_to_json(verification: Verification) -> dict[str, Any]:
    """A verification as `--json` has it."""
    backends = [{"purpose": purpose, "backend": name, "records": n} for (purpose, name), n in verification.backends.items()]
    return {**asdict(verification), "backends": backends}


def _find_uses(tasks: Iterable[Task], store: Store) -> dict[str, _Use]:
    """The uses of every record of these tasks by its key, and of every damaged file by its path. Later generations than one
    whose record is missing or damaged are not known."""
    uses: dict[str, _Use] = {}
    for chain in (replace(task, policies=(position,)) for task in tasks for position in task.policies):
        outputs, generation, going = run_task(chain, store), 0, True
        while going:
            generation, n_calls, n_damaged = generation + 1, len(store.calls), len(store.files.damaged)
            used = dict[str, StepCall]()
            try:
                going = next(outputs, None) is not None
            except NotStoredError as missing:
                going, used = False, dict.fromkeys(store.files.damaged[n_damaged:], missing.call)
            except StoreError:  # an object is damaged, which its record shows below
                going = False
            for name, call in {**used, **{call.key: call for call in store.calls[n_calls:]}}.items():
                uses.setdefault(name, _Use(call.step)).places[_describe_place(chain, generation)] = None
    return uses


def _describe_place(task: Task, generation: int) -> str:
    """Policy, seed and generation of a chain; policy and seeds of an ensemble, whose curves are one record."""
    if not task.point.runs_as_ensemble:
        return f"{task}, generation {generation}" if task.generations else str(task)
    seeds = f"{task.point.spec.policy_labels()[task.policies[0]]}, seeds {task.seeds[0]} to {task.seeds[-1]}"
    return str(task).replace(f"{len(task.seeds)} seeds", seeds, 1)


def _compare_calls(work: tuple[Path, list[tuple[StepCall, str]]], notify: Notify) -> Iterator[tuple[str, str]]:
    """Recompute calls and compare them with their records: "equal", "close", "wrong" or "not compared", and a sentence."""
    path, calls = work
    store = Store(path, read_only=True)
    for call, use in calls:
        outcome, problem = _compare(store, call)
        yield outcome, f"{use} {call.key}: {problem}"


def _compare(store: Store, call: StepCall) -> tuple[str, str]:
    body = store.files.read_record(call.key)
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
        curve = _describe_curve(store, call, recorded, value)
        return "wrong", f"{curve}the record has {recorded}; recomputing gives {fresh}."
    backends = f"made by {_describe_backend(provenance['backend'])}, recomputed by {_describe_backend(backend)}"
    if call.step in UNSTABLE_STEPS:
        return "not compared", f"{backends}. Models and samples of two backends cannot be compared."
    if _is_close(store, recorded, fresh, value):
        return "close", ""
    return "wrong", f"{backends}; they differ by more than {TOLERANCE:g} of the largest value."


def _is_reproducible(argument: object) -> bool:
    """False for an argument, or one inside it, that is a family with the setting `reproducible = false`."""
    return all(map(_is_reproducible, argument)) if isinstance(argument, tuple) else getattr(argument, "reproducible", True)


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


def _describe_curve(store: Store, call: StepCall, recorded: Mapping[str, Any], value: Any) -> str:
    """The first generation at which a seed of an ensemble differs from its record; empty for other steps."""
    if call.step is not ensemble_curves or value is None or "object" not in recorded:
        return ""
    seeds, stored = call.arguments[0].seeds, flatten_columns(store.open(ObjectRef(recorded["object"])))
    differing = [
        (t + 1, seeds[s], name)
        for name, curve in Curves.unpack(value, seeds).values.items()
        if name in stored and stored[name].shape == curve.shape
        for s, t in np.argwhere(~np.isclose(stored[name], curve, rtol=0, atol=0, equal_nan=True)).tolist()
    ]
    return "{2} of seed {1} differs at generation {0}: ".format(*min(differing)) if differing else ""


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
