"""Example rows of the first seed beside real rows, read from the store or, of an ensemble, drawn again, and their views.

Images, points and numbers are a picture, texts and tables are text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.columns import Array, Column, Columns, ColumnType, Floats, Params, Ragged, count_rows, element_labels, select_rows
from selfloop.engine.ensemble import SeedBlock, sample_again
from selfloop.engine.stored import StoredWorld
from selfloop.engine.tasks import Task, replay_chain
from selfloop.formats.tables import to_python_values
from selfloop.protocols import UsesEncoder
from selfloop.report.picture_grid import (
    CELL,
    MoleculeView,
    draw_grid,
    fit_image_grid,
    gallery_generations,
    is_image,
    is_molecules,
    svg_text,
    view_molecules,
)
from selfloop.report.theme import GRID, INK, MUTED, Style, format_number
from selfloop.report.values import Gallery
from selfloop.spec.point import Point
from selfloop.store.identity import ObjectRef
from selfloop.types import WEIGHT

MAX_POINTS, MAX_TABLE_ROWS, MAX_TABLE_COLUMNS, MAX_TEXT_ROWS = 300, 5, 8, 4

Cells = list[list[str]]
VISIBLE_CHARACTERS, MAX_HIDDEN_CHARACTERS = 420, 20_000  # shown at once, and on demand: a row may be a whole book
MAX_ROWS = 300  # per batch: scatter plots need many, image grids show the first few
PolicySamples = dict[str, dict[int, Columns]]  # policy -> generation -> rows


@dataclass(frozen=True, slots=True)
class TextExcerpt:
    """A text in parts: its prompt, the characters after it that are visible at once, and the characters after those."""

    prompt: str
    head: str
    rest: str
    n_omitted: int = 0  # characters after the rest


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One row: the real text, and the texts of each policy by generation (None: not sampled)."""

    title: str
    real: TextExcerpt | None
    rows: Mapping[str, Sequence[TextExcerpt | None]]


def read_text_rows(gallery: Gallery, name: str, generations: Sequence[int]) -> list[TextRow]:
    """The first rows of the column `name`. The real text of a row begins with the same prompt as the sampled ones."""
    texts = read_texts(gallery.real[name])
    sampled = {p: [_read_excerpts(samples.get(t, {}), name) for t in generations] for p, samples in gallery.samples.items()}
    text_rows = []
    for i in range(max([len(texts), *(len(batch) for batches in sampled.values() for batch in batches)])):
        rows = {policy: [batch[i] if i < len(batch) else None for batch in batches] for policy, batches in sampled.items()}
        prompt = next((text.prompt for row in rows.values() for text in row if text and text.prompt), "")
        real = _excerpt(texts[i], prompt) if i < len(texts) else None
        text_rows.append(TextRow(title=_row_title(i, prompt), real=real, rows=rows))
    return text_rows


def _read_excerpts(rows: Columns, name: str) -> list[TextExcerpt]:
    """The texts of one generation, each with its prompt if there are prompts; empty if it sampled no rows."""
    texts = read_texts(rows[name]) if rows else []
    prompts = read_texts(rows["prompt"]) if "prompt" in rows else [""] * len(texts)
    return [_excerpt(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]


def read_texts(column: Column) -> list[str]:
    """The first rows as text: strings unchanged, ragged bytes as UTF-8, other ragged rows as their numbers."""
    if not isinstance(column, Ragged):
        values = column[:MAX_TEXT_ROWS].tolist()
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    rows = [column.values[a:b] for a, b in pairwise(column.offsets[: MAX_TEXT_ROWS + 1])]
    return [
        row.tobytes().decode("utf-8", "replace") if row.dtype == np.uint8 else " ".join(map(str, row.tolist())) for row in rows
    ]


def _excerpt(text: str, prompt: str) -> TextExcerpt:
    """A text in parts. A prompt that ends within a character is marked up to that character."""
    prompt = prompt.rstrip("\ufffd")
    prompt = prompt if text.startswith(prompt) else ""
    continuation = text[len(prompt) :]
    head, rest = continuation[:VISIBLE_CHARACTERS], continuation[VISIBLE_CHARACTERS:]
    if len(rest) < VISIBLE_CHARACTERS // 10:  # too short to hide
        head, rest = continuation, ""
    return TextExcerpt(prompt, head, rest[:MAX_HIDDEN_CHARACTERS], max(len(rest) - MAX_HIDDEN_CHARACTERS, 0))


def _row_title(i: int, prompt: str) -> str:
    words = " ".join(prompt.split())
    return f"Row {i + 1}" + (f", prompt “{words[:80]}{'…' * (len(words) > 80)}”" if words else "")


@dataclass(frozen=True, kw_only=True)
class GalleryView:
    """A gallery in the form that the page shows: a picture, molecules, texts or tables."""

    alt: str
    caption: str
    svg: str = ""
    molecules: Sequence[MoleculeView] = ()
    text_rows: Sequence[TextRow] = ()
    generations: Sequence[int] = ()  # columns of the text rows
    header: Sequence[str] = ()  # columns of the tables
    tables: Mapping[str, Mapping[str, Cells]] = field(default_factory=dict)  # policy -> title -> rows of cells, real rows first


def view_gallery(gallery: Gallery, styles: Mapping[str, Style]) -> GalleryView:
    """The gallery in the form that fits its columns."""
    name, kind = _choose_column(gallery)
    alt = f"{name}: samples of {', '.join(gallery.samples)} by generation, next to real rows."
    if kind == "molecules":
        caption = (
            f"Samples from {_models_shown(gallery)}. First seed. Pictures of a molecule have one scale and rotate together. "
            "Those with the atoms and bonds of the real molecule are superimposed on it; atoms outside a picture are cut off."
        )
        return GalleryView(alt=alt, caption=caption, molecules=view_molecules(gallery, styles))
    if kind in ("texts", "table"):
        return _view_texts(gallery, name, alt) if kind == "texts" else _view_tables(gallery, alt)
    view = {"images": _view_images, "points": _view_points, "numbers": _view_histograms}[kind]
    return view(gallery, name, styles, alt)


def _choose_column(gallery: Gallery) -> tuple[str, str]:
    """The column to show and its kind. Images and texts come before other columns; points and numbers must be alone."""
    if is_molecules(gallery.real):
        return "position", "molecules"
    kinds = {name: _column_kind(gallery.real[name], gallery.schema.get(name)) for name in gallery.real}
    for preferred in ("images", "texts"):
        if preferred in kinds.values():
            return next(name for name, kind in kinds.items() if kind == preferred), preferred
    return next(iter(kinds.items())) if len(kinds) == 1 else ("rows", "table")


def _column_kind(column: Column, declared: ColumnType | None) -> str:
    if declared and declared.content == "category":
        return "table"
    if isinstance(column, Ragged) or column.dtype.kind in "USO":
        return "texts"
    shape = declared.shape if declared else column.shape[1:]
    return "images" if is_image(shape) else {(): "numbers", (1,): "numbers", (2,): "points"}.get(tuple(shape), "table")


def _models_shown(gallery: Gallery) -> str:
    """From which models the rows on the page are, in words."""
    n_shown, n = len(gallery_generations(gallery)), len({t for samples in gallery.samples.values() for t in samples})
    return "the model of each generation" if n_shown == n else f"the models of {n_shown} of the {n} generations"


def _view_images(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> GalleryView:
    grid = fit_image_grid(np.asarray(gallery.real[name]), 1 + len(gallery_generations(gallery)))
    caption = (
        f"The first {grid.n_images} images sampled from {_models_shown(gallery)}, next to the first real images. "
        "First seed. Every generation samples anew: images at the same position are unrelated."
    )
    svg = draw_grid(gallery, styles, lambda rows, _: grid.draw(np.asarray(rows[name])), size=grid.size)
    return GalleryView(alt=alt, caption=caption, svg=svg)


def _view_texts(gallery: Gallery, name: str, alt: str) -> GalleryView:
    text_rows = read_text_rows(gallery, name, generations := gallery_generations(gallery))
    if any(row.real and row.real.prompt for row in text_rows):
        caption = f"Every text of a row begins with the same prompt, underlined; {_models_shown(gallery)} wrote the rest."
    else:
        caption = f"The first rows sampled from {_models_shown(gallery)}, next to the first real rows."
    return GalleryView(alt=alt, caption=caption, text_rows=text_rows, generations=generations)


def _view_points(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> GalleryView:
    real = np.asarray(gallery.real[name], np.float64)
    low, high = real.min(0), real.max(0)
    margin = np.where(high > low, (high - low) * 0.2, 1.0)
    low, high = low - margin, high + margin

    def draw(rows: Columns, color: str) -> str:
        points = np.asarray(rows[name], np.float64)[:MAX_POINTS]
        inside = np.all((points >= low) & (points <= high), axis=1)
        positions = (points[inside] - low) / (high - low) * CELL
        path = "".join(f"M{x:.1f} {CELL - y:.1f}h0" for x, y in positions)
        dots = f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.4" stroke-linecap="round" stroke-opacity="0.7"/>'
        n_outside = int((~inside).sum())
        return dots + (svg_text(CELL, -6, f"{n_outside} outside", MUTED, 9, "end") if n_outside else "")

    unit = _unit(gallery.schema, name)
    frame = _draw_frame((low[0], high[0]), f"{name}[0]{unit}", (low[1], high[1]), f"{name}[1]{unit}")
    caption = f"Up to {min(MAX_POINTS, len(real))} samples from {_models_shown(gallery)}, on the axes of the real rows."
    return GalleryView(alt=alt, caption=caption, svg=draw_grid(gallery, styles, draw, frame))


def _view_histograms(gallery: Gallery, name: str, styles: Mapping[str, Style], alt: str) -> GalleryView:
    real = np.asarray(gallery.real[name]).ravel()
    edges = _histogram_edges(real)
    outline = np.histogram(real, edges)[0] / len(real)
    top = 1.6 * float(outline.max())

    def draw(rows: Columns, color: str) -> str:
        values = np.asarray(rows[name], np.float64).ravel()
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        bars = f'<path d="{_draw_bars(shares, top)}" fill="{color}" fill-opacity="0.75"/>'
        return bars + f'<path d="{_draw_bars(outline, top)}" fill="none" stroke="{INK}" stroke-width="1"/>'

    frame = _draw_frame((edges[0], edges[-1]), f"{name}{_unit(gallery.schema, name)}", (0.0, top), "share of rows")
    caption = f"Bars: samples from {_models_shown(gallery)}; outline: real rows. Bars above the frame are cut off."
    return GalleryView(alt=alt, caption=caption, svg=draw_grid(gallery, styles, draw, frame))


def _histogram_edges(real: Array) -> Floats:
    low, high = float(real.min()), float(real.max())
    if np.issubdtype(real.dtype, np.integer) and high - low <= 60:
        return np.arange(low - 0.5, high + 1)
    margin = (high - low) * 0.15 or 1.0
    return np.linspace(low - margin, high + margin, 33)


def _draw_bars(shares: Floats, top: float) -> str:
    width = CELL / len(shares)
    heights = CELL * (1 - np.minimum(shares / top, 1))
    path = "".join(f"V{y:.1f}H{(i + 1) * width:.1f}" for i, y in enumerate(heights))
    return f"M0 {CELL}{path}V{CELL}Z"


def _draw_frame(x: tuple[float, float], x_name: str, y: tuple[float, float], y_name: str) -> str:
    """The frame of a picture with the ends and names of both axes."""
    half = CELL / 2

    def label(span: tuple[float, float], name: str) -> str:
        first = svg_text(-half, 0, format_number(span[0]), MUTED, 9)
        return f"{first}{svg_text(0, 0, name, MUTED, 9, 'middle')}{svg_text(half, 0, format_number(span[1]), MUTED, 9, 'end')}"

    return (
        f'<rect width="{CELL}" height="{CELL}" fill="none" stroke="{GRID}"/><g transform="translate({half},{CELL + 12})">'
        f'{label(x, x_name)}</g><g transform="translate(-4,{half}) rotate(-90)">{label(y, y_name)}</g>'
    )


def _unit(schema: Mapping[str, ColumnType], name: str) -> str:
    return f" ({schema[name].unit})" if name in schema and schema[name].unit else ""


def _view_tables(gallery: Gallery, alt: str) -> GalleryView:
    columns = list(_flatten_columns(gallery.real, gallery.schema))
    n_hidden = len(columns) - len(header := _select_columns(columns))
    hidden = f"; {n_hidden} columns before the last are hidden" * bool(n_hidden)
    caption = f"The first rows sampled from {_models_shown(gallery)}{hidden}."
    real, generations = _format_cells(gallery.real, gallery.schema), gallery_generations(gallery)
    tables = {
        policy: {"real": real, **{f"t = {t}": _format_cells(samples[t], gallery.schema) for t in generations if t in samples}}
        for policy, samples in gallery.samples.items()
    }
    return GalleryView(alt=alt, caption=caption, header=header, tables=tables)


def _flatten_columns(rows: Columns, schema: Mapping[str, ColumnType]) -> dict[str, Array]:
    """Columns of numbers and categories by name and unit, elements of an array side by side; None where a value is missing."""
    flat: dict[str, Array] = {}
    for name, values in to_python_values(rows, schema).items():
        elements = np.asarray(values).reshape(len(values), -1).T
        for label, element in zip(element_labels(name, len(elements), schema), elements, strict=True):
            flat[f"{label}{_unit(schema, name)}"] = element
    return flat


def _select_columns(names: Sequence[str]) -> Sequence[str]:
    """As many columns as a table can show, always with the last one, which is often the target."""
    return names if len(names) <= MAX_TABLE_COLUMNS else [*names[: MAX_TABLE_COLUMNS - 1], names[-1]]


def _format_cells(rows: Columns, schema: Mapping[str, ColumnType]) -> Cells:
    flat = _flatten_columns(rows, schema)
    return [list(row) for row in zip(*(_format_column(flat[name]) for name in _select_columns(list(flat))), strict=True)]


def _format_column(cells: Array) -> list[str]:
    """The first cells as text, empty where a value is missing; without decimals if all finite numbers are whole."""
    digits = None if any(isinstance(v, float) and v % 1 > 0 for v in cells.tolist()) else 0
    first = cells[:MAX_TABLE_ROWS].tolist()
    return ["" if v is None else format_number(v, digits) if isinstance(v, float) else str(v) for v in first]


def read_galleries(points: tuple[Point, ...], store: Path) -> Iterator[Gallery]:
    """Rows of every point of the sweep whose chains have any."""
    for point in points:
        real, samples = _draw_ensemble_rows(point) if point.runs_as_ensemble else _read_stored_rows(point, store)
        if samples:
            yield Gallery(schema=point.spec.source.schema(), real=real, samples=samples, coordinates=point.coordinates)


def _read_stored_rows(point: Point, path: Path) -> tuple[Columns, PolicySamples]:
    """The first seed's real and sampled rows from the store."""
    spec, samples = point.spec, PolicySamples()
    real: Columns = {}
    for i, label in enumerate(spec.policy_labels()):
        world = replay_chain(Task(point, (i,), spec.seeds[:1], spec.generations, path, 1))
        if world.rows.initial:
            real = real or _read_rows(world, world.rows.initial)
            samples[label] = {t: _read_rows(world, ref, world.inputs.get(t)) for t, ref in world.samples.items() if ref}
    return real, samples


def _first_rows(rows: Columns, most: int = MAX_ROWS) -> dict[str, Any]:
    rows = {name: column for name, column in rows.items() if name != WEIGHT}
    return select_rows(rows, np.arange(min(most, count_rows(rows))))


def _read_rows(world: StoredWorld, ref: ObjectRef, inputs: ObjectRef | None = None) -> Columns:
    """The first rows of a batch in the source's columns; if they were sampled from prompts, with the column `prompt`."""
    rows, family = world.store.open(ref), world.point.spec.family
    if not isinstance(family, UsesEncoder):
        return _first_rows(rows)
    prepared = cast(Params, world.store.open(world.rows.refs["prepared"]))
    decoded = family.encoder().decode(_first_rows(rows, MAX_TEXT_ROWS), prepared)
    prompts = _first_rows(world.store.open(inputs), count_rows(decoded)).get("prompt") if inputs else None
    if not isinstance(prompts, Ragged):
        return decoded
    return {**decoded, "prompt": family.encoder().decode({"tokens": prompts}, prepared)["text"]}


def _draw_ensemble_rows(point: Point) -> tuple[Columns, PolicySamples]:
    """The first seed's rows, drawn again, of the policies that run on rows."""
    spec, samples = point.spec, PolicySamples()
    block, real = SeedBlock.of_point(point, spec.seeds[:1], draws_rows=True), dict[str, Column]()
    for label, policy, kind in zip(spec.policy_labels(), spec.policies, point.worlds, strict=True):
        if kind == "rows":
            initial, batches = sample_again(block, policy, spec.generations)
            real, samples[label] = _first_rows(initial), {t: _first_rows(rows) for t, rows in batches.items()}
    return real, samples
