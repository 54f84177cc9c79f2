"""Colours, markers and fonts of every figure, and how an SVG of ours becomes part of a page that has a dark side.

Figures are drawn in the light colours. In the page each of those becomes a CSS variable that the dark scheme redefines,
so one picture serves both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK, MUTED, GRID, PAPER = "#1d2228", "#5b6570", "#e4e7eb", "#fdfdfc"
FONT = "Helvetica, Arial, Liberation Sans, sans-serif"


@dataclass(frozen=True, slots=True)
class Style:
    """How one policy looks everywhere: its colour, a darker shade for laws, a Vega marker."""

    color: str
    shade: str
    marker: str


# Okabe and Ito's palette (2008), told apart with any colour vision; its yellow, too pale for a line, is replaced by grey.
_PALETTE = {  # colour, its shade, and both on a dark ground
    "blue": ("#0072b2", "#00395a", "#4aa8e0", "#b5dcf5"),
    "vermillion": ("#d55e00", "#6e3000", "#f5893d", "#fcd3b4"),
    "green": ("#009e73", "#004f3a", "#2fc79b", "#aeeeda"),
    "purple": ("#cc79a7", "#6b3452", "#e09cc3", "#f6dbe9"),
    "orange": ("#e69f00", "#735000", "#efb73e", "#fbe4b2"),
    "sky": ("#56b4e9", "#1d5c80", "#84caf2", "#d5edfb"),
    "grey": ("#767d86", "#3a3e44", "#a9b1ba", "#dfe3e7"),
}
_MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
_FIXED = {"accumulate": "blue", "replace": "vermillion", "accumulate_subsample": "green"}  # the same in every report

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

DARK = {
    INK: "#e6e9ec",
    MUTED: "#98a2ad",
    GRID: "#2b3138",
    PAPER: "#14171a",
    **{light: dark for line, shade, *darks in _PALETTE.values() for light, dark in zip((line, shade), darks, strict=True)},
}


def policy_styles(policies: Sequence[str]) -> dict[str, Style]:
    """A style per policy: the best-known policies have fixed colours, the others take what is left, in order."""
    hues, taken = list(_PALETTE), {_FIXED[policy] for policy in policies if policy in _FIXED}
    free = [hue for hue in hues if hue not in taken] or hues
    styles: dict[str, Style] = {}
    others = 0
    for policy in policies:
        hue = _FIXED.get(policy) or free[others % len(free)]
        # The second policy of a colour gets another marker.
        turn = 0 if policy in _FIXED else others // len(free)
        others += policy not in _FIXED
        line, shade, *_ = _PALETTE[hue]
        styles[policy] = Style(line, shade, _MARKERS[(hues.index(hue) + turn) % len(_MARKERS)])
    return styles


def variable(color: str) -> str:
    """Name of the CSS variable that holds a colour."""
    return f"--c{color[1:]}"


def themed(svg: str, ids: str, label: str) -> str:
    """The SVG as part of a page: colours as CSS variables, ids of its own, size left to the page, a name read aloud."""

    def recolored(found: re.Match[str]) -> str:
        attribute, color = found.groups()
        return f'{attribute}="var({variable(color)})"' if color in DARK else found.group()

    svg = re.sub(r'\b(fill|stroke)="(#[0-9a-f]{6})"', recolored, svg)
    svg = re.sub(r'\bid="', f'id="{ids}-', svg)
    svg = re.sub(r"url\(#", f"url(#{ids}-", svg)
    svg = re.sub(r'href="#', f'href="#{ids}-', svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def readable(text: str) -> str:
    """The text with what neither HTML nor SVG has a place for made visible; a picture with it would not be drawn at all."""
    return _UNPRINTABLE.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def show(value: float | None, digits: int | None = None) -> str:
    """A number with three significant digits, or with `digits` decimals; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        return f"{value:.2e}"
    places = digits if digits is not None else (0 if not size else max(0, 2 - math.floor(math.log10(size))))
    text = f"{value:,.{places}f}"
    return text.replace("-", "−" if text.strip("-0.") else "")  # a rounded zero has no sign


def show_interval(estimate: float | None, low: float | None, high: float | None) -> str:
    """`1.11 [1.08, 1.15]`, with decimals enough to tell the limits apart; the estimate alone where they are undefined."""
    return " ".join(filter(None, interval_parts(estimate, low, high)))


def interval_parts(estimate: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """The same in two, the second one empty where the limits are undefined."""
    if estimate is None or low is None or high is None or not all(map(math.isfinite, (estimate, low, high))):
        return show(estimate), ""
    if not 1e-4 <= max(abs(low), abs(high)) < 1e7 or low == high:
        return show(estimate), f"[{show(low)}, {show(high)}]"
    places = min(max(1 - math.floor(math.log10(high - low)), 0), 8)
    return show(estimate, places), f"[{show(low, places)}, {show(high, places)}]"
