"""Directions of `compare` are corrected for the number of differences; the primary comparison comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

import selfloop
from selfloop.commands.compare import compare_curves
from selfloop.commands.console import print_comparison


def test_directions_are_corrected_over_pairs_and_generations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["replace", "accumulate", "accumulate_subsample"]
    spec = selfloop.Spec(source="linear", family="linear", n=60, generations=6, seeds=8, policies=policies)  # type: ignore[arg-type]
    differences = compare_curves({"spec": selfloop.run(spec, tmp_path)}, "excess_risk")
    first = differences[0]
    assert (first.first, first.second) == ("replace", "accumulate")
    assert first.directions == ["undecided", *["undecided"] * 3, "higher", "higher"]
    assert all(interval.low is not None and interval.low > 0 for interval in first.intervals[1:])  # each on its own
    print_comparison("excess_risk", "lower", differences, ["Primary comparison: first."])
    out = capsys.readouterr().out
    assert out.startswith("Primary comparison: first.")
    assert "Directions are corrected" in out


def test_policies_without_a_difference_are_compared_as_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = selfloop.Spec(source="logistic", family="glm", n=8, generations=3, seeds=4)  # separated
    differences = compare_curves({"": selfloop.run(spec, tmp_path)}, "log_loss")
    assert {direction for each in differences for direction in each.directions} == {"undecided"}
