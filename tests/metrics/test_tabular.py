"""Metrics of tables: each against values worked out by hand, and against a wrong variant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from selfloop.columns import Columns, ColumnType, Ragged, select_rows
from selfloop.component import Context, Metric, Sampler, Source
from selfloop.errors import DataError, SpecError
from selfloop.families.copula.family import Copula
from selfloop.metrics.downstream import Downstream
from selfloop.metrics.tabular import (
    CorrelationDistance,
    Detectability,
    LostCategories,
    MarginalDistance,
    RecordDistance,
    association,
    column_distance,
    total_variation,
    wasserstein_1,
)
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.types import RowTake, TrainingRows

CTX = Context(RandomStream(("tabular",)))


@dataclass(frozen=True, kw_only=True)
class Shelf(Source):
    """Number a, category b, mask of a; the target is b."""

    name: ClassVar[str] = "shelf"
    target: str | None = "b"
    content: str = "category"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"a": ColumnType("float64"), "b": ColumnType("utf8", content=self.content), "a@missing": ColumnType("bool")}

    def target_column(self) -> str | None:
        return self.target

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        raise NotImplementedError


def table(a: Any, b: str, missing: Any = None) -> Columns:
    mask = np.zeros(len(b), bool) if missing is None else np.array(missing, bool)
    return {"a": np.array(a, float), "b": Ragged.of_bytes([letter.encode() for letter in b]), "a@missing": mask}


def random_table(n: int, seed: int, shift: float = 0.0, letters: str = "xyz", noise: float = 0.5) -> Columns:
    rng = np.random.default_rng(seed)
    codes = rng.integers(len(letters), size=n)
    return table(codes + noise * rng.standard_normal(n) + shift, "".join(letters[code] for code in codes))


def measure(
    metric: Metric, samples: Columns, holdout: Columns, initial: Columns, source: Source | None = None
) -> dict[str, float]:
    snap = Snapshot(1, Copula(), Sampler(), {}, samples, holdout, initial, {}, source=source or Shelf())
    return dict(metric.measure(snap, CTX))


def test_distances_of_numbers_and_categories_are_those_of_scipy_and_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(50), 2 * rng.standard_normal(70) + 1
    assert wasserstein_1(a, b) == pytest.approx(wasserstein_distance(a, b))
    assert wasserstein_1(a, a[::-1]) == 0
    assert wasserstein_1(np.array([0.0, 1.0]), np.array([0.0, 3.0])) == 1
    assert total_variation(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 3])) == pytest.approx(0.5)  # (1/4 + 1/4 + 1/4 + 1/4) / 2
    assert total_variation(np.array([0.0]), np.array([1.0])) == 1


def test_marginal_distance_is_the_mean_of_scaled_distances_of_columns() -> None:
    holdout = table([0, 1, 2, 3, 9], "xxyyz", [0, 0, 0, 0, 1])
    samples = table([1, 2, 3, 4], "xxxx")
    values = measure(MarginalDistance(), samples, holdout, holdout)
    assert values["marginal_distance_a"] == pytest.approx(1 / 1.5)  # a shift by 1; the interquartile range is 1.5
    assert values["marginal_distance_b"] == pytest.approx(0.6)
    assert values["marginal_distance_a@missing"] == pytest.approx(0.2)
    assert values["marginal_distance"] == pytest.approx((1 / 1.5 + 0.6 + 0.2) / 3)
    assert values["marginal_distance_real"] == 0
    with_missing = wasserstein_1(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 2, 3, 9]))  # a wrong variant
    assert with_missing / 1.5 != pytest.approx(values["marginal_distance_a"])


def test_scales_of_columns_do_not_change_the_distance_and_constant_columns_are_categories() -> None:
    a, b = random_table(300, 1), random_table(300, 2, shift=0.4)
    scaled = [{**rows, "a": 1000 * np.asarray(rows["a"])} for rows in (a, b)]
    assert measure(MarginalDistance(), a, b, a) == pytest.approx(measure(MarginalDistance(), *scaled, scaled[0]))
    assert column_distance(np.array([3.0, 3, 4]), np.full(5, 3.0), False) == pytest.approx(1 / 3)
    assert column_distance(np.full(3, np.nan), np.ones(3), False) == 1
    assert column_distance(np.array([0.0, 0, 1]), np.array([0.0, 0, 0, 0, 9]), False) == pytest.approx(  # an IQR of 0
        wasserstein_1(np.array([0.0, 0, 1]), np.array([0.0, 0, 0, 0, 9])) / 3.6
    )


def test_associations_have_their_textbook_values() -> None:
    a, b = np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1])
    assert association(a, a, (True, True)) == pytest.approx(1)
    assert association(a, b, (True, True)) == 0
    counts = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], [30, 10, 20, 40], axis=0).astype(float)
    assert association(*counts.T, (True, True)) == pytest.approx(np.sqrt((30 * 40 - 10 * 20) ** 2 / (40 * 60 * 50 * 50)))  # phi
    numbers = np.array([1.0, 3, 2, 6])  # means 2 and 4; between 4, in all 14
    assert association(a, numbers, (True, False)) == pytest.approx(np.sqrt(4 / 14))
    assert association(numbers, a, (False, True)) == pytest.approx(np.sqrt(4 / 14))
    assert association(numbers, -numbers, (False, False)) == pytest.approx(-1)
    assert association(np.append(numbers, np.nan), np.append(-numbers, 5), (False, False)) == pytest.approx(-1)
    assert association(np.ones(4), numbers, (False, False)) == 0


def test_correlation_distance_sees_shuffled_columns_that_marginal_distance_does_not() -> None:
    rows, holdout = random_table(2000, 1), random_table(2000, 2)
    shuffled = {**rows, "a": np.random.default_rng(0).permutation(np.asarray(rows["a"]))}
    right, wrong = (measure(CorrelationDistance(), samples, holdout, rows) for samples in (rows, shuffled))
    assert right["correlation_distance"] == right["correlation_distance_real"] < 0.02
    assert wrong["correlation_distance"] == pytest.approx(0.86 / 3, abs=0.03)  # eta is 0.86; two of three pairs are 0 in both
    marginals = [measure(MarginalDistance(), samples, holdout, rows)["marginal_distance"] for samples in (rows, shuffled)]
    assert marginals[0] == pytest.approx(marginals[1])


def test_a_classifier_cannot_tell_real_rows_apart_and_can_tell_shifted_ones() -> None:
    rows, holdout = random_table(400, 1), random_table(400, 2)
    values = measure(Detectability(), random_table(400, 3, shift=1.0), holdout, rows)
    pairs = [(random_table(400, 100 + 2 * s), random_table(400, 101 + 2 * s)) for s in range(6)]
    areas = [measure(Detectability(), a, b, a)["detectability"] for a, b in pairs]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)  # 4 standard errors of 0.018 / sqrt(6)
    assert values["detectability"] > 0.7
    assert measure(Detectability(), table(np.full(400, 50.0), "x" * 400), holdout, rows)["detectability"] > 0.99
    leaked = measure(Detectability(), holdout, holdout, rows)["detectability"]  # the same rows on both sides
    assert leaked < 0.5
    assert math.isnan(measure(Detectability(), select_rows(rows, np.arange(5)), holdout, rows)["detectability"])


def test_lost_categories_are_counted_beside_their_expected_number() -> None:
    initial = table(np.zeros(100), "x" * 90 + "y" * 9 + "z")
    values = measure(LostCategories(), table(np.zeros(50), "x" * 49 + "q"), initial, initial)
    assert values["lost_categories"] == pytest.approx(2 / 3)
    assert values["lost_categories_expected"] == pytest.approx((0.1**50 + 0.91**50 + 0.99**50) / 3)
    assert measure(LostCategories(), initial, initial, initial)["lost_categories"] == 0
    assert measure(LostCategories(), initial, initial, initial, Shelf(content="")) == {}


def test_a_copula_of_the_initial_rows_loses_categories_as_often_as_draws_of_them() -> None:
    initial = table(np.zeros(60), "a" * 20 + "b" * 15 + "c" * 10 + "d" * 6 + "e" * 4 + "f" * 2 + "g" * 2 + "h")
    params = Copula().fit(TrainingRows((RowTake(initial),)), CTX, None)
    draws = [Copula().sample(params, 60, Sampler(), {}, CTX.child("seed", s)) for s in range(300)]
    values = [measure(LostCategories(), samples, initial, initial) for samples in draws]
    lost, expected = (np.array([v[name] for v in values]) for name in ("lost_categories", "lost_categories_expected"))
    error = lost.std(ddof=1) / np.sqrt(300)
    assert abs(lost.mean() - expected[0]) < 4 * error
    shares = np.bincount(np.unique(initial["b"].to_bytes(), return_inverse=True)[1]) / 60  # type: ignore[union-attr]
    assert abs(lost.mean() - ((1 - shares) ** 30).mean()) > 4 * error  # a wrong variant: half of the draws


def test_record_distance_is_0_for_copies_and_1_for_unseen_rows() -> None:
    initial, holdout = random_table(500, 1), random_table(500, 2)
    copies = select_rows(initial, np.arange(0, 500, 2))
    values = measure(RecordDistance(), copies, holdout, initial)
    assert values["record_distance"] == pytest.approx(0, abs=1e-6)
    assert values["copied_records"] == 1
    assert values["copied_records_real"] == 0
    fresh = measure(RecordDistance(), random_table(500, 3), holdout, initial)
    assert fresh["record_distance"] == pytest.approx(1, abs=0.3)
    assert fresh["copied_records"] == 0
    half = {**copies, "b": Ragged.of_bytes([b"q"] * 250)}  # equal numbers, other categories
    assert measure(RecordDistance(), half, holdout, initial)["copied_records"] == 0


def test_the_distance_of_two_rows_is_that_of_their_definition() -> None:
    holdout = table([0, 2, 0, 2], "xyxy")  # standard deviation 1
    initial = table([0, 0], "xx", [0, 0])
    values = measure(RecordDistance(), table([3, 0], "xy", [0, 0]), holdout, initial)
    expected_samples = (3 + 1) / 2  # three standard deviations; another category
    expected_holdout = (0 + np.sqrt(4 + 1)) / 2
    assert values["record_distance"] == pytest.approx(expected_samples / expected_holdout)
    assert math.isnan(measure(RecordDistance(), initial, initial, initial)["record_distance"])


def test_at_most_max_rows_are_read_and_the_same_ones_at_every_generation() -> None:
    rows, holdout = random_table(400, 1), random_table(400, 2)
    few = measure(MarginalDistance(max_rows=50), rows, holdout, rows)
    assert few == measure(MarginalDistance(max_rows=50), rows, holdout, rows)
    assert few["marginal_distance"] != measure(MarginalDistance(), rows, holdout, rows)["marginal_distance"]


def test_a_classifier_of_samples_predicts_the_target_of_real_rows() -> None:
    rows, holdout = random_table(400, 1), random_table(400, 2)
    shuffled = {**rows, "a": np.random.default_rng(0).permutation(np.asarray(rows["a"]))}
    right, wrong = (measure(Downstream(), samples, holdout, rows) for samples in (rows, shuffled))
    assert right["downstream"] == right["downstream_real"] > 0.6
    assert right["downstream_ratio"] == 1
    assert wrong["downstream"] < 0.45
    assert wrong["downstream_ratio"] == wrong["downstream"] / wrong["downstream_real"]


def test_a_regression_of_samples_uses_categories_and_leaves_out_rows_without_an_outcome() -> None:
    source, rows, holdout = Shelf(target="a"), random_table(400, 1), random_table(400, 2)
    values = measure(Downstream(task="numbers"), rows, holdout, rows, source)
    assert values["downstream"] == pytest.approx(0.72, abs=0.08)  # the categories explain 2/3 of 2/3 + 1/4
    gone = np.arange(400) % 2 == 0
    wrong = {**rows, "a": np.where(gone, 1e6, np.asarray(rows["a"])), "a@missing": gone}
    assert measure(Downstream(task="numbers"), wrong, holdout, rows, source)["downstream"] == pytest.approx(0.72, abs=0.08)
    whole = {**rows, "a": np.arange(400.0)}
    with pytest.raises(DataError, match=r"column a has 400 different numbers\. Set 'numbers'"):
        measure(Downstream(), whole, whole, whole, source)
    with pytest.raises(DataError, match=r"column b has categories\. Set 'classes'"):
        measure(Downstream(task="numbers"), rows, holdout, rows)


def test_a_source_without_columns_of_tables_is_refused() -> None:
    from selfloop.sources.image_arrays import Digits

    with pytest.raises(SpecError, match="'detectability' measures columns of numbers and categories; digits has image"):
        Detectability().check(Digits(), Sampler())
