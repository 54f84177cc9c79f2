"""SDF files: which records belong to one molecule, and errors for unreadable files."""

import gzip
import itertools

import pytest
from example_molecules import are_equal, read_all, to_texts, write_sdf
from real_data import DATA, needs

from selfloop.columns import count_rows
from selfloop.errors import DataError
from selfloop.sources.sdf import Sdf, read_records


@pytest.fixture(scope="module")
def sdf(tmp_path_factory):
    return write_sdf(tmp_path_factory.mktemp("molecules") / "some.sdf.gz")


def test_records_without_tags_are_grouped_by_structure(tmp_path):
    tagged, plain = (write_sdf(tmp_path / f"{tagged}.sdf", count=2, tagged=tagged) for tagged in (True, False))
    assert are_equal(read_all(Sdf(path=tagged, conformers=2)), read_all(Sdf(path=plain, conformers=2)))
    mirrored = write_sdf(tmp_path / "mirrored.sdf", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"], 2, tagged=False)
    assert read_all(Sdf(path=mirrored, conformers=2))["molecule"].tolist() == [0, 0, 1, 1]


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
    tags = [record.text.split("<SMILES>")[1].split("\n")[1] for record in read_records(path)]
    assert len(tags) == 5311
    assert count_rows(rows) == Sdf(path=path).n_rows() == 5 * 534
    assert to_texts(rows)[::5] == [tag for tag, _ in itertools.groupby(tags)]
