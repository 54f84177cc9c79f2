"""Modes and attributes of images: hand-worked shares, and checks before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from selfloop.columns import Columns, ColumnType
from selfloop.component import Context, Metric, Sampler, Source
from selfloop.errors import SpecError
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.image_modes import Attributes, Modes
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from tiny_components import Mean

CTX = Context(RandomStream(("measure",)))


def measure(metric: Metric, column: str, samples: Any, real: Any, classes: Any = None) -> Mapping[str, float]:
    kinds = {"samples": samples, "holdout": real}
    features = {kind: {column: np.asarray(rows, np.float32)} for kind, rows in kinds.items() if rows is not None}
    prepared = {} if classes is None else {"classes": np.asarray(classes)}
    return metric.measure(Snapshot(1, Mean(), Sampler(), {}, features.get("samples", {}), {}, {}, {}, prepared, features), CTX)


def measure_modes(samples: Any, real: Any, **settings: Any) -> Mapping[str, float]:
    return measure(Modes(**settings), "probabilities", samples, real)


def mode_probabilities(modes: Any, n_modes: int, probability: float = 0.95) -> Any:
    """Probabilities of rows that belong to the given modes."""
    rest = (1 - probability) / (n_modes - 1)
    return np.eye(n_modes)[np.asarray(modes)] * (probability - rest) + rest


def test_shares_entropy_and_distance_are_the_hand_worked_ones() -> None:
    samples, real = mode_probabilities([0] * 50 + [1] * 25 + [2] * 25, 4), mode_probabilities([0, 1, 2, 3] * 5, 4)
    assert measure(Modes(), "probabilities", samples, real, classes=[3, 5, 7, 9]) == pytest.approx({
        "modes": 3, "mode_entropy": 1.5 * math.log(2), "mode_distance": 0.25, "mode_confusion": 0,
        "class_share_3": 0.5, "class_share_5": 0.25, "class_share_7": 0.25, "class_share_9": 0,
        **{f"class_share_{name}_real": 0.25 for name in (3, 5, 7, 9)},
    })  # fmt: skip


def test_a_mode_counts_from_a_tenth_of_its_uniform_share() -> None:
    real = mode_probabilities([0, 1], 2)
    assert measure_modes(mode_probabilities([0] * 95 + [1] * 5, 2), real)["modes"] == 2
    assert measure_modes(mode_probabilities([0] * 96 + [1] * 4, 2), real)["modes"] == 1


def test_rows_between_modes_are_confused() -> None:
    samples = np.concatenate([mode_probabilities([0] * 30, 3), mode_probabilities([1] * 10, 3, probability=0.6)])
    assert measure_modes(samples, samples)["mode_confusion"] == 0.25
    assert measure_modes(samples, samples, min_probability=0.5)["mode_confusion"] == 0


def test_a_single_mode_has_entropy_0_and_is_far_from_the_real_shares() -> None:
    values = measure_modes(mode_probabilities([4] * 9, 10), mode_probabilities(np.arange(100) % 10, 10))
    assert (values["modes"], values["mode_entropy"], values["mode_distance"]) == (1, 0, pytest.approx(0.9))


def test_shares_of_more_than_20_modes_are_not_listed() -> None:
    values = measure_modes(mode_probabilities(range(30), 30), mode_probabilities(range(30), 30))
    assert list(values) == ["modes", "mode_entropy", "mode_distance", "mode_confusion"]
    assert values["modes"] == 30


def test_an_image_has_an_attribute_with_a_probability_above_one_half() -> None:
    real = [[0.9, 0.6, 0.1, 0.6]] * 2 + [[0.1, 0.4, 0.2, 0.3]] * 2
    samples = [[0.8, 0.4, 0.9, 0.55]] + [[0.7, 0.1, 0.2, 0.3]] * 3
    assert measure(Attributes(names=("glasses", "hat", "male", "smile")), "attributes", samples, real) == pytest.approx({
        "attributes": 2,  # no sample has a hat, and no real image is male
        "attribute_distance": (0.5 + 0.5 + 0.25 + 0.25) / 4,
        "attribute_share_glasses": 1, "attribute_share_glasses_real": 0.5,
        "attribute_share_hat": 0, "attribute_share_hat_real": 0.5,
        "attribute_share_male": 0.25, "attribute_share_male_real": 0,
        "attribute_share_smile": 0.25, "attribute_share_smile_real": 0.5,
    })  # fmt: skip


def test_attributes_without_names_are_numbered() -> None:
    values = measure(Attributes(), "attributes", [[1, 0]], [[1, 1]])
    assert (values["attribute_share_0"], values["attribute_share_1"]) == (1, 0)


@pytest.mark.parametrize("names", [("one",), ("a", "a"), ("a", "b", "c")])
def test_a_wrong_number_of_names_is_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.attributes\.names: got {len(names)} names for 2 attributes"):
        measure(Attributes(names=names), "attributes", [[1, 0]], [[1, 1]])


def test_features_without_attributes_are_an_error() -> None:
    with pytest.raises(SpecError, match=r"metrics\.attributes\.features: got features without attributes"):
        measure(Attributes(), "probabilities", [[1, 0]], [[1, 1]])


@dataclass(frozen=True, kw_only=True)
class Faces(Source):
    """Images with attributes, or without."""

    name: ClassVar[str] = "faces"
    attributes: int = 2

    def schema(self) -> Mapping[str, ColumnType]:
        columns = {"image": ColumnType("uint8", (8, 8))}
        return {**columns, "attributes": ColumnType("uint8", (self.attributes,))} if self.attributes else columns

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("source", "metric", "message"),
    [
        (Faces(), Attributes(names=("a", "b", "c")), r"metrics\.attributes\.names: got 3 names for 2 attributes"),
        (Faces(attributes=0), Attributes(), r"metrics\.attributes: got .* rows of faces with no column 'attributes'"),
        (Faces(), Attributes(features=ImageFeatureExtractor(kind="pixels")), r"metrics\.attributes: got .* kind 'pixels'"),
        (Faces(), Attributes(names=("a", "b")), ""),
    ],
)
def test_attributes_that_cannot_be_learned_are_an_error_before_any_work(
    source: Source, metric: Attributes, message: str
) -> None:
    with pytest.raises(SpecError, match=message) if message else nullcontext():
        metric.check(source, Sampler())


@pytest.mark.parametrize(("metric", "column"), [(Modes(), "probabilities"), (Attributes(), "attributes")])
def test_without_sampled_rows_there_is_no_value(metric: Metric, column: str) -> None:
    assert measure(metric, column, None, [[1, 0]]) == {}
