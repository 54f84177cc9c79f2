"""SDF files: which records belong to one molecule, and errors for unreadable files."""

import gzip
import itertools

import numpy as np
import pytest
from example_molecules import (
    DRUGS,
    Chem,
    are_equal,
    embed_molecule,
    place_at_random,
    read_all,
    row,
    to_record,
    to_texts,
    write_sdf,
)
from real_data import DATA, needs

from selfloop.columns import count_rows
from selfloop.errors import DataError
from selfloop.sources import sdf as sdf_source
from selfloop.sources.sdf import Sdf, read_records
from selfloop.spec.spec import Spec


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    return write_sdf(tmp_path_factory.mktemp("molecules") / "some.sdf.gz")


def test_records_without_tags_are_grouped_by_structure(tmp_path):
    tagged, plain = (write_sdf(tmp_path / f"{tagged}.sdf", count=2, tagged=tagged) for tagged in (True, False))
    assert are_equal(read_all(Sdf(path=tagged, conformers=2)), read_all(Sdf(path=plain, conformers=2)))
    mirrored = write_sdf(tmp_path / "mirrored.sdf", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"], 2, tagged=False)
    assert read_all(Sdf(path=mirrored, conformers=2))["molecule"].tolist() == [0, 0, 1, 1]


def test_conformers_of_another_stereo_form_are_excluded_and_counted(tmp_path):
    forms = [embed_molecule(text, 2) for text in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O")]
    records = [to_record(mol, k, [("MOL_ID", "alanine")]) for k in range(2) for mol in forms]
    (tmp_path / "both.sdf").write_text("".join(records))
    with pytest.warns(UserWarning, match=r"1 conformer with another stereochemistry than .* \(alanine\)"):
        rows = read_all(Sdf(path=tmp_path / "both.sdf", conformers=2))
    assert to_texts(rows) == [Chem.CanonSmiles("C[C@H](N)C(=O)O")] * 2
    np.testing.assert_allclose(row(rows, "position", 1), centered(forms[0], 1), atol=1e-3)


def centered(mol, k):
    position = mol.GetConformer(k).GetPositions()
    return position - position.mean(axis=0)


def test_later_conformers_need_coordinates_too(tmp_path):
    mol = embed_molecule("CCO", 2)
    flat = Chem.Mol(mol)
    flat.GetConformer(1).SetPositions(mol.GetConformer(1).GetPositions() * [1.0, 1.0, 0.0])
    flat.GetConformer(1).Set3D(False)
    records = [to_record(m, k, [("MOL_ID", "ethanol")]) for m, k in ((mol, 0), (flat, 1), (mol, 1))]
    (tmp_path / "flat.sdf").write_text("".join(records))
    with pytest.warns(UserWarning, match=r"1 conformer without 3D coordinates"):
        assert count_rows(read_all(Sdf(path=tmp_path / "flat.sdf", conformers=2))) == 2


def test_a_record_without_end_is_an_error_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sdf_source, "MAX_LINE_BYTES", 1000)
    (tmp_path / "long.sdf").write_text("a\n" * 600)
    with pytest.raises(DataError, match=r"long\.sdf has more than 1000 bytes in record 1"):
        Sdf(path=tmp_path / "long.sdf").n_rows()


def test_a_spec_without_n_takes_all_usable_rows(tmp_path):
    path = write_sdf(tmp_path / "some.sdf", DRUGS[:5], 2)
    path.write_text(path.read_text() + place_at_random("FC(F)(F)(F)F") * 2)
    source = Sdf(path=path, conformers=2)
    (point,) = Spec(source=source, family="geodiff", policies=["replace"]).points()
    assert (source.n_rows(), source.n_usable_rows(), point.n + point.holdout) == (12, 10, 10)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_the_error_for_a_truncated_file_names_its_last_record(sdf, tmp_path, share):
    data = gzip.decompress(sdf.read_bytes())
    last = data.rindex(b"$$$$", 0, -10) + 5
    path = tmp_path / "cut.sdf"
    path.write_bytes(data[: last + int(share * (len(data) - last - 5))])
    for use in (Sdf(path=path, conformers=3).n_rows, lambda: read_all(Sdf(path=path, conformers=3))):
        with pytest.raises(DataError, match=r"cut.sdf ends within record 24, before a line \$\$\$\$"):
            use()


def test_errors_name_the_unreadable_file(tmp_path, sdf):
    data = sdf.read_bytes()
    for name, content, message in (
        ("cut.sdf.gz", data[: len(data) // 2], "cannot be read"),
        ("damaged.sdf.gz", data[:100] + bytes(50) + data[150:], "cannot be read"),
        ("empty.sdf", b"", "has no record"),
        ("blank.sdf", b"\n\n", "has no record"),
        ("missing.sdf", None, "does not exist"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} {message}"):
            Sdf(path=tmp_path / name).n_rows()


@pytest.mark.slow
@needs("conformers")
def test_all_real_conformers_are_read():
    path = DATA / "conformers" / "conformer_benchmark.sdf.gz"
    rows = read_all(Sdf(path=path))  # without a warning, so none is excluded
    tags = [record.split("<SMILES>")[1].split("\n")[1] for record in read_records(path)]
    assert len(tags) == 5311
    assert count_rows(rows) == Sdf(path=path).n_rows() == 5 * 534
    assert to_texts(rows)[::5] == [tag for tag, _ in itertools.groupby(tags)]
