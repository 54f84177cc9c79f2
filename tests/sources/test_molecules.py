"""Molecules: SDF files, GEOM's pickles, QM9, embedded SMILES; what is left out, and what is refused."""

import gzip
import itertools
import json
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

import tiny_components
from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.protocols import CorpusSource, GroupedCorpusSource
from selfloop.rng import RandomStream
from selfloop.testing import check_source
from selfloop.types import Ragged, concat_rows, count_rows, select_rows

Chem = pytest.importorskip("rdkit.Chem")
from rdkit.Chem import rdDistGeom  # noqa: E402

from selfloop.sources.geom import Geom  # noqa: E402
from selfloop.sources.molecule_base import build_graph  # noqa: E402
from selfloop.sources.molecule_files import unpickle_conformers as conformers_in  # noqa: E402
from selfloop.sources.qm9 import Qm9  # noqa: E402
from selfloop.sources.sdf import (
    Sdf,  # noqa: E402
    read_records,  # noqa: E402
)
from selfloop.sources.smiles import (
    Smiles,  # noqa: E402
    embed,  # noqa: E402
)

CTX = Context(RandomStream(("seed", 0, "source")))
DATA = Path(__file__).parents[2].parent / "shared" / "data"
# charges, aromatic rings with and without a hydrogen on nitrogen, rings of three, a stereo centre, five elements
DRUGS = ["CCO", "CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "c1cc[nH]c1", "OC1CC1", "C[C@H](N)C(=O)O", "Fc1cccnc1", "CSCC#N"]


def conformers_of(smiles, count, seed=1):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=seed)) == count
    return mol


def block(mol, conformer=-1, tags=()):
    lines = "".join(f">  <{name}>\n{value}\n\n" for name, value in tags)
    return f"{Chem.MolToMolBlock(mol, confId=conformer)}{lines}$$$$\n"


def write_sdf(path, smiles=DRUGS, count=3, tagged=True):
    blocks = [
        block(mol, k, [("MOL_ID", text), ("ENERGY", k)] if tagged else ())
        for text in smiles
        for mol in [conformers_of(text, count)]
        for k in range(count)
    ]
    data = "".join(blocks).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_geom(folder, smiles=DRUGS, count=3, protocol=4):
    """GEOM's layout, the conformers from the least to the most probable."""
    (folder / "drugs").mkdir(parents=True)
    summary = {}
    for text in smiles:
        mol, conformers = conformers_of(text, count), []
        for k in range(count):
            one = Chem.Mol(mol, confId=k)
            conformers.append({"geom_id": k, "boltzmannweight": np.float64((k + 1) / 10), "rd_mol": one, "more": np.zeros(2)})
        place = f"drugs/{text.replace('/', '_')}.pickle"
        data = pickle.dumps({"smiles": text, "conformers": conformers, "datasets": {"a"}}, protocol)
        (folder / place).write_bytes(data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data)
        summary[text] = {"uniqueconfs": count, "pickle_path": place}
    (folder / "summary_drugs.json").write_text(json.dumps(summary | {"C": {"uniqueconfs": 0}}))
    return folder


def tar_of(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def every_row(source):
    return concat_rows(list(source.chunks()))


def without(rows, *names):
    return {name: column for name, column in rows.items() if name not in names}


def same(one, other):
    return list(one) == list(other) and all(
        np.array_equal(a.values, b.values) and np.array_equal(a.offsets, b.offsets)
        if isinstance(a, Ragged)
        else np.array_equal(a, b)
        for a, b in ((one[name], other[name]) for name in one)
    )


def texts(rows, name="smiles"):
    return [text.decode() for text in rows[name].to_bytes()]


def row(rows, name, i):
    return rows[name].values[rows[name].offsets[i] : rows[name].offsets[i + 1]]


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    return write_sdf(tmp_path_factory.mktemp("molecules") / "some.sdf.gz")


@pytest.fixture(scope="module")
def geom(tmp_path_factory):
    return write_geom(tmp_path_factory.mktemp("geom") / "rdkit_folder")


def write_qm9(folder, smiles=DRUGS):
    """QM9's two forms of the same molecules."""
    mols = [conformers_of(text, 1) for text in smiles]
    at = [np.round(mol.GetConformer().GetPositions(), 4) for mol in mols]
    z = [[atom.GetAtomicNum() for atom in mol.GetAtoms()] for mol in mols]
    (folder / "xyz").mkdir()
    for i, (text, mol) in enumerate(zip(smiles, mols, strict=True)):
        atoms = [
            f"{atom.GetSymbol()}\t" + "\t".join(f"{v:.4f}" if abs(v) > 1e-3 else f"{v * 1e6:.1f}*^-6" for v in place) + "\t-0.1"
            for atom, place in zip(mol.GetAtoms(), at[i], strict=True)
        ]
        lines = [str(len(atoms)), f"gdb {i}\t1.0", *atoms, "100.0\t200.0", f"{text}\t{text}", "InChI=1S\tInChI=1S"]
        (folder / "xyz" / f"dsgdb9nsd_{i:06d}.xyz").write_text("\n".join(lines))
    arrays = {"n_atoms": np.array(list(map(len, z)), np.uint8), "Z": np.concatenate(z).astype(np.uint8)}
    np.savez(folder / "qm9.npz", R=np.concatenate(at).astype(np.float32), smiles=np.array(smiles, "S"), **arrays)
    return folder


# --- rows


def test_rows_hold_what_was_written_around_the_centre(sdf):
    rows, k = every_row(Sdf(path=sdf, conformers=3)), 0
    assert rows["molecule"].tolist() == [m for m in range(len(DRUGS)) for _ in range(3)]
    for text in DRUGS:
        mol = conformers_of(text, 3)
        for conformer in mol.GetConformers():
            at = conformer.GetPositions()
            np.testing.assert_allclose(row(rows, "position", k), at - at.mean(axis=0), atol=2e-4)
            assert row(rows, "z", k).tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
            assert row(rows, "charge", k).sum() == 0
            assert Chem.CanonSmiles(texts(rows)[k]) == Chem.CanonSmiles(text)
            k += 1
    assert not rows["retried"].any()
    assert row(rows, "charge", 6)[:4].tolist() == [0, 1, 0, -1]  # nitromethane


def apart_by_walking(mol):
    """Bonds between atoms, by a walk from each."""
    found = {}
    for start in range(mol.GetNumAtoms()):
        front, seen = {start}, {start}
        for steps in range(1, 4):
            front = {n.GetIdx() for atom in front for n in mol.GetAtomWithIdx(atom).GetNeighbors()} - seen
            seen |= front
            found |= {(start, end): steps for end in front if start < end}
    return found


@pytest.mark.parametrize("smiles", [*DRUGS, "C1CC2CCC1CC2", "c1ccc2ccccc2c1"])
def test_the_extended_graph_is_that_of_a_walk_along_the_bonds(smiles):
    mol = conformers_of(smiles, 1)
    graph, walked = build_graph(mol), apart_by_walking(mol)
    assert [tuple(pair) for pair in graph.edges.tolist()] == sorted(walked)
    for pair, kind in zip(graph.edges.tolist(), graph.edge_type.tolist(), strict=True):
        bond, steps = mol.GetBondBetweenAtoms(*pair), walked[tuple(pair)]
        assert kind == (int(bond.GetBondType()) if steps == 1 else 21 + steps)
    assert (graph.z.dtype, graph.charge.dtype, graph.edges.dtype, graph.edge_type.dtype) == ("uint8", "int8", "uint16", "uint8")


def test_types_of_edges_by_hand():
    graph = build_graph(conformers_of("c1ccccc1", 1))
    kinds = dict(zip(map(tuple, graph.edges.tolist()), graph.edge_type.tolist(), strict=True))
    assert [kinds[0, i] for i in range(1, 6)] == [12, 23, 24, 23, 12]  # aromatic, two bonds away, three
    assert [kinds[0, i] for i in (6, 7, 8)] == [1, 23, 24]
    assert (0, 9) not in kinds  # the hydrogen across is four bonds away


@pytest.mark.parametrize("kind", ["sdf", "geom", "tar", "npz", "xyz", "smiles"])
def test_each_source_keeps_its_contract(kind, sdf, geom, tmp_path):
    if kind in ("npz", "xyz"):
        write_qm9(tmp_path)
    (tmp_path / "list.smi").write_text("".join(f"{text} name\n" for text in DRUGS))
    source = {
        "sdf": lambda: Sdf(path=sdf, conformers=3),
        "geom": lambda: Geom(path=geom, conformers=3),
        "tar": lambda: Geom(path=tar_of(geom, tmp_path / "geom.tar.gz"), conformers=3),
        "npz": lambda: Qm9(path=tmp_path / "qm9.npz"),
        "xyz": lambda: Qm9(path=tmp_path / "xyz"),
        "smiles": lambda: Smiles(path=tmp_path / "list.smi", conformers=3),
    }[kind]()
    assert isinstance(source, CorpusSource)
    assert isinstance(source, GroupedCorpusSource)
    assert source.n_rows() == count_rows(every_row(source)) == len(DRUGS) * source.conformers
    assert list(every_row(source)) == list(source.schema())
    check_source(source, n=6)


def test_conformers_of_a_molecule_are_never_on_both_sides_of_the_split(sdf):
    source = Sdf(path=sdf, conformers=3, holdout_share=0.3)
    assert source.n_holdout() == 6
    rows = every_row(source)
    orders = [source.order_rows(rows, Context(RandomStream(("seed", seed)))) for seed in range(4)]
    for order in orders:
        assert sorted(order) == list(range(24))
        molecules = rows["molecule"][order]
        assert set(molecules[:6]) & set(molecules[6:]) == set()
        assert (molecules.reshape(-1, 3) == molecules[::3, None]).all()
    assert len({tuple(order[:6]) for order in orders}) == 1  # the split is the same for every seed
    assert len({tuple(order) for order in orders}) == 4
    other = Sdf(path=sdf, conformers=3, holdout_share=0.3, split_seed=1).order_rows(rows, CTX)
    assert set(other[:6]) != set(orders[0][:6])


def test_new_rows_are_given_the_initial_molecules_and_no_coordinates(sdf):
    source = Sdf(path=sdf, conformers=3)
    initial = source.draw(source.n_holdout(), 9, CTX)
    given = source.draw_inputs(20, initial, CTX)
    assert list(given) == ["molecule", "z", "charge", "edges", "edge_type", "smiles"]
    assert same(given, without(select_rows(initial, np.arange(20) % 9), "position", "retried"))


def test_records_without_tags_are_told_apart_by_structure(tmp_path):
    tagged, plain = (write_sdf(tmp_path / f"{tagged}.sdf", DRUGS, 2, tagged=tagged) for tagged in (True, False))
    assert same(every_row(Sdf(path=tagged, conformers=2)), every_row(Sdf(path=plain, conformers=2)))
    mirrored = write_sdf(tmp_path / "mirrored.sdf", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"], 2, tagged=False)
    assert every_row(Sdf(path=mirrored, conformers=2))["molecule"].tolist() == [0, 0, 1, 1]


def test_an_sdf_file_is_read_piece_by_piece(sdf, monkeypatch):
    whole = every_row(Sdf(path=sdf, conformers=3))
    monkeypatch.setattr("selfloop.sources.molecular_graph.PIECE", 3)
    pieces = list(Sdf(path=sdf, conformers=3).chunks())
    assert list(map(count_rows, pieces)) == [9, 9, 6]
    assert same(concat_rows(pieces), whole)


# --- GEOM and QM9


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_geom_gives_the_most_probable_conformers_from_a_folder_and_from_a_tar_file(tmp_path, protocol):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:3], protocol=protocol)
    rows = every_row(Geom(path=folder, conformers=2))
    expected = {Chem.CanonSmiles(text): conformers_of(text, 3).GetConformer(2).GetPositions() for text in DRUGS[:3]}
    for i, text in enumerate(texts(rows)[::2]):
        np.testing.assert_allclose(row(rows, "position", 2 * i), expected[text] - expected[text].mean(axis=0), atol=1e-5)
    archived = every_row(Geom(path=tar_of(folder, tmp_path / "geom.tar.gz"), conformers=2))
    order = [texts(archived).index(text) + k % 2 for k, text in enumerate(texts(rows))]
    assert same(without(select_rows(archived, np.array(order)), "molecule"), without(rows, "molecule"))
    assert same(every_row(Geom(path=tmp_path, conformers=2)), rows)  # the folder around it does, too


def test_a_limit_on_molecules_draws_them_from_all(geom):
    some = [Geom(path=geom, conformers=1, molecules=3, split_seed=seed) for seed in range(5)]
    assert {source.n_rows() for source in some} == {3}
    drawn = [frozenset(texts(every_row(source))) for source in some]
    assert {len(each) for each in drawn} == {3}
    assert len(set(drawn)) > 2


def test_a_limit_counts_the_molecules_that_can_be_used(tmp_path):
    listed = [text for i in range(1, 13) for text in ("C" * i + "O", "N(" + "C" * i)]  # every second one cannot be read
    (tmp_path / "list.smi").write_text("\n".join(listed))
    source = Smiles(path=tmp_path / "list.smi", conformers=1, molecules=7, holdout_share=0.3)
    assert (source.n_rows(), source.n_holdout()) == (7, 2)
    with pytest.warns(
        UserWarning, match=r"7 molecules, 7 rows; left out: \d+ molecules whose SMILES cannot be read \([^)]*\)$"
    ):
        rows = every_row(source)
    drawn = [listed[i] for i in RandomStream(("molecules", 0, "chosen")).generator().permutation(24)]
    assert set(texts(rows)) == {Chem.CanonSmiles(text) for text in [text for text in drawn if "N" not in text][:7]}
    orders = [source.order_rows(rows, Context(RandomStream(("seed", seed)))) for seed in range(3)]
    assert len({tuple(order[:2]) for order in orders}) == 1
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_a_limit_draws_others_for_pickles_that_cannot_be_used(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder")
    source = Geom(path=folder, conformers=1, molecules=5)
    before = texts(every_row(source))
    (folder / "drugs" / f"{next(text for text in DRUGS if Chem.CanonSmiles(text) == before[0])}.pickle").unlink()
    for path in (folder, tar_of(folder, tmp_path / "geom.tar.gz")):
        with pytest.warns(UserWarning, match="5 molecules, 5 rows; left out: 1 molecule whose pickle is not there"):
            after = texts(every_row(Geom(path=path, conformers=1, molecules=5)))
        assert len(set(after)) == 5
        assert set(after) > set(before[1:])


def test_one_molecule_at_least_is_set_aside(tmp_path):
    (tmp_path / "list.smi").write_text("CCO\nCCN\n")
    held = [Smiles(path=tmp_path / "list.smi", conformers=3, holdout_share=share).n_holdout() for share in (0.0, 0.1, 0.5, 0.8)]
    assert held == [0, 3, 3, 6]


class Intruder:
    """What a pickle must not be able to do."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("wrapped", [lambda it: it, lambda it: {"conformers": [it]}, lambda it: np.array([it, 1], object)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_another_class_is_refused_and_not_run(tmp_path, wrapped, protocol):
    folder, mark = write_geom(tmp_path / "rdkit_folder", DRUGS[:2]), tmp_path / "mark"
    data = pickle.dumps(wrapped(Intruder(os.mkdir, str(mark))), protocol)
    pickle.loads(data)  # noqa: S301 - to see that it would
    mark.rmdir()
    (folder / "drugs" / "CCO.pickle").write_bytes(data)
    with pytest.raises(DataError, match=r"drugs/CCO.pickle in .*rdkit_folder holds (posix.mkdir|_codecs.encode); expected"):
        every_row(Geom(path=folder, conformers=2))
    assert not mark.exists()


@pytest.mark.parametrize(
    "call", [(eval, "1"), (getattr, "a", "upper"), (Chem.SDMolSupplier, "x"), (np.load, "x"), (__import__, "os")]
)
def test_functions_of_admitted_libraries_are_refused_too(tmp_path, call):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:1])
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps(Intruder(*call)))
    with pytest.raises(DataError, match="could run a program"):
        every_row(Geom(path=folder, conformers=2))


class Pointing:
    """Describes itself as that call, with that state."""

    def __init__(self, call, arguments, *state):
        self.description = (call, arguments, *state)

    def __reduce__(self):
        return self.description


def pointers(kind):
    """Arrays of numpy's whose elements are objects, at an address of the file's choice."""
    address = b"A" * 8
    if kind == "ndarray":
        return Pointing(np.ndarray, ((1,), "O", address))
    plain = Pointing(
        np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)
    )  # an object type that says it is none
    return Pointing(np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), plain, False, address))


@pytest.mark.parametrize("kind", ["ndarray", "flags"])
def test_a_pickle_cannot_make_an_array_of_pointers(tmp_path, kind):
    (tmp_path / "it.pickle").write_bytes(pickle.dumps({"conformers": pointers(kind)}, 4))
    code = f"from selfloop.sources.geom import conformers_of as f; print(f(open('{tmp_path}/it.pickle', 'rb').read(), ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=tiny_components.environment())
    assert done.returncode == 0, done.stderr  # it is read in a process of its own, as one that follows the pointer dies
    assert done.stdout == "['that cannot be unpickled']\n"


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.dtype(">f8").type, float])
def test_weights_of_a_pickle_are_numbers_of_python_or_numpy(kind, protocol):
    mols = [conformers_of("CCO", 1), conformers_of("CCN", 1)]
    entries = [{"boltzmannweight": kind(weight), "rd_mol": mol} for weight, mol in zip((0.25, 0.5), mols, strict=True)]
    found = conformers_in(pickle.dumps({"conformers": entries}, protocol), "it")
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in found] == ["CCN", "CCO"]


def test_damaged_and_missing_pickles_are_left_out(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:5])
    places = [folder / "drugs" / f"{text}.pickle" for text in DRUGS[:4]]
    places[0].write_bytes(places[0].read_bytes()[:-200])
    places[1].unlink()
    places[2].write_bytes(pickle.dumps({"conformers": [{"boltzmannweight": 1.0, "rd_mol": "CCO"}] * 3}))
    places[3].write_bytes(pickle.dumps([1, 2]))
    with pytest.warns(UserWarning, match="geom: 1 molecules, 3 rows") as caught:
        every_row(Geom(path=folder, conformers=3))
    for reason in (
        "2 molecules that cannot be unpickled",
        "1 molecule whose pickle is not there",
        "1 molecule that is no molecule",
    ):
        assert reason in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no summary"),
        ('{"CCO": {"pickle_path": "x"}}', "uniqueconfs"),
        ("{", "no summary"),
        ('{"CCO": {"pickle_path": "x", "uniqueconfs": 1e400}}', "no summary"),
        ("[" * 100000, "no summary"),
    ],
)
def test_a_wrong_summary_is_refused(tmp_path, text, says):
    (tmp_path / "summary_drugs.json").write_text(text)
    with pytest.raises(DataError, match=says):
        Geom(path=tmp_path).n_rows()


def test_the_two_forms_of_qm9_give_the_same_rows(tmp_path):
    write_qm9(tmp_path)
    one, other, to_safetensors = (
        every_row(Qm9(path=path))
        for path in (tmp_path / "qm9.npz", tmp_path / "xyz", tar_of(tmp_path / "xyz", tmp_path / "xyz.tar.gz"))
    )
    for rows in (one, other):
        assert texts(rows) == texts(to_safetensors)
        np.testing.assert_allclose(rows["position"].values, to_safetensors["position"].values, atol=1e-4)
    assert [Chem.CanonSmiles(text) for text in DRUGS] == texts(one)
    assert same(without(one, "position"), without(other, "position"))


def test_bonds_are_those_of_the_smiles_where_the_coordinates_agree(tmp_path):
    write_qm9(tmp_path, ["CC=C", "CCO", "CCN"])
    arrays = dict(np.load(tmp_path / "qm9.npz"))
    shuffled = np.random.default_rng(0).permutation(9)  # of propene's atoms
    for name in ("Z", "R"):
        arrays[name][:9] = arrays[name][:9][shuffled]
    arrays["smiles"] = np.array(["CC=C", "CCN", "COC"])  # the second is another molecule, the third another of other elements
    np.savez(tmp_path / "qm9.npz", **arrays)
    with pytest.warns(UserWarning, match=r"2 molecules whose SMILES and coordinates disagree \(molecule 2, molecule 3\)"):
        rows = every_row(Qm9(path=tmp_path / "qm9.npz"))
    at, bonds = row(rows, "position", 0), row(rows, "edges", 0)[row(rows, "edge_type", 0) <= 22]
    assert (np.linalg.norm(at[bonds[:, 0]] - at[bonds[:, 1]], axis=1) < 1.6).all()
    double = row(rows, "edges", 0)[row(rows, "edge_type", 0) == 2][0]
    assert np.linalg.norm(at[double[0]] - at[double[1]]) < 1.4


@pytest.mark.parametrize("cut", [3, 120])
def test_an_xyz_file_cut_short_is_left_out(tmp_path, cut):
    write_qm9(tmp_path, ["CCO", "CCN"])
    file = tmp_path / "xyz" / "dsgdb9nsd_000000.xyz"
    file.write_text(file.read_text()[:cut])
    with pytest.warns(UserWarning, match=r"1 molecule that cannot be read \(dsgdb9nsd_000000.xyz\)"):
        assert texts(every_row(Qm9(path=tmp_path / "xyz"))) == ["CCN"]


def test_an_npz_file_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", Z=np.zeros(3))
    np.savez(tmp_path / "b.npz", Z=np.zeros(3), R=np.zeros((2, 3)), n_atoms=[3], smiles=["C"])
    np.savez(tmp_path / "c.npz", Z=np.zeros(3), R=np.zeros((3, 3)), n_atoms=[3], smiles=np.array(["C"], object))
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    for name, says in (("a", "n_atoms"), ("b", "do not fit"), ("c", "allow_pickle"), ("d", "cannot be read")):
        with pytest.raises(DataError, match=says):
            Qm9(path=tmp_path / f"{name}.npz").n_rows()


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
def test_an_npz_file_whose_arrays_do_not_fit_together_is_refused(tmp_path, change):
    arrays = {"n_atoms": np.array([3, 3]), "Z": np.array([8, 1, 1] * 2), "R": np.zeros((6, 3)), "smiles": np.array(["O", "O"])}
    np.savez(tmp_path / "a.npz", **arrays | change)
    with pytest.raises(DataError, match=r"a\.npz: arrays n_atoms, Z, R and smiles do not fit together"):
        Qm9(path=tmp_path / "a.npz").n_rows()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Z", 200, "with atoms above number 99"),
        ("Z", 0, "with atoms of no element"),
        ("Z", -1, "with atoms of no element"),
        ("R", np.nan, "whose SMILES and coordinates disagree"),
        ("smiles", b"\xff\xfe", "whose SMILES cannot be read"),
    ],
)
def test_a_molecule_of_an_npz_file_that_cannot_be_is_left_out(tmp_path, name, value, reason):
    write_qm9(tmp_path, ["CCO", "CCN"])
    arrays = {key: array.astype(int) if key == "Z" else array for key, array in np.load(tmp_path / "qm9.npz").items()}
    arrays[name][0] = value
    np.savez(tmp_path / "qm9.npz", **arrays)
    with pytest.warns(UserWarning, match=rf"1 molecules, 1 rows; left out: 1 molecule {reason} \(molecule 1\)"):
        assert texts(every_row(Qm9(path=tmp_path / "qm9.npz"))) == ["CCN"]


# --- SMILES


def test_a_molecule_is_embedded_alike_in_every_list(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(DRUGS))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(("id,SMILES\n" + "".join(f"1,{t}\n" for t in DRUGS[::-1])).encode()))
    one, other = (every_row(Smiles(path=tmp_path / name, conformers=2)) for name in ("a.txt", "b.csv.gz"))
    order = [texts(other).index(text) + k % 2 for k, text in enumerate(texts(one))]
    assert same(without(select_rows(other, np.array(order)), "molecule"), without(one, "molecule"))


def test_the_column_of_a_table_is_found_or_named(tmp_path):
    (tmp_path / "a.csv").write_text("name,drug\nx,CCO\ny,CCN\n")
    assert texts(every_row(Smiles(path=tmp_path / "a.csv", column="drug", conformers=1))) == ["CCO", "CCN"]
    for source in (Smiles(path=tmp_path / "a.csv"), Smiles(path=tmp_path / "a.csv", column="Drug")):
        with pytest.raises(DataError, match="it has name, drug"):
            source.n_rows()


def test_relaxed_conformers_have_less_energy(tmp_path):
    from rdkit.Chem import rdForceFieldHelpers

    def energy(mol, k):
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=k).CalcEnergy()

    raw, relaxed = (embed("CC(=O)Nc1ccc(O)cc1", 3, optimise) for optimise in (False, True))
    assert all(energy(relaxed, k) < energy(raw, k) - 1 for k in range(3))
    assert embed("[Fe]C", 1, True) == "without parameters of MMFF94"


def test_conformers_of_a_smiles_that_leaves_a_centre_open_have_one_form():
    mol = embed("CC(O)C(F)Cl", 6, False)
    forms = set()
    for k in range(6):
        one = Chem.Mol(mol, confId=k)
        Chem.AssignStereochemistryFrom3D(one)
        forms.add(Chem.MolToSmiles(one))
    assert len(forms) == 1


def test_the_built_in_molecules_all_embed_and_differ():
    source = Smiles(conformers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = every_row(source)
    assert count_rows(rows) == source.n_rows() == 112
    sizes = np.diff(rows["z"].offsets)
    assert 16 <= sizes.min() < sizes.max() <= 50


# --- what is left out, and what is refused


def flat(mol):
    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() * [1, 1, 0])
    return Chem.MolToMolBlock(mol).replace("RDKit          3D", "RDKit          2D") + "$$$$\n"


def placed(smiles):
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(0).normal(size=(mol.GetNumAtoms(), 3)))
    mol.AddConformer(conformer)
    return block(mol)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (lambda: block(conformers_of("CCO.O", 1)), "of several fragments"),
        (lambda: placed("[Ar]"), "of a single atom"),
        (lambda: placed("*CF"), "with atoms of no element"),
        (lambda: block(conformers_of("CCO", 1)).replace(" C  ", " Xq ", 1), "with atoms of no element|cannot be read"),
        (lambda: flat(conformers_of("CCO", 1)), "without coordinates in space"),
        (lambda: block(Chem.RemoveHs(conformers_of("CCO", 1))), "with hydrogens that are no atoms"),
        (lambda: placed("FC(F)(F)(F)F"), "against the rules of valence"),
        (lambda: placed("C~F"), "with bonds of no type"),
        (lambda: placed("C[Og]"), "with atoms above number 99"),
        (lambda: placed("[NH3]->[Pt](Cl)Cl"), "with bonds that have a direction"),
        (lambda: placed("Cl[Pt](Cl)([NH3])[NH3]"), "with bonds that have a direction"),
        (lambda: block(conformers_of("CCO", 1)).replace("  9  8", "  9 99"), "that cannot be read"),
        (lambda: "nonsense\n$$$$\n", "that cannot be read"),
        (lambda: block(conformers_of("C[C@H](N)C(=O)O", 1)), "with the SMILES of one before"),
    ],
)
def test_molecules_that_cannot_be_used_are_left_out_and_counted(tmp_path, sdf, record, reason):
    path = tmp_path / "some.sdf"
    path.write_bytes(gzip.decompress(sdf.read_bytes()) + record().encode())
    with pytest.warns(UserWarning, match=rf"sdf: 8 molecules, 8 rows; left out: 1 molecule .*({reason}).* \("):
        rows = every_row(Sdf(path=path, conformers=1))
    assert same(rows, every_row(Sdf(path=sdf, conformers=1)))
    path.write_text(record() + record())
    if "before" not in reason:
        with pytest.raises(DataError, match=rf"no molecule can be used; left out: 2 molecules .*({reason})"):
            every_row(Sdf(path=path, conformers=1))


def test_molecules_with_too_few_conformers_are_left_out(tmp_path):
    path = tmp_path / "some.sdf"
    path.write_text(
        write_sdf(tmp_path / "a.sdf", DRUGS[:2], 2).read_text() + write_sdf(tmp_path / "b.sdf", DRUGS[2:5], 4).read_text()
    )
    source = Sdf(path=path, conformers=3)
    assert source.n_rows() == 9
    with pytest.warns(UserWarning, match=r"3 molecules, 9 rows; left out: 2 molecules with fewer than 3 conformers \(CCO, "):
        assert texts(every_row(source))[::3] == [Chem.CanonSmiles(text) for text in DRUGS[2:5]]


@pytest.mark.parametrize("other", ["CCCO", "COC"])
def test_conformers_with_other_atoms_or_bonds_are_left_out(tmp_path, other):
    def tagged(smiles):
        return block(conformers_of(smiles, 1), tags=[("MOL_ID", "a")])

    path = tmp_path / "some.sdf"
    path.write_text(tagged("CCO") + tagged(other) + tagged("CCO"))
    with pytest.warns(UserWarning, match=r"1 conformer with other atoms or bonds than their molecule's first \(a\)"):
        assert texts(every_row(Sdf(path=path, conformers=2))) == ["CCO", "CCO"]


def test_conformers_with_coordinates_that_are_no_numbers_are_left_out(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder", ["CCO", "CCN"], 1)
    mol = conformers_of("CCO", 2)
    mol.GetConformer(0).SetAtomPosition(4, [0.0, np.nan, 0.0])
    entries = [{"boltzmannweight": 1.0, "rd_mol": Chem.Mol(mol, confId=k)} for k in range(2)]
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps({"conformers": entries}))
    with pytest.warns(UserWarning, match=r"2 rows; left out: 1 conformer with coordinates that are no numbers \(CCO\)"):
        rows = every_row(Geom(path=folder, conformers=1))
    assert np.isfinite(rows["position"].values).all()
    entries = [{"boltzmannweight": 1.0, "rd_mol": Chem.Mol(mol, confId=0)}]
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps({"conformers": entries}))
    with pytest.warns(UserWarning, match="1 rows; left out: 1 molecule with coordinates that are no numbers"):
        every_row(Geom(path=folder, conformers=1))


def test_what_rdkit_says_of_a_molecule_is_not_shown(tmp_path, capfd):
    (tmp_path / "some.sdf").write_text(placed("FC(F)(F)(F)F") + placed("FC#CF") + placed("FN(F)(F)F"))
    (tmp_path / "list.smi").write_text("C[Pt]\nCC(C)(C)(C)C\nCCO\n")
    for source in (Sdf(path=tmp_path / "some.sdf", conformers=1), Smiles(path=tmp_path / "list.smi", conformers=1)):
        with pytest.warns(UserWarning, match="left out"):
            every_row(source)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_sdf_file_is_refused_with_its_last_record(sdf, tmp_path, share):
    data = gzip.decompress(sdf.read_bytes())
    last = data.rindex(b"$$$$", 0, -10) + 5
    path = tmp_path / "cut.sdf"
    path.write_bytes(data[: last + int(share * (len(data) - last - 5))])
    for use in (Sdf(path=path, conformers=3).n_rows, lambda: every_row(Sdf(path=path, conformers=3))):
        with pytest.raises(DataError, match=r"cut.sdf ends within record 24, before its line \$\$\$\$"):
            use()


def bad_files(folder, sdf, geom):
    data = sdf.read_bytes()
    (folder / "cut.sdf.gz").write_bytes(data[: len(data) // 2])
    (folder / "damaged.sdf.gz").write_bytes(data[:100] + bytes(50) + data[150:])
    (folder / "empty.sdf").write_bytes(b"")
    (folder / "blank.sdf").write_text("\n\n")
    (folder / "empty.smi").write_text("\n")
    (folder / "latin.smi").write_bytes(b"CCO caf\xe9\n")
    to_safetensors = tar_of(geom, folder / "geom.tar.gz").read_bytes()
    (folder / "cut.tar.gz").write_bytes(to_safetensors[: len(to_safetensors) // 2])
    (folder / "no.tar.gz").write_bytes(b"text")
    return [
        ("sdf", "cut.sdf.gz", "cannot be read"), ("sdf", "damaged.sdf.gz", "cannot be read"),
        ("sdf", "none.sdf", "does not exist"), ("geom", "none", "does not exist"),
        ("sdf", "empty.sdf", "holds no record"), ("sdf", "blank.sdf", "ends within record 1|holds no record"),
        ("smiles", "empty.smi", "holds no SMILES"), ("smiles", "latin.smi", "not UTF-8 at byte 7"),
        ("geom", "cut.tar.gz", "damaged or cut short"), ("geom", "no.tar.gz", "no tar file"),
        ("geom", ".", "holds no summary_drugs.json"), ("qm9", "no.tar.gz", "no tar file"),
    ]  # fmt: skip


def test_bad_files_are_refused_by_name(tmp_path, sdf, geom):
    kinds = {"sdf": Sdf, "geom": Geom, "qm9": Qm9, "smiles": Smiles}
    for kind, name, says in bad_files(tmp_path, sdf, geom):
        with pytest.raises(DataError, match=says) as caught:
            kinds[kind](path=tmp_path / name).n_rows()
        assert (tmp_path / name).name in str(caught.value)


BAD = {  # source, the code of `plan`, which looks at no coordinates, and what is said
    "an SDF file cut short": ('{ name = "sdf", path = "cut.sdf" }', 2, "cut.sdf ends within record 24"),
    "a pickle that runs a program": ('{ name = "geom", path = "evil" }', 0, "could run a program"),
    "a summary of too large numbers": ('{ name = "geom", path = "odd" }', 2, "summary_drugs.json in odd is no summary"),
    "arrays of texts": ('{ name = "qm9", path = "texts.npz" }', 2, "do not fit together"),
    "a field of a table without end": ('{ name = "smiles", path = "long.csv" }', 2, "long.csv cannot be read (field larger"),
    "nothing that can be used": ('{ name = "smiles", path = "bad.smi" }', 0, "no molecule can be used"),
    "fewer molecules than lines": ('{ name = "smiles", path = "some.smi", conformers = 1 }', 0, "So n can be at most 3"),
    "nothing set aside": ('{ name = "smiles", validation = 0.0 }', 2, "holdout"),
}


def write_bad(folder, sdf):
    (folder / "cut.sdf").write_bytes(gzip.decompress(sdf.read_bytes())[:-30])
    write_geom(folder / "evil", ["CCO", "CCN"], 5)
    (folder / "evil" / "drugs" / "CCO.pickle").write_bytes(pickle.dumps(Intruder(eval, "1")))
    (folder / "odd").mkdir()
    (folder / "odd" / "summary_drugs.json").write_text('{"CCO": {"pickle_path": "x", "uniqueconfs": 1e400}}')
    np.savez(folder / "texts.npz", n_atoms=[3], Z=["O", "H", "H"], R=np.zeros((3, 3)), smiles=["O"])
    (folder / "long.csv").write_text("smiles\n" + "C" * 200000 + "\n")
    (folder / "bad.smi").write_text("C(\n[Ar]\n")
    (folder / "some.smi").write_text("SMILES\nCCO\nCCN\nCCC\nCCF\n")


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_a_command_with_one_sentence_and_code_2(tmp_path, sdf, monkeypatch, command, case):
    source, code, says = BAD[case]
    write_bad(tmp_path, sdf)
    (tmp_path / "spec.toml").write_text(f'generations = 1\nsource = {source}\nfamily.name = "geodiff"\n')
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # shown, not raised
        done = tiny_components.selfloop(command, "spec.toml", *(("--store", "store") if command == "run" else ()))
    assert done.code == (2 if command == "run" else code)
    assert done.code == 0 or says in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sdf(path=Path("x"), conformers=0), "source.conformers: got 0"),
        (lambda: Sdf(path=Path("x"), holdout_share=1.0), "source.validation: got 1.0"),
        (lambda: Geom(path=Path("x"), subset="zinc"), "source.subset: got 'zinc'"),
        (lambda: Qm9(path=Path("x"), molecules=0), "source.molecules: got 0"),
        (lambda: Smiles(column="a"), "source.column: got 'a'"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says):
    with pytest.raises(SpecError, match=says):
        make()


# --- real data


def real(*names):
    path = DATA.joinpath(*names)
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def quiet(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return every_row(source)


@pytest.fixture(scope="module")
def conformers():
    return every_row(Sdf(path=real("conformers", "conformer_benchmark.sdf.gz")))  # and nothing is left out


def test_the_real_conformers_are_all_found(conformers):
    path = real("conformers", "conformer_benchmark.sdf.gz")
    tags = [record.text.split("<SMILES>")[1].split("\n")[1] for record in read_records(path)]
    assert len(tags) == 5311
    assert count_rows(conformers) == Sdf(path=path).n_rows() == 5 * 534
    assert texts(conformers)[::5] == [tag for tag, _ in itertools.groupby(tags)]
    assert Sdf(path=path, conformers=10).n_rows() == 5250


def test_the_geom_layout_of_real_molecules_gives_what_the_sdf_file_gives(conformers):
    path = real("conformers", "geom_layout_rdkit_folder.tar.gz")
    assert Geom(path=path).n_rows() == 5 * 120
    rows = every_row(Geom(path=path, conformers=10))
    assert count_rows(rows) == 1170
    first = {text: i for i, text in reversed(list(enumerate(texts(conformers))))}
    graphs = [name for name in rows if name not in ("molecule", "position", "retried")]
    for i, text in list(enumerate(texts(rows)))[::10]:
        place = np.arange(first[text], first[text] + 5)
        assert all(np.array_equal(row(rows, name, i), row(conformers, name, place[0])) for name in graphs)
        mine = np.stack([row(rows, "position", k) for k in range(i, i + 10)])
        theirs = np.stack([row(conformers, "position", k) for k in place])
        apart = np.abs(mine[:, None] - theirs).max(axis=(2, 3))
        assert apart.min(axis=0).max() < 2e-4
        assert len(set(apart.argmin(axis=0))) == 5


def test_real_molecules_of_qm9_are_the_same_in_both_forms():
    npz, xyz = real("qm9", "qm9_60k.npz"), real("qm9", "dsgdb9nsd_1000.xyz.tar.bz2")
    rows = quiet(Qm9(path=xyz, molecules=200))
    assert 198 <= count_rows(rows) <= 200
    with np.load(npz) as arrays:
        ends, at, smiles = np.cumsum(arrays["n_atoms"], dtype=np.int64), arrays["R"], arrays["smiles"]
    where = {Chem.CanonSmiles(text.decode()): i for i, text in enumerate(smiles[:3000])}
    flat = [Chem.MolToSmiles(Chem.MolFromSmiles(text), isomericSmiles=False) for text in texts(rows)]
    known = [(k, where[text]) for k, text in enumerate(flat) if text in where]
    assert len(known) > 5
    for k, i in known:
        mine, theirs = row(rows, "position", k), at[ends[i - 1] : ends[i]]
        lengths = [np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=None) for x in (mine, theirs)]
        np.testing.assert_allclose(*lengths, atol=1e-3)
