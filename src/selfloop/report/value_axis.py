"""The value axis of a figure of curves: its range, and which curves determine it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from selfloop.columns import Floats
from selfloop.published.papers import PublishedCurve
from selfloop.report.values import CurveData, Panel

MIN_BAND_SEEDS = 3  # the interval of two seeds, 13 standard errors to each side, would hide the means
MAX_CHAIN_LINES = 12  # with more chains only their mean and its band are drawn
LOG_AXIS_RATIO = 30.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """Range and kind of a value axis."""

    low: float
    high: float
    log: bool
    cut: bool  # True if an interval or a published curve of another scale extends past an end

    def contains(self, value: float) -> bool:
        """True if a value is within the figure."""
        return self.low < value < self.high


def fit_value_axis(panel: Panel) -> ValueAxis:
    """The axis that contains all means, drawn chains, laws and published values.

    Intervals and published curves of another scale may lengthen the axis by half at either end; beyond it they are cut. The
    trivial model may double it; beyond that it is not drawn.
    """
    values = _finite(
        chain(
            *(curve.summary.mean for curve in panel.curves),
            *(ended_median(curve) for curve in panel.curves),
            *(curve.values.ravel() for curve in panel.curves if draws_chains(curve)),
            *(law.values for _, law in panel.laws),
            *(curve.values for _, curve in panel.published if not curve.scale),
        )
    )
    if not len(values):
        return ValueAxis(0.0, 1.0, log=False, cut=False)
    limits = _finite(
        chain(
            *(limit for curve in panel.curves if draws_band(curve) for limit in (curve.summary.low, curve.summary.high)),
            *(aligned_values(panel, policy, curve) for policy, curve in other_scale_curves(panel)),
        )
    )
    log = bool(values.min() > 0 and values.max() / values.min() >= LOG_AXIS_RATIO)
    to: Callable[[Any], Any] = np.log10 if log else np.asarray
    low, high = float(to(values.min())), float(to(values.max()))
    extent = to(limits[limits > 0] if log else limits)
    if len(extent):
        margin = (high - low) / 2 or math.inf
        low, high = max(min(low, float(extent.min())), low - margin), min(max(high, float(extent.max())), high + margin)
    if panel.trivial is not None and (panel.trivial[1] > 0 or not log):
        value, margin = float(to(panel.trivial[1])), high - low or math.inf
        if low - margin <= value <= high + margin:
            low, high = min(low, value), max(high, value)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    near_zero = not log and 0 <= low < 0.35 * high
    low, high = 0.0 if near_zero else low - margin, high + margin
    if log:
        low, high = 10.0**low, 10.0**high
    return ValueAxis(low, high, log, cut=bool(len(limits) and (limits.min() < low or limits.max() > high)))


def draws_band(curve: CurveData) -> bool:
    """True if there are enough chains to draw the interval of their mean."""
    return len(curve.values) >= MIN_BAND_SEEDS


def draws_chains(curve: CurveData) -> bool:
    """True if there are few enough chains to draw each."""
    return 1 < len(curve.values) <= MAX_CHAIN_LINES


def other_scale_curves(panel: Panel) -> list[tuple[str, PublishedCurve]]:
    """The published curves of another scale, with their policies."""
    return [(policy, curve) for policy, curve in panel.published if curve.scale]


def aligned_values(panel: Panel, policy: str, published: PublishedCurve) -> list[float]:
    """The values shifted so that the first equals the measured mean of its generation, because levels do not compare.

    NaN if there is no such mean.
    """
    first = published.generations[0]
    means = {t: x for c in panel.curves if c.policy == policy for t, x in enumerate(c.summary.mean.tolist(), 1)}
    return [value + means.get(first, math.nan) - published.values[0] for value in published.values]


def ended_median(curve: CurveData) -> Floats:
    """The median over all chains; empty if no chain ends."""
    median = curve.summary.median
    return median if curve.has_ended_chains else median[:0]


def _finite(values: Iterable[float]) -> Floats:
    array = np.array(list(values), np.float64)
    return array[np.isfinite(array)]
