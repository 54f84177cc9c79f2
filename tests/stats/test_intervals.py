"""Intervals against scipy, hand-worked values and their coverage; undefined intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfloop.stats.intervals import mean_interval, median_interval, paired_difference, ratio_interval, summarize_seeds

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
