"""Looking after a store: what a spec has in it, whether that is right, and throwing away the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from selfloop.engine.run import Task, plan_tasks, run_task, runs_as_ensemble
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.spec.spec import Coordinates, Spec
from selfloop.store.store import Call, NotStoredError, Store


@dataclass(frozen=True, slots=True)
class Planned:
    """What one policy of one point still asks for."""

    coordinates: Coordinates
    policy: str
    chains: int
    generations: int  # over all chains
    stored: int  # of these, generations that are complete in the store
    seconds: float | None  # estimated for the rest from what is stored; None when nothing is


def plan(spec: Spec, path: Path) -> list[Planned]:
    """What would run, and what of it is stored already. Nothing is computed or written."""
    found: dict[tuple[Coordinates, str], list[tuple[int, int, float]]] = {}
    for task in plan_tasks(spec, path)[-1]:
        for position in task.policies:
            store = Store(path, looking=True)
            one = Task(task.coordinates, task.spec, (position,), task.seeds, task.generations, path, task.threads)
            count = len(task.seeds) if runs_as_ensemble(task.spec) else 1
            complete, _ = _look(one, store)
            label = task.spec.policy_labels()[position]
            found.setdefault((task.coordinates, label), []).append((count, count * complete, store.usage.saved))
    generations = {coordinates: point.generations for coordinates, point in spec.points()}
    planned = []
    for (coordinates, label), chains in found.items():
        total = sum(count for count, _, _ in chains) * generations[coordinates]
        stored = sum(done for _, done, _ in chains)
        spent = sum(seconds for _, _, seconds in chains)
        rest = spent / stored * (total - stored) if stored else None
        planned.append(Planned(coordinates, label, sum(count for count, _, _ in chains), total, stored, rest))
    return planned


def _look(task: Task, store: Store) -> tuple[int, bool]:
    """Generations of a task that are in the store, and whether that is all there is to it."""
    done = 0
    try:
        for part in run_task(task, store):
            done += part.generations
            store.usage.add(part.usage)
    except NotStoredError:
        return done, False
    return task.generations, True  # all of it, or up to where the chain ended


@dataclass(frozen=True, slots=True)
class Audit:
    """What recomputing a sample of records found."""

    records: int  # in the store for this spec
    checked: int
    wrong: tuple[str, ...]  # a sentence per record that does not say what recomputing gives


def verify(spec: Spec, path: Path, sample: int) -> Audit:
    """Recompute a random sample of a spec's records and compare; SpecError when there are none."""
    calls = stored_calls([spec], path)
    if not calls:  # nor is a store made where there is none
        raise SpecError(f"verify: store {path} has nothing of this spec as it is set. Run it first.")
    rng = RandomStream(("verify", time.time_ns())).generator()
    keys = sorted(calls)
    picks = [keys[i] for i in sorted(rng.choice(len(keys), min(sample, len(keys)), replace=False))]
    store = Store(path)
    wrong = []
    for key in picks:
        call = calls[key]
        recorded, fresh = store.recorded(call), store.recompute(call)
        if recorded != fresh:
            wrong.append(f"{call.function.__name__} {key}: the record says {recorded}, recomputing gives {fresh}.")
    return Audit(len(calls), len(picks), tuple(wrong))


def stored_calls(specs: Iterable[Spec], path: Path) -> dict[str, Call]:
    """Every record that running these specs would read, by key."""
    calls: dict[str, Call] = {}
    for spec in specs:
        for phase in plan_tasks(spec, path):
            for task in phase:
                store = Store(path, looking=True, remembering=True)
                _look(task, store)
                calls.update({call.key: call for call in store.calls if store.recorded(call) is not None})
    return calls


def collect_garbage(path: Path, keep: Iterable[Spec]) -> tuple[int, int]:
    """Delete unfinished files, objects without a record, and (given specs to keep) all records they do not use.

    Returns how many files and bytes went.
    """
    specs = list(keep)
    store = Store(path)
    wanted = set(stored_calls(specs, path)) if specs else None
    records = [record for record in (path / "records").rglob("*.json") if wanted is None or record.stem in wanted]
    objects = {name for record in records if (name := store.object_of(record))}
    kept = set(records) | {store.path / "objects" / name[:2] / f"{name}.safetensors" for name in objects}
    files = size = 0
    for file in [*(path / "records").rglob("*"), *(path / "objects").rglob("*"), *(path / "scratch").rglob("*")]:
        if file.is_file() and file not in kept:
            files, size = files + 1, size + file.stat().st_size
            file.unlink()
    shutil.rmtree(path / "scratch", ignore_errors=True)
    return files, size
