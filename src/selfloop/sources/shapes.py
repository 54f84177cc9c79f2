"""scikit-learn's toy shapes as endless streams of rows: blobs, circles, moons, swiss roll.

scikit-learn places the points of one call *evenly* along the curve (blobs: in equal numbers per centre) and shuffles them.
With few rows that matters: ten even rows of the moons make a far better model than ten random ones. So rows come in groups,
each placed like one such call and independent of the others: first `head` rows (for the holdout), then `group` rows at a time.
To repeat a published run set `group` to its n; `group = 0` draws every row independently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.types import Columns, ColumnType, Floats, Ints

BLOCK = 256  # independent rows per child stream
CENTRES = np.array([[-7.2, 4.6], [5.8, 6.1], [1.4, -6.9]])  # of the blobs, in scikit-learn's box of -10 to 10; never redrawn
PLANE = {"x": ColumnType("float64", (2,))}
Place = Callable[[np.random.Generator, int], Floats]  # that many rows


def stream_rows(first: int, n: int, size: int, stream: RandomStream, place: Place) -> Floats:
    """Rows first .. first + n - 1 of an endless stream made in blocks of `size` rows, each from a child stream of its own."""
    start, stop = first // size, max(-(-(first + n) // size), first // size + 1)
    made = [place(stream.child("rows", block).generator(), size) for block in range(start, stop)]
    return np.concatenate(made)[first - start * size :][:n]


def _grouped_rows(first: int, n: int, sizes: tuple[int, int], stream: RandomStream, place: Place) -> Columns:
    head, group = sizes
    if not group:
        return {"x": stream_rows(first, n, BLOCK, stream, place)}
    if first >= head:
        return {"x": stream_rows(first - head, n, group, stream, place)}
    begin = place(stream.child("head").generator(), head)[first : first + n]
    return {"x": np.concatenate([begin, stream_rows(0, n - len(begin), group, stream, place)])}


def _check(noise: float, head: int, group: int) -> None:
    if not 0 <= noise < np.inf:
        raise SpecError(f"source.noise: got {noise}; expected a standard deviation of 0 or more.")
    if head < 0:
        raise SpecError(f"source.head: got {head}; expected the rows of the first group, 0 or more.")
    if group < 0:
        raise SpecError(f"source.group: got {group}; expected the rows of a group, or 0 for independent rows.")


def _kinds(kinds: int, even: bool, rows: int, rng: np.random.Generator) -> Ints:
    """Which of several equally likely curves each row is on, at random or in equal numbers."""
    return rng.permutation(np.arange(rows) % kinds) if even else rng.integers(kinds, size=rows)


def _along(curve: Ints, even: bool, ends: bool, rng: np.random.Generator) -> Floats:
    """How far along its curve each row is, from 0 to 1: at random, or evenly with or without the far end."""
    if not even:
        return rng.random(len(curve))
    share = np.empty(len(curve))
    for kind in (0, 1):
        rows = np.flatnonzero(curve == kind)
        share[rows] = rng.permutation(np.linspace(0, 1, len(rows), endpoint=ends))
    return share


@dataclass(frozen=True, kw_only=True)
class Blobs(Source):
    """Three round Gaussian clouds with fixed centres."""

    name: ClassVar[str] = "blobs"
    noise: float = 1.0  # standard deviation within a cloud: scikit-learn's cluster_std
    head: int = 500  # with groups: rows of the first one, the holdout
    group: int = 0  # rows placed evenly together, as by one scikit-learn call for so many; 0 = every row by itself

    def __post_init__(self) -> None:
        _check(self.noise, self.head, self.group)

    def schema(self) -> Mapping[str, ColumnType]:
        return PLANE

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return _grouped_rows(first, n, (self.head, self.group), ctx.stream, self._place)

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        centres = CENTRES[_kinds(len(CENTRES), self.group > 0, rows, rng)]
        return np.asarray(centres + self.noise * rng.standard_normal((rows, 2)))


@dataclass(frozen=True, kw_only=True)
class Circles(Source):
    """A circle of radius 1 and one of radius `factor` inside it."""

    name: ClassVar[str] = "circles"
    noise: float = 0.05
    factor: float = 0.8  # inner radius
    head: int = 500  # with groups: rows of the first one, the holdout
    group: int = 0  # rows placed evenly together, as by one scikit-learn call for so many; 0 = every row by itself

    def __post_init__(self) -> None:
        _check(self.noise, self.head, self.group)
        if not 0 <= self.factor < 1:
            raise SpecError(f"source.factor: got {self.factor}; expected a radius from 0 to below 1.")

    def schema(self) -> Mapping[str, ColumnType]:
        return PLANE

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return _grouped_rows(first, n, (self.head, self.group), ctx.stream, self._place)

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        inner = _kinds(2, self.group > 0, rows, rng)
        angle = 2 * np.pi * _along(inner, self.group > 0, False, rng)
        radius = np.where(inner == 1, self.factor, 1.0)[:, None]
        return np.asarray(radius * _unit(angle) + self.noise * rng.standard_normal((rows, 2)))


@dataclass(frozen=True, kw_only=True)
class Moons(Source):
    """Two interleaved half circles."""

    name: ClassVar[str] = "moons"
    noise: float = 0.05
    head: int = 500  # with groups: rows of the first one, the holdout
    group: int = 0  # rows placed evenly together, as by one scikit-learn call for so many; 0 = every row by itself

    def __post_init__(self) -> None:
        _check(self.noise, self.head, self.group)

    def schema(self) -> Mapping[str, ColumnType]:
        return PLANE

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return _grouped_rows(first, n, (self.head, self.group), ctx.stream, self._place)

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        lower = _kinds(2, self.group > 0, rows, rng)
        upper = _unit(np.pi * _along(lower, self.group > 0, True, rng))
        points = np.where(lower[:, None] == 1, np.array([1.0, 0.5]) - upper, upper)
        return np.asarray(points + self.noise * rng.standard_normal((rows, 2)))


@dataclass(frozen=True, kw_only=True)
class SwissRoll(Source):
    """A rolled-up rectangle in three dimensions; its rows are independent, as scikit-learn's are."""

    name: ClassVar[str] = "swiss_roll"
    noise: float = 0.05

    def __post_init__(self) -> None:
        _check(self.noise, 0, 0)

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (3,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return _grouped_rows(first, n, (0, 0), ctx.stream, self._place)

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        angle, height = 1.5 * np.pi * (1 + 2 * rng.random(rows)), 21 * rng.random(rows)
        points = np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], axis=1)
        return np.asarray(points + self.noise * rng.standard_normal((rows, 3)))


def _unit(angle: Floats) -> Floats:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
