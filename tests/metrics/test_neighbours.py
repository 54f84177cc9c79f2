"""Neighbours of images in feature space against brute force, hand-worked cases and the entropy of a known law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import selfloop.metrics.vector_distances as distances
from selfloop.component import Context, Family, Metric, Sampler, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics.image_neighbors import Coverage, FeatureEntropy, Precision, TrainingDistance, entropy, nearest, reach
from selfloop.rng import RandomStream

CTX = Context(RandomStream(("measure",)))
RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((90, 5)).astype(np.float32)
NEW = (RNG.standard_normal((80, 5)) * [1, 1, 1, 0.3, 0.3] + 0.2).astype(np.float32)


def measure(metric: Metric, new: Any, holdout: Any = REAL, initial: Any = REAL) -> Mapping[str, float]:
    known = {"new": new, "holdout": holdout, "initial": initial}
    rows = {kind: {"features": np.asarray(each, np.float32)} for kind, each in known.items() if each is not None}
    held = rows.get("holdout", {})
    return metric.measure(Snapshot(1, Family(), Sampler(), {}, {}, held, {}, {}, {}, rows), CTX)


def pairs(a: Any, b: Any) -> Any:
    """Every distance, each from its own difference."""
    return np.array([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()])


def brute(new: Any, real: Any, k: int) -> dict[str, float]:
    """Kynkaanniemi et al. 2019, eq. 1 and 2, and Naeem et al. 2020, eq. 3 and 4, by their definitions, row by row."""
    across = pairs(real, new)
    radius = [[sorted(row)[k] for row in pairs(rows, rows)] for rows in (real, new)]  # the nearest is the row itself
    return {
        "precision": np.mean([any(across[i, j] <= radius[0][i] for i in range(len(real))) for j in range(len(new))]),
        "recall": np.mean([any(across[i, j] <= radius[1][j] for j in range(len(new))) for i in range(len(real))]),
        "coverage": np.mean([any(across[i, j] <= radius[0][i] for j in range(len(new))) for i in range(len(real))]),
        "density": sum(across[i, j] <= radius[0][i] for i in range(len(real)) for j in range(len(new))) / (k * len(new)),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 512])
def test_all_four_are_those_of_brute_force(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    expected = brute(NEW, REAL[:80], k)
    found = {**measure(Precision(k=k), NEW), **measure(Coverage(k=k), NEW)}
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found["recall"] < found["precision"] < 1  # nothing is trivially 0 or 1 here


def test_ties_on_a_grid_are_those_of_brute_force() -> None:
    """Whole numbers: most distances are equal to a radius, and equal rows are at 0."""
    new, real = (RNG.integers(0, 4, (60, 3)).astype(np.float32) for _ in range(2))
    found = {**measure(Precision(), new, real), **measure(Coverage(k=3), new, real)}
    assert found == pytest.approx(brute(new, real, 3), abs=1e-12)


def test_another_definition_would_be_noticed() -> None:
    """A radius to the k-th nearest counting the row itself, the usual mistake."""
    radii = nearest(REAL[:80].astype(float), REAL[:80].astype(float), 3)[:, -1]
    wrong = (reach(NEW.astype(float), REAL[:80].astype(float), radii).balls > 0).mean()
    assert wrong != pytest.approx(brute(NEW, REAL[:80], 3)["precision"], abs=1e-12)


def test_the_same_rows_are_all_credible_and_all_covered() -> None:
    assert measure(Precision(), REAL) == {"precision": 1, "recall": 1}
    assert measure(Coverage(), REAL)["coverage"] == 1


def test_disjoint_sets_share_nothing() -> None:
    assert measure(Precision(), REAL + 100) == {"precision": 0, "recall": 0}
    assert measure(Coverage(), REAL + 100) == {"coverage": 0, "density": 0}


def test_a_lost_mode_lowers_recall_and_coverage_and_leaves_precision() -> None:
    centres = np.repeat([[0.0], [50.0]], 200, axis=0)
    real, new = (centres + RNG.standard_normal((400, 4)) for _ in range(2))
    both, one = ({**measure(Precision(), rows, real), **measure(Coverage(), rows, real)} for rows in (new, new - centres))
    assert abs(one["precision"] - both["precision"]) < 0.05
    assert one["recall"] == pytest.approx(both["recall"] / 2, abs=0.1)
    assert one["coverage"] == pytest.approx(both["coverage"] / 2, abs=0.05)


def test_rows_that_became_one_row_reach_only_their_equals() -> None:
    """A collapsed model: radius 0. It is credible when it copies, or is close to, a real row, and recalls nothing else."""
    collapsed = np.tile(REAL[:1], (80, 1))
    assert measure(Precision(), collapsed) == {"precision": 1, "recall": 1 / 80}
    between = np.tile(REAL.mean(0, keepdims=True), (80, 1))
    assert measure(Precision(), between)["recall"] == 0
    assert measure(FeatureEntropy(), collapsed)["feature_entropy"] == -math.inf


def test_rounding_makes_no_equal_rows_different() -> None:
    """|x|^2 - 2 x.y + |y|^2 is not 0 for equal rows far from the origin; the answers are as if it were."""
    rows = np.tile(RNG.standard_normal((3, 64)) * 100 + 1000, (20, 1))
    assert not nearest(rows, rows, 3, itself=False).any()
    assert (reach(rows, rows, np.zeros(60)).balls == 20).all()


def test_nearest_distances_are_exact() -> None:
    rows, others = RNG.standard_normal((50, 8)) + 1e4, RNG.standard_normal((70, 8)) + 1e4
    assert np.allclose(nearest(rows, others, 4), np.sort(pairs(rows, others), axis=1)[:, :4], rtol=1e-12, atol=0)
    assert np.allclose(nearest(rows, rows, 4, itself=False), np.sort(pairs(rows, rows), axis=1)[:, 1:5], rtol=1e-12, atol=0)


def test_fresh_rows_are_as_far_from_the_training_rows_as_held_out_ones() -> None:
    initial, held, fresh = (RNG.standard_normal((600, 6)) for _ in range(3))
    found = measure(TrainingDistance(), fresh, held, initial)
    assert found["training_distance"] == pytest.approx(1, abs=0.05)
    assert found["near_copies"] < 0.01
    assert found["near_copies_real"] < 0.01


def test_copies_are_found_in_their_share() -> None:
    initial, held, fresh = (RNG.standard_normal((600, 6)) for _ in range(3))
    fresh[:150] = initial[:150] + 1e-3 * RNG.standard_normal((150, 6))
    found = measure(TrainingDistance(), fresh, held, np.concatenate([initial, initial[:100]]))  # copied copies count too
    assert found["near_copies"] == pytest.approx(0.25, abs=0.01)
    assert found["training_distance"] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_entropy_is_that_of_the_normal_law_and_a_wrong_one_would_be_noticed(d: int) -> None:
    values = np.array([entropy(np.random.default_rng(seed).standard_normal((1000, d)), 1) for seed in range(25)])
    expected, error = d / 2 * math.log(2 * math.pi * math.e), values.std(ddof=1) / 5
    assert abs(values.mean() - expected) < 4 * error
    assert abs(values.mean() - np.euler_gamma - expected) > 4 * error  # without digamma(k)


def test_entropy_by_the_third_nearest_differs_from_that_by_the_first_by_noise() -> None:
    """digamma(k) takes out what the k-th is farther away."""
    rows = [np.random.default_rng(seed).standard_normal((1000, 2)) for seed in range(25)]
    change = np.array([entropy(each, 3) - entropy(each, 1) for each in rows])
    assert abs(change.mean()) < 4 * change.std(ddof=1) / 5
    assert abs(change.mean() + 1.5) > 4 * change.std(ddof=1) / 5  # digamma(3) - digamma(1) left out


def test_entropy_falls_by_the_logarithm_of_a_scale() -> None:
    rows = RNG.standard_normal((300, 7))
    assert entropy(rows / 10, 3) == pytest.approx(entropy(rows, 3) - 7 * math.log(10), rel=1e-9)


def test_fewer_rows_than_neighbours_give_no_number() -> None:
    numbers = [*measure(Precision(), NEW[:3]).values(), *measure(Coverage(), NEW[:5]).values(), entropy(np.ones((2, 2)), 3)]
    assert len(numbers) == 5
    assert all(map(math.isnan, numbers))


def test_entropy_needs_no_held_out_rows_and_is_that_of_as_many_initial_real_ones() -> None:
    found = measure(FeatureEntropy(), NEW, holdout=None)
    assert found == {"feature_entropy": entropy(NEW.astype(float), 3), "feature_entropy_real": entropy(REAL[:80].astype(float), 3)}
    more = measure(FeatureEntropy(), np.concatenate([NEW, REAL]))
    assert more["feature_entropy_real"] == entropy(REAL.astype(float), 3)
    assert more["feature_entropy"] == entropy(np.concatenate([NEW, REAL[:10]]).astype(float), 3)


@pytest.mark.parametrize("metric", [Precision(), Coverage(), TrainingDistance()])
def test_without_sampled_rows_there_is_no_number(metric: Metric) -> None:
    assert measure(metric, None) == {}


@pytest.mark.parametrize("metric", [Precision, Coverage, Entropy])
def test_settings_that_cannot_be_are_refused(metric: Any) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.{metric.name}\.k: got 0; expected 1 or more"):
        metric(k=0)
    with pytest.raises(SpecError, match=rf"metrics\.{metric.name}\.rows: got 1; expected 2 or more"):
        metric(rows=1)
