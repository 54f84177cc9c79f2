"""Tables as they are: CSV, JSON lines and Parquet files with numbers, categories, texts and missing values."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np

from selfloop.columns import Bools, Column, Columns, ColumnType, Ragged, count_rows
from selfloop.errors import DataError, SettingError, first_line
from selfloop.sources import tables
from selfloop.sources.files import FileSource, cached_until_change, file_stamp, open_file
from selfloop.sources.text_files import to_object
from selfloop.types import MASK

if TYPE_CHECKING:
    import pandas as pd

MISSING_WORDS = tuple(sorted(tables.MISSING))
CSV_SETTINGS = {**tables.CSV_SETTINGS, "missing": MISSING_WORDS}
MIN_TEXTS = 20  # different values, up to which texts are categories
MAX_CATEGORY_SHARE = 0.5  # of different values among the values of a category
MAX_CATEGORY_LENGTH = 64  # characters of a category on average
BOOLEANS = {True: "true", False: "false"}


class RecordTable(NamedTuple):
    """All rows, in the order of the file, and the type of each column."""

    columns: dict[str, Column]
    schema: dict[str, ColumnType]


@dataclass(frozen=True, kw_only=True)
class Records(FileSource):
    """Rows of a CSV, JSON lines or Parquet file, compressed or not, with one column per column of the file.

    Every seed orders them anew. Numbers are float64. Categories, texts, dates, and true and false are texts in UTF-8. A column
    with missing values has a column of booleans beside it, `NAME@missing`; where it is true, the value is 0 or an empty text.
    In CSV files, numbers that begin with a zero (postal codes) are texts. Texts are categories up to 20 different values, and
    beyond if values are short and at most half of them differ. Raises DataError for a column of numbers and words, of numbers
    that float64 would round, that has no values, or that numbers the rows.
    """

    name: ClassVar[str] = "records"
    path: Annotated[Path, "file: .csv, .jsonl, .ndjson, .json (one object per line), .parquet or .pq"]
    columns: Annotated[tuple[str, ...] | None, "columns that are used; unset: all"] = None
    target: Annotated[str | None, "column of the outcomes, which metrics and families predict from the others"] = None
    categories: Annotated[tuple[str, ...], "columns that are categories whatever their values are, such as codes"] = ()
    texts: Annotated[tuple[str, ...], "columns that are texts whatever their values are"] = ()
    missing: Annotated[tuple[str, ...], "cells of a CSV file without a value, in lower case"] = MISSING_WORDS
    header: tables.HasHeader = None
    separator: tables.Separator = None
    decimal: tables.DecimalMark = "."

    def __post_init__(self) -> None:
        super().__post_init__()
        tables.check_csv_settings(self, CSV_SETTINGS, self.format() == "csv")
        named = [*(self.columns or ()), *self.categories, *self.texts]
        if repeated := [name for names in (self.columns or (), (*self.categories, *self.texts)) for name in set(names)
                        if names.count(name) > 1]:  # fmt: skip
            raise SettingError("columns", f"got {sorted(repeated)[0]!r} twice. Name each column once, as a category or a text.")
        if self.columns is not None and (unused := {*named, *filter(None, [self.target])} - set(self.columns)):
            raise SettingError("columns", f"lacks {min(unused)!r}, which another setting names. Add it to 'columns'.")
        if wrong := [word for word in self.missing if word != word.strip().lower()]:
            raise SettingError("missing", f"got {wrong[0]!r}; expected words in lower case without blanks around them.")

    def schema(self) -> Mapping[str, ColumnType]:
        return _read_records(self).schema

    def n_rows(self) -> int:
        return count_rows(_read_records(self).columns)

    def chunks(self) -> Iterator[Columns]:
        yield _read_records(self).columns

    def stamp(self) -> Hashable:
        return file_stamp(self.path)

    def target_column(self) -> str | None:
        """Column of the outcomes; None without one."""
        return self.target

    def format(self) -> str:
        """Format of the file, by its name: csv, jsonl or parquet."""
        ends = {end.lower() for end in self.path.suffixes[-2:]}
        return "parquet" if ends & {".parquet", ".pq"} else "jsonl" if ends & {".jsonl", ".ndjson", ".json"} else "csv"


@cached_until_change()
def _read_records(source: Records) -> RecordTable:
    place, frame = f"source: {source.path}", _read_frame(source)
    frame.columns = names = [str(name) for name in frame.columns]
    used = list(names if source.columns is None else source.columns)
    tables.check_names(place, names, used, "List the columns in 'columns'")
    tables.check_names(place, names, [*source.categories, *source.texts, *filter(None, [source.target])], "Correct it")
    if len(frame) < 2 or not used:
        raise DataError(f"{place}: got {len(frame)} rows and {len(used)} columns. Give at least 2 rows of 1 column.")
    columns, schema = dict[str, Column](), dict[str, ColumnType]()
    for name in used:
        if "@" in name and (name.endswith(MASK) or name.startswith("@")):
            raise DataError(f"{place}: column {name!r} has a reserved name. Rename it, or list the others in 'columns'.")
        missing = _missing(source, frame[name])
        column, content = _to_column(source, name, frame[name], missing)
        columns[name] = column
        schema[name] = ColumnType("utf8" if isinstance(column, Ragged) else "float64", content=content)
        if missing.any():
            columns[name + MASK], schema[name + MASK] = missing, ColumnType("bool")
    return RecordTable(columns, schema)


def _read_frame(source: Records) -> pd.DataFrame:
    """The cells of a file: text of a CSV file, else the values of its own types."""
    import pandas as pd

    if source.format() == "parquet":
        return tables.read_parquet(source.path, dtype_backend="numpy_nullable")
    if source.format() == "csv":
        return tables.read_csv(source.path, source.separator, source.decimal, source.header)
    rows = []
    with open_file(source.path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=to_object) if line.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError(f"got {type(row).__name__}; expected an object with fields")
            except (ValueError, RecursionError) as problem:
                raise DataError(
                    f"source.path: {source.path} line {number}: {first_line(problem)}. Expected one JSON object per line. "
                    "Fix or remove the line."
                ) from problem
            rows.extend([row] if row else [])
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _missing(source: Records, cells: pd.Series[Any]) -> Bools:
    if source.format() == "csv":
        return np.asarray(cells.str.strip().str.lower().isin(source.missing), bool)
    return np.asarray(cells.isna(), bool)


def _to_column(source: Records, name: str, cells: pd.Series[Any], missing: Bools) -> tuple[Column, str]:
    """The values of a column, 0 or an empty text where they are missing, and their content."""
    place = f"source: {source.path}: column {name[:40]!r}"
    if missing.all():
        raise DataError(f"{place} has no values. List the other columns in 'columns'.")
    values = cells[~missing]
    if name in source.categories or name in source.texts or not _are_numbers(source, place, values):
        texts = np.full(len(cells), "", object)
        texts[~missing] = [BOOLEANS[value] if isinstance(value, bool) else str(value) for value in values.tolist()]
        is_category = name in source.categories or (name not in source.texts and _are_categories(texts[~missing].tolist()))
        return Ragged.of_bytes([_encode(place, text) for text in texts]), "category" if is_category else ""
    numbers = np.zeros(len(cells))
    numbers[~missing] = tables.to_numbers(place, values, source.decimal)
    if source.columns is None and not missing.any() and tables.numbers_rows(name, numbers):
        raise DataError(f"{place} numbers the rows. List the columns in 'columns', with or without it.")
    return numbers, "whole" if (numbers % 1 == 0).all() else ""


def _are_numbers(source: Records, place: str, values: pd.Series[Any]) -> bool:
    """True if all values are numbers; DataError if only some of them are."""
    if values.dtype.kind in "iufb":
        return bool(values.dtype.kind != "b")
    if source.format() == "csv":
        words = values.str.strip().str.lower()
        if words.str.match(r"[-+]?0\d").any():
            return False
        is_number = np.asarray(tables.parse_numbers(values, source.decimal).notna() & ~words.isin(["true", "false"]), bool)
        has_comma = tables.parse_numbers(values, ",").notna() & words.str.contains(",")
        if source.decimal == "." and has_comma.all():
            raise DataError(
                f"{place} has {str(values.iloc[0])[:40]!r}, a number if the comma is its decimal mark. Set decimal = ',' "
                "(--set source.decimal=,), or list the column in 'categories' or 'texts'."
            )
    else:
        if nested := [value for value in values if isinstance(value, list | tuple | dict | bytes | np.ndarray)]:
            kind = type(nested[0]).__name__
            raise DataError(f"{place} has a {kind}; expected numbers, texts, true or false. List the others in 'columns'.")
        is_number = np.array([isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in values])
    share = is_number.mean()
    if 0.5 < share < 1 or (share and source.format() != "csv" and share < 1):
        row, n_words = int(values.index[int(is_number.argmin())]), np.count_nonzero(~is_number)
        raise DataError(
            f"{place} has {str(values[row])[:40]!r} in row {row + 1:,} among numbers (rows without: {n_words:,}). "
            "Add the word to 'missing', correct the rows, or list the column in 'categories'."
        )
    return bool(share == 1)


def _are_categories(texts: list[str]) -> bool:
    """True for texts that repeat, which are then categories."""
    n_values = len(set(texts))
    is_short = sum(map(len, texts)) <= MAX_CATEGORY_LENGTH * len(texts)
    return n_values <= MIN_TEXTS or (n_values <= MAX_CATEGORY_SHARE * len(texts) and is_short)


def _encode(place: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        raise DataError(f"{place} has half of a character in {text[:40]!r}. Correct the file.") from problem
