"""Modes and attributes of images: hand-worked shares, and what the criteria make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from selfloop.component import Context, Family, Metric, Sampler, Snapshot, Source
from selfloop.engine.run import resolved_points
from selfloop.errors import SpecError
from selfloop.metrics.image_features import ImageFeatureExtractor
from selfloop.metrics.image_modes import Attributes, Modes
from selfloop.rng import RandomStream
from selfloop.sources.image_arrays import Digits
from selfloop.spec.spec import Spec
from selfloop.types import ColumnType

CTX = Context(RandomStream(("measure",)))


def measure(metric: Metric, column: str, new: Any, real: Any, classes: Any = None) -> Mapping[str, float]:
    known = {"new": new, "holdout": real}
    rows = {kind: {column: np.asarray(each, np.float32)} for kind, each in known.items() if each is not None}
    prepared = {} if classes is None else {"classes": np.asarray(classes)}
    return metric.measure(Snapshot(1, Family(), Sampler(), {}, {}, rows.get("holdout", {}), {}, {}, prepared, rows), CTX)


def of_modes(modes: Any, count: int, sure: float = 0.95) -> Any:
    """Probabilities of rows that belong to the given modes."""
    rest = (1 - sure) / (count - 1)
    return np.eye(count)[np.asarray(modes)] * (sure - rest) + rest


def test_shares_entropy_and_distance_are_the_hand_worked_ones() -> None:
    new, real = of_modes([0] * 50 + [1] * 25 + [2] * 25, 4), of_modes([0, 1, 2, 3] * 5, 4)
    found = measure(Modes(), "probabilities", new, real, classes=[3, 5, 7, 9])
    assert found == pytest.approx({
        "modes": 3, "mode_entropy": 1.5 * math.log(2), "mode_distance": 0.25, "mode_confusion": 0,
        "class_share_3": 0.5, "class_share_5": 0.25, "class_share_7": 0.25, "class_share_9": 0,
        **{f"class_share_{name}_real": 0.25 for name in (3, 5, 7, 9)},
    })  # fmt: skip


def test_a_mode_is_left_with_a_tenth_of_its_fair_share() -> None:
    real = of_modes([0, 1], 2)
    assert measure(Modes(), "probabilities", of_modes([0] * 95 + [1] * 5, 2), real)["modes"] == 2
    assert measure(Modes(), "probabilities", of_modes([0] * 96 + [1] * 4, 2), real)["modes"] == 1


def test_rows_between_modes_are_confused() -> None:
    new = np.concatenate([of_modes([0] * 30, 3), of_modes([1] * 10, 3, sure=0.6)])
    assert measure(Modes(), "probabilities", new, new)["mode_confusion"] == 0.25
    assert measure(Modes(sure=0.5), "probabilities", new, new)["mode_confusion"] == 0


def test_one_mode_left_has_entropy_0_and_is_far_from_the_real_shares() -> None:
    found = measure(Modes(), "probabilities", of_modes([4] * 9, 10), of_modes(np.arange(100) % 10, 10))
    assert (found["modes"], found["mode_entropy"], found["mode_distance"]) == (1, 0, pytest.approx(0.9))


def test_many_modes_have_no_number_each() -> None:
    found = measure(Modes(), "probabilities", of_modes(range(30), 30), of_modes(range(30), 30))
    assert not [name for name in found if name.startswith("class_share")]
    assert found["modes"] == 30


def test_attributes_are_counted_where_they_are_more_probable_than_not() -> None:
    real = [[0.9, 0.6, 0.1, 0.6]] * 2 + [[0.1, 0.4, 0.2, 0.3]] * 2
    new = [[0.8, 0.4, 0.9, 0.55]] + [[0.7, 0.1, 0.2, 0.3]] * 3
    found = measure(Attributes(names=("glasses", "hat", "male", "smile")), "attributes", new, real)
    assert found == pytest.approx({
        "attributes": 2,  # hats are gone, and the classifier knows no men among real rows
        "attribute_distance": (0.5 + 0.5 + 0.25 + 0.25) / 4,
        "attribute_share_glasses": 1, "attribute_share_glasses_real": 0.5,
        "attribute_share_hat": 0, "attribute_share_hat_real": 0.5,
        "attribute_share_male": 0.25, "attribute_share_male_real": 0,
        "attribute_share_smile": 0.25, "attribute_share_smile_real": 0.5,
    })  # fmt: skip


def test_attributes_without_names_have_their_places() -> None:
    found = measure(Attributes(), "attributes", [[1, 0]], [[1, 1]])
    assert (found["attribute_share_0"], found["attribute_share_1"]) == (1, 0)


@pytest.mark.parametrize("names", [("one",), ("a", "a"), ("a", "b", "c")])
def test_names_that_do_not_fit_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match=rf"metrics\.attributes\.names: got {len(names)} names for 2 attributes"):
        measure(Attributes(names=names), "attributes", [[1, 0]], [[1, 1]])


def test_features_without_attributes_are_refused() -> None:
    with pytest.raises(SpecError, match=r"metrics\.attributes\.features: they tell no attributes\. Take kind 'classifier'"):
        measure(Attributes(), "probabilities", [[1, 0]], [[1, 1]])


@dataclass(frozen=True, kw_only=True)
class Faces(Digits):
    """Digits with attributes, if the settings name some."""

    attributes: int = 2

    def schema(self) -> Mapping[str, ColumnType]:
        return {**super().schema(), **({"attributes": ColumnType("uint8", (self.attributes,))} if self.attributes else {})}


@pytest.mark.parametrize(
    ("source", "metric", "says"),
    [
        (Faces(), Attributes(names=("a", "b", "c")), r"metrics\.attributes\.names: got 3 names for 2 attributes"),
        (Faces(attributes=0), Attributes(), r"metrics\.attributes: learns .* digits gives none as it is set"),
        (Faces(), Attributes(features=ImageFeatureExtractor(kind="pixels")), r"metrics\.attributes: .* kind is 'pixels'"),
        (Faces(), Attributes(names=("a", "b")), ""),
    ],
)
def test_attributes_that_cannot_be_learned_are_refused_before_any_work(source: Source, metric: Metric, says: str) -> None:
    spec = Spec(source=source, family="vae", n=10, holdout=5, generations=2, policies=["replace"], metrics=[metric])
    with pytest.raises(SpecError, match=says) if says else nullcontext():
        resolved_points(spec)


@pytest.mark.parametrize(("metric", "column"), [(Modes(), "probabilities"), (Attributes(), "attributes")])
def test_without_sampled_rows_there_is_no_number(metric: Metric, column: str) -> None:
    assert measure(metric, column, None, [[1, 0]]) == {}


@pytest.mark.parametrize("sure", [0, 1.5, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(sure: float) -> None:
    with pytest.raises(SpecError, match=r"metrics\.modes\.sure"):
        Modes(sure=sure)
