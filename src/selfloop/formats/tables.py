"""Columns as JSON lines, CSV and Parquet files, and columns of images as PNG files; and the same files of programs, read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Array, Column, Columns, ColumnType, Ragged, Schema, element_labels
from selfloop.errors import first_line, os_error_reason, shown
from selfloop.formats.molecules import MOLECULE_COLUMNS
from selfloop.formats.programs import ProgramError
from selfloop.types import MASK

WORDS = {"true": True, "1": True, "false": False, "0": False}  # of booleans in a CSV file, in lower case
ABSENT = ("", "NA", "NaN", "nan")  # cells without a value, in a CSV file's column of numbers that has a mask
MAX_ROW_VALUES = 10_000  # numbers of one row that are written as text
MAX_FIELD = 2**31 - 1  # characters of a text in a CSV file; Python's own limit is 131,072


def to_python_values(rows: Columns, schema: Schema) -> dict[str, list[Any]]:
    """Columns as lists of Python values; rows of text (UTF-8 bytes) as strings, None where a mask has no value."""
    values = dict[str, list[Any]]()
    for name, column in rows.items():
        if is_mask(name, rows):
            continue
        if not isinstance(column, Ragged):
            values[name] = column.tolist()
        elif name in schema and schema[name].dtype == "utf8":
            values[name] = [row.decode("utf-8", "replace") for row in column.to_bytes()]
        else:
            values[name] = [column.values[start:end].tolist() for start, end in pairwise(column.offsets)]
        if (mask := rows.get(name + MASK)) is not None:
            values[name] = [None if gone else value for gone, value in zip(np.asarray(mask), values[name], strict=True)]
    return values


def is_mask(name: str, columns: Mapping[str, object]) -> bool:
    """True for the column of booleans beside a column with missing values."""
    return name.endswith(MASK) and name.removesuffix(MASK) in columns


def is_tabular(schema: Schema) -> bool:
    """True for rows of texts and of lists of at most `MAX_ROW_VALUES` numbers, which programs read as text."""
    sizes = [math.prod(column.shape) for column in schema.values()]
    return not schema.keys() >= MOLECULE_COLUMNS and max(sizes, default=0) <= MAX_ROW_VALUES


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


def write_csv(rows: Columns, path: Path, schema: Schema, *, for_spreadsheets: bool = True) -> None:
    """Write a CSV file. Each element of an array is a column, called by its label or `name[0]`, `name[1]`, ...

    `for_spreadsheets`: a text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    escape = _as_text if for_spreadsheets else str
    flat = dict[str, list[Any]]()
    for name, cells in to_python_values(rows, schema).items():
        column = rows[name]
        n = 1 if isinstance(column, Ragged) else math.prod(column.shape[1:])
        labels = [name] if isinstance(column, Ragged) else element_labels(name, n, schema)
        is_array = not isinstance(column, Ragged) and column.ndim > 1
        elements = np.asarray(cells).reshape(len(cells), n).T.tolist() if is_array else [cells]
        for label, values in zip(labels, elements, strict=True):
            flat[escape(label)] = [escape(value) if isinstance(value, str) else value for value in values]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")  # by default a \r would end a row
        writer.writerow(flat)
        writer.writerows(zip(*flat.values(), strict=True))


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


def read_rows(path: Path, format_: str, columns: Schema, n: int, optional: Sequence[str] = ()) -> dict[str, Column]:
    """The n rows of a CSV, JSON lines or Parquet file that a program wrote, typed as `columns`.

    `optional` columns may be missing. Raises ProgramError for another number of rows, for missing and unknown columns, and for
    a value of another type or that is not finite, with its row.
    """
    if not path.is_file() or path.is_symlink():
        kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no file"
        raise ProgramError(f"wrote {kind} {path.name}; expected a file")
    wanted = {name: column for name, column in columns.items() if not is_mask(name, columns)}
    values = READERS[format_](path, wanted, {name for name in wanted if name + MASK in columns})
    lacking, unknown = wanted.keys() - values.keys() - set(optional), values.keys() - wanted.keys()
    if lacking or unknown:
        problem = f"lacks column {min(lacking)!r}" if lacking else f"has a column {min(unknown)!r}"
        raise ProgramError(f"wrote {path.name}, which {problem}; expected {', '.join(wanted)}")
    if (n_rows := len(next(iter(values.values())))) != n:
        raise ProgramError(f"wrote {n_rows:,} rows; expected {n:,}")
    rows = dict[str, Column]()
    for name in filter(values.__contains__, wanted):
        mask = np.array([value is None or (isinstance(value, float) and math.isnan(value)) for value in values[name]])
        if has_mask := name + MASK in columns:
            empty = "" if columns[name].dtype == "utf8" else np.zeros(columns[name].shape).tolist()
            values[name] = [empty if gone else value for gone, value in zip(mask, values[name], strict=True)]
        rows[name] = _to_column(name, values[name], columns[name])
        if has_mask:
            rows[name + MASK] = mask
    return rows


def _to_column(name: str, values: list[Any], column: ColumnType) -> Column:
    """The values as a column; ProgramError for the first one that does not fit."""
    if column.dtype == "utf8":
        wrong = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
        if wrong is None:
            return Ragged.of_bytes([value.encode(errors="replace") for value in values])
    else:
        if (array := _to_array(values, np.dtype(column.dtype), column.shape)) is not None:
            return array
        fits = (_to_array([value], np.dtype(column.dtype), column.shape) is not None for value in values)
        wrong = next(i for i, fit in enumerate(fits) if not fit)
    value = "no value" if values[wrong] is None else shown(values[wrong])
    kind = "a text" if column.dtype == "utf8" else f"{column.dtype}{list(column.shape) or ''}, finite"
    raise ProgramError(f"wrote {name} = {value} in row {wrong + 1:,}; expected {kind}")


def to_cell(value: Any, column: Column) -> Array | bytes | None:
    """The value as a row of a column; None if it does not fit."""
    if isinstance(column, Ragged):
        return value.encode(errors="replace") if isinstance(value, str) else None
    array = _to_array([value], column.dtype, column.shape[1:])
    return None if array is None else np.asarray(array[0])


def _to_array(values: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
    """The values as rows of that type; None if one has another shape or kind, is not finite, or would be rounded to a whole."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths
        return None
    is_bool = dtype.kind == "b"
    if array.shape != (len(values), *shape) or array.dtype.kind not in ("b" if is_bool else "iuf"):
        return None
    if not is_bool and _has_booleans(values):  # which numpy takes for 0 and 1 among numbers
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        typed: Array = array.astype(dtype)
    exact = dtype.kind not in "iu" or np.array_equal(typed, array)
    return typed if exact and np.isfinite(typed).all() else None


def _has_booleans(value: Any) -> bool:
    return any(map(_has_booleans, value)) if isinstance(value, list) else isinstance(value, bool)


def _read_csv(path: Path, columns: Schema, masked: set[str]) -> dict[str, list[Any]]:
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as problem:
        reason = "it is empty" if "unpack" in str(problem) else first_line(problem)
        raise ProgramError(f"wrote {path.name}, which is no CSV file in UTF-8 with a header ({reason})") from problem
    finally:
        csv.field_size_limit(limit)
    lines = [line or [""] for line in lines if line or len(header) == 1]  # blank lines but for a single, empty text
    if wrong := next((i for i, line in enumerate(lines, 1) if len(line) != len(header)), 0):
        raise ProgramError(f"wrote {len(lines[wrong - 1])} values in row {wrong:,} of {path.name}; expected {len(header)}")
    if len(set(header)) < len(header):
        raise ProgramError(f"wrote {path.name} with two columns of one name; expected {', '.join(columns)}")
    cells = dict(zip(header, zip(*lines, strict=True) if lines else [()] * len(header), strict=True))
    values = dict[str, list[Any]]()
    for name, column in columns.items():
        labels = element_labels(name, math.prod(column.shape), columns)
        if all(label in cells for label in labels):
            parsed = [[_parse_cell(cell, column.dtype, name in masked) for cell in cells.pop(label)] for label in labels]
            values[name] = list(map(list, zip(*parsed, strict=True))) if column.shape else parsed[0]
            if len(column.shape) > 1:
                values[name] = [np.reshape(np.array(row, object), column.shape).tolist() for row in values[name]]
    return {**values, **{label: list(rest) for label, rest in cells.items()}}


def _parse_cell(cell: str, dtype: str, masked: bool) -> Any:
    """The value of a cell; the text itself if it is no value of the type."""
    if dtype == "utf8":
        return None if masked and not cell else cell
    if cell in (ABSENT if masked else ("",)):
        return None
    if dtype == "bool":
        return WORDS.get(cell.lower(), cell)
    try:
        return int(cell) if np.dtype(dtype).kind in "iu" else float(cell)
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return cell


def _read_jsonl(path: Path, columns: Schema, masked: set[str]) -> dict[str, list[Any]]:
    rows = list[dict[str, Any]]()
    for i, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            rows.append(json.loads(line.decode()) if line else {})
        except (ValueError, RecursionError) as problem:
            raise ProgramError(f"wrote line {i:,} of {path.name}, which is no JSON ({first_line(problem)})") from problem
        if not isinstance(rows[-1], dict):
            raise ProgramError(f"wrote {shown(rows[-1])} as line {i:,} of {path.name}; expected an object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names} or {name: [] for name in columns}


def _read_parquet(path: Path, columns: Schema, masked: set[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as problem:
        raise ProgramError(f"wrote {path.name}, which is no Parquet file ({first_line(problem)})") from problem
    return {name: table.column(name).to_pylist() for name in table.column_names}


READERS: dict[str, Callable[[Path, Schema, set[str]], dict[str, list[Any]]]] = {
    "csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet
}  # fmt: skip


def read_pngs(folder: Path, n: int, shape: tuple[int, ...]) -> Array:
    """The images `000000.png`, ... that a program wrote, as uint8 of (n, *shape). ProgramError for missing and other ones."""
    from PIL import Image

    names = [f"{i:06d}.png" for i in range(n)]
    if (n_images := len(list(folder.glob("*.png")))) != n:
        raise ProgramError(f"wrote {n_images:,} images into {folder.name}; expected {n:,}")
    images = np.empty((n, *shape), np.uint8)
    mode = "RGB" if shape[2:] == (3,) else "L"
    for i, name in enumerate(names):
        try:
            with Image.open(folder / name) as image:
                form = image.mode, image.size[::-1]
                if form == (mode, shape[:2]):
                    images[i] = np.asarray(image).reshape(shape)
        except OSError as problem:
            raise ProgramError(f"wrote no image {name} that can be read ({os_error_reason(problem)})") from problem
        if form != (mode, shape[:2]):
            raise ProgramError(f"wrote {name} with {form[0]} pixels {form[1]}; expected {mode} {shape[:2]}")
    return images
