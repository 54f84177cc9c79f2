"""The runs that a store lists, with their size in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from selfloop.errors import SelfloopError
from selfloop.store.folder import StoreFolder
from selfloop.store.records import check_format, read_record
from selfloop.store.runs import StoredRun, read_runs


@dataclass(frozen=True)
class RunSize:
    """A run, the number of its records that are in the store, and the bytes of these and of their objects."""

    run: StoredRun
    records: int
    bytes: int


def measure_runs(path: Path) -> list[RunSize]:
    """The runs of a store, the last one first. Runs share records, so sizes may add up to more than the store's."""
    if not check_format(path):
        raise SelfloopError(f"store {path}: is not a store. Name its folder with --store.")
    files, sizes = StoreFolder(path, read_only=True), []
    for run in read_runs(path):
        bodies = {file: body for key in run.keys if (body := read_record(file := files.record_path(key), key))}
        objects = {files.object_path(body["result"]["object"]) for body in bodies.values() if "object" in body["result"]}
        size = sum(os.path.getsize(file) for file in (*bodies, *objects) if os.path.exists(file))
        sizes.append(RunSize(run, len(bodies), size))
    return sizes
