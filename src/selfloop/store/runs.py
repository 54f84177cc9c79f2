"""The runs of a store: a small file for each, with its spec and the keys of the records it uses. No key depends on it."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.errors import SelfloopError
from selfloop.formats.replacing import write_text
from selfloop.store.bucket import connect
from selfloop.store.folder import StoreFolder
from selfloop.store.identity import digest
from selfloop.store.records import check_format, file_stat, place_of, read_record, write_new


@dataclass(frozen=True)
class StoredRun:
    """A run of a spec, finished or not."""

    name: str  # 12 hexadecimal digits of the spec's digest
    title: str  # for a table of runs
    keys: frozenset[str]  # of its records
    time: float  # of its last start or end, in seconds since 1970
    spec: str = ""  # as TOML
    look: int = 1  # as `count_looks` at its first start

    def size(self, store: Path) -> tuple[int, int]:
        """Number of its records that are in the store, and bytes of these and of their objects. Runs share records."""
        files = StoreFolder(store, read_only=True)
        bodies = {file: body for key in self.keys if (body := read_record(file := files.record_path(key), key))}
        objects = {files.object_path(body["result"]["object"]) for body in bodies.values() if "object" in body["result"]}
        return len(bodies), sum(os.path.getsize(file) for file in (*bodies, *objects) if os.path.exists(file))


def open_place(place: str) -> Path:
    """The folder of a store, given that folder or the address of a bucket, also as `Path` writes it (s3:/bucket).

    Raises SpecError for another address.
    """
    if not re.match(r"[a-zA-Z][\w+.-]+:(/|$)", place):
        return Path(place)
    if check_format(path := connect(place)):
        _receive_runs(StoreFolder(path, read_only=True))
    return path


def run_name(spec: str) -> str:
    """The name of the run of a spec, written as TOML. Its resources, the last table, change no result."""
    return digest(spec.partition("\n[resources]\n")[0].encode())[:12]


def count_looks(store: Path, spec: str) -> int:
    """The look of the run of a spec: 1, and 1 more for each smaller set of two or more of its seeds that was asked the same.

    The same: equal but for policies (of which it has some), metrics, criteria and comparison. One seed gives no answers. The
    number is that of the first start of the run, so that it stays what it was.
    """
    if before := read_run(store / "runs" / f"{run_name(spec)}.json"):
        return before.look
    question, policies, seeds = _parse_question(spec)
    earlier = [_parse_question(run.spec) for file in (store / "runs").glob("[0-9a-f]*.json") if (run := read_run(file))]
    looks = {fewer for asked, had, fewer in earlier if asked == question and any(policy in policies for policy in had)}
    return 1 + sum(len(fewer) >= 2 and fewer < seeds for fewer in looks)


def _parse_question(spec: str) -> tuple[dict[str, Any], list[Any], frozenset[int]]:
    """The question of a spec, its policies and its seeds; no seeds if it is none."""
    table: dict[str, Any] = {}
    with suppress(ValueError):
        table = tomllib.loads(spec)
    seeds, policies = table.pop("seeds", []), table.pop("policies", [])
    question = {key: value for key, value in table.items() if key not in ("metrics", "criteria", "primary", "resources")}
    return question, policies, frozenset(range(seeds) if isinstance(seeds, int) else seeds)


@contextmanager
def note_run(store: Path, title: str, spec: str) -> Iterator[set[str]]:
    """Collects the keys of a run's records, and lists the run at its start and at its end, also if it is interrupted.

    A store that cannot be written stays as it is.
    """
    files, keys, look = StoreFolder(store), set[str](), count_looks(store, spec)

    def write() -> None:
        try:
            add_run(files, StoredRun(run_name(spec), title, frozenset(keys), time.time(), spec, look))
        except (OSError, SelfloopError) as problem:
            if files.bucket:
                warnings.warn(f"{problem} Other machines do not list this run.", stacklevel=4)

    write()
    try:
        yield keys
    finally:
        write()


def add_run(files: StoreFolder, run: StoredRun, *, received: bool = False) -> None:
    """List a run, with the keys and at the look that it had. OSError, or StoreError, if the store cannot be written.

    A bucket has a file for each set of keys, named by its content, so that machines need not wait for each other.
    """
    file = files.path / "runs" / f"{run.name}.json"
    if os.path.lexists(file) and file_stat(file) is None:  # writing to a pipe would wait for a reader
        files.set_aside(str(file))
    before = read_run(file) or run
    file.parent.mkdir(exist_ok=True)
    body = {"title": run.title, "spec": run.spec, "look": before.look, "keys": sorted(run.keys | before.keys)}
    write_text(file, text := json.dumps(body))
    os.utime(file, (max(before.time, run.time),) * 2)
    seen = file.with_name("received") / f"{run.name}-{digest(text.encode())[:12]}.json"
    if files.bucket and not received and not seen.exists():
        files.bucket.put_new(f"runs/{seen.name}", text.encode())
        write_new(str(seen), text.encode())


def _receive_runs(files: StoreFolder) -> None:
    """List the runs of a bucket that were added since this was last called."""
    for name, _, changed in files.bucket.list("runs") if files.bucket else ():
        file = files.path / "runs" / "received" / os.path.basename(name)
        run, _, mark = file.stem.partition("-")
        if not file.exists() and files.bucket and (content := files.bucket.get(name)):
            if mark not in ("", digest(content)[:12]):  # damaged on the way: the next time again
                continue
            if listed := _parse_run(content, run, changed):
                add_run(files, listed, received=True)
            write_new(str(file), content)


def read_runs(store: Path) -> list[StoredRun]:
    """The runs of a store that are listed, the last one first. Warns of damaged files; SelfloopError if there is no store."""
    if not check_format(store):
        raise SelfloopError(f"store {place_of(store)}: is not a store. Name its folder with --store.")
    runs = []
    for file in (store / "runs").glob("[0-9a-f]*.json"):
        if run := read_run(file):
            runs.append(run)
        else:
            warnings.warn(f"damaged file {file}: this run is not listed until it is run again", stacklevel=2)
    return sorted(runs, key=lambda run: -run.time)


def read_run(file: Path) -> StoredRun | None:
    """The run that a file lists; None if there is no such file, or another form in it."""
    with suppress(OSError):
        if file_stat(file) is not None:
            return _parse_run(file.read_bytes(), file.stem, file.stat().st_mtime)
    return None


def _parse_run(content: bytes, name: str, changed: float) -> StoredRun | None:
    with suppress(ValueError, RecursionError):
        match body := json.loads(content):
            case {"title": str(title), "spec": str(spec), "keys": list(keys)} if name == run_name(spec):
                look = body["look"] if isinstance(body.get("look"), int) else 1
                return StoredRun(name, title, frozenset(map(str, keys)), changed, spec, look)
    return None
