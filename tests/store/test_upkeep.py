"""A store lists its runs, and gc deletes only its own files and only those that nobody needs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny_components
from selfloop.commands.gc import MIN_AGE, delete_garbage, find_garbage
from selfloop.engine.run import iter_measurements
from selfloop.errors import SelfloopError
from selfloop.spec.write import spec_text
from selfloop.store.runs import note_run, read_runs, run_name
from tiny_components import selfloop, tiny_spec

SPECS = {"short": tiny_spec(generations=3), "long": tiny_spec(generations=5), "wide": tiny_spec(generations=3, n=30)}
GAUSSIAN = 'n = 10\ngenerations = 2\nseeds = 2\npolicies = ["replace"]\nsource.name = "moons"\nfamily.name = "kde"\n'


def run_all(store: Path, *names: str) -> None:
    for name in names:
        list(iter_measurements(SPECS[name], store))


def make_old(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - 2 * MIN_AGE,) * 2)


def contents(store: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    return tiny_components.objects_of(store), tiny_components.results_of(store)


def write(path: Path, *, old: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")
    make_old(path, path.parent) if old else None
    return path


def test_gc_finds_exactly_what_no_record_names_and_no_run_can_need(tmp_path: Path) -> None:
    run_all(tmp_path, "short")
    files = tiny_components.files_of(tmp_path)
    key, hexadecimal = files[-1].stem, "a" * 40
    own = [f"objects/aa/{hexadecimal}.safetensors", "objects/00/.1-2.tmp", "records/zz/.3-4.tmp", ".5-6.tmp",
           f"scratch/{key}/fit.safetensors", f"scratch/{key}.7.removed/a",
           f"scratch/{key}.ab_c1234/a", "scratch/verify-1/b", "seen-by-all-nodes-00ff00ff"]  # fmt: skip
    users = ["objects/notes.txt", "objects/aa/mine.safetensors", "scratch/thesis/draft.tex", "records/data.json", "a.tmp",
             f"objects/{hexadecimal}.safetensors", "scratch/fit.safetensors"]  # fmt: skip
    for name in users:
        write(tmp_path / name, old=True)
    for name in own:
        write(tmp_path / name, old=False)
    assert find_garbage(tmp_path) == {}
    for name in own:
        write(tmp_path / name, old=True)
    damaged = write(tmp_path / "records" / "ab" / f"{hexadecimal}.json.1764405000000000000.damaged", old=False)
    (tmp_path / "runs" / ".selfloop-00ff.json").write_bytes(b"12345")
    make_old(tmp_path / "runs" / ".selfloop-00ff.json")
    own.append("runs/.selfloop-00ff.json")
    garbage = find_garbage(tmp_path)
    found = {path.relative_to(tmp_path).parts[:2] for files in garbage.values() for path in files}
    expected = [path for path in own if path != "records/zz/.3-4.tmp"]
    assert found == {tuple(Path(path).parts[:2]) for path in expected} | {damaged.relative_to(tmp_path).parts[:2]}
    assert [size for files in garbage.values() for size in files.values()] == [5] * (len(expected) + 1)
    delete_garbage(garbage, tmp_path)
    assert tiny_components.files_of(tmp_path) == sorted(
        [*files, *(tmp_path / name for name in users if name[:7] in ("objects", "records")), tmp_path / "records/zz/.3-4.tmp"]
    )
    assert all((tmp_path / name).read_bytes() == b"12345" for name in users)
    assert find_garbage(tmp_path) == {}


def test_gc_never_goes_through_links(tmp_path: Path) -> None:
    run_all(tmp_path / "store", "short")
    elsewhere, hexadecimal = tmp_path / "elsewhere", "b" * 40
    write(elsewhere / "key" / "fit.safetensors", old=True)
    write(elsewhere / f"{hexadecimal}.safetensors", old=True)
    (tmp_path / "store" / "scratch" / hexadecimal).symlink_to(elsewhere / "key")
    (tmp_path / "store" / "objects" / "bb").unlink(missing_ok=True)
    (tmp_path / "store" / "objects" / "b0").symlink_to(elsewhere)
    assert find_garbage(tmp_path / "store") == {}


def test_gc_deletes_only_what_no_other_run_uses(tmp_path: Path) -> None:
    run_all(tmp_path / "alone", "short", "wide")
    run_all(tmp_path / "both", "short", "long", "wide")
    delete_garbage(find_garbage(tmp_path / "both", [run_name(spec_text(SPECS["long"]))]), tmp_path / "both")
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert {run.name for run in read_runs(tmp_path / "both")} == {
        run_name(spec_text(SPECS[name])) for name in ("short", "wide")
    }
    delete_garbage(find_garbage(tmp_path / "both", [run.name for run in read_runs(tmp_path / "both")]), tmp_path / "both")
    assert (contents(tmp_path / "both"), read_runs(tmp_path / "both")) == (({}, {}), [])


def test_gc_deletes_a_damaged_record_and_nothing_else(tmp_path: Path) -> None:
    run_all(tmp_path, "short")
    before = tiny_components.files_of(tmp_path)
    record = next(path for path in before if path.suffix == ".json")
    record.write_bytes(b"x")
    delete_garbage(find_garbage(tmp_path), tmp_path)
    assert tiny_components.files_of(tmp_path) == [path for path in before if path != record]


def test_a_run_is_listed_from_its_start_with_the_records_it_used(tmp_path: Path) -> None:
    run_all(tmp_path, "short")
    titles, stopped = (
        {"mean on ticks: replace, accumulate, accumulate_subsample", "stopped"},
        note_run(tmp_path, "stopped", "n = 1"),
    )
    stopped.__enter__().add("a")
    assert {run.title for run in read_runs(tmp_path)} == titles
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    run_all(tmp_path, "long")
    runs = {run.title: run for run in read_runs(tmp_path) if run.name != run_name(spec_text(SPECS["long"]))}
    assert (runs["stopped"].keys, runs["stopped"].size(tmp_path)) == (frozenset("a"), (0, 0))
    alone = tmp_path / "alone"
    run_all(alone, "short")
    files = tiny_components.files_of(alone)
    assert runs[(titles - {"stopped"}).pop()].size(tmp_path) == (
        len([file for file in files if file.suffix == ".json"]),
        pytest.approx(sum(file.stat().st_size for file in files), rel=0.02),
    )


@pytest.mark.parametrize("text", ["", "[]", '{"title": 1}', "[" * 100_000])
def test_a_damaged_list_entry_is_named_and_written_again(tmp_path: Path, text: str) -> None:
    run_all(tmp_path, "short")
    (file,) = (tmp_path / "runs").glob("*.json")
    before = file.read_bytes()
    file.write_text(text)
    with pytest.warns(UserWarning, match=file.name):
        assert read_runs(tmp_path) == []
    run_all(tmp_path, "short")
    assert file.read_bytes() == before


def test_the_command_lists_asks_and_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(GAUSSIAN)
    Path("b.toml").write_text(GAUSSIAN.replace("10", "11"))
    for spec in ("a.toml", "b.toml"):
        assert selfloop("run", spec, "-q").code == 0
    before = contents(Path(".selfloop"))
    listed = selfloop("runs")
    assert (listed.code, listed.out.count("kde on moons: replace")) == (0, 2)
    name = listed.out.splitlines()[2].split()[0]
    for arguments, code in ((["--dry-run"], 0), ([], 2)):
        done = selfloop("gc", "--delete", "b.toml", *arguments)
        assert done.code == code
        assert "records: " in done.out
        assert "run " in done.out
        assert contents(Path(".selfloop")) == before
    assert done.err == "selfloop: gc: nothing was deleted, as nobody can be asked here. Add --yes to delete these files.\n"
    assert selfloop("gc", "--delete", name, "--yes").code == 0
    assert selfloop("runs").out.count("kde on moons") == 1
    assert "nothing to delete" in selfloop("gc").out
    assert selfloop("gc", "--delete", "nope").code == 2
    assert sys.stdin is not None


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    for command in ("gc", "runs"):
        assert "is not a store" in selfloop(command, "--store", tmp_path).err
    with pytest.raises(SelfloopError, match="is not a store"):
        find_garbage(tmp_path)
