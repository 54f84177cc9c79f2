"""Any spec can be planned, or is refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfloop.errors import SelfloopError
from selfloop.formulas import evaluate
from selfloop.spec.parse import parse_spec, read_spec, spec_from_table
from selfloop.spec.spec import Spec

TINY: dict[str, Any] = {"source": "gaussian", "family": "gaussian", "n": 20, "generations": 3, "seeds": 2}
HUGE = int("f" * 4300, 16)
NAMES = ["gaussian", "zipf", "discrete", "replace", "accumulate", "custom", "mix", "nll", "any_increase", "moons", "kde"]
KEYS = [
    *TINY,
    "holdout",
    "policies",
    "metrics",
    "criteria",
    "curators",
    "init_from",
    "merge",
    "sweep",
    "sampler",
    "name",
    "ratio",
    "takes",
]
KEYS += ["batch", "rows", "weight", "real_share", "budget", "family.bandwidth", "source.mean", "synthetic_rows", "d"]
SCALARS = (
    st.integers(-3, 40)
    | st.sampled_from([2**63, 10**15, "n" * 100_000, "\0", "a\x1b[31m[/b]", "\ud800", "9**9**9", "(" * 900, "real(t)"])
    | st.sampled_from(
        [1e308, -0.0, 5e-324, float("nan"), float("inf"), True, "n // 2", "synthetic(1..t-1)", "1" + "+1" * 50_000]
    )
    | st.sampled_from(NAMES)
    | st.sampled_from([1, -1]).map(HUGE.__mul__)
    | st.floats()
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)


TABLES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)
OVERRIDES = st.text() | st.builds(lambda key, value: f"{key}={as_toml(value)}", st.sampled_from(KEYS), SCALARS)


def check(make: Any) -> None:
    """Points of a spec, or one sentence."""
    problem = "none."
    try:
        make().points()
    except SelfloopError as found:
        problem = str(found)
    assert len(problem) <= 700
    assert problem.endswith("."), problem


@given(TABLES, st.booleans())
@settings(max_examples=80)
def test_any_table_is_a_spec_or_one_sentence(table: dict[str, Any], complete: bool) -> None:
    table = {**TINY, **table} if complete else table
    check(lambda: spec_from_table(table))
    if {"source", "family"} <= set(table):
        check(lambda: Spec(**table))


@given(TABLES, st.text(max_size=8), st.integers(0, 200), OVERRIDES)
@settings(max_examples=80)
@example({}, "\ufeff", 0, "n=3")
@example({}, "policies = " + "[" * 5000, 0, "n=" + "[" * 5000)
@example({}, ".".join("a" * 3000) + " = 1\n", 0, ".".join("a" * 3000) + "=1")
@example({"sweep": {"n": list(range(1, 2000)), "generations": list(range(1, 2000)), "holdout": [1, 2]}}, "", 0, "n=1")
@example({"a" * 100_000: 1}, "", 0, "=")
def test_any_text_is_a_spec_or_one_sentence(table: dict[str, Any], inserted: str, at: int, override: str) -> None:
    text = "".join(f"{json.dumps(key)} = {as_toml(value)}\n" for key, value in {**TINY, **table}.items())
    check(lambda: parse_spec(text[:at] + inserted + text[at:], "a.toml", [override]))
    check(lambda: parse_spec("".join(f"{key} = {as_toml(value)}\n" for key, value in TINY.items()), "a.toml", [override]))


EXPRESSIONS = st.recursive(
    st.sampled_from(["n", "t", "2", "1e308", "0.5", "9" * 60]),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["**", "*", "-", "//", "%", "<"]), inner)
        | st.builds("{}({})".format, st.sampled_from(["exp", "round", "sqrt", "-", "max"]), inner)
    ),
    max_leaves=30,
)


@given(EXPRESSIONS)
@settings(max_examples=100)
@example("((((((n**64)**64)**64)**64)**64)**64)")
@example("*".join(["(n**64)"] * 100))
@example("-" * 200_000 + "1")
@example(hex(HUGE))
@example("nope(1)")
def test_an_expression_has_a_small_value_or_none(expression: str) -> None:
    value, problem = 0.0, ""
    try:
        value = evaluate("rows", expression, t=7, n=10**15)
    except SelfloopError as found:
        problem = str(found)
    assert abs(value) < 1e308 * 1.8
    assert len(problem) < 700


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"n = 0x" + b"f" * 5000, b"[" * 100_000, b" " * 10_000_001]
)
def test_a_file_of_any_bytes_is_a_spec_or_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content + b'source = "gaussian"\nfamily = "gaussian"\nn = 5\n')
    check(lambda: read_spec(tmp_path / "a.toml"))


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('source = "gaussian"\nfamily = "gaussian"\nn = 5\n', encoding="utf-8-sig")
    assert read_spec(tmp_path / "a.toml").n == 5


@pytest.mark.parametrize("name", ["", "\0", "/", "/dev/null", "/dev/zero", "a" * 100_000, "fifo.toml"])
def test_a_path_of_any_kind_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.toml")
    with pytest.raises(SelfloopError) as refused:
        read_spec(name)
    assert len(str(refused.value)) < 700
