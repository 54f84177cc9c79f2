"""Endless streams of scikit-learn's shapes: blobs, circles, moons, Swiss roll.

One call of scikit-learn places its points *evenly* along the curve (blobs: in equal numbers per center) and shuffles them.
With few rows this matters: a model of ten even rows of the moons is far better than a model of ten random rows. Rows can
therefore come in groups. Each group is placed as by one such call and is independent of the other groups: first
`first_group_size` rows for the holdout, then `group_size` rows per group. To repeat a published run set `group_size` to its n.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Interval

from selfloop.columns import Columns, ColumnType, Floats, Ints
from selfloop.component import Context, Source
from selfloop.sources.distributions import stream_rows

BLOB_CENTERS = np.array([[-7.2, 4.6], [5.8, 6.1], [1.4, -6.9]])  # in scikit-learn's box of -10 to 10; equal for all seeds


@dataclass(frozen=True, kw_only=True)
class NoisyShape(Source):
    """Independent points of a shape, with normal noise."""

    dim: ClassVar[int] = 2
    noise: Annotated[float, Ge(0), "standard deviation of the noise around the curve"] = 0.05

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64", (self.dim,))}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": stream_rows(ctx.stream.child("rows"), first, n, self._draw_points)}

    def _draw_points(self, rng: np.random.Generator, rows: int) -> Floats:
        points = self._place(rng, rows)
        return points + self.noise * rng.standard_normal(points.shape)

    @abstractmethod
    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        """That many points without noise, of one group."""


@dataclass(frozen=True, kw_only=True)
class GroupedShape(NoisyShape):
    """A shape in the plane whose rows are independent or come in groups of evenly placed rows."""

    first_group_size: Annotated[int, Ge(0), "rows of the first group, used as the holdout; without groups it has no effect"] = (
        500
    )
    group_size: Annotated[int, Ge(0), "rows placed evenly together, as by one scikit-learn call; 0: independent rows"] = 0

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        if not self.group_size:
            return super().draw(first, n, ctx)
        stream, size = ctx.stream.child("rows"), self.first_group_size
        first_group = self._draw_points(ctx.stream.child("head").generator(), size)[first : first + n]
        later = stream_rows(stream, max(first - size, 0), n - len(first_group), self._draw_points, self.group_size)
        return {"x": np.concatenate([first_group, later])}

    def _curves(self, n_curves: int, rows: int, rng: np.random.Generator) -> Ints:
        """The curve of each row, among equally likely curves: at random, or in equal numbers."""
        return rng.permutation(np.arange(rows) % n_curves) if self.group_size else rng.integers(n_curves, size=rows)

    def _positions(self, curve: Ints, rng: np.random.Generator, *, has_end: bool) -> Floats:
        """Position of each row on its curve, from 0 to 1: at random, or evenly with or without the end of the curve."""
        if not self.group_size:
            return rng.random(len(curve))
        positions = np.empty(len(curve))
        for i in (0, 1):
            rows = np.flatnonzero(curve == i)
            positions[rows] = rng.permutation(np.linspace(0, 1, len(rows), endpoint=has_end))
        return positions


@dataclass(frozen=True, kw_only=True)
class Blobs(GroupedShape):
    """Three round Gaussian clouds with fixed centers."""

    name: ClassVar[str] = "blobs"
    noise: Annotated[float, Ge(0), "standard deviation within a cloud: scikit-learn's cluster_std"] = 1.0

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        return BLOB_CENTERS[self._curves(len(BLOB_CENTERS), rows, rng)]


@dataclass(frozen=True, kw_only=True)
class Circles(GroupedShape):
    """A circle of radius 1 and a circle of radius `factor` inside it."""

    name: ClassVar[str] = "circles"
    factor: Annotated[float, Interval(ge=0, lt=1), "radius of the inner circle"] = 0.8

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        inner = self._curves(2, rows, rng)
        angle = 2 * np.pi * self._positions(inner, rng, has_end=False)
        return np.where(inner == 1, self.factor, 1.0)[:, None] * _unit_vectors(angle)


@dataclass(frozen=True, kw_only=True)
class Moons(GroupedShape):
    """Two interleaved half circles."""

    name: ClassVar[str] = "moons"

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        lower = self._curves(2, rows, rng)
        upper = _unit_vectors(np.pi * self._positions(lower, rng, has_end=True))
        return np.where(lower[:, None] == 1, np.array([1.0, 0.5]) - upper, upper)


@dataclass(frozen=True, kw_only=True)
class SwissRoll(NoisyShape):
    """A rolled-up rectangle in three dimensions. Rows are independent, as those of scikit-learn are."""

    name: ClassVar[str] = "swiss_roll"
    dim: ClassVar[int] = 3

    def _place(self, rng: np.random.Generator, rows: int) -> Floats:
        angle, height = 1.5 * np.pi * (1 + 2 * rng.random(rows)), 21 * rng.random(rows)
        return np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], axis=1)


def _unit_vectors(angle: Floats) -> Floats:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
