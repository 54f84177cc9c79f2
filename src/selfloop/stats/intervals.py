"""Intervals over seeds. The seed is the unit; an interval that the seeds cannot support is undefined, never of width zero.

A NaN in a curve means that the chain has ended: means stop there, quantiles count the ended chain as worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.types import Floats, Ints

LEVEL = 0.95  # coverage of every interval unless asked otherwise


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence limits over n seeds; None where the seeds do not define it."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Per generation over seeds, NaN where undefined: mean with Student-t limits, quantiles, chains still alive."""

    mean: Floats
    low: Floats
    high: Floats
    quantiles: dict[float, Floats]
    surviving: Ints


def summarize_seeds(
    curves: Floats, better: str = "lower", quantiles: Sequence[float] = (0.1, 0.5, 0.9), level: float = LEVEL
) -> Summary:
    """The summary of (seeds, generations) curves; `better` ("lower", "higher", "") says where ended chains rank.

    Where neither direction is better, quantiles stop at the first ended chain, as the mean does.
    """
    mean, error = _mean_and_error(curves)
    reach = _student_quantile(len(curves) - 1, level) * error
    worst = {"lower": np.inf, "higher": -np.inf}.get(better, np.nan)
    ranked = np.sort(np.where(np.isnan(curves), worst, curves), axis=0)
    return Summary(
        mean, mean - reach, mean + reach, {q: _quantile(ranked, q) for q in quantiles}, np.sum(~np.isnan(curves), axis=0)
    )


def mean_interval(values: Floats, level: float = LEVEL) -> Interval:
    """The mean over seeds with Student-t limits; no estimate when a chain has ended, no limits without spread."""
    mean, error = _mean_and_error(values)
    reach = _student_quantile(len(values) - 1, level) * error
    return _interval(mean, mean - reach, mean + reach, len(values))


def paired_difference(curves_a: Floats, curves_b: Floats, level: float = LEVEL) -> list[Interval]:
    """Mean of a - b per generation, row s of both curves being the same seed."""
    if curves_a.shape != curves_b.shape:
        raise ValueError(f"paired_difference: curves of shapes {curves_a.shape} and {curves_b.shape}; expected equal shapes.")
    return [mean_interval(difference, level) for difference in (curves_a - curves_b).T]


def ratio_interval(values: Floats, base: Floats, level: float = LEVEL) -> Interval:
    """Mean of `values` over mean of `base`, paired by seed (a multiplier when base is generation 1).

    Limits by the delta method on the log of the ratio of means: d log r = dx / E x - dy / E y. Undefined unless both
    means are above 0. The laws' multipliers are ratios of expectations too, so both compare without bias at many seeds.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        top, bottom = float(np.mean(values)), float(np.mean(base))
        if not (top > 0 and bottom > 0):
            return Interval(None, None, None, len(values))
        _, error = _mean_and_error(values / top - base / bottom)
    reach = np.exp(_student_quantile(len(values) - 1, level) * error)
    return _interval(top / bottom, top / bottom / reach, top / bottom * reach, len(values))


def median_interval(values: Floats, level: float = LEVEL) -> Interval:
    """The median over seeds between two order statistics; ended chains are to be given as +-infinity.

    Free of assumptions: the k-th smallest and k-th largest of n values miss the median with probability
    2 P(Binomial(n, 1/2) < k). Undefined when even the extremes miss it too often (fewer than six seeds at 95 %).
    A limit is None where it falls on an ended chain or where the limits coincide.
    """
    from scipy.special import bdtr

    n, ranked = len(values), np.sort(values)
    allowed = [k for k in range(1, n // 2 + 1) if 2 * bdtr(k - 1, n, 0.5) <= 1 - level]
    middle = _quantile(ranked, 0.5)
    if not allowed or ranked[allowed[-1] - 1] == ranked[-allowed[-1]]:
        return _interval(middle, np.nan, np.nan, n)
    return _interval(middle, ranked[allowed[-1] - 1], ranked[-allowed[-1]], n)


def _mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the first axis and its standard error, NaN where a chain has ended or where seeds show no spread."""
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan)
    spread = np.ptp(values, axis=0)
    # Equal values say that the metric does not vary here, not that its mean is known exactly; rounding is no spread,
    # and the squares of spreads below 1e-150 underflow.
    varies = spread > np.maximum(1e-12 * np.abs(values).max(axis=0), 1e-150)
    return mean, np.where(varies, values.std(axis=0, ddof=1) / np.sqrt(len(values)), np.nan)


def _student_quantile(freedom: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else np.nan


def _quantile(ranked: Floats, q: float) -> Floats:
    """Quantile of sorted values, linear between neighbours; NaN where it falls on an ended chain or its rank is unknown."""
    place = round(q * (len(ranked) - 1), 9)  # rounding must not reach for the next, perhaps infinite, value
    below = int(place)
    share = place - below
    value = ranked[below] if share == 0 else (1 - share) * ranked[below] + share * ranked[below + 1]
    return np.where(np.isfinite(value) & ~np.isnan(ranked[-1]), value, np.nan)  # NaN sorts last


def _interval(estimate: Floats | float, low: Floats | float, high: Floats | float, n: int) -> Interval:
    return Interval(_or_none(estimate), _or_none(low), _or_none(high), n)


def _or_none(value: Floats | float) -> float | None:
    return float(value) if np.isfinite(value) else None
