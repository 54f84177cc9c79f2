"""Distances of image features against closed forms, brute force and known-wrong variants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import selfloop.metrics.vector_distances as distances
from selfloop.component import Context, Family, Metric, Sampler, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.image_distances import FeatureDiversity, FeatureFrechet, PixelFrechet, KernelDistance
from selfloop.metrics.vector_distances import kernel_distance, mean_distance
from selfloop.rng import RandomStream

CTX = Context(RandomStream(("measure",)))
RNG = np.random.default_rng(1)
D = 6
REAL, HELD = (RNG.standard_normal((3000, D)) for _ in range(2))


def measure(metric: Metric, new: Any, holdout: Any = HELD, initial: Any = REAL) -> Mapping[str, float]:
    known = {"new": new, "holdout": holdout, "initial": initial}
    rows = {kind: {"features": np.asarray(each, np.float32)} for kind, each in known.items() if each is not None}
    return metric.measure(Snapshot(1, Family(), Sampler(), {}, {}, rows.get("holdout", {}), {}, {}, {}, rows), CTX)


def kernel(x: Any, y: Any) -> Any:
    return (x @ y.T / x.shape[1] + 1) ** 3


def test_frechet_of_real_against_real_is_its_bias_and_that_of_a_shift_the_closed_form() -> None:
    new = RNG.standard_normal((3000, D)) * 0.5 + 1.0
    found = measure(FeatureFrechet(), new)
    assert found["feature_frechet"] == pytest.approx(D * (1.0 + 0.25), rel=0.05)  # D (shift^2 + (1 - sd)^2)
    assert 0 < found["feature_frechet_real"] < 0.03
    assert measure(FeatureFrechet(), REAL)["feature_frechet"] == found["feature_frechet_real"]


def test_frechet_says_what_as_many_real_rows_would_give() -> None:
    few, many = (measure(FeatureFrechet(), HELD[:n])["feature_frechet_real"] for n in (50, 3000))
    assert few > 10 * many  # its bias falls with the rows
    found = measure(FeatureFrechet(), np.concatenate([HELD, REAL]))  # there are not so many: as if there were fewer
    assert found == measure(FeatureFrechet(), HELD)
    assert found["feature_frechet_real"] == many


def test_kernel_distance_is_that_of_all_pairs_of_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 7)
    x, y = RNG.standard_normal((20, 3)), RNG.standard_normal((31, 3)) + 0.5
    within = [np.mean([kernel(r, r)[i, j] for i in range(len(r)) for j in range(len(r)) if i != j]) for r in (x, y)]
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), rel=1e-12)


def z_score(estimate: Any) -> float:
    values = np.array([estimate(*np.random.default_rng(seed).standard_normal((2, 30, 3))) for seed in range(400)])
    return float(values.mean() / (values.std(ddof=1) / 20))


def test_kernel_distance_has_no_bias_and_pairing_rows_with_themselves_would_be_noticed() -> None:
    assert abs(z_score(kernel_distance)) < 4
    assert z_score(lambda x, y: kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()) > 4


def test_kernel_distance_of_a_shift_is_the_closed_form() -> None:
    """In one dimension (1 + xy)^3 = sum of binomials c_p x^p y^p: the distance is sum c_p (E x^p - E y^p)^2."""
    shift = 0.7
    x, y = RNG.standard_normal((4000, 1)), RNG.standard_normal((4000, 1)) + shift
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    assert kernel_distance(x, y) == pytest.approx(expected, rel=0.15)
    assert measure(KernelDistance(rows=500), HELD)["kernel_distance"] == pytest.approx(0, abs=1e-6 + 40 / 500)


def test_mean_distance_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 7)
    rows = RNG.standard_normal((40, 3)) + 1e3
    pairs = [math.dist(rows[i], rows[j]) for i in range(40) for j in range(i)]
    assert mean_distance(rows) == pytest.approx(np.mean(pairs), rel=1e-9)


def test_diversity_is_relative_to_real_rows() -> None:
    assert measure(FeatureDiversity(), REAL)["feature_diversity"] == pytest.approx(1, abs=0.02)
    assert measure(FeatureDiversity(), REAL / 4)["feature_diversity"] == pytest.approx(0.25, abs=0.005)
    assert measure(FeatureDiversity(), np.tile(REAL[:1], (50, 1)))["feature_diversity"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", [PixelFrechet(), FeatureFrechet(), KernelDistance(), FeatureDiversity()])
def test_one_row_or_none_gives_no_number(metric: Metric) -> None:
    assert measure(metric, None) == {}
    assert math.isnan(measure(metric, HELD[:1])[metric.name])


@pytest.mark.parametrize("metric", [KernelDistance, FeatureDiversity])
def test_one_row_is_too_few(metric: Any) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.{metric.name}\.rows: got 1; expected 2 or more"):
        metric(rows=1)
