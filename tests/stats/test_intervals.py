"""Intervals against scipy, hand-worked values and their coverage; undefined intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfloop.stats.intervals import (
    at_look,
    level_of_look,
    mean_interval,
    median_interval,
    paired_difference,
    ratio_interval,
    summarize_seeds,
)

RNG = np.random.default_rng(20250)


def test_the_interval_of_a_mean_is_students():
    values = RNG.normal(3, 2, 12)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    interval = mean_interval(values)
    assert (interval.estimate, interval.low, interval.high, interval.n) == pytest.approx((values.mean(), low, high, 12))


@pytest.mark.parametrize("values", [[1.5], [1.5, 1.5, 1.5], [0.1 + 0.2, 0.3, 0.3]])
def test_one_seed_or_seeds_without_spread_have_no_limits(values):
    interval = mean_interval(np.array(values))
    assert interval.estimate == pytest.approx(values[0])
    assert interval.low is None
    assert interval.high is None


def test_an_ended_chain_stops_the_mean_and_counts_as_worst_in_medians():
    curves = np.array([[1.0, 2.0, np.nan], [2.0, 3.0, 5.0], [3.0, 4.0, 4.0]])
    summary = summarize_seeds(curves)
    assert summary.surviving.tolist() == [3, 3, 2]
    assert summary.mean[:2] == pytest.approx([2, 3])
    assert np.isnan(summary.mean[2])
    assert np.isnan(summary.low[2])
    assert summary.median.tolist() == [2, 3, 5]  # 4, 5, ended
    assert np.isnan(summarize_seeds(curves[:2]).median[2])  # between 5 and the ended chain
    assert summarize_seeds(curves, better="higher").median.tolist() == [2, 3, 4]  # ended, 4, 5
    assert np.isnan(summarize_seeds(curves, better="").median[2])


def test_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(7)
    level = rng.normal(0, 100, (20, 1))
    a, b = level + rng.normal(1, 1, (20, 3)), level + rng.normal(0, 1, (20, 3))
    for interval in paired_difference(a, b):
        assert interval.low is not None
        assert 0 < interval.low < 1 < interval.high < 2.5
    assert paired_difference(a, a)[0].low is None  # identical curves: no spread, no limits


def test_curves_of_different_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="expected equal shapes"):
        paired_difference(np.zeros((2, 3)), np.zeros((3, 3)))


def coverage(interval_of, truth, draws=1000):
    rng = np.random.default_rng(7)
    intervals = [interval_of(rng) for _ in range(draws)]
    return np.mean([i.low is not None and i.low <= truth <= i.high for i in intervals])


def ratio(rng, seeds=40, growth=4.0, paired=True):
    base = rng.gamma(5, size=seeds)
    later = growth * (base if paired else rng.gamma(5, size=seeds)) * rng.gamma(20, 1 / 20, size=seeds)
    return ratio_interval(later, base)


def test_a_multiplier_covers_the_ratio_of_expectations():
    assert 0.92 < coverage(ratio, 4.0) < 0.98
    assert 0.92 < coverage(lambda rng: ratio(rng, paired=False), 4.0) < 0.98
    assert coverage(ratio, 4.0 * 1.15) < 0.8  # a wrong multiplier is not covered


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_multiplier_of_skewed_values_is_covered_and_never_below_0(seeds):
    rng = np.random.default_rng(seeds)
    intervals = [ratio_interval(4 * rng.lognormal(0, 1, seeds), rng.lognormal(0, 1, seeds)) for _ in range(1000)]
    assert all(i.low is None or i.low >= 0 for i in intervals)
    missed = [(i.low is not None and i.low > 4) or (i.high is not None and i.high < 4) for i in intervals]
    assert np.mean(missed) <= 0.05  # 9 % by the delta method on the log


def test_a_base_that_may_be_0_gives_no_upper_limit():
    interval = ratio_interval(np.array([10.0, 11.0, 12.0]), np.array([0.1, 3.0, 0.2]))
    assert interval.low is not None
    assert interval.low > 0
    assert interval.high is None
    assert ratio_interval(np.array([1.0, 9.0, 1.0]), np.array([0.1, 3.0, 0.2])).low is None  # neither mean is known


def test_a_ratio_without_spread_has_no_limits():
    base = RNG.gamma(5, size=6)
    assert (ratio_interval(0 * base, base).estimate, ratio_interval(0 * base, base).low) == (0.0, None)
    assert ratio_interval(3 * base, base).low is None


@pytest.mark.parametrize(
    ("draw", "mean", "most"),
    [  # share of 95 % intervals that miss the mean, at 3, 5, 10 and 20 seeds; Student's in brackets
        (lambda rng, n: rng.lognormal(0, 0.3, n), np.exp(0.045), 0.06),  # (6 %)
        (lambda rng, n: rng.lognormal(0, 1, n), np.exp(0.5), 0.09),  # (13 to 18 %)
        (lambda rng, n: rng.gamma(0.5, size=n), 0.5, 0.06),  # (11 to 18 %)
        (lambda rng, n: rng.gamma(2, size=n), 2.0, 0.06),  # (7 to 9 %)
        (lambda rng, n: rng.normal(1, 0.05, n), 1.0, 0.06),  # (5 %)
    ],
)
def test_intervals_of_positive_values_cover_means_better_and_stay_above_0(draw, mean, most):
    rng = np.random.default_rng(3)
    for seeds in (3, 5, 10, 20):
        samples = [draw(rng, seeds) for _ in range(700)]
        intervals = [mean_interval(values, positive=True) for values in samples]
        assert all(i.low is None or 0 < i.low < i.high for i in intervals)
        missed = np.mean([i.low is not None and not i.low <= mean <= i.high for i in intervals])
        student = np.mean([not i.low <= mean <= i.high for i in map(mean_interval, samples)])
        assert missed <= most + 2 * np.sqrt(most / 700)
        assert missed <= student + 0.01


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_share_that_is_often_0_has_an_interval_that_covers_it(seeds):
    rng = np.random.default_rng(4)
    intervals = [mean_interval(rng.binomial(50, 0.02, seeds) / 50, positive=True) for _ in range(700)]
    assert np.mean([i.low is None for i in intervals]) < 0.03  # if all values are equal; 12 % with the log of 0 as -708
    missed = [i.low is not None and not i.low <= 0.02 <= i.high for i in intervals]
    assert np.mean(missed) <= 0.05 + 2 * np.sqrt(0.05 / 700)


def test_the_limits_of_positive_values_agree_with_student_s_where_the_spread_is_small():
    values = RNG.normal(100, 0.1, 10)
    positive, student = mean_interval(values, positive=True), mean_interval(values)
    assert (positive.low, positive.high) == pytest.approx((student.low, student.high), rel=1e-6)
    summary = summarize_seeds(np.exp(RNG.normal(0, 1, (10, 3))), positive=True)
    assert (summary.low > 0).all()
    assert mean_interval(np.zeros(4), positive=True).low is None
    assert mean_interval(np.array([1e-9, 1.0, 1e10]), positive=True).low > 0


def test_answers_at_a_later_look_have_wider_intervals():
    values = RNG.normal(3, 2, 12)
    for look, level in ((1, 0.96), (2, 0.995), (3, 0.9975)):
        with at_look(look):
            interval = mean_interval(values)
        assert (interval.low, interval.high) == pytest.approx(stats.t.interval(level, 11, values.mean(), stats.sem(values)))
        assert level_of_look(look) == pytest.approx(level)
    assert mean_interval(values) == mean_interval(values, 0.95)


def test_a_multiplier_of_values_that_are_not_positive_is_undefined():
    assert ratio_interval(np.array([1.0, 2.0]), np.array([-1.0, 0.5])).estimate is None


def test_the_median_interval_covers_the_median_of_a_skewed_distribution():
    assert 0.95 <= coverage(lambda rng: median_interval(rng.exponential(size=15)), np.log(2)) < 0.99
    assert coverage(lambda rng: median_interval(rng.exponential(size=60)), 1.0) < 0.8  # the mean is not the median


def test_five_seeds_do_not_bound_a_median():
    assert median_interval(np.arange(5.0)).low is None
    assert median_interval(np.arange(6.0)).low == 0


def test_a_limit_on_an_ended_chain_is_undefined():
    interval = median_interval(np.array([1, 2, 3, 4, 5, 6, 7, np.inf, np.inf, np.inf]))
    assert interval.estimate == 5.5
    assert interval.low == 2
    assert interval.high is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.5, 0.99))
def test_an_interval_never_has_width_zero_and_holds_its_estimate(values, level):
    for interval in (mean_interval(np.array(values), level), median_interval(np.array(values), level)):
        if interval.low is not None and interval.high is not None:
            assert interval.low < interval.high
            assert interval.low <= interval.estimate <= interval.high


def test_adding_seeds_until_something_is_decided_rarely_gives_a_false_answer():
    rng = np.random.default_rng(13)
    samples = rng.normal(size=(600, 12))

    def is_decided(values, corrected):
        for look, n in enumerate((3, 5, 8, 12), 1):
            with at_look(look if corrected else 0):
                if (mean_interval(values[:n]).low or 0) > 0:
                    return True
        return False

    corrected, plain = (np.mean([is_decided(values, way) for values in samples]) for way in (True, False))
    assert corrected <= 0.025 + 2 * np.sqrt(0.025 / 600)
    assert plain > 0.05


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_of_skewed_values_are_never_absurd(n: int) -> None:
    values = np.random.default_rng(0).gamma(0.5, 2, (3000, n))
    limits = [mean_interval(each, 0.95, positive=True) for each in values]
    misses = np.mean([each.low is None or each.high is None or not each.low <= 1 <= each.high for each in limits])
    assert misses < 0.07
    assert max((each.high or 0) / (each.estimate or 1) for each in limits) < (1e4 if n == 3 else 100)
