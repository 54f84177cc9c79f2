"""Molecules to turn: one real one after another, and beside it a sample of every policy and generation.

The picture holds the coordinates that it was drawn from, in the attributes `data-at` and `data-bonds`, so that `page.js` can
draw it again as a reader turns it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selfloop.formats.molecules import MAX_BOND_TYPE, ragged_row
from selfloop.report.picture_grid import GAP, generations_of, picture_of, text_at
from selfloop.report.theme import MUTED, PAPER, Style
from selfloop.report.values import Gallery
from selfloop.types import Array, Columns, Floats, Ints, Ragged

SHOWN_MOLECULES = 3
WIDEST, SIDES = 960, (104, 180)  # pixels: a row of blocks, and the least and most of a block
COLUMNS = ("z", "position", "edges", "edge_type")
BOND, BALL, HYDROGEN = 0.2, 0.45, 0.28  # width of a bond and radii of balls, in angstrom
SMALLEST = 2.0  # radius in angstrom of what a block shows of a molecule at least
ELEMENTS = {  # nearly the usual colours, such that both grounds set them off
    1: ("H", "#b4bbc3"), 6: ("C", "#6f7780"), 7: ("N", "#4a7fe0"), 8: ("O", "#e0453a"), 9: ("F", "#5fb84e"),
    15: ("P", "#e8862e"), 16: ("S", "#d6b01f"), 17: ("Cl", "#2f9e44"), 35: ("Br", "#a0522d"), 53: ("I", "#8a4fbf"),
}  # fmt: skip
OTHER = "#d06fb0"


@dataclass(frozen=True, slots=True)
class Molecule:
    """One row: atomic numbers, places (atoms, 3) in angstrom, bonds (bonds, 2)."""

    z: Ints
    places: Floats
    bonds: Ints

    def formula(self) -> str:
        """In Hill's order: carbon and hydrogen first, the others by symbol; without carbon all by symbol."""
        counts = Counter(ELEMENTS.get(z, (f"[{z}]",))[0] for z in self.z.tolist())
        first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
        return "".join(
            f"{symbol}{'' if counts[symbol] == 1 else counts[symbol]}" for symbol in first + sorted({*counts} - {*first})
        )

    def is_like(self, other: Molecule) -> bool:
        """Has it the same atoms and bonds?"""
        return np.array_equal(self.z, other.z) and np.array_equal(self.bonds, other.bonds)

    def whole(self) -> Molecule:
        """Without the atoms that have no place."""
        has = np.isfinite(self.places).all(axis=1)
        bonds = self.bonds[np.isin(self.bonds, np.flatnonzero(has)).all(axis=1)]
        return Molecule(self.z[has], self.places[has], (np.cumsum(has) - 1)[bonds])


@dataclass(frozen=True, slots=True)
class Scene:
    """One molecule of every policy and generation."""

    title: str
    alt: str
    svg: str


def is_molecules(columns: Columns) -> bool:
    """Have the rows atoms, their places and edges?"""
    return "molecule" in columns and all(isinstance(columns.get(name), Ragged) for name in COLUMNS)


def scenes(gallery: Gallery, styles: Mapping[str, Style]) -> list[Scene]:
    """The first molecules; samples with the same atoms and bonds are turned so that they lie on the real one."""
    numbers = dict.fromkeys(np.asarray(gallery.real["molecule"]).tolist())
    return [_scene(i, number, gallery, styles) for i, number in enumerate(list(numbers)[:SHOWN_MOLECULES], 1)]


def _scene(i: int, number: int, gallery: Gallery, styles: Mapping[str, Style]) -> Scene:
    real = _molecule(gallery.real, number)
    assert real
    like = _centred(real)
    reach = float(np.linalg.norm(like.places, axis=1).max(initial=0)) + BALL
    side = round(float(np.clip(WIDEST / (1 + len(generations_of(gallery))) - GAP, *SIDES)))
    scale = side / 2 / max(reach, SMALLEST)

    def draw(rows: Columns, _: str) -> str:
        molecule = _molecule(rows, number)
        return _draw(_centred(molecule, like), scale, side) if molecule else text_at(0, side / 2, "no row", MUTED)

    formula, atoms = real.formula(), f"{len(real.z)} atom{'s' * (len(real.z) != 1)}"
    alt = f"Molecule {i}, {formula}: as it is, and as {', '.join(gallery.samples)} sampled it, by generation."
    clip = f'<clipPath id="block"><rect width="{side}" height="{side}"/></clipPath>'
    return Scene(
        f"Molecule {i}: {formula}, {atoms}",
        alt,
        picture_of(gallery, styles, draw, size=(side, side)).replace("<defs>", f"<defs>{clip}", 1),
    )


def _molecule(columns: Columns, number: int) -> Molecule | None:
    """The first row of that molecule; rows may be several conformers of each."""
    rows = np.flatnonzero(np.asarray(columns["molecule"]) == number)
    if not len(rows):
        return None
    z, places, edges, kinds = (ragged_row(columns, name, int(rows[0])) for name in COLUMNS)
    bonds = edges.astype(np.int64).reshape(-1, 2)[kinds.astype(np.int64) <= MAX_BOND_TYPE]
    return Molecule(z.astype(np.int64), places.astype(np.float64).reshape(-1, 3), bonds)


def _centred(molecule: Molecule, like: Molecule | None = None) -> Molecule:
    """The molecule about its middle, laid on another one of the same atoms (Kabsch 1976), or else along its own axes."""
    molecule = molecule.whole()
    if not len(molecule.z):
        return molecule
    places = molecule.places - molecule.places.mean(axis=0)
    onto = like.places if like is not None and molecule.is_like(like) else places
    left, _, right = np.linalg.svd(places.T @ onto)
    turn = right.T if onto is places else left @ right
    if np.linalg.det(turn) < 0:  # a mirror image is another molecule
        turn = turn * [1, 1, -1] if onto is places else left * [1, 1, -1] @ right
    return Molecule(molecule.z, places @ turn, molecule.bonds)


def _draw(molecule: Molecule, scale: float, side: int) -> str:
    """Balls with their halves of bonds, from the back to the front: x to the right, y down, z towards the reader."""
    order = np.argsort(molecule.places[:, 2], kind="stable")
    at, z, bonds = scale * molecule.places[order] * [1, -1, 1], molecule.z[order].tolist(), np.argsort(order)[molecule.bonds]
    halves = [""] * len(z)
    for a, b in (pair for bond in bonds.tolist() for pair in (bond, bond[::-1])):
        (x, y), (middle_x, middle_y) = at[a, :2], (at[a, :2] + at[b, :2]) / 2
        halves[a] += f"M{x:.1f} {y:.1f}L{middle_x:.1f} {middle_y:.1f}"
    drawn = "".join(
        f'<g fill="{color}" stroke="{color}"><path d="{half}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{(HYDROGEN if number == 1 else BALL) * scale:.1f}" stroke="{PAPER}" '
        f'stroke-width="0.8"/></g>'
        for number, half, (x, y, _) in zip(z, halves, at, strict=True)
        for color in [ELEMENTS.get(number, ("", OTHER))[1]]
    )
    data = f'data-at="{_numbers(at)}" data-bonds="{_numbers(bonds)}"'
    look = f'transform="translate({side / 2},{side / 2})" stroke-width="{BOND * scale:.1f}" stroke-linecap="round"'
    far = int((np.linalg.norm(at, axis=1) > side).sum())
    told = text_at(side, -6, f"{far} outside", MUTED, 9, "end") if far else ""
    return f'<g clip-path="url(#block)"><g {look} {data}>{drawn}</g></g>{told}'


def _numbers(values: Array) -> str:
    return " ".join(f"{value:.4g}" for value in values.ravel().tolist())
