"""Columns as the bytes of a safetensors file, and back as views of a memory map; large columns in chunks."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
from collections import defaultdict
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from selfloop.columns import Array, Column, Columns, Ints, Ragged, count_rows, select_rows
from selfloop.errors import DataError, first_line
from selfloop.formats.folders import refuse_pointer

# Names of types in a file. The safetensors library orders arrays by type, as below, and then by name.
_DTYPES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "F16": "<f2", "U16": "<u2",
           "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}
BFLOAT16 = "BF16"  # which numpy lacks: the first half of a float32
CHUNK_BYTES = 1 << 22  # of rows that are gathered at a time


def to_safetensors(columns: Columns) -> list[bytes | memoryview]:
    """The columns as a safetensors file, in buffers without copies; equal columns give equal bytes.

    Byte for byte the result of `safetensors.numpy.save`. Raises DataError for arrays of other types than numbers and booleans.
    """
    arrays: list[tuple[str, str, Array]] = []
    for name, array in flatten_columns(columns).items():
        dtype = array.dtype.newbyteorder("<")
        if dtype.str not in _CODES:
            raise DataError(f"store: got array {name!r} of type {array.dtype}; expected numbers or booleans. Encode it.")
        arrays.append((dtype.str, name, array.astype(dtype, order="C", copy=False)))
    arrays.sort(key=lambda entry: (_RANKS[entry[0]], entry[1]))
    header, end = dict[str, object](), 0
    for dtype_name, name, array in arrays:
        first, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[dtype_name], "shape": list(array.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(array.reshape(-1).view(np.uint8).data for _, _, array in arrays)]


def flatten_columns(columns: Columns) -> dict[str, Array]:
    """The columns as plain arrays; a ragged column is two arrays."""
    flat: dict[str, Array] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            flat[f"{name}::values"], flat[f"{name}::offsets"] = column.values, column.offsets
        else:
            flat[name] = np.asarray(column)  # numpy scalars too
    return flat


def is_columns(value: Any) -> bool:
    """True for a mapping of at least one array, which a store keeps as a safetensors file."""
    is_table = isinstance(value, Mapping) and bool(value)
    return is_table and all(isinstance(column, np.ndarray | np.generic | Ragged) for column in value.values())


class NamedArrays(dict[str, Any]):
    """Columns or params. A missing name raises a DataError that lists the names, because components do not fit together."""

    def __missing__(self, name: str) -> Any:
        names = ", ".join(self) or "none (is holdout 0, or does the policy draw no rows?)"
        raise DataError(f"array {name!r}: missing. There are: {names}. Choose a source, family and metrics that fit.")


def read_safetensors(path: str | Path) -> dict[str, Column]:
    """The arrays of a safetensors file as views of one memory map; copies in float32 of those in bfloat16.

    The library checks the file. It would copy the arrays, but gives their order, types and shapes: they fill the file
    after its header without gaps. Raises DataError for a file that it refuses, or for arrays of other types than numpy's.
    """
    try:
        with safe_open(path, framework="np") as checked:
            slices = {name: checked.get_slice(name) for name in checked.offset_keys()}
    except SafetensorError as problem:
        refuse_pointer(f"{path}:", Path(path))
        raise DataError(
            f"{path}: is not a complete safetensors file ({first_line(problem)}). Write it or download it again."
        ) from problem
    with open(path, "rb") as file:
        data = _map_file(file)
    flat, end = NamedArrays(), 8 + int(data[:8].view("<u8")[0])
    for name, entry in slices.items():
        code, shape = entry.get_dtype(), entry.get_shape()
        if code not in _DTYPES and code != BFLOAT16:
            raise DataError(f"{path}: array {name!r} has type {code}; expected {', '.join(_DTYPES)} or {BFLOAT16}. Convert it.")
        dtype = np.dtype(_DTYPES.get(code, "<u2"))
        first, end = end, end + math.prod(shape) * dtype.itemsize
        array = data[first:end].view(dtype).reshape(shape)
        flat[name] = array if code != BFLOAT16 else (array.astype(np.uint32) << 16).view(np.float32)
    return _unflatten_columns(flat)


def _map_file(file: IO[bytes]) -> Array:
    """The bytes of a file that is not empty, mapped and read-only, without the open descriptor of `mmap.mmap`."""
    size = os.fstat(file.fileno()).st_size
    address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), file.name)
    return np.asarray(_Pages(address, size))


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class _Pages:
    """Mapped pages; they end with the last array that refers to them."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, True)}
        self.unmap = partial(_libc().munmap, address, size)

    def __del__(self) -> None:
        self.unmap()


def _unflatten_columns(flat: Mapping[str, Array]) -> dict[str, Column]:
    names = dict.fromkeys(name.removesuffix("::values").removesuffix("::offsets") for name in flat)
    return NamedArrays(
        (name, flat[name] if name in flat else Ragged(flat[f"{name}::values"], cast(Any, flat[f"{name}::offsets"])))
        for name in names
    )


class ColumnWriter:
    """Appends rows to unnamed files in a folder, so that they need not fit in memory. The files end with their last view."""

    def __init__(self, folder: Path) -> None:
        self._files = defaultdict[str, _ArrayFile](lambda: _ArrayFile(folder))

    def append(self, columns: Columns) -> None:
        """Add rows. Every call has the same columns, types and row shapes."""
        for name, column in columns.items():
            if isinstance(column, Ragged):
                values, offsets = self._files[f"{name}::values"], self._files[f"{name}::offsets"]
                offsets.append(column.offsets[min(offsets.n_rows, 1) :] - column.offsets[0] + values.n_rows)  # begin with one 0
                values.append(column.values[column.offsets[0] : column.offsets[-1]])
            else:
                self._files[name].append(np.asarray(column))

    def columns(self) -> dict[str, Column]:
        """All rows, memory-mapped and read-only; no columns if no rows were appended. Ends the writing."""
        return _unflatten_columns({name: file.memory_map() for name, file in self._files.items()})


class _ArrayFile:
    """One array in an unnamed file, which grows by rows."""

    def __init__(self, folder: Path) -> None:
        self.file: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115  # closed by `memory_map`
        self.dtype: np.dtype[np.generic] | None = None
        self.row_shape: tuple[int, ...] = ()
        self.n_rows = 0

    def append(self, rows: Array) -> None:
        if self.dtype is None:
            self.dtype, self.row_shape = rows.dtype, rows.shape[1:]
        assert (rows.dtype, rows.shape[1:]) == (self.dtype, self.row_shape)
        self.file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self.n_rows += len(rows)

    def memory_map(self) -> Array:
        with self.file as file:
            if not file.tell():  # an empty file cannot be mapped
                return np.empty((self.n_rows, *self.row_shape), self.dtype)
            file.flush()
            data = _map_file(file)
        return data.view(np.dtype(self.dtype)).reshape(self.n_rows, *self.row_shape)


def gather_rows(columns: Columns, indices: Ints, folder: Path) -> dict[str, Column]:
    """The rows at `indices`, in that order: in memory if they are few, else copied in chunks to unnamed files in `folder`."""
    row_bytes = sum((c.values if isinstance(c, Ragged) else c).nbytes for c in columns.values()) / max(count_rows(columns), 1)
    chunk_rows = int(CHUNK_BYTES / max(row_bytes, 1)) + 1
    if len(indices) <= chunk_rows:
        return select_rows(columns, indices)
    writer = ColumnWriter(folder)
    for first in range(0, len(indices), chunk_rows):
        writer.append(select_rows(columns, indices[first : first + chunk_rows]))
    return writer.columns()
