"""Answers as JSON: one object, alone on standard output, without numbers that JSON lacks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_components
from selfloop.formats.json_lines import to_json
from selfloop.types import Coordinates


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read_object(*arguments: str | Path) -> dict[str, Any]:
    """The object that a command writes: to standard output, and the same to a file beside its table."""
    alone = tiny_components.selfloop(*arguments, "--json", "-")
    assert (alone.code, alone.err, alone.out.count("\n")) == (0, "", 1)
    beside = tiny_components.selfloop(*arguments, "--json", "answer.json")
    assert beside.out
    assert not beside.out.startswith("{")
    answer = json.loads(alone.out, parse_constant=refuse)
    if arguments[0] not in ("runs", "verify"):  # records are picked at random
        assert json.loads(Path("answer.json").read_text()) == answer
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(
    "words", [("list", "--json", "policy"), ("list", "policy", "--json", "mix"), ("plan", "--json", "quickstart_digits"),
              ("compare", "--json", "tiny.toml", "tiny.toml")],
)  # fmt: skip
def test_json_does_not_take_a_word_of_the_command_for_its_file(words: tuple[str, ...], spec: Path) -> None:
    done = tiny_components.selfloop(*words)
    assert (done.code, done.out) == (2, "")
    assert f"--json {words[words.index('--json') + 1]}: is no file for JSON (" in done.err
    assert [*spec.parent.iterdir()] == [spec]
    assert spec.read_text() == tiny_components.KDE


@dataclass
class Example:
    coordinates: Coordinates
    values: Any
    names: frozenset[str]


def test_values_without_a_form_in_json_get_one() -> None:
    example = Example((("n", 3),), np.array([1.5, np.nan, np.inf]), frozenset("ba"))
    assert to_json([example, np.int64(3), {2: -np.inf}]) == [
        {"coordinates": {"n": 3}, "values": [1.5, None, None], "names": ["a", "b"]}, 3, {"2": None},
    ]  # fmt: skip


def test_every_answer_is_one_object(spec: Path) -> None:
    policies = read_object("plan", spec)["policies"]
    assert [(p["policy"], p["generations"], p["stored"], p["seconds"], p["trained_rows"]) for p in policies] == [
        ("replace", 4, 0, None, [10, 10]), ("accumulate", 4, 0, None, [10, 20]),
    ]  # fmt: skip
    rows = read_object("compare", spec, "-q")["differences"]
    assert [(row["first"], row["second"], row["generation"]) for row in rows] == [("replace", "accumulate", t) for t in (1, 2)]
    assert rows[0]["low"] is None  # generation 1 is shared
    assert read_object("plan", spec)["seconds"] == 0
    assert read_object("verify", spec, "-q")["wrong"] == []
    (run,) = read_object("runs")["runs"]
    assert (run["records"], run["bytes"] > 0, run["title"][:12]) == (3, True, "kde on moons")
    assert [law["policy"] for law in read_object("predict", spec)["laws"]] == ["replace", "accumulate"]


def test_answers_without_a_spec_are_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policies = read_object("predict", "replace", "--n", "100", "--generations", "3")["policies"]
    assert policies["replace"]["mean_error_multiplier"] == pytest.approx([1, 1.99, 2.9701])
    ledger = read_object("predict", "replace", "--n", "100", "--generations", "2", "--ledger")["ledgers"]["replace"]
    assert ledger["sources"] == [["real", 1], ["synthetic", 1]]
    assert "replace" in read_object("list")["policy"]
    assert read_object("list", "preset", "quickstart_linear")["spec"].startswith("# ")
    settings = {setting["name"]: setting for setting in read_object("list", "family", "kde")["settings"]}
    assert settings["bandwidth"]["default"] == '"scott"'
    assert json.loads(tiny_components.selfloop("advise", "--rows", "9", "--generations", "3", "--json", "-").out)["policies"]


def test_standard_output_takes_one_answer_and_an_output_replaces_no_spec(spec: Path) -> None:
    done = tiny_components.selfloop("compare", spec, "-q", "--json", "-", "--csv", "-")
    assert (done.code, done.out) == (2, "")
    before = spec.read_text()
    for command in (("plan", spec), ("compare", spec), ("verify", spec), ("predict", spec)):
        assert tiny_components.selfloop(*command, "--json", spec).code == 2
    assert spec.read_text() == before
