"""Finds and deletes files of a store: unused, unfinished and damaged ones, and on request the records of runs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from selfloop.errors import SelfloopError, os_error_reason, unknown_name
from selfloop.store.bucket import bucket_of
from selfloop.store.folder import StoreFolder
from selfloop.store.records import read_record
from selfloop.store.runs import read_runs

MIN_AGE = 86_400  # seconds since a file that no record names was last written: a live run may need it
FORMS = {  # of the names of a store's own files
    "records": r"records/[0-9a-f]{2}/[0-9a-f]{40}\.json",
    "objects": r"objects/[0-9a-f]{2}/[0-9a-f]{40}\.safetensors",
    "damaged files": r"((records|objects)/([0-9a-f]{2}/)?|scratch/)?[^/]+\.\d+\.damaged",
    "unfinished files": r"((records|objects)/([0-9a-f]{2}/)?)?\.(\d+-\d+\.tmp|[\w.-]+\.claim)|runs/\.selfloop-[^/]+|"
    r"objects/[0-9a-f]{2}/[0-9a-f]{40}\.safetensors\.\d+-\d+",
    "run files": r"runs/(received/)?[0-9a-f]{12}[.-][^/]+",
    "files of Ray clusters": r"seen-by-all-nodes-[0-9a-f]{8}",
    "unfinished steps": r"scratch/([0-9a-f]{40}(\.\d+\.removed|\.\w{8})?|verify-[^/]+)|logs/[0-9a-f]{16}-[a-z]+\.log",
}
Garbage = dict[str, dict[Path, int]]  # files and folders that can be deleted, with their bytes, by reason


def find_garbage(path: Path, runs: Collection[str] = ()) -> Garbage:
    """What can be deleted from a store, with the records that no run but these uses. Deletes nothing.

    Only files with names of the store's own form are found, and none behind a link. Raises SelfloopError if there is no store,
    or no such run.
    """
    listed = {run.name: run for run in read_runs(path)}
    if unknown := set(runs) - listed.keys():
        raise SelfloopError(unknown_name("gc", unknown.pop(), listed, "run"))
    unwanted = set[str]().union(*(listed[name].keys for name in runs))
    unwanted -= set[str]().union(*(run.keys for run in listed.values() if run.name not in runs))
    garbage: Garbage = {}
    files, own, needed, freed = StoreFolder(path, read_only=True), _own_files(path), set[str](), set[str]()

    def add(reason: str, file: Path) -> None:
        garbage.setdefault(reason, {})[file] = own[file][1]

    for file in (file for file, (kind, *_) in own.items() if kind == "records"):
        body = read_record(file, file.stem) or (files.read_record(file.stem) if files.bucket else None)
        if body is None or file.stem in unwanted:
            add("damaged files" if body is None else "records", file)
        if body is not None:
            (freed if file.stem in unwanted else needed).add(body["result"].get("object", ""))
    for file, (kind, _, changed) in own.items():
        is_freed = kind == "damaged files" or (kind == "objects" and file.stem in freed)
        if kind == "run files":
            if (name := file.stem[:12]) in runs:
                add(f"run {name} ({listed[name].title})", file)
        elif kind != "records" and file.stem not in needed and (is_freed or changed < time.time() - MIN_AGE):
            add(kind, file)
    return garbage


def delete_garbage(garbage: Garbage, store: Path) -> None:
    """Delete everything from a store; SelfloopError for the first file that cannot be deleted."""
    bucket = bucket_of(store)
    for path in (path for files in garbage.values() for path in files):
        try:
            if bucket:
                bucket.delete(path.relative_to(store).as_posix())
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise SelfloopError(f"gc: {path} cannot be deleted ({os_error_reason(problem)}).") from problem


def _own_files(store: Path) -> dict[Path, tuple[str, int, float]]:
    """What lies in a store under a name of its own form: the kind of the form, bytes, and the time of its last change.

    Links are not followed and not found. Files in a bucket have the path that they would have on this machine.
    """
    own, bucket = dict[Path, tuple[str, int, float]](), bucket_of(store)
    for folder, folders, files in os.walk(store):
        for path in (Path(folder, name) for name in sorted((*folders, *files))):
            kind = _kind(path.relative_to(store).as_posix())
            if kind and not path.is_symlink():
                below = list(_status_below(path))
                size = sum(status.st_size for status in below if stat.S_ISREG(status.st_mode))
                own[path] = kind, size, max((status.st_mtime for status in below), default=0.0)
    for name, size, changed in bucket.list("") if bucket else ():
        if kind := _kind(name):
            own[store / name] = kind, size, changed
    return own


def _kind(name: str) -> str:
    return next((kind for kind, form in FORMS.items() if re.fullmatch(form, name)), "")


def _status_below(path: Path) -> Iterator[os.stat_result]:
    """The status of a file or folder, and of everything in it."""
    for below in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # a live run has just removed it
            yield below.lstat()
