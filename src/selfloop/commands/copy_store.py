"""Copies what one store has and another one lacks, and lists its runs there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfloop.errors import StoreError
from selfloop.store.bucket import DamagedError
from selfloop.store.folder import StoreFolder
from selfloop.store.runs import add_run, read_runs


@dataclass(slots=True)
class StoreCopy:
    """What was copied, and what was there before."""

    records: int = 0
    objects: int = 0
    bytes: int = 0  # of objects
    present: int = 0  # records that the target had
    damaged: int = 0  # records that are damaged, or whose object is damaged or missing; they are not copied


def copy_store(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> StoreCopy:
    """Copy records and objects that the target lacks, each checked by its digest. An interrupted copy may be repeated.

    Records come after their objects. Raises SelfloopError if the source is no store, and StoreError for one not to be written.
    """
    runs, have, into, copied = read_runs(source), StoreFolder(source, read_only=True), StoreFolder(target), StoreCopy()
    if source.resolve() == target.resolve():
        raise StoreError(f"store {source}: is the source and the target. Name two stores.")
    keys, known, objects = sorted(have.keys()), into.keys(), into.contents()
    for done, key in enumerate(keys, 1):
        body = have.read_record(key)
        content = body["result"].get("object") if body else None
        if body is None or not _is_sound(have, content, skip=content in objects):
            copied.damaged += 1
        else:
            if content is not None and content not in objects:
                into.copy_object(content, file := Path(have.object_path(content)))
                objects.add(content)
                copied.objects, copied.bytes = copied.objects + 1, copied.bytes + file.stat().st_size
            if key not in known:
                into.write_record(body)
            copied.present, copied.records = copied.present + (key in known), copied.records + (key not in known)
        if progress:
            progress(done, len(keys))
    for run in runs:
        add_run(into, run)
    return copied


def _is_sound(files: StoreFolder, content: str | None, *, skip: bool) -> bool:
    """True if an object is intact, after a warning if it is not."""
    try:
        if content is None or skip or files.obtain(content):
            return True
    except DamagedError as problem:
        warnings.warn(str(problem), stacklevel=3)
        return False
    files.set_aside(files.object_path(content))
    return False
