"""Metrics of sampled conformers: bond lengths and angles, clashes, strain energy, and coverage of the real conformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar, NamedTuple, cast

import numpy as np
from annotated_types import Ge, Gt, Interval

from selfloop.columns import Array, Columns, Floats, Ints, Ragged, count_rows, select_rows
from selfloop.component import Better, Context, Metric, SampleMetric
from selfloop.errors import ChainEndedError
from selfloop.formats.molecules import MAX_BOND_TYPE, add_conformers, build_molecule, ragged_row, require_rdkit
from selfloop.snapshots import Snapshot

N_EDGE_TYPES = 1 << 5  # base of the integer codes of edge types and elements
N_ELEMENTS = 1 << 7
MaxMolecules = Annotated[int, Ge(1), "number of molecules, at most"]
MAX_MATCHES = 2000  # symmetric numberings of a molecule that RDKit tries; with more, a distance may be too large
SAMPLES_PER_REFERENCE = 2  # as published
SAMPLED_COLUMNS = ("position", "retried")


def group_by_molecule(rows: Columns, max_molecules: int) -> dict[int, Ints]:
    """Row indices of each of the first `max_molecules` molecules, by molecule number."""
    numbers = np.asarray(rows["molecule"])
    distinct, first = np.unique(numbers, return_index=True)
    return {int(number): np.flatnonzero(numbers == number) for number in distinct[np.argsort(first)][:max_molecules]}


@dataclass(frozen=True, kw_only=True)
class BondLengthDistance(SampleMetric):
    """Distance of sampled bond lengths from the bond lengths of the initial real rows of the same molecules, in ångström.

    1-Wasserstein distances between the lengths of each kind of bond (two elements and the bond's type), mean over all bonds.
    `bond_angle_distance` is the same for angles, in degrees, of each kind (three elements, two types). Sampled rows have the
    graphs of initial rows, which are therefore the reference: lengths also depend on the neighbors of a bond, which differ in
    other molecules such as held-out ones. Two samples of the same distribution have a distance above 0, by chance.
    """

    name: ClassVar[str] = "bond_length_distance"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "distance of sampled bond lengths to real ones"
    secondary_titles: ClassVar[Mapping[str, str]] = {"bond_angle_distance": "distance of sampled bond angles to real ones"}
    unit: ClassVar[str] = "Å"
    secondary_units: ClassVar[Mapping[str, str]] = {"bond_angle_distance": "degrees"}
    secondary_better: ClassVar[Mapping[str, Better]] = {"bond_angle_distance": "lower"}

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        same = np.flatnonzero(np.isin(np.asarray(snap.initial["molecule"]), np.asarray(snap.samples["molecule"])))
        sampled, real = (_bonds_and_angles(rows) for rows in (snap.samples, select_rows(snap.initial, same)))
        values = map(mean_wasserstein, sampled, real)
        return dict(zip((self.name, *self.secondary_units), values, strict=True))


class KindValues(NamedTuple):
    """Values with an integer code of their kind."""

    kinds: Ints
    values: Floats


def _bonds_and_angles(rows: Columns) -> tuple[KindValues, KindValues]:
    """Length of every bond, in ångström; size of every angle between two bonds of an atom, in degrees."""
    z, edges, edge_type, position = (cast(Ragged, rows[name]) for name in ("z", "edges", "edge_type", "position"))
    types = edge_type.values.astype(np.int64)
    bonds = np.flatnonzero(types <= MAX_BOND_TYPE)
    first_atom = np.repeat(z.offsets[:-1], np.diff(edges.offsets))[bonds]
    a, b = (edges.values[bonds].astype(np.int64) + first_atom[:, None]).T
    bond_type, element, points = types[bonds], z.values.astype(np.int64), position.values.astype(np.float64)
    low, high = np.sort([element[a], element[b]], axis=0)
    lengths = KindValues((low * N_ELEMENTS + high) * N_EDGE_TYPES + bond_type, np.linalg.norm(points[a] - points[b], axis=1))
    center, end = np.concatenate([a, b]), np.concatenate([b, a])
    order = np.argsort(center, kind="stable")
    center, end, code = center[order], end[order], (element[end] * N_EDGE_TYPES + np.tile(bond_type, 2))[order]
    arm = points[end] - points[center]
    arm /= np.maximum(np.linalg.norm(arm, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    kinds, sizes = [np.empty(0, np.int64)], [np.empty(0)]
    for step in range(1, int(np.bincount(center).max(initial=1))):  # pairs each bond of an atom with its later bonds
        first = np.flatnonzero(center[step:] == center[:-step])
        low, high = np.sort([code[first], code[first + step]], axis=0)
        kinds.append((element[center[first]] * N_ELEMENTS * N_EDGE_TYPES + low) * N_ELEMENTS * N_EDGE_TYPES + high)
        cosine = np.einsum("ij,ij->i", arm[first], arm[first + step])
        sizes.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return lengths, KindValues(np.concatenate(kinds), np.concatenate(sizes))


def mean_wasserstein(sampled: KindValues, real: KindValues) -> float:
    """1-Wasserstein distance between the values of each kind, mean over sampled values; NaN if no kind is in both."""
    from scipy.stats import wasserstein_distance

    total, count = 0.0, 0
    for kind in np.intersect1d(sampled.kinds, real.kinds):
        values = sampled.values[sampled.kinds == kind]
        total += len(values) * wasserstein_distance(values, real.values[real.kinds == kind])
        count += len(values)
    return float(total) / count if count else float("nan")


@dataclass(frozen=True, kw_only=True)
class ClashRate(SampleMetric):
    """Share of sampled rows in which two atoms more than three bonds apart are too close.

    Too close is below `radius_factor` times the sum of their van der Waals radii in RDKit (hydrogen 1.2, carbon 1.7, nitrogen
    1.6, oxygen 1.55 Å). At 0.6, about 1 % of DFT conformers of drug-like molecules have such a pair (a strong hydrogen bond),
    and 0.05 % of QM9; at 0.55, none has.
    """

    name: ClassVar[str] = "clash_rate"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "sampled rows with atoms too close"
    unit: ClassVar[str] = "share of rows"
    radius_factor: Annotated[float, Interval(gt=0, le=1), "smallest distance of two atoms, as a share of their radii"] = 0.6

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        table = require_rdkit(f"metrics.{self.name}").GetPeriodicTable()
        radii = self.radius_factor * np.array([table.GetRvdw(number) for number in range(119)])
        return {self.name: float(np.mean([_has_clash(snap.samples, i, radii) for i in range(count_rows(snap.samples))]))}


def _has_clash(rows: Columns, i: int, radii: Floats) -> bool:
    """True if two atoms of row i without an edge are closer than the sum of their radii."""
    position, radius = np.asarray(ragged_row(rows, "position", i), np.float32), radii[ragged_row(rows, "z", i)]
    begin, end = ragged_row(rows, "edges", i).T
    squares = np.square(position[:, None] - position).sum(axis=-1)
    squares[begin, end] = squares[end, begin] = np.inf
    np.fill_diagonal(squares, np.inf)
    return bool((squares < np.square(radius[:, None] + radius)).any())


@dataclass(frozen=True, kw_only=True)
class StrainEnergy(SampleMetric):
    """Median over sampled rows of the MMFF94 energy above the mean energy of the molecule's initial real rows, in kcal/mol.

    MMFF94 of Halgren 1996 in RDKit, without relaxation. `unparametrized_rate` is the share of molecules without parameters.
    """

    name: ClassVar[str] = "strain_energy"
    takes_over_interrupts: ClassVar[bool] = True
    title: ClassVar[str] = "strain energy of sampled rows"
    better: ClassVar[Better] = 0.0
    secondary_titles: ClassVar[Mapping[str, str]] = {"unparametrized_rate": "molecules without force-field parameters"}
    unit: ClassVar[str] = "kcal/mol"
    secondary_units: ClassVar[Mapping[str, str]] = {"unparametrized_rate": "share of molecules"}
    max_molecules: MaxMolecules = 200

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        require_rdkit(f"metrics.{self.name}")
        sampled, numbers = group_by_molecule(snap.samples, self.max_molecules), np.asarray(snap.initial["molecule"])
        strains, n_unparametrized = list[Floats](), 0
        for number, indices in sampled.items():
            real = np.flatnonzero(numbers == number)
            energies = _energies([(snap.initial, i) for i in real] + [(snap.samples, i) for i in indices])
            if energies is None:
                n_unparametrized += 1
            else:
                strains.append(energies[len(real) :] - energies[: len(real)].mean())
        median = float(np.median(np.concatenate(strains))) if strains else float("nan")
        return {"strain_energy": median, "unparametrized_rate": n_unparametrized / len(sampled)}


def _energies(conformers: list[tuple[Columns, int]]) -> Floats | None:
    """MMFF94 energies of rows (columns, index) of one molecule; infinite if not finite; None without parameters."""
    from rdkit.Chem import rdForceFieldHelpers

    mol = add_conformers(build_molecule(*conformers[0]), [ragged_row(rows, "position", i) for rows, i in conformers])
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if properties is None:
        return None
    fields = (rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=k) for k in range(len(conformers)))
    return np.nan_to_num(np.array([field.CalcEnergy() for field in fields], np.float64), nan=np.inf, posinf=np.inf)


@dataclass(frozen=True, kw_only=True)
class RetryRate(SampleMetric):
    """Share of sampled rows whose first attempt was not finite, so that the sampler tried again."""

    name: ClassVar[str] = "retry_rate"
    has_zero: ClassVar[bool] = True
    title: ClassVar[str] = "sampled rows that needed a second attempt"
    unit: ClassVar[str] = "share of rows"

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {self.name: float(np.asarray(snap.samples["retried"]).mean())}


@dataclass(frozen=True, kw_only=True)
class ConformerCoverage(Metric):
    """COV-R, the share of held-out real conformers with a sampled conformer within `threshold`; also COV-P, MAT-R and MAT-P.

    As in Xu et al. 2022 (2203.02923), after Ganea et al. 2021 (2106.07802). For each of the first `max_molecules` held-out
    molecules, the model samples twice as many conformers as there are references. Recall (R) is over references, precision (P)
    over sampled conformers; MAT is the mean distance to the nearest conformer of the other kind. All are means over molecules.
    Distances are RDKit's best RMSD of the heavy atoms, over symmetric numberings too. No value if the model's conformers are
    not finite.
    """

    name: ClassVar[str] = "conformer_coverage"
    takes_over_interrupts: ClassVar[bool] = True
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "coverage of held-out real conformers"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "cov_p": "sampled conformers near a real one (COV-P)",
        "mat_r": "distance of real conformers to the nearest sampled one (MAT-R)",
        "mat_p": "distance of sampled conformers to the nearest real one (MAT-P)",
    }
    unit: ClassVar[str] = "share of real conformers"
    secondary_units: ClassVar[Mapping[str, str]] = {"cov_p": "share of sampled conformers", "mat_r": "Å", "mat_p": "Å"}
    better: ClassVar[Better] = "higher"
    secondary_better: ClassVar[Mapping[str, Better]] = {"cov_p": "higher", "mat_r": "lower", "mat_p": "lower"}
    threshold: Annotated[
        float, Gt(0), "largest distance of a covered conformer, ångström; published: 1.25 for drugs, 0.5 for QM9"
    ] = 1.25
    max_molecules: MaxMolecules = 50

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        require_rdkit(f"metrics.{self.name}")
        groups = group_by_molecule(snap.holdout, self.max_molecules)
        rows = np.concatenate([np.tile(group, SAMPLES_PER_REFERENCE) for group in groups.values()])
        graphs = {name: column for name, column in snap.holdout.items() if name not in SAMPLED_COLUMNS}
        sampler = snap.sampler.for_generation(snap.generation, snap.truth)
        try:
            sampled = snap.family.sample(snap.params, len(rows), sampler, select_rows(graphs, rows), ctx.child("sample"))
        except ChainEndedError:
            return dict.fromkeys((self.name, *self.secondary_units), float("nan"))
        values, samples = list[list[float]](), iter(_positions(sampled, range(len(rows))))
        for group in groups.values():
            conformers = [*_positions(snap.holdout, group), *islice(samples, SAMPLES_PER_REFERENCE * len(group))]
            distances = pairwise_rmsd(snap.holdout, int(group[0]), conformers, ctx.threads)
            values.append(coverage_values(distances[: len(group), len(group) :], self.threshold))
        return dict(zip((self.name, *self.secondary_units), np.mean(values, axis=0).tolist(), strict=True))


def coverage_values(distances: Floats, threshold: float) -> list[float]:
    """COV-R, COV-P, MAT-R and MAT-P of distances between references (rows) and sampled conformers (columns)."""
    recall, precision = distances.min(axis=1), distances.min(axis=0)
    return [float(value.mean()) for value in (recall <= threshold, precision <= threshold, recall, precision)]


def _positions(rows: Columns, indices: Ints | range) -> list[Array]:
    return [ragged_row(rows, "position", i) for i in indices]


def pairwise_rmsd(rows: Columns, i: int, conformers: Sequence[Array], threads: int) -> Floats:
    """Best RMSD of the heavy atoms between all conformers of row i's molecule, in ångström."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    mol = Chem.RemoveHs(add_conformers(build_molecule(rows, i), conformers))
    distances = np.zeros((len(conformers), len(conformers)))
    lower = np.tril_indices(len(conformers), -1)
    distances[lower] = rdMolAlign.GetAllConformerBestRMS(mol, numThreads=threads, maxMatches=MAX_MATCHES)
    return distances + distances.T


@dataclass(frozen=True, kw_only=True)
class ConformerDiversity(SampleMetric):
    """Mean RMSD between sampled rows of the same molecule. All molecules have equal weight.

    Of the first `max_molecules` sampled molecules, those with several rows. `conformer_diversity_real` is the value of their
    initial real rows. Distances as in `conformer_coverage`.
    """

    name: ClassVar[str] = "conformer_diversity"
    compares_samples: ClassVar[bool] = True
    takes_over_interrupts: ClassVar[bool] = True
    title: ClassVar[str] = "distance between sampled conformers of a molecule"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "conformer_diversity_real": "distance between real conformers of a molecule"
    }
    unit: ClassVar[str] = "Å"
    better: ClassVar[Better] = "conformer_diversity_real"
    max_molecules: MaxMolecules = 100

    def measure_samples(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        require_rdkit(f"metrics.{self.name}")
        sampled = group_by_molecule(snap.samples, self.max_molecules)
        numbers = np.asarray(snap.initial["molecule"])
        real = {number: np.flatnonzero(numbers == number) for number in sampled}
        return {
            "conformer_diversity": _mean_rmsd(snap.samples, sampled, ctx.threads),
            "conformer_diversity_real": _mean_rmsd(snap.initial, real, ctx.threads),
        }


def _mean_rmsd(rows: Columns, groups: Mapping[int, Ints], threads: int) -> float:
    """Mean over molecules of the mean RMSD between their rows; NaN if no molecule has several rows."""
    means = []
    for group in groups.values():
        if len(group) > 1:
            distances = pairwise_rmsd(rows, int(group[0]), _positions(rows, group), threads)
            means.append(distances.sum() / (len(group) * (len(group) - 1)))
    return float(np.mean(means)) if means else float("nan")
