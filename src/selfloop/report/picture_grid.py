"""A grid of pictures as one SVG: a row per policy, real rows first, then one picture per generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape

import numpy as np

from selfloop.columns import Columns, count_rows
from selfloop.report.theme import FONT, INK, MARKERS, MUTED, Style
from selfloop.report.values import Gallery

MAX_GENERATIONS_SHOWN = 7
CELL, GAP, MAX_ROW_WIDTH = 128, 16, 960  # pixels: default side of a picture, between two pictures, of a row of pictures

Draw = Callable[[Columns, str], str]  # rows, color -> SVG of one picture


def select_generations(generations: Iterable[int], most: int = MAX_GENERATIONS_SHOWN) -> list[int]:
    """At most `most` of the generations, evenly spread, the first and the last included."""
    ordered = sorted(generations)
    indices = np.linspace(0, len(ordered) - 1, min(len(ordered), most)).round().astype(int)
    return [ordered[i] for i in np.unique(indices)]


def gallery_generations(gallery: Gallery) -> list[int]:
    """The generations that the page shows."""
    return select_generations({t for samples in gallery.samples.values() for t in samples})


def draw_grid(
    gallery: Gallery, styles: Mapping[str, Style], draw: Draw, frame: str = "", size: tuple[float, float] = (CELL, CELL)
) -> str:
    """The grid as SVG; `frame` is drawn under every picture."""
    generations, (width, height) = gallery_generations(gallery), size
    left = GAP if frame else 0
    right = left + (1 + len(generations)) * (width + GAP)
    parts, top = [f'<defs><g id="real">{frame}{draw(gallery.real, MUTED)}</g></defs>'], 0.0
    for policy, samples in gallery.samples.items():
        color, outline = styles[policy].color, MARKERS[styles[policy].marker]
        mark = f'<path transform="translate({left + 5},{top + 10:.1f})" d="{outline}" fill="{color}"/>'
        parts += [mark, svg_text(left + 16, top + 14, policy, INK, size=13)]
        if right > 20 * len(policy) + 100:  # the right end, where a narrow screen begins, names the policy, too
            parts.append(svg_text(right - GAP, top + 14, policy, INK, size=13, anchor="end"))
        for i, t in enumerate([None, *generations]):
            x = left + i * (width + GAP)
            parts.append(svg_text(x, top + 36, "real" if t is None else f"t = {t}", MUTED))
            if t is None:
                parts.append(f'<use href="#real" x="{x:.1f}" y="{top + 42:.1f}"/>')
            elif count_rows(samples.get(t, {})):
                content = draw(samples[t], color)
                parts.append(f'<g transform="translate({x:.1f},{top + 42:.1f})">{frame}{content}</g>')
            else:
                parts.append(svg_text(x, top + 42 + height / 2, "no samples", MUTED))
        top += 42 + height + (34 if frame else 18)
    box = f'width="{right:.0f}" height="{top:.0f}" viewBox="0 0 {right:.0f} {top:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="{FONT}">{"".join(parts)}</svg>'


def svg_text(x: float, y: float, text: str, color: str, size: int = 11, anchor: str = "start") -> str:
    """A line of text as SVG."""
    style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
