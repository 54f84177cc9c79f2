"""The result of a run that is not finished, or that another process computes now, from what its store has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from selfloop.engine.curves import NOT_COMPUTED, TRIVIAL, Curves
from selfloop.engine.run import store_path
from selfloop.engine.tasks import Task, TaskOutput, plan_tasks, replay_outputs
from selfloop.errors import SelfloopError
from selfloop.result import Result, collect_result
from selfloop.spec.parse import fresh_spec
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.live import read_progress
from selfloop.store.records import check_format, place_of
from selfloop.store.runs import run_name
from selfloop.store.store import Store
from selfloop.types import Coordinates

Table = Mapping[tuple[Coordinates, str], Curves]


def partial_result(spec: Spec | str | Path, store: str | Path | None = None) -> Result:
    """The result of a spec as far as the store has it. Nothing is computed or written, so that another process may run it.

    Values that are not computed yet have the status `not_computed`, and no verdict or comparison has another answer than
    undecided, unless the run is finished: then the result is that of `run`. Raises SelfloopError if there is no store.
    """
    spec, path = fresh_spec(spec), store_path(store)
    if not check_format(path):
        raise SelfloopError(f"store {place_of(path)}: is not a store. Name its folder with --store.")
    done, total, outputs = 0, 0, list[TaskOutput]()
    missing = list[tuple[Task, int]]()  # tasks of one policy that are not finished, and their generations in the store
    *earlier, chains = plan_tasks(spec, path)
    for task in chain.from_iterable(earlier):
        outputs += replay_outputs(task, Store(path, read_only=True))[0]
    for task in (replace(each, policies=(position,)) for each in chains for position in each.policies):
        own, is_complete = replay_outputs(task, Store(path, read_only=True))
        outputs += own
        stored, seeds = sum(output.generations for output in own), len(task.seeds)
        done, total = done + seeds * (task.generations if is_complete else stored), total + seeds * task.generations
        missing += [] if is_complete else [(task, stored)]
    result = collect_result(spec, path, outputs)
    _note_missing(result.table, spec.policy_labels(), missing)
    return replace(result, progress=(done, total) if missing else None)


def count_missing(spec: Spec, store: str | Path | None) -> int:
    """Generations of all chains that are not in the store; 0 for a run that was finished once, whose records are not read."""
    path = store_path(store)
    before = read_progress(path, run_name(spec_text(spec)))
    if before and before.state == "finished":
        return 0
    if not check_format(path):
        return len(spec.seeds) * len(spec.policies) * sum(point.spec.generations for point in spec.points())
    done, total = partial_result(spec, path).progress or (0, 0)
    return total - done


def _note_missing(table: Table, labels: Sequence[str], missing: list[tuple[Task, int]]) -> None:
    """Give the generations that are not computed yet their status, in every metric that another chain has or will have."""
    measured = dict.fromkeys(name for curves in table.values() for name in curves.values if not name.endswith(TRIVIAL))
    for task, stored in missing:
        curves = table[task.point.coordinates, labels[task.policies[0]]]
        seeds = [curves.seeds.index(seed) for seed in task.seeds]
        for name in measured or [metric.name for metric in task.point.spec.metrics]:
            curves.arrays(name)[1][seeds, stored:] = curves.code(NOT_COMPUTED)
