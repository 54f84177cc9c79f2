"""Machines share a store in a bucket, whatever fails on the way: an S3 server on this machine gives the faults."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bucket_server import SILENCE, BucketServer, Request
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

import tiny_components
from selfloop.columns import Columns
from selfloop.commands.cli_store import copy_store
from selfloop.commands.gc import delete_garbage, find_garbage
from selfloop.commands.verify import verify
from selfloop.component import Context
from selfloop.engine.run import iter_measurements, store_path
from selfloop.errors import MissingExtraError, SelfloopError, SpecError, StoreError
from selfloop.rng import RandomStream
from selfloop.spec.write import spec_text
from selfloop.store import bucket as bucket_module
from selfloop.store.identity import stored_step
from selfloop.store.runs import read_runs, run_name
from selfloop.store.store import Store
from selfloop.types import Measurement

CTX = Context(RandomStream(("test",)))
SPEC = tiny_components.tiny_spec(generations=3, seeds=1, policies=("replace",))


@stored_step("draw_rows", version=1)
def draw_rows(n: int, ctx: Context) -> Columns:
    """The numbers below n."""
    return {"x": np.arange(n)}


@stored_step("draw_noise", version=1)
def draw_noise(ctx: Context) -> Columns:
    """Other numbers on every machine: what a step must not be."""
    BOTH_COMPUTE.wait(60)
    return {"x": np.frombuffer(os.urandom(8), np.int64)}


@stored_step("draw_bytes", version=1)
def draw_bytes(ctx: Context) -> Columns:
    """Other numbers each time."""
    return {"x": np.frombuffer(os.urandom(8), np.int64)}


BOTH_COMPUTE = threading.Barrier(2)


@pytest.fixture(scope="module")
def running() -> Iterator[BucketServer]:
    with BucketServer().running() as server:
        yield server


@dataclass
class Team:
    """A bucket, and machines with caches of their own."""

    server: BucketServer
    folder: Path
    patch: pytest.MonkeyPatch
    address: str

    def at(self, machine: str) -> Path:
        """Become a machine; the folder there of the store."""
        self.patch.setenv("SELFLOOP_CACHE", str(self.folder / machine))
        return store_path(self.address)

    def names(self, start: str = "") -> set[str]:
        """The names in the bucket."""
        return {name for name, *_ in bucket_module.Bucket(self.address).list("") if name.startswith(start)}

    def rows(self, machine: str, **changes: Any) -> list[Measurement]:
        self.patch.setenv("SELFLOOP_CACHE", str(self.folder / machine))
        return list(iter_measurements(tiny_components.tiny_spec(**{**BASE, **changes}), self.address))


BASE = {"generations": 3, "seeds": 1, "policies": ("replace",)}


@pytest.fixture
def team(running: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(bucket_module, "RETRY_SECONDS", 0.01)
    running.fault = running.no_fault
    return use(running, tmp_path, monkeypatch)


def use(server: BucketServer, folder: Path, patch: pytest.MonkeyPatch) -> Team:
    """A new bucket."""
    patch.setenv("AWS_ENDPOINT_URL", server.address)
    bucket = f"b{time.time_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{server.address}/{bucket}", method="PUT")).close()
    return Team(server, folder, patch, f"s3://{bucket}/results/a")


def test_moto_gives_the_answers_of_the_server_of_these_tests(team: Team) -> None:
    def work(team: Team) -> list[object]:
        rows, bucket, file = team.rows("one"), bucket_module.Bucket(team.address), team.folder / "file"
        first, *others = sorted(team.names("objects"))
        file.write_bytes(bytes(9 << 20))
        put = [bucket.put_new(first, b"x"), bucket.put_new("parts", file), bucket.put_new("parts", file)]
        received = (bucket.download("parts", str(file)), file.read_bytes(), bucket.get("absent"))
        for name in (first, "parts", "absent"):
            bucket.delete(name)
        assert put == [False, True, False]
        return [rows, others, received, team.names("objects"), team.names("records"), team.rows("two")]

    team.patch.setattr(bucket_module, "MAX_SINGLE_PUT", 1 << 20)
    with BucketServer(DomainDispatcherApplication(create_backend_app)).running() as server:
        assert work(use(server, team.folder / "moto", team.patch)) == work(use(team.server, team.folder, team.patch))


def test_a_second_machine_computes_nothing_and_a_folder_holds_the_same(team: Team) -> None:
    rows = team.rows("one")
    assert list(iter_measurements(SPEC, team.folder / "folder")) == rows
    before = team.names()
    assert {Path(name).name for name in team.names("objects")} == set(tiny_components.objects_of(team.folder / "folder"))
    team.server.requests.clear()
    assert team.rows("two") == rows
    assert not [r for r in team.server.requests if r.method == "PUT" and "/runs/" not in r.name]
    assert not [r for r in team.server.requests if "/objects/" in r.name], "no object was opened"
    assert team.names() == before
    team.server.requests.clear()
    assert team.rows("two") == rows
    assert len(team.server.requests) == 3  # FORMAT, the list of records that is compared with the received ones, that of runs


def test_a_computed_generation_costs_eight_requests(team: Team) -> None:
    team.rows("one", generations=2)
    team.server.requests.clear()
    team.rows("one", generations=3)
    counts = Counter((r.method, r.name.split("/")[3]) for r in team.server.requests if r.name.count("/") > 3)
    new = len(team.names("records"))
    team.server.requests.clear()
    team.rows("one", generations=4)
    again = Counter((r.method, r.name.split("/")[3]) for r in team.server.requests if r.name.count("/") > 3)
    assert counts == again
    assert len(team.names("records")) - new == again["PUT", "records"] == again["GET", "records"] == STEPS_PER_GENERATION
    assert again["PUT", "objects"] == OBJECTS_PER_GENERATION
    assert again["GET", "objects"] == 0


STEPS_PER_GENERATION, OBJECTS_PER_GENERATION = 3, 2  # fit, sample, measure; a model and rows


def test_of_two_writers_at_the_same_time_the_first_wins_and_both_continue_with_its_result(team: Team) -> None:
    refs = dict[str, Any]()
    stores = {machine: Store(team.at(machine)) for machine in ("one", "two")}

    def work(machine: str) -> None:
        refs[machine] = stores[machine].call(draw_noise, CTX)

    threads = [threading.Thread(target=work, args=(machine,)) for machine in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refs["one"] == refs["two"]
    values = [int(np.asarray(store.open(refs["one"])["x"])[0]) for store in stores.values()]
    assert values[0] == values[1]
    assert len(team.names("records")) == 1
    assert len(team.names("objects")) == 2, "that of the second is unused"


@pytest.mark.parametrize("kind", ["objects", "records"])
def test_a_damaged_answer_is_asked_for_again_and_then_set_aside_and_computed_again(team: Team, kind: str) -> None:
    ref = Store(team.at("one")).call(draw_rows, 5, CTX)
    damages = [1]

    def damage(request: Request) -> str:
        if request.method == "GET" and f"/{kind}/" in request.name and damages[0]:
            damages[0] -= 1
            return "damage"
        return ""

    team.server.fault = damage
    store = Store(team.at("two"))
    assert store.call(draw_rows, 5, CTX) == ref
    assert np.asarray(store.open(ref)["x"]).tolist() == [0, 1, 2, 3, 4]
    assert store.usage.computed == 0
    damages[0], before = 2, team.names()
    store = Store(team.at("three"))
    with pytest.warns(UserWarning, match="(damaged|missing) file") as warned:
        assert store.open(store.call(draw_rows, 5, CTX))["x"].tolist() == [0, 1, 2, 3, 4]
    assert re.match(rf"damaged file {team.address}/{kind}/.*: set aside and computed again", str(warned[0].message))
    assert store.usage.computed == 1
    assert not [path for path in store.path.rglob("*") if path.suffix in (".tmp", ".damaged")]
    (aside,) = team.names() - before
    assert (aside.startswith(kind), aside.endswith(".damaged")) == (True, True)
    assert bucket_module.Bucket(team.address).get(aside), "with its content"
    assert [*find_garbage(team.at("one"))] == ["damaged files"]


def test_what_is_damaged_in_the_bucket_is_found_by_verify(team: Team) -> None:
    team.rows("one")
    bucket, (name, *_) = bucket_module.Bucket(team.address), sorted(team.names("objects"))
    bucket.delete(name)
    bucket.put_new(name, b"x" * 50)
    with pytest.warns(UserWarning, match=f"(damaged|missing) file .*{name}") as warned:
        found = verify(SPEC, team.at("two"), 3)
    assert f"damaged file {team.address}/{name}" in map(str, (warning.message for warning in warned))
    assert [name in sentence for sentence in found.damaged] == [True]
    assert not found.wrong
    assert team.names("objects") >= {name}, "a command that reads leaves it there"


def test_a_lost_object_is_computed_again_and_put_again(team: Team) -> None:
    ref = Store(team.at("one")).call(draw_rows, 5, CTX)
    bucket, (name,) = bucket_module.Bucket(team.address), team.names("objects")
    bucket.delete(name)
    store = Store(team.at("two"))
    assert store.call(draw_rows, 5, CTX) == ref
    with pytest.warns(UserWarning, match="missing file"):
        assert len(store.open(ref)["x"]) == 5
    assert team.names("objects") == {name}
    assert len(team.names("records")) == 1


def test_a_record_that_another_machine_computed_again_with_other_bytes_stays(team: Team) -> None:
    one, two = Store(team.at("one")), Store(team.at("two"))
    lost = one.call(draw_bytes, CTX)
    assert two.call(draw_bytes, CTX) == lost
    for name in team.names("objects") | team.names("records"):
        bucket_module.Bucket(team.address).delete(name)
    new = Store(team.at("three")).call(draw_bytes, CTX)
    with pytest.warns(UserWarning, match="missing file"), pytest.raises(StoreError, match=r"other bytes.*Run the spec again"):
        two.open(lost)
    assert Store(team.at("two")).call(draw_bytes, CTX) == Store(team.at("four")).call(draw_bytes, CTX) == new


def test_a_record_that_was_deleted_from_the_bucket_is_computed_and_put_again(team: Team) -> None:
    rows, (name, *_) = team.rows("one"), sorted(before := team.names("records"))
    bucket_module.Bucket(team.address).delete(name)
    assert team.rows("one") == rows
    assert team.names("records") == before


def test_after_the_bucket_was_emptied_everything_is_put_again(team: Team) -> None:
    rows, before = team.rows("one"), team.names("records")
    for name in team.names():
        bucket_module.Bucket(team.address).delete(name)
    assert team.rows("one") == rows
    assert team.names("records") == before
    assert len(read_runs(team.at("two"))) == 1


def test_a_run_in_the_list_that_arrives_damaged_is_received_the_next_time(team: Team) -> None:
    team.rows("one")
    team.server.fault = lambda request: "damage" if "/runs/" in request.name else ""
    assert read_runs(team.at("two")) == []
    team.server.fault = team.server.no_fault
    (one,), (two,) = read_runs(team.at("one")), read_runs(team.at("two"))
    assert (two.name, two.keys) == (one.name, one.keys)


def test_gc_deletes_from_the_bucket_what_no_record_names_and_what_only_a_run_uses(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.rows("one")
    team.rows("two", n=30)
    path, kept = team.at("three"), team.names()
    assert find_garbage(path) == {}
    bucket = bucket_module.Bucket(team.address)
    orphan = f"objects/aa/{'a' * 40}.safetensors"
    bucket.put_new(orphan, b"x")
    bucket.put_new("thesis.tex", b"x")
    assert find_garbage(path) == {}, "a live run may need a file that is younger than a day"
    monkeypatch.setattr("selfloop.commands.gc.MIN_AGE", -60)
    garbage = find_garbage(path)
    assert [(kind, [*files]) for kind, files in garbage.items() if kind == "objects"] == [("objects", [path / orphan])]
    delete_garbage(garbage, path)
    assert team.names() == kept | {"thesis.tex"}
    delete_garbage(find_garbage(path, [run_name(spec_text(SPEC))]), path)
    assert len(read_runs(team.at("four"))) == 1
    delete_garbage(find_garbage(path, [run.name for run in read_runs(path)]), path)
    assert team.names() == {"FORMAT", "thesis.tex"}


def test_a_copy_to_a_bucket_and_back_is_the_store_also_after_an_interrupt(team: Team) -> None:
    origin, back = team.folder / "origin", team.folder / "back"
    rows = list(iter_measurements(SPEC, origin))
    puts = [8]

    def fail_later(request: Request) -> str:
        puts[0] -= request.method == "PUT"
        return "error" if puts[0] < 0 else ""

    path = team.at("one")
    team.server.fault = fail_later
    with pytest.raises(StoreError, match="finished puts are kept"):
        copy_store(origin, path)
    team.server.fault = team.server.no_fault
    assert 0 < len(team.names("records")) < len(tiny_components.results_of(origin))
    copied = copy_store(origin, path)
    assert copied["present"] > 0
    assert copied["records"] + copied["present"] == len(tiny_components.results_of(origin))
    assert copy_store(origin, path)["objects"] == 0
    assert copy_store(team.at("two"), back)["records"] == copied["records"] + copied["present"]
    assert tiny_components.results_of(back) == tiny_components.results_of(origin)
    assert tiny_components.objects_of(back) == tiny_components.objects_of(origin)
    assert [run.keys for run in read_runs(back)] == [run.keys for run in read_runs(origin)]
    assert list(iter_measurements(SPEC, back)) == rows
    assert team.rows("three") == rows


def test_a_copy_leaves_damaged_files_out(tmp_path: Path) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    list(iter_measurements(SPEC, origin))
    object_file = next(path for path in tiny_components.files_of(origin) if path.suffix == ".safetensors")
    object_file.chmod(0o644)
    object_file.write_bytes(b"x")
    with pytest.warns(UserWarning, match=object_file.name):
        copied = copy_store(origin, target)
    assert copied["damaged"] >= 1
    assert object_file.name not in tiny_components.objects_of(target)
    assert set(tiny_components.results_of(target)) < set(tiny_components.results_of(origin))
    with pytest.raises(SelfloopError, match="is the source and the target"):
        copy_store(target, target)


def test_a_copy_from_a_bucket_leaves_out_a_damaged_record_and_one_that_is_deleted_meanwhile(team: Team) -> None:
    team.rows("one")
    (damaged, deleted, *_), bucket = sorted(team.names("records")), bucket_module.Bucket(team.address)
    bucket.delete(damaged)
    bucket.put_new(damaged, b"x" * 50)

    def delete(request: Request) -> str:
        if request.method == "GET" and f"/{damaged}" in request.name and deleted in team.names("records"):
            bucket.delete(deleted)
        return ""

    path, team.server.fault = team.at("two"), delete
    with pytest.warns(UserWarning, match="is not copied|damaged file") as warned:
        copied = copy_store(path, team.folder / "folder")
    for name in (damaged, deleted):
        assert any(f"{path / name} is damaged or missing" in str(warning.message) for warning in warned)
    assert (copied["damaged"], copied["records"]) == (2, len(team.names("records")) - 1)


@pytest.mark.slow
def test_every_command_takes_the_address_of_a_bucket(team: Team, tmp_path: Path) -> None:
    spec = tmp_path / "kde.toml"
    spec.write_text(tiny_components.KDE)
    team.patch.setenv("SELFLOOP_CACHE", str(tmp_path / "one"))
    report = tmp_path / "report.html"
    missing = tiny_components.selfloop("report", "--partial", spec, "--store", team.address)
    assert (missing.code, "is not a store" in missing.err, team.address in missing.err) == (2, True, True)
    assert team.names() == set(), "a command that reads creates nothing"
    assert tiny_components.selfloop("run", spec, "--store", team.address, "-q", "--workers", "1").code == 0
    team.patch.setenv("SELFLOOP_CACHE", str(tmp_path / "two"))
    assert "kde on moons" in tiny_components.selfloop("runs", "--store", team.address).out
    for command in (
        ["report", spec, "--report", report, "-q"], ["plan", spec], ["verify", spec, "-q"], ["gc", "--dry-run"],
    ):  # fmt: skip
        done = tiny_components.selfloop(*command, "--store", team.address)
        assert done.code == 0, done.err
    assert f"--store {team.address}" in report.read_text()
    done = tiny_components.selfloop("store", "push", team.address, tmp_path / "folder", "-q")
    assert (done.code, done.out.split(";")[0]) == (0, "copied: 3 records, 3 objects (0.0 MB)")
    assert tiny_components.selfloop("store", "pull", tmp_path / "folder", team.address, "-q").out.startswith(
        "copied: 0 records"
    )
    assert tiny_components.selfloop("run", spec, "--store", tmp_path / "folder", "-q", "--workers", "1").code == 0


# mistakes


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://", r"expected s3://BUCKET/PREFIX"),
        ("https://host/bucket", r"store 'https://host/bucket': expected s3://BUCKET/PREFIX"),
        ("S3://team/x", r"store 'S3://team/x': expected s3://BUCKET/PREFIX"),
        ("s3:///team", r"store 's3:///team': expected s3://BUCKET/PREFIX"),
        ("s3://team/x/../y", r"store 's3://team/x/\.\./y': expected s3://BUCKET/PREFIX"),
        ("s3://team//y", r"expected s3://BUCKET/PREFIX, .*, without empty parts"),
        ("s3://team/a%20b", r"store 's3://team/a%20b': expected s3://BUCKET/PREFIX"),
        ("", r"store: got ''; expected a folder or an address"),
        ("s3://absent-bucket/x", r"store s3://absent-bucket/x: no such bucket\. Create it"),
    ],
)
def test_a_wrong_address_is_one_sentence_before_work(team: Team, address: str, sentence: str) -> None:
    spec = team.folder / "spec.toml"
    spec.write_text(tiny_components.KDE)
    for command in ("run", "plan"):
        done = tiny_components.selfloop(command, spec, "--store", address)
        assert (done.code, len(re.findall(sentence, done.err))) == (2, 1)


@pytest.mark.parametrize("url", ["nonsense", "http://", "", "http://host:99999", "http://a b"])
def test_an_endpoint_that_is_no_address_is_one_sentence_with_its_variable(team: Team, url: str) -> None:
    team.patch.setenv("AWS_ENDPOINT_URL", url)
    team.patch.setenv("AWS_USE_FIPS_ENDPOINT", "false")
    with pytest.raises(
        SpecError, match=rf"^AWS_ENDPOINT_URL: got '{url}'; expected an address such as https://host:9000\. Correct"
    ):
        store_path(team.address)


def test_a_refused_connection_names_the_host_and_the_reason(team: Team) -> None:
    team.patch.setenv("AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:1")
    with pytest.raises(StoreError, match=r"cannot read \(127\.0\.0\.1:1: connection refused\)\. Check the address"):
        store_path(team.address)


def test_missing_credentials_and_a_missing_library_are_one_sentence(team: Team) -> None:
    team.patch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"Check the credentials in the variables AWS_\.\.\."):
        store_path(team.address)
    team.patch.setattr(bucket_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'selfloop\[cloud\]'"):
        store_path(team.address)


def test_a_put_that_is_answered_by_not_found_is_one_sentence(team: Team) -> None:
    store = Store(team.at("one"))
    team.server.fault = lambda request: "missing"
    with pytest.raises(StoreError, match="cannot write"):
        store.call(draw_rows, 5, CTX)
    with pytest.raises(StoreError, match="cannot write"):
        Store(team.at("two"))


def test_a_put_that_is_refused_although_nothing_is_there_ends(team: Team) -> None:
    store = Store(team.at("one"))
    team.patch.setattr(bucket_module.Bucket, "put_new", lambda bucket, name, content: False)
    with pytest.raises(StoreError, match=r"cannot write \(records/.* exists, but cannot be read\)"):
        store.call(draw_rows, 5, CTX)


def test_stores_of_two_accounts_or_servers_have_folders_of_their_own_whatever_the_password(team: Team) -> None:
    team.patch.setattr(bucket_module.Bucket, "get", lambda *arguments, **options: None)
    folders = list[Path]()
    for name, value in (
        ("ACCOUNT_NAME", "a"),
        ("ACCOUNT_NAME", "b"),
        ("ACCOUNT_KEY", "x"),
        ("ACCOUNT_KEY", "y"),
        ("ENDPOINT", "https://c"),
    ):
        team.patch.setenv(f"AZURE_STORAGE_{name}", value)
        folders.append(bucket_module.connect("az://container/prefix"))
    assert folders[1] == folders[2] == folders[3]
    assert len({*folders}) == 3


def test_a_silent_server_is_given_up_and_left_at_once_by_an_interrupt(team: Team) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        team.patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        bucket, started = bucket_module.Bucket(team.address), time.monotonic()
        timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            bucket.get("FORMAT")
        assert time.monotonic() - started < 5
        team.patch.setattr(bucket_module, "STALLED_SECONDS", 0.2)
        team.patch.setattr(bucket_module, "GIVE_UP_SECONDS", 0.3)
        team.patch.setattr(bucket_module, "ATTEMPTS", 1000)
        with pytest.raises(StoreError, match="cannot read"):
            bucket_module.Bucket(f"{team.address}/b").get("FORMAT")
        assert time.monotonic() - started < 10


def test_an_endpoint_that_refuses_or_is_silent_is_one_sentence_within_ten_seconds(team: Team) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (9, silent.getsockname()[1]):
            team.patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            started = time.monotonic()
            with pytest.raises(StoreError, match=r"cannot read \(.*\)\. Check the address and the network"):
                store_path(team.address)
            assert time.monotonic() - started < 10


# faults


FAULTY = tiny_components.tiny_spec(generations=3, policies=("replace", "accumulate"))
FAULTS = ("error", "silence", "broken upload", "lost answer", "broken download", "damage")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_random_faults_lose_nothing_change_nothing_and_leave_no_orphan(
    team: Team, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of six faults once with each of five seeds, on either of two machines, which run the same spec together."""
    expected = sorted(map(str, iter_measurements(FAULTY, team.folder / "folder")))
    rng, due = np.random.default_rng(seed), list(FAULTS)
    met = list[str]()

    def fault(request: Request) -> str:
        possible = [name for name in due if (name != "damage" and "download" not in name) or request.method == "GET"]
        if possible and request.name.count("/") > 3 and rng.random() < 0.15:
            due.remove(name := possible[rng.integers(len(possible))])
            met.append(name)
            return name
        return ""

    monkeypatch.setattr(bucket_module, "STALLED_SECONDS", SILENCE - 2)
    stores = {machine: team.at(machine) for machine in ("one", "two")}
    team.server.fault = fault
    rows, problems = dict[str, list[str]](), list[str]()

    def work(machine: str) -> None:
        for _ in range(5):
            try:
                found = iter_measurements(FAULTY, stores[machine])
                rows[machine] = sorted(map(str, found))
                return
            except StoreError as problem:  # what a user does: run again
                problems.append(str(problem))

    threads = [threading.Thread(target=work, args=(machine,)) for machine in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    team.server.fault = team.server.no_fault
    assert len(met) == len(FAULTS)
    assert rows["one"] == rows["two"] == expected, problems
    assert {Path(name).name for name in team.names("objects")} == set(tiny_components.objects_of(team.folder / "folder"))
    assert {Path(name).stem for name in team.names("records")} == set(tiny_components.results_of(team.folder / "folder"))
    found = verify(FAULTY, team.at("three"), 10)
    assert (found.wrong, found.damaged) == ([], [])
    monkeypatch.setattr("selfloop.commands.gc.MIN_AGE", -60)
    delete_garbage(find_garbage(team.at("three")), team.at("three"))
    assert verify(FAULTY, team.at("four"), 1).damaged == []


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_put_and_leaves_no_orphan_that_gc_keeps(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, rng = team.folder / "folder", np.random.default_rng(0)
    list(iter_measurements(tiny_components.tiny_spec(generations=25, seeds=4), expected))
    script = [sys.executable, tiny_components.__file__, team.address]
    for _ in range(4):
        before, started = team.names("records"), len(team.server.requests)
        environment = tiny_components.environment(SELFLOOP_CACHE=str(team.folder / "one"))
        process = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL)
        last = started + int(rng.integers(20, 150))
        while process.poll() is None and len(team.server.requests) < last:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert len(team.server.requests) >= last
        assert before < team.names("records")
    monkeypatch.setattr("selfloop.commands.gc.MIN_AGE", -60)
    delete_garbage(find_garbage(team.at("two")), team.at("two"))
    copied = copy_store(team.at("two"), team.folder / "copy")
    assert copied["damaged"] == 0
    known = tiny_components.results_of(expected)
    assert all(known[key] == result for key, result in tiny_components.results_of(team.folder / "copy").items())
    used = {result["object"] for result in tiny_components.results_of(team.folder / "copy").values() if "object" in result}
    assert {Path(name).stem for name in team.names("objects")} == used
