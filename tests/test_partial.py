"""Partial results: what a store has of a run that is not finished, without any conclusion from it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny_components
from selfloop.engine.curves import NOT_COMPUTED
from selfloop.engine.run import iter_measurements
from selfloop.errors import SelfloopError
from selfloop.partial import partial_result
from selfloop.report.build import build_report
from selfloop.report.page import render_page
from selfloop.result import Result, run
from selfloop.spec.spec import Spec


def values(result: Result) -> set[tuple[object, ...]]:
    return {(m.policy, m.seed, m.generation, m.metric, m.value) for m in result.measurements if m.value is not None}


def interrupted(spec: Spec, store: Path, measurements: int) -> Result:
    """The partial result of a run that ended after that number of measurements."""
    arriving = iter_measurements(spec, store)
    for _ in range(measurements):
        next(arriving)
    arriving.close()  # type: ignore[attr-defined]  # a generator
    return partial_result(spec, store)


def test_a_partial_result_has_the_values_of_the_finished_run_and_no_others(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=4)
    whole = run(spec, tmp_path / "whole")
    part = interrupted(spec, tmp_path / "part", measurements=15)
    assert part.progress is not None
    done, total = part.progress
    assert 0 < done < total == 4 * len(spec.seeds) * len(spec.policies)
    derived = {"real_mass", "data_age"}
    own = {value for value in values(part) if value[3] not in derived}
    assert own < values(whole)
    assert len({value[:3] for value in own}) == done
    assert NOT_COMPUTED in part.statuses(part.spec.policy_labels()[0])


def test_a_partial_result_computes_and_writes_nothing(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=3)
    interrupted(spec, tmp_path, measurements=8)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    partial_result(spec, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_verdict_and_no_comparison_of_a_partial_result_is_a_conclusion(tmp_path: Path) -> None:
    spec = Spec(n=10, generations=5, seeds=50, source="gaussian", family="gaussian", policies=("replace", "accumulate"))
    whole = run(spec, tmp_path)
    assert {verdict.answer for verdict in whole.verdicts()} >= {"yes", "no"}, "there is no conclusion to withhold"
    assert {pair.answer for pair in whole.compare()} == {"holds"}
    part, reason = dataclasses.replace(whole, progress=(9, 10)), "not finished: 9 of 10 generations so far"
    assert {verdict.answer for verdict in part.verdicts()} <= {"undecided", "not measured"}
    assert {verdict.reason for verdict in part.verdicts() if verdict.answer == "undecided"} == {reason}
    assert {(pair.answer, pair.reason) for pair in part.compare()} == {("undecided", reason)}


def test_the_partial_result_of_a_finished_run_is_that_of_the_run(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=3, family=tiny_components.Mean(limit=0.1))  # some chains end
    whole = run(spec, tmp_path)
    part = partial_result(spec, tmp_path)
    assert part.progress is None
    assert list(part.measurements) == list(whole.measurements)
    assert "too_high" in {m.status for m in part.measurements}
    assert part.verdicts() == whole.verdicts()


def test_a_killed_run_shows_what_it_has(tmp_path: Path) -> None:
    store = tmp_path / "store"
    child = subprocess.Popen(
        [sys.executable, tiny_components.__file__, str(store)], stdout=subprocess.DEVNULL, env=tiny_components.environment()
    )
    while len(list(store.glob("records/*/*.json"))) < 12 and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    part = partial_result(tiny_components.tiny_spec(), store)
    whole = run(tiny_components.tiny_spec(), tmp_path / "whole")
    assert part.progress is None or {v for v in values(part) if v[3] not in ("real_mass", "data_age")} < values(whole)


def test_the_page_of_a_partial_result_begins_with_its_progress(tmp_path: Path) -> None:
    spec = tiny_components.tiny_spec(generations=4)
    part = interrupted(spec, tmp_path, measurements=20)
    done, total = part.progress or (0, 0)
    page = render_page([build_report(part)])
    assert f"Not finished: {done} of {total} generations so far." in page
    assert "chains are left at the end" not in page


def test_a_store_with_nothing_of_the_spec_gives_an_empty_page(tmp_path: Path) -> None:
    run(tiny_components.tiny_spec(generations=1), tmp_path)
    part = partial_result(tiny_components.tiny_spec(generations=2, n=7), tmp_path)
    assert part.progress is not None
    assert part.progress[0] == 0
    assert "Not finished: 0 of" in render_page([build_report(part)])


def test_an_ensemble_has_the_policies_that_are_finished(tmp_path: Path) -> None:
    spec = Spec(n=10, generations=3, seeds=5, source="gaussian", family="gaussian", policies=("replace", "accumulate"))
    one = Spec(n=10, generations=3, seeds=5, source="gaussian", family="gaussian", policies=("replace",))
    run(one, tmp_path)
    part = partial_result(spec, tmp_path)
    assert part.progress == (15, 30)  # of chains, as `plan` counts
    risk = spec.risk_metric() or ""
    np.testing.assert_array_equal(part.curves()["replace"][risk], run(spec, tmp_path).curves()["replace"][risk])
    assert np.isnan(part.curves()["accumulate"][risk]).all()
    assert "Not finished: 15 of 30" in render_page([build_report(part)])


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=r"is not a store\. Name its folder with --store"):
        partial_result(tiny_components.tiny_spec(), tmp_path / "none")
