"""Distances of sets of vectors and of histograms against closed forms, brute force and known-wrong variants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from selfloop.columns import Floats
from selfloop.metrics import vector_distances
from selfloop.metrics.vector_distances import frechet_distance, frontier_area, kernel_distance, mean_distance

RNG = np.random.default_rng(1)


def test_frechet_distance_is_the_closed_form_for_diagonal_gaussians() -> None:
    """Exact moments: columns of +-s have variance s^2 n / (n - 1)."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    a, b = signs * [1.0, 2.0], signs * [3.0, 0.5] + [5.0, -1.0]
    expected = 26 + 4 / 3 * ((1 - 3) ** 2 + (2 - 0.5) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_the_closed_form_for_any_covariances() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5) for _ in range(2))
    s, r = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * sqrtm(sqrtm(s) @ r @ sqrtm(s)).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, b) != pytest.approx(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + r - 2 * s), rel=0.01)


def test_frechet_distance_of_a_collapsed_model_is_the_lost_variance() -> None:
    a = np.random.default_rng(0).standard_normal((300, 4))
    collapsed = np.tile(a.mean(0), (50, 1))
    assert frechet_distance(collapsed, a) == pytest.approx(np.trace(np.cov(a.T)), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def kernel(x: Any, y: Any) -> Any:
    return (x @ y.T / x.shape[1] + 1) ** 3


def test_kernel_distance_is_that_of_all_pairs_of_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_distances, "CHUNK_ROWS", 7)
    x, y = RNG.standard_normal((20, 3)), RNG.standard_normal((31, 3)) + 0.5
    within = [np.mean([kernel(r, r)[i, j] for i in range(len(r)) for j in range(len(r)) if i != j]) for r in (x, y)]
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), rel=1e-12)


def z_score(estimate: Any) -> float:
    values = np.array([estimate(*np.random.default_rng(seed).standard_normal((2, 30, 3))) for seed in range(400)])
    return float(values.mean() / (values.std(ddof=1) / 20))


def test_kernel_distance_is_unbiased_and_pairs_of_a_row_with_itself_would_bias_it() -> None:
    assert abs(z_score(kernel_distance)) < 4
    assert z_score(lambda x, y: kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()) > 4


def test_kernel_distance_of_a_shift_is_the_closed_form() -> None:
    """In one dimension (1 + xy)^3 = sum of binomials c_p x^p y^p: the distance is sum c_p (E x^p - E y^p)^2."""
    shift = 0.7
    x, y = RNG.standard_normal((2000, 1)), RNG.standard_normal((2000, 1)) + shift
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    assert kernel_distance(x, y) == pytest.approx(expected, rel=0.15)


def test_mean_distance_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_distances, "CHUNK_ROWS", 7)
    rows = RNG.standard_normal((40, 3)) + 1e3
    pairs = [math.dist(rows[i], rows[j]) for i in range(40) for j in range(i)]
    assert mean_distance(rows) == pytest.approx(np.mean(pairs), rel=1e-9)


def test_the_frontier_of_equal_histograms_has_area_one_and_that_of_disjoint_ones_its_closed_form() -> None:
    """Disjoint: x = (1 - w)^c and y = w^c, so the area is c B(c + 1, c) = 1 / binomial(2 c, c)."""
    p = np.array([0.2, 0.3, 0.5, 0.0])
    assert frontier_area(p, p, 5.0) == pytest.approx(1, abs=1e-12)
    for c in (1, 2, 5):
        area = frontier_area(np.array([0.4, 0.6, 0]), np.array([0, 0, 1.0]), c)
        assert area == pytest.approx(1 / math.comb(2 * c, c), rel=1e-4)


def area_by_quadrature(p: Floats, q: Floats, c: float, *, reverse: bool = False) -> float:
    """The same area as an integral over w with the slope of the curve; `reverse`: with KL(r | p) in place of KL(p | r)."""
    from scipy.integrate import quad

    def kl(a: Floats, b: Floats) -> float:
        return float(b @ np.log(b / a)) if reverse else float(a @ np.log(a / b))

    def strip(w: float) -> float:
        r, dw = w * p + (1 - w) * q, 1e-6
        ahead = r + dw * (p - q)
        x, x_ahead = math.exp(-c * kl(q, r)), math.exp(-c * kl(q, ahead))
        return math.exp(-c * kl(p, r)) * (x - x_ahead) / dw

    return math.exp(-c * kl(q, p)) + quad(strip, 0, 1)[0]


@pytest.mark.parametrize("c", [1.0, 5.0])
def test_the_frontier_area_is_the_integral_of_the_curve_and_that_of_reversed_divergences_differs(c: float) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    area = frontier_area(p, q, c)
    assert area == pytest.approx(area_by_quadrature(p, q, c), rel=1e-4)
    assert area == pytest.approx(frontier_area(q, p, c), rel=1e-9)
    assert area != pytest.approx(area_by_quadrature(p, q, c, reverse=True), rel=0.01)
