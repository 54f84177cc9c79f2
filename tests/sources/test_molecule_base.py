"""Rows of molecules, their split, and the molecules and conformers that are excluded."""

import gzip
import pickle
import warnings

import numpy as np
import pytest
from example_molecules import (
    CTX,
    DRUGS,
    Chem,
    are_equal,
    embed_molecule,
    place_at_random,
    read_all,
    row,
    to_record,
    to_texts,
    without,
    write_geom,
    write_qm9,
    write_sdf,
    write_tar,
)  # fmt: skip

import tiny_components
from selfloop.columns import concat_rows, count_rows, select_rows
from selfloop.component import Context
from selfloop.errors import DataError
from selfloop.protocols import CorpusSource
from selfloop.rng import RandomStream
from selfloop.sources import molecule_base
from selfloop.sources.molecule_base import build_graph
from selfloop.sources.published_molecules import Geom, Qm9
from selfloop.sources.sdf import Sdf, Smiles
from selfloop.testing import check_source


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    return write_sdf(tmp_path_factory.mktemp("molecules") / "some.sdf.gz")


def test_rows_have_the_positions_of_the_file_around_the_center(sdf):
    rows, k = read_all(Sdf(path=sdf, conformers=3)), 0
    assert rows["molecule"].tolist() == [m for m in range(len(DRUGS)) for _ in range(3)]
    for text in DRUGS:
        mol = embed_molecule(text, 3)
        for conformer in mol.GetConformers():
            position = conformer.GetPositions()
            np.testing.assert_allclose(row(rows, "position", k), position - position.mean(axis=0), atol=2e-4)
            assert row(rows, "z", k).tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
            assert row(rows, "charge", k).sum() == 0
            assert Chem.CanonSmiles(to_texts(rows)[k]) == Chem.CanonSmiles(text)
            k += 1
    assert not rows["retried"].any()
    assert row(rows, "charge", 6)[:4].tolist() == [0, 1, 0, -1]  # nitromethane


def bond_distances(mol):
    """Number of bonds between atoms up to three bonds apart, by a walk from each atom."""
    distances = {}
    for start in range(mol.GetNumAtoms()):
        front, seen = {start}, {start}
        for steps in range(1, 4):
            front = {n.GetIdx() for atom in front for n in mol.GetAtomWithIdx(atom).GetNeighbors()} - seen
            seen |= front
            distances |= {(start, end): steps for end in front if start < end}
    return distances


@pytest.mark.parametrize("smiles", [*DRUGS, "C1CC2CCC1CC2", "c1ccc2ccccc2c1"])
def test_the_extended_graph_has_all_pairs_up_to_three_bonds_apart(smiles):
    mol = embed_molecule(smiles, 1)
    graph, distances = build_graph(mol), bond_distances(mol)
    assert [tuple(pair) for pair in graph.edges.tolist()] == sorted(distances)
    for pair, edge_type in zip(graph.edges.tolist(), graph.edge_type.tolist(), strict=True):
        bond, steps = mol.GetBondBetweenAtoms(*pair), distances[tuple(pair)]
        assert edge_type == (int(bond.GetBondType()) if steps == 1 else 21 + steps)
    assert (graph.z.dtype, graph.charge.dtype, graph.edges.dtype, graph.edge_type.dtype) == ("uint8", "int8", "uint16", "uint8")


def test_edge_types_of_benzene():
    graph = build_graph(embed_molecule("c1ccccc1", 1))
    edge_types = dict(zip(map(tuple, graph.edges.tolist()), graph.edge_type.tolist(), strict=True))
    assert [edge_types[0, i] for i in range(1, 6)] == [12, 23, 24, 23, 12]  # aromatic, two bonds apart, three bonds apart
    assert [edge_types[0, i] for i in (6, 7, 8)] == [1, 23, 24]
    assert (0, 9) not in edge_types  # the opposite hydrogen is four bonds away


@pytest.mark.parametrize("kind", ["sdf", "geom", "tar", "npz", "xyz", "smiles"])
def test_every_source_keeps_its_contract(kind, sdf, tmp_path):
    if kind in ("npz", "xyz"):
        write_qm9(tmp_path)
    (tmp_path / "list.smi").write_text("".join(f"{text} name\n" for text in DRUGS))
    source = {
        "sdf": lambda: Sdf(path=sdf, conformers=3),
        "geom": lambda: Geom(path=write_geom(tmp_path / "geom"), conformers=3),
        "tar": lambda: Geom(path=write_tar(write_geom(tmp_path / "geom"), tmp_path / "geom.tar.gz"), conformers=3),
        "npz": lambda: Qm9(path=tmp_path / "qm9.npz"),
        "xyz": lambda: Qm9(path=tmp_path / "xyz"),
        "smiles": lambda: Smiles(path=tmp_path / "list.smi", conformers=3),
    }[kind]()
    assert isinstance(source, CorpusSource)
    rows = read_all(source)
    assert source.n_rows() == count_rows(rows) == len(DRUGS) * source.conformers
    assert list(rows) == list(source.schema())
    check_source(source, n=6)


def test_conformers_of_a_molecule_are_on_one_side_of_the_split(sdf):
    source = Sdf(path=sdf, conformers=3, holdout_share=0.3)
    assert source.n_holdout() == 6
    rows = read_all(source)
    orders = [source.order(rows, Context(RandomStream(("seed", seed)))) for seed in range(4)]
    for order in orders:
        assert sorted(order) == list(range(24))
        molecules = rows["molecule"][order]
        assert set(molecules[:6]) & set(molecules[6:]) == set()
        assert (molecules.reshape(-1, 3) == molecules[::3, None]).all()
    assert len({tuple(order[:6]) for order in orders}) == 1  # the split is equal for all seeds
    assert len({tuple(order) for order in orders}) == 4
    other = Sdf(path=sdf, conformers=3, holdout_share=0.3, split_seed=1).order(rows, CTX)
    assert set(other[:6]) != set(orders[0][:6])


def test_the_holdout_has_at_least_one_molecule_unless_its_share_is_zero(tmp_path):
    (tmp_path / "list.smi").write_text("CCO\nCCN\n")
    shares = (0.0, 0.1, 0.5, 0.8)
    n_holdout = [Smiles(path=tmp_path / "list.smi", conformers=3, holdout_share=share).n_holdout() for share in shares]
    assert n_holdout == [0, 3, 3, 6]


def test_inputs_are_the_initial_molecules_without_coordinates(sdf):
    source = Sdf(path=sdf, conformers=3)
    initial = source.draw(source.n_holdout(), 9, CTX)
    inputs = source.draw_inputs(20, initial, CTX)
    assert list(inputs) == ["molecule", "z", "charge", "edges", "edge_type", "smiles"]
    assert are_equal(inputs, without(select_rows(initial, np.arange(20) % 9), "position", "retried"))


def test_chunks_of_a_corpus_are_its_rows(sdf, monkeypatch):
    whole = read_all(Sdf(path=sdf, conformers=3))
    monkeypatch.setattr(molecule_base, "CHUNK_MOLECULES", 3)
    chunks = list(Sdf(path=sdf, conformers=3).chunks())
    assert list(map(count_rows, chunks)) == [9, 9, 6]
    assert are_equal(concat_rows(chunks), whole)


def test_a_limit_draws_molecules_from_all_of_the_file(tmp_path):
    (tmp_path / "list.smi").write_text("\n".join(DRUGS))
    sources = [Smiles(path=tmp_path / "list.smi", conformers=1, molecules=3, split_seed=seed) for seed in range(4)]
    assert {source.n_rows() for source in sources} == {3}
    drawn = [frozenset(to_texts(read_all(source))) for source in sources]
    assert {len(each) for each in drawn} == {3}
    assert len(set(drawn)) > 2


def test_a_limit_counts_usable_molecules(tmp_path):
    texts = [text for i in range(1, 13) for text in ("C" * i + "O", "N(" + "C" * i)]  # every second SMILES is unreadable
    (tmp_path / "list.smi").write_text("\n".join(texts))
    source = Smiles(path=tmp_path / "list.smi", conformers=1, molecules=7, holdout_share=0.3)
    assert (source.n_rows(), source.n_holdout()) == (7, 2)
    with pytest.warns(UserWarning, match=r"7 usable molecules, 7 rows. Excluded: \d+ molecules whose SMILES .* \([^)]*\)$"):
        rows = read_all(source)
    drawn = [texts[i] for i in RandomStream(("molecules", 0, "chosen")).generator().permutation(24)]
    assert set(to_texts(rows)) == {Chem.CanonSmiles(text) for text in [text for text in drawn if "N" not in text][:7]}
    orders = [source.order(rows, Context(RandomStream(("seed", seed)))) for seed in range(3)]
    assert len({tuple(order[:2]) for order in orders}) == 1
    assert all(sorted(order) == list(range(7)) for order in orders)


# excluded molecules and conformers


def flatten(mol):
    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() * [1, 1, 0])
    return Chem.MolToMolBlock(mol).replace("RDKit          3D", "RDKit          2D") + "$$$$\n"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (lambda: to_record(embed_molecule("CCO.O", 1)), "with several fragments"),
        (lambda: place_at_random("[Ar]"), "with a single atom"),
        (lambda: place_at_random("*CF"), "with unknown elements"),
        (lambda: to_record(embed_molecule("CCO", 1)).replace(" C  ", " Xq ", 1), "with unknown elements|cannot be read"),
        (lambda: flatten(embed_molecule("CCO", 1)), "without 3D coordinates"),
        (lambda: to_record(Chem.RemoveHs(embed_molecule("CCO", 1))), "with implicit hydrogens"),
        (lambda: place_at_random("FC(F)(F)(F)F"), "with invalid valences"),
        (lambda: place_at_random("C~F"), "with bonds of unspecified type"),
        (lambda: place_at_random("C[Og]"), "with atomic numbers above 99"),
        (lambda: place_at_random("[NH3]->[Pt](Cl)Cl"), "with dative bonds"),
        (lambda: place_at_random("Cl[Pt](Cl)([NH3])[NH3]"), "with dative bonds"),
        (lambda: to_record(embed_molecule("CCO", 1)).replace("  9  8", "  9 99"), "that cannot be read"),
        (lambda: "nonsense\n$$$$\n", "that cannot be read"),
        (lambda: to_record(embed_molecule("C[C@H](N)C(=O)O", 1)), "with the SMILES of an earlier molecule"),
    ],
)
def test_unusable_molecules_are_excluded_and_counted(tmp_path, sdf, record, reason):
    path = tmp_path / "some.sdf"
    path.write_bytes(gzip.decompress(sdf.read_bytes()) + record().encode())
    with pytest.warns(UserWarning, match=rf"sdf has 8 usable molecules, 8 rows. Excluded: 1 molecule .*({reason}).* \("):
        rows = read_all(Sdf(path=path, conformers=1))
    assert are_equal(rows, read_all(Sdf(path=sdf, conformers=1)))
    path.write_text(record() + record())
    if "earlier" not in reason:
        with pytest.raises(DataError, match=rf"found no usable molecule. Excluded: 2 molecules .*({reason})"):
            read_all(Sdf(path=path, conformers=1))


def test_molecules_with_too_few_conformers_are_excluded(tmp_path):
    path = tmp_path / "some.sdf"
    path.write_text(
        write_sdf(tmp_path / "a.sdf", DRUGS[:2], 2).read_text() + write_sdf(tmp_path / "b.sdf", DRUGS[2:5], 4).read_text()
    )
    source = Sdf(path=path, conformers=3)
    assert source.n_rows() == 9
    with pytest.warns(
        UserWarning, match=r"3 usable molecules, 9 rows. Excluded: 2 molecules with fewer than 3 conformers \(CCO, "
    ):
        assert to_texts(read_all(source))[::3] == [Chem.CanonSmiles(text) for text in DRUGS[2:5]]


@pytest.mark.parametrize("other", ["CCCO", "COC"])
def test_conformers_with_other_atoms_or_bonds_are_excluded(tmp_path, other):
    def tagged(smiles):
        return to_record(embed_molecule(smiles, 1), tags=[("MOL_ID", "a")])

    path = tmp_path / "some.sdf"
    path.write_text(tagged("CCO") + tagged(other) + tagged("CCO"))
    with pytest.warns(UserWarning, match=r"1 conformer with other atoms or bonds than the molecule's first conformer \(a\)"):
        assert to_texts(read_all(Sdf(path=path, conformers=2))) == ["CCO", "CCO"]


def test_conformers_with_non_finite_coordinates_are_excluded(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder", ["CCO", "CCN"], 1)
    mol = embed_molecule("CCO", 2)
    mol.GetConformer(0).SetAtomPosition(4, [0.0, np.nan, 0.0])
    entries = [{"boltzmannweight": 1.0, "rd_mol": Chem.Mol(mol, confId=k)} for k in range(2)]
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps({"conformers": entries}))
    with pytest.warns(UserWarning, match=r"2 rows. Excluded: 1 conformer with non-finite coordinates \(CCO\)"):
        rows = read_all(Geom(path=folder, conformers=1))
    assert np.isfinite(rows["position"].values).all()
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps({"conformers": entries[:1]}))
    with pytest.warns(UserWarning, match="1 rows. Excluded: 1 molecule with non-finite coordinates"):
        read_all(Geom(path=folder, conformers=1))


def test_the_logs_of_rdkit_are_hidden(tmp_path, capfd):
    records = (place_at_random(text) for text in ("FC(F)(F)(F)F", "FC#CF", "FN(F)(F)F"))
    (tmp_path / "some.sdf").write_text("".join(records))
    (tmp_path / "list.smi").write_text("C[Pt]\nCC(C)(C)(C)C\nCCO\n")
    for source in (Sdf(path=tmp_path / "some.sdf", conformers=1), Smiles(path=tmp_path / "list.smi", conformers=1)):
        with pytest.warns(UserWarning, match="Excluded"):
            read_all(source)
    assert capfd.readouterr() == ("", "")


# commands

COMMANDS = {  # source, exit code of `plan`, which reads no coordinates, and a part of the error of `run`
    "a truncated SDF file": ('{ name = "sdf", path = "cut.sdf" }', 2, "cut.sdf ends within record 24"),
    "no usable molecule": ('{ name = "smiles", path = "bad.smi" }', 0, "found no usable molecule"),
    "fewer molecules than lines": ('{ name = "smiles", path = "some.smi", conformers = 1 }', 0, "have at most 4 rows together"),
    "no holdout": ('{ name = "smiles", holdout_share = 0.0 }', 2, "holdout"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_bad_input_ends_a_command_with_one_sentence_and_code_2(tmp_path, sdf, monkeypatch, case):
    source, plan_code, message = COMMANDS[case]
    (tmp_path / "cut.sdf").write_bytes(gzip.decompress(sdf.read_bytes())[:-30])
    (tmp_path / "bad.smi").write_text("C(\n[Ar]\n")
    (tmp_path / "some.smi").write_text("SMILES\nCCO\nCCN\nCCC\nCCF\n")
    (tmp_path / "spec.toml").write_text(f'generations = 1\nsource = {source}\nfamily.name = "geodiff"\n')
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # printed, not raised
        plan = tiny_components.selfloop("plan", "spec.toml")
        run = tiny_components.selfloop("run", "spec.toml", "--store", "store")
    assert (plan.code, run.code) == (plan_code, 2)
    assert message in run.err
    assert plan.code == 0 or message in plan.err
    assert "Traceback" not in plan.err + run.err
