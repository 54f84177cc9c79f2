"""Directions of `compare` are corrected for the number of differences; the primary comparison comes first."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import selfloop
from selfloop.commands.compare import compare_curves, rows_to_csv, rows_to_markdown
from selfloop.commands.console import print_comparison


def test_directions_are_corrected_over_pairs_and_generations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["replace", "accumulate", "accumulate_subsample"]
    spec = selfloop.Spec(source="linear", family="linear", n=60, generations=6, seeds=8, policies=policies)  # type: ignore[arg-type]
    differences, left_out = compare_curves({"spec": selfloop.run(spec, tmp_path)}, "excess_risk")
    assert left_out == []
    first = differences[:6]  # of one pair
    assert {(each["first"], each["second"]) for each in first} == {("replace", "accumulate")}
    assert [each["generation"] for each in first] == [1, 2, 3, 4, 5, 6]
    assert [each["first_is"] for each in first] == [
        "equal",
        *["undecided"] * 3,
        "higher",
        "higher",
    ]  # both begin with one model
    assert all(each["low"] is not None and each["low"] > 0 for each in first[1:])  # each on its own
    print_comparison("excess_risk", "lower", differences, ["Primary comparison: first."])
    out = capsys.readouterr().out
    assert out.startswith("Primary comparison: first.")
    assert "Directions are corrected" in out
    assert "interval is of its row alone, so that it may exclude 0 where the direction is undecided" in out


def test_policies_without_a_difference_are_compared_as_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = selfloop.Spec(source="logistic", family="glm", n=8, generations=3, seeds=4)  # separated
    differences, _ = compare_curves({"": selfloop.run(spec, tmp_path)}, "log_loss")
    assert {each["first_is"] for each in differences} == {"undecided"}


def curves_of(store: Path, **changes: object) -> selfloop.Result:
    settings = {"source": "gaussian", "family": "gaussian", "n": 10, "generations": 3, "seeds": 4, "policies": ["replace"]}
    return selfloop.run(selfloop.Spec(**{**settings, **changes}), store)  # type: ignore[arg-type]


def test_runs_are_paired_by_the_seeds_and_generations_that_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = curves_of(tmp_path), curves_of(tmp_path, seeds=[5, 3, 2, 1], generations=4)  # in another order
    rows, left_out = compare_curves({"short": short, "long": long}, "mean_error")
    assert [(each["paired"], each["first_seeds"], each["second_seeds"]) for each in rows] == [(True, 3, 3)] * 3
    assert [each["difference"] for each in rows] == [0, 0, 0]  # the same seeds: the same numbers
    assert {(each["first_is"], each["low"]) for each in rows} == {("equal", None)}
    print_comparison("mean_error", "lower", rows)
    out = capsys.readouterr().out
    assert "undefined" not in out
    assert "equal" in out
    assert left_out == [
        "short: 1 of 4 seeds have no partner and are left out.",
        "long: the last 1 of 4 generations are left out.",
        "long: 1 of 4 seeds have no partner and are left out.",
    ]


@pytest.mark.parametrize(
    ("seeds", "paired", "compared"),
    [([3, 4, 5, 6], False, (4, 4)), ([2, 3, 4, 5], True, (2, 2)), ([3], True, (1, 1)), (range(2, 22), True, (2, 2))],
)
def test_runs_are_paired_if_they_share_half_of_the_seeds_of_the_smaller_one(
    tmp_path: Path, seeds: list[int], paired: bool, compared: tuple[int, int]
) -> None:
    results = {"a": curves_of(tmp_path), "b": curves_of(tmp_path, seeds=[*seeds])}
    (each, *_), notes = compare_curves(results, "mean_error")
    assert (each["paired"], each["first_seeds"], each["second_seeds"]) == (paired, *compared)
    assert bool(notes) == paired
    (turned, *_), _ = compare_curves(dict(reversed(results.items())), "mean_error")
    assert (turned["paired"], turned["first_seeds"], turned["second_seeds"]) == (paired, *compared)


def test_runs_that_share_two_of_twenty_seeds_keep_the_others(tmp_path: Path) -> None:
    results = {"a": curves_of(tmp_path, seeds=20), "b": curves_of(tmp_path, seeds=range(18, 38))}
    (each, *_), notes = compare_curves(results, "mean_error")
    assert (each["paired"], each["first_seeds"], each["second_seeds"], notes) == (False, 20, 20, [])


def test_runs_with_seeds_of_their_own_are_compared_by_welchs_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scipy.stats import ttest_ind

    first, second = curves_of(tmp_path), curves_of(tmp_path, seeds=list(range(10, 17)), n=40)
    differences, _ = compare_curves({"a": first, "b": second}, "mean_error")
    a, b = (result.curves()["replace"]["mean_error"] for result in (first, second))
    limits = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)  # the level that the title of the table states
    assert {(each["first_seeds"], each["second_seeds"]) for each in differences} == {(4, 7)}
    assert [each["low"] for each in differences] == pytest.approx(limits.low)
    assert [each["high"] for each in differences] == pytest.approx(limits.high)
    print_comparison("mean_error", "lower", differences)
    assert "a: replace - b: replace (unpaired, 4 and 7 seeds)" in capsys.readouterr().out


def test_tables_of_differences_have_full_numbers_as_csv_and_empty_cells_for_none(tmp_path: Path) -> None:
    one = curves_of(tmp_path, seeds=1, policies=["replace", "accumulate"])
    rows = compare_curves({"": one}, "mean_error")[0]
    lines = list(csv.DictReader(rows_to_csv(rows).splitlines()))
    assert [float(line["difference"]) for line in lines] == [row["difference"] for row in rows]
    assert {line["low"] for line in lines} == {""}  # one seed has no interval
    table = rows_to_markdown(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {len(rows[0]) + 1}
    assert " - |" in table[2]
