"""Distributions of one column: quantiles of numbers with mass at repeated values, shares of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selfloop.columns import Array, Bools, Floats, Ints, Ragged

MIN_POINT_ROWS, MIN_POINT_MASS = 5, 0.005  # of a value that has mass of its own
KNOT_SHARE, MAX_KNOT_STEP = 0.1, 0.01  # of the rows beyond a knot, and of all rows, that lie before the next one
MAX_DECIMALS = 8
MAX_CELLS = 100  # between the 5 % and the 95 % quantile of the rows that are scored


class NumberMarginal(NamedTuple):
    """A quantile function: `values` at `levels`, linear in between. Equal values at different levels are mass at a value."""

    levels: Floats
    values: Floats
    decimals: int  # to which samples are rounded; -1: they are not

    @classmethod
    def fit(cls, numbers: Floats, weights: Floats) -> NumberMarginal:
        """Of weighted numbers. A value has mass of its own if 5 rows and 0.5 % of the mass have it.

        The others are interpolated between order statistics (Hazen's levels), all of them in the tails, and one per percent of
        the rows in the middle; half of the mass of the lowest and of the highest one stays there. So no sample is outside of
        the range of the rows, and the variance is kept up to the squared distances of neighbors.
        """
        if not len(numbers):
            return cls(np.array([0.0, 1.0]), np.zeros(2), 0)
        values, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        mass = np.bincount(inverse, weights) / weights.sum()
        is_point = (counts >= MIN_POINT_ROWS) & (mass >= MIN_POINT_MASS)
        rest, rest_mass = values[~is_point], mass[~is_point]
        knots, levels = np.zeros(0), np.zeros(0)
        if len(rest):
            positions = _knot_positions(len(rest))
            knots, levels = rest[positions], (np.cumsum(rest_mass) - rest_mass / 2)[positions]
        points = np.union1d(values[is_point], knots)
        below, up_to = (np.interp(points, knots, levels) if len(rest) else np.zeros(len(points)) for _ in range(2))
        if len(rest):
            below[points <= knots[0]], below[points > knots[-1]] = 0, rest_mass.sum()
            up_to[points < knots[0]], up_to[points >= knots[-1]] = 0, rest_mass.sum()
        before = np.concatenate([[0], np.cumsum(mass[is_point])])
        below += before[np.searchsorted(values[is_point], points, side="left")]
        up_to += before[np.searchsorted(values[is_point], points, side="right")]
        both = np.minimum(np.stack([below, up_to], axis=1).ravel(), 1.0)
        keep = np.concatenate([[True], (np.diff(both) > 0) | (np.diff(np.repeat(points, 2)) > 0)])
        return cls(both[keep], np.repeat(points, 2)[keep], count_decimals(numbers))

    def quantile(self, levels: Floats) -> Floats:
        """The numbers at these levels, rounded."""
        numbers = np.interp(levels, self.levels, self.values)
        return np.asarray(numbers if self.decimals < 0 else np.round(numbers, self.decimals) + 0.0)

    def below(self, numbers: Floats, unseen: float) -> Floats:
        """Probability of a smaller number. A share `unseen` has a Cauchy distribution of the same quartiles, so none is 0."""
        level = np.interp(np.nextafter(numbers, -np.inf), self.values, self.levels, left=0, right=1)
        first, middle, third = np.interp([0.25, 0.5, 0.75], self.levels, self.values)
        width = (third - first) / 2 or np.ptp(self.values) / 2 or abs(middle) or 1.0
        return np.asarray((1 - unseen) * level + unseen * (0.5 + np.arctan((numbers - middle) / width) / np.pi))

    def arrays(self) -> dict[str, Array]:
        return {"levels": self.levels, "values": self.values, "decimals": np.array(self.decimals)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> NumberMarginal:
        levels, values = (np.asarray(arrays[name], np.float64) for name in ("levels", "values"))
        return cls(levels, values, int(arrays["decimals"]))


def _knot_positions(n: int) -> Ints:
    """Positions of the knots among n numbers in order: all in the tails, then steps of 10 % of the tail, at most 1 % of all."""
    positions, position = [], 0
    while position < n - 1:
        positions.append(position)
        position += int(np.clip(KNOT_SHARE * min(position, n - 1 - position), 1, max(1, MAX_KNOT_STEP * n)))
    return np.array([*positions, n - 1], np.int64)


def count_decimals(numbers: Floats) -> int:
    """Number of decimals of all numbers; -1 if they have more than 8."""
    return next((d for d in range(MAX_DECIMALS + 1) if (np.round(numbers, d) == numbers).all()), -1)


def cells_of(numbers: Floats) -> tuple[Floats, Floats]:
    """Lower and upper edge of the cell of each number, on a grid that depends on these numbers only.

    A cell is the last decimal of the numbers, or as many of them as there are if 100 cells reach from their 5 % to their
    95 % quantile.
    """
    decimals = count_decimals(numbers)
    low, high = np.quantile(numbers, [0.05, 0.95]) if len(numbers) else (0.0, 0.0)
    spread = high - low or (np.ptp(numbers) if len(numbers) else 0.0)
    if decimals < 0:
        width = spread / MAX_CELLS or 1.0
        low_edges = np.floor(numbers / width) * width
        return low_edges, low_edges + width
    n_units = max(1.0, np.floor(spread * 10.0**decimals / MAX_CELLS))
    first = np.floor(np.round(numbers * 10.0**decimals) / n_units) * n_units - 0.5
    return first / 10.0**decimals, (first + n_units) / 10.0**decimals


class CategoryMarginal(NamedTuple):
    """Categories in the order of their latent intervals, and the share of each."""

    names: list[bytes]
    mass: Floats

    def edges(self) -> Floats:
        """Levels between the intervals, from 0 to 1."""
        ends = np.cumsum(self.mass)
        return np.concatenate([[0], ends[:-1] / ends[-1], [1]])

    def codes(self, column: Ragged) -> Ints:
        """Position of the category of each row; the number of categories for another one."""
        positions = {name: i for i, name in enumerate(self.names)}
        return np.array([positions.get(text, len(self.names)) for text in column.to_bytes()], np.int64)

    def quantile(self, levels: Floats) -> Ints:
        """Positions of the categories at these levels."""
        return np.minimum(np.searchsorted(self.edges()[1:], levels, side="right"), len(self.mass) - 1)

    def arrays(self) -> dict[str, Array]:
        ragged = Ragged.of_bytes(self.names)
        return {"text": np.concatenate([ragged.values, np.zeros(1, np.uint8)]), "offsets": ragged.offsets, "mass": self.mass}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> CategoryMarginal:
        ragged = Ragged(arrays["text"], np.asarray(arrays["offsets"], np.int64))
        return cls(ragged.to_bytes(), np.asarray(arrays["mass"], np.float64))


def leading_component(scores: Sequence[Floats | Ints], observed: Sequence[Bools], weights: Floats) -> Floats:
    """First component of numbers and categories together (Pages 2004, factor analysis of mixed data), one value per row.

    A column is its scores, or the codes of its categories. Each step replaces the component by the sum of its projections on
    the columns: its regression on a number, its mean within each category.
    """
    component = np.zeros(len(weights))
    for j, (column, seen) in enumerate(zip(scores, observed, strict=True), 1):
        component += j * np.where(seen, column, 0.0)
    for _ in range(30):
        total = np.zeros(len(weights))
        for column, seen in zip(scores, observed, strict=True):
            part, w = component[seen], weights[seen]
            if np.issubdtype(column.dtype, np.integer):
                mass = np.maximum(np.bincount(column[seen], w), 1e-300)
                total[seen] += (np.bincount(column[seen], w * part) / mass)[column[seen]]
            elif (squares := (w * column[seen] ** 2).sum()) > 0:
                total[seen] += column[seen] * (w * column[seen] * part).sum() / squares
        total -= np.average(total, weights=weights)
        size = np.sqrt(np.average(total**2, weights=weights))
        if size < 1e-12:
            return np.zeros(len(weights))
        component = total / size
    return np.asarray(component)
