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
from selfloop.store.records import read_record
from selfloop.store.runs import read_runs

MIN_AGE = 86_400  # seconds since a file that no record names was last written: a live run may need it
FORMS = {  # of the names of a store's own files
    "records": r"records/[0-9a-f]{2}/[0-9a-f]{40}\.json",
    "objects": r"objects/[0-9a-f]{2}/[0-9a-f]{40}\.safetensors",
    "damaged files": r"((records|objects)/([0-9a-f]{2}/)?|scratch/)?[^/]+\.\d+\.damaged",
    "unfinished files": r"((records|objects)/([0-9a-f]{2}/)?)?\.\d+-\d+\.tmp|runs/\.selfloop-[^/]+",
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

    def add(reason: str, file: Path) -> None:
        garbage.setdefault(reason, {})[file] = sum(s.st_size for s in _status_below(file) if stat.S_ISREG(s.st_mode))

    own, needed, freed = list(_own_files(path)), set[str](), set[str]()
    for file in (file for kind, file in own if kind == "records"):
        body = read_record(file, file.stem)
        if body is None or file.stem in unwanted:
            add("damaged files" if body is None else "records", file)
        if body is not None:
            (freed if file.stem in unwanted else needed).add(body["result"].get("object", ""))
    for kind, file in own:
        is_freed = kind == "damaged files" or (kind == "objects" and file.stem in freed)
        if kind != "records" and file.stem not in needed and (is_freed or _is_old(file)):
            add(kind, file)
    for name in runs:
        for file in (path / "runs").glob(f"{name}.*"):
            add(f"run {name} ({listed[name].title})", file)
    return garbage


def delete_garbage(garbage: Garbage) -> None:
    """Delete everything; SelfloopError for the first file that cannot be deleted."""
    for path in (path for files in garbage.values() for path in files):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise SelfloopError(f"gc: {path} cannot be deleted ({os_error_reason(problem)}).") from problem


def _own_files(store: Path) -> Iterator[tuple[str, Path]]:
    """What lies in a store under a name of its own form, with the kind of the form. Links are not followed and not found."""
    for folder, folders, files in os.walk(store):
        for path in (Path(folder, name) for name in sorted((*folders, *files))):
            name = path.relative_to(store).as_posix()
            yield from ((kind, path) for kind, form in FORMS.items() if re.fullmatch(form, name) and not path.is_symlink())


def _is_old(path: Path) -> bool:
    return max((status.st_mtime for status in _status_below(path)), default=0.0) < time.time() - MIN_AGE


def _status_below(path: Path) -> Iterator[os.stat_result]:
    """The status of a file or folder, and of everything in it."""
    for below in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # a live run has just removed it
            yield below.lstat()
