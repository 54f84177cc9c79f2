"""QM9: both forms of its files, bonds, and errors for unreadable files."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from example_molecules import DRUGS, Chem, are_equal, read_all, row, to_texts, without, write_qm9, write_tar
from real_data import DATA, needs

from selfloop.columns import count_rows
from selfloop.errors import DataError, SettingError
from selfloop.sources import published_molecules as qm9_source
from selfloop.sources.published_molecules import Qm9


def test_both_forms_give_equal_rows(tmp_path):
    write_qm9(tmp_path)
    archive = write_tar(tmp_path / "xyz", tmp_path / "xyz.tar.gz")
    npz, xyz, tar = (read_all(Qm9(path=path)) for path in (tmp_path / "qm9.npz", tmp_path / "xyz", archive))
    for rows in (npz, xyz):
        assert to_texts(rows) == to_texts(tar)
        np.testing.assert_allclose(rows["position"].values, tar["position"].values, atol=1e-4)
    assert [Chem.CanonSmiles(text) for text in DRUGS] == to_texts(npz)
    assert are_equal(without(npz, "position"), without(xyz, "position"))


def test_larger_molecules_are_left_out_before_any_is_drawn(tmp_path):
    write_qm9(tmp_path, ["CCO", "CCCCO", "CCN", "CCCCN"])
    small = Qm9(path=tmp_path / "qm9.npz", max_heavy_atoms=3)
    assert to_texts(read_all(small)) == to_texts(read_all(Qm9(path=tmp_path / "qm9.npz")))[::2]
    assert small.n_rows() == 2
    with pytest.raises(DataError, match=r"source\.max_heavy_atoms: got 2; .*qm9\.npz has larger molecules only"):
        read_all(replace(small, max_heavy_atoms=2))
    with pytest.raises(SettingError, match=r"max_heavy_atoms: got 3; .*xyz is no npz file"):
        Qm9(path=tmp_path / "xyz", max_heavy_atoms=3)


def test_bonds_are_those_of_the_smiles_if_the_coordinates_agree(tmp_path):
    write_qm9(tmp_path, ["CC=C", "CCO", "CCN"])
    arrays = dict(np.load(tmp_path / "qm9.npz"))
    shuffled = np.random.default_rng(0).permutation(9)  # the atoms of propene
    for name in ("Z", "R"):
        arrays[name][:9] = arrays[name][:9][shuffled]
    arrays["smiles"] = np.array(["CC=C", "CCN", "COC"])  # the second has other bonds, the third other elements
    np.savez(tmp_path / "qm9.npz", **arrays)
    with pytest.warns(UserWarning, match=r"2 molecules whose SMILES and coordinates disagree \(molecule 2, molecule 3\)"):
        rows = read_all(Qm9(path=tmp_path / "qm9.npz"))
    position, bonds = row(rows, "position", 0), row(rows, "edges", 0)[row(rows, "edge_type", 0) <= 22]
    assert (np.linalg.norm(position[bonds[:, 0]] - position[bonds[:, 1]], axis=1) < 1.6).all()
    double = row(rows, "edges", 0)[row(rows, "edge_type", 0) == 2][0]
    assert np.linalg.norm(position[double[0]] - position[double[1]]) < 1.4


@pytest.mark.parametrize("cut", [3, 120])
def test_a_truncated_xyz_file_is_excluded(tmp_path, cut):
    write_qm9(tmp_path, ["CCO", "CCN"])
    file = tmp_path / "xyz" / "dsgdb9nsd_000000.xyz"
    file.write_text(file.read_text()[:cut])
    with pytest.warns(UserWarning, match=r"1 molecule that cannot be read \(dsgdb9nsd_000000.xyz\)"):
        assert to_texts(read_all(Qm9(path=tmp_path / "xyz"))) == ["CCN"]


def test_an_npz_file_with_other_arrays_is_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", Z=np.zeros(3))
    np.savez(tmp_path / "b.npz", Z=np.zeros(3), R=np.zeros((2, 3)), n_atoms=[3], smiles=["C"])
    np.savez(tmp_path / "c.npz", Z=np.zeros(3), R=np.zeros((3, 3)), n_atoms=[3], smiles=np.array(["C"], object))
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    for name, message in (("a", "n_atoms"), ("b", "do not match"), ("c", "allow_pickle"), ("d", r"d\.npz cannot be read")):
        with pytest.raises(DataError, match=message):
            Qm9(path=tmp_path / f"{name}.npz").n_rows()


def test_arrays_larger_than_any_of_qm9_are_not_read(tmp_path, monkeypatch):
    write_qm9(tmp_path)
    monkeypatch.setattr(qm9_source, "MAX_READ_BYTES", 1000)
    with pytest.raises(DataError, match=r"qm9\.npz has more than 1000 bytes when unpacked"):
        Qm9(path=tmp_path / "qm9.npz").n_rows()


@pytest.mark.parametrize(
    "change",
    [
        {"n_atoms": np.array(6)},
        {"n_atoms": np.array(["3", "3"])},
        {"n_atoms": np.array([3.0, 3.0])},
        {"n_atoms": np.array([-1, 7])},
        {"n_atoms": np.array([0, 6])},
        {"n_atoms": np.array([2**63, 2**63 + 6], np.uint64)},
        {"Z": np.array(["C"] * 6)},
        {"R": np.zeros((6, 3), complex)},
        {"smiles": np.array([1, 2])},
        {"smiles": np.array([["O"], ["O"]])},
    ],
)
def test_an_npz_file_with_inconsistent_arrays_is_an_error(tmp_path, change):
    arrays = {"n_atoms": np.array([3, 3]), "Z": np.array([8, 1, 1] * 2), "R": np.zeros((6, 3)), "smiles": np.array(["O", "O"])}
    np.savez(tmp_path / "a.npz", **arrays | change)
    with pytest.raises(DataError, match=r"a\.npz: the shapes or types of n_atoms, Z, R and smiles do not match"):
        Qm9(path=tmp_path / "a.npz").n_rows()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Z", 200, "with atomic numbers above 99"),
        ("Z", 0, "with unknown elements"),
        ("Z", -1, "with unknown elements"),
        ("R", np.nan, "whose SMILES and coordinates disagree"),
        ("smiles", b"\xff\xfe", "whose SMILES cannot be read"),
    ],
)
def test_an_impossible_molecule_of_an_npz_file_is_excluded(tmp_path, name, value, reason):
    write_qm9(tmp_path, ["CCO", "CCN"])
    arrays = {key: array.astype(int) if key == "Z" else array for key, array in np.load(tmp_path / "qm9.npz").items()}
    arrays[name][0] = value
    np.savez(tmp_path / "qm9.npz", **arrays)
    with pytest.warns(UserWarning, match=rf"1 usable molecules, 1 rows. Excluded: 1 molecule {reason} \(molecule 1\)"):
        assert to_texts(read_all(Qm9(path=tmp_path / "qm9.npz"))) == ["CCN"]


@pytest.mark.slow
@needs("qm9")
def test_real_molecules_are_equal_in_both_forms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about excluded molecules
        rows = read_all(Qm9(path=DATA / "qm9" / "dsgdb9nsd_1000.xyz.tar.bz2", molecules=60))
    assert 58 <= count_rows(rows) <= 60
    with np.load(DATA / "qm9" / "qm9_60k.npz") as arrays:
        ends, positions, smiles = np.cumsum(arrays["n_atoms"], dtype=np.int64), arrays["R"], arrays["smiles"]
    indices = {Chem.CanonSmiles(text.decode()): i for i, text in enumerate(smiles[:3000])}
    flat = [Chem.MolToSmiles(Chem.MolFromSmiles(text), isomericSmiles=False) for text in to_texts(rows)]
    in_both = [(k, indices[text]) for k, text in enumerate(flat) if text in indices]
    assert len(in_both) > 1
    for k, i in in_both:
        conformers = row(rows, "position", k), positions[ends[i - 1] : ends[i]]
        distances = [np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=None) for x in conformers]
        np.testing.assert_allclose(*distances, atol=1e-3)
