"""The numbers behind the chart of one metric: its value axis, the records of its data sets, and the names at ends of curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from textwrap import wrap
from typing import Any

import numpy as np

from selfloop.columns import Floats
from selfloop.published.papers import PublishedCurve
from selfloop.report.theme import format_interval, format_number
from selfloop.report.values import CurveData, Panel
from selfloop.stats.forecast import Forecast
from selfloop.stats.intervals import Interval, SeedSummary

MAX_EQUAL_POLICIES = 5  # with more, only the best and the worst curve are drawn in full
LINE_HEIGHT, NAME_LENGTH, LETTER = 13.0, 22, 6.3  # pixels, letters, pixels
NAME_GAP = 3.0  # pixels between the names of two policies
MIN_BAND_SEEDS = 3  # the interval of two seeds, 13 standard errors to each side, would hide the means
MAX_CHAIN_LINES = 12  # with more chains only their mean and its band are drawn
LOG_AXIS_RATIO = 30.0  # largest over smallest value from which an axis is logarithmic
LAW_KINDS = {"exact": ("exact law", [6, 3]), "bound": ("bound", [2, 2]), "asymptotic": ("asymptotic law", [8, 3, 2, 3])}
HOVER = "hover"  # data that only a browser needs

Records = list[dict[str, Any]]


def is_reference(policy: str) -> bool:
    """True for a control, which is drawn as a reference line."""
    return policy.split("(")[0] == "control"


def drawn_median(curve: CurveData) -> Floats:
    """The median over all chains; empty if no chain ends, or if one ends for another reason than collapse."""
    median = curve.summary.median
    return median if curve.has_ended_chains and curve.ends_are_worst else median[:0]


def prominent_policies(curves: Sequence[CurveData]) -> list[str]:
    """The policies that are drawn in full: all if they are few, else the best, the worst and controls."""
    ranked = [curve for curve in curves if curve.badness > -math.inf and not is_reference(curve.policy)] or curves
    if len(curves) <= MAX_EQUAL_POLICIES:
        return [curve.policy for curve in curves]
    ends = [choose(ranked, key=lambda curve: curve.badness).policy for choose in (max, min)]
    return list(dict.fromkeys([*ends, *(curve.policy for curve in curves if is_reference(curve.policy))]))


def place_names(
    curves: Sequence[CurveData], to_pixels: Callable[[float], float], height: float, notes: Mapping[str, str]
) -> dict[str, tuple[list[str], float]]:
    """For each policy with a value, the lines of its name (and its note) and the height of the first one in pixels.

    Names beyond the height of the figure are left out, those of prominent policies last.
    """
    first = prominent_policies(curves)
    ended = sorted((curve for curve in curves if curve.ends), key=lambda curve: curve.policy not in first)
    names, room = dict[str, list[str]](), height + 2 * LINE_HEIGHT
    for curve in ended:
        lines = [*wrap_name(curve.policy), *filter(None, [notes.get(curve.policy, "") if curve.policy in first else ""])]
        room -= len(lines) * LINE_HEIGHT + NAME_GAP
        if room >= 0:
            names[curve.policy] = lines
    wanted = [to_pixels(_last_drawn(curve)) for curve in ended if curve.policy in names]
    heights = np.array([len(lines) * LINE_HEIGHT + NAME_GAP for lines in names.values()])
    middles = move_apart(np.array(wanted), heights, -LINE_HEIGHT, height + LINE_HEIGHT)
    tops = middles - (heights - NAME_GAP - LINE_HEIGHT) / 2
    return {policy: (lines, y) for (policy, lines), y in zip(names.items(), tops.tolist(), strict=True)}


def _last_drawn(curve: CurveData) -> float:
    """The end of the median, which continues a mean that ends with the first chain; else that of the mean."""
    median = drawn_median(curve)
    median = median[np.isfinite(median)]
    return float(median[-1]) if len(median) else (curve.ends or ((0, 0.0),) * 2)[1][1]


def wrap_name(policy: str) -> list[str]:
    """A name as lines of at most `NAME_LENGTH` letters, the settings in parentheses on lines of their own."""
    name, parenthesis, settings = policy.partition("(")
    lines = [policy] if len(policy) <= NAME_LENGTH else [name, *wrap(parenthesis + settings, NAME_LENGTH)]
    lines = [line if len(line) <= NAME_LENGTH else line[: NAME_LENGTH - 1] + "…" for line in lines]
    return lines if len(lines) <= 3 else [*lines[:2], lines[2][: NAME_LENGTH - 1] + "…"]


def names_width(curves: Sequence[CurveData]) -> float:
    """Pixels that the longest line of the names needs, its marker included."""
    return 20 + LETTER * max((len(line) for curve in curves for line in wrap_name(curve.policy)), default=0)


def move_apart(wanted: Floats, heights: Floats, low: float, high: float) -> Floats:
    """Middles of boxes of these heights that do not overlap, with the least squared distance to the wanted ones.

    The boxes are between `low` and `high` if they fit there; if not, they begin at `low`.
    """
    from scipy.optimize import isotonic_regression  # lazy: most commands draw nothing

    if not len(wanted):
        return wanted
    order = np.argsort(wanted, kind="stable")
    edges = np.cumsum([0.0, *heights[order]])
    offsets = edges[:-1] + heights[order] / 2
    tops = isotonic_regression(wanted[order] - offsets).x.clip(low, max(low, high - edges[-1]))
    moved = np.empty(len(wanted))
    moved[order] = tops + offsets
    return moved


def pixel_scale(low: float, high: float, height: float, *, log: bool) -> Callable[[float], float]:
    """The height in pixels, from the top, of a value on an axis from `low` to `high`."""
    to = math.log if log else float
    return lambda value: height * (to(high) - to(min(max(value, low), high))) / (to(high) - to(low))


@dataclass(frozen=True, slots=True)
class ValueAxis:
    low: float
    high: float
    log: bool
    cut: bool  # True if an interval extends past an end
    other: ValueAxis | None = None  # logarithmic if this one is not, and the reverse; None if a value is not above 0

    def contains(self, value: float) -> bool:
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
    """Per generation the values of all policies, laws, papers and forecasts as texts, by name."""
    rows = {t: dict[str, object](generation=t) for t in range(1, n_generations(panel) + 1)}
    last = {curve.policy: curve.values.shape[1] for curve in panel.curves}
    laws = zip(law_labels(panel), (law.values for _, law in panel.laws), strict=True)
    papers = ((paper_label(policy, curve), curve) for policy, curve in panel.published)
    drawn: list[tuple[str, Iterable[int], Iterable[str]]] = [
        *((curve.policy, count(1), _interval_texts(curve.summary)) for curve in panel.curves),
        *((name, count(1), map(format_number, values)) for name, values in laws),
        *((name, curve.generations, map(format_number, curve.values)) for name, curve in papers),
        *((f"{policy}, forecast", count(last[policy] + 1), _interval_texts(ahead)) for policy, ahead, _ in panel.forecasts),
    ]
    for name, generations, texts in drawn:
        for t, text in zip(generations, texts, strict=False):
            if text and t in rows:
                rows[t][name] = text
    return list(rows.values())


def _interval_texts(summary: SeedSummary | Forecast) -> Iterator[str]:
    """Means with their limits; empty without a mean."""
    for mean, low, high in zip(summary.mean, summary.low, summary.high, strict=True):
        yield format_interval(Interval(mean, low, high, 0)) if math.isfinite(mean) else ""


def _mean_records(curve: CurveData, floor: float) -> Records:
    """One record per generation with a mean. The band begins at `floor` or above, as a logarithmic axis needs."""
    summary, marked, records = curve.summary, marked_generations(curve.values.shape[1], 21), Records()
    for record in _records(summary.mean, policy=curve.policy):
        i = record["generation"] - 1
        low, high = float(summary.low[i]), float(summary.high[i])
        limits: dict[str, Any] = {"low": json_number(low), "high": json_number(high)}
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
    return [f"{policy}: {law.law} ({LAW_KINDS[law.kind][0]})" for policy, law in panel.laws]


def paper_label(policy: str, curve: PublishedCurve) -> str:
    return f"{policy}: {curve.label} (published)"


def _finite(values: Iterable[float]) -> Floats:
    array = np.array(list(values), np.float64)
    return array[np.isfinite(array)]
