"""Samples as pictures: an SVG with a row per policy, real rows first, then one picture per generation.

A picture may consist of several images: small ones as PNG, photographs smooth and compressed as JPEG. Molecules rotate: the SVG
has the coordinates in its attributes `data-positions` and `data-bonds`, from which `page.js` draws them again.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array, Columns, Floats, Ints, Ragged, count_rows
from selfloop.formats.molecules import MAX_BOND_TYPE, ragged_row
from selfloop.report.theme import FONT, INK, MARKERS, MUTED, PAPER, Style, format_count
from selfloop.report.values import Gallery

MAX_GENERATIONS_SHOWN = 7
CELL, GAP, MAX_ROW_WIDTH = 128, 16, 960  # pixels: default side of a picture, between two pictures, of a row of pictures

Draw = Callable[[Columns, str], str]  # rows, color -> SVG of one picture
SMALL_GRID_SIDE = 128.0  # width and height of a grid of small images
PHOTO_SIDE, MAX_PIXELS = 64, 128  # side at which a photograph is shown, and most pixels of a side that are stored
MAX_SMALL_GRAY, MAX_SMALL_COLOR = 40, 16  # side in pixels; larger images are photographs
JPEG_QUALITY = 82  # without color subsampling: 1.6 kB per 64 x 64 face, a fifth of a PNG, root mean squared error 4.6 of 255
MAX_MOLECULES = 3
MOLECULE_SIDE_RANGE = 104, 180  # pixels, of a picture
ATOM_COLUMNS = ("z", "position", "edges", "edge_type")
BOND_WIDTH, BALL_RADIUS, HYDROGEN_RADIUS = 0.2, 0.45, 0.28  # in ångström
MIN_VISIBLE_RADIUS = 2.0  # of a picture, in ångström
ELEMENTS = {  # nearly the usual colors, adapted to be visible on a light and a dark background
    1: ("H", "#b4bbc3"), 6: ("C", "#6f7780"), 7: ("N", "#4a7fe0"), 8: ("O", "#e0453a"), 9: ("F", "#5fb84e"),
    15: ("P", "#e8862e"), 16: ("S", "#d6b01f"), 17: ("Cl", "#2f9e44"), 35: ("Br", "#a0522d"), 53: ("I", "#8a4fbf"),
}  # fmt: skip
OTHER_COLOR = "#d06fb0"


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
    parts, high = [f'<defs><g id="real">{frame}{draw(gallery.real, MUTED)}</g></defs>'], 42 + height + (34 if frame else 18)
    for row, (policy, samples) in enumerate(gallery.samples.items()):
        top, color, outline = row * high, styles[policy].color, MARKERS[styles[policy].marker]
        heading = f'<path transform="translate(5,10)" d="{outline}" fill="{color}"/>{svg_text(16, 14, policy, INK, size=13)}'
        parts.append(f'<g class="strip">{_group("heading", left, top, heading)}')
        if right > 20 * len(policy) + 100:  # the right end, where a narrow screen begins, names the policy, too
            parts.append(_group("again", right - GAP, top, svg_text(0, 14, policy, INK, size=13, anchor="end")))
        for i, t in enumerate([None, *generations]):
            content = svg_text(0, -6, "real" if t is None else f"t = {t}", MUTED)
            if t is None:
                content += '<use href="#real"/>'
            elif count_rows(samples.get(t, {})):
                content += frame + draw(samples[t], color)
            else:
                content += svg_text(0, height / 2, "no samples", MUTED)
            parts.append(_group(f'cell" data-t="{t or 0}', left + i * (width + GAP), top + 42, content))
        parts.append("</g>")
    bottom, layout = high * len(gallery.samples), f"{width:g} {high:g} {left}"
    box = f'width="{right:.0f}" height="{bottom:.0f}" viewBox="0 0 {right:.0f} {bottom:.0f}" data-grid="{layout}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="{FONT}">{"".join(parts)}</svg>'


def _group(kind: str, x: float, y: float, content: str) -> str:
    return f'<g class="{kind}" transform="translate({x:.1f},{y:.1f})">{content}</g>'


def svg_text(x: float, y: float, text: str, color: str, size: int = 11, anchor: str = "start") -> str:
    style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


@dataclass(frozen=True, kw_only=True)
class ImageGrid:
    """Layout of the images of one picture, the same for real rows and for every generation."""

    low: float  # black
    high: float  # white
    across: int  # images
    down: int
    shape: tuple[int, int]  # height and width of an image in stored pixels
    scale: float  # size of a stored pixel
    photo: bool

    @property
    def n_images(self) -> int:
        return self.across * self.down

    @property
    def gap(self) -> int:
        """Pixels between two images: one between small images, none between photographs."""
        return 0 if self.photo else 1

    @property
    def size(self) -> tuple[float, float]:
        width, height = self._n_pixels()
        return width * self.scale, height * self.scale

    def _n_pixels(self) -> tuple[int, int]:
        height, width = self.shape
        return self.across * (width + self.gap) - self.gap, self.down * (height + self.gap) - self.gap

    def draw(self, images: Array) -> str:
        """The first images as SVG: a PNG with a transparent gap between images, or a JPEG with lines over the seams.

        Gray PNG images are stored with 64 levels.
        """
        from PIL import Image

        pixels = np.nan_to_num((_with_channels(images[: self.n_images]) - self.low) / ((self.high - self.low) or 1.0) * 255)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        (height, width), color, file = self.shape, pixels.shape[-1] == 3, io.BytesIO()
        canvas = Image.new("RGBA" if not self.photo else "RGB" if color else "L", self._n_pixels())
        for i, image in enumerate(pixels):
            tile = Image.fromarray(image if color else image[..., 0])
            tile = tile if tile.size == (width, height) else tile.resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(tile, (i % self.across * (width + self.gap), i // self.across * (height + self.gap)))
        if self.photo:
            canvas.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
            return self._embed("jpeg", file.getvalue()) + self._draw_seams(len(pixels))
        (canvas if color else canvas.quantize(64)).save(file, "PNG")
        return self._embed("png", file.getvalue(), sharp=self.scale > 2)

    def _draw_seams(self, n: int) -> str:
        (across, down), (height, width) = self.size, (side * self.scale for side in self.shape)
        lines = "".join(f"M{x * width:.1f} 0V{down:.1f}" for x in range(1, self.across))
        lines += "".join(f"M0 {y * height:.1f}H{across:.1f}" for y in range(1, self.down))
        background = "".join(
            f'<rect x="{i % self.across * width:.1f}" y="{i // self.across * height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{PAPER}"/>'
            for i in range(n, self.n_images)
        )
        return f'{background}<path d="{lines}" fill="none" stroke="{PAPER}" stroke-width="2"/>'

    def _embed(self, kind: str, data: bytes, sharp: bool = False) -> str:
        width, height = self.size
        style = ' style="image-rendering:pixelated"' if sharp else ""
        encoded = base64.b64encode(data).decode()
        return f'<image width="{width:.1f}" height="{height:.1f}"{style} href="data:image/{kind};base64,{encoded}"/>'


def fit_image_grid(real: Array, columns: int) -> ImageGrid:
    """The layout for images like the real ones, with `columns` pictures in a row; photographs take the width that fits.

    Black and white are the lowest and the highest value of the real images; uint8 images keep their values.
    """
    height, width, depth = _with_channels(real[:1]).shape[1:]
    side = max(height, width)
    low, high = (0.0, 255.0) if real.dtype == np.uint8 else (float(np.min(real)), float(np.max(real)))
    if side <= (MAX_SMALL_COLOR if depth == 3 else MAX_SMALL_GRAY):
        scale = SMALL_GRID_SIDE / (4 * (side + 1) - 1)
        return ImageGrid(low=low, high=high, across=4, down=4, shape=(height, width), scale=scale, photo=False)
    reduction = min(1.0, MAX_PIXELS / side)
    shape = (max(1, round(height * reduction)), max(1, round(width * reduction)))
    scale = PHOTO_SIDE / max(shape)
    across = int(np.clip((MAX_ROW_WIDTH / columns - GAP) / (shape[1] * scale), 2, 4))
    return ImageGrid(low=low, high=high, across=across, down=4, shape=shape, scale=scale, photo=True)


def is_image(shape: Sequence[int]) -> bool:
    """True if a row of this shape is an image: (height, width), or with 1 or 3 channels first or last."""
    sides = [side for side in shape if side > 4]
    return len(sides) == 2 and (len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))))


def _with_channels(images: Array) -> npt.NDArray[np.float64]:
    """Images as (n, height, width, channels)."""
    pixels = np.asarray(images, np.float64)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)  # torch puts channels first
    return pixels[..., None] if pixels.ndim == 3 else pixels


@dataclass(frozen=True, slots=True)
class Molecule:
    """One row: atomic numbers, positions (atoms, 3) in ångström, bonds (bonds, 2)."""

    z: Ints
    positions: Floats
    bonds: Ints

    def formula(self) -> str:
        """The formula in Hill's order: carbon and hydrogen first, then by symbol; without carbon all by symbol."""
        counts = Counter(ELEMENTS.get(z, (f"[{z}]",))[0] for z in self.z.tolist())
        first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
        symbols = first + sorted({*counts} - {*first})
        return "".join(f"{symbol}{'' if counts[symbol] == 1 else counts[symbol]}" for symbol in symbols)

    def without_undefined(self) -> Molecule:
        """The molecule without the atoms that have no finite position."""
        mask = np.isfinite(self.positions).all(axis=1)
        bonds = self.bonds[np.isin(self.bonds, np.flatnonzero(mask)).all(axis=1)]
        return Molecule(self.z[mask], self.positions[mask], (np.cumsum(mask) - 1)[bonds])


@dataclass(frozen=True, slots=True)
class MoleculeView:
    """One molecule of every policy and generation as SVG."""

    title: str
    alt: str
    svg: str


def is_molecules(columns: Columns) -> bool:
    """True if the rows have atoms, their positions and edges."""
    return "molecule" in columns and all(isinstance(columns.get(name), Ragged) for name in ATOM_COLUMNS)


def view_molecules(gallery: Gallery, styles: Mapping[str, Style]) -> list[MoleculeView]:
    """The first molecules. Samples with the same atoms and bonds are superimposed on the real molecule."""
    numbers = dict.fromkeys(np.asarray(gallery.real["molecule"]).tolist())
    return [_view_molecule(i, number, gallery, styles) for i, number in enumerate(list(numbers)[:MAX_MOLECULES], 1)]


def _view_molecule(i: int, number: int, gallery: Gallery, styles: Mapping[str, Style]) -> MoleculeView:
    real = _read_molecule(gallery.real, number)
    assert real
    reference = _superimpose(real)
    radius = float(np.linalg.norm(reference.positions, axis=1).max(initial=0)) + BALL_RADIUS
    side = round(float(np.clip(MAX_ROW_WIDTH / (1 + len(gallery_generations(gallery))) - GAP, *MOLECULE_SIDE_RANGE)))
    scale = side / 2 / max(radius, MIN_VISIBLE_RADIUS)

    def draw(rows: Columns, _: str) -> str:
        molecule = _read_molecule(rows, number)
        if molecule is None:
            return svg_text(0, side / 2, "no row", MUTED)
        return _draw_molecule(_superimpose(molecule, reference), scale, side)

    formula, atoms = real.formula(), format_count(len(real.z), "atom")
    alt = f"Molecule {i}, {formula}: the real row, and the samples of {', '.join(gallery.samples)} by generation."
    clip = f'<clipPath id="cell"><rect width="{side}" height="{side}"/></clipPath>'
    svg = draw_grid(gallery, styles, draw, size=(side, side)).replace("<defs>", f"<defs>{clip}", 1)
    return MoleculeView(f"Molecule {i}: {formula}, {atoms}", alt, svg)


def _read_molecule(columns: Columns, number: int) -> Molecule | None:
    """The first row of that molecule; there may be several conformers of each."""
    rows = np.flatnonzero(np.asarray(columns["molecule"]) == number)
    if not len(rows):
        return None
    z, positions, edges, types = (ragged_row(columns, name, int(rows[0])) for name in ATOM_COLUMNS)
    bonds = edges.astype(np.int64).reshape(-1, 2)[types.astype(np.int64) <= MAX_BOND_TYPE]
    return Molecule(z.astype(np.int64), positions.astype(np.float64).reshape(-1, 3), bonds)


def _superimpose(molecule: Molecule, reference: Molecule | None = None) -> Molecule:
    """The centered molecule, rotated onto a reference with the same atoms (Kabsch 1976), otherwise along its own axes."""
    molecule = molecule.without_undefined()
    if not len(molecule.z):
        return molecule
    positions = molecule.positions - molecule.positions.mean(axis=0)
    target = positions
    if reference and np.array_equal(molecule.z, reference.z) and np.array_equal(molecule.bonds, reference.bonds):
        target = reference.positions
    left, _, right = np.linalg.svd(positions.T @ target)
    rotation = right.T if target is positions else left @ right
    if np.linalg.det(rotation) < 0:  # a mirror image is another molecule
        rotation = rotation * [1, 1, -1] if target is positions else left * [1, 1, -1] @ right
    return Molecule(molecule.z, positions @ rotation, molecule.bonds)


def _draw_molecule(molecule: Molecule, scale: float, side: int) -> str:
    """Balls with their halves of bonds, from back to front: x to the right, y down, z toward the reader."""
    order = np.argsort(molecule.positions[:, 2], kind="stable")
    positions, z = scale * molecule.positions[order] * [1, -1, 1], molecule.z[order].tolist()
    bonds = np.argsort(order)[molecule.bonds]
    halves = [""] * len(z)
    for a, b in (pair for bond in bonds.tolist() for pair in (bond, bond[::-1])):
        (x, y), (middle_x, middle_y) = positions[a, :2], (positions[a, :2] + positions[b, :2]) / 2
        halves[a] += f"M{x:.1f} {y:.1f}L{middle_x:.1f} {middle_y:.1f}"
    atoms = "".join(
        f'<g fill="{color}" stroke="{color}"><path d="{half}"/><circle cx="{x:.1f}" cy="{y:.1f}" '
        f'r="{(HYDROGEN_RADIUS if number == 1 else BALL_RADIUS) * scale:.1f}" stroke="{PAPER}" stroke-width="0.8"/></g>'
        for number, half, (x, y, _) in zip(z, halves, positions, strict=True)
        for color in [ELEMENTS.get(number, ("", OTHER_COLOR))[1]]
    )
    data = f'data-positions="{_join_numbers(positions)}" data-bonds="{_join_numbers(bonds)}"'
    style = f'transform="translate({side / 2},{side / 2})" stroke-width="{BOND_WIDTH * scale:.1f}" stroke-linecap="round"'
    n_outside = int((np.linalg.norm(positions, axis=1) > side).sum())
    label = svg_text(side, -6, f"{n_outside} outside", MUTED, 9, "end") if n_outside else ""
    return f'<g clip-path="url(#cell)"><g {style} {data}>{atoms}</g></g>{label}'


def _join_numbers(values: Array) -> str:
    return " ".join(f"{value:.4g}" for value in values.ravel().tolist())
