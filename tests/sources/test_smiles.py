"""Molecules that RDKit embeds from SMILES."""

import gzip
import itertools
import warnings

import numpy as np
import pytest
from example_molecules import DRUGS, Chem, are_equal, read_all, to_texts, without

from selfloop.columns import count_rows, select_rows
from selfloop.errors import DataError, SpecError
from selfloop.sources import sdf as smiles
from selfloop.sources.sdf import Smiles, embed


def test_the_conformers_of_a_molecule_do_not_depend_on_the_list(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(DRUGS))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(("id,SMILES\n" + "".join(f"1,{t}\n" for t in DRUGS[::-1])).encode()))
    text, table = (read_all(Smiles(path=tmp_path / name, conformers=2)) for name in ("a.txt", "b.csv.gz"))
    order = [to_texts(table).index(name) + k % 2 for k, name in enumerate(to_texts(text))]
    assert are_equal(without(select_rows(table, np.array(order)), "molecule"), without(text, "molecule"))


def test_the_column_of_a_table_is_set_or_is_named_smiles(tmp_path):
    (tmp_path / "a.csv").write_text("name,drug\nx,CCO\ny,CCN\n")
    assert to_texts(read_all(Smiles(path=tmp_path / "a.csv", column="drug", conformers=1))) == ["CCO", "CCN"]
    for source in (Smiles(path=tmp_path / "a.csv"), Smiles(path=tmp_path / "a.csv", column="Drug")):
        with pytest.raises(DataError, match="Allowed: drug, name"):
            source.n_rows()
    with pytest.raises(SpecError, match=r"^column: got 'a'; the built-in list has no columns"):
        Smiles(column="a")


def test_relaxed_conformers_have_less_energy():
    from rdkit.Chem import rdForceFieldHelpers

    def energy(mol, k):
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=k).CalcEnergy()

    raw, relaxed = (embed("CC(=O)Nc1ccc(O)cc1", 3, relax=relax) for relax in (False, True))
    assert all(energy(relaxed, k) < energy(raw, k) - 1 for k in range(3))
    assert embed("[Fe]C", 1, relax=True) == "without parameters of MMFF94"


def test_conformers_of_a_smiles_with_unspecified_stereo_centers_have_one_form():
    mol = embed("CC(O)C(F)Cl", 6, relax=False)
    forms = set()
    for k in range(6):
        one = Chem.Mol(mol, confId=k)
        Chem.AssignStereochemistryFrom3D(one)
        forms.add(Chem.MolToSmiles(one))
    assert len(forms) == 1


def test_rows_without_a_smiles_are_counted(tmp_path):
    (tmp_path / "A.CSV").write_text("id,smiles\n1,CCO\n2,\n3,\n4,C1CC\n5,CCN\n")
    source = Smiles(path=tmp_path / "A.CSV", conformers=1)
    with pytest.warns(UserWarning, match=r"2 molecules without a SMILES .*1 molecule whose SMILES cannot be read \(C1CC\)"):
        assert to_texts(read_all(source)) == ["CCO", "CCN"]


def test_a_molecule_that_takes_too_long_to_embed_is_excluded_on_every_machine(tmp_path, monkeypatch):
    clock = itertools.count(step=1000)  # each look at the clock is 1,000 s later
    monkeypatch.setattr(smiles, "monotonic", lambda: next(clock))
    assert embed("CCO", 1, relax=False) == "that take more than 120 s to embed"


@pytest.mark.slow
def test_embedding_a_molecule_has_an_end(monkeypatch):
    monkeypatch.setattr(smiles, "TIMEOUT", 1)
    assert embed("C" * 80, 20, relax=False) == "that take more than 1 s to embed"


@pytest.mark.slow
def test_the_built_in_molecules_all_embed_and_differ():
    source = Smiles(conformers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = read_all(source)
    assert count_rows(rows) == source.n_rows() == 112
    n_atoms = np.diff(rows["z"].offsets)
    assert 16 <= n_atoms.min() < n_atoms.max() <= 50


def test_errors_name_the_unreadable_file(tmp_path):
    for name, content, message in (
        ("empty.smi", b"\n", "has no SMILES"),
        ("latin.smi", b"CCO caf\xe9\n", "is not UTF-8 at byte 7"),
        ("long.csv", b"smiles\n" + b"C" * 200_000 + b"\n", r"is not a CSV file \(field larger"),
        ("missing.smi", None, "does not exist"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} {message}"):
            Smiles(path=tmp_path / name).n_rows()
