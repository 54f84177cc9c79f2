"""Blocks side by side as one picture: a row per policy, real rows first, then generation after generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape

import numpy as np

from selfloop.report.theme import FONT, INK, MUTED, Style, readable
from selfloop.report.values import Gallery
from selfloop.types import Columns, count_rows

SHOWN_GENERATIONS = 7
CELL, GAP = 128, 16  # pixels: one generation's block unless a size is given, between blocks

Draw = Callable[[Columns, str], str]  # rows, colour -> what is drawn in a block


def shown_generations(generations: Iterable[int], most: int = SHOWN_GENERATIONS) -> list[int]:
    """At most so many of them, the first and the last included, evenly spread."""
    every = sorted(generations)
    return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(len(every), most)).round().astype(int))]


def generations_of(gallery: Gallery) -> list[int]:
    """The generations that are shown."""
    return shown_generations({t for samples in gallery.samples.values() for t in samples})


def picture_of(
    gallery: Gallery, styles: Mapping[str, Style], draw: Draw, frame: str = "", size: tuple[float, float] = (CELL, CELL)
) -> str:
    """The picture as SVG; `frame` lies under every block."""
    generations, (across, down) = generations_of(gallery), size
    left = GAP if frame else 0
    parts, top = [f'<defs><g id="real">{frame}{draw(gallery.real, MUTED)}</g></defs>'], 0.0
    for policy, samples in gallery.samples.items():
        style = styles[policy]
        mark = f'<circle cx="{left + 5}" cy="{top + 10:.1f}" r="4.5" fill="{style.color}"/>'
        parts += [mark, text_at(left + 16, top + 14, policy, INK, size=13)]
        for i, t in enumerate([None, *generations]):
            x = left + i * (across + GAP)
            parts.append(text_at(x, top + 36, "real" if t is None else f"t = {t}", MUTED))
            if t is None:
                parts.append(f'<use href="#real" x="{x:.1f}" y="{top + 42:.1f}"/>')
            elif count_rows(samples.get(t, {})):
                content = draw(samples[t], style.color)
                parts.append(f'<g transform="translate({x:.1f},{top + 42:.1f})">{frame}{content}</g>')
            else:
                parts.append(text_at(x, top + 42 + down / 2, "no samples", MUTED))
        top += 42 + down + (34 if frame else 18)
    width = left + (1 + len(generations)) * (across + GAP)
    box = f'width="{width:.0f}" height="{top:.0f}" viewBox="0 0 {width:.0f} {top:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="{FONT}">{"".join(parts)}</svg>'


def text_at(x: float, y: float, text: str, color: str, size: int = 11, anchor: str = "start") -> str:
    """A line of text as SVG."""
    look = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(readable(text))}</text>'
