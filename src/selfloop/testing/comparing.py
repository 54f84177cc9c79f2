"""Comparisons of results, and the random stream of all checks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from selfloop.columns import Column, Columns, Ragged
from selfloop.component import Context
from selfloop.formats.safetensors import to_safetensors
from selfloop.rng import RandomStream

CONTEXT = Context(RandomStream(("selfloop.testing",)))


def same_twice(name: str, make: Callable[[], Any]) -> Any:
    """The result, if it is the same twice."""
    first, second = make(), make()
    same = equal_columns(first, second) if isinstance(first, Mapping) else first == second
    require(same, f"{name} returned another result the second time. Its arguments and ctx.stream must decide it")
    return first


def without_side_effects(name: str, make: Callable[[], Columns]) -> Columns:
    """The result, if it is the same twice and global random generators are unchanged (but for imports of the first call)."""
    make()
    before = _global_random_state()
    columns: Columns = same_twice(name, make)
    require(_global_random_state() == before, f"{name} uses global randomness; use ctx.stream")
    return columns


def _global_random_state() -> str:
    return repr((random.getstate(), np.random.get_state()))  # noqa: NPY002  # reads the state only


def read_only(columns: Columns) -> Columns:
    """Read-only copies, as the store returns them."""
    copies: dict[str, Column] = {}
    for name, column in columns.items():
        copies[name] = column if isinstance(column, Ragged) else np.array(column)
        values = column.values if isinstance(column, Ragged) else copies[name]
        np.asarray(values).flags.writeable = False
    return copies


def equal_columns(a: Columns, b: Columns) -> bool:
    """True if all columns are equal bit for bit, types included."""
    return list(a) == list(b) and to_safetensors(a) == to_safetensors(b)


def close_columns(a: Column, b: Column) -> bool:
    """True if the columns are equal up to rounding: a matrix product of other rows may differ in the last bit."""
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.offsets, b.offsets) and close_columns(a.values, b.values)
    return np.allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


def require(condition: bool, sentence: str) -> None:
    """Raise AssertionError with the sentence if the condition is false."""
    if not condition:
        raise AssertionError(sentence)
