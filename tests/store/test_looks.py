"""Running a spec again with more seeds is another look, which the list of runs counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import selfloop
from selfloop.report.findings import findings
from selfloop.store.runs import note_run

SETTINGS: dict[str, Any] = {"source": "gaussian", "family": "gaussian", "n": 20, "generations": 2, "policies": ["replace"]}


def look(store: Path, **changes: Any) -> int:
    """The look of a run."""
    return selfloop.run(selfloop.Spec(**{**SETTINGS, **changes}), store).look


def test_every_run_with_more_seeds_is_another_look_and_keeps_its_number(tmp_path: Path) -> None:
    assert [look(tmp_path, seeds=n) for n in (3, 5, 9)] == [1, 2, 3]
    assert [look(tmp_path, seeds=n) for n in (9, 3, 5)] == [3, 1, 2]
    assert look(tmp_path, seeds=4) == 2  # one run with fewer seeds
    assert look(tmp_path, seeds=9) == 3  # as it was
    assert look(tmp_path, seeds=9, metrics=["variance_ratio"]) == 4  # another metric of the same runs


def test_two_questions_about_the_same_seeds_are_one_look(tmp_path: Path) -> None:
    assert [look(tmp_path, seeds=3, metrics=[metric]) for metric in ("mean_error", "variance_ratio")] == [1, 1]
    assert look(tmp_path, seeds=5) == 2


@pytest.mark.parametrize(
    "changes", [{"n": 30}, {"generations": 3}, {"policies": ["accumulate"]}, {"seeds": [10, 11, 12, 13, 14]}, {"seeds": 3}]
)
def test_a_run_that_asks_something_else_is_a_first_look(tmp_path: Path, changes: dict[str, Any]) -> None:
    look(tmp_path, seeds=3)
    assert look(tmp_path, **{"seeds": 5, **changes}) == 1


def test_runs_of_single_seeds_answer_nothing_and_are_no_looks(tmp_path: Path) -> None:
    assert [look(tmp_path, seeds=[seed]) for seed in range(3)] == [1, 1, 1]
    assert look(tmp_path, seeds=3) == 1


def test_a_later_look_is_named_and_has_wider_intervals(tmp_path: Path) -> None:
    once = selfloop.run(selfloop.Spec(**SETTINGS, seeds=6), tmp_path / "once")
    look(tmp_path, seeds=3)
    again = selfloop.run(selfloop.Spec(**SETTINGS, seeds=6), tmp_path)
    first, second = ({v.criterion: v for v in result.verdicts()}["any_increase"] for result in (once, again))
    assert second.low is not None
    assert first.low is not None
    assert (second.estimate, second.low < first.low) == (first.estimate, True)
    assert next(findings(again)).startswith("This is look 2: the spec was run before with fewer of its seeds.")
    assert not any("look" in sentence for sentence in findings(once))
    assert once.curve("mean_error").equals(again.curve("mean_error"))  # 95 % at every look


def test_a_listed_run_whose_spec_cannot_be_read_is_no_look(tmp_path: Path) -> None:
    look(tmp_path, seeds=3)
    for spec in ("n = 1", "not TOML", ""):
        with note_run(tmp_path, "another version", spec):
            pass
    assert look(tmp_path, seeds=5) == 2
