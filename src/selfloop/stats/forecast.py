"""Curves of the generations after a run, extrapolated by several trends, with an interval for their mean over seeds.

The target is the expectation over seeds, as of every other interval. Each trend a + b g(t) is fitted to the curve of every
seed by generalized least squares: deviations of a chain are a random walk plus noise of the measurement, whose variances come
from the differences between seeds. A forecast is then linear in a curve, so the forecasts of the seeds are independent values
and their interval has no model of the noise. The limits enclose the intervals of all trends that the run does not exclude and,
if none fits, of the neighbors of the best trend: the true shape may lie between two trends. The mean curve may deviate from a
trend by more than the seeds explain; that deviation goes on as a random walk. Nothing here foresees a break of the trend.

Curves that accelerate more than any trend allows, in every seed, are continued by the logs of their increments, to which the
same trends are fitted but the quadratic one: linear logs are exponential growth, and their logarithm in t is a power law.

The settings were chosen on half of the presets' papers. On the other half, `benchmarks/forecast.py` measures the coverage of
the limits, which are nominal for 90 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from selfloop.columns import Floats
from selfloop.stats.intervals import summarize_seeds

LEVEL_OF_FORECAST = 0.9
MIN_GENERATIONS, MIN_FORECAST_SEEDS = 4, 2
MAX_EXCESS_CRITERION = 4.0  # of Akaike's criterion over that of the best trend: worse trends are excluded
DEVIATION_WIDTH = 2.0  # standard deviations of the random walk of the mean curve around a trend
MAX_MISFIT = 2.0  # chi-squared per degree of freedom of the best trend, beyond which growth may be faster than all trends
MAX_VALUE = 1e50  # whose squares float64 can hold, also after the forecast
MIN_INCREMENTS = 3  # that are positive in every seed, up to the end of the run, for a forecast of their logs


class Forecast(NamedTuple):
    """Mean and limits of each generation after the run, (generations,); NaN with a reason if the run supports none."""

    mean: Floats
    low: Floats
    high: Floats
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Trend:
    """One trend's forecasts (seeds, generations ahead), its fit to the mean curve, and the variance of the unexplained part."""

    forecasts: Floats
    chi_squared: float
    n_parameters: int
    deviation: float  # variance per generation of the mean curve around the trend, beyond the noise

    def criterion(self, scale: float) -> float:
        return self.chi_squared / scale + 2 * self.n_parameters


def forecast(curves: Floats, generations: int, *, positive: bool = False) -> Forecast:
    """The mean over seeds of the next generations with 90 % limits, from (seeds, generations) curves.

    `positive`: 0 is the lowest possible value. No numbers, but a reason, for fewer than 4 generations or 2 seeds, ended chains,
    seeds that do not differ, and more than as many generations again as the run has, for which no coverage was measured.
    """
    reason = _reason_for_none(curves)
    n_ahead = 0 if reason else min(generations, curves.shape[1])
    numbers = np.full((3, generations), np.nan)
    if n_ahead:
        trends, grown = list(_fit_trends(curves, n_ahead)), _log_increments(curves)
        if _misfit(trends, curves) <= MAX_MISFIT or grown is None:
            numbers[:, :n_ahead] = _combine(trends, curves, positive)
        else:
            growths = list(_fit_trends(grown, n_ahead))[:-1]
            numbers[:, :n_ahead] = _combine(growths, grown, positive, curves[:, -1:])
    if not reason and n_ahead < generations:
        reason = f"no forecast beyond generation {2 * n_ahead}, twice the generations of the run"
    return Forecast(numbers[0], numbers[1], numbers[2], reason)


def _reason_for_none(curves: Floats) -> str:
    seeds, generations = curves.shape
    if generations < MIN_GENERATIONS:
        return f"{generations} generations; a forecast needs {MIN_GENERATIONS}"
    if np.isnan(curves).any():
        return "a chain has ended"
    if np.abs(curves).max() > MAX_VALUE:
        return f"values above {MAX_VALUE:g}"
    if seeds < MIN_FORECAST_SEEDS:
        return "one seed; a forecast needs two"
    spread = np.ptp(np.diff(curves, axis=1), axis=0)
    if not (spread > 1e-9 * np.abs(curves).max()).any():
        return "the curves of the seeds do not differ"
    return ""


def _log_increments(curves: Floats) -> Floats | None:
    """Logs of the last increments, as many as are positive in every seed, (seeds, increments); None unless they accelerate."""
    increments = np.diff(curves, axis=1)
    others = np.flatnonzero(increments.min(axis=0) <= 0)
    n = increments.shape[1] - (int(others[-1]) + 1 if len(others) else 0)
    if n < max(MIN_INCREMENTS, increments.shape[1] // 2):
        return None
    logs: Floats = np.log(increments[:, -n:])
    slopes = np.polyfit(np.arange(n), logs.T, 1)[0]
    return logs if slopes.mean() > 3 * slopes.std(ddof=1) / np.sqrt(len(slopes)) else None


def _misfit(trends: list[_Trend], curves: Floats) -> float:
    """Chi-squared per degree of freedom of the best trend."""
    best = min(trends, key=lambda trend: trend.criterion(1.0))
    return float(best.chi_squared / max(curves.shape[1] - best.n_parameters, 1))


def _fit_trends(curves: Floats, n_ahead: int) -> Iterator[_Trend]:
    """Every trend, fitted and continued by the best linear prediction of each chain."""
    seeds, last = curves.shape
    (step, measurement), t = _estimate_noise(curves), np.arange(1.0, last + n_ahead + 1)
    covariance = step * np.minimum.outer(t, t[:last])  # of the random walk
    inverse = np.linalg.inv(covariance[:last] + measurement * np.eye(last))
    carried = covariance[last:] @ inverse  # the part of a chain's deviations that lasts
    mean, constant = curves.mean(axis=0), np.ones((len(t), 1))
    for shape in (None, *_shapes(t)):
        design = constant if shape is None else np.column_stack([constant, shape / np.ptp(shape)])
        solve = np.linalg.solve(design[:last].T @ inverse @ design[:last], design[:last].T @ inverse)
        weights = design[last:] @ solve + carried @ (np.eye(last) - design[:last] @ solve)
        residual = mean - design[:last] @ solve @ mean
        free = max(last - design.shape[1], 1)
        explained = (step + 2 * measurement) / seeds
        yield _Trend(
            forecasts=curves @ weights.T,
            chi_squared=float(seeds * residual @ inverse @ residual),
            n_parameters=design.shape[1],
            deviation=max(float(np.sum(np.diff(residual) ** 2)) / free - explained, 0.0),
        )


def _shapes(t: Floats) -> tuple[Floats, ...]:
    """g(t) of the trends that are not constant, from those that level off to the one that accelerates."""
    return 1 - 0.5**t, 1 / t, np.log(t), np.sqrt(t), t, t**2


def _estimate_noise(curves: Floats) -> tuple[float, float]:
    """Variance of a step of a chain's random walk, and of a measurement.

    By moments: successive increments of a chain have variance step + 2 measurement and covariance -measurement.
    """
    seeds, last = curves.shape
    increments = np.diff(curves, axis=1)
    increments = increments - increments.mean(axis=0)
    variance = float(np.sum(increments**2)) / ((seeds - 1) * (last - 1)) + 1e-20 * float(np.max(curves**2))
    covariance = float(np.sum(increments[:, 1:] * increments[:, :-1])) / ((seeds - 1) * (last - 2))
    measurement = min(max(-covariance, 1e-3 * variance), variance / 2)
    return max(variance - 2 * measurement, 1e-9 * variance), measurement


def _combine(trends: list[_Trend], curves: Floats, positive: bool, now: Floats | None = None) -> Floats:
    """Mean weighted by Akaike's criterion, and the limits of all trends that are not excluded: (3, generations ahead).

    With `now`, the values of the last generation (seeds, 1), curves and forecasts are the logs of increments.
    """
    # A curve that no trend fits has larger errors than its seeds explain (Birge 1932).
    scale = max(1.0, _misfit(trends, curves))
    criteria = np.array([trend.criterion(scale) for trend in trends]) - min(trend.criterion(scale) for trend in trends)
    steps, means, lows, highs = np.arange(1.0, trends[0].forecasts.shape[1] + 1), [], [], []
    for trend in trends:
        values = trend.forecasts if now is None else now + np.cumsum(np.exp(trend.forecasts), axis=1)
        summary = summarize_seeds(values, positive=(positive or now is not None) and bool((values > 0).all()))
        mean, low, high = summary.mean, *(np.where(np.isnan(x), summary.mean, x) for x in (summary.low, summary.high))
        down = up = DEVIATION_WIDTH * np.sqrt(trend.deviation * steps)
        if now is not None:
            down, up = (mean - now.mean()) * -np.expm1(-down), (mean - now.mean()) * np.expm1(up)
        means.append(mean)
        lows.append(mean - np.hypot(mean - low, down))
        highs.append(mean + np.hypot(high - mean, up))
    plausible = criteria <= MAX_EXCESS_CRITERION
    mean = np.average(means, axis=0, weights=np.exp(-criteria / 2) * plausible)
    if scale > 1:
        nearest = 1 + int(criteria[1:].argmin())
        plausible[max(nearest - 1, 1) : nearest + 2] = True  # the first trend, the constant, has no neighbor
    low, high = np.min(np.array(lows)[plausible], axis=0), np.max(np.array(highs)[plausible], axis=0)
    return np.maximum([mean, low, high], 0.0 if positive else -np.inf)
