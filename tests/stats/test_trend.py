"""Rises at the end of a run and inflection points are called so if the seeds allow it."""

import numpy as np
import pytest
from scipy import stats

from selfloop.stats.intervals import mean_interval
from selfloop.stats.trend import (
    describe_late_change,
    inflection_point,
    last_step,
    late_change,
    late_slopes,
    rise_after_minimum,
)

SHAPES = {
    "constant": lambda t: np.ones_like(t),
    "saturating": lambda t: np.cumsum(t**-2.0),
    "linear": lambda t: t,
}


def planted(kind, rng, seeds=20, generations=20, scale=0.01):
    """Chains around a trend: a random walk, as of real chains, plus noise of the measurement."""
    mean = SHAPES[kind](np.arange(1.0, generations + 1))
    walk = np.cumsum(rng.normal(size=(seeds, generations)), axis=1) / generations**0.5
    return mean + scale * (walk + rng.normal(size=walk.shape))


@pytest.mark.parametrize(
    ("mean", "statement"),
    [
        (lambda t: t, "still rises at generation 20: change over the last half 10 [10, 10]"),
        (lambda t: 2 - 0.5**t, "has levelled off by generation 20: change"),
        (lambda t: 2 + t / 1000, "rose by less than the margin by generation 20: change"),
        (lambda t: 21 - t, "no longer rises at generation 20: change"),
    ],
)
def test_the_statement_about_a_rise_is_about_the_generations_of_the_run(mean, statement):
    curves = mean(np.arange(1.0, 21)) + 0.001 * np.random.default_rng(26).normal(size=(8, 20))

    def describe(curves):
        return describe_late_change(mean_interval(late_change(curves)), 0.02, 20, last_step(curves))

    assert describe(curves).startswith(statement)
    assert describe(curves).endswith("margin 0.02")
    noisy = mean(np.arange(1.0, 21)) + 300 * np.random.default_rng(27).normal(size=(8, 20))
    assert describe(noisy).startswith("may or may not still rise at generation 20: change")
    assert describe(curves[:1]) == "may or may not still rise at generation 20: the seeds give no interval"


def test_a_curve_on_a_plateau_rises_no_more_though_it_rose_within_its_last_half():
    curves = np.minimum(np.arange(1.0, 21), 16) + 0.003 * np.random.default_rng(28).normal(size=(8, 20))
    described = describe_late_change(mean_interval(late_change(curves)), 0.02, 20, last_step(curves))
    assert described.startswith(
        "rose, though its last step alone does not show it, by generation 20: change over the last half"
    )


def test_the_late_change_is_the_slope_over_the_last_half():
    curves = np.array([[9.0, 5.0, 0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 2.0, 2.0, 2.0, 2.0]])
    assert late_slopes(curves).tolist() == [1.0, 0.0]
    assert late_change(curves).tolist() == [3.0, 0.0]
    assert late_slopes(curves[:, :2]).tolist() == [-4.0, 0.0]


def dip(rng, lowest=5, seeds=30, generations=20, scale=0.05):
    t = np.arange(1.0, generations + 1)
    walk = np.cumsum(rng.normal(size=(seeds, generations)), axis=1) / generations**0.5
    return np.log(t / lowest) ** 2 + scale * walk


def test_the_inflection_point_is_the_generation_of_the_minimum():
    point = inflection_point(dip(np.random.default_rng(18)))
    assert point.low <= 5 <= point.high
    assert abs(point.estimate - 5) <= 1
    assert point.high - point.low <= 6


def test_the_interval_of_the_inflection_point_covers_it_and_not_a_wrong_generation():
    rng = np.random.default_rng(19)
    points = [inflection_point(dip(rng, scale=0.2)) for _ in range(60)]
    assert sum(i is not None and i.low <= 5 <= i.high for i in points) >= 57
    assert sum(i is not None and i.low <= 9 <= i.high for i in points) < 30


def test_monotone_and_flat_curves_have_no_inflection_point():
    rng = np.random.default_rng(20)
    assert inflection_point(planted("linear", rng)) is None
    assert inflection_point(-planted("saturating", rng)) is None
    flat = [inflection_point(planted("constant", rng)) for _ in range(100)]
    assert sum(i is not None for i in flat) <= 5


def test_one_seed_shows_a_minimum_without_limits():
    # GPT-2 9M under accumulate, the authors' single rerun (Kazdan et al. 2025, figure 4)
    point = inflection_point(np.array([[1.815, 1.781, 1.777, 1.779, 1.782, 1.796]]))
    assert (point.estimate, point.low, point.high, point.n) == (3, None, None, 1)


def test_a_curve_with_an_ended_chain_has_no_inflection_point():
    curves = dip(np.random.default_rng(21))
    curves[0, -1] = np.nan
    assert inflection_point(curves) is None


def test_the_rise_after_the_minimum_is_last_minus_lowest_with_a_corrected_interval():
    curves = np.array([[3.0, 1.0, 2.0], [3.0, 1.2, 2.6], [3.2, 1.1, 2.1]])
    interval, rises = rise_after_minimum(curves), np.array([1.0, 1.4, 1.0])
    assert interval.estimate == pytest.approx(rises.mean())
    half_width = stats.t.ppf(1 - 0.05 / 6, 2) * stats.sem(rises)
    assert (interval.low, interval.high) == pytest.approx((rises.mean() - half_width, rises.mean() + half_width))
    assert rise_after_minimum(curves[:1]).low is None


def test_the_rise_of_a_flat_curve_is_significant_no_more_often_than_stated():
    rng = np.random.default_rng(22)
    flat = [rng.normal(size=(5, 10)) for _ in range(300)]
    limit = 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)

    def uncorrected(curves):
        return mean_interval(curves[:, -1] - curves[:, curves.mean(axis=0).argmin()])

    assert sum((rise_after_minimum(curves).low or 0) > 0 for curves in flat) <= limit
    assert sum((uncorrected(curves).low or 0) > 0 for curves in flat) > limit
