"""Distances and diversity of sampled images on features, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.datasets import load_digits

from selfloop.columns import Array
from selfloop.component import Context, Metric, Sampler
from selfloop.metrics.image_distances import FeatureDiversity, FeatureFrechet, KernelDistance, PixelFrechet
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from tiny_components import Mean

CTX = Context(RandomStream(("measure",)))
RNG = np.random.default_rng(1)
D = 6
REAL, HOLDOUT = (RNG.standard_normal((1000, D)) for _ in range(2))


@dataclass(frozen=True, kw_only=True)
class FileNetwork(ImageFeatureExtractor):
    """A network of a file, which learned from no row of this data."""

    name: ClassVar[str] = "network"

    def learns_features(self) -> bool:
        return False


def Fixed() -> FeatureFrechet:  # noqa: N802  # it makes a metric, as the classes do
    return FeatureFrechet(features=FileNetwork())


def measure(metric: Metric, samples: Any, holdout: Any = HOLDOUT, initial: Any = REAL) -> Mapping[str, float]:
    kinds = {"samples": samples, "holdout": holdout, "initial": initial}
    features = {kind: {"features": np.asarray(rows, np.float32)} for kind, rows in kinds.items() if rows is not None}
    return metric.measure(Snapshot(1, Mean(), Sampler(), {}, features.get("samples", {}), {}, {}, {}, {}, features), CTX)


def test_frechet_of_real_rows_is_its_bias_and_that_of_a_shift_the_closed_form() -> None:
    values = measure(FeatureFrechet(), RNG.standard_normal((1000, D)) * 0.5 + 1.0)
    assert values["feature_frechet"] == pytest.approx(D * (1.0 + 0.25), rel=0.05)  # D (shift^2 + (1 - sd)^2)
    assert 0 < values["feature_frechet_real"] < 0.1
    assert measure(FeatureFrechet(), REAL[1::2])["feature_frechet"] == values["feature_frechet_real"]


def test_the_real_frechet_distance_is_that_of_equally_many_initial_rows() -> None:
    few, many = (measure(FeatureFrechet(), HOLDOUT[:n])["feature_frechet_real"] for n in (50, 500))
    assert few > 5 * many  # its bias falls with the number of rows
    values = measure(FeatureFrechet(), np.concatenate([HOLDOUT, REAL]))  # more samples than initial rows to compare with
    assert values == measure(FeatureFrechet(), HOLDOUT[:500])
    assert values["feature_frechet_real"] == many


def test_the_real_distance_is_that_of_rows_that_the_features_were_not_learned_from() -> None:
    seen = np.where(np.arange(1000)[:, None] % 2, REAL, 0.0)  # features that tell the rows they were learned from
    samples = RNG.standard_normal((1000, D))
    unbiased, biased = measure(FeatureFrechet(), samples, initial=seen), measure(Fixed(), samples, initial=seen)
    assert unbiased == pytest.approx(measure(FeatureFrechet(), samples))
    assert unbiased["feature_frechet_real"] == pytest.approx(unbiased["feature_frechet"], abs=0.03)
    assert biased["feature_frechet_real"] > 10 * unbiased["feature_frechet_real"]
    assert measure(Fixed(), samples)["feature_frechet"] == measure(Fixed(), np.concatenate([samples, REAL]))["feature_frechet"]


def test_kernel_distance_of_equal_distributions_is_near_zero() -> None:
    assert measure(KernelDistance(max_rows=500), REAL)["kernel_distance"] == pytest.approx(0, abs=0.1)


def test_diversity_is_relative_to_real_rows() -> None:
    assert measure(FeatureDiversity(), REAL)["feature_diversity"] == pytest.approx(1, abs=0.03)
    assert measure(FeatureDiversity(), REAL / 4)["feature_diversity"] == pytest.approx(0.25, abs=0.01)
    assert measure(FeatureDiversity(), np.tile(REAL[:1], (50, 1)))["feature_diversity"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", [PixelFrechet(), FeatureFrechet(), KernelDistance(), FeatureDiversity()])
def test_no_samples_give_no_value_and_a_single_sample_gives_nan(metric: Metric) -> None:
    assert measure(metric, None) == {}
    assert math.isnan(measure(metric, HOLDOUT[:1])[metric.name])


def test_pixel_frechet_is_near_zero_for_real_images_and_grows_with_damage() -> None:
    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    images = images[np.random.default_rng(0).permutation(len(images))]
    holdout, real = images[:800], images[800:1600]
    metric = PixelFrechet(features=ImageFeatureExtractor(kind="pixels", dimensions=16))
    prepared = metric.features.prepare({"image": real}, CTX)

    def distance(samples: Array) -> float:
        kinds = {"samples": samples, "holdout": holdout, "initial": real}
        features = {kind: metric.features.extract({"image": rows}, prepared, CTX) for kind, rows in kinds.items()}
        return metric.measure(Snapshot(1, Mean(), Sampler(), {}, features.get("samples", {}), {}, {}, {}, {}, features), CTX)[
            "pixel_frechet"
        ]

    blurred = ((real.astype(float) + real.mean(0)) / 2).astype(np.uint8)
    constant = np.tile(real.mean(0).astype(np.uint8), (100, 1, 1))
    assert 0 <= distance(real) < 0.1
    assert 5 * distance(real) < distance(blurred) < distance(constant)
