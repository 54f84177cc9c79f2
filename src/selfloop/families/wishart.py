"""Random scatter matrices without rows, and roots of covariances; every array has a leading seeds axis."""

from __future__ import annotations

import numpy as np

from selfloop.types import Floats


def split(rng: np.random.Generator) -> tuple[np.random.Generator, np.random.Generator]:
    """Two generators in place of one, one for each array to be drawn.

    A generator that draws one array, seeds first, gives a seed the same numbers however many seeds follow it.
    """
    one, other = (np.random.Generator(np.random.SFC64(seed)) for seed in rng.integers(1 << 63, size=2))
    return one, other


def bartlett(rows: int, d: int, seeds: int, rng: np.random.Generator) -> Floats:
    """Lower-trapezoidal A, (d, min(rows, d)), with A A' distributed as X'X for `rows` standard normal rows X.

    Bartlett (1933): entry (i, i) is chi with rows - i degrees of freedom, those below it standard normal, all
    independent. It holds for fewer rows than d too (singular Wishart), and costs the same for any number of rows.
    """
    k = min(rows, d)
    factor = np.zeros((seeds, d, k))
    on, off = split(rng)
    factor[:, np.arange(k), np.arange(k)] = np.sqrt(on.chisquare(rows - np.arange(k), (seeds, k)))
    below = np.tril_indices(d, -1, k)
    factor[:, *below] = off.standard_normal((seeds, len(below[0])))
    return factor


def root(covariance: Floats) -> Floats:
    """R with R R' = covariance: Cholesky's, or the symmetric eigenvectors' where a matrix is singular."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:  # of one seed, perhaps: each is looked at alone, so that none depends on the others
        return np.stack([_root_of_one(matrix) for matrix in covariance])


def _root_of_one(matrix: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.cholesky(matrix), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)
