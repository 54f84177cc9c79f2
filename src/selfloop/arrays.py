"""Columns as the bytes of a safetensors file, and back as views of a memory map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.types import Array, Column, Columns, Ragged


def pack_arrays(columns: Columns) -> bytes:
    """The columns as a safetensors file; the same columns give the same bytes."""
    from safetensors.numpy import save

    flat: dict[str, Array] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            flat[f"{name}::values"], flat[f"{name}::offsets"] = column.values, column.offsets
        else:
            flat[name] = column
    return cast(bytes, save({name: np.ascontiguousarray(array) for name, array in flat.items()}))


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8",
           "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}  # fmt: skip


def read_arrays(path: Path) -> dict[str, Column]:
    """The arrays of a safetensors file as views of one memory map (the library would copy them)."""
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    flat: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat[name] = data[start + first : start + last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    names = dict.fromkeys(name.removesuffix("::values").removesuffix("::offsets") for name in flat)
    return {
        name: flat[name] if name in flat else Ragged(flat[f"{name}::values"], cast(Any, flat[f"{name}::offsets"]))
        for name in names
    }
