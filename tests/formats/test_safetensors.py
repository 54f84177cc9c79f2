"""Arrays as files: equal to the bytes of the safetensors library, and columns larger than memory in chunks."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save_file as save_torch

from selfloop.columns import Column, Columns, Ragged, concat_rows, select_rows
from selfloop.engine.steps import load_params
from selfloop.errors import DataError
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
    writer = ColumnWriter(tmp_path)
    for chunk in CHUNKS:
        writer.append(chunk)
    columns, expected = writer.columns(), concat_rows(CHUNKS)
    assert list(columns) == list(expected)
    assert all(same(expected[name], columns[name]) for name in expected)
    assert not np.asarray(columns["x"]).flags.writeable
    assert list(tmp_path.iterdir()) == []  # unnamed files: a killed process leaves none
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


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "deep header": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header of a list": file_of(b"[1, 2]"),
    "negative offsets": file_of(json.dumps({"a": entry(offsets=(-8, 0))}).encode(), bytes(8)),
    "reversed offsets": file_of(json.dumps({"a": entry(offsets=(8, 0))}).encode(), bytes(8)),
    "overlapping arrays": file_of(json.dumps({"a": entry(), "b": entry()}).encode(), bytes(8)),
    "a gap": file_of(json.dumps({"a": entry(), "b": entry(offsets=(16, 24))}).encode(), bytes(24)),
    "negative shape": file_of(json.dumps({"a": entry(shape=(-1, 2))}).encode(), bytes(8)),
    "no shape": file_of(b'{"a":{"dtype":"F32","data_offsets":[0,8]}}', bytes(8)),
    "no offsets": file_of(b'{"a":{"dtype":"F32","shape":[2]}}', bytes(8)),
    "overflowing shape": file_of(json.dumps({"a": entry(shape=(1 << 62, 4))}).encode(), bytes(8)),
    "unknown type": file_of(json.dumps({"a": entry("Q8", (8,))}).encode(), bytes(8)),
    "a type without numpy's": file_of(json.dumps({"a": entry("F8_E4M3", (8,))}).encode(), bytes(8)),
    "bytes after the arrays": file_of(json.dumps({"a": entry()}).encode(), bytes(9)),
    "cut short": file_of(json.dumps({"a": entry()}).encode(), bytes(7)),
    "a name of half a character": file_of(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "a name that is not UTF-8": file_of(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "values without offsets": file_of(json.dumps({"a::values": entry()}).encode(), bytes(8)),
    "NaN": file_of(json.dumps({"a": entry()}).encode(), b"\xff" * 8),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"^init_from: ") as caught:
        load_params(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


JSON = st.none() | st.integers(-9, 1 << 70) | st.floats() | st.text(max_size=4) | st.lists(st.integers(-2, 20), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "BF16", "F4", "C64"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | JSON,
    },
)


@settings(max_examples=150)
@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | JSON, max_size=3), st.binary(max_size=40))
def test_any_header_gives_arrays_inside_the_file_or_a_sentence(header: dict[str, Any], data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(file_of(json.dumps(header).encode(), data))
        try:
            arrays = read_safetensors(path)
        except DataError:
            return
    assert sum(np.asarray(array).nbytes for array in arrays.values()) in (len(data), 2 * len(data))  # bfloat16 as float32


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=1)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_gives_arrays_or_a_sentence(changes: list[tuple[int, bytes]]) -> None:
    columns: Columns = {"a": np.arange(6.0).reshape(3, 2), "text": words("one", "", "three"), "b": np.array(True)}
    content = bytearray(b"".join(to_safetensors(columns)))
    for position, byte in changes:
        content[position % len(content)] = byte[0]
    with TemporaryDirectory() as folder, suppress(DataError):
        (path := Path(folder) / "x").write_bytes(content)
        for column in read_safetensors(path).values():
            assert np.asarray(column.values if isinstance(column, Ragged) else column).nbytes <= len(content)


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    tensor = torch.tensor([[1.0, -2.5], [1 / 3, 3e38]]).bfloat16()
    save_torch({"a": tensor, "b": torch.arange(3)}, path := tmp_path / "x")
    columns = read_safetensors(path)
    assert same(columns["a"], tensor.float().numpy())
    assert same(columns["b"], np.arange(3))


def test_arrays_are_read_only_views_of_the_mapped_file_and_hold_no_descriptor(tmp_path: Path) -> None:
    content = b"".join(to_safetensors({"a": np.arange(1000), "b": np.ones(9)}))
    (path := tmp_path / "x").write_bytes(content)
    descriptors = len(os.listdir("/dev/fd"))
    arrays = [read_safetensors(path)["a"] for _ in range(5)]
    assert len(os.listdir("/dev/fd")) == descriptors
    assert all(isinstance(array, np.ndarray) and not array.flags.writeable for array in arrays)
    with path.open("r+b") as file:
        file.seek(content.index(np.int64(123).tobytes()))
        file.write(np.int64(-5).tobytes())
    assert all(same(array, np.where(np.arange(1000) == 123, -5, np.arange(1000))) for array in arrays)
