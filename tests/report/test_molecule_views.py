"""Views of molecules: the real molecule and the samples on one scale, superimposed, with the data for rotating them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from example_galleries import molecule_columns, molecule_gallery

from selfloop.report.gallery import view_gallery
from selfloop.report.picture_grid import Molecule, MoleculeView
from selfloop.report.theme import policy_styles
from selfloop.report.values import Gallery

STYLES = policy_styles(["replace", "accumulate"])


def read_positions(view: MoleculeView) -> list[np.ndarray]:
    """Sorted positions of the atoms of every picture, the real molecule first."""
    pictures = [np.array(text.split(), float).reshape(-1, 3) for text in re.findall(r'data-positions="([^"]*)"', view.svg)]
    return [positions[np.lexsort(positions.T.round(0))] for positions in pictures]


def gallery_of(*molecules: tuple[list[int], list[list[float]], list[list[int]]]) -> Gallery:
    rows = molecule_columns(molecules)
    return Gallery(schema={}, real=rows, samples={"replace": {1: rows}})


def test_each_molecule_is_shown_with_the_same_row_of_every_policy_and_generation() -> None:
    gallery_view = view_gallery(molecule_gallery(), STYLES)
    assert [view.title for view in gallery_view.molecules] == ["Molecule 1: C2H6O, 9 atoms", "Molecule 2: H2O, 3 atoms"]
    for view, atoms in zip(gallery_view.molecules, (9, 3), strict=True):
        assert view.svg.count("data-positions=") == 1 + 2 * 3
        assert view.svg.count("<circle") == (1 + 2 * 3) * atoms
        assert "replace, accumulate" in view.alt
    assert (gallery_view.svg, gallery_view.text_rows, gallery_view.tables) == ("", (), {})


def test_a_rotated_sample_is_superimposed_on_the_real_molecule_and_a_distorted_sample_differs() -> None:
    view = view_gallery(molecule_gallery(), STYLES).molecules[0]
    real, *samples = read_positions(view)
    for unmoved in samples[3:]:  # accumulate
        np.testing.assert_allclose(unmoved, real, atol=0.1)
    assert np.abs(samples[2] - real).max() > 5


def test_a_mirror_image_is_not_superimposed_on_the_molecule() -> None:
    rows = molecule_columns(
        [([6, 1, 9, 17, 35], [[0, 0, 0], [1, 0, 0], [0, 1.3, 0], [0, 0, 1.7], [-1, -1, -1.2]], [[0, k] for k in range(1, 5)])]
    )
    mirrored = {**rows, "position": replace(rows["position"], values=rows["position"].values * [1, 1, -1])}
    (view,) = view_gallery(Gallery(schema={}, real=rows, samples={"replace": {1: mirrored, 2: rows}}), STYLES).molecules
    real, mirror, same = read_positions(view)
    np.testing.assert_allclose(same, real, atol=0.1)
    assert np.abs(mirror - real).max() > 5


def test_the_picture_is_no_mirror_image() -> None:
    """The handedness of the atoms is that of the real molecule, although y points down on the page."""
    corner = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [-2.0, -1.0, -0.5]]
    (view,) = view_gallery(gallery_of(([6, 7, 8, 9], corner, [[3, 0], [3, 1], [3, 2]])), STYLES).molecules
    match = re.search(r'data-positions="([^"]*)"', view.svg)
    assert match
    at = np.array(match[1].split(), float).reshape(-1, 3) * [1, -1, 1]
    colors = re.findall(r'<g fill="(#\w+)"', view.svg)[:4]
    order = [colors.index(color) for color in ("#6f7780", "#4a7fe0", "#e0453a", "#5fb84e")]
    real = np.array(corner) - np.mean(corner, axis=0)
    assert np.sign(np.linalg.det(at[order][:3])) == np.sign(np.linalg.det(real[:3]))


def test_atoms_are_drawn_from_the_back_to_the_front_with_a_half_of_each_bond() -> None:
    view = view_gallery(molecule_gallery(), STYLES).molecules[0]
    match = re.search(r'data-positions="([^"]*)" data-bonds="([^"]*)">(.*?</g>)</g>', view.svg)
    assert match
    at, bonds = np.array(match[1].split(), float).reshape(-1, 3), np.array(match[2].split(), int).reshape(-1, 2)
    assert (np.diff(at[:, 2]) >= 0).all()
    halves = [path.count("M") for path in re.findall(r'<path d="([^"]*)"', match[3])]
    assert halves == np.bincount(bonds.ravel(), minlength=9).tolist()


def test_atoms_without_finite_positions_are_not_drawn_and_distant_atoms_are_counted() -> None:
    rows = molecule_columns([([8, 1, 1], [[0, 0, 0], [0, 0.8, 0.5], [0, -0.8, 0.5]], [[0, 1], [0, 2]])])
    for value, atoms, label in ((np.nan, 2, ""), (300.0, 3, "3 outside")):
        broken = rows["position"].values.copy()
        broken[1, 1] = value
        sample = {**rows, "position": replace(rows["position"], values=broken)}
        (view,) = view_gallery(Gallery(schema={}, real=rows, samples={"replace": {1: sample}}), STYLES).molecules
        assert len(read_positions(view)[1]) == atoms
        assert (label or "outside") in view.svg if label else "outside" not in view.svg
        assert "nan" not in view.svg


@pytest.mark.parametrize(
    "molecule",
    [([2], [[0.0, 0.0, 0.0]], []), ([8, 1], [[np.nan] * 3] * 2, [[0, 1]]), ([1, 1], [[0.0, 0.0, 0.0]] * 2, [[0, 1]])],
)
def test_molecules_without_extent_or_positions_are_drawn(
    molecule: tuple[list[int], list[list[float]], list[list[int]]],
) -> None:
    (view,) = view_gallery(gallery_of(molecule), STYLES).molecules
    assert "nan" not in view.svg
    assert len(read_positions(view)) == 2


@pytest.mark.parametrize(
    ("numbers", "formula"), [([1, 6, 1, 8, 1, 1], "CH4O"), ([17, 1], "ClH"), ([6, 35, 17, 7], "CBrClN"), ([92, 9], "F[92]")]
)
def test_formulas_are_in_hills_order(numbers: list[int], formula: str) -> None:
    assert Molecule(np.array(numbers), np.zeros((len(numbers), 3)), np.zeros((0, 2), np.int64)).formula() == formula
