"""Rows as columns: arrays and ragged arrays by name. Imports nothing of selfloop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Params = Mapping[str, Array]  # the arrays of one model, by name


@dataclass(frozen=True, slots=True)
class ColumnType:
    """Type of one column: dtype name, shape of one row, unit (empty if none), labels of the elements of a row (or none).

    `content`: "whole" of a column of whole numbers, "category" of texts that repeat; empty for all others.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    labels: tuple[str, ...] = ()
    content: str = ""


Schema = Mapping[str, ColumnType]


def element_labels(name: str, n: int, schema: Schema) -> Sequence[str]:
    """Labels of the n elements of a row of the named column: those of the schema, or `name[0]`, `name[1]`, ..."""
    labels = schema[name].labels if name in schema else ()
    return labels if len(labels) == n else [f"{name}[{i}]" if n > 1 else name for i in range(n)]


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column whose rows differ in length: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Array
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, indices: Ints) -> Ragged:
        return take_spans(self.values, self.offsets[indices], self.offsets[indices + 1])

    @classmethod
    def of_bytes(cls, rows: Sequence[bytes]) -> Ragged:
        """A uint8 column of byte strings, such as texts in UTF-8."""
        return cls(np.frombuffer(b"".join(rows), np.uint8), np.cumsum([0, *map(len, rows)], dtype=np.int64))

    def to_bytes(self) -> list[bytes]:
        """The bytes of each row."""
        return [self.values[start:end].tobytes() for start, end in pairwise(self.offsets.tolist())]


def take_spans(values: Array, starts: Ints, ends: Ints) -> Ragged:
    """The values from each start to its end as a row."""
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    if offsets[-1] > 100 * len(starts):  # for long rows one index per value costs more time and several times the memory
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return Ragged(np.concatenate([values[start:end] for start, end in spans]), offsets)
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    return Ragged(values[positions], offsets)


Column = Array | Ragged
Columns = Mapping[str, Column]  # row i of every column belongs to the same row of the data


def count_rows(columns: Columns) -> int:
    """Number of rows of a mapping of columns (0 without columns)."""
    return len(next(iter(columns.values()))) if columns else 0


def select_rows(columns: Columns, indices: Ints) -> dict[str, Column]:
    """The rows at `indices`, in that order."""
    return {name: column[indices] for name, column in columns.items()}


def concat_rows(tables: Sequence[Columns]) -> dict[str, Column]:
    """The rows of all tables, one table after another; the tables have the same columns."""
    joined: dict[str, Column] = {}
    for name, first in tables[0].items():
        if isinstance(first, Ragged):
            ragged = [column for table in tables if isinstance(column := table[name], Ragged)]
            starts = np.cumsum([0] + [len(column.values) for column in ragged])
            offsets = [column.offsets[1:] + start for column, start in zip(ragged, starts, strict=False)]
            values = np.concatenate([column.values for column in ragged])
            joined[name] = Ragged(values, np.concatenate([np.zeros(1, np.int64), *offsets]))
        else:
            joined[name] = np.concatenate([np.asarray(table[name]) for table in tables])
    return joined


def count_copies(rows: Columns, others: Columns) -> int:
    """Number of rows that are equal to one of the other rows in every column."""
    counts = Counter(row_digests(rows))
    return sum(counts.pop(digest, 0) for digest in row_digests(others))


def flag_copies(rows: Columns, tables: Iterable[Columns]) -> Bools:
    """Which rows are equal to a row of one of the tables in every column that both have; white space of texts does not count.

    Reserved columns, whose names begin with @, are no part of a row.
    """
    flags, digests = np.zeros(count_rows(rows), bool), dict[tuple[str, ...], list[bytes]]()
    for table in tables:
        if names := tuple(name for name in rows if name in table and not name.startswith("@")):
            if names not in digests:
                digests[names] = list(row_digests(_join_words(rows, names)))
            others = set(row_digests(_join_words(table, names)))
            flags |= np.array([digest in others for digest in digests[names]], bool)
    return flags


def _join_words(rows: Columns, names: Iterable[str]) -> Columns:
    """The named columns, with one blank between the words of texts."""
    columns = {name: rows[name] for name in names}
    texts = {name: c.to_bytes() for name, c in columns.items() if isinstance(c, Ragged) and c.values.dtype == np.uint8}
    return {**columns, **{name: Ragged.of_bytes([b" ".join(text.split()) for text in rows]) for name, rows in texts.items()}}


def row_digests(rows: Columns) -> Iterator[bytes]:
    """A digest of each row; equal rows have equal digests."""
    for i in range(count_rows(rows)):
        row = blake2b(digest_size=16)
        for column in rows.values():
            values = column.values[column.offsets[i] : column.offsets[i + 1]] if isinstance(column, Ragged) else column[i]
            row.update(values.nbytes.to_bytes(8, "little") + values.tobytes())
        yield row.digest()
