"""Every built-in curator passes the check of `selfloop.testing`, and the check notices each error of a user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from selfloop.columns import Columns, Floats, Params, count_rows
from selfloop.component import Context
from selfloop.curator import Curator, CuratorView, Judged
from selfloop.errors import DataError
from selfloop.plugins import BUILT_IN
from selfloop.spec.components import make_component
from selfloop.testing import check_curator
from tiny_components import FAMILIES, Mean, Ticks

NEAR = {"name": "closeness", "target": [1.0, 0.0, 0.0]}
CURATORS: dict[str, tuple[dict[str, Any], str, bool]] = {  # settings, family of FAMILIES, True if it judges row by row
    "verifier": ({"score": NEAR, "share": 0.5, "keep_bad": 0.2}, "gaussian", True),
    "top_share": ({"score": NEAR, "share": 0.5}, "gaussian", False),
    "best_of": ({"score": NEAR, "candidates": 3, "temperature": 1.0}, "gaussian", False),
    "deduplicate": ({}, "discrete", False),
    "entropy_choice": ({"rows": 9}, "gaussian", False),
    "detector": ({"action": "weight"}, "gaussian", True),
    "corrector": ({"strength": 0.3, "centers": 4}, "gaussian", True),
    "token_edit": ({"threshold": 0.001, "temperature": 5.0}, "transformer", True),
}
WITH_PROGRAMS = {"command", "rephrase"}  # with their own tests


@pytest.mark.parametrize("name", CURATORS)
def test_every_curator_keeps_its_contract(name: str) -> None:
    settings, family, by_row = CURATORS[name]
    model, source = (make_component(*pair, "test") for pair in zip(("family", "source"), FAMILIES[family], strict=True))
    check_curator(make_component("curator", {"name": name, **settings}, "curators"), source, model, by_row=by_row)


def test_every_built_in_is_checked() -> None:
    assert CURATORS.keys() | WITH_PROGRAMS == BUILT_IN["curator"].keys()


def test_a_program_keeps_the_contract(tmp_path: Path) -> None:
    program = tmp_path / "judge.py"
    body = "x = json.loads(line)['x']; print(json.dumps({'keep': x < 0, 'row': {'x': x / 3}}))"
    program.write_text(f"import json, sys\nfor line in sys.stdin:\n    {body}\n")
    command = {"name": "command", "command": [sys.executable, "judge.py"], "files": [str(program)]}
    check_curator(make_component("curator", command, "curators"), Ticks(), Mean())


@dataclass(frozen=True, kw_only=True)
class Own(Curator):
    """A curator whose answer is changed by a test. Its own keeps positive rows."""

    name: ClassVar[str] = "own"
    fault: str = ""

    def judge(self, rows: Columns, view: CuratorView, ctx: Context) -> Judged:
        x = np.asarray(rows["x"])
        return ANSWERS[self.fault](self, rows, x, ctx) if self.fault else Judged(rows, x > 0, 1 + x**2)


def change_itself(curator: Own, rows: Columns, x: Floats, ctx: Context) -> Judged:
    object.__setattr__(curator, "fault", "changed")
    return Judged(rows, x > 0)


def write(curator: Own, rows: Columns, x: Floats, ctx: Context) -> Judged:
    x += 1
    return Judged(rows, x > 0)


def draw_globally(curator: Own, rows: Columns, x: Floats, ctx: Context) -> Judged:
    np.random.rand()  # noqa: NPY002  # forbidden for a curator
    return Judged(rows, x > 0)


def full(curator: Own, rows: Columns, x: Floats, value: float) -> Judged:
    return Judged(rows, x > 0, np.full(len(x), value))


ANSWERS: dict[str, Callable[[Own, Columns, Floats, Context], Judged]] = {
    "draws without the stream": lambda c, rows, x, ctx: Judged(rows, np.random.default_rng().random(len(x)) < 0.5),
    "draws globally": draw_globally,
    "compares rows": lambda c, rows, x, ctx: Judged(rows, x > x.mean()),
    "weighs by others": lambda c, rows, x, ctx: Judged(rows, x > 0, np.full(len(x), float(len(x)))),
    "edits by others": lambda c, rows, x, ctx: Judged({"x": x - x.mean()}, x > 0),
    "writes": write,
    "changes itself": change_itself,
    "changed": lambda c, rows, x, ctx: Judged(rows, x > 0),
    "keeps by numbers": lambda c, rows, x, ctx: Judged(rows, (x > 0).astype(int)),  # type: ignore[arg-type]  # the fault
    "keeps too few": lambda c, rows, x, ctx: Judged(rows, x[:-1] > 0),
    "weighs nan": lambda c, rows, x, ctx: full(c, rows, x, np.nan),
    "weighs below 0": lambda c, rows, x, ctx: full(c, rows, x, -1.0),
    "weighs one": lambda c, rows, x, ctx: Judged(rows, x > 0, np.ones(1)),
    "drops rows": lambda c, rows, x, ctx: Judged({"x": x[1:]}, x > 0),
    "drops columns": lambda c, rows, x, ctx: Judged({"y": x}, x > 0),
    "changes types": lambda c, rows, x, ctx: Judged({"x": x.astype(np.float32)}, x > 0),
}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("draws without the stream", "judge returned another result the second time"),
        ("draws globally", "judge uses global randomness"),
        ("compares rows", r"the answers for the first \d+ of 30 rows depend on the others; set by_row=False"),
        ("weighs by others", r"the answers for the first \d+ of 30 rows depend"),
        ("edits by others", r"the answers for the first \d+ of 30 rows depend"),
        ("writes", "read-only"),
        ("changes itself", "changed the curator's settings"),
        ("keeps by numbers", r"`keep` is int64 \(30,\); expected 30 values true or false"),
        ("keeps too few", r"`keep` is bool \(29,\)"),
        ("weighs nan", "`weight` is not 30 finite numbers of 0 or more"),
        ("weighs below 0", "`weight` is not 30 finite numbers of 0 or more"),
        ("weighs one", "`weight` is not 30 finite numbers"),
        ("drops rows", "returned 29 rows; expected 30"),
        ("drops columns", "column 'x' changed its type or shape"),
        ("changes types", "column 'x' changed its type or shape"),
    ],
)
def test_the_check_notices(fault: str, sentence: str) -> None:
    with pytest.raises((AssertionError, DataError, ValueError), match=sentence):
        check_curator(Own(fault=fault), Ticks(), Mean())


def test_a_curator_without_a_fault_passes_and_one_that_compares_rows_may_say_so() -> None:
    check_curator(Own(), Ticks(), Mean())
    check_curator(Own(fault="compares rows"), Ticks(), Mean(), by_row=False)


@dataclass(frozen=True, kw_only=True)
class Fickle(Own):
    name: ClassVar[str] = "fickle"

    def prepare(self, initial: Columns, samples: Columns, view: CuratorView, ctx: Context) -> Params:
        return {"drawn": np.random.default_rng().random(count_rows(samples))}


def test_the_check_notices_preparation() -> None:
    with pytest.raises(AssertionError, match="prepare returned another result the second time"):
        check_curator(Fickle(), Ticks(), Mean())
