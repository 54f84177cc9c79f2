"""Advice without training: how much real data a policy needs so that exact theory stays within a bound.

Everything here is an expectation over seeds, from `moments.py` and `survival.py`. The *multiplier* is the loss at the last
generation over the loss at generation 1. A quantity that shrinks (variance, surviving symbols) has the loss 1 / value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SpecError, unknown_name
from selfloop.spec.components import make_component
from selfloop.theory.moments import moment_curves
from selfloop.theory.survival import chance_alive

Protected = Literal["error", "variance", "symbols", "class"]
GRID_POINTS = 17  # of a curve over the number of synthetic rows; it is taken for monotone between two of them
ROUNDING = 1e-9  # relative, of a multiplier


def losses(
    policy: Mapping[str, Any] | str, n: int, generations: int, protect: Protected = "error", shares: Floats | None = None
) -> tuple[float, float]:
    """The loss at generation 1 and at the last one. `shares`: true probabilities of the protected symbols or of the class."""
    component = make_component("policy", policy, "policy")
    if shares is None:
        curve = moment_curves(component, n, generations)["mean_error" if protect == "error" else "variance_ratio"]
    else:
        curve = np.array([-np.expm1(n * np.log1p(-shares)).sum(), chance_alive(component, n, generations, shares).sum()])
    first, last = float(curve[0]), float(curve[-1])
    if protect == "error":
        return first, last
    return 1 / first if first else np.inf, 1 / last if last else np.inf


def smallest_share(
    policy: str, setting: str, rows: int, generations: int, bound: float, what: Literal["error", "variance"] = "error"
) -> float | None:
    """Smallest real share with which a policy keeps the multiplier within `bound`; None if even the largest does not.

    `setting`: `real_share` (of mix, accumulate_real), in steps of one row of `rows`, or `ratio` (of augment, fresh, expanding),
    whose real share at generation 2 is 1 / (1 + ratio), with up to `rows` synthetic rows.
    """
    if setting not in ("real_share", "ratio"):
        raise SpecError(unknown_name("setting", setting, ("real_share", "ratio")))

    def multiplier(synthetic: int) -> float:
        table: Mapping[str, Any] = {"name": policy, "ratio": synthetic / rows}
        if setting == "real_share":
            table = {"name": policy, "real_share": 1 - synthetic / rows}
        elif not synthetic:
            table = {"name": "mix", "real_share": 1.0}  # n real rows in every fit, as n fresh ones
        first, last = losses(table, rows, generations, what)
        return last / first

    stretch = find_stretch(multiplier, rows, bound)
    if stretch is None:
        return None
    return 1 - stretch[1] / rows if setting == "real_share" else rows / (rows + stretch[1])


def find_stretch(multiplier: Callable[[int], float], limit: int, bound: float) -> tuple[int, int] | None:
    """The ends of the last stretch of synthetic row counts, within 0 .. `limit`, with a multiplier within the bound; or None.

    The multiplier need not be monotone: it is evaluated on a grid, the ends of the stretch are bisected, and if no point of the
    grid is within the bound, the neighborhood of the lowest point is searched.
    """
    values: dict[int, float] = {}

    def value(m: int) -> float:
        if m not in values:
            values[m] = multiplier(m)
        return values[m]

    grid = sorted({round(limit * i / (GRID_POINTS - 1)) for i in range(GRID_POINTS)})
    lowest = min(grid, key=value)
    threshold = bound * (1 + ROUNDING)
    if value(lowest) > threshold:
        lowest = _find_minimum(value, grid, lowest)
        if value(lowest) > threshold:
            return None
        grid = sorted({*grid, lowest})
    within = [value(m) <= threshold for m in grid]
    last = max(i for i, inside in enumerate(within) if inside)
    first = max((i for i in range(last) if not within[i]), default=-1) + 1
    low = grid[0] if first == 0 else _bisect(lambda m: value(m) <= threshold, grid[first], grid[first - 1])
    high = grid[last] if last + 1 == len(grid) else _bisect(lambda m: value(m) <= threshold, grid[last], grid[last + 1])
    return low, high


def _find_minimum(value: Callable[[int], float], grid: list[int], lowest: int) -> int:
    """The integer with the lowest value between the neighbors of the lowest point of a grid: ternary search."""
    i = grid.index(lowest)
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    return min(range(low, high + 1), key=value)


def _bisect(is_within: Callable[[int], bool], inside: int, outside: int) -> int:
    """The last integer within the bound, on the way from one within it to one beyond it."""
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if is_within(middle) else (inside, middle)
    return inside
