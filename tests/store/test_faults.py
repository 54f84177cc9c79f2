"""Whatever stands in the place of a store's files, the rows are those of an undisturbed store, or there is an error."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_components
from selfloop.columns import Columns
from selfloop.commands.cli_store import copy_store
from selfloop.commands.plan import plan
from selfloop.commands.verify import verify
from selfloop.component import Context
from selfloop.engine.run import iter_measurements, store_path
from selfloop.errors import ChainEndedError, DataError, SelfloopError, StoreError
from selfloop.formats.safetensors import to_safetensors
from selfloop.partial import partial_result
from selfloop.rng import RandomStream
from selfloop.store.identity import digest, stored_step
from selfloop.store.records import own_scratch, with_checksum, write_new
from selfloop.store.store import Store
from selfloop.types import Measurement
from tiny_components import selfloop, tiny_spec

ONE_CHAIN: dict[str, Any] = {"policies": ("replace",), "seeds": 1, "family": tiny_components.Mean(limit=0.2)}
SPEC = tiny_spec(generations=2, **ONE_CHAIN)
CTX = Context(RandomStream(("faults",)))


def rows_of(store: Path) -> list[Measurement]:
    return list(iter_measurements(SPEC, store))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Measurement]]:
    """A finished store and its rows."""
    path = tmp_path_factory.mktemp("finished") / "store"
    return path, rows_of(path)


def folder(path: Path) -> None:
    (path / "full").mkdir(parents=True)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def file(path: Path) -> None:
    path.write_bytes(b"mine")


THINGS: list[Callable[[Path], None]] = [folder, link_to_itself, broken_link, endless, file, os.mkfifo]


@pytest.mark.parametrize("thing", THINGS, ids=lambda function: function.__name__)
def test_anything_in_the_place_of_a_file_or_folder_is_set_aside_and_computed_again(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, thing: Callable[[Path], None]
) -> None:
    original, rows = finished
    store = shutil.copytree(original, tmp_path / "store")
    results, files = tiny_components.results_of(store), tiny_components.files_of(store)
    places = [*files[THINGS.index(thing) % 2 :: 3], files[0].parent, files[-1].parent, store / "records", store / "objects",
              store / "scratch" / files[-1].stem, store / "scratch", store / "runs"]  # fmt: skip
    for place in places:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        thing(place)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert rows_of(store) == rows, place
        if place in files:
            assert any(str(place) in str(warning.message) for warning in said), place
        assert tiny_components.results_of(store) == results
        assert tiny_components.files_of(store) == files
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rows_of(store) == rows


def test_an_object_that_is_no_safetensors_file_from_the_start_is_a_sentence_and_then_repaired(
    finished: tuple[Path, list[Measurement]], tmp_path: Path
) -> None:
    original, rows = finished
    store, content = shutil.copytree(original, tmp_path / "store"), b"no arrays"
    place = store / "objects" / digest(content)[:2] / f"{digest(content)}.safetensors"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    for record in (store / "records").rglob("*.json"):
        body = json.loads(record.read_bytes())["body"]
        if body["provenance"]["step"] == "selfloop.fit@1":
            body["result"], body["file_stat"] = {"object": digest(content)}, None
            record.write_bytes(with_checksum(json.dumps(body).encode()))
    with pytest.warns(UserWarning, match=digest(content)), pytest.raises(StoreError, match="Run the spec again"):
        rows_of(store)
    with pytest.warns(UserWarning, match=digest(content)):
        assert rows_of(store) == rows


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_that_cannot_be_read_is_set_aside(finished: tuple[Path, list[Measurement]], tmp_path: Path) -> None:
    original, rows = finished
    store = shutil.copytree(original, tmp_path / "store")
    for path in tiny_components.files_of(store):
        path.chmod(0)
        with pytest.warns(UserWarning, match=path.name):
            assert rows_of(store) == rows


# places


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL])
def test_a_store_without_hard_links_holds_the_same_files(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert rows_of(tmp_path) == finished[1]
    assert tiny_components.objects_of(tmp_path) == tiny_components.objects_of(finished[0])
    assert tiny_components.results_of(tmp_path) == tiny_components.results_of(finished[0])
    assert not list(tmp_path.rglob("*.tmp"))
    assert rows_of(tmp_path) == finished[1]


def refuse_links(source: str, target: str) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_hard_links_the_first_of_several_writers_of_a_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    for i in range(20):
        path, start, won = f"{tmp_path}/{i}", threading.Barrier(4), list[bytes]()

        def write(content: bytes, path: str = path, start: threading.Barrier = start, won: list[bytes] = won) -> None:
            start.wait()
            if write_new(path, content):
                won.append(content)

        threads = [threading.Thread(target=write, args=(bytes([j]) * 1000,)) for j in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [Path(path).read_bytes()]
    assert len(list(tmp_path.iterdir())) == 20


def test_a_claim_that_a_killed_writer_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    monkeypatch.setattr("selfloop.store.records.CLAIM_SECONDS", 0.05)
    (tmp_path / ".name.claim").mkdir()
    (tmp_path / ".name.claim" / ".1-1.tmp").touch()
    assert write_new(f"{tmp_path}/name", b"1")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".1-1.tmp.claim", "name"]


def test_a_writer_that_stalls_while_it_has_the_claim_does_not_replace_the_file_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    monkeypatch.setattr("selfloop.store.records.CLAIM_SECONDS", 0.05)
    path, written, rename, stalls = f"{tmp_path}/name", threading.Event(), os.rename, threading.local()

    def slow_rename(source: str, target: str) -> None:
        if target == path and getattr(stalls, "here", False):
            assert written.wait(60)
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    monkeypatch.setattr(os, "replace", slow_rename)
    won = dict[str, bool]()

    def stall() -> None:
        stalls.here = True
        won["slow"] = write_new(path, b"slow")

    thread = threading.Thread(target=stall)
    thread.start()
    while not (tmp_path / ".name.claim").exists():
        time.sleep(0.001)
    won["quick"] = write_new(path, b"quick")
    written.set()
    thread.join()
    assert won == {"quick": True, "slow": False}
    assert Path(path).read_bytes() == b"quick"
    assert [file.name for file in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_two_processes_at_a_step_have_folders_of_their_own(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with own_scratch(tmp_path / "scratch" / "key") as one, own_scratch(tmp_path / "scratch" / "key") as two:
        assert one != two
    assert rows_of(tmp_path) == finished[1]
    assert list((tmp_path / "scratch").iterdir()) == []


def mount(place: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")


def test_a_finished_store_that_cannot_be_written_is_read(finished: tuple[Path, list[Measurement]], tmp_path: Path) -> None:
    original, rows = finished
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, "size=8m")
    try:
        store = shutil.copytree(original, place / "store")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert rows_of(store) == rows
        assert verify(SPEC, store, 3).wrong == []
        assert all(cost.stored == cost.generations for cost in plan(SPEC, store))
        assert partial_result(SPEC, store).progress is None
        with pytest.raises(StoreError, match=r"cannot write \(read-only file system\)"):
            Store(store).call(record_call, CTX)
        with pytest.raises(StoreError, match=r"cannot write \(read-only file system\)"):
            list(iter_measurements(tiny_spec(generations=3, **ONE_CHAIN), store))
        assert not CALLS
    finally:
        subprocess.run(["umount", place], check=True)


CALLS: list[int] = []


@stored_step("record_call", version=1)
def record_call(ctx: Context) -> int:
    """The number of calls."""
    CALLS.append(1)
    return len(CALLS)


def test_a_home_folder_in_the_store_s_path_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_path("~/x") == tmp_path / "x"
    monkeypatch.setenv("SELFLOOP_STORE", "~/y")
    assert store_path(None) == tmp_path / "y"
    assert store_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


# inputs that change


@stored_step("count_rows", version=1)
def count_rows(ctx: Context) -> Columns:
    """Three numbers."""
    return {"x": np.arange(3.0)}


@stored_step("damage_rows", version=1)
def damage_rows(rows: Columns, files: str, ctx: Context) -> float:
    """The sum of rows, whose file the step changes while it reads them."""
    (path,) = Path(files).rglob("*.safetensors")
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.float64(7).tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return float(np.asarray(rows["x"]).sum())


def test_objects_are_read_only_and_a_step_whose_object_changes_is_not_recorded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = store.call(count_rows, CTX)
    (path,) = (tmp_path / "objects").rglob("*.safetensors")
    assert path.stat().st_mode & 0o222 == 0
    records = tiny_components.results_of(tmp_path)
    with pytest.raises(StoreError, match=f"{ref.digest} changed while it was read"):
        store.call(damage_rows, ref, str(tmp_path / "objects"), CTX)
    assert tiny_components.results_of(tmp_path) == records
    with pytest.warns(UserWarning, match=ref.digest):
        assert np.asarray(store.open(ref)["x"]).tolist() == [0, 1, 2]


@stored_step("read_changing", version=1)
def read_changing(path: Path, texts: tuple[str, ...], ctx: Context) -> str:
    """A file's text, after others saved these texts to it."""
    texts_read = []
    if "end" in texts:
        path.write_text("new", encoding="utf-8")
        raise ChainEndedError("ended")
    for text in texts:
        path.write_text(text, encoding="utf-8")
        texts_read.append(path.read_text(encoding="utf-8"))
    return texts_read[0]


@pytest.mark.parametrize("texts", [("new",), ("new", "old"), ("end",)], ids=["changed", "changed back", "ended"])
def test_a_source_file_that_changes_during_a_step_is_not_recorded(tmp_path: Path, texts: tuple[str, ...]) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "a.csv"
    for path in (file, file.parent):
        file.write_text("old")
        step = read_changing if path is file else read_folder
        with pytest.raises(DataError, match=rf"{step.__name__}: .*a.csv changed while it was read"):
            Store(tmp_path / "store").call(step, path, texts, CTX)
        assert tiny_components.results_of(tmp_path / "store") == {}


@stored_step("read_folder", version=1)
def read_folder(path: Path, texts: tuple[str, ...], ctx: Context) -> str:
    """The text of the one file in a folder."""
    return read_changing(path / "a.csv", texts, ctx)


def test_a_source_file_that_is_saved_between_its_digest_and_its_reading_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("old")

    class LateStore(Store):
        def lookup(self, call: Any) -> Any:  # the key is known now
            file.write_text("new")
            return super().lookup(call)

    with pytest.raises(DataError, match=r"a.csv changed while it was read"):
        LateStore(tmp_path / "store").call(read_changing, file, ("new",), CTX)
    assert tiny_components.results_of(tmp_path / "store") == {}


@pytest.mark.parametrize("kind", ["record", "object", "ensemble"])
def test_verify_exits_with_1_and_names_what_is_damaged(tmp_path: Path, kind: str) -> None:
    spec = tmp_path / "spec.toml"
    family = (
        'source.name = "gaussian"\nfamily.name = "gaussian"\n'
        if kind == "ensemble"
        else 'source.name = "moons"\nfamily.name = "kde"\n'
    )
    spec.write_text(f'n = 10\ngenerations = 2\nseeds = 2\npolicies = ["replace"]\n{family}')
    arguments = (spec, "--store", tmp_path / "store", "-q")
    assert selfloop("run", *arguments).code == 0
    assert selfloop("verify", *arguments).code == 0
    suffix = ".json" if kind == "record" else ".safetensors"
    (damaged, *_) = [path for path in tiny_components.files_of(tmp_path / "store") if path.suffix == suffix]
    content, status = bytearray(damaged.read_bytes()), damaged.stat()
    content[-1] ^= 1
    damaged.chmod(0o644)
    damaged.write_bytes(content)
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = selfloop("verify", *arguments, "--records", "1")
    assert done.code == 1
    assert f" ({damaged})" in done.out
    assert done.out.startswith("damaged: replace, seed")
    assert damaged.read_bytes() == content


# limits


@pytest.mark.parametrize("size", [0, 1, 100, 500, 5000])
def test_a_file_size_limit_is_a_sentence_and_then_the_rows_are_the_same(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, size: int
) -> None:
    code = (
        "import resource, sys, tiny_components; from pathlib import Path\n"
        "import selfloop.engine.run, selfloop.errors\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {resource.RLIM_INFINITY}))\n"
        "try: list(selfloop.engine.run.iter_measurements(tiny_components.tiny_spec(), sys.argv[1]))\n"
        "except selfloop.errors.SelfloopError as problem: sys.exit(str(problem))\n"
    )
    environment = tiny_components.environment(PYTHONPATH=str(Path(tiny_components.__file__).parent))
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if size < 5000:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"store {tmp_path / 'store'}: cannot write (file too large). Free some space" in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert list(iter_measurements(tiny_spec(), tmp_path / "store")) == list(iter_measurements(tiny_spec(), tmp_path / "alone"))


@pytest.mark.parametrize("size", [*range(4, 64, 12)])
def test_a_disk_that_is_full_at_any_size_is_a_sentence_and_then_the_rows_are_the_same(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, size: int
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, f"size={size}k")
    try:
        with pytest.raises(SelfloopError, match=r"cannot write \(no space left on device\). Free some space"):
            rows_of(place / "store")
        subprocess.run(["mount", "-o", "remount,size=8m", place], check=True)
        assert rows_of(place / "store") == finished[1]
        assert tiny_components.results_of(place / "store") == tiny_components.results_of(finished[0])
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("remount,ro", r"store .*: cannot write \(read-only file system\)\. Choose another folder for the store\."),
        ("remount,size=32k", r"store .*: cannot write \(no space left on device\)\. Free some space, then run again\."),
    ],
)
def test_a_copy_to_a_place_that_is_full_or_read_only_is_a_sentence(
    finished: tuple[Path, list[Measurement]], tmp_path: Path, options: str, sentence: str
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, "size=64k")
    try:
        Store(place / "store")
        subprocess.run(["mount", "-o", options, place], check=True)
        with pytest.raises(StoreError, match=sentence):
            copy_store(finished[0], place / "store")
    finally:
        subprocess.run(["umount", place], check=True)
    with pytest.raises(StoreError, match=r"none: is not a store, so nothing can be copied from it"):
        copy_store(tmp_path / "none", tmp_path / "target")


@stored_step("need_much", version=1)
def need_much(rows: int, ctx: Context) -> Columns:
    """Zeros."""
    return {"x": np.zeros(rows)}


def test_too_little_memory_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SelfloopError, match=r"need_much: not enough memory \(.*\). Lower n or the number of seeds."):
        Store(tmp_path).call(need_much, 1 << 55, CTX)
    assert Store(tmp_path).call(need_much, 10, CTX)
    assert len(to_safetensors({"x": np.zeros(1)})) == 2


@stored_step("raise_error", version=1)
def raise_error(number: int, text: str, file: str | None, ctx: Context) -> int:
    """An error of the operating system."""
    raise OSError(number, text, file)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (
            (errno.ENOENT, "No usable temporary directory found in ['/tmp']", None),
            r"directory found in .*\. Set TMPDIR to a folder",
        ),
        (
            (errno.ENOSPC, "No space left on device", None),
            r"store .*: cannot write \(no space left on device\). Free some space",
        ),
        (
            (errno.ENOSPC, "No space left on device", "/tmp/x"),
            r"raise_error: /tmp/x: no space left on device. Free some space.",
        ),
        ((errno.ENOMEM, "Cannot allocate memory", None), r"raise_error: not enough memory"),
        ((errno.EIO, "Input/output error", "a.csv"), r"raise_error: a.csv: input/output error. Check that file."),
    ],
)
def test_an_error_of_the_system_names_the_place_and_the_remedy(
    tmp_path: Path, problem: tuple[int, str, str | None], sentence: str
) -> None:
    with pytest.raises(SelfloopError, match=sentence):
        Store(tmp_path).call(raise_error, *problem, CTX)


def test_a_pipe_in_the_place_of_a_run_s_file_is_set_aside(tmp_path: Path) -> None:
    list(iter_measurements(tiny_spec(), tmp_path))
    (file,) = (tmp_path / "runs").glob("*.json")
    file.unlink()
    os.mkfifo(file)
    with pytest.warns(UserWarning, match="set aside"):
        list(iter_measurements(tiny_spec(), tmp_path))
    assert file.is_file()
