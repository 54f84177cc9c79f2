"""How far two sets of feature vectors, or two histograms, are from each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from selfloop.types import Floats

BLOCK = 512  # rows whose distances to all others are held at once


def frechet_distance(a: Floats, b: Floats) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians with the means and covariances of the rows of a and b.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982); the last trace is the sum of the
    singular values of S_a^1/2 S_b^1/2, and those need no roots of nearly singular products. NaN for a single row.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    apart = a.mean(axis=0) - b.mean(axis=0)
    roots = []
    for rows in (a, b):
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
        roots.append(vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T)
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(apart @ apart + sum(np.square(root).sum() for root in roots) - 2 * shared)


def frontier_area(p: Floats, q: Floats, scale: float) -> float:
    """Area under the divergence frontier of two histograms, between 0 (disjoint) and 1 (equal).

    The curve of (exp(-scale KL(q | r)), exp(-scale KL(p | r))) over the mixtures r = w p + (1 - w) q, 0 < w < 1, with its
    ends (1, 0) and (0, 1): Pillutla et al. 2021 (2102.01454), section 2. Trapezoids between 1,000 mixtures.
    """
    weights = np.linspace(0, 1, 1002)[1:-1, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.exp(-scale * _divergence(each, mixtures)) for each in (q, p))  # x rises and y falls with the weight of q
    return float(np.trapezoid(np.concatenate([[1], y[::-1], [0]]), np.concatenate([[0], x[::-1], [1]])))


def _divergence(p: Floats, mixtures: Floats) -> Floats:
    """KL(p | r) of every mixture r, nats."""
    there = p > 0
    return np.asarray((p[there] * np.log(p[there] / mixtures[:, there])).sum(axis=1))


def distance_blocks(a: Floats, b: Floats) -> Iterator[tuple[slice, Floats]]:
    """Squared distances of some rows of a at a time to all rows of b, each block from one matrix product.

    |x|^2 - 2 x.y + |y|^2 is off by about 1e-14 of the largest |row|^2: centre the rows first.
    """
    squares = np.vecdot(b, b)
    for first in range(0, len(a), BLOCK):
        part = slice(first, first + BLOCK)
        block = a[part] @ b.T
        block *= -2
        block += squares
        block += np.vecdot(a[part], a[part])[:, None]
        yield part, np.maximum(block, 0, out=block)


def mean_distance(a: Floats) -> float:
    """Mean distance between two different rows of a."""
    centred = a - a.mean(axis=0)
    total = 0.0
    for part, squares in distance_blocks(centred, centred):
        np.fill_diagonal(squares[:, part], 0)
        total += float(np.sqrt(squares, out=squares).sum())
    return total / (len(a) * (len(a) - 1))


def kernel_distance(a: Floats, b: Floats) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two sets of rows with the kernel (x.y / d + 1)^3.

    The kernel inception distance (Binkowski et al. 2018, 1801.01401, section 4) with all pairs instead of subsets of rows;
    a row is not paired with itself (Gretton et al. 2012, Lemma 6), so that it may be below 0 for rows of one law.
    """
    within = []
    for rows in (a, b):
        itself = np.power(np.vecdot(rows, rows) / rows.shape[1] + 1, 3).sum()
        within.append((_kernel_sum(rows, rows) - itself) / (len(rows) * (len(rows) - 1)))
    return float(sum(within) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: Floats, b: Floats) -> float:
    """Sum of the kernel over all pairs of a row of a and one of b."""
    blocks = (a[first : first + BLOCK] @ b.T / a.shape[1] + 1 for first in range(0, len(a), BLOCK))
    return float(sum((block * block * block).sum() for block in blocks))
