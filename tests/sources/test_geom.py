"""GEOM: the most probable conformers, and pickles that cannot run a program."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from example_molecules import DRUGS, Chem, are_equal, embed_molecule, read_all, row, to_texts, without, write_geom, write_tar
from real_data import DATA, needs

import tiny_components
from selfloop.columns import count_rows, select_rows
from selfloop.errors import DataError
from selfloop.sources.published_molecules import Geom, unpickle_conformers
from selfloop.sources.sdf import Sdf


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_most_probable_conformers_are_read_from_a_folder_and_from_a_tar_file(tmp_path, protocol):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:3], protocol=protocol)
    rows = read_all(Geom(path=folder, conformers=2))
    expected = {Chem.CanonSmiles(text): embed_molecule(text, 3).GetConformer(2).GetPositions() for text in DRUGS[:3]}
    for i, text in enumerate(to_texts(rows)[::2]):
        np.testing.assert_allclose(row(rows, "position", 2 * i), expected[text] - expected[text].mean(axis=0), atol=1e-5)
    archived = read_all(Geom(path=write_tar(folder, tmp_path / "geom.tar.gz"), conformers=2))
    order = [to_texts(archived).index(text) + k % 2 for k, text in enumerate(to_texts(rows))]
    assert are_equal(without(select_rows(archived, np.array(order)), "molecule"), without(rows, "molecule"))
    assert are_equal(read_all(Geom(path=tmp_path, conformers=2)), rows)  # from the parent folder too


def test_a_limit_replaces_molecules_with_unusable_pickles(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder")
    before = to_texts(read_all(Geom(path=folder, conformers=1, molecules=5)))
    (folder / "drugs" / f"{next(text for text in DRUGS if Chem.CanonSmiles(text) == before[0])}.pickle").unlink()
    for path in (folder, write_tar(folder, tmp_path / "geom.tar.gz")):
        with pytest.warns(UserWarning, match="5 usable molecules, 5 rows. Excluded: 1 molecule whose pickle is missing"):
            after = to_texts(read_all(Geom(path=path, conformers=1, molecules=5)))
        assert len(set(after)) == 5
        assert set(after) > set(before[1:])


class Intruder:
    """An object whose pickle runs a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"conformers": [it]}, lambda it: np.array([it, 1], object)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_another_class_is_an_error_and_is_not_run(tmp_path, wrap, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps(wrap(Intruder(os.mkdir, str(mark))), protocol)
    pickle.loads(data)  # noqa: S301  # shows that it is unsafe
    mark.rmdir()
    with pytest.raises(DataError, match=r"the file contains (posix.mkdir|_codecs.encode), which could run"):
        unpickle_conformers(data, "the file")
    assert not mark.exists()


def test_the_error_for_a_dangerous_pickle_names_the_file(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:2])
    (folder / "drugs" / "CCO.pickle").write_bytes(pickle.dumps(Intruder(eval, "1")))
    with pytest.raises(DataError, match=r"drugs/CCO.pickle in .*rdkit_folder contains builtins.eval"):
        read_all(Geom(path=folder, conformers=2))


@pytest.mark.parametrize(
    "call", [(eval, "1"), (getattr, "a", "upper"), (Chem.SDMolSupplier, "x"), (np.load, "x"), (__import__, "os")]
)
def test_other_functions_of_allowed_libraries_are_errors(call):
    with pytest.raises(DataError, match="could run a program"):
        unpickle_conformers(pickle.dumps(Intruder(*call)), "the file")


class Reduced:
    """An object whose pickle is a call with a state."""

    def __init__(self, call, arguments, *state):
        self.reduced = (call, arguments, *state)

    def __reduce__(self):
        return self.reduced


def make_pointers(kind):
    """A numpy array of objects, at an address that the file chooses."""
    address = b"A" * 8
    if kind == "ndarray":
        return Reduced(np.ndarray, ((1,), "O", address))
    plain = Reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))  # an object type flagged as plain
    return Reduced(np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), plain, False, address))


def test_a_pickle_cannot_create_an_array_of_pointers(tmp_path):
    for kind in ("ndarray", "flags"):
        (tmp_path / f"{kind}.pickle").write_bytes(pickle.dumps({"conformers": make_pointers(kind)}, 4))
    code = (
        "from selfloop.sources.published_molecules import unpickle_conformers as f; from pathlib import Path\n"
        f"print([f(path.read_bytes(), '') for path in sorted(Path({str(tmp_path)!r}).glob('*.pickle'))])"
    )  # in another process, because following the pointer would end it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=tiny_components.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[['that cannot be unpickled']] * 2}\n"


HOSTILE = {
    "nested tuples as a key": r"b'\x80\x04}N' + b'\x85' * 1_000_000 + b'Ns.'",  # hashing them would overflow the stack
    "interrupted nesting": r"b'\x80\x04}N' + b'\x85N0' * 1_000_000 + b'Ns.'",
    "a huge memo": r"b'\x80\x04Nr\xff\xff\xff\x7f.'",  # 34 GB
}


def test_a_pickle_that_would_end_the_process_cannot_be_unpickled():
    cases = ", ".join(HOSTILE.values())
    code = "from selfloop.sources.published_molecules import unpickle_conformers as f\n"
    code += f"for data in [{cases}]: print(f(data, ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=tiny_components.environment())
    assert (done.returncode, done.stdout) == (0, f"{['that cannot be unpickled']}\n" * 3), done.stderr[-300:]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.dtype(">f8").type, float])
def test_weights_of_a_pickle_are_numbers_of_python_or_numpy(kind, protocol):
    mols = [embed_molecule("CCO", 1), embed_molecule("CCN", 1)]
    entries = [{"boltzmannweight": kind(weight), "rd_mol": mol} for weight, mol in zip((0.25, 0.5), mols, strict=True)]
    conformers = unpickle_conformers(pickle.dumps({"conformers": entries}, protocol), "the file")
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in conformers] == ["CCN", "CCO"]


def test_damaged_and_missing_pickles_are_excluded(tmp_path):
    folder = write_geom(tmp_path / "rdkit_folder", DRUGS[:5])
    files = [folder / "drugs" / f"{text}.pickle" for text in DRUGS[:4]]
    files[0].write_bytes(files[0].read_bytes()[:-200])
    files[1].unlink()
    files[2].write_bytes(pickle.dumps({"conformers": [{"boltzmannweight": 1.0, "rd_mol": "CCO"}] * 3}))
    files[3].write_bytes(pickle.dumps([1, 2]))
    with pytest.warns(UserWarning, match="geom has 1 usable molecules, 3 rows") as caught:
        read_all(Geom(path=folder, conformers=3))
    for reason in (
        "2 molecules that cannot be unpickled",
        "1 molecule whose pickle is missing",
        "1 molecule without an RDKit molecule",
    ):
        assert reason in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a summary"),
        ('{"CCO": {"pickle_path": "x"}}', "uniqueconfs"),
        ("{", "not a summary"),
        ('{"CCO": {"pickle_path": "x", "uniqueconfs": 1e400}}', "not a summary"),
        ("[" * 100000, "not a summary"),
    ],
)
def test_a_damaged_summary_is_an_error(tmp_path, text, message):
    (tmp_path / "summary_drugs.json").write_text(text)
    with pytest.raises(DataError, match=message):
        Geom(path=tmp_path).n_rows()


def test_errors_name_the_unreadable_file(tmp_path):
    data = write_tar(write_geom(tmp_path / "geom"), tmp_path / "geom.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.tar.gz").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("missing", "does not exist"), ("cut.tar.gz", r"cannot be read \(.*It is damaged"),
        ("text.tar.gz", "is neither a folder nor a complete tar file"), ("empty", "has no summary_drugs.json"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"{name} {message}"):
            Geom(path=tmp_path / name).n_rows()


@pytest.mark.slow
@needs("conformers")
def test_real_molecules_in_the_layout_of_geom_are_those_of_the_sdf_file():
    path = DATA / "conformers" / "geom_layout_rdkit_folder.tar.gz"
    assert Geom(path=path).n_rows() == 5 * 120
    rows, sdf = read_all(Geom(path=path, conformers=10)), read_all(Sdf(path=DATA / "conformers" / "conformer_benchmark.sdf.gz"))
    assert count_rows(rows) == 1170
    first = {text: i for i, text in reversed(list(enumerate(to_texts(sdf))))}
    shared = [name for name in rows if name not in ("molecule", "position", "retried")]
    for i, text in list(enumerate(to_texts(rows)))[::10]:
        same_molecule = range(first[text], first[text] + 5)
        assert all(np.array_equal(row(rows, name, i), row(sdf, name, first[text])) for name in shared)
        geom_positions = np.stack([row(rows, "position", k) for k in range(i, i + 10)])
        sdf_positions = np.stack([row(sdf, "position", k) for k in same_molecule])
        distance = np.abs(geom_positions[:, None] - sdf_positions).max(axis=(2, 3))
        assert distance.min(axis=0).max() < 2e-4
        assert len(set(distance.argmin(axis=0))) == 5
