"""The `custom` policy refuses wrong tables before any work."""

from __future__ import annotations

import math
from typing import Any

import pytest

from selfloop.errors import SettingError
from selfloop.formulas import evaluate
from selfloop.policies.custom import Custom
from selfloop.types import Batch

WRONG = {
    "unknown name": {"takes": ({"batch": "real(1)", "rows": "rows"},)},
    "no batch": {"takes": ({"rows": 3},)},
    "unknown batch": {"takes": ({"batch": "sampled(1)"},)},
    "no number": {"takes": ({"batch": "real(one)"},)},
    "call of an unknown function": {"takes": ({"batch": "real(1)", "weight": "__import__('os')"},)},
    "attribute": {"takes": ({"batch": "real(1)", "weight": "t.real"},)},
    "division by zero": {"takes": ({"batch": "real(1)", "weight": "1 / (t - 2)"},)},
    "not finite": {"takes": ({"batch": "real(1)", "weight": math.inf},)},
    "not a number": {"takes": ({"batch": "real(1)", "rows": math.nan},)},
    "huge power": {"takes": ({"batch": "real(1)"},), "synthetic_rows": "9 ** 9 ** 9"},
    "complex": {"takes": ({"batch": "real(1)"},), "synthetic_rows": "(0 - 2) ** 0.5"},
    "negative row count": {"takes": ({"batch": "real(1)"},), "real_rows": "0 - n"},
    "text": {"takes": ({"batch": "real(1)"},), "budget": "'all'"},
    "extra key": {"takes": ({"batch": "real(1)", "row": 3},)},
    "no takes": {},
    "both tables": {"takes": ({"batch": "real(1)"},), "generations": (({"batch": "real(1)"},),)},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_custom_table_is_refused_when_it_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"^(takes|synthetic_rows|real_rows|budget)"):
        Custom(**wrong)


def test_a_range_of_batches_that_ends_before_it_begins_is_empty() -> None:
    policy = Custom(takes=({"batch": "real(1)"}, {"batch": "synthetic(2..t-1)"}))
    assert [take.batch for take in policy.plan(2, 10).takes] == [Batch("real", 1)]


def test_rounding_to_a_huge_power_of_ten_is_immediate() -> None:
    assert evaluate("takes.weight", "round(12345678, 0 - 10 ** 9)", t=2) == 0
    assert evaluate("takes.weight", "round(12.345, 1) + round(t / 3)", t=2) == 13.3
