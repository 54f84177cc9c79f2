"""RDKit's ETKDG beside GeoDiff: the metrics of conformers, on the held-out molecules of a preset.

    python benchmarks/etkdg.py QM9.npz

Once with the molecular graph alone, as GeoDiff has it, and once with the stereochemistry of the real conformer too.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from selfloop import read_spec
from selfloop.columns import Ragged, count_rows, select_rows
from selfloop.component import Context, Family, Sampler
from selfloop.formats.molecules import add_conformers, build_molecule, ragged_row
from selfloop.metrics.molecules import BondLengthDistance, ClashRate, ConformerCoverage
from selfloop.rng import RandomStream
from selfloop.snapshots import Snapshot
from selfloop.sources.files import read_corpus

ATTEMPTS = (False, True, True), (True, True, True), (True, False, False)  # the last is without ETKDG's knowledge, for cages


@dataclass(frozen=True, kw_only=True)
class Etkdg(Family):
    """Conformers embedded by RDKit (ETKDGv3: Wang et al. 2020, doi 10.1021/acs.jcim.0c00025), each with its own seed."""

    name: ClassVar[str] = "etkdg"
    stereo: bool = False

    def fit(self, rows, ctx, init):
        return {}

    def sample(self, params, n, sampler, inputs, ctx):
        return {
            **inputs,
            "position": Ragged(np.concatenate([self._embed(inputs, i, ctx) for i in range(n)]), inputs["z"].offsets),
        }

    def _embed(self, inputs, i, ctx):
        mol = build_molecule(inputs, i)
        if self.stereo:
            mol = add_conformers(mol, [ragged_row(inputs, "real", i)])
            Chem.AssignStereochemistryFrom3D(mol)
        settings = rdDistGeom.ETKDGv3()
        settings.maxIterations = 50
        settings.randomSeed = ctx.stream.child(i).integer() % 2**31
        for settings.enforceChirality in (self.stereo, False):  # some cages cannot be embedded with it
            for settings.useRandomCoords, settings.useExpTorsionAnglePrefs, settings.useBasicKnowledge in ATTEMPTS:
                if rdDistGeom.EmbedMolecule(mol, settings) == 0:
                    return mol.GetConformer().GetPositions().astype(np.float32)
        raise SystemExit(f"RDKit cannot embed {inputs['smiles'].to_bytes()[i].decode()}")


def main():
    spec = read_spec("gerstgrasser2024_geodiff_qm9_small", [f"source.path={sys.argv[1]}"])
    ctx, corpus = Context(RandomStream(("etkdg",))), read_corpus(spec.source)
    holdout = select_rows(corpus, spec.source.order(corpus, ctx)[: spec.source.n_holdout()])
    holdout["real"] = holdout["position"]
    coverage = next(metric for metric in spec.metrics if isinstance(metric, ConformerCoverage))
    for stereo in (False, True):
        family, rows = Etkdg(stereo=stereo), {name: column for name, column in holdout.items() if name != "position"}
        samples = family.sample({}, count_rows(rows), Sampler(), rows, ctx)
        snap = Snapshot(1, family, Sampler(), {}, samples, holdout, holdout, {})
        values = {}
        for metric in (coverage, ClashRate(), BondLengthDistance()):
            values |= metric.measure(snap, ctx)
        print("graph and stereochemistry" if stereo else "graph alone", {k: round(v, 4) for k, v in values.items()}, flush=True)


if __name__ == "__main__":
    main()
