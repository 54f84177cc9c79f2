"""The runs of a store: a small file for each, with its spec and the keys of the records it uses. No key depends on it."""

from __future__ import annotations

import json
import os
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.errors import SelfloopError
from selfloop.formats.replacing import write_text
from selfloop.store.folder import StoreFolder
from selfloop.store.identity import digest
from selfloop.store.records import check_format, file_stat, read_record


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


def run_name(spec: str) -> str:
    """The name of the run of a spec, written as TOML."""
    return digest(spec.encode())[:12]


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
    question = {key: value for key, value in table.items() if key not in ("metrics", "criteria", "primary")}
    return question, policies, frozenset(range(seeds) if isinstance(seeds, int) else seeds)


@contextmanager
def note_run(store: Path, title: str, spec: str) -> Iterator[set[str]]:
    """Collects the keys of a run's records, and lists the run at its start and at its end, also if it is interrupted.

    A store that cannot be written stays as it is.
    """
    file, keys, look = store / "runs" / f"{run_name(spec)}.json", set[str](), count_looks(store, spec)

    def write() -> None:
        before = read_run(file)
        body = {"title": title, "spec": spec, "look": look, "keys": sorted(keys | (before.keys if before else set()))}
        with suppress(OSError, SelfloopError):
            if os.path.lexists(file) and file_stat(file) is None:  # writing to a pipe would wait for a reader
                StoreFolder(store).set_aside(str(file))
            file.parent.mkdir(exist_ok=True)
            write_text(file, json.dumps(body))

    write()
    try:
        yield keys
    finally:
        write()


def read_runs(store: Path) -> list[StoredRun]:
    """The runs of a store that are listed, the last one first. Warns of damaged files; SelfloopError if there is no store."""
    if not check_format(store):
        raise SelfloopError(f"store {store}: is not a store. Name its folder with --store.")
    runs = []
    for file in (store / "runs").glob("[0-9a-f]*.json"):
        if run := read_run(file):
            runs.append(run)
        else:
            warnings.warn(f"damaged file {file}: this run is not listed until it is run again", stacklevel=2)
    return sorted(runs, key=lambda run: -run.time)


def read_run(file: Path) -> StoredRun | None:
    """The run that a file lists; None if there is no such file, or another form in it."""
    with suppress(OSError, ValueError, RecursionError):
        if file_stat(file) is not None:
            match body := json.loads(file.read_bytes()):
                case {"title": str(title), "spec": str(spec), "keys": list(keys)} if file.stem == run_name(spec):
                    look = body["look"] if isinstance(body.get("look"), int) else 1
                    return StoredRun(file.stem, title, frozenset(map(str, keys)), file.stat().st_mtime, spec, look)
    return None
