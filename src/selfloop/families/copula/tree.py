"""A decision tree for one column of a copula: the distribution of its level given the other columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from selfloop.columns import Array, Floats, Ints
from selfloop.component import Context

N_BINS = 20  # of the levels of a number
MIN_LEAF_ROWS, LEAF_ROWS_PER_BIN = 50, 5  # shares of a leaf cost about (bins - 1) / (2 rows) nats: at most 0.1 with these


class LevelTree(NamedTuple):
    """Each leaf has a share of its rows in every bin of levels; within a bin, levels are uniform.

    `edges` (bins + 1,) are levels from 0 to 1: the intervals of categories, or equal bins of a number. `shares` (nodes, bins)
    have one row of the overall shares more than the leaf, so that none is 0.
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

        bins = _bin_of(levels, edges)
        leaf, seed = max(MIN_LEAF_ROWS, LEAF_ROWS_PER_BIN * (len(edges) - 1)), ctx.stream.child("tree").integer() % 2**32
        model = DecisionTreeClassifier(min_samples_leaf=leaf, random_state=seed)
        tree = model.fit(x, bins, sample_weight=weights).tree_
        counts = np.zeros((tree.node_count, len(edges) - 1))
        np.add.at(counts, (tree.apply(x.astype(np.float32)), bins), weights)
        shares = counts + np.bincount(bins, weights, len(edges) - 1) / weights.sum() + 1e-9
        feature, left, right, missing = (
            np.asarray(array, np.int64)
            for array in (tree.feature, tree.children_left, tree.children_right, tree.missing_go_to_left)
        )
        shares /= shares.sum(axis=1, keepdims=True)
        return cls(edges, shares, feature, np.asarray(tree.threshold, np.float64), left, right, missing)

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

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> LevelTree:
        return cls(**{name: np.asarray(arrays[f"tree/{name}"]) for name in cls._fields})  # type: ignore[arg-type]  # stored as they were


def _bin_of(levels: Floats, edges: Floats) -> Ints:
    return np.clip(np.searchsorted(edges, levels, side="right") - 1, 0, len(edges) - 2)
