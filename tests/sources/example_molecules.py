"""Molecules and files of molecules in tests."""

import gzip
import json
import pickle
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from selfloop.columns import Ragged, concat_rows
from selfloop.component import Context
from selfloop.rng import RandomStream

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdDistGeom  # noqa: E402  # after importorskip

CTX = Context(RandomStream(("seed", 0, "source")))
# charges, aromatic rings with and without a hydrogen on nitrogen, rings of three, a stereo center, five elements
DRUGS = ["CCO", "CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "c1cc[nH]c1", "OC1CC1", "C[C@H](N)C(=O)O", "Fc1cccnc1", "CSCC#N"]


def embed_molecule(smiles, count):
    """A molecule with that many conformers."""
    return Chem.Mol(_embed_molecule(smiles, count))


@cache
def _embed_molecule(smiles, count):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=1)) == count
    return mol


def to_record(mol, conformer=-1, tags=()):
    """One record of an SDF file."""
    lines = "".join(f">  <{name}>\n{value}\n\n" for name, value in tags)
    return f"{Chem.MolToMolBlock(mol, confId=conformer)}{lines}$$$$\n"


def place_at_random(smiles):
    """A record of a molecule without hydrogens, at random coordinates."""
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(0).normal(size=(mol.GetNumAtoms(), 3)))
    mol.AddConformer(conformer)
    return to_record(mol)


def write_sdf(path, smiles=DRUGS, count=3, tagged=True):
    """An SDF file with `count` conformers of each molecule."""
    records = [
        to_record(mol, k, [("MOL_ID", text), ("ENERGY", k)] if tagged else ())
        for text in smiles
        for mol in [embed_molecule(text, count)]
        for k in range(count)
    ]
    data = "".join(records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_geom(folder, smiles=DRUGS, count=3, protocol=4):
    """A folder in GEOM's layout, with conformers from the least to the most probable."""
    (folder / "drugs").mkdir(parents=True)
    summary = {}
    for text in smiles:
        mol, conformers = embed_molecule(text, count), []
        for k in range(count):
            weight = np.float64((k + 1) / 10)
            conformers.append({"geom_id": k, "boltzmannweight": weight, "rd_mol": Chem.Mol(mol, confId=k), "more": np.zeros(2)})
        name = f"drugs/{text.replace('/', '_')}.pickle"
        data = pickle.dumps({"smiles": text, "conformers": conformers, "datasets": {"a"}}, protocol)
        (folder / name).write_bytes(data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data)
        summary[text] = {"uniqueconfs": count, "pickle_path": name}
    (folder / "summary_drugs.json").write_text(json.dumps(summary | {"C": {"uniqueconfs": 0}}))
    return folder


def write_qm9(folder, smiles=DRUGS):
    """The same molecules in both forms of QM9: `xyz` and `qm9.npz`."""
    mols = [embed_molecule(text, 1) for text in smiles]
    positions = [np.round(mol.GetConformer().GetPositions(), 4) for mol in mols]
    z = [[atom.GetAtomicNum() for atom in mol.GetAtoms()] for mol in mols]
    (folder / "xyz").mkdir()
    for i, (text, mol) in enumerate(zip(smiles, mols, strict=True)):
        atoms = [
            f"{atom.GetSymbol()}\t"
            + "\t".join(f"{v:.4f}" if abs(v) > 1e-3 else f"{v * 1e6:.1f}*^-6" for v in position)
            + "\t-0.1"
            for atom, position in zip(mol.GetAtoms(), positions[i], strict=True)
        ]
        lines = [str(len(atoms)), f"gdb {i}\t1.0", *atoms, "100.0\t200.0", f"{text}\t{text}", "InChI=1S\tInChI=1S"]
        (folder / "xyz" / f"dsgdb9nsd_{i:06d}.xyz").write_text("\n".join(lines))
    arrays = {"n_atoms": np.array(list(map(len, z)), np.uint8), "Z": np.concatenate(z).astype(np.uint8)}
    np.savez(folder / "qm9.npz", R=np.concatenate(positions).astype(np.float32), smiles=np.array(smiles, "S"), **arrays)
    return folder


def write_tar(folder: Path, path: Path) -> Path:
    """A compressed tar file of a folder."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(folder, folder.name)
    return path


def read_all(source):
    """Every row of a source, in the order of its files."""
    return concat_rows(list(source.chunks()))


def without(rows, *names):
    """The rows without these columns."""
    return {name: column for name, column in rows.items() if name not in names}


def are_equal(one, other):
    """True if two tables have the same columns with the same values."""
    return list(one) == list(other) and all(
        np.array_equal(a.values, b.values) and np.array_equal(a.offsets, b.offsets)
        if isinstance(a, Ragged)
        else np.array_equal(a, b)
        for a, b in ((one[name], other[name]) for name in one)
    )


def to_texts(rows, name="smiles"):
    """A column of texts."""
    return [text.decode() for text in rows[name].to_bytes()]


def row(rows, name, i):
    """Row i of a ragged column."""
    return rows[name].values[rows[name].offsets[i] : rows[name].offsets[i + 1]]
