"""Files that a stored step reads: sources and objects. If they change under the step, its result does not belong to its key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.component import Context
from selfloop.errors import DataError, StoreError
from selfloop.formats.folders import list_folder
from selfloop.store.calls import StepCall
from selfloop.store.identity import ObjectRef, step_name
from selfloop.store.records import file_stat

if TYPE_CHECKING:
    from selfloop.store.store import Store


@contextmanager
def unchanged_inputs(store: Store, call: StepCall) -> Iterator[None]:
    """Raise DataError or StoreError after the block if the files that a step has just read are not those of its key."""
    inputs = list(inputs_of(call.arguments))
    before = _source_stats(inputs)
    try:
        yield
    finally:  # the step may have ended its chain, or failed, because of the change
        after = _source_stats(inputs)
        changed = [file for file in before | after if before.get(file) != after.get(file)]
        if before and not changed and store.key(call.step, *call.arguments) != call.key:  # changed after the key was made
            changed = list(before)
        if changed:
            raise DataError(f"{step_name(call.step)}: {changed[0]} changed while it was read. Nothing was stored; run again.")
        for ref in inputs:
            if isinstance(ref, ObjectRef) and not store.files.is_intact(ref.digest):
                raise StoreError(f"store {store.path}: object {ref.digest} changed while it was read. Run again.")


def inputs_of(value: Any) -> Iterator[Path | ObjectRef]:
    """Every path and every reference to stored arrays in an argument and its settings."""
    if isinstance(value, Path | ObjectRef):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from inputs_of(item)
    elif is_dataclass(value) and not isinstance(value, type | Context):
        yield from inputs_of([getattr(value, f.name) for f in fields(value) if f.metadata.get("identity", True)])


def _source_stats(inputs: Iterable[Path | ObjectRef]) -> dict[Path, Any]:
    """The files at and below the paths, and what changes when they are written."""
    paths = [path for path in inputs if isinstance(path, Path)]
    files = [path / name for path in paths for name in (list_folder(path).sizes if path.is_dir() else ("",))]
    return {file: file_stat(file) for file in files}
