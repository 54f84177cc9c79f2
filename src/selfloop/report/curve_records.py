"""The numbers behind the chart of one metric: its value axis, and the records of its data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np

from selfloop.columns import Floats
from selfloop.published.papers import PublishedCurve
from selfloop.report.line_ends import drawn_median, is_reference, pixel_scale, place_names
from selfloop.report.theme import format_interval, format_number
from selfloop.report.values import CurveData, Panel
from selfloop.stats.forecast import Forecast
from selfloop.stats.intervals import Interval, SeedSummary

MIN_BAND_SEEDS = 3  # the interval of two seeds, 13 standard errors to each side, would hide the means
MAX_CHAIN_LINES = 12  # with more chains only their mean and its band are drawn
LOG_AXIS_RATIO = 30.0  # largest over smallest value from which an axis is logarithmic
LAW_KINDS = {"exact": ("exact law", [6, 3]), "bound": ("bound", [2, 2]), "asymptotic": ("asymptotic law", [8, 3, 2, 3])}
HOVER = "hover"  # data that only a browser needs

Records = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """Range and kind of a value axis."""

    low: float
    high: float
    log: bool
    cut: bool  # True if an interval extends past an end
    other: ValueAxis | None = None  # logarithmic if this one is not, and the reverse; None if a value is not above 0

    def contains(self, value: float) -> bool:
        """True if a value is within the figure."""
        return self.low < value < self.high


def fit_value_axis(*panels: Panel, chains: bool = True) -> ValueAxis:
    """The axis that contains all means, drawn chains (if there are any), laws and published values of these panels.

    Intervals may lengthen the axis by half at either end; beyond it they are cut. The trivial model may double it; beyond that
    it is not drawn.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    forecasts = [each.forecast for panel in panels for each in panel.forecasts]
    values = _finite(
        chain(
            *(curve.summary.mean for curve in curves),
            *(drawn_median(curve) for curve in curves),
            *(curve.values.ravel() for curve in curves if chains and draws_chains(curve)),
            *(law.values for panel in panels for _, law in panel.laws),
            *(forecast.mean for forecast in forecasts),
            *(curve.values for panel in panels for _, curve in panel.published),
        )
    )
    if not len(values):
        return ValueAxis(0.0, 1.0, log=False, cut=False)
    bands = [limit for curve in curves if draws_band(curve) for limit in (curve.summary.low, curve.summary.high)]
    limits = _finite(chain(*bands, *(limit for forecast in forecasts for limit in (forecast.low, forecast.high))))
    log, trivial = bool(values.min() > 0 and values.max() / values.min() >= LOG_AXIS_RATIO), [panel.trivial for panel in panels]
    axis = _fit_axis(values, limits, [each[1] for each in trivial if each], log=log)
    return replace(axis, other=_fit_axis(values, limits, [], log=not log)) if values.min() > 0 else axis


def _fit_axis(values: Floats, limits: Floats, trivial: Sequence[float], *, log: bool) -> ValueAxis:
    to: Callable[[Any], Any] = np.log10 if log else np.asarray
    low, high = float(to(values.min())), float(to(values.max()))
    extent = to(limits[limits > 0] if log else limits)
    if len(extent):
        margin = (high - low) / 2 or math.inf
        low, high = max(min(low, float(extent.min())), low - margin), min(max(high, float(extent.max())), high + margin)
    for value in (float(to(each)) for each in trivial if each > 0 or not log):
        margin = high - low or math.inf
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


def n_generations(panel: Panel) -> int:
    """Generations of the x axis, those of forecasts included."""
    ahead = max((np.isfinite(each.forecast.mean).sum() for each in panel.forecasts), default=0)
    return max((curve.values.shape[1] for curve in panel.curves), default=1) + int(ahead)


def panel_sets(panel: Panel, axis: ValueAxis, height: float, notes: Mapping[str, str]) -> dict[str, Records]:
    """The records of all data sets of a chart whose plot has this height in pixels."""
    curves, floor = panel.curves, axis.low
    chains = [(curve.policy, s, row) for curve in curves if draws_chains(curve) for s, row in enumerate(curve.values)]
    ends = any(curve.has_ended_chains for curve in curves)
    sets = {
        "means": [_mean_records(curve, floor) for curve in curves],
        "chains": [_records(row, policy=policy, seed=s) for policy, s, row in chains if not is_reference(policy)],
        "medians": [_records(drawn_median(curve), policy=curve.policy) for curve in curves],
        "forecasts": [_forecast_records(curve, panel, floor) for curve in curves],
        "survivors": [_records(curve.summary.surviving, policy=curve.policy) for curve in curves if ends],
        "laws": [
            _records(law.values, label=label, source=law.source)
            for label, (_, law) in zip(law_labels(panel), panel.laws, strict=True)
        ],
        "published": [
            _records(curve.values, curve.generations, label=paper_label(policy, curve)) for policy, curve in panel.published
        ],
        "names": [_name_records(curves, axis, height, notes)],
        HOVER: [_hover_records(panel)],
    }
    return {name: [*chain.from_iterable(parts)] for name, parts in sets.items()}


def _name_records(curves: Sequence[CurveData], axis: ValueAxis, height: float, notes: Mapping[str, str]) -> Records:
    axes = [axis, axis.other] if axis.other else [axis]
    scales = [pixel_scale(one.low, one.high, height, log=one.log) for one in axes]
    places = [place_names(curves, scale, height, notes) for scale in scales]
    return [
        {"policy": policy, "lines": lines, "at": round(at, 1), "other": round(places[-1][policy][1], 1)}
        for policy, (lines, at) in places[0].items()
    ]


def _hover_records(panel: Panel) -> Records:
    """Per generation the values of all policies, forecasts, laws and papers as texts, by name."""
    rows = {t: dict[str, object](generation=t) for t in range(1, n_generations(panel) + 1)}
    for name, t, words in _hover_texts(panel):
        if t in rows:
            rows[t][name] = words
    return list(rows.values())


def _hover_texts(panel: Panel) -> Iterator[tuple[str, int, str]]:
    """Name, generation and value of everything that is drawn."""
    for curve in panel.curves:
        yield from _interval_texts(curve.policy, 1, curve.summary)
    for label, (_, law) in zip(law_labels(panel), panel.laws, strict=True):
        yield from ((label, t, format_number(value)) for t, value in enumerate(law.values, 1))
    for policy, paper in panel.published:
        pairs = zip(paper.generations, paper.values, strict=True)
        yield from ((paper_label(policy, paper), t, format_number(value)) for t, value in pairs)
    ends = {curve.policy: curve.values.shape[1] for curve in panel.curves}
    for policy, ahead, _ in panel.forecasts:
        yield from _interval_texts(f"{policy}, forecast", ends.get(policy, 0) + 1, ahead)


def _interval_texts(name: str, first: int, summary: SeedSummary | Forecast) -> Iterator[tuple[str, int, str]]:
    for t, (mean, low, high) in enumerate(zip(summary.mean, summary.low, summary.high, strict=True), first):
        if math.isfinite(mean):
            yield name, t, format_interval(Interval(mean, low, high, 0))


def _mean_records(curve: CurveData, floor: float) -> Records:
    """One record per generation with a mean. The band begins at `floor` or above, as a logarithmic axis needs."""
    summary, marked, records = curve.summary, marked_generations(curve.values.shape[1], 21), Records()
    for record in _records(summary.mean, policy=curve.policy):
        i = int(str(record["generation"])) - 1
        low, high = float(summary.low[i]), float(summary.high[i])
        limits = {"low": json_number(low), "high": json_number(high)}
        limits |= {"bottom": json_number(max(low, floor)), "top": json_number(high)} if draws_band(curve) else {}
        limits |= {"reference": True} if is_reference(curve.policy) else {}
        records.append({**record, "mean": record.pop("value"), **limits, "marked": marked[i]})
    return records


def _forecast_records(curve: CurveData, panel: Panel, floor: float) -> Records:
    """The forecast of a curve, from its last measured mean on; nothing without one."""
    for policy, ahead, _ in panel.forecasts:
        if policy == curve.policy and np.isfinite(ahead.mean).any():
            names, last = ("mean", "low", "high"), curve.values.shape[1]
            columns = (np.append(getattr(curve.summary, name)[-1:], getattr(ahead, name)) for name in names)
            return [
                {**record, "low": json_number(low), "high": json_number(high), "bottom": json_number(max(low, floor))}
                for mean, low, high, t in zip(*columns, count(last), strict=False)
                for record in _records([mean], [t], policy=curve.policy)
            ]
    return []


def marked_generations(n: int, most: int) -> list[bool]:
    """Which of n generations carry a marker: evenly spread ones, the first and the last included."""
    indices = set(np.linspace(0, n - 1, most).astype(int).tolist())
    return [i in indices for i in range(n)]


def _records(values: Iterable[float], generations: Iterable[int] | None = None, **constant: object) -> Records:
    """One record per finite value, from generation 1 on unless the generations are listed."""
    pairs = zip(generations or count(1), values, strict=False)
    return [{**constant, "generation": int(t), "value": json_number(x)} for t, x in pairs if math.isfinite(x)]


def json_number(value: float) -> float | None:
    """The number with six digits; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def law_labels(panel: Panel) -> list[str]:
    """The names of the laws in legends."""
    return [f"{policy}: {law.law} ({LAW_KINDS[law.kind][0]})" for policy, law in panel.laws]


def paper_label(policy: str, curve: PublishedCurve) -> str:
    """The name of published values in legends."""
    return f"{policy}: {curve.label} (published)"


def _finite(values: Iterable[float]) -> Floats:
    array = np.array(list(values), np.float64)
    return array[np.isfinite(array)]
