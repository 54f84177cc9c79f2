"""Curves drawn with characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from selfloop.columns import Floats

BARS = "▁▂▃▄▅▆▇█"
PLOT_ROWS, PLOT_COLUMNS = 12, 60
SPARKLINE_COLUMNS = 40


def plot_lines(title: str, curves: Mapping[str, Floats]) -> Iterator[str]:
    """Lines of a plot of curves over generations, with one letter per curve."""
    high = max(float(max(values)) for values in curves.values())
    low = min(0.0, *(float(min(values)) for values in curves.values()))
    letters = {name: chr(ord("a") + i % 26) for i, name in enumerate(curves)}
    grid = [[" "] * PLOT_COLUMNS for _ in range(PLOT_ROWS)]
    for name, values in curves.items():
        for x in range(PLOT_COLUMNS):
            t = round(x / (PLOT_COLUMNS - 1) * (len(values) - 1))
            y = round((values[t] - low) / ((high - low) or 1) * (PLOT_ROWS - 1))
            grid[PLOT_ROWS - 1 - y][x] = letters[name]
    yield f"{title}: " + ", ".join(f"{letter} = {name}" for name, letter in letters.items())
    for i, line in enumerate(grid):
        mark = f"{high:9.4g}" if i == 0 else f"{low:9.4g}" if i == PLOT_ROWS - 1 else " " * 9
        yield f"{mark} |{''.join(line)}"
    generations = len(next(iter(curves.values())))
    yield f"{'':9} +{'-' * PLOT_COLUMNS}"
    yield f"{'':10} t = 1{'':{PLOT_COLUMNS - 12}}t = {generations}"


def sparkline(values: Floats) -> str:
    """One character per generation, at most 40; × where a value is missing, empty if all values are missing."""
    positions = np.linspace(0, len(values) - 1, min(len(values), SPARKLINE_COLUMNS))
    visible = [float(values[round(position)]) for position in positions]
    finite = [value for value in visible if np.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(BARS[round((v - low) / ((high - low) or 1) * 7)] if np.isfinite(v) else "×" for v in visible)
