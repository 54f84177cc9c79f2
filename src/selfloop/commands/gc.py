"""Deletes files of a store that no record needs, and on request all records that given specs do not use."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from selfloop.commands.verify import stored_calls
from selfloop.errors import SelfloopError
from selfloop.spec.spec import Spec
from selfloop.store.checks import object_of
from selfloop.store.records import check_format


def collect_garbage(path: Path, keep: Iterable[Spec] = ()) -> tuple[int, int]:
    """Delete unfinished files and objects without a record; with specs to keep, also all records that these do not use.

    Returns the number of deleted files and their bytes. Raises SelfloopError if there is no store.
    """
    check_format(path)
    if not (path / "FORMAT").is_file():
        raise SelfloopError(f"store {path}: is not a store. Name its folder with --store.")
    specs = list(keep)
    wanted = set(stored_calls(specs, path)) if specs else None
    records = [record for record in (path / "records").rglob("*.json") if wanted is None or record.stem in wanted]
    objects = {name for record in records if (name := object_of(record))}
    needed = set(records) | {path / "objects" / name[:2] / f"{name}.safetensors" for name in objects}
    files = size = 0
    for file in [*(path / "records").rglob("*"), *(path / "objects").rglob("*"), *(path / "scratch").rglob("*")]:
        if file.is_file() and file not in needed:
            files, size = files + 1, size + file.stat().st_size
            file.unlink()
    shutil.rmtree(path / "scratch", ignore_errors=True)
    return files, size
