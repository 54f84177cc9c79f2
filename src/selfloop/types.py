"""Values that every part of selfloop exchanges: batches, takes, plans, measurements, training rows.

A *point* is one combination of a sweep's values, a *chain* one policy and seed at one point over all generations, a *stored
step* a function whose results `Store.call` keeps, and a policy's *label* its name in output.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from selfloop.columns import Column, Columns, Floats, Ints, Params, concat_rows, count_rows, select_rows
from selfloop.notebook import verdict_html

B = TypeVar("B")
Answer = Literal["yes", "no", "undecided", "not measured"]
Limit = Literal["infinite", "finite", "zero"]  # of a law as the generations go on
WEIGHT = "@weight"  # reserved column: a weight per row from a curator
MASK = "@missing"  # end of the name of a column of booleans, true where the column of that name has no value
Unit = Literal["rows", "tokens"]  # what the counts of policies count
RowInterval = int | tuple[int, int] | None  # of the rows of a batch: how many first ones, (start, how many), or all
Coordinates = tuple[tuple[str, object], ...]  # (key, value) of a sweep's point, in the spec's order; empty without a sweep


class Batch(NamedTuple):
    """Name of the rows of one origin: `real(t)`, `external(t)` drawn for generation t, `synthetic(k)` sampled from model k."""

    kind: Literal["real", "synthetic", "external"]
    born: int

    @property
    def first_use(self) -> int:
        """The first generation that can train on these rows."""
        return self.born + (self.kind == "synthetic")

    def __str__(self) -> str:
        return f"{self.kind}({self.born})"


@cache  # equal takes of a long schedule are then the same object
def real(t: int) -> Batch:
    """The real rows drawn for generation t; `real(1)` are the initial rows."""
    return Batch("real", t)


@cache
def synthetic(k: int) -> Batch:
    """The rows sampled from the model of generation k."""
    return Batch("synthetic", k)


@cache
def external(t: int) -> Batch:
    """The rows of the spec's second source drawn for generation t."""
    return Batch("external", t)


@dataclass(frozen=True, slots=True)
class Take(Generic[B]):
    """`rows` rows of a batch from row `start` on (None = all of these), each with `weight`.

    B: `Batch` in a plan, a world's handle of it there.
    """

    batch: B
    rows: int | None = None
    weight: float = 1.0
    start: int = 0  # 0: the first rows

    @property
    def interval(self) -> RowInterval:
        """The rows as stored steps get them: equal keys for first rows with and without `start`."""
        return (self.start, self.rows) if self.start and self.rows is not None else self.rows


@dataclass(frozen=True, slots=True)
class Plan:
    """All takes of one generation. With a budget, that many rows of them are drawn uniformly without replacement."""

    takes: tuple[Take[Batch], ...]
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class NewRows:
    """Row counts drawn at one generation: fresh real rows, synthetic rows from its model, rows of the second source."""

    real: int = 0
    synthetic: int = 0
    external: int = 0


class Measurement(NamedTuple):
    """One value of one metric. `value` is None if and only if `status` is set; then `status` is the reason."""

    policy: str
    seed: int
    generation: int
    metric: str
    value: float | None
    status: str | None = None
    coordinates: Coordinates = ()


class RowTake(NamedTuple):
    """The rows of one batch that a fit uses: all of `rows`, or those at `indices`, with a weight per row."""

    rows: Columns
    indices: Ints | None = None
    weight: float = 1.0
    row_weights: Floats | None = None  # of each of `rows`, from a curator; multiplies `weight`. None: 1

    @property
    def n_rows(self) -> int:
        """Number of training rows."""
        return count_rows(self.rows) if self.indices is None else len(self.indices)

    def weights_of_rows(self) -> Floats:
        """The factor of `weight` of each training row."""
        weights = np.ones(count_rows(self.rows)) if self.row_weights is None else self.row_weights
        return weights if self.indices is None else weights[self.indices]


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one fit, take by take. `gather` loads rows on request, so that a corpus need not fit in memory."""

    takes: tuple[RowTake, ...]
    prepared: Params = field(default_factory=dict)  # result of the encoder's `prepare`; empty without an encoder

    def __len__(self) -> int:
        return sum(take.n_rows for take in self.takes)

    def weights(self) -> Floats:
        """Weight of every training row, scaled to mean 1."""
        raw = np.concatenate([take.weight * take.weights_of_rows() for take in self.takes])
        return np.asarray(raw / raw.mean(), np.float64)

    def gather(self, indices: Ints) -> dict[str, Column]:
        """The training rows at `indices` (0 .. len - 1), in that order."""
        ends = np.cumsum([take.n_rows for take in self.takes])
        take_of = np.searchsorted(ends, indices, side="right")
        pieces, positions = [], []
        for i in np.unique(take_of):
            mask = np.flatnonzero(take_of == i)
            take = self.takes[i]
            local = indices[mask] - (ends[i] - take.n_rows)
            pieces.append(select_rows(take.rows, local if take.indices is None else take.indices[local]))
            positions.append(mask)
        order = np.argsort(np.concatenate(positions), kind="stable")  # back to the order of `indices`
        return select_rows(concat_rows(pieces), order)

    def select_columns(self, *names: str) -> TrainingRows:
        """The same rows with the named columns only."""
        takes = tuple(take._replace(rows={name: take.rows[name] for name in names}) for take in self.takes)
        return replace(self, takes=takes)

    def all(self) -> dict[str, Column]:
        """Every training row, take after take."""
        return self.gather(np.arange(len(self)))


BY_LAW = "by the law "  # the beginning of such a verdict's reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer of one published definition of collapse for one policy, and the values that it rests on."""

    criterion: str
    policy: str
    answer: Answer
    metric: str | None = None
    threshold: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    coordinates: Coordinates = ()
    needed_seeds: int | None = None  # that would decide with 80 % power, if it is undecided and the estimate is right

    @property
    def is_by_law(self) -> bool:
        """True if a law gives the answer, not the measured values."""
        return self.reason.startswith(BY_LAW)

    def _repr_html_(self) -> str:
        return verdict_html(self)
