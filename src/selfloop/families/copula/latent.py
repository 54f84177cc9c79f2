"""Normal variables behind the columns: their correlation, and the probability of a box."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from selfloop.columns import Bools, Floats

N_HERMITE = 40  # coefficients of a column
MIN_EIGENVALUE = 1e-4  # of a correlation matrix; several columns may be copies of one another
MAX_CORRELATION = 0.9999
N_POINTS = 32  # of the lattice over which a box is averaged
CHUNK_ROWS = 1024
MIN_PROBABILITY = 1e-290
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def normal_density(z: Floats) -> Floats:
    """Density of the standard normal distribution; 0 at infinity."""
    return np.asarray(np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))


def interval_means(edges: Floats) -> Floats:
    """Mean of a standard normal variable within each interval between increasing levels, from 0 to 1."""
    density = normal_density(ndtri(edges))
    width = np.diff(edges)
    return np.asarray((density[:-1] - density[1:]) / np.where(width > 0, width, 1))


def hermite_coefficients(edges: Floats, scores: Floats) -> Floats:
    """Coefficients 1 .. 40 of the step function that maps a normal variable to the score of its interval.

    Of normalized Hermite polynomials: the integral of h_k phi over (a, b) is (h_(k-1)(a) phi(a) - h_(k-1)(b) phi(b)) / sqrt(k).
    """
    z = ndtri(edges)
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
