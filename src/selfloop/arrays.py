"""Columns as the bytes of a safetensors file, and back as views of a memory map."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.errors import DataError
from selfloop.types import Array, Column, Columns, Ragged


def pack_arrays(columns: Columns) -> bytes:
    """The columns as a safetensors file; the same columns give the same bytes. DataError for what is no number."""
    from safetensors.numpy import save

    flat: dict[str, Array] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            flat[f"{name}::values"], flat[f"{name}::offsets"] = column.values, column.offsets
        else:
            flat[name] = np.asarray(column)  # a number of numpy's, too
    for name, array in flat.items():
        if array.dtype.newbyteorder("<").str not in _DTYPES.values():
            raise DataError(f"store: array {name!r} is of type {array.dtype}; only numbers and booleans are kept. Encode it.")
    little = {name: array.astype(array.dtype.newbyteorder("<"), order="C", copy=False) for name, array in flat.items()}
    return cast(bytes, save(little))


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8",
           "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}  # fmt: skip


class Named(dict[str, Any]):
    """Columns or parameters that say what there is when they are asked for what is not: components that do not fit."""

    def __missing__(self, name: str) -> Any:
        there = ", ".join(self) or "none (is holdout 0, or does the policy ask for no rows?)"
        raise DataError(f"array {name!r} is not there; there are: {there}. Choose a source, family and metrics that fit.")


def read_arrays(path: str | Path) -> dict[str, Column]:
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
    return Named(
        (name, flat[name] if name in flat else Ragged(flat[f"{name}::values"], cast(Any, flat[f"{name}::offsets"])))
        for name in names
    )
