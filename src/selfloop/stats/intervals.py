"""Intervals over seeds. The seed is the unit of replication. An interval that the seeds cannot support is undefined.

NaN in a curve: the chain has ended. Means are undefined from there on; medians count the ended chain as worst.

Running a spec again with more seeds is another look at the same question. Answers (verdicts, comparisons) of a run spend
the 5 % of false answers over its looks. Intervals that nothing is decided on have 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from selfloop.columns import Floats, Ints
from selfloop.component import Better

LEVEL = 0.95  # default coverage of every interval
FIRST_LOOK_SHARE = 0.8  # of the false answers; each later look has half of those that are left
MAX_LOG_VARIANCE = 50.0  # beyond it, means over seeds have no meaning
Moments = tuple[Floats, Floats, Floats | Ints]  # mean, its standard error, degrees of freedom; one per generation
_LOOK: ContextVar[int] = ContextVar("look", default=0)  # 0: outside a run


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence limits over n seeds; None if the seeds do not define it."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """Values of every generation over the seeds, NaN if undefined: mean with Student-t limits, median, number of chains."""

    mean: Floats
    low: Floats
    high: Floats
    median: Floats
    surviving: Ints  # chains that have a value


@contextmanager
def at_look(look: int) -> Iterator[None]:
    """Inside it, intervals and answers have the level of the look with this number, from 1."""
    token = _LOOK.set(look)
    try:
        yield
    finally:
        _LOOK.reset(token)


def level_of_look(look: int) -> float:
    """The coverage of intervals that answers rest on: 96 % at the first look, then 99.5 %, 99.75 %, ...; 95 % for 0.

    The false answers of all looks add up to at most 5 %, however many there are.
    """
    share = 1.0 if look == 0 else FIRST_LOOK_SHARE if look == 1 else (1 - FIRST_LOOK_SHARE) / 2 ** (look - 1)
    return 1 - (1 - LEVEL) * share


def answer_level(later: int = 0) -> float:
    """The level of the look inside `at_look`, or of a number of looks later; 95 % outside."""
    return level_of_look(_LOOK.get() and _LOOK.get() + later)


def summarize_seeds(curves: Floats, better: Better = "lower", *, positive: bool = False) -> SeedSummary:
    """The summary of (seeds, generations) curves. `better` (as of the metric) decides the rank of ended chains.

    If the best value is at neither end, the median is undefined after the first end of a chain, as the mean is.
    `positive` as in `mean_interval`.
    """
    mean, low, high = _mean_and_limits(curves, LEVEL, positive)
    worst = np.inf if better == "lower" else -np.inf if better == "higher" else np.nan
    median = np.median(np.where(np.isnan(curves), worst, curves), axis=0)
    return SeedSummary(
        mean=mean, low=low, high=high, median=np.where(np.isfinite(median), median, np.nan),
        surviving=np.sum(~np.isnan(curves), axis=0),
    )  # fmt: skip


def mean_interval(values: Floats, level: float | None = None, *, positive: bool = False) -> Interval:
    """The mean over seeds with Student-t limits; no estimate if a chain has ended, no limits if all values are equal.

    `positive`: of a metric whose lowest possible value is 0. Its limits are mean / f and mean * f by the delta method on the
    log of the mean, log f = half width / mean, with the variance that the tail of skewed values adds, at most as much again.
    They are Student's if the spread is small. 95 % limits miss the mean of lognormal values in 5 to 6 % (standard deviation of
    the log 0.3) and 7 to 10 % (1) of samples of 3 to 20 seeds; Student's in 6 to 7 % and 13 to 18 %.
    """
    mean, low, high = _mean_and_limits(values, level, positive)
    return _interval(mean, low, high, len(values))


def difference(a: Floats, b: Floats) -> Floats:
    """a - b, with 0 in place of rounding errors: equal curves differ by nothing, however they were computed."""
    differences = a - b
    return np.where(np.abs(differences) <= 1e-12 * np.maximum(np.abs(a), np.abs(b)), 0.0, differences)


def paired_difference(curves_a: Floats, curves_b: Floats, level: float | None = None) -> list[Interval]:
    """Mean of a - b at every generation; row s of both curves (seeds, generations) is the same seed."""
    if curves_a.shape != curves_b.shape:
        raise ValueError(f"paired_difference: curves of shapes {curves_a.shape} and {curves_b.shape}; expected equal shapes.")
    return student_intervals(seed_moments(difference(curves_a, curves_b)), len(curves_a), level)


def seed_moments(values: Floats) -> Moments:
    """Mean over seeds (the first axis), its standard error, and the degrees of freedom of Student's t."""
    return *mean_and_error(values), np.array(max(len(values) - 1, 1))


def independent_moments(a: Floats, b: Floats) -> Moments:
    """Mean of a minus mean of b over seeds of their own, its standard error, and Welch's degrees of freedom (1947)."""
    (mean, error, freedom), (other, other_error, other_freedom) = seed_moments(a), seed_moments(b)
    variance = error**2 + other_error**2
    return mean - other, np.sqrt(variance), variance**2 / (error**4 / freedom + other_error**4 / other_freedom)


def student_intervals(moments: Moments, n: int, level: float | None = None) -> list[Interval]:
    """Intervals of n seeds with Student-t limits, one per generation, from what the functions above return."""
    from scipy.special import stdtrit

    mean, error, freedom = moments
    half = stdtrit(freedom, (1 + (level or answer_level())) / 2) * error
    return [_interval(*each, n) for each in zip(mean, mean - half, mean + half, strict=True)]


def ratio_interval(values: Floats, base: Floats, level: float | None = None) -> Interval:
    """Mean of `values` over mean of `base`, paired by seed: a multiplier if `base` is generation 1.

    Limits of Fieller (1954): a ratio r is inside if Student's test does not reject that the mean of values - r base is 0. They
    are never below 0. There is no upper limit if the mean of `base` may be 0, and no interval unless both means are above 0.
    Multipliers of laws are ratios of expectations too, so both agree without bias at many seeds.
    """
    from scipy.special import stdtrit

    n, top, bottom = len(values), float(np.mean(values)), float(np.mean(base))
    if not (top >= 0 and bottom > 0):
        return Interval(None, None, None, n)
    if n < 2 or top == 0 or not np.ptp(values / top - base / bottom) > 1e-12:  # also if a chain has ended
        return _interval(top / bottom, np.nan, np.nan, n)
    quantile = float(stdtrit(n - 1, (1 + (level or answer_level())) / 2))
    (xx, xy), (_, yy) = np.cov(values / top, base / bottom) * quantile**2 / n
    # The limits solve (1 - yy) r^2 - 2 (1 - xy) r + (1 - xx) = 0, in units of the estimate.
    larger = 1 - xy + np.sqrt(max((1 - xy) ** 2 - (1 - xx) * (1 - yy), 0.0))
    high = larger / (1 - yy) if yy < 1 else np.nan
    low = (1 - xx) / larger if xx < 1 else 0.0 if yy < 1 else np.nan
    return _interval(top / bottom, low * top / bottom, high * top / bottom, n)


def median_interval(values: Floats, level: float | None = None) -> Interval:
    """The median over seeds with two order statistics as limits; the value of an ended chain must be +-infinity.

    No assumption on the distribution: the k-th smallest and k-th largest of n values miss the median with probability
    2 P(Binomial(n, 1/2) < k). Undefined if even the extremes miss it too often (fewer than six seeds at 95 %).
    A limit is None if it is the value of an ended chain or if both limits are equal.
    """
    from scipy.special import bdtr

    n, ranked = len(values), np.sort(values)
    depths = [k for k in range(1, n // 2 + 1) if 2 * bdtr(k - 1, n, 0.5) <= 1 - (level or answer_level())]
    middle = np.median(ranked)
    if not depths or ranked[depths[-1] - 1] == ranked[-depths[-1]]:
        return _interval(middle, np.nan, np.nan, n)
    return _interval(middle, ranked[depths[-1] - 1], ranked[-depths[-1]], n)


def mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the first axis, NaN if a chain has ended, and its standard error, also NaN for one seed or without spread."""
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan)
    spread = np.ptp(values, axis=0)
    # Equal values do not mean that the mean is known exactly, so they get no interval. Differences of 1e-12 are rounding,
    # and the squares of spreads below 1e-150 underflow.
    varies = spread > np.maximum(1e-12 * np.abs(values).max(axis=0), 1e-150)
    return mean, np.where(varies, values.std(axis=0, ddof=1) / np.sqrt(len(values)), np.nan)


def tail_variance(values: Floats) -> Floats:
    """The variance that rare large values of a skewed distribution add, and that a sample without them lacks.

    Of a lognormal distribution with the upper half of the sample it is exp(s^2) - 1 - s^2 squared means; negligible for small
    spreads s of the log. A value of 0 has no log and counts as the mean.
    """
    mean = np.maximum(values.mean(axis=0), np.finfo(float).tiny)
    logs = np.log(np.where(values > 0, values, mean))
    above = np.maximum(logs - np.median(logs, axis=0), 0)
    s_squared = np.minimum(2 * np.sum(above**2, axis=0) / max(len(values) - 1, 1), MAX_LOG_VARIANCE)
    return np.asarray(mean**2 * (np.expm1(s_squared) - s_squared), np.float64)


def _mean_and_limits(values: Floats, level: float | None, positive: bool = False) -> tuple[Floats, Floats, Floats]:
    """Mean over the first axis, and the limits of its interval, undefined as in `mean_and_error`."""
    from scipy.special import stdtrit

    mean, error = mean_and_error(values)
    quantile = float(stdtrit(max(len(values) - 1, 1), (1 + (level or answer_level())) / 2))
    if not positive:
        return mean, mean - quantile * error, mean + quantile * error
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # neither a mean of 0 nor an infinite limit is one
        tail = np.minimum(tail_variance(values) / len(values), error**2)  # more makes few limits right and many absurd
        factor = np.exp(quantile * np.sqrt(error**2 + tail) / mean)
    factor = np.where(np.isfinite(factor), factor, np.nan)
    return mean, mean / factor, mean * factor


def _interval(estimate: Floats | float, low: Floats | float, high: Floats | float, n: int) -> Interval:
    """The interval of n seeds; None in place of numbers that are not finite."""
    middle, lower, upper = (float(value) if np.isfinite(value) else None for value in (estimate, low, high))
    return Interval(middle, lower, upper, n)
