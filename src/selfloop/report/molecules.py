"""Rotatable molecules: a real one, and beside it a sample of every policy and generation.

The SVG contains the coordinates in its attributes `data-positions` and `data-bonds`, so that `page.js` can draw the molecule
again when a reader rotates it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selfloop.columns import Array, Columns, Floats, Ints, Ragged
from selfloop.formats.molecules import MAX_BOND_TYPE, ragged_row
from selfloop.report.picture_grid import GAP, MAX_ROW_WIDTH, draw_grid, gallery_generations, svg_text
from selfloop.report.theme import MUTED, PAPER, Style, format_count
from selfloop.report.values import Gallery

MAX_MOLECULES = 3
SIDE_RANGE = 104, 180  # pixels, of a picture
COLUMNS = ("z", "position", "edges", "edge_type")
BOND_WIDTH, BALL_RADIUS, HYDROGEN_RADIUS = 0.2, 0.45, 0.28  # in ångström
MIN_VISIBLE_RADIUS = 2.0  # of a picture, in ångström
ELEMENTS = {  # nearly the usual colors, adapted to be visible on a light and a dark background
    1: ("H", "#b4bbc3"), 6: ("C", "#6f7780"), 7: ("N", "#4a7fe0"), 8: ("O", "#e0453a"), 9: ("F", "#5fb84e"),
    15: ("P", "#e8862e"), 16: ("S", "#d6b01f"), 17: ("Cl", "#2f9e44"), 35: ("Br", "#a0522d"), 53: ("I", "#8a4fbf"),
}  # fmt: skip
OTHER_COLOR = "#d06fb0"


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
    return "molecule" in columns and all(isinstance(columns.get(name), Ragged) for name in COLUMNS)


def view_molecules(gallery: Gallery, styles: Mapping[str, Style]) -> list[MoleculeView]:
    """The first molecules. Samples with the same atoms and bonds are superimposed on the real molecule."""
    numbers = dict.fromkeys(np.asarray(gallery.real["molecule"]).tolist())
    return [_view_molecule(i, number, gallery, styles) for i, number in enumerate(list(numbers)[:MAX_MOLECULES], 1)]


def _view_molecule(i: int, number: int, gallery: Gallery, styles: Mapping[str, Style]) -> MoleculeView:
    real = _read_molecule(gallery.real, number)
    assert real
    reference = _superimpose(real)
    radius = float(np.linalg.norm(reference.positions, axis=1).max(initial=0)) + BALL_RADIUS
    side = round(float(np.clip(MAX_ROW_WIDTH / (1 + len(gallery_generations(gallery))) - GAP, *SIDE_RANGE)))
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
    z, positions, edges, types = (ragged_row(columns, name, int(rows[0])) for name in COLUMNS)
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
