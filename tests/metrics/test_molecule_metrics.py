"""Metrics of conformers: bond lengths and angles, clashes, coverage, diversity, strain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from selfloop.component import Context, Family, Sampler, Snapshot
from selfloop.errors import ChainEndedError, SpecError
from selfloop.formats.molecules import add_conformers, build_molecule, ragged_row
from selfloop.metrics.conformers import ConformerCoverage, ConformerDiversity, covered, rmsd_between
from selfloop.metrics.molecules import (
    ClashRate,
    BondLengthDistance,
    RetryRate,
    StrainEnergy,
    mean_distance,
)
from selfloop.rng import RandomStream
from selfloop.types import Ragged, count_rows, select_rows

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdForceFieldHelpers, rdMolTransforms  # noqa: E402

from selfloop.sources.smiles import Smiles  # noqa: E402

CTX = Context(RandomStream(("seed", 0, "measure")), None, 2)
SMILES = ["CCCCO", "CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "c1cc[nH]c1", "OC1CC1", "NCCC(=O)[O-]", "Fc1cccnc1CC", "CSCC#N"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Four conformers of each molecule."""
    path = tmp_path_factory.mktemp("smiles") / "list.txt"
    path.write_text("\n".join(SMILES))
    (found,) = Smiles(path=path, conformers=4).chunks()
    return found


def moved(rows, change):
    """The rows with other coordinates: `change` of those of each row and its number."""
    column = rows["position"]
    at = [change(ragged_row(rows, "position", i).astype(np.float64), i) for i in range(count_rows(rows))]
    return {**rows, "position": Ragged(np.concatenate(at).astype(np.float32), column.offsets)}


def turned(at, i):
    """A row of its own rotation and place."""
    rng = np.random.default_rng(i)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return at @ (q * np.linalg.det(q)).T + rng.normal(size=3)


def snapshot(new, initial, holdout=None, family=None):
    return Snapshot(1, family or Family(), Sampler(), {}, new, holdout or {}, initial, {})


def measured(metric, new, initial, **more):
    numbers = metric.measure(snapshot(new, initial, **more), CTX)
    assert list(numbers) == [metric.name, *metric.units]
    return list(numbers.values())


# --- molecules from rows


def test_molecules_are_rebuilt_with_charges_and_aromatic_rings(rows):
    for i in range(0, count_rows(rows), 4):
        mol = build_molecule(rows, i)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == ragged_row(rows, "smiles", i).tobytes().decode()
        assert sum(atom.GetTotalNumHs() for atom in mol.GetAtoms()) == 0
        assert not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


# --- geometry


def test_geometry_sees_no_rotations_and_as_much_as_bonds_are_stretched(rows):
    assert measured(BondLengthDistance(), moved(rows, turned), rows) == pytest.approx([0, 0], abs=1e-4)
    lengths, angles = measured(BondLengthDistance(), moved(rows, lambda at, i: turned(1.1 * at, i)), rows)
    bonds = np.concatenate([bond_lengths(rows, i) for i in range(count_rows(rows))])
    assert lengths == pytest.approx(0.1 * bonds.mean(), rel=1e-4)
    assert angles < 1e-3


def bond_lengths(rows, i):
    at, bonds = ragged_row(rows, "position", i), ragged_row(rows, "edges", i)[ragged_row(rows, "edge_type", i) <= 22]
    return np.linalg.norm(at[bonds[:, 0]] - at[bonds[:, 1]], axis=1)


def by_hand(rows):
    """Every bond's length and every angle's size by kind, one after another."""
    lengths, angles = {}, {}
    for i in range(count_rows(rows)):
        mol = add_conformers(build_molecule(rows, i), [ragged_row(rows, "position", i)])
        conformer = mol.GetConformer()
        for bond in mol.GetBonds():
            ends = bond.GetBeginAtom(), bond.GetEndAtom()
            kind = (*sorted(atom.GetAtomicNum() for atom in ends), bond.GetBondType())
            length = rdMolTransforms.GetBondLength(conformer, *(atom.GetIdx() for atom in ends))
            lengths.setdefault(kind, []).append(length)
        for atom in mol.GetAtoms():
            near = [bond.GetOtherAtom(atom).GetIdx() for bond in atom.GetBonds()]
            for a, one in enumerate(near):
                for other in near[:a]:
                    arms = sorted(
                        (mol.GetAtomWithIdx(end).GetAtomicNum(), int(mol.GetBondBetweenAtoms(atom.GetIdx(), end).GetBondType()))
                        for end in (one, other)
                    )
                    size = rdMolTransforms.GetAngleDeg(conformer, one, atom.GetIdx(), other)
                    angles.setdefault((atom.GetAtomicNum(), *arms), []).append(size)
    return lengths, angles


def test_geometry_is_what_a_count_by_hand_gives(rows):
    noise = np.random.default_rng(0)
    new = moved(rows, lambda at, i: at + 0.05 * noise.normal(size=at.shape))
    expected = []
    for mine, theirs in zip(by_hand(new), by_hand(rows), strict=True):
        apart = {kind: np.abs(np.sort(mine[kind]) - np.sort(theirs[kind])) for kind in theirs}  # equally many: sorted pairs
        expected.append(np.concatenate(list(apart.values())).mean())
    assert measured(BondLengthDistance(), new, rows) == pytest.approx(expected, rel=1e-4)
    assert expected[0] > 0.02
    assert expected[1] > 1


def test_other_molecules_are_no_reference_for_lengths(rows):
    """Why sampled rows are compared with their own molecules: real rows of others are not at 0."""
    one, other = (select_rows(rows, np.arange(first, first + 16)) for first in (0, 16))
    assert measured(BondLengthDistance(), one, rows) == pytest.approx([0, 0], abs=1e-6)
    distance = measured(BondLengthDistance(), one, {**other, "molecule": one["molecule"]})[0]
    assert distance > 0.005


def test_the_distance_is_the_mean_over_values_of_each_kind():
    kinds, values = np.array([1, 1, 1, 2, 9]), np.array([0.0, 0, 0, 5, 7])
    assert mean_distance(kinds, values, np.array([2, 1, 3]), np.array([1.0, 2, 0])) == pytest.approx((3 * 2 + 4) / 4)
    assert np.isnan(mean_distance(kinds, values, np.array([3]), np.array([0.0])))


# --- clashes


def test_a_row_clashes_when_atoms_more_than_three_bonds_apart_meet(rows):
    assert measured(ClashRate(), rows, rows) == [0]
    some = select_rows(rows, np.flatnonzero(rows["molecule"] != 2))  # nitromethane has no such pairs
    shares = measured(ClashRate(), moved(some, lambda at, i: folded_in(some, at, i)), some)
    assert shares == [0.25]


def folded_in(rows, at, i):
    """Of four rows, one with two strangers an ångström apart, one with neighbours (three bonds) near and the rest far."""
    edges, kinds = ragged_row(rows, "edges", i), ragged_row(rows, "edge_type", i)
    if i % 4 == 0:
        near = {tuple(pair) for pair in edges.tolist()}
        a, b = next((a, b) for a in range(len(at)) for b in range(a + 1, len(at)) if (a, b) not in near)
        at[a] = at[b] + [1.0, 0, 0]
    elif i % 4 == 1:
        a, b = edges[kinds == 24][0]
        at = 100.0 * np.arange(len(at))[:, None] * np.ones(3)
        at[a] = at[b] + [0.5, 0, 0]
    return at


def test_how_near_is_too_near_is_a_setting(rows):
    shares = [measured(ClashRate(closest=closest), rows, rows)[0] for closest in (0.5, 0.8, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[2]


# --- coverage and diversity


@dataclass(frozen=True, kw_only=True)
class Remembering(Family):
    """Gives row k of a molecule the molecule's conformer k modulo those it knows, turned, `shift` of its atoms moved."""

    name: ClassVar[str] = "remembering"
    known: int = 4  # conformers of each molecule
    noise: float = 0.0  # ångström
    fails: bool = False

    def sample(self, params, n, sampler, given, ctx):
        if self.fails:
            raise ChainEndedError("diverged")
        assert "position" not in given
        asked, known = (np.unique(numbers, return_counts=True) for numbers in (given["molecule"], params["molecule"]))
        assert (asked[1] == 2 * known[1][np.isin(known[0], asked[0])]).all(), "twice as many as references, as published"
        seen, rng, at = dict[int, int](), ctx.stream.generator(), []
        memory = {"position": Ragged(params["values"], params["offsets"])}
        for k, number in enumerate(given["molecule"].tolist()):
            mine = np.flatnonzero(params["molecule"] == number)[: self.known]
            place = mine[seen.get(number, 0) % len(mine)]
            seen[number] = seen.get(number, 0) + 1
            row = ragged_row(memory, "position", int(place))
            at.append(turned(row + self.noise * rng.normal(size=row.shape), k))
        position = Ragged(np.concatenate(at).astype(np.float32), given["z"].offsets)
        return {**given, "position": position, "retried": np.zeros(n, np.uint8)}


def coverage(rows, metric=None, **settings) -> Mapping[str, float]:
    params = {"values": rows["position"].values, "offsets": rows["position"].offsets, "molecule": rows["molecule"]}
    snap = Snapshot(1, Remembering(**settings), Sampler(), params, {}, rows, rows, {})
    return (metric or ConformerCoverage()).measure(snap, CTX)


def test_a_model_that_knows_all_conformers_covers_all_of_them(rows):
    for threshold in (0.01, 1.25):
        numbers = coverage(rows, ConformerCoverage(threshold=threshold))
        assert numbers == pytest.approx({"conformer_coverage": 1, "cov_p": 1, "mat_r": 0, "mat_p": 0}, abs=1e-3)


def test_a_model_that_knows_one_conformer_is_precise_and_covers_less(rows):
    flexible = select_rows(rows, np.arange(4))  # butanol
    numbers = coverage(flexible, ConformerCoverage(threshold=0.05), known=1)
    assert numbers["cov_p"] == 1
    assert numbers["mat_p"] == pytest.approx(0, abs=1e-3)
    apart = rmsd_between(flexible, 0, [ragged_row(flexible, "position", i) for i in range(4)], 1)
    assert numbers["conformer_coverage"] == (apart[:, 0] <= 0.05).mean() < 1
    assert numbers["mat_r"] == pytest.approx(apart[:, 0].mean(), abs=1e-3)
    assert numbers["mat_r"] > 0.1


def test_coverage_is_within_the_published_distance():
    assert ConformerCoverage().threshold == 1.25  # of drugs; QM9's is in its presets


def test_noise_is_seen_by_all_four_numbers(rows):
    quiet, loud = coverage(rows, noise=0.05), coverage(rows, noise=1.0)
    assert quiet["mat_r"] < 0.1 < loud["mat_r"]
    assert quiet["mat_p"] < 0.1 < loud["mat_p"]
    assert quiet["conformer_coverage"] == 1 > loud["cov_p"]


def test_the_number_of_molecules_is_a_limit_and_threads_change_nothing(rows):
    one = coverage(rows, ConformerCoverage(molecules=1), noise=0.3)
    assert one == coverage(select_rows(rows, np.arange(4)), noise=0.3)
    params = {"values": rows["position"].values, "offsets": rows["position"].offsets, "molecule": rows["molecule"]}
    snap = Snapshot(1, Remembering(noise=0.3), Sampler(), params, {}, rows, rows, {})
    alone, together = (ConformerCoverage().measure(snap, Context(CTX.stream, None, threads)) for threads in (1, 2))
    assert alone == together


def test_a_model_without_finite_conformers_has_no_coverage(rows):
    assert all(np.isnan(value) for value in coverage(rows, fails=True).values())


def test_coverage_of_distances_by_hand():
    apart = np.array([[0.1, 2.0, 3.0, 0.9], [0.5, 1.0, 2.0, 4.0]])  # two references, four sampled
    assert covered(apart, 0.5) == [1.0, 0.25 + 0.0, pytest.approx(0.3), pytest.approx((0.1 + 1 + 2 + 0.9) / 4)]
    assert covered(apart, 0.4)[:2] == [0.5, 0.25]


def plain_rmsd(one, other):
    """After the best rotation, atom by atom."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    u, s, v = np.linalg.svd(one.T @ other)
    s[2] *= np.sign(np.linalg.det(u @ v))
    return np.sqrt(max(0.0, (np.square(one).sum() + np.square(other).sum() - 2 * s.sum()) / len(one)))


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory):
    """Phenylethanol, whose ring can be turned over, and tert-butylbenzene with 12 numberings of its heavy atoms."""
    path = tmp_path_factory.mktemp("smiles") / "list.txt"
    path.write_text("OCCc1ccccc1\nCC(C)(C)c1ccccc1\n")
    (found,) = Smiles(path=path, conformers=2).chunks()
    return found


def test_distances_are_over_symmetric_numberings_and_a_plain_one_is_not(symmetric):
    for i in (0, 2):
        mol, at = build_molecule(symmetric, i), ragged_row(symmetric, "position", i)
        numberings = mol.GetSubstructMatches(mol, uniquify=False, maxMatches=100000)
        heavy = ragged_row(symmetric, "z", i) > 1
        other = max((at[list(order)] for order in numberings), key=lambda other: plain_rmsd(at[heavy], other[heavy]))
        assert rmsd_between(symmetric, i, [at, turned(other, 0)], 1)[0, 1] == pytest.approx(0, abs=1e-3)
        assert plain_rmsd(at[heavy], other[heavy]) > 0.3


def test_distances_are_the_least_over_all_numberings(symmetric):
    noise = np.random.default_rng(1)
    at = ragged_row(symmetric, "position", 2).astype(np.float64)
    other = at + 0.4 * noise.normal(size=at.shape)
    mol = build_molecule(symmetric, 2)
    heavy = Chem.RemoveHs(mol)
    atoms = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    numberings = heavy.GetSubstructMatches(heavy, uniquify=False)
    assert len(numberings) == 12
    least = min(plain_rmsd(at[atoms], other[atoms][list(order)]) for order in numberings)
    assert rmsd_between(symmetric, 2, [at, other], 1)[1, 0] == pytest.approx(least, abs=1e-4)


def test_diversity_is_the_mean_distance_between_rows_of_a_molecule(rows):
    same = moved(rows, lambda at, i: turned(ragged_row(rows, "position", i - i % 4), i))
    assert measured(ConformerDiversity(), same, rows)[0] == pytest.approx(0, abs=1e-3)
    new, real = measured(ConformerDiversity(), moved(rows, turned), rows)
    assert new == pytest.approx(real, abs=1e-4)
    expected = []
    for first in range(0, count_rows(rows), 4):
        apart = rmsd_between(rows, first, [ragged_row(rows, "position", first + k) for k in range(4)], 1)
        expected.append(apart[np.triu_indices(4, 1)].mean())
    assert real == pytest.approx(np.mean(expected))
    single = select_rows(rows, np.arange(0, count_rows(rows), 4))
    assert np.isnan(measured(ConformerDiversity(), single, single)).all()


# --- energy, second attempts, settings


def test_strain_is_the_energy_above_the_mean_of_the_molecule_s_real_rows(rows):
    some = select_rows(rows, np.arange(8))
    mols = [add_conformers(build_molecule(some, i), [ragged_row(some, "position", i)]) for i in range(8)]
    energies = []
    for mol in mols:
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        energies.append(rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties).CalcEnergy())
    above = np.reshape(energies, (2, 4)) - np.reshape(energies, (2, 4)).mean(axis=1, keepdims=True)
    assert measured(StrainEnergy(), moved(some, turned), some) == pytest.approx([np.median(above), 0], abs=0.02)
    noise = np.random.default_rng(0)
    shaken = moved(some, lambda at, i: at + 0.1 * noise.normal(size=at.shape))
    assert measured(StrainEnergy(), shaken, some)[0] > 20
    assert measured(StrainEnergy(), moved(some, lambda at, i: 0 * at), some)[0] == np.inf


def test_molecules_without_parameters_are_counted(tmp_path):
    (tmp_path / "list.txt").write_text("CCO\nC[Se]C\n")
    (found,) = Smiles(path=tmp_path / "list.txt", conformers=2).chunks()
    assert measured(StrainEnergy(), found, found)[1] == 0.5
    none = select_rows(found, np.array([2, 3]))
    strain, share = measured(StrainEnergy(), none, none)
    assert np.isnan(strain)
    assert share == 1


def test_second_attempts_are_counted(rows):
    assert measured(RetryRate(), {**rows, "retried": np.arange(32, dtype=np.uint8) % 4 == 0}, rows) == [0.25]


@pytest.mark.parametrize("metric", [BondLengthDistance(), ClashRate(), StrainEnergy(), RetryRate(), ConformerDiversity()])
def test_without_new_rows_there_are_no_numbers(metric, rows):
    assert metric.measure(snapshot({}, rows), CTX) == {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClashRate(closest=0), "metrics.clashes.closest: got 0"),
        (lambda: StrainEnergy(molecules=0), "metrics.strain_energy.molecules: got 0"),
        (lambda: ConformerDiversity(molecules=0), "metrics.conformer_diversity.molecules: got 0"),
        (lambda: ConformerCoverage(threshold=-1), "metrics.conformer_coverage.threshold: got -1"),
        (lambda: ConformerCoverage(molecules=0), "metrics.conformer_coverage.molecules: got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says):
    with pytest.raises(SpecError, match=says):
        make()
