"""Rows to look at, next to real ones: images, points and numbers as one picture; texts and tables as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from selfloop.report import Gallery
from selfloop.report.stories import Story, stories
from selfloop.report.theme import FONT, GRID, INK, MUTED, Style, readable, show
from selfloop.types import Array, Column, Columns, Field, Floats, Ragged, count_rows

SHOWN_GENERATIONS = 7
CELL, GAP = 128, 16  # pixels: one generation's block, between blocks
_POINTS, _CELL_LETTERS, _TABLE_ROWS, _TABLE_COLUMNS = 300, 420, 5, 8

Draw = Callable[[Array, str], str]  # rows, colour -> what is drawn in a block of CELL x CELL


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
    stories: Sequence[Story] = ()
    generations: Sequence[int] = ()  # columns of the stories
    header: Sequence[str] = ()  # columns of tables
    rows: Sequence[Sequence[Block]] = ()  # tables: a policy's blocks by generation, real ones first


def show_gallery(gallery: Gallery, styles: Mapping[str, Style]) -> Show:
    """The gallery in the form that fits its columns."""
    name, kind = _choose(gallery)
    alt = f"{name}: samples of {', '.join(gallery.samples)} by generation, next to real rows."
    if kind == "images":
        low, high = _range(gallery.real[name])
        caption = "The same number of samples from each generation's model, next to real images."
        return Show(alt=alt, caption=caption, svg=_picture(gallery, name, styles, lambda rows, _: _mosaic(rows, low, high)))
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


def _show_stories(gallery: Gallery, name: str, alt: str) -> Show:
    generations = shown_generations({t for samples in gallery.samples.values() for t in samples})
    found = stories(gallery, name, generations)
    given = any(story.real and story.real.given for story in found)
    same = "Every text of a row begins with the same prompt, underlined; the model wrote what follows it." if given else (
        "The first rows sampled from each generation's model, next to the first real ones."
    )  # fmt: skip
    return Show(alt=alt, caption=same, stories=found, generations=generations)


def shown_generations(generations: Iterable[int]) -> list[int]:
    """At most seven of them, the first and the last included, evenly spread."""
    every = sorted(generations)
    return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(len(every), SHOWN_GENERATIONS)).round().astype(int))]


def _choose(gallery: Gallery) -> tuple[str, str]:
    """The column to show and how: images and texts wherever they are, points and numbers only when they are alone."""
    kinds = {name: _kind(gallery.real[name], gallery.schema.get(name)) for name in gallery.real}
    for wanted in ("images", "texts"):
        if wanted in kinds.values():
            return next(name for name, kind in kinds.items() if kind == wanted), wanted
    name, kind = next(iter(kinds.items()))
    return (name, kind) if len(kinds) == 1 else ("rows", "table")


def _kind(column: Column, declared: Field | None) -> str:
    if isinstance(column, Ragged):
        return "texts"
    if column.dtype.kind in "USO":
        return "texts"
    shape = declared.shape if declared else column.shape[1:]
    if _is_image(shape):
        return "images"
    return {(): "numbers", (1,): "numbers", (2,): "points"}.get(tuple(shape), "table")


def _is_image(shape: Sequence[int]) -> bool:
    sides = [side for side in shape if side > 4]
    return len(sides) == 2 and (len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))))


def _picture(gallery: Gallery, name: str, styles: Mapping[str, Style], draw: Draw, frame: str = "") -> str:
    """A row of blocks per policy, real rows first, then generations to the right; `frame` lies under every block."""
    generations = shown_generations({t for samples in gallery.samples.values() for t in samples})
    real = _values(gallery.real[name])
    left = GAP if frame else 0
    parts, top = [f'<defs><g id="real">{frame}{draw(real, MUTED)}</g></defs>'], 0
    for policy, samples in gallery.samples.items():
        style = styles[policy]
        mark = f'<circle cx="{left + 5}" cy="{top + 10}" r="4.5" fill="{style.color}"/>'
        parts += [mark, _text(left + 16, top + 14, policy, INK, size=13)]
        for i, t in enumerate([None, *generations]):
            x = left + i * (CELL + GAP)
            parts.append(_text(x, top + 36, "real" if t is None else f"t = {t}", MUTED))
            if t is None:
                parts.append(f'<use href="#real" x="{x}" y="{top + 42}"/>')
            elif count_rows(samples.get(t, {})):
                content = draw(_values(samples[t][name]), style.color)
                parts.append(f'<g transform="translate({x},{top + 42})">{frame}{content}</g>')
            else:
                parts.append(_text(x, top + 42 + CELL / 2, "no samples", MUTED))
        top += 42 + CELL + (34 if frame else 18)
    width = left + (1 + len(generations)) * (CELL + GAP)
    size = f'width="{width}" height="{top}" viewBox="0 0 {width} {top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, color: str, size: int = 11, anchor: str = "start") -> str:
    look = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(readable(text))}</text>'


def _values(column: Column) -> Array:
    if isinstance(column, Ragged):
        raise TypeError("a ragged column is shown as text")
    return column


def _range(column: Column) -> tuple[float, float]:
    """Black and white: the values of the real images; a stored byte is its own grey."""
    values = _values(column)
    if values.dtype == np.uint8:
        return 0.0, 255.0
    return float(np.min(values)), float(np.max(values))


def _mosaic(images: Array, low: float, high: float) -> str:
    """Up to 16 images (4 of large ones) as one PNG in native pixels, a transparent pixel apart."""
    from PIL import Image

    pixels = np.asarray(images, np.float64)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)  # channels first, as torch has them
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    side = 4 if max(pixels.shape[1:3]) <= 40 else 2
    pixels = pixels[: side * side]
    grey = np.clip((pixels - low) / ((high - low) or 1.0) * 255, 0, 255)
    grey = np.nan_to_num(grey, nan=0.0).astype(np.uint8)
    n, height, width, channels = grey.shape
    canvas = np.zeros((side * (height + 1) - 1, side * (width + 1) - 1, 4), np.uint8)
    for i in range(n):
        y, x = (i // side) * (height + 1), (i % side) * (width + 1)
        canvas[y : y + height, x : x + width, :3] = grey[i] if channels == 3 else grey[i][..., :1]
        canvas[y : y + height, x : x + width, 3] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).quantize(64).save(file, "PNG") if channels != 3 else Image.fromarray(canvas).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    scale = CELL / max(canvas.shape[:2])
    size = f'width="{canvas.shape[1] * scale:.1f}" height="{canvas.shape[0] * scale:.1f}"'
    return f'<image {size} style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'


def _show_points(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> Show:
    real = np.asarray(_values(gallery.real[name]), np.float64)
    low, high = real.min(0), real.max(0)
    room = np.where(high > low, (high - low) * 0.2, 1.0)
    low, high = low - room, high + room

    def draw(rows: Array, color: str) -> str:
        points = np.asarray(rows, np.float64)[:_POINTS]
        inside = np.all((points >= low) & (points <= high), axis=1)
        places = (points[inside] - low) / (high - low) * CELL
        path = "".join(f"M{x:.1f} {CELL - y:.1f}h0" for x, y in places)
        dots = f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.4" stroke-linecap="round" stroke-opacity="0.7"/>'
        outside = int((~inside).sum())
        return dots + (_text(CELL, -6, f"{outside} outside", MUTED, 9, "end") if outside else "")

    unit = _unit(gallery, name)
    frame = _frame((low[0], high[0]), f"{name}[0]{unit}", (low[1], high[1]), f"{name}[1]{unit}")
    count = min(_POINTS, len(real))
    caption = f"Up to {count} samples from each generation's model, on the axes of the real rows."
    return Show(alt=alt, caption=caption, svg=_picture(gallery, name, styles, draw, frame))


def _show_histograms(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> Show:
    real = np.asarray(_values(gallery.real[name]), np.float64).ravel()
    edges = _edges(real, bool(np.issubdtype(_values(gallery.real[name]).dtype, np.integer)))
    outline = np.histogram(real, edges)[0] / len(real)
    top = 1.6 * float(outline.max())

    def draw(rows: Array, color: str) -> str:
        values = np.asarray(rows, np.float64).ravel()
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        bars = f'<path d="{_steps(shares, top)}" fill="{color}" fill-opacity="0.75"/>'
        return bars + f'<path d="{_steps(outline, top)}" fill="none" stroke="{INK}" stroke-width="1"/>'

    frame = _frame((edges[0], edges[-1]), f"{name}{_unit(gallery, name)}", (0.0, top), "share of rows")
    caption = "Bars: samples of each generation's model; outline: real rows. Bars above the frame are cut off."
    return Show(alt=alt, caption=caption, svg=_picture(gallery, name, styles, draw, frame))


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
    first, last = _text(-half, 0, show(span[0]), MUTED, 9), _text(half, 0, show(span[1]), MUTED, 9, "end")
    return f"{first}{_text(0, 0, name, MUTED, 9, 'middle')}{last}"


def _unit(gallery: Gallery, name: str) -> str:
    unit = gallery.schema[name].unit if name in gallery.schema else ""
    return f" ({unit})" if unit else ""


def _blocks(gallery: Gallery, fill: Callable[[Columns], list[list[str]]]) -> list[list[Block]]:
    generations = shown_generations({t for samples in gallery.samples.values() for t in samples})
    real = Block(policy="", title="real", cells=fill(gallery.real))
    return [
        [real, *(Block(policy=policy, title=f"t = {t}", cells=fill(samples[t])) for t in generations if t in samples)]
        for policy, samples in gallery.samples.items()
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_LETTERS else text[:_CELL_LETTERS] + " …"


def _flatten(rows: Columns, schema: Mapping[str, Field]) -> list[tuple[str, Array]]:
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
