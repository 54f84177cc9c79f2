"""Bond lengths and angles, clashes and strain of sampled molecules, and molecules built from rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfloop.columns import Columns, count_rows, select_rows
from selfloop.component import Metric
from selfloop.formats.molecules import MAX_BOND_TYPE, add_conformers, build_molecule, ragged_row
from selfloop.metrics.molecules import (
    BondLengthDistance,
    ClashRate,
    ConformerDiversity,
    KindValues,
    RetryRate,
    StrainEnergy,
    mean_wasserstein,
)

Chem = pytest.importorskip("rdkit.Chem")
from molecule_rows import CTX, SMILES, conformers, measure, rotated, snapshot, with_positions  # noqa: E402  # after importorskip
from rdkit.Chem import rdForceFieldHelpers, rdMolTransforms  # noqa: E402  # after importorskip


@pytest.fixture(scope="module")
def rows() -> Columns:
    return conformers(*SMILES)


def test_molecules_are_rebuilt_with_charges_and_aromatic_rings(rows: Columns) -> None:
    for i in range(0, count_rows(rows), 4):
        mol = build_molecule(rows, i)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == ragged_row(rows, "smiles", i).tobytes().decode()
        assert sum(atom.GetTotalNumHs() for atom in mol.GetAtoms()) == 0
        assert not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


def test_bond_distances_ignore_rotations_and_measure_stretched_bonds(rows: Columns) -> None:
    assert measure(BondLengthDistance(), with_positions(rows, rotated), rows) == pytest.approx([0, 0], abs=1e-4)
    stretched = with_positions(rows, lambda position, i: rotated(1.1 * position, i))
    lengths, angles = measure(BondLengthDistance(), stretched, rows)
    bonds = np.concatenate([bond_lengths(rows, i) for i in range(count_rows(rows))])
    assert lengths == pytest.approx(0.1 * bonds.mean(), rel=1e-4)
    assert angles < 1e-3


def bond_lengths(rows: Columns, i: int) -> Any:
    position, edge_type = ragged_row(rows, "position", i), ragged_row(rows, "edge_type", i)
    bonds = ragged_row(rows, "edges", i)[edge_type <= MAX_BOND_TYPE]
    return np.linalg.norm(position[bonds[:, 0]] - position[bonds[:, 1]], axis=1)


def bonds_and_angles(rows: Columns) -> tuple[dict[Any, list[float]], dict[Any, list[float]]]:
    """Lengths of bonds and sizes of angles by kind, one after another with RDKit."""
    lengths: dict[Any, list[float]] = {}
    angles: dict[Any, list[float]] = {}
    for i in range(count_rows(rows)):
        mol = add_conformers(build_molecule(rows, i), [ragged_row(rows, "position", i)])
        conformer = mol.GetConformer()
        for bond in mol.GetBonds():
            ends = bond.GetBeginAtom(), bond.GetEndAtom()
            kind = (*sorted(atom.GetAtomicNum() for atom in ends), bond.GetBondType())
            length = rdMolTransforms.GetBondLength(conformer, *(atom.GetIdx() for atom in ends))
            lengths.setdefault(kind, []).append(length)
        for atom in mol.GetAtoms():
            neighbors = [bond.GetOtherAtom(atom).GetIdx() for bond in atom.GetBonds()]
            for a, one in enumerate(neighbors):
                for other in neighbors[:a]:
                    arms = sorted(
                        (mol.GetAtomWithIdx(end).GetAtomicNum(), int(mol.GetBondBetweenAtoms(atom.GetIdx(), end).GetBondType()))
                        for end in (one, other)
                    )
                    size = rdMolTransforms.GetAngleDeg(conformer, one, atom.GetIdx(), other)
                    angles.setdefault((atom.GetAtomicNum(), *arms), []).append(size)
    return lengths, angles


def test_bond_distances_are_those_of_a_loop_over_bonds_and_angles(rows: Columns) -> None:
    rng = np.random.default_rng(0)
    samples = with_positions(rows, lambda position, i: position + 0.05 * rng.normal(size=position.shape))
    expected = []
    for sampled, real in zip(bonds_and_angles(samples), bonds_and_angles(rows), strict=True):
        distances = [np.abs(np.sort(sampled[kind]) - np.sort(real[kind])) for kind in real]  # equal counts: sorted pairs
        expected.append(np.concatenate(distances).mean())
    assert measure(BondLengthDistance(), samples, rows) == pytest.approx(expected, rel=1e-4)
    assert expected[0] > 0.02
    assert expected[1] > 1


def test_bond_lengths_of_other_molecules_differ(rows: Columns) -> None:
    """The reason why sampled rows are compared with the same molecules: real rows of others have a distance above 0."""
    one, other = (select_rows(rows, np.arange(first, first + 16)) for first in (0, 16))
    assert measure(BondLengthDistance(), one, rows) == pytest.approx([0, 0], abs=1e-6)
    distance = measure(BondLengthDistance(), one, {**other, "molecule": one["molecule"]})[0]
    assert distance > 0.005


def test_the_distance_is_the_mean_over_values_of_each_kind() -> None:
    sampled = KindValues(np.array([1, 1, 1, 2, 9]), np.array([0.0, 0, 0, 5, 7]))
    real = KindValues(np.array([2, 1, 3]), np.array([1.0, 2, 0]))
    assert mean_wasserstein(sampled, real) == pytest.approx((3 * 2 + 4) / 4)
    assert np.isnan(mean_wasserstein(sampled, KindValues(np.array([3]), np.array([0.0]))))


def test_a_row_clashes_if_atoms_more_than_three_bonds_apart_are_close(rows: Columns) -> None:
    assert measure(ClashRate(), rows, rows) == [0]
    some = select_rows(rows, np.flatnonzero(rows["molecule"] != 2))  # nitromethane has no such pairs
    assert measure(ClashRate(), with_positions(some, lambda position, i: move_atoms(some, position, i)), some) == [0.25]


def move_atoms(rows: Columns, position: Any, i: int) -> Any:
    """Of four rows, one with two distant atoms an ångström apart, one with atoms of three bonds close and the rest far."""
    edges, types = ragged_row(rows, "edges", i), ragged_row(rows, "edge_type", i)
    if i % 4 == 0:
        near = {tuple(pair) for pair in edges.tolist()}
        a, b = next((a, b) for a in range(len(position)) for b in range(a + 1, len(position)) if (a, b) not in near)
        position[a] = position[b] + [1.0, 0, 0]
    elif i % 4 == 1:
        a, b = edges[types == 24][0]
        position = 100.0 * np.arange(len(position))[:, None] * np.ones(3)
        position[a] = position[b] + [0.5, 0, 0]
    return position


def test_the_radius_factor_decides_how_close_a_clash_is(rows: Columns) -> None:
    rates = [measure(ClashRate(radius_factor=factor), rows, rows)[0] for factor in (0.5, 0.8, 1.0)]
    assert rates == sorted(rates)
    assert rates[0] == 0 < rates[2]


def test_strain_is_the_energy_above_the_mean_of_the_molecule_s_real_rows(rows: Columns) -> None:
    some = select_rows(rows, np.arange(8))
    energies = []
    for i in range(8):
        mol = add_conformers(build_molecule(some, i), [ragged_row(some, "position", i)])
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        energies.append(rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties).CalcEnergy())
    above = np.reshape(energies, (2, 4)) - np.reshape(energies, (2, 4)).mean(axis=1, keepdims=True)
    assert measure(StrainEnergy(), with_positions(some, rotated), some) == pytest.approx([np.median(above), 0], abs=0.02)
    rng = np.random.default_rng(0)
    shaken = with_positions(some, lambda position, i: position + 0.1 * rng.normal(size=position.shape))
    assert measure(StrainEnergy(), shaken, some)[0] > 20
    assert measure(StrainEnergy(), with_positions(some, lambda position, i: 0 * position), some)[0] == np.inf


def test_molecules_without_parameters_are_counted() -> None:
    rows = conformers("CCO", "C[Se]C", n=2)
    assert measure(StrainEnergy(), rows, rows)[1] == 0.5
    selenium = select_rows(rows, np.array([2, 3]))
    strain, rate = measure(StrainEnergy(), selenium, selenium)
    assert np.isnan(strain)
    assert rate == 1


def test_the_retry_rate_is_the_share_of_second_attempts(rows: Columns) -> None:
    assert measure(RetryRate(), {**rows, "retried": np.arange(32, dtype=np.uint8) % 4 == 0}, rows) == [0.25]


@pytest.mark.parametrize("metric", [BondLengthDistance(), ClashRate(), StrainEnergy(), RetryRate(), ConformerDiversity()])
def test_without_sampled_rows_there_is_no_value(metric: Metric, rows: Columns) -> None:
    assert metric.measure(snapshot({}, rows), CTX) == {}
