"""Distances between two sets of feature vectors, and between two histograms; clusters of vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.columns import Floats
from selfloop.component import Context

CHUNK_ROWS = 512  # rows whose distances to all other rows are in memory at a time


def frechet_distance(a: Floats, b: Floats) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians with the means and covariances of the rows of a and b.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982). The last trace is computed as the sum
    of the singular values of S_a^1/2 S_b^1/2, which needs no root of a nearly singular product. NaN for a single row.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    difference = a.mean(axis=0) - b.mean(axis=0)
    roots = []
    for rows in (a, b):
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
        roots.append(vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T)
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(difference @ difference + sum(np.square(root).sum() for root in roots) - 2 * shared)


def fit_clusters(points: Floats, n_clusters: int, ctx: Context, **settings: int) -> Any:
    """k-means of scikit-learn, fitted to the rows of `points`, with at most as many clusters as there are different rows."""
    from sklearn.cluster import KMeans

    n_clusters = min(n_clusters, len(np.unique(points, axis=0)))
    seed = ctx.stream.child("clusters").integer() % 2**32
    with threadpool_limits(1):  # several threads add their sums in the order in which they finish
        return KMeans(n_clusters, random_state=seed, **settings).fit(points)


def frontier_area(p: Floats, q: Floats, scaling_factor: float) -> float:
    """Area under the divergence frontier of two histograms, between 0 (disjoint) and 1 (equal).

    The curve of (exp(-c KL(q | r)), exp(-c KL(p | r))), with the scaling factor c, over the mixtures r = w p + (1 - w) q,
    0 < w < 1, with its ends (1, 0) and (0, 1): Pillutla et al. 2021 (2102.01454), section 2. Trapezoids between 1,000 mixtures.
    """
    weights = np.linspace(0, 1, 1002)[1:-1, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.exp(-scaling_factor * _divergence(histogram, mixtures)) for histogram in (q, p))  # x rises with w, y falls
    return float(np.trapezoid(np.concatenate([[1], y[::-1], [0]]), np.concatenate([[0], x[::-1], [1]])))


def _divergence(p: Floats, mixtures: Floats) -> Floats:
    """KL(p | r) of every mixture r, in nats."""
    support = p > 0
    return np.asarray((p[support] * np.log(p[support] / mixtures[:, support])).sum(axis=1))


def distance_chunks(a: Floats, b: Floats) -> Iterator[tuple[slice, Floats]]:
    """Squared distances of some rows of a at a time to all rows of b, each chunk from one matrix product.

    |x|^2 - 2 x.y + |y|^2 has errors of about 1e-14 of the largest |row|^2: center the rows first.
    """
    squares = np.vecdot(b, b)
    for first in range(0, len(a), CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        distances = a[rows] @ b.T
        distances *= -2
        distances += squares
        distances += np.vecdot(a[rows], a[rows])[:, None]
        yield rows, np.maximum(distances, 0, out=distances)


def mean_distance(a: Floats) -> float:
    """Mean distance between two different rows of a."""
    centered = a - a.mean(axis=0)
    total = 0.0
    for rows, squares in distance_chunks(centered, centered):
        np.fill_diagonal(squares[:, rows], 0)
        total += float(np.sqrt(squares, out=squares).sum())
    return total / (len(a) * (len(a) - 1))


def kernel_distance(a: Floats, b: Floats) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two sets of rows with the kernel (x.y / d + 1)^3.

    The kernel inception distance (Binkowski et al. 2018, 1801.01401, section 4) with all pairs instead of subsets of rows.
    No row is paired with itself (Gretton et al. 2012, Lemma 6), so the estimate may be below 0 for rows of one distribution.
    """
    within = []
    for rows in (a, b):
        self_pairs = np.power(np.vecdot(rows, rows) / rows.shape[1] + 1, 3).sum()
        within.append((_kernel_sum(rows, rows) - self_pairs) / (len(rows) * (len(rows) - 1)))
    return float(sum(within) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: Floats, b: Floats) -> float:
    """Sum of the kernel over all pairs of a row of a and a row of b."""
    products = (a[first : first + CHUNK_ROWS] @ b.T / a.shape[1] + 1 for first in range(0, len(a), CHUNK_ROWS))
    return float(sum((chunk * chunk * chunk).sum() for chunk in products))
