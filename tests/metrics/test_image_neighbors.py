"""Neighbors of images in feature space against brute force, hand-worked cases and the entropy of a known distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from selfloop.component import Context, Metric, Sampler
from selfloop.metrics import vector_distances
from selfloop.metrics.image_neighbors import (
    Coverage,
    FeatureEntropy,
    Precision,
    TrainingDistance,
    count_in_balls,
    entropy,
    k_nearest,
)
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from tiny_components import Mean

CTX = Context(RandomStream(("measure",)))
RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((90, 5)).astype(np.float32)
SAMPLES = (RNG.standard_normal((80, 5)) * [1, 1, 1, 0.3, 0.3] + 0.2).astype(np.float32)


def measure(metric: Metric, samples: Any, holdout: Any = REAL, initial: Any = REAL) -> Mapping[str, float]:
    kinds = {"samples": samples, "holdout": holdout, "initial": initial}
    features = {kind: {"features": np.asarray(rows, np.float32)} for kind, rows in kinds.items() if rows is not None}
    return metric.measure(Snapshot(1, Mean(), Sampler(), {}, features.get("samples", {}), {}, {}, {}, {}, features), CTX)


def pairs(a: Any, b: Any) -> Any:
    """All distances, computed one by one."""
    return np.array([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()])


def brute_force(samples: Any, real: Any, k: int) -> dict[str, float]:
    """Kynkaanniemi et al. 2019, eq. 1 and 2, and Naeem et al. 2020, eq. 3 and 4, row by row."""
    across = pairs(real, samples)
    radius = [[sorted(row)[k] for row in pairs(rows, rows)] for rows in (real, samples)]  # the nearest is the row itself
    n, m = len(real), len(samples)
    return {
        "precision": np.mean([any(across[i, j] <= radius[0][i] for i in range(n)) for j in range(m)]),
        "recall": np.mean([any(across[i, j] <= radius[1][j] for j in range(m)) for i in range(n)]),
        "coverage": np.mean([any(across[i, j] <= radius[0][i] for j in range(m)) for i in range(n)]),
        "density": sum(across[i, j] <= radius[0][i] for i in range(n) for j in range(m)) / (k * m),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_values_are_those_of_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = brute_force(SAMPLES, REAL[:80], k)
    for chunk_rows in (7, 512):
        monkeypatch.setattr(vector_distances, "CHUNK_ROWS", chunk_rows)
        values = {**measure(Precision(k=k), SAMPLES), **measure(Coverage(k=k), SAMPLES)}
        assert values == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected["recall"] < expected["precision"] < 1  # neither is trivially 0 or 1


def test_ties_on_a_grid_are_those_of_brute_force() -> None:
    """Whole numbers: most distances are equal to a radius, and equal rows are at 0."""
    samples, real = (RNG.integers(0, 4, (60, 3)).astype(np.float32) for _ in range(2))
    values = {**measure(Precision(), samples, real), **measure(Coverage(k=3), samples, real)}
    assert values == pytest.approx(brute_force(samples, real, 3), abs=1e-12)


def test_a_radius_that_counts_the_row_itself_gives_another_precision() -> None:
    """The usual mistake: the row itself is the first of its k nearest rows."""
    real, samples = REAL[:80].astype(float), SAMPLES.astype(float)
    wrong = (count_in_balls(samples, real, k_nearest(real, real, 3)[:, -1]).balls > 0).mean()
    assert wrong != pytest.approx(measure(Precision(), SAMPLES)["precision"], abs=1e-12)


def test_equal_rows_have_precision_recall_and_coverage_1() -> None:
    assert measure(Precision(), REAL) == {"precision": 1, "recall": 1}
    assert measure(Coverage(), REAL)["coverage"] == 1


def test_distant_rows_have_precision_recall_and_coverage_0() -> None:
    assert measure(Precision(), REAL + 100) == {"precision": 0, "recall": 0}
    assert measure(Coverage(), REAL + 100) == {"coverage": 0, "density": 0}


def test_a_lost_mode_lowers_recall_and_coverage_but_not_precision() -> None:
    centers = np.repeat([[0.0], [50.0]], 200, axis=0)
    real, samples = (centers + RNG.standard_normal((400, 4)) for _ in range(2))
    both, one = ({**measure(Precision(), x, real), **measure(Coverage(), x, real)} for x in (samples, samples - centers))
    assert abs(one["precision"] - both["precision"]) < 0.05
    assert one["recall"] == pytest.approx(both["recall"] / 2, abs=0.1)
    assert one["coverage"] == pytest.approx(both["coverage"] / 2, abs=0.05)


def test_balls_of_identical_rows_contain_only_equal_rows() -> None:
    """A collapsed model: radius 0. Its precision is 1 if it copies a real row, and it recalls that row only."""
    collapsed = np.tile(REAL[:1], (80, 1))
    assert measure(Precision(), collapsed) == {"precision": 1, "recall": 1 / 80}
    between = np.tile(REAL.mean(0, keepdims=True), (80, 1))
    assert measure(Precision(), between)["recall"] == 0
    assert measure(FeatureEntropy(), collapsed)["feature_entropy"] == -math.inf


def test_equal_rows_have_distance_0_despite_rounding() -> None:
    """|x|^2 - 2 x.y + |y|^2 is not 0 for equal rows far from the origin; the results are as if it were."""
    rows = np.tile(RNG.standard_normal((3, 64)) * 100 + 1000, (20, 1))
    assert not k_nearest(rows, rows, 3, include_self=False).any()
    assert (count_in_balls(rows, rows, np.zeros(60)).balls == 20).all()


def test_nearest_distances_are_exact() -> None:
    rows, others = RNG.standard_normal((50, 8)) + 1e4, RNG.standard_normal((70, 8)) + 1e4
    assert np.allclose(k_nearest(rows, others, 4), np.sort(pairs(rows, others))[:, :4], rtol=1e-12, atol=0)
    own = k_nearest(rows, rows, 4, include_self=False)
    assert np.allclose(own, np.sort(pairs(rows, rows))[:, 1:5], rtol=1e-12, atol=0)


def test_fresh_rows_are_as_far_from_initial_rows_as_held_out_rows_are() -> None:
    initial, holdout, fresh = (RNG.standard_normal((600, 6)) for _ in range(3))
    values = measure(TrainingDistance(), fresh, holdout, initial)
    assert values["training_distance"] == pytest.approx(1, abs=0.05)
    assert values["near_copies"] < 0.01
    assert values["near_copies_real"] < 0.01


def test_near_copies_is_the_share_of_copies() -> None:
    initial, holdout, fresh = (RNG.standard_normal((600, 6)) for _ in range(3))
    fresh[:150] = initial[:150] + 1e-3 * RNG.standard_normal((150, 6))
    repeated = np.concatenate([initial, initial[:100]])  # equal initial rows count once
    values = measure(TrainingDistance(), fresh, holdout, repeated)
    assert values["near_copies"] == pytest.approx(0.25, abs=0.01)
    assert values["training_distance"] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_entropy_is_that_of_the_normal_distribution_and_a_wrong_estimate_is_not(d: int) -> None:
    values = np.array([entropy(np.random.default_rng(seed).standard_normal((400, d)), 1) for seed in range(25)])
    expected, error = d / 2 * math.log(2 * math.pi * math.e), values.std(ddof=1) / 5
    assert abs(values.mean() - expected) < 4 * error
    assert abs(values.mean() - np.euler_gamma - expected) > 4 * error  # without digamma(k)


def test_entropy_by_the_third_neighbor_differs_from_that_by_the_first_by_noise() -> None:
    """digamma(k) corrects for the larger distance of the k-th neighbor."""
    data = [np.random.default_rng(seed).standard_normal((400, 2)) for seed in range(25)]
    change = np.array([entropy(rows, 3) - entropy(rows, 1) for rows in data])
    assert abs(change.mean()) < 4 * change.std(ddof=1) / 5
    assert abs(change.mean() + 1.5) > 4 * change.std(ddof=1) / 5  # without digamma(3) - digamma(1)


def test_entropy_falls_by_the_logarithm_of_a_scale() -> None:
    rows = RNG.standard_normal((300, 7))
    assert entropy(rows / 10, 3) == pytest.approx(entropy(rows, 3) - 7 * math.log(10), rel=1e-9)


def test_fewer_rows_than_neighbors_give_nan() -> None:
    values = [*measure(Precision(), SAMPLES[:3]).values(), *measure(Coverage(), SAMPLES[:5]).values()]
    assert len(values) == 4
    assert all(map(math.isnan, [*values, entropy(np.ones((2, 2)), 3)]))


def test_entropy_needs_no_holdout_and_compares_equally_many_initial_rows() -> None:
    samples, real = SAMPLES.astype(float), REAL.astype(float)
    values = measure(FeatureEntropy(), samples[:40], holdout=None)  # features were learned from the other half of the real rows
    assert values == {"feature_entropy": entropy(samples[:40], 3), "feature_entropy_real": entropy(real[1::2][:40], 3)}
    values = measure(FeatureEntropy(), samples)
    assert values == {"feature_entropy": entropy(samples[:45], 3), "feature_entropy_real": entropy(real[1::2], 3)}


@pytest.mark.parametrize("metric", [Precision(), Coverage(), TrainingDistance()])
def test_without_sampled_rows_there_is_no_value(metric: Metric) -> None:
    assert measure(metric, None) == {}
