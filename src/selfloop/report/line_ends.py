"""Names of policies beside the ends of their curves: which are drawn in full, and where, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap

import numpy as np

from selfloop.columns import Floats
from selfloop.report.values import CurveData

MAX_EQUAL_POLICIES = 5  # with more, only the best and the worst curve are drawn in full
LINE_HEIGHT, NAME_LENGTH, LETTER = 13.0, 22, 6.3  # pixels, letters, pixels
GAP = 3.0  # pixels between the names of two policies


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
        room -= len(lines) * LINE_HEIGHT + GAP
        if room >= 0:
            names[curve.policy] = lines
    wanted = [to_pixels(_last_drawn(curve)) for curve in ended if curve.policy in names]
    heights = np.array([len(lines) * LINE_HEIGHT + GAP for lines in names.values()])
    middles = move_apart(np.array(wanted), heights, -LINE_HEIGHT, height + LINE_HEIGHT)
    tops = middles - (heights - GAP - LINE_HEIGHT) / 2
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
