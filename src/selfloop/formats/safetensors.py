"""Columns as the bytes of a safetensors file, and back as views of a memory map; large ones piece by piece."""

from __future__ import annotations

import errno
import json
import mmap
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

import numpy as np

from selfloop.errors import DataError
from selfloop.types import Array, Column, Columns, Ints, Ragged, count_rows, select_rows

# the names and the order that the library writes arrays in: by type, then by name
_DTYPES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "F16": "<f2", "U16": "<u2",
           "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}
PIECE = 1 << 22  # bytes of rows that are gathered at once


def to_safetensors(columns: Columns) -> list[bytes | memoryview]:
    """The columns as a safetensors file, in pieces that copy nothing; the same columns give the same bytes.

    Byte for byte what `safetensors.numpy.save` gives. DataError for what is no number.
    """
    little: list[tuple[str, str, Array]] = []
    for name, array in _flat(columns).items():
        dtype = array.dtype.newbyteorder("<")
        if dtype.str not in _CODES:
            raise DataError(f"store: array {name!r} is of type {array.dtype}; only numbers and booleans are kept. Encode it.")
        little.append((dtype.str, name, array.astype(dtype, order="C", copy=False)))
    little.sort(key=lambda entry: (_RANKS[entry[0]], entry[1]))
    header, end = dict[str, object](), 0
    for dtype_name, name, array in little:
        first, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[dtype_name], "shape": list(array.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(array.reshape(-1).view(np.uint8).data for _, _, array in little)]


def _flat(columns: Columns) -> dict[str, Array]:
    flat: dict[str, Array] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            flat[f"{name}::values"], flat[f"{name}::offsets"] = column.values, column.offsets
        else:
            flat[name] = np.asarray(column)  # a number of numpy's, too
    return flat


def pack_arrays(columns: Columns) -> bytes:
    """The columns as a safetensors file in memory."""
    return b"".join(to_safetensors(columns))


class NamedArrays(dict[str, Any]):
    """Columns or parameters that say what there is when they are asked for what is not: components that do not fit."""

    def __missing__(self, name: str) -> Any:
        there = ", ".join(self) or "none (is holdout 0, or does the policy ask for no rows?)"
        raise DataError(f"array {name!r} is not there; there are: {there}. Choose a source, family and metrics that fit.")


def read_safetensors(path: str | Path) -> dict[str, Column]:
    """The arrays of a safetensors file as views of one memory map (the library would copy them)."""
    with open(path, "rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    flat: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat[name] = data[start + first : start + last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    names = dict.fromkeys(name.removesuffix("::values").removesuffix("::offsets") for name in flat)
    return NamedArrays(
        (name, flat[name] if name in flat else Ragged(flat[f"{name}::values"], cast(Any, flat[f"{name}::offsets"])))
        for name in names
    )


class ColumnWriter:
    """Rows appended to unnamed files in a folder, which vanish with the last view of them: as many as the disk holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values: dict[str, _Growing] = {}
        self._offsets: dict[str, _Growing] = {}

    def append(self, columns: Columns) -> None:
        """Add rows; every call has the same columns, types and row shapes."""
        if not self._values:
            self._values = {name: _Growing(self._folder) for name in columns}
            self._offsets = {name: _Growing(self._folder) for name, c in columns.items() if isinstance(c, Ragged)}
        for name, column in columns.items():
            if isinstance(column, Ragged):
                offsets, start = self._offsets[name], self._values[name].rows
                if not offsets.rows:
                    offsets.append(np.zeros(1, np.int64))
                offsets.append(column.offsets[1:] - column.offsets[0] + start)
                column = column.values[column.offsets[0] : column.offsets[-1]]
            self._values[name].append(np.asarray(column))

    def columns(self) -> dict[str, Column]:
        """All rows, memory-mapped and read-only; nothing can be appended after. Without columns when nothing was."""
        values = {name: grown.mapped() for name, grown in self._values.items()}
        offsets = {name: cast(Ints, grown.mapped()) for name, grown in self._offsets.items()}
        return NamedArrays((name, Ragged(v, offsets[name]) if name in offsets else v) for name, v in values.items())


def _unnamed(folder: Path) -> IO[bytes]:
    """A file without a name in a folder, which another process that ends the same stage may remove at any moment, once."""
    for _ in range(3):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return TemporaryFile(dir=folder)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


class _Growing:
    """One array in an unnamed file."""

    def __init__(self, folder: Path) -> None:
        self.file: IO[bytes] = _unnamed(folder)  # closed when it is mapped
        self.dtype: np.dtype[np.generic] | None = None
        self.row: tuple[int, ...] = ()  # shape of one row
        self.rows = 0

    def append(self, rows: Array) -> None:
        if self.dtype is None:
            self.dtype, self.row = rows.dtype, rows.shape[1:]
        assert (rows.dtype, rows.shape[1:]) == (self.dtype, self.row), f"{rows.dtype}{rows.shape} among {self.dtype}{self.row}"
        self.file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self.rows += len(rows)

    def mapped(self) -> Array:
        with self.file as file:
            if not file.tell():  # nothing to map
                return np.empty((self.rows, *self.row), self.dtype)
            file.flush()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(data, self.dtype).reshape(self.rows, *self.row)


def gather_rows(columns: Columns, indices: Ints, folder: Path) -> dict[str, Column]:
    """The rows at `indices`, in that order: in memory when they are few, else copied piece by piece to files in `folder`."""
    row = sum((c.values if isinstance(c, Ragged) else c).nbytes for c in columns.values()) / max(count_rows(columns), 1)
    step = int(PIECE / max(row, 1)) + 1
    if len(indices) <= step:
        return select_rows(columns, indices)
    writer = ColumnWriter(folder)
    for first in range(0, len(indices), step):
        writer.append(select_rows(columns, indices[first : first + step]))
    return writer.columns()
