"""Distributions of a copula: of one column, with fields that are arrays of a model, and of the normal variables behind all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from selfloop.columns import Array, Bools, Floats, Ints, Ragged
from selfloop.component import Context

MIN_POINT_ROWS, MIN_POINT_MASS = 5, 0.005  # of a value that has mass of its own
KNOT_SHARE, MAX_KNOT_STEP = 0.1, 0.01  # of the rows beyond a knot, and of all rows, that lie before the next one
MAX_DECIMALS = 8
N_BINS = 20  # of the levels of a number in a tree
MIN_LEAF_ROWS, LEAF_ROWS_PER_BIN = 50, 5  # shares of a leaf cost about (bins - 1) / (2 rows) nats: at most 0.1 with these
MAX_CELLS = 100  # between the 5 % and the 95 % quantile of the rows that are scored
N_HERMITE = 40  # coefficients of a column
MIN_EIGENVALUE = 1e-4  # of a correlation matrix; several columns may be copies of one another
MAX_CORRELATION = 0.9999
N_POINTS = 32  # of the lattice over which a box is averaged
CHUNK_ROWS = 1024
MIN_PROBABILITY = 1e-290
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


class NumberMarginal(NamedTuple):
    """A quantile function: `values` at `levels`, linear in between. Equal values at different levels are mass at a value."""

    levels: Floats
    values: Floats
    decimals: Ints  # to which samples are rounded; -1: they are not

    @classmethod
    def fit(cls, numbers: Floats, weights: Floats) -> NumberMarginal:
        """Of weighted numbers. A value has mass of its own if 5 rows and 0.5 % of the mass have it.

        The others are interpolated between order statistics (Hazen's levels), all of them in the tails, and one per percent of
        the rows in the middle; half of the mass of the lowest and of the highest one stays there. So no sample is outside of
        the range of the rows, and the variance is kept up to the squared distances of neighbors.
        """
        if not len(numbers):
            return cls(np.array([0.0, 1.0]), np.zeros(2), np.array(0))
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
        return cls(both[keep], np.repeat(points, 2)[keep], np.array(count_decimals(numbers)))

    def quantile(self, levels: Floats) -> Floats:
        """The numbers at these levels, rounded."""
        numbers = np.interp(levels, self.levels, self.values)
        return np.asarray(numbers if self.decimals < 0 else np.round(numbers, int(self.decimals)) + 0.0)

    def below(self, numbers: Floats, unseen: float) -> Floats:
        """Probability of a smaller number. A share `unseen` has a Cauchy distribution of the same quartiles, so none is 0."""
        level = np.interp(np.nextafter(numbers, -np.inf), self.values, self.levels, left=0, right=1)
        first, middle, third = np.interp([0.25, 0.5, 0.75], self.levels, self.values)
        width = (third - first) / 2 or np.ptp(self.values) / 2 or abs(middle) or 1.0
        return np.asarray((1 - unseen) * level + unseen * (0.5 + np.arctan((numbers - middle) / width) / np.pi))


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

    text: Array  # names, one after another, and a 0
    offsets: Ints
    mass: Floats

    @classmethod
    def of(cls, names: list[bytes], mass: Floats) -> CategoryMarginal:
        ragged = Ragged.of_bytes(names)
        return cls(np.append(ragged.values, np.uint8(0)), ragged.offsets, mass)

    def names(self) -> list[bytes]:
        return Ragged(self.text, self.offsets).to_bytes()

    def edges(self) -> Floats:
        """Levels between the intervals, from 0 to 1."""
        ends = np.cumsum(self.mass)
        return np.concatenate([[0], ends[:-1] / ends[-1], [1]])

    def codes(self, column: Ragged) -> Ints:
        """Position of the category of each row; the number of categories for another one."""
        positions = {name: i for i, name in enumerate(self.names())}
        return np.array([positions.get(text, len(positions)) for text in column.to_bytes()], np.int64)

    def quantile(self, levels: Floats) -> Ints:
        """Positions of the categories at these levels."""
        return np.minimum(np.searchsorted(self.edges()[1:], levels, side="right"), len(self.mass) - 1)


class LevelTree(NamedTuple):
    """The distribution of a column's level given the other columns: each leaf has a share of its rows in every bin of levels.

    Levels are uniform within a bin. `edges` (bins + 1,) are levels from 0 to 1: the intervals of categories, or equal bins of
    a number. `shares` (nodes, bins) have one row of the overall shares more than the leaf, so that none is 0.
    """

    edges: Floats
    shares: Floats
    feature: Ints  # of each node; -2 of a leaf
    threshold: Floats
    left: Ints
    right: Ints
    missing_left: Ints

    @classmethod
    def fit(cls, x: Floats, levels: Floats, edges: Floats, weights: Floats, ctx: Context) -> LevelTree:
        """Of rows of the other columns (n, k), NaN where missing, and the level of the column: scikit-learn's tree."""
        from sklearn.tree import DecisionTreeClassifier

        bins = np.clip(np.searchsorted(edges, levels, side="right") - 1, 0, len(edges) - 2)
        leaf, seed = max(MIN_LEAF_ROWS, LEAF_ROWS_PER_BIN * (len(edges) - 1)), ctx.stream.child("tree").integer() % 2**32
        model = DecisionTreeClassifier(min_samples_leaf=leaf, random_state=seed)
        tree = model.fit(x, bins, sample_weight=weights).tree_
        counts = np.zeros((tree.node_count, len(edges) - 1))
        np.add.at(counts, (tree.apply(x.astype(np.float32)), bins), weights)
        shares = counts + np.bincount(bins, weights, len(edges) - 1) / weights.sum() + 1e-9
        shares /= shares.sum(axis=1, keepdims=True)
        children = (tree.children_left, tree.children_right, tree.missing_go_to_left)
        left, right, missing = (np.asarray(array, np.int64) for array in children)
        return cls(edges, shares, np.asarray(tree.feature, np.int64), tree.threshold, left, right, missing)

    def conditional(self, x: Floats) -> Floats:
        """Shares of the bins for each row, (n, bins)."""
        x32, node = x.astype(np.float32), np.zeros(len(x), np.int64)  # as scikit-learn compares
        while (inner := np.flatnonzero(self.feature[node] >= 0)).size:
            at = node[inner]
            value = x32[inner, self.feature[at]]
            goes_left = np.where(np.isnan(value), self.missing_left[at] > 0, value <= self.threshold[at])
            node[inner] = np.where(goes_left, self.left[at], self.right[at])
        return self.shares[node]

    def quantile(self, x: Floats, uniform: Floats) -> Floats:
        """A level of each row at a uniform number."""
        shares = self.conditional(x)
        ends = np.cumsum(shares, axis=1)
        bins = np.minimum((uniform[:, None] >= ends).sum(axis=1), shares.shape[1] - 1)
        rows = np.arange(len(x))
        position = np.clip(1 - (ends[rows, bins] - uniform) / shares[rows, bins], 0, 1)
        return np.asarray(self.edges[bins] + position * np.diff(self.edges)[bins])

    def log_probability(self, x: Floats, low: Floats, high: Floats) -> Floats:
        """Log probability that the level of each row is between two levels, in nats."""
        overlap = np.minimum(high[:, None], self.edges[1:]) - np.maximum(low[:, None], self.edges[:-1])
        shares = self.conditional(x) * np.maximum(overlap, 0) / np.diff(self.edges)
        return np.asarray(np.log(np.maximum(shares.sum(axis=1), 1e-290)))


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


def normal_density(z: Floats) -> Floats:
    """Density of the standard normal distribution; 0 at infinity."""
    return np.asarray(np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))


def interval_means(edges: Floats) -> Floats:
    """Mean of a standard normal variable within each interval between increasing levels, from 0 to 1."""
    density = normal_density(ndtri(edges))
    width = np.diff(edges)
    return np.asarray((density[:-1] - density[1:]) / np.where(width > 0, width, 1))


def hermite_coefficients(edges: Floats) -> Floats:
    """Coefficients 1 .. 40 of the step function that maps a normal variable to the mean of its interval.

    Of normalized Hermite polynomials: the integral of h_k phi over (a, b) is (h_(k-1)(a) phi(a) - h_(k-1)(b) phi(b)) / sqrt(k).
    """
    z, scores = ndtri(edges), interval_means(edges)
    density, z = normal_density(z), np.where(np.isfinite(z), z, 0.0)
    previous, polynomial, coefficients = np.zeros(len(z)), np.ones(len(z)), np.empty(N_HERMITE)
    for k in range(1, N_HERMITE + 1):
        values = polynomial * density
        coefficients[k - 1] = scores @ (values[:-1] - values[1:]) / np.sqrt(k)
        previous, polynomial = polynomial, (z * polynomial - np.sqrt(k - 1) * previous) / np.sqrt(k)
    return coefficients


def latent_correlation(scores: Floats, observed: Bools, coefficients: Floats, weights: Floats) -> Floats:
    """Correlation matrix of the normal variables, (d, d), from scores (n, d) of their intervals and coefficients (40, d).

    The mean product of two scores is sum_k g_k h_k r^k with their coefficients g, h (Mehler 1866; Lancaster 1957), which rises
    with r: it is solved for r, pair by pair, over the rows with both values. So the correlation of categories is not too low
    because they are coarse. The matrix is then made positive definite by its eigenvalues.
    """
    weighted = weights[:, None] * np.where(observed, scores, 0.0)
    mass = (weights[:, None] * observed).T @ observed
    moments = weighted.T @ np.where(observed, scores, 0.0) / np.maximum(mass, 1e-300)
    products = coefficients[:, :, None] * coefficients[:, None, :]
    low, high = np.full(moments.shape, -MAX_CORRELATION), np.full(moments.shape, MAX_CORRELATION)
    for _ in range(40):
        middle = (low + high) / 2
        value = np.zeros(moments.shape)
        for k in range(N_HERMITE - 1, -1, -1):  # Horner's rule
            value = middle * (value + products[k])
        low, high = np.where(value < moments, middle, low), np.where(value < moments, high, middle)
    correlation = (low + high) / 2
    constant = np.abs(products).max(axis=0) < 1e-12
    correlation[constant | constant.T] = 0
    np.fill_diagonal(correlation, 1)
    return make_positive(correlation)


def make_positive(correlation: Floats) -> Floats:
    """The matrix with no eigenvalue below 1e-4 and a diagonal of ones."""
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    if values[0] >= MIN_EIGENVALUE:
        return (correlation + correlation.T) / 2
    fixed = (vectors * np.maximum(values, MIN_EIGENVALUE)) @ vectors.T
    scale = np.sqrt(np.diag(fixed))
    return np.asarray(fixed / scale / scale[:, None])


def log_box_probability(low: Floats, high: Floats, correlation: Floats) -> Floats:
    """Log probability that normal variables are between `low` and `high`, (n, d) levels from 0 to 1, in nats.

    Genz's transformation (1992, J. Comput. Graph. Stat. 1, 141), averaged over 32 points of a Kronecker lattice, which are the
    same for every box. Variables with narrow intervals come first: their intervals are exact, and the last one needs no point.
    """
    order = np.argsort((high - low).mean(axis=0), kind="stable")
    root = np.asarray(np.linalg.cholesky(correlation[np.ix_(order, order)]), np.float64)
    d = len(order)
    primes = np.array([PRIMES[j % len(PRIMES)] * (1 + j // len(PRIMES)) for j in range(d)], np.float64)
    points = np.asarray(((np.arange(N_POINTS) + 0.5)[:, None] * np.sqrt(primes)) % 1.0, np.float64)
    with np.errstate(all="ignore"):
        a, b = ndtri(low[:, order]), ndtri(high[:, order])
    return np.concatenate([
        _average_boxes(a[i : i + CHUNK_ROWS], b[i : i + CHUNK_ROWS], root, points) for i in range(0, len(low), CHUNK_ROWS)
    ])  # fmt: skip


def _average_boxes(a: Floats, b: Floats, root: Floats, points: Floats) -> Floats:
    n, d = a.shape
    drawn, log_probability = np.zeros((d, n, len(points))), np.zeros((n, len(points)))
    for j in range(d):
        center = np.tensordot(root[j, :j], drawn[:j], axes=1) if j else np.zeros((n, len(points)))
        low, high = (a[:, j, None] - center) / root[j, j], (b[:, j, None] - center) / root[j, j]
        flip = low > 0  # the upper tail is computed as the lower one, which is exact
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        start = ndtr(low)
        width = ndtr(high) - start
        log_probability += np.log(np.maximum(width, MIN_PROBABILITY))
        if j < d - 1:
            position = np.where(flip, 1 - points[:, j], points[:, j])
            z = ndtri(start + position * width)
            z = np.where(width < MIN_PROBABILITY, np.where(high < 0, high, low), z)  # beyond 36 standard deviations
            z = np.where(flip, -z, z)
            drawn[j] = np.clip(z, -40.0, 40.0)
    top = log_probability.max(axis=1)
    return np.asarray(top + np.log(np.exp(log_probability - top[:, None]).mean(axis=1)))
