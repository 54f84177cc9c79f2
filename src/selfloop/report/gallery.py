"""Rows to look at, next to real ones: images, points and numbers as one picture; texts and tables as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfloop.report.image_grid import is_image, mosaic_of
from selfloop.report.molecules import Scene, is_molecules, scenes
from selfloop.report.picture_grid import CELL, generations_of, picture_of, text_at
from selfloop.report.text_rows import Story, stories
from selfloop.report.theme import GRID, INK, MUTED, Style, show
from selfloop.report.values import Gallery
from selfloop.types import Array, Column, Columns, ColumnType, Floats, Ragged, count_rows

_TURNING = (
    "All pictures of a molecule are drawn to one scale and turn together. Samples with the atoms and bonds of the real "
    "molecule are laid on it; atoms outside a block are cut off. First seed."
)
_POINTS, _CELL_LETTERS, _TABLE_ROWS, _TABLE_COLUMNS = 300, 420, 5, 8


@dataclass(frozen=True, kw_only=True)
class Block:
    """Table rows of one policy at one generation, or real ones."""

    policy: str  # empty for real rows
    title: str
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Show:
    """A gallery as the page takes it: a picture, stories or tables."""

    alt: str
    caption: str
    svg: str = ""
    pictured: bool = False  # does the picture show images?
    scenes: Sequence[Scene] = ()
    stories: Sequence[Story] = ()
    generations: Sequence[int] = ()  # columns of the stories
    header: Sequence[str] = ()  # columns of tables
    rows: Sequence[Sequence[Block]] = ()  # tables: a policy's blocks by generation, real ones first


def show_gallery(gallery: Gallery, styles: Mapping[str, Style]) -> Show:
    """The gallery in the form that fits its columns."""
    name, kind = _choose(gallery)
    alt = f"{name}: samples of {', '.join(gallery.samples)} by generation, next to real rows."
    if kind == "images":
        return _show_images(gallery, name, styles, alt)
    if kind == "molecules":
        return Show(alt=alt, caption=_TURNING, scenes=scenes(gallery, styles))
    if kind == "points":
        return _show_points(gallery, name, styles, alt)
    if kind == "numbers":
        return _show_histograms(gallery, name, styles, alt)
    if kind == "texts":
        return _show_stories(gallery, name, alt)
    flat = _flatten(gallery.real, gallery.schema)
    header = [label for label, _ in _fitting(flat)]
    hidden = len(flat) - len(header)
    caption = f"The first rows of each{f'; {hidden} columns before the last are left out' if hidden else ''}."
    return Show(alt=alt, caption=caption, header=header, rows=_blocks(gallery, _table))


def _show_images(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> Show:
    mosaic = mosaic_of(_values(gallery.real[name]), 1 + len(generations_of(gallery)))
    caption = (
        f"The first {mosaic.count} images sampled from each generation's model of the first seed, next to its first real ones. "
        "Every generation draws afresh: the same place in another generation is another sample."
    )
    svg = picture_of(gallery, styles, lambda rows, _: mosaic.draw(_values(rows[name])), size=mosaic.size)
    return Show(alt=alt, caption=caption, svg=svg, pictured=True)


def _show_stories(gallery: Gallery, name: str, alt: str) -> Show:
    generations = generations_of(gallery)
    found = stories(gallery, name, generations)
    given = any(story.real and story.real.given for story in found)
    same = "Every text of a row begins with the same prompt, underlined; the model wrote what follows it." if given else (
        "The first rows sampled from each generation's model, next to the first real ones."
    )  # fmt: skip
    return Show(alt=alt, caption=same, stories=found, generations=generations)


def _choose(gallery: Gallery) -> tuple[str, str]:
    """The column to show and how: images and texts wherever they are, points and numbers only when they are alone."""
    if is_molecules(gallery.real):
        return "position", "molecules"
    kinds = {name: _kind(gallery.real[name], gallery.schema.get(name)) for name in gallery.real}
    for wanted in ("images", "texts"):
        if wanted in kinds.values():
            return next(name for name, kind in kinds.items() if kind == wanted), wanted
    name, kind = next(iter(kinds.items()))
    return (name, kind) if len(kinds) == 1 else ("rows", "table")


def _kind(column: Column, declared: ColumnType | None) -> str:
    if isinstance(column, Ragged):
        return "texts"
    if column.dtype.kind in "USO":
        return "texts"
    shape = declared.shape if declared else column.shape[1:]
    if is_image(shape):
        return "images"
    return {(): "numbers", (1,): "numbers", (2,): "points"}.get(tuple(shape), "table")


def _values(column: Column) -> Array:
    if isinstance(column, Ragged):
        raise TypeError("a ragged column is shown as text")
    return column


def _show_points(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> Show:
    real = np.asarray(_values(gallery.real[name]), np.float64)
    low, high = real.min(0), real.max(0)
    room = np.where(high > low, (high - low) * 0.2, 1.0)
    low, high = low - room, high + room

    def draw(rows: Columns, color: str) -> str:
        points = np.asarray(_values(rows[name]), np.float64)[:_POINTS]
        inside = np.all((points >= low) & (points <= high), axis=1)
        places = (points[inside] - low) / (high - low) * CELL
        path = "".join(f"M{x:.1f} {CELL - y:.1f}h0" for x, y in places)
        dots = f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.4" stroke-linecap="round" stroke-opacity="0.7"/>'
        outside = int((~inside).sum())
        return dots + (text_at(CELL, -6, f"{outside} outside", MUTED, 9, "end") if outside else "")

    unit = _unit(gallery, name)
    frame = _frame((low[0], high[0]), f"{name}[0]{unit}", (low[1], high[1]), f"{name}[1]{unit}")
    count = min(_POINTS, len(real))
    caption = f"Up to {count} samples from each generation's model, on the axes of the real rows."
    return Show(alt=alt, caption=caption, svg=picture_of(gallery, styles, draw, frame))


def _show_histograms(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> Show:
    real = np.asarray(_values(gallery.real[name]), np.float64).ravel()
    edges = _edges(real, bool(np.issubdtype(_values(gallery.real[name]).dtype, np.integer)))
    outline = np.histogram(real, edges)[0] / len(real)
    top = 1.6 * float(outline.max())

    def draw(rows: Columns, color: str) -> str:
        values = np.asarray(_values(rows[name]), np.float64).ravel()
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        bars = f'<path d="{_steps(shares, top)}" fill="{color}" fill-opacity="0.75"/>'
        return bars + f'<path d="{_steps(outline, top)}" fill="none" stroke="{INK}" stroke-width="1"/>'

    frame = _frame((edges[0], edges[-1]), f"{name}{_unit(gallery, name)}", (0.0, top), "share of rows")
    caption = "Bars: samples of each generation's model; outline: real rows. Bars above the frame are cut off."
    return Show(alt=alt, caption=caption, svg=picture_of(gallery, styles, draw, frame))


def _edges(real: Floats, whole: bool) -> Floats:
    low, high = float(real.min()), float(real.max())
    if whole and high - low <= 60:
        return np.arange(low - 0.5, high + 1)
    room = (high - low) * 0.15 or 1.0
    return np.linspace(low - room, high + room, 33)


def _steps(shares: Floats, top: float) -> str:
    width = CELL / len(shares)
    heights = CELL * (1 - np.minimum(shares / top, 1))
    path = "".join(f"V{y:.1f}H{(i + 1) * width:.1f}" for i, y in enumerate(heights))
    return f"M0 {CELL}{path}V{CELL}Z"


def _frame(x: tuple[float, float], x_name: str, y: tuple[float, float], y_name: str) -> str:
    """A block's ground with the ends of both axes and their names."""
    half = CELL / 2
    across = _ends(x, x_name, half)
    upward = _ends(y, y_name, half)
    return (
        f'<rect width="{CELL}" height="{CELL}" fill="none" stroke="{GRID}"/>'
        f'<g transform="translate({half},{CELL + 12})">{across}</g><g transform="translate(-4,{half}) rotate(-90)">{upward}</g>'
    )


def _ends(span: tuple[float, float], name: str, half: float) -> str:
    first, last = text_at(-half, 0, show(span[0]), MUTED, 9), text_at(half, 0, show(span[1]), MUTED, 9, "end")
    return f"{first}{text_at(0, 0, name, MUTED, 9, 'middle')}{last}"


def _unit(gallery: Gallery, name: str) -> str:
    unit = gallery.schema[name].unit if name in gallery.schema else ""
    return f" ({unit})" if unit else ""


def _blocks(gallery: Gallery, fill: Callable[[Columns], list[list[str]]]) -> list[list[Block]]:
    generations = generations_of(gallery)
    real = Block(policy="", title="real", cells=fill(gallery.real))
    return [
        [real, *(Block(policy=policy, title=f"t = {t}", cells=fill(samples[t])) for t in generations if t in samples)]
        for policy, samples in gallery.samples.items()
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_LETTERS else text[:_CELL_LETTERS] + " …"


def _flatten(rows: Columns, schema: Mapping[str, ColumnType]) -> list[tuple[str, Array]]:
    """Numbers column by column, the parts of an array side by side, with their names and units."""
    flat: list[tuple[str, Array]] = []
    for name, column in rows.items():
        if isinstance(column, Ragged):
            continue
        unit = f" ({schema[name].unit})" if name in schema and schema[name].unit else ""
        parts = column.reshape(len(column), -1)
        single = parts.shape[1] == 1
        flat += [(f"{name}{'' if single else f'[{i}]'}{unit}", parts[:, i]) for i in range(parts.shape[1])]
    return flat


def _fitting(columns: list[tuple[str, Array]]) -> list[tuple[str, Array]]:
    """As many columns as a table has room for; the last one, often the target, always."""
    return columns if len(columns) <= _TABLE_COLUMNS else [*columns[: _TABLE_COLUMNS - 1], columns[-1]]


def _table(rows: Columns) -> list[list[str]]:
    columns = [values for _, values in _fitting(_flatten(rows, {}))]
    return [[_cell(values[i]) for values in columns] for i in range(min(_TABLE_ROWS, count_rows(rows)))]


def _cell(value: object) -> str:
    return show(float(value)) if isinstance(value, np.floating) else _cut(str(value))
