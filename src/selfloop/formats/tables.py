"""Columns as JSON lines, CSV and Parquet files, and columns of images as PNG files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Array, Columns, Ragged, Schema, element_labels


def to_python_values(rows: Columns, schema: Schema) -> dict[str, list[Any]]:
    """Columns as lists of Python values; rows of text (UTF-8 bytes) as strings."""
    values = dict[str, list[Any]]()
    for name, column in rows.items():
        if not isinstance(column, Ragged):
            values[name] = column.tolist()
        elif name in schema and schema[name].dtype == "utf8":
            values[name] = [row.decode("utf-8", "replace") for row in column.to_bytes()]
        else:
            values[name] = [column.values[start:end].tolist() for start, end in pairwise(column.offsets)]
    return values


def write_jsonl(rows: Columns, path: Path, schema: Schema) -> None:
    """Write one JSON object per row, in UTF-8."""
    values = to_python_values(rows, schema)
    with path.open("w", encoding="utf-8") as file:
        for row in zip(*values.values(), strict=True):
            file.write(json.dumps(dict(zip(values, row, strict=True)), ensure_ascii=False) + "\n")


def write_parquet(rows: Columns, path: Path, schema: Schema) -> None:
    """Write a Parquet file. Raises ImportError without pyarrow."""
    import pandas as pd

    pd.DataFrame(to_python_values(rows, schema)).to_parquet(path, index=False)


def write_csv(rows: Columns, path: Path, schema: Schema) -> None:
    """Write a CSV file. Each element of an array is a column, called by its label or `name[0]`, `name[1]`, ...

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    import pandas as pd

    flat = dict[str, Any]()
    for name, column in rows.items():
        if isinstance(column, Ragged):
            columns = to_python_values({name: column}, schema)
        else:
            elements = column.reshape(len(column), -1).T.tolist()
            columns = dict(zip(element_labels(name, len(elements), schema), elements, strict=True))
        for label, cells in columns.items():
            flat[_as_text(label)] = [_as_text(cell) if isinstance(cell, str) else cell for cell in cells]
    pd.DataFrame(flat).to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)  # by default a \r in a text would end the row


def _as_text(cell: str) -> str:
    """The text, after an apostrophe if a spreadsheet would compute it as a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def find_images(rows: Columns) -> Array | None:
    """The first uint8 column of shape (rows, height, width) or (rows, height, width, 1 or 3); None without one."""
    dense = [column for column in rows.values() if not isinstance(column, Ragged)]
    return next((c for c in dense if c.dtype == np.uint8 and (c.ndim == 3 or (c.ndim == 4 and c.shape[3] in (1, 3)))), None)


def write_pngs(images: Array, folder: Path) -> None:
    """Write image i as `folder/00000i.png`."""
    from PIL import Image

    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(folder / f"{i:06d}.png")
