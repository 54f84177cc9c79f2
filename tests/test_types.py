"""Rows gathered from takes are the rows that a plain loop picks, ragged or not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selfloop.columns import Columns, Ragged, concat_rows, count_rows, select_rows
from selfloop.types import RowTake, TrainingRows

lengths = st.lists(st.integers(0, 4), min_size=1, max_size=6)


def make_rows(sizes: list[int], start: int) -> Columns:
    """Row i has a number and as many words as sizes[i]; all values differ."""
    words = start + np.arange(sum(sizes))
    return {
        "x": start + np.arange(len(sizes) * 2).reshape(-1, 2) / 8,
        "words": Ragged(words, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)),
    }


def as_lists(rows: Columns) -> list[tuple[list[float], list[int]]]:
    """Every row as plain lists."""
    x, words = rows["x"], rows["words"]
    assert isinstance(words, Ragged)
    starts = words.offsets
    return [(list(x[i]), words.values[starts[i] : starts[i + 1]].tolist()) for i in range(count_rows(rows))]  # type: ignore[index]


@given(lengths, st.data())
def test_selected_rows_are_the_rows_at_the_indices(sizes: list[int], data: st.DataObject) -> None:
    rows = make_rows(sizes, 0)
    indices = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8))
    picked = select_rows(rows, np.array(indices, np.int64))
    assert as_lists(picked) == [as_lists(rows)[i] for i in indices]


@given(st.lists(st.tuples(lengths, st.booleans(), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=4), st.data())
def test_gathered_rows_are_those_that_a_loop_over_takes_picks(
    batches: list[tuple[list[int], bool, float]], data: st.DataObject
) -> None:
    takes, expected, weights = [], [], []
    for p, (sizes, partial, weight) in enumerate(batches):
        rows = make_rows(sizes, 100 * p)
        chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5)) if partial else range(len(sizes))
        takes.append(RowTake(rows, np.array(chosen, np.int64) if partial else None, weight))
        expected += [as_lists(rows)[i] for i in chosen]
        weights += [weight] * len(chosen)
    samples = TrainingRows(tuple(takes))
    assert len(samples) == len(expected)
    assert as_lists(samples.all()) == expected
    indices = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=10))
    assert as_lists(samples.gather(np.array(indices))) == [expected[i] for i in indices]
    assert np.allclose(samples.weights(), np.array(weights) / np.mean(weights))
    assert np.isclose(samples.weights().mean(), 1)


@given(st.lists(lengths, min_size=1, max_size=4))
def test_concatenated_rows_come_one_table_after_another(tables: list[list[int]]) -> None:
    rows = [make_rows(sizes, 100 * p) for p, sizes in enumerate(tables)]
    assert as_lists(concat_rows(rows)) == [row for table in rows for row in as_lists(table)]
