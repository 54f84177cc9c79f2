"""Random scatter matrices without rows, and roots of covariances. Every array has a leading seeds axis."""

from __future__ import annotations

import numpy as np

from selfloop.columns import Floats


def split_generator(rng: np.random.Generator) -> tuple[np.random.Generator, np.random.Generator]:
    """Two generators, one for each of two arrays.

    A generator that draws one array, seeds first, draws the same numbers for a seed whatever the number of later seeds.
    """
    first, second = (np.random.Generator(np.random.SFC64(seed)) for seed in rng.integers(1 << 63, size=2))
    return first, second


def bartlett(rows: int, d: int, seeds: int, rng: np.random.Generator) -> Floats:
    """Lower-trapezoidal A, (seeds, d, min(rows, d)), with A A' distributed as X'X for `rows` standard normal rows X.

    Bartlett (1933): entry (i, i) is chi with rows - i degrees of freedom, the entries below it are standard normal, all
    independent. It holds for fewer rows than d too (singular Wishart). The cost does not depend on the number of rows.
    """
    k = min(rows, d)
    factor = np.zeros((seeds, d, k))
    for_diagonal, for_lower = split_generator(rng)
    factor[:, np.arange(k), np.arange(k)] = np.sqrt(for_diagonal.chisquare(rows - np.arange(k), (seeds, k)))
    lower = np.tril_indices(d, -1, k)
    factor[:, *lower] = for_lower.standard_normal((seeds, len(lower[0])))
    return factor


def matrix_root(covariance: Floats) -> Floats:
    """R with R R' = covariance: the Cholesky factor, or one from eigenvectors if a matrix is singular."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:
        if len(covariance) > 1:  # seed by seed, so that the root of a regular matrix does not depend on the other seeds
            return np.concatenate([matrix_root(matrix[None]) for matrix in covariance])
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0))[:, None], np.float64)
