"""Coverage and diversity of conformers: distances against loops over symmetric numberings, hand-worked values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from selfloop.columns import Columns, Params, Ragged, count_rows, select_rows
from selfloop.component import Context, Family, Sampler
from selfloop.errors import ChainEndedError
from selfloop.formats.molecules import build_molecule, ragged_row
from selfloop.metrics.molecules import ConformerCoverage, ConformerDiversity, coverage_values, pairwise_rmsd
from selfloop.snapshots import Snapshot
from selfloop.types import TrainingRows

Chem = pytest.importorskip("rdkit.Chem")
from molecule_rows import CTX, SMILES, conformers, measure, rotated, with_positions  # noqa: E402  # after importorskip


@pytest.fixture(scope="module")
def rows() -> Columns:
    return conformers(*SMILES)


@dataclass(frozen=True, kw_only=True)
class StoredConformers(Family):
    """Row k of a molecule is the k-th of its stored conformers, cyclically, rotated, with noise."""

    name: ClassVar[str] = "stored_conformers"
    n_stored: int = 4  # conformers of each molecule
    noise: float = 0.0  # ångström
    fails: bool = False

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        raise NotImplementedError

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        if self.fails:
            raise ChainEndedError("diverged")
        assert "position" not in inputs
        requested, stored = (np.unique(numbers, return_counts=True) for numbers in (inputs["molecule"], params["molecule"]))
        assert (requested[1] == 2 * stored[1][np.isin(stored[0], requested[0])]).all(), "twice the references, as published"
        counts, rng, positions = dict[int, int](), ctx.stream.generator(), []
        rows = {"position": Ragged(params["values"], params["offsets"])}
        for k, number in enumerate(inputs["molecule"].tolist()):
            indices = np.flatnonzero(params["molecule"] == number)[: self.n_stored]
            row = ragged_row(rows, "position", int(indices[counts.get(number, 0) % len(indices)]))
            counts[number] = counts.get(number, 0) + 1
            positions.append(rotated(row + self.noise * rng.normal(size=row.shape), k))
        position = Ragged(np.concatenate(positions).astype(np.float32), inputs["z"].offsets)
        return {**inputs, "position": position, "retried": np.zeros(n, np.uint8)}


def coverage(rows: Columns, metric: ConformerCoverage | None = None, threads: int = 2, **settings: Any) -> Mapping[str, float]:
    params = {"values": rows["position"].values, "offsets": rows["position"].offsets, "molecule": rows["molecule"]}
    snap = Snapshot(1, StoredConformers(**settings), Sampler(), params, {}, rows, rows, {})
    return (metric or ConformerCoverage()).measure(snap, Context(CTX.stream, None, threads))


def test_a_model_with_all_conformers_covers_all(rows: Columns) -> None:
    for threshold in (0.01, 1.25):
        values = coverage(rows, ConformerCoverage(threshold=threshold))
        assert values == pytest.approx({"conformer_coverage": 1, "cov_p": 1, "mat_r": 0, "mat_p": 0}, abs=1e-3)


def test_a_model_with_one_conformer_is_precise_and_covers_less(rows: Columns) -> None:
    butanol = select_rows(rows, np.arange(4))
    values = coverage(butanol, ConformerCoverage(threshold=0.05), n_stored=1)
    assert values["cov_p"] == 1
    assert values["mat_p"] == pytest.approx(0, abs=1e-3)
    distances = pairwise_rmsd(butanol, 0, [ragged_row(butanol, "position", i) for i in range(4)], 1)
    assert values["conformer_coverage"] == (distances[:, 0] <= 0.05).mean() < 1
    assert values["mat_r"] == pytest.approx(distances[:, 0].mean(), abs=1e-3)
    assert values["mat_r"] > 0.1


def test_noise_changes_all_four_values(rows: Columns) -> None:
    quiet, loud = coverage(rows, noise=0.05), coverage(rows, noise=1.0)
    assert quiet["mat_r"] < 0.1 < loud["mat_r"]
    assert quiet["mat_p"] < 0.1 < loud["mat_p"]
    assert quiet["conformer_coverage"] == 1 > loud["cov_p"]


def test_the_number_of_molecules_is_limited_and_threads_change_no_value(rows: Columns) -> None:
    one = coverage(rows, ConformerCoverage(max_molecules=1), noise=0.3)
    assert one == coverage(select_rows(rows, np.arange(4)), noise=0.3)
    assert coverage(rows, threads=1, noise=0.3) == coverage(rows, threads=2, noise=0.3)


def test_a_model_without_finite_conformers_has_no_coverage(rows: Columns) -> None:
    assert all(np.isnan(value) for value in coverage(rows, fails=True).values())


def test_coverage_of_hand_worked_distances() -> None:
    distances = np.array([[0.1, 2.0, 3.0, 0.9], [0.5, 1.0, 2.0, 4.0]])  # two references, four sampled
    assert coverage_values(distances, 0.5) == [1.0, 0.25, pytest.approx(0.3), pytest.approx((0.1 + 1 + 2 + 0.9) / 4)]
    assert coverage_values(distances, 0.4)[:2] == [0.5, 0.25]


def plain_rmsd(one: Any, other: Any) -> float:
    """RMSD after the best rotation, without symmetric numberings."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    u, s, v = np.linalg.svd(one.T @ other)
    s[2] *= np.sign(np.linalg.det(u @ v))
    return float(np.sqrt(max(0.0, (np.square(one).sum() + np.square(other).sum() - 2 * s.sum()) / len(one))))


@pytest.fixture(scope="module")
def symmetric() -> Columns:
    """Phenylethanol, whose ring is symmetric, and tert-butylbenzene with 12 numberings of its heavy atoms."""
    return conformers("OCCc1ccccc1", "CC(C)(C)c1ccccc1", n=2)


def test_distances_include_symmetric_numberings_and_the_plain_distance_does_not(symmetric: Columns) -> None:
    for i in (0, 2):
        mol, position = build_molecule(symmetric, i), ragged_row(symmetric, "position", i)
        heavy = ragged_row(symmetric, "z", i) > 1
        matches = np.array(mol.GetSubstructMatches(mol, uniquify=False, maxMatches=100_000))
        numberings = matches[np.unique(matches[:, heavy], axis=0, return_index=True)[1]]  # one for each of the heavy atoms
        renumbered = max((position[order] for order in numberings), key=lambda other: plain_rmsd(position[heavy], other[heavy]))
        assert pairwise_rmsd(symmetric, i, [position, rotated(renumbered, 0)], 1)[0, 1] == pytest.approx(0, abs=1e-3)
        assert plain_rmsd(position[heavy], renumbered[heavy]) > 0.3


def test_distances_are_the_minimum_over_all_numberings(symmetric: Columns) -> None:
    position = ragged_row(symmetric, "position", 2).astype(np.float64)
    other = position + 0.4 * np.random.default_rng(1).normal(size=position.shape)
    mol = build_molecule(symmetric, 2)
    heavy = Chem.RemoveHs(mol)
    atoms = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    numberings = heavy.GetSubstructMatches(heavy, uniquify=False)
    assert len(numberings) == 12
    minimum = min(plain_rmsd(position[atoms], other[atoms][list(order)]) for order in numberings)
    assert pairwise_rmsd(symmetric, 2, [position, other], 1)[1, 0] == pytest.approx(minimum, abs=1e-4)


def test_diversity_is_the_mean_distance_between_rows_of_a_molecule(rows: Columns) -> None:
    same = with_positions(rows, lambda position, i: rotated(ragged_row(rows, "position", i - i % 4), i))
    assert measure(ConformerDiversity(), same, rows)[0] == pytest.approx(0, abs=1e-3)
    sampled, real = measure(ConformerDiversity(), with_positions(rows, rotated), rows)
    assert sampled == pytest.approx(real, abs=1e-4)
    means = []
    for first in range(0, count_rows(rows), 4):
        distances = pairwise_rmsd(rows, first, [ragged_row(rows, "position", first + k) for k in range(4)], 1)
        means.append(distances[np.triu_indices(4, 1)].mean())
    assert real == pytest.approx(np.mean(means))
    single = select_rows(rows, np.arange(0, count_rows(rows), 4))
    assert np.isnan(measure(ConformerDiversity(), single, single)).all()
