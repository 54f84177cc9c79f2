"""Intervals over seeds. The seed is the unit of replication. An interval that the seeds cannot support is undefined.

NaN in a curve: the chain has ended. Means are undefined from there on; medians count the ended chain as worst.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfloop.columns import Floats, Ints
from selfloop.component import Better

LEVEL = 0.95  # default coverage of every interval


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


def summarize_seeds(curves: Floats, better: Better = "lower") -> SeedSummary:
    """The summary of (seeds, generations) curves. `better` (as of the metric) decides the rank of ended chains.

    If the best value is at neither end, the median is undefined after the first end of a chain, as the mean is.
    """
    mean, half_width = _mean_and_half_width(curves, LEVEL)
    worst = np.inf if better == "lower" else -np.inf if better == "higher" else np.nan
    median = np.median(np.where(np.isnan(curves), worst, curves), axis=0)
    return SeedSummary(
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        median=np.where(np.isfinite(median), median, np.nan),
        surviving=np.sum(~np.isnan(curves), axis=0),
    )


def before_first_end(curves: Floats) -> Floats:
    """The generations at which every chain has a value."""
    return curves[:, : int(np.cumprod(~np.isnan(curves).any(axis=0)).sum())]


def mean_interval(values: Floats, level: float = LEVEL) -> Interval:
    """The mean over seeds with Student-t limits; no estimate if a chain has ended, no limits if all values are equal."""
    mean, half_width = _mean_and_half_width(values, level)
    return _interval(mean, mean - half_width, mean + half_width, len(values))


def paired_difference(curves_a: Floats, curves_b: Floats, level: float = LEVEL) -> list[Interval]:
    """Mean of a - b at every generation; row s of both curves (seeds, generations) is the same seed."""
    if curves_a.shape != curves_b.shape:
        raise ValueError(f"paired_difference: curves of shapes {curves_a.shape} and {curves_b.shape}; expected equal shapes.")
    return [mean_interval(difference, level) for difference in (curves_a - curves_b).T]


def ratio_interval(values: Floats, base: Floats, level: float = LEVEL) -> Interval:
    """Mean of `values` over mean of `base`, paired by seed: a multiplier if `base` is generation 1.

    Limits by the delta method on the log of the ratio of means: d log r = dx / E x - dy / E y. Undefined unless both
    means are above 0. Multipliers of laws are ratios of expectations too, so both agree without bias at many seeds.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        top, bottom = float(np.mean(values)), float(np.mean(base))
        if not (top > 0 and bottom > 0):
            return Interval(None, None, None, len(values))
        _, half_width = _mean_and_half_width(values / top - base / bottom, level)
    factor = np.exp(half_width)
    return _interval(top / bottom, top / bottom / factor, top / bottom * factor, len(values))


def median_interval(values: Floats, level: float = LEVEL) -> Interval:
    """The median over seeds with two order statistics as limits; the value of an ended chain must be +-infinity.

    No assumption on the distribution: the k-th smallest and k-th largest of n values miss the median with probability
    2 P(Binomial(n, 1/2) < k). Undefined if even the extremes miss it too often (fewer than six seeds at 95 %).
    A limit is None if it is the value of an ended chain or if both limits are equal.
    """
    from scipy.special import bdtr

    n, ranked = len(values), np.sort(values)
    depths = [k for k in range(1, n // 2 + 1) if 2 * bdtr(k - 1, n, 0.5) <= 1 - level]
    middle = np.median(ranked)
    if not depths or ranked[depths[-1] - 1] == ranked[-depths[-1]]:
        return _interval(middle, np.nan, np.nan, n)
    return _interval(middle, ranked[depths[-1] - 1], ranked[-depths[-1]], n)


def _mean_and_half_width(values: Floats, level: float) -> tuple[Floats, Floats]:
    """Mean over the first axis, and half the width of its Student-t interval.

    The mean is NaN if a chain has ended, the half width also for one seed or without spread.
    """
    from scipy.special import stdtrit

    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan)
    spread = np.ptp(values, axis=0)
    # Equal values do not mean that the mean is known exactly, so they get no interval. Differences of 1e-12 are rounding,
    # and the squares of spreads below 1e-150 underflow.
    varies = spread > np.maximum(1e-12 * np.abs(values).max(axis=0), 1e-150)
    error = np.where(varies, values.std(axis=0, ddof=1) / np.sqrt(len(values)), np.nan)
    return mean, float(stdtrit(len(values) - 1, (1 + level) / 2)) * error


def _interval(estimate: Floats | float, low: Floats | float, high: Floats | float, n: int) -> Interval:
    """The interval of n seeds; None in place of numbers that are not finite."""
    middle, lower, upper = (float(value) if np.isfinite(value) else None for value in (estimate, low, high))
    return Interval(middle, lower, upper, n)
