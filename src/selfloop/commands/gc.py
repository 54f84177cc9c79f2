"""Finds and deletes files of a store: unused, unfinished and damaged ones, and on request the records of runs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from selfloop.commands.verify import stored_calls
from selfloop.errors import SelfloopError, os_error_reason
from selfloop.spec.spec import Spec
from selfloop.spec.write import spec_text
from selfloop.store.records import check_format, read_record
from selfloop.store.runs import read_runs, run_name

MIN_AGE = 86_400  # seconds since a file that no record names was last written: a live run may need it
DIGEST, PREFIX = "[0-9a-f]{40}", "[0-9a-f]{2}"


@dataclass(slots=True)
class Garbage:
    """Files and folders that can be deleted, with their bytes, by reason."""

    files: dict[str, dict[Path, int]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Add a file, or a folder with all that is in it."""
        self.files.setdefault(reason, {})[path] = sum(s.st_size for s in _status_below(path) if stat.S_ISREG(s.st_mode))

    def total(self) -> tuple[int, int]:
        """Number of files and folders, and their bytes."""
        return sum(map(len, self.files.values())), sum(sum(files.values()) for files in self.files.values())

    def delete(self) -> None:
        """Delete everything; SelfloopError for the first file that cannot be deleted."""
        for path in (path for files in self.files.values() for path in files):
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as problem:
                raise SelfloopError(f"gc: {path} cannot be deleted ({os_error_reason(problem)}).") from problem


def find_garbage(path: Path, keep: Collection[str], delete: Collection[str], read_spec: Callable[[str], Spec]) -> Garbage:
    """What can be deleted from a store. Deletes nothing.

    `keep`, `delete`: specs, or names of runs of the store. With `keep` the records of all other runs can be deleted, with
    `delete` the records that no run but these uses. Only files with names of the store's own form are found, and none behind
    a link. Raises SelfloopError if there is no store.
    """
    if not check_format(path):
        raise SelfloopError(f"store {path}: is not a store. Name its folder with --store.")
    garbage, runs = Garbage(), {run.name: run for run in read_runs(path)}
    names = {name: name if name in runs else run_name(spec_text(read_spec(name))) for name in (*keep, *delete)}

    def keys_of(named: Collection[str]) -> set[str]:
        listed = {key for name in named if names[name] in runs for key in runs[names[name]].keys}
        return listed.union(*(stored_calls([read_spec(name)], path) for name in named if name not in runs))

    wanted = keys_of(keep)
    unwanted = keys_of(delete).difference(*(run.keys for run in runs.values() if run.name not in names.values()))
    survivors = _find_records(path, garbage, lambda key: key not in wanted if keep else key in unwanted)
    _find_leftovers(path, garbage)
    for run in runs.values():
        if run.keys - survivors and (keep or run.name in names.values()):
            garbage.add(f"run {run.name} ({run.title})", path / "runs" / f"{run.name}.json")
    return garbage


def _find_records(path: Path, garbage: Garbage, is_unwanted: Callable[[str], bool]) -> set[str]:
    """Add damaged and unwanted records, and objects that no other record names. Returns the keys of the other records."""
    survivors, needed, freed = set[str](), set[str](), set[str]()
    for record in _own(path / "records", PREFIX, rf"{DIGEST}\.json"):
        body = read_record(record, record.stem)
        if body is None:
            garbage.add("damaged files", record)
        elif is_unwanted(record.stem):
            garbage.add("records", record)
            freed.add(body["result"].get("object", ""))
        else:
            survivors.add(record.stem)
            needed.add(body["result"].get("object", ""))
    for file in _own(path / "objects", PREFIX, rf"{DIGEST}\.safetensors"):
        if file.stem in freed - needed or (file.stem not in needed and _is_old(file)):
            garbage.add("objects", file)
    return survivors


def _find_leftovers(path: Path, garbage: Garbage) -> None:
    """Add files that were set aside as damaged, and unfinished ones of ended runs."""
    for forms in (("records|objects|scratch",), ("records|objects", PREFIX), ()):
        for file in _own(path, *forms, r".+\.\d+\.damaged"):
            garbage.add("damaged files", file)
        for file in _own(path, *forms, r"\.\d+-\d+\.tmp"):
            if _is_old(file):
                garbage.add("unfinished files", file)
    for folder in _own(path, "scratch", rf"{DIGEST}(\.\d+\.removed)?|verify-.+"):
        if _is_old(folder):
            garbage.add("unfinished steps", folder)


def _own(folder: Path, *forms: str) -> Iterator[Path]:
    """What lies in a folder under names of these forms, one for each level. Links are not followed and not found."""
    form, *rest = forms
    for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
        if re.fullmatch(form, path.name) and not path.is_symlink():
            yield from _own(path, *rest) if rest else [path]


def _is_old(path: Path) -> bool:
    return max((status.st_mtime for status in _status_below(path)), default=0.0) < time.time() - MIN_AGE


def _status_below(path: Path) -> Iterator[os.stat_result]:
    """The status of a file or folder, and of everything in it."""
    for below in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # a live run has just removed it
            yield below.lstat()
