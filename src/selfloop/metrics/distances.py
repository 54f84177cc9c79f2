"""How far two sets of feature vectors, or two histograms, are from each other."""

from __future__ import annotations

import numpy as np

from selfloop.types import Floats


def frechet_distance(a: Floats, b: Floats) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians with the means and covariances of the rows of a and b.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982); the last trace is the sum of the
    singular values of S_a^1/2 S_b^1/2, and those need no roots of nearly singular products.
    """
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
