"""How well a model's conformers cover the real ones of molecules it has never seen, and how varied they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.component import Context, Metric, Snapshot
from selfloop.errors import ChainEndedError, SpecError
from selfloop.formats.molecules import add_conformers, build_molecule, ragged_row, require_rdkit
from selfloop.metrics.molecules import check_count, molecules_in
from selfloop.types import Array, Columns, Floats, Ints, select_rows

MATCHES = 2000  # symmetric numberings of a molecule that are tried; with more of them a distance may come out too large
FACTOR = 2  # conformers that are sampled for each reference, as published
GENERATED = ("position", "retried")


@dataclass(frozen=True, kw_only=True)
class ConformerCoverage(Metric):
    """COV-R, the share of held-out real conformers with a sampled one within `threshold`; further COV-P, MAT-R and MAT-P.

    As in Xu et al. 2022 (2203.02923), after Ganea et al. 2021 (2106.07802): for each of the first `molecules`
    held-out molecules the model samples twice as many conformers as there are references. Recall (R) looks from references
    to sampled ones, precision (P) the other way; MAT is the mean distance to the nearest. All are means over molecules.
    Distances are RDKit's best RMSD of the heavy atoms, over symmetric numberings too. Thresholds as published: 1.25 Å for
    drugs, 0.5 Å for QM9. Without a value where the model's conformers are not finite.
    """

    name: ClassVar[str] = "conformer_coverage"
    uses_holdout: ClassVar[bool] = True
    title: ClassVar[str] = "coverage of held-out real conformers"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "cov_p": "sampled conformers near a real one (COV-P)",
        "mat_r": "distance of real conformers to the nearest sampled one (MAT-R)",
        "mat_p": "distance of sampled conformers to the nearest real one (MAT-P)",
    }
    unit: ClassVar[str] = "share of real conformers"
    secondary_units: ClassVar[Mapping[str, str]] = {"cov_p": "share of sampled conformers", "mat_r": "Å", "mat_p": "Å"}
    better: ClassVar[str] = ""  # coverage higher, matching distances lower
    threshold: float = 1.25  # Å
    molecules: int = 50

    def __post_init__(self) -> None:
        check_count(self.name, "molecules", self.molecules)
        if not self.threshold > 0:
            raise SpecError(f"metrics.{self.name}.threshold: got {self.threshold}; expected a distance in ångström above 0.")

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        require_rdkit(f"metrics.{self.name}")
        groups = molecules_in(snap.holdout, self.molecules)
        rows = np.concatenate([np.tile(group, FACTOR) for group in groups.values()])
        given = select_rows({name: column for name, column in snap.holdout.items() if name not in GENERATED}, rows)
        sampler = snap.sampler.for_generation(snap.generation, snap.truth)
        try:
            sampled = snap.family.sample(snap.params, len(rows), sampler, given, ctx.child("sample"))
        except ChainEndedError:
            return dict.fromkeys((self.name, *self.secondary_units), float("nan"))
        numbers, start = list[list[float]](), 0
        for group in groups.values():
            references, end = [ragged_row(snap.holdout, "position", i) for i in group], start + FACTOR * len(group)
            made = [ragged_row(sampled, "position", i) for i in range(start, end)]
            apart = rmsd_between(snap.holdout, int(group[0]), references + made, ctx.threads)
            numbers.append(covered(apart[: len(group), len(group) :], self.threshold))
            start = end
        return dict(zip((self.name, *self.secondary_units), np.mean(numbers, axis=0).tolist(), strict=True))


def covered(apart: Floats, threshold: float) -> list[float]:
    """COV-R, COV-P, MAT-R and MAT-P of distances between references (rows) and sampled conformers (columns)."""
    recall, precision = apart.min(axis=1), apart.min(axis=0)
    return [float(value.mean()) for value in (recall <= threshold, precision <= threshold, recall, precision)]


def rmsd_between(rows: Columns, i: int, conformers: Sequence[Array], threads: int) -> Floats:
    """Best RMSD of the heavy atoms between all conformers of row i's molecule, ångström."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    mol = Chem.RemoveHs(add_conformers(build_molecule(rows, i), list(conformers)))
    apart = np.zeros((len(conformers), len(conformers)))
    below = np.tril_indices(len(conformers), -1)
    apart[below] = rdMolAlign.GetAllConformerBestRMS(mol, numThreads=threads, maxMatches=MATCHES)
    return apart + apart.T


@dataclass(frozen=True, kw_only=True)
class ConformerDiversity(Metric):
    """Mean RMSD between sampled rows of the same molecule, and between its initial real rows; molecules count alike.

    Of the first `molecules` sampled molecules with several rows; distances as in `conformer_coverage`.
    """

    name: ClassVar[str] = "conformer_diversity"
    title: ClassVar[str] = "distance between sampled conformers of a molecule"
    secondary_titles: ClassVar[Mapping[str, str]] = {
        "conformer_diversity_real": "distance between real conformers of a molecule"
    }
    unit: ClassVar[str] = "Å"
    secondary_units: ClassVar[Mapping[str, str]] = {"conformer_diversity_real": "Å"}
    better: ClassVar[str] = ""
    molecules: int = 100

    def __post_init__(self) -> None:
        check_count(self.name, "molecules", self.molecules)

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        if not snap.samples:
            return {}
        require_rdkit(f"metrics.{self.name}")
        sampled = molecules_in(snap.samples, self.molecules)
        numbers = np.asarray(snap.initial["molecule"])
        real = {number: np.flatnonzero(numbers == number) for number in sampled}
        spreads = [_spread(rows, groups, ctx.threads) for rows, groups in ((snap.samples, sampled), (snap.initial, real))]
        return dict(zip((self.name, *self.secondary_units), spreads, strict=True))


def _spread(rows: Columns, groups: Mapping[int, Ints], threads: int) -> float:
    """Mean over molecules of the mean RMSD between their rows; NaN when none has several."""
    means = []
    for group in groups.values():
        if len(group) > 1:
            apart = rmsd_between(rows, int(group[0]), [ragged_row(rows, "position", i) for i in group], threads)
            means.append(apart.sum() / (len(group) * (len(group) - 1)))
    return float(np.mean(means)) if means else float("nan")
