"""Coverage of the real conformers of unseen molecules by sampled conformers, and diversity of sampled conformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Gt

from selfloop.columns import Array, Columns, Floats, Ints, select_rows
from selfloop.component import Better, Context, Metric, SampleMetric
from selfloop.errors import ChainEndedError
from selfloop.formats.molecules import add_conformers, build_molecule, ragged_row, require_rdkit
from selfloop.metrics.molecules import MaxMolecules, group_by_molecule
from selfloop.snapshots import Snapshot

MAX_MATCHES = 2000  # symmetric numberings of a molecule that RDKit tries; with more, a distance may be too large
SAMPLES_PER_REFERENCE = 2  # as published
SAMPLED_COLUMNS = ("position", "retried")


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
    secondary_units: ClassVar[Mapping[str, str]] = {"conformer_diversity_real": "Å"}
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
