"""Trends are distinguished if the seeds allow it, and a wrong trend is rarely decided."""

import numpy as np
import pytest
from scipy import stats

from selfloop.stats.intervals import mean_interval
from selfloop.stats.trend import (
    TRENDS,
    describe_trend,
    fit_trend,
    inflection_point,
    late_change,
    late_slopes,
    rise_after_minimum,
)

MARGIN = 0.02
SHAPES = {
    "constant": lambda t: np.ones_like(t),
    "saturating": lambda t: np.cumsum(t**-2.0),
    "log": lambda t: np.cumsum(1 / t),
    "linear": lambda t: t,
    "exponential": lambda t: np.exp(0.15 * (t - 1)),
}


def planted(kind, rng, seeds=20, generations=20, scale=0.01):
    """Chains around a trend: a random walk, as of real chains, plus noise of the measurement."""
    mean = SHAPES[kind](np.arange(1.0, generations + 1))
    walk = np.cumsum(rng.normal(size=(seeds, generations)), axis=1) / generations**0.5
    return mean + scale * (walk + rng.normal(size=walk.shape))


@pytest.mark.parametrize("kind", TRENDS)
def test_a_planted_trend_is_found(kind):
    trend = fit_trend(planted(kind, np.random.default_rng(11)), MARGIN)
    assert trend.kind == kind


@pytest.mark.parametrize("seeds", [5, 30])
@pytest.mark.parametrize("kind", TRENDS)
def test_a_wrong_trend_is_rarely_decided(kind, seeds):
    rng = np.random.default_rng(13)
    kinds = [fit_trend(planted(kind, rng, seeds=seeds, generations=12, scale=0.1), MARGIN).kind for _ in range(12)]
    assert sum(each not in (kind, None) for each in kinds) <= 1


def chains(accumulate, rng, seeds=50, generations=30, d=10):
    weight = 1 / np.arange(1, generations + 1) if accumulate else np.ones(generations)
    errors = np.cumsum(rng.normal(size=(seeds, generations, d)) * weight[:, None], axis=1)
    return np.mean(errors**2, axis=2)


def test_the_trends_of_replace_and_accumulate_are_distinguished_although_generations_are_correlated():
    rng = np.random.default_rng(14)
    replaced = [fit_trend(chains(False, rng), MARGIN).kind for _ in range(6)]
    accumulated = [fit_trend(chains(True, rng), MARGIN).kind for _ in range(6)]
    assert replaced.count("linear") >= 3
    assert set(replaced) <= {"linear", None}
    assert accumulated.count("saturating") >= 4
    assert set(accumulated) <= {"saturating", None}


def test_a_curve_that_no_trend_fits_is_undecided():
    t = np.arange(1.0, 21)
    curves = np.where(t < 8, 1.0, 3.0) + 0.01 * np.random.default_rng(15).normal(size=(20, 20))
    trend = fit_trend(curves, MARGIN)
    assert trend.kind is None
    assert trend.reason == "no trend fits the curve"


def test_a_flat_curve_within_wide_errors_is_undecided():
    assert fit_trend(planted("constant", np.random.default_rng(16), seeds=4, scale=0.5), MARGIN).kind is None


@pytest.mark.parametrize("curves", [np.ones((1, 20)), np.ones((5, 5)), np.tile(np.arange(20.0), (5, 1))])
def test_too_few_seeds_or_generations_or_no_spread_are_undecided(curves):
    trend = fit_trend(curves, MARGIN)
    assert trend.kind is None


def test_generations_after_the_first_ended_chain_are_left_out():
    curves = planted("linear", np.random.default_rng(17))
    cut = curves.copy()
    cut[3, 12:] = np.nan
    assert fit_trend(cut, MARGIN) == fit_trend(curves[:, :12], MARGIN)


def test_a_trend_that_the_last_quarter_makes_is_undecided():
    t = np.arange(1.0, 21)
    curves = 1 + 5e-4 * np.exp(0.35 * t) + 0.05 * np.random.default_rng(24).normal(size=(10, 20)).cumsum(axis=1)
    trend = fit_trend(curves, MARGIN)
    assert trend.kind is None
    assert trend.reason.startswith("exponential has weight 1.00, but constant has weight 0.4")
    assert trend.reason.endswith("without the last quarter of the generations")


def test_a_slow_saturation_is_not_called_linear():
    t, rng = np.arange(1.0, 21), np.random.default_rng(25)
    walks = 0.05 * rng.normal(size=(20, 10, 20)).cumsum(axis=2)
    kinds = [fit_trend(2 - 0.95**t + walk, MARGIN).kind for walk in walks]
    assert sum(kind not in (None, "saturating") for kind in kinds) <= 1


@pytest.mark.parametrize(
    ("mean", "statement"),
    [
        (lambda t: t, "still rises at generation 20: change over the last half 10 [10, 10]"),
        (lambda t: 2 - 0.5**t, "has levelled off by generation 20: change"),
        (lambda t: 21 - t, "no longer rises at generation 20: change"),
    ],
)
def test_the_statement_about_a_rise_is_about_the_generations_of_the_run(mean, statement):
    curves = mean(np.arange(1.0, 21)) + 0.003 * np.random.default_rng(26).normal(size=(8, 20))
    sentence = describe_trend(curves, 1.0)
    assert sentence.startswith(statement)
    assert "margin 0.02; " in sentence
    noisy = mean(np.arange(1.0, 21)) + 300 * np.random.default_rng(27).normal(size=(8, 20))
    assert describe_trend(noisy, 1.0).startswith("may or may not still rise at generation 20: change")
    assert describe_trend(curves[:1], 1.0).startswith(
        "may or may not still rise at generation 20: the seeds give no interval; "
    )
    assert describe_trend(curves[:, :5], 1.0).endswith("margin 0.02.")  # too few generations for a form


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
