"""Molecules: the real one and each sample on one scale, laid on each other, with what is needed to turn them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from made_reports import molecule_columns, molecule_gallery

from selfloop.report.gallery import show_gallery
from selfloop.report.molecules import Molecule, Scene
from selfloop.report.theme import policy_styles
from selfloop.report.values import Gallery

STYLES = policy_styles(["replace", "accumulate"])


def places(scene: Scene) -> list[np.ndarray]:
    """Of every picture, the real one first: atoms by their places in it, those of each sorted."""
    found = [np.array(at.split(), float).reshape(-1, 3) for at in re.findall(r'data-at="([^"]*)"', scene.svg)]
    return [each[np.lexsort(each.T.round(0))] for each in found]


def gallery_of(*molecules: tuple[list[int], list[list[float]], list[list[int]]]) -> Gallery:
    rows = molecule_columns(molecules)
    return Gallery(schema={}, real=rows, samples={"replace": {1: rows}})


def test_each_molecule_stands_with_the_same_row_of_every_policy_and_generation() -> None:
    shown = show_gallery(molecule_gallery(), STYLES)
    assert [scene.title for scene in shown.scenes] == ["Molecule 1: C2H6O, 9 atoms", "Molecule 2: H2O, 3 atoms"]
    for scene, atoms in zip(shown.scenes, (9, 3), strict=True):
        assert scene.svg.count("data-at=") == 1 + 2 * 3
        assert scene.svg.count("<circle") == (1 + 2 * 3) * atoms + 2  # and a mark for each policy
        assert "replace, accumulate" in scene.alt
    assert (shown.svg, shown.stories, shown.rows) == ("", (), ())


def test_a_sample_that_is_only_turned_lies_on_the_real_molecule_and_a_shaken_one_does_not() -> None:
    scene = show_gallery(molecule_gallery(), STYLES).scenes[0]
    real, *samples = places(scene)
    for unmoved in samples[3:]:  # accumulate
        np.testing.assert_allclose(unmoved, real, atol=0.1)
    assert np.abs(samples[2] - real).max() > 5


def test_a_mirror_image_is_not_laid_on_the_molecule() -> None:
    rows = molecule_columns(
        [([6, 1, 9, 17, 35], [[0, 0, 0], [1, 0, 0], [0, 1.3, 0], [0, 0, 1.7], [-1, -1, -1.2]], [[0, k] for k in range(1, 5)])]
    )
    mirrored = {**rows, "position": replace(rows["position"], values=rows["position"].values * [1, 1, -1])}
    (scene,) = show_gallery(Gallery(schema={}, real=rows, samples={"replace": {1: mirrored, 2: rows}}), STYLES).scenes
    real, mirror, same = places(scene)
    np.testing.assert_allclose(same, real, atol=0.1)
    assert np.abs(mirror - real).max() > 5


def test_the_picture_is_no_mirror_image_either() -> None:
    """Seen with x to the right and y up, what turns anticlockwise must do so on the page, where y points down."""
    corner = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [-2.0, -1.0, -0.5]]
    (scene,) = show_gallery(gallery_of(([6, 7, 8, 9], corner, [[3, 0], [3, 1], [3, 2]])), STYLES).scenes
    found = re.search(r'data-at="([^"]*)"', scene.svg)
    assert found
    at = np.array(found[1].split(), float).reshape(-1, 3) * [1, -1, 1]
    colors = re.findall(r'<g fill="(#\w+)"', scene.svg)[:4]
    order = [colors.index(color) for color in ("#6f7780", "#4a7fe0", "#e0453a", "#5fb84e")]
    real = np.array(corner) - np.mean(corner, axis=0)
    assert np.sign(np.linalg.det(at[order][:3])) == np.sign(np.linalg.det(real[:3]))


def test_atoms_are_drawn_from_the_back_to_the_front_with_a_half_of_each_bond() -> None:
    scene = show_gallery(molecule_gallery(), STYLES).scenes[0]
    found = re.search(r'data-at="([^"]*)" data-bonds="([^"]*)">(.*?</g>)</g>', scene.svg)
    assert found
    at, bonds = np.array(found[1].split(), float).reshape(-1, 3), np.array(found[2].split(), int).reshape(-1, 2)
    assert (np.diff(at[:, 2]) >= 0).all()
    halves = [path.count("M") for path in re.findall(r'<path d="([^"]*)"', found[3])]
    assert halves == np.bincount(bonds.ravel(), minlength=9).tolist()


def test_places_that_are_no_numbers_are_left_out_with_their_bonds_and_far_ones_counted() -> None:
    rows = molecule_columns([([8, 1, 1], [[0, 0, 0], [0, 0.8, 0.5], [0, -0.8, 0.5]], [[0, 1], [0, 2]])])
    for value, atoms, told in ((np.nan, 2, ""), (300.0, 3, "3 outside")):
        broken = rows["position"].values.copy()
        broken[1, 1] = value
        sample = {**rows, "position": replace(rows["position"], values=broken)}
        (scene,) = show_gallery(Gallery(schema={}, real=rows, samples={"replace": {1: sample}}), STYLES).scenes
        assert len(places(scene)[1]) == atoms
        assert (told or "outside") in scene.svg if told else "outside" not in scene.svg
        assert "nan" not in scene.svg


@pytest.mark.parametrize(
    "molecule",
    [([2], [[0.0, 0.0, 0.0]], []), ([8, 1], [[np.nan] * 3] * 2, [[0, 1]]), ([1, 1], [[0.0, 0.0, 0.0]] * 2, [[0, 1]])],
)
def test_molecules_without_extent_or_places_are_drawn_all_the_same(
    molecule: tuple[list[int], list[list[float]], list[list[int]]],
) -> None:
    (scene,) = show_gallery(gallery_of(molecule), STYLES).scenes
    assert "nan" not in scene.svg
    assert len(places(scene)) == 2


@pytest.mark.parametrize(
    ("numbers", "formula"), [([1, 6, 1, 8, 1, 1], "CH4O"), ([17, 1], "ClH"), ([6, 35, 17, 7], "CBrClN"), ([92, 9], "F[92]")]
)
def test_formulas_are_in_hills_order(numbers: list[int], formula: str) -> None:
    assert Molecule(np.array(numbers), np.zeros((len(numbers), 3)), np.zeros((0, 2), np.int64)).formula() == formula
