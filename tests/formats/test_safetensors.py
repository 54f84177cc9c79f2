"""Arrays as files: equal to the bytes of the safetensors library, and columns larger than memory in chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from selfloop.columns import Column, Columns, Ragged, concat_rows, select_rows
from selfloop.formats import safetensors
from selfloop.formats.safetensors import ColumnWriter, gather_rows, read_safetensors, to_safetensors

TYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
NAMES = st.text(st.characters(codec="utf-8"), max_size=6).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3), max_size=3)


def words(*texts: str) -> Ragged:
    values = np.frombuffer("".join(texts).encode(), np.uint8)
    return Ragged(values, np.cumsum([0, *(len(text.encode()) for text in texts)]))


def same(a: Column, b: Column) -> bool:
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return same(a.values, b.values) and np.array_equal(a.offsets - a.offsets[0], b.offsets)
    assert isinstance(a, np.ndarray)
    assert isinstance(b, np.ndarray)
    return (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist())


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(TYPES), SHAPES), max_size=8))
def test_a_file_has_the_bytes_that_the_safetensors_library_writes(arrays: dict[str, tuple[str, list[int]]]) -> None:
    columns = {
        name: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape) for name, (dtype, shape) in arrays.items()
    }
    assert b"".join(to_safetensors(columns)) == save(columns)
    big_endian = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in columns.items()}
    assert b"".join(to_safetensors(big_endian)) == save(columns)


def test_a_large_array_is_packed_without_a_copy() -> None:
    array = np.arange(1000)
    assert np.shares_memory(array, np.asarray(to_safetensors({"a": array})[-1]))


CHUNKS: list[Columns] = [
    {"text": words("one", "", "three"), "x": np.arange(6.0).reshape(3, 2)},
    {"text": words(), "x": np.zeros((0, 2))},
    {"text": words("", "vier"), "x": np.ones((2, 2))},
]


def test_rows_appended_in_chunks_are_the_concatenated_rows(tmp_path: Path) -> None:
    writer = ColumnWriter(tmp_path / "new folder")
    for chunk in CHUNKS:
        writer.append(chunk)
    columns, expected = writer.columns(), concat_rows(CHUNKS)
    assert list(columns) == list(expected)
    assert all(same(expected[name], columns[name]) for name in expected)
    assert not np.asarray(columns["x"]).flags.writeable
    assert list((tmp_path / "new folder").iterdir()) == []  # unnamed files: a killed process leaves none
    (tmp_path / "a").write_bytes(b"".join(to_safetensors(columns)))
    assert all(same(expected[name], column) for name, column in read_safetensors(tmp_path / "a").items())


def test_rows_of_a_longer_column_are_appended_with_offsets_from_0(tmp_path: Path) -> None:
    whole = words("one", "two", "three")
    writer = ColumnWriter(tmp_path)
    writer.append({"text": Ragged(whole.values, whole.offsets[1:])})
    assert same(writer.columns()["text"], words("two", "three"))


def test_columns_without_rows_and_with_empty_rows_are_written(tmp_path: Path) -> None:
    for texts in ((), ("", "")):
        writer = ColumnWriter(tmp_path)
        writer.append({"text": words(*texts), "x": np.zeros((len(texts), 0), np.int16)})
        columns = writer.columns()
        assert same(columns["text"], words(*texts))
        assert same(columns["x"], np.zeros((len(texts), 0), np.int16))
    assert ColumnWriter(tmp_path).columns() == {}


@pytest.mark.parametrize("in_memory", [True, False])
def test_gathered_rows_are_the_selected_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 1 << 20 if in_memory else 64)
    rng = np.random.default_rng(0)
    columns = {"text": words(*("x" * int(k) for k in rng.integers(0, 9, 50))), "x": rng.normal(size=(50, 2))}
    for indices in (rng.permutation(50), rng.integers(0, 50, 200), np.zeros(0, np.int64)):
        rows, expected = gather_rows(columns, indices, tmp_path), select_rows(columns, indices)
        assert all(same(expected[name], rows[name]) for name in columns)


def test_long_rows_are_selected_like_short_rows() -> None:
    lengths = np.array([1000, 0, 2000, 1, 500])
    column = Ragged(np.arange(lengths.sum()), np.cumsum([0, *lengths]))
    for indices in ([4, 0, 2], [1, 3, 1], [2, 1]):
        rows = column[np.array(indices)]
        assert rows.values.tolist() == [v for i in indices for v in column.values[column.offsets[i] : column.offsets[i + 1]]]
        assert np.diff(rows.offsets).tolist() == lengths[indices].tolist()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=5), max_size=5))
def test_bytes_of_a_column_are_returned_unchanged(rows: list[bytes]) -> None:
    assert Ragged.of_bytes(rows).to_bytes() == rows
