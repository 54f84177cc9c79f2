"""Colors, markers and fonts of every figure, SVG figures as parts of a page, and numbers as text.

Figures are drawn in the light colors. In the page each light color becomes a CSS variable that the dark scheme redefines, so
one SVG serves both schemes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from selfloop.columns import Floats
from selfloop.component import Better
from selfloop.stats.intervals import Interval, mean_interval, ratio_interval
from selfloop.types import Coordinates, Verdict

INK, MUTED, GRID, PAPER = "#1d2228", "#5b6570", "#e4e7eb", "#fdfdfc"
BARS, MAX_BARS = "▁▂▃▄▅▆▇█", 40  # of a curve in a table of a terminal
FONT = "Helvetica, Arial, Liberation Sans, sans-serif"


@dataclass(frozen=True, slots=True)
class Style:
    """Color of a policy's curves, darker shade of its laws, and its Vega marker, the same in every figure."""

    color: str
    shade: str
    marker: str


# Palette of Okabe and Ito (2008), which is distinguishable with any color vision. Its yellow is too pale for a line and is
# replaced by gray.
_PALETTE = {  # color, its shade, and both on a dark background
    "blue": ("#0072b2", "#00395a", "#4aa8e0", "#b5dcf5"),
    "vermillion": ("#d55e00", "#6e3000", "#f5893d", "#fcd3b4"),
    "green": ("#009e73", "#004f3a", "#2fc79b", "#aeeeda"),
    "purple": ("#cc79a7", "#6b3452", "#e09cc3", "#f6dbe9"),
    "orange": ("#e69f00", "#735000", "#efb73e", "#fbe4b2"),
    "sky": ("#56b4e9", "#1d5c80", "#84caf2", "#d5edfb"),
    "gray": ("#767d86", "#3a3e44", "#a9b1ba", "#dfe3e7"),
}
MARKERS = {  # Vega's name of each marker -> its outline, 10 pixels wide, around the origin
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "square": "M-4.5 -4.5h9v9h-9z",
    "triangle-up": "M-5.5 4.5h11L0 -5z",
    "diamond": "M0 -6L6 0 0 6 -6 0z",
    "triangle-down": "M-5.5 -4.5h11L0 5z",
    "cross": "M-2 -5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "triangle-right": "M-4.5 -5.5v11L5 0z",
}
_FIXED = {
    "accumulate": "blue",
    "replace": "vermillion",
    "accumulate_subsample": "green",
    "control": "gray",
}  # the same in every report

DARK = {
    INK: "#e6e9ec",
    MUTED: "#98a2ad",
    GRID: "#2b3138",
    PAPER: "#14171a",
    **{light: dark for line, shade, *darks in _PALETTE.values() for light, dark in zip((line, shade), darks, strict=True)},
}


def policy_styles(policies: Sequence[str]) -> dict[str, Style]:
    """A style per policy: three policies have fixed colors, the others take the remaining colors in order."""
    hues = list(_PALETTE)
    free = [hue for hue in hues if hue not in {_FIXED.get(policy) for policy in policies}]
    others = [policy for policy in policies if policy not in _FIXED]
    styles = {}
    for policy in policies:
        # A further policy of the same color gets another marker.
        cycle, i = (0, 0) if policy in _FIXED else divmod(others.index(policy), len(free))
        hue = _FIXED.get(policy) or free[i]
        line, shade, *_ = _PALETTE[hue]
        styles[policy] = Style(line, shade, list(MARKERS)[(hues.index(hue) + cycle) % len(MARKERS)])
    return styles


def css_variable(color: str) -> str:
    return f"--c{color[1:]}"


def theme_svg(svg: str, ids: str, label: str) -> Markup:
    """The SVG for a page: colors as CSS variables, ids with the prefix `ids`, `label` as its accessible name."""

    def recolor(match: re.Match[str]) -> str:
        attribute, color = match.groups()
        return f'{attribute}="var({css_variable(color)})"' if color in DARK else match.group()

    svg = re.sub(r'\b(fill|stroke)="(#[0-9a-f]{6})"', recolor, svg)
    svg = re.sub(
        r' (?:role="graphics-[^"]*"|aria-[a-z]+="[^"]*"|opacity="1"|pointer-events="none"|xmlns:xlink="[^"]*")', "", svg
    ).replace(f' font-family="{FONT}"', "")
    svg = re.sub(r'\b(?:d|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group()), svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{ids}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" font-family="{FONT}" ', 1))


def describe_coordinates(coordinates: Coordinates) -> str:
    """One point of a sweep in words; empty without a sweep."""
    return ", ".join(f"{name} = {value}" for name, value in coordinates)


def describe_better(better: Better) -> str:
    """Which value of a metric is best, in words; empty if it is unknown."""
    if isinstance(better, str):
        return {"lower": "lower is better", "higher": "higher is better", "": ""}.get(better, f"best: the value of {better}")
    return f"best: {better:g}"


def format_count(n: int, noun: str) -> str:
    """`1 seed`, `2,000 seeds`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def format_number(value: float | None, digits: int | None = None) -> str:
    """A number with three significant digits, or with `digits` decimals; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        return f"{value:.2e}"
    decimals = digits if digits is not None else (0 if not size else max(0, 2 - math.floor(math.log10(size))))
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "−" if text.strip("-0.") else "")  # a rounded zero has no sign


def format_interval(interval: Interval | Verdict) -> str:
    """`1.11 [1.08, 1.15]`, with enough decimals to distinguish the limits; the estimate alone if they are undefined."""
    return " ".join(filter(None, format_interval_parts(interval)))


def format_interval_parts(interval: Interval | Verdict) -> tuple[str, str]:
    """Estimate and limits as two texts; the second one is empty if the limits are undefined."""
    estimate, low, high = interval.estimate, interval.low, interval.high
    if estimate is None or low is None or high is None or not all(map(math.isfinite, (estimate, low, high))):
        return format_number(estimate), ""
    if not 1e-4 <= max(abs(low), abs(high)) < 1e7 or low == high:
        return format_number(estimate), f"[{format_number(low)}, {format_number(high)}]"
    digits = min(max(1 - math.floor(math.log10(high - low)), 0), 8)
    return format_number(estimate, digits), f"[{format_number(low, digits)}, {format_number(high, digits)}]"


def describe_change(curves: Floats, *, positive: bool) -> tuple[str, str]:
    """Last over first mean if 0 is the lowest possible value, else last minus first, and its limits; empty if undefined."""
    first, last = curves[:, 0], curves[:, -1]
    change = ratio_interval(last, first) if positive else mean_interval(last - first)
    return format_change(change, is_ratio=positive) if curves.shape[1] > 1 else ("", "")


def format_change(change: Interval, *, is_ratio: bool) -> tuple[str, str]:
    """A change, such as `×1.95` or `+0.57`, and its limits; empty if undefined."""
    text, limits = format_interval_parts(change)
    if change.estimate is None:
        return "", ""
    return (f"×{text}" if is_ratio else f"{'+' * (change.estimate > 0)}{text}"), limits


def sparkline(values: Floats, width: int = MAX_BARS) -> str:
    """One character per generation, at most `width`; × where a value is missing, empty if all values are missing."""
    positions = np.linspace(0, len(values) - 1, min(len(values), width))
    visible = [float(values[round(position)]) for position in positions]
    finite = [value for value in visible if np.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(BARS[round((v - low) / ((high - low) or 1) * 7)] if np.isfinite(v) else "×" for v in visible)
