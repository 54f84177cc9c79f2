"""The store returns the result that was computed and no other, whatever happens to its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tiny_components
from selfloop.columns import Columns, Ragged
from selfloop.commands.plan import plan
from selfloop.commands.verify import verify
from selfloop.component import Component, Context
from selfloop.engine.run import iter_measurements
from selfloop.errors import ChainEndedError, DataError, SelfloopError, StoreError
from selfloop.formats.safetensors import ColumnWriter, read_safetensors, to_safetensors
from selfloop.rng import RandomStream
from selfloop.store.identity import ObjectRef, stored_step
from selfloop.store.records import with_checksum
from selfloop.store.store import Store
from selfloop.types import Measurement

CTX = Context(RandomStream(("test",)))


@stored_step("count_up", version=1)
def count_up(n: int, ctx: Context) -> Columns:
    """The numbers below n."""
    return {"x": np.arange(n), "words": Ragged(np.arange(n), np.array([0, n]))}


@stored_step("total", version=1)
def total(rows: Columns, ctx: Context) -> dict[str, int]:
    """Their sum."""
    return {"total": int(np.asarray(rows["x"]).sum())}


@stored_step("read_text", version=1)
def read_text(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


@stored_step("give_up", version=1)
def give_up(ctx: Context) -> Columns:
    """Nothing: the chain ends."""
    raise ChainEndedError("given_up")


@stored_step("echo", version=1)
def echo(*arguments: Any) -> int:
    """The number of arguments."""
    return len(arguments)


@stored_step("exclude_row", version=1)
def exclude_row(ctx: Context) -> int:
    """A number, with a warning of selfloop and one of a library."""
    warnings.warn_explicit("excluded 1 row", UserWarning, "selfloop/sources/any.py", 1)
    warnings.warn_explicit("deprecated", UserWarning, "torch/any.py", 1)
    return 1


@dataclass(frozen=True, kw_only=True)
class Knob(Component):
    """A setting."""

    name: ClassVar[str] = "knob"
    turn: int | float | tuple[int, ...] = 1


def rows_of(store: Path, **changes: Any) -> list[Measurement]:
    return list(iter_measurements(tiny_components.tiny_spec(**changes), store))


def test_warnings_of_a_step_are_reported_again_when_it_is_reused(tmp_path: Path) -> None:
    first, again = Store(tmp_path), Store(tmp_path)
    with pytest.warns(UserWarning, match="excluded 1 row"), pytest.warns(UserWarning, match="deprecated"):
        first.call(exclude_row, CTX)
    again.call(exclude_row, CTX)
    assert again.usage.computed == 0
    assert list(first.usage.warnings) == list(again.usage.warnings) == ["excluded 1 row"]


# keys


def test_arguments_that_differ_have_keys_that_differ(tmp_path: Path) -> None:
    arrays = [
        np.zeros(2),
        np.zeros(2, np.float32),
        np.zeros(2, np.int64),
        np.zeros((2, 1)),
        np.array(["0", "0"]),
        np.asarray(0.0),
    ]
    values: list[Any] = [
        1, 1.0, True, "1", None, "None", 0.0, -0.0, 0, float("nan"), float("inf"), (), [], {}, "", (1,), [1], ((1,),), {"1": 1},
        ("1",), (1, 1), ObjectRef("1"), {"object": "1"}, ("object", "1"), RandomStream(("1",)), RandomStream((1,)), Knob(),
        Knob(turn=1.0),         Knob(turn=(1,)), *arrays,
    ]  # fmt: skip
    store = Store(tmp_path)
    keys = [store.key(echo, value) for value in values]
    assert len(set(keys)) == len(values)
    assert keys == [Store(tmp_path).key(echo, value) for value in values]
    assert store.key(echo, 1, 2) != store.key(echo, (1, 2)) != store.key(echo, 12)


def test_a_key_changes_with_function_version_and_file_but_not_with_threads_or_scratch(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "a.txt"
    assert store.key(count_up, 3, CTX) != store.key(total, 3, CTX)
    assert store.key(count_up, 3, CTX) == store.key(count_up, 3, Context(CTX.stream, tmp_path, 7))
    assert store.key(count_up, 3, CTX) != store.key(count_up, 3, CTX.child("again"))
    before = store.key(echo, 1)
    stored_step("echo", version=2)(echo)
    assert store.key(echo, 1) != before
    stored_step("echo", version=1)(echo)
    file.write_text("one")
    first = store.call(read_text, file)
    copy = shutil.copy(file, tmp_path / "b.txt")
    assert store.key(read_text, file) == store.key(read_text, Path(copy))
    file.write_text("two")
    assert (first, store.call(read_text, file)) == ("one", "two")


def test_a_version_of_a_component_is_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Store(tmp_path).key(echo, Knob())
    monkeypatch.setattr(Knob, "version", 2)
    assert Store(tmp_path).key(echo, Knob()) != before


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"bytes", 1j, np.array([None]), np.zeros(1, [("a", int)]), {1: 2}, np.int64(3), lambda: 1, Knob],
    ids=lambda value: type(value).__name__,
)
def test_an_argument_without_a_stable_identity_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(SelfloopError, match="no stable identity"):
        Store(tmp_path).call(echo, (value,))


def test_a_function_that_is_not_a_stored_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match="not a stored step"):
        Store(tmp_path).call(lambda: 1)


def test_another_process_computes_the_same_keys(tmp_path: Path) -> None:
    spec = tmp_path / "kde.toml"
    spec.write_text(
        'n = 10\ngenerations = 2\nseeds = 2\npolicies = ["mix", "fresh"]\nsource.name = "moons"\nfamily.name = "kde"\n'
    )
    results = []
    for i, hash_seed in enumerate("12"):
        command = [sys.executable, "-m", "selfloop.commands.cli", "run", spec, "--store", tmp_path / str(i), "-q"]
        code = "import sys; from selfloop.commands.cli import main; sys.argv = ['selfloop', *sys.argv[1:]]; main()"
        command[1:3] = ["-c", code]
        subprocess.run(command, check=True, capture_output=True, env=tiny_components.environment(PYTHONHASHSEED=hash_seed))
        results.append(tiny_components.results_of(tmp_path / str(i)))
    assert results[0] == results[1] != {}


# values and arrays


def test_a_step_gives_the_same_when_it_is_replayed(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    for store in (first, second):
        ref = store.call(count_up, 5, CTX)
        assert store.call(total, ref, CTX) == {"total": 10}
        rows = store.open(ref)
        assert np.asarray(rows["x"]).tolist() == [0, 1, 2, 3, 4]
        assert isinstance(rows["words"], Ragged)
        with pytest.raises(ChainEndedError, match="given_up"):
            store.call(give_up, CTX)
    assert (first.usage.computed, first.usage.reused) == (3, 0)
    assert (second.usage.computed, second.usage.reused) == (0, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(3.0), np.zeros((0, 3)), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(7, dtype=np.int16)[::-2],
        np.arange(3, dtype=">u4"), np.array([True, False]), np.array([np.nan, -0.0, np.inf], np.float16),
    ],
)  # fmt: skip
def test_arrays_come_back_as_they_were_put_in(tmp_path: Path, array: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(to_safetensors({"a": array, "b": np.arange(3.0)})))
    back = read_safetensors(path)["a"]
    assert isinstance(back, np.ndarray)
    assert (back.shape, back.dtype) == (array.shape, array.dtype.newbyteorder("="))
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")
    assert not back.flags.writeable


@stored_step("write_much", version=1)
def write_much(pieces: int, ctx: Context) -> Columns:
    """That many megabytes."""
    assert ctx.scratch is not None
    writer = ColumnWriter(ctx.scratch)
    for i in range(pieces):
        writer.append({"x": np.full(1 << 17, i)})
    return writer.columns()


def test_arrays_larger_than_memory_are_kept_and_opened_without_being_held(tmp_path: Path) -> None:
    peaks = []
    for pieces in (1, 40):
        store = Store(tmp_path)
        tracemalloc.start()
        x = np.asarray(store.open(store.call(write_much, pieces, CTX))["x"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (len(x), x[-1], store.usage.bytes > pieces << 20) == (pieces << 17, pieces - 1, True)
    assert peaks[1] < peaks[0] + (1 << 20)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(2, [("a", int)])])
def test_arrays_that_are_no_numbers_are_refused(array: Any) -> None:
    with pytest.raises(DataError, match="expected numbers or booleans"):
        to_safetensors({"a": array})


# damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Measurement]]:
    """A finished store of the tiny experiment (one chain of which ends early), and its rows."""
    path = tmp_path_factory.mktemp("finished") / "store"
    return path, rows_of(path, family=tiny_components.Mean(limit=0.2))


def flip(path: Path) -> None:
    data, at = bytearray(path.read_bytes()), RandomStream(("flip", path.name)).integer()
    data[at % len(data)] ^= 1 << at % 8
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = (flip, truncate, empty, Path.unlink)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_to_any_file_is_repaired_with_the_same_rows(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, damage: Any
) -> None:
    original, rows = finished
    assert any(row.status == "too_high" for row in rows)
    assert any(row.value is not None for row in rows)
    store = shutil.copytree(original, tmp_path / "store")
    files, results = tiny_components.files_of(store), tiny_components.results_of(store)
    assert len(files) > 40
    for file in files[DAMAGES.index(damage) :: len(DAMAGES)]:  # together the damages meet every file
        before = file.read_bytes()
        damage(file)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert rows_of(store, family=tiny_components.Mean(limit=0.2)) == rows
        named = [str(warning.message) for warning in said]
        if damage is not Path.unlink or file.suffix == ".safetensors":
            assert any(str(file) in sentence for sentence in named), file
        assert file.suffix == ".json" or file.read_bytes() == before
    assert tiny_components.results_of(store) == results
    assert tiny_components.files_of(store) == files


def test_a_byte_that_rots_without_a_trace_is_found_when_the_object_is_opened(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = store.call(count_up, 5, CTX)
    (file,) = (tmp_path / "objects").rglob("*.safetensors")
    before, status = file.read_bytes(), file.stat()
    flip(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = Store(tmp_path)
    again.call(count_up, 5, CTX)
    with pytest.warns(UserWarning, match=file.name):
        assert np.asarray(again.open(ref)["x"]).tolist() == [0, 1, 2, 3, 4]
    assert file.read_bytes() == before


def test_an_object_that_goes_while_a_run_holds_it_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = store.call(count_up, 5, CTX)
    shutil.rmtree(tmp_path / "objects")
    with pytest.warns(UserWarning, match=f"missing file .*{ref.digest}"):
        assert store.call(total, ref, CTX) == {"total": 10}


def test_a_record_under_another_s_name_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.call(echo, 1)
    path = Path(store.files.record_path(store.key(echo, 1, 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(store.files.record_path(store.key(echo, 1)), path)
    with pytest.warns(UserWarning, match=path.name):
        assert store.call(echo, 1, 2) == 2


def test_a_stage_that_gives_other_bytes_each_time_is_kept_under_its_new_name(tmp_path: Path) -> None:
    ref = Store(tmp_path).call(unsteady, CTX)
    shutil.rmtree(tmp_path / "objects")
    with pytest.warns(UserWarning, match="missing"):
        again = Store(tmp_path).call(unsteady, CTX)
    assert again != ref
    assert Store(tmp_path).call(unsteady, CTX) == again


@stored_step("unsteady", version=1)
def unsteady(ctx: Context) -> Columns:
    """Another number every time: what a stage must not be."""
    return {"x": np.frombuffer(os.urandom(8), np.int64)}


# places that cannot be written


@contextmanager
def tiny_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of that many bytes; skips where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_the_next_run_continues(tmp_path: Path) -> None:
    expected = rows_of(tmp_path / "elsewhere", generations=20)
    with tiny_disk(tmp_path / "disk", 400 << 10) as disk:
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(100 << 10))
        with pytest.raises(StoreError, match=r"no space left on device.*Free some space"):
            rows_of(disk / "store", generations=20)
        assert not list(disk.rglob("*.tmp"))
        known = tiny_components.results_of(tmp_path / "elsewhere")
        for key, result in tiny_components.results_of(disk / "store").items():
            assert known[key] == result
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rows_of(disk / "store", generations=20) == expected
        assert tiny_components.objects_of(disk / "store") == tiny_components.objects_of(tmp_path / "elsewhere")


SPEC = 'n = 10\ngenerations = 2\nseeds = 2\nsource.name = "gaussian"\nfamily.name = "gaussian"\n'


def test_a_file_size_limit_is_one_sentence_with_exit_code_2(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    code = (
        "import resource, sys; from selfloop.commands.cli import main; import selfloop.engine.run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); sys.argv = ['selfloop', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, "run", str(spec), "--store", str(tmp_path / "store"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny_components.environment(), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "file too large" in done.stderr
    assert len(done.stderr) < 700
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.name != "FORMAT" and path.suffix != ".progress"]  # which is whole
    assert tiny_components.selfloop("run", spec, "--store", tmp_path / "store", "-q").code == 0


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_store_that_is_a_file_is_one_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        quiet = ["-q"] if command == "run" else []
        done = tiny_components.selfloop(command, tmp_path / "spec.toml", "--store", place, *quiet)
        assert done.code == 2
        assert done.err.startswith(f"selfloop: store {place}: cannot ")
        assert done.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_an_unwritable_store_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    done = tiny_components.selfloop("run", tmp_path / "spec.toml", "--store", "/proc/self/store", "-q")
    assert done.code == 2
    assert done.err.startswith("selfloop: store /proc/self/store: cannot write (")
    assert done.err.count("\n") == 1


def test_a_user_s_file_that_cannot_be_read_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    with pytest.raises(DataError, match=r"read_text: .*folder: is a directory"):
        Store(tmp_path / "store").call(read_text, tmp_path / "folder")
    with pytest.raises(DataError, match="cannot be read"):
        Store(tmp_path / "store").call(read_text, tmp_path / "none")


# many at once


def test_two_processes_on_one_store_give_the_same_and_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, tiny_components.__file__, str(tmp_path / "both")]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=tiny_components.environment())
        for _ in "ab"
    ]
    said = [process.communicate(timeout=300) for process in pair]
    alone = subprocess.run(
        [*command[:2], str(tmp_path / "alone")], capture_output=True, check=True, env=tiny_components.environment()
    )
    assert said == [(alone.stdout, b"")] * 2
    assert tiny_components.objects_of(tmp_path / "both") == tiny_components.objects_of(tmp_path / "alone")
    assert tiny_components.results_of(tmp_path / "both") == tiny_components.results_of(tmp_path / "alone")
    assert not list((tmp_path / "both" / "scratch").iterdir())


@stored_step("meet", version=1)
def meet(place: str, ctx: Context) -> Columns:
    """Each of two callers works in its scratch folder while the other one does, and one of them ends first."""
    assert ctx.scratch is not None
    meeting = Path(place)
    (meeting / f"{threading.get_ident()}").touch()
    (ctx.scratch / "exchange").mkdir(parents=True)  # fails in a folder that both have
    while len(list(meeting.iterdir())) < 2:
        time.sleep(0.001)
    time.sleep(0.2 * (f"{threading.get_ident()}" == max(path.name for path in meeting.iterdir())))
    (ctx.scratch / "exchange" / "rows").write_text("1")
    return {"x": np.array([1])}


def test_two_at_the_same_step_have_a_scratch_folder_each(tmp_path: Path) -> None:
    (meeting := tmp_path / "meeting").mkdir()
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(Store(tmp_path / "store").call(meet, str(meeting), CTX))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 2
    assert results[0] == results[1]
    assert not list((tmp_path / "store" / "scratch").iterdir())


def test_many_threads_that_write_the_same_file_leave_one(tmp_path: Path) -> None:
    refs: list[Any] = []
    threads = [threading.Thread(target=lambda: refs.append(Store(tmp_path).call(count_up, 1000, CTX))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 8
    assert len(set(refs)) == 1
    assert len(tiny_components.files_of(tmp_path)) == 2


# upkeep


@pytest.mark.parametrize("kind", ["value", "object", "ended"])
def test_verify_finds_a_planted_wrong_record(tmp_path: Path, kind: str) -> None:
    spec = tiny_components.tiny_spec(family=tiny_components.Mean(limit=0.2))
    list(iter_measurements(spec, tmp_path))
    assert verify(spec, tmp_path, 1000).wrong == []
    planted = None
    for path in sorted((tmp_path / "records").rglob("*.json")):
        body = json.loads(path.read_bytes())["body"]
        if kind not in body["result"]:
            continue
        if kind == "value":
            body["result"]["value"] = {name: value + 1e-9 for name, value in body["result"]["value"].items()}
        elif kind == "ended":
            body["result"]["ended"] = "diverged"
        else:
            others = [
                o.stem for o in sorted((tmp_path / "objects").rglob("*.safetensors")) if o.stem != body["result"]["object"]
            ]
            body["result"]["object"], body["file_stat"] = others[0], None
        path.write_bytes(with_checksum(json.dumps(body).encode()))
        planted = path.stem
        break
    assert planted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verify(spec, tmp_path, 1000)
    assert len(found.wrong) == 1
    assert planted in found.wrong[0]


def test_plan_counts_what_is_stored_and_writes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert [p.stored for p in plan(tiny_components.tiny_spec(generations=5), store)] == [0, 0, 0]
    assert not store.exists()
    rows_of(store, generations=3)
    files = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    planned = plan(tiny_components.tiny_spec(generations=5, policies=("replace", "augment")), store)
    assert [(p.policy, p.chains, p.generations) for p in planned] == [("replace", 2, 10), ("augment", 2, 10)]
    assert [p.stored for p in planned] == [6, 4]  # two generations of augment are those of accumulate
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == files


# formats and backends


def test_a_store_of_another_format_is_refused_with_one_sentence(tmp_path: Path) -> None:
    for number in (1, 3):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "FORMAT").write_text(f"{number}\n")
        for read_only in (True, False):
            with pytest.raises(
                StoreError, match=rf"has format {number}; this version of selfloop uses format 2\. Choose another"
            ):
                Store(path, read_only=read_only)
        assert [file.name for file in path.iterdir()] == ["FORMAT"]


@pytest.mark.parametrize("content", ["", "\0\0", "two\n", "-2\n"])
def test_a_damaged_format_file_loses_no_results(content: str, tmp_path: Path) -> None:
    rows, marker = rows_of(tmp_path / "store"), tmp_path / "store" / "FORMAT"
    good = marker.read_text()
    marker.write_text(content)
    Store(tmp_path / "store", read_only=True)
    assert rows_of(tmp_path / "store") == rows
    assert marker.read_text() == content  # a finished run is only read
    rows_of(tmp_path / "store", generations=5)
    assert marker.read_text() == good
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "FORMAT").write_text(content)
    with pytest.raises(StoreError, match=r"its file FORMAT is damaged, and .*\. Choose another folder\.$"):
        Store(tmp_path / "other")


@stored_step("draw_on", version=1)
def draw_on(ctx: Context) -> Columns:
    """A number that a backend makes."""
    ctx.backends["training"] = "torch cpu"
    return {"x": np.full(3, 1.0)}


def test_the_backend_of_a_step_is_in_its_provenance_and_in_the_usage(tmp_path: Path) -> None:
    first, again = Store(tmp_path, record_calls=True), Store(tmp_path)
    ref = first.call(draw_on, CTX)
    again.call(draw_on, CTX)
    assert first.usage.backends == again.usage.backends == {("training", "torch cpu"): 1}
    record = first.files.read_record(first.calls[0].key)
    assert record is not None
    assert record["provenance"]["backend"] == {"training": "torch cpu"}
    assert first.key(draw_on, CTX) == again.key(draw_on, CTX)
    assert np.asarray(first.open(ref)["x"]).tolist() == [1, 1, 1]
