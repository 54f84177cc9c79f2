"""Values every part of selfloop speaks in: batches, takes, plans, rows, columns. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
B = TypeVar("B")
Params = Mapping[str, Array]
Answer = Literal["yes", "no", "undecided", "not measured"]


class Batch(NamedTuple):
    """Rows of one origin: `real(t)` first drawn for generation t, `synthetic(k)` sampled from model k."""

    kind: Literal["real", "synthetic"]
    born: int

    def __str__(self) -> str:
        return f"{self.kind}({self.born})"


def real(t: int) -> Batch:
    """The real rows first drawn for generation t."""
    return Batch("real", t)


def synthetic(k: int) -> Batch:
    """The rows sampled from the model of generation k."""
    return Batch("synthetic", k)


@dataclass(frozen=True, slots=True)
class Take:
    """Part of a batch a generation trains on: the first `rows` rows (None = all), `weight` per row."""

    batch: Batch
    rows: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All takes of a generation; with a budget, that many rows drawn from them uniformly without replacement."""

    takes: tuple[Take, ...]
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Emission:
    """Rows that come into being at one generation: fresh real ones, and synthetic ones from its model."""

    real: int = 0
    synthetic: int = 0


@dataclass(frozen=True, slots=True)
class Part(Generic[B]):
    """A batch as a world holds it, with what a plan takes of it (`rows` None = all, else its first rows)."""

    batch: B
    rows: int | None = None
    weight: float = 1.0


class Row(NamedTuple):
    """One measured number; `value` is None exactly when `status` says why there is none."""

    policy: str
    seed: int
    generation: int
    metric: str
    value: float | None
    status: str | None = None
    axes: tuple[tuple[str, object], ...] = ()  # values of the sweep's axes, in the spec's order


@dataclass(frozen=True, slots=True)
class Field:
    """Type of one column: dtype name, shape of one row, unit (empty when it has none)."""

    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column whose rows differ in length: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Array
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, indices: Ints) -> Ragged:
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        if offsets[-1] > 100 * len(indices):  # long rows: an index per value would take longer and several times the memory
            spans = zip(starts.tolist(), ends.tolist(), strict=True)
            return Ragged(np.concatenate([self.values[start:end] for start, end in spans]), offsets)
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        return Ragged(self.values[at], offsets)

    @classmethod
    def of_bytes(cls, rows: Sequence[bytes]) -> Ragged:
        """A column of byte strings, such as texts in UTF-8."""
        return cls(np.frombuffer(b"".join(rows), np.uint8), np.cumsum([0, *map(len, rows)], dtype=np.int64))

    def to_bytes(self) -> list[bytes]:
        """The bytes of each row."""
        return [self.values[start:end].tobytes() for start, end in pairwise(self.offsets.tolist())]


Column = Array | Ragged
Columns = Mapping[str, Column]


def count_rows(columns: Columns) -> int:
    """Number of rows of a mapping of columns (0 for none)."""
    return len(next(iter(columns.values()))) if columns else 0


def select_rows(columns: Columns, indices: Ints) -> dict[str, Column]:
    """The rows at `indices`, in that order."""
    return {name: column[indices] for name, column in columns.items()}


def join_rows(parts: Sequence[Columns]) -> dict[str, Column]:
    """The rows of all parts, one after another; the parts have the same columns."""
    joined: dict[str, Column] = {}
    for name, first in parts[0].items():
        if isinstance(first, Ragged):
            ragged = [part[name] for part in parts]
            starts = np.cumsum([0] + [len(r.values) for r in ragged if isinstance(r, Ragged)])
            offsets = [r.offsets[1:] + s for r, s in zip(ragged, starts, strict=False) if isinstance(r, Ragged)]
            values = np.concatenate([r.values for r in ragged if isinstance(r, Ragged)])
            joined[name] = Ragged(values, np.concatenate([np.zeros(1, np.int64), *offsets]))
        else:
            joined[name] = np.concatenate([np.asarray(part[name]) for part in parts])
    return joined


@dataclass(frozen=True)
class Samples:
    """Training rows of one fit: parts of stored batches, each with the chosen row indices and a weight per row.

    Nothing is loaded until `gather` asks for it, so a corpus or image set never has to fit in memory.
    """

    parts: tuple[tuple[Columns, Ints | None, float], ...]  # (rows of a batch, chosen rows or None = all, weight)
    learned: Params = field(default_factory=dict)  # what the family's encoder learned

    def lengths(self) -> list[int]:
        """Number of training rows of each part."""
        return [count_rows(rows) if chosen is None else len(chosen) for rows, chosen, _ in self.parts]

    def __len__(self) -> int:
        return sum(self.lengths())

    def weights(self) -> Floats:
        """Weight of every training row, with mean 1."""
        raw = np.repeat([weight for _, _, weight in self.parts], self.lengths()).astype(np.float64)
        return np.asarray(raw / raw.mean(), np.float64)

    def gather(self, indices: Ints) -> dict[str, Column]:
        """The training rows at `indices` (0 .. len - 1), in that order."""
        ends = np.cumsum(self.lengths())
        part_of = np.searchsorted(ends, indices, side="right")
        pieces, places = [], []
        for p in np.unique(part_of):
            where = np.flatnonzero(part_of == p)
            rows, chosen, _ = self.parts[p]
            local = indices[where] - (ends[p] - self.lengths()[p])
            pieces.append(select_rows(rows, local if chosen is None else chosen[local]))
            places.append(where)
        return select_rows(join_rows(pieces), np.argsort(np.concatenate(places), kind="stable"))

    def only(self, *names: str) -> Samples:
        """The same rows with those columns alone."""
        return Samples(tuple(({name: rows[name] for name in names}, chosen, weight) for rows, chosen, weight in self.parts))

    def all(self) -> dict[str, Column]:
        """Every training row, part after part."""
        return self.gather(np.arange(len(self)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one published definition of collapse says of one policy, and the numbers it rests on."""

    criterion: str
    policy: str
    answer: Answer
    metric: str | None = None
    threshold: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    axes: tuple[tuple[str, object], ...] = field(default=())
