"""The command `store`, which copies what one store has and another one lacks."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.options import QuietOption, store_at
from selfloop.commands.terminal import show, show_progress
from selfloop.errors import SpecError, StoreError, unknown_name

ActionArgument = Annotated[str, typer.Argument(metavar="push|pull", help="The direction.")]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A folder, or s3://BUCKET/PREFIX (gs, az).")]
OtherArgument = Annotated[str, typer.Argument(metavar="OTHER", help="Another one.")]


def store(action: ActionArgument, place: StoreArgument, other: OtherArgument, quiet: QuietOption = False) -> None:
    """Copy from one store to another what it lacks: push from the first to the second, pull from the second to the first.

    Each file is checked by its digest. A copy may be interrupted and repeated. Exits with 1 if a file is damaged.

    Example: selfloop store push .selfloop s3://team-bucket/results
    """
    if action not in ("push", "pull"):
        raise SpecError(unknown_name("store", action, ("push", "pull"), "action"))
    source, target = map(store_at, (place, other) if action == "push" else (other, place))
    with show_progress(quiet, "records") as progress:
        counts = copy_store(source, target, progress)
    show(
        f"copied: {counts['records']:,} records, {counts['objects']:,} objects ({counts['bytes'] / 1e6:,.1f} MB); "
        f"{counts['present']:,} records were there; {counts['damaged']:,} are damaged and were not copied."
    )
    if counts["damaged"]:
        raise typer.Exit(1)


def copy_store(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> Counter[str]:
    """Copy records and objects that the target lacks, each checked by its digest, the objects of a record before it.

    Returns the numbers of copied `records` and `objects`, `bytes` of these, records that were `present`, and `damaged` ones,
    which are not copied. Raises SelfloopError if the source is no store, StoreError if the target cannot be written.
    """
    from selfloop.store.folder import StoreFolder
    from selfloop.store.records import check_format, place_of
    from selfloop.store.runs import add_run, read_runs

    if source.resolve() == target.resolve():
        raise StoreError(f"store {source}: is the source and the target. Name two stores.")
    if not check_format(source):
        raise StoreError(f"store {place_of(source)}: is not a store, so nothing can be copied from it. Check its name.")
    runs, have, into, counts = read_runs(source), StoreFolder(source, read_only=True), StoreFolder(target), Counter[str]()
    keys, known, objects = sorted(have.stems("records")), into.stems("records"), into.stems("objects")
    for done, key in enumerate(keys, 1):
        body = have.read_record(key)
        content = body["result"].get("object") if body else None
        new = None if content in objects else content  # the object to copy
        if body is None or (new is not None and not have.is_sound(new)):
            counts["damaged"] += 1
            file = have.object_path(new) if body and new else have.record_path(key)
            warnings.warn(f"{file} is damaged or missing, and is not copied", stacklevel=2)
            continue
        if new is not None:
            into.copy_object(new, have.object_path(new))
            objects.add(new)
            counts.update(objects=1, bytes=os.path.getsize(have.object_path(new)))
        if key not in known:
            into.write_record(body)
        counts["present" if key in known else "records"] += 1
        if progress:
            progress(done, len(keys))
    for run in runs:
        add_run(into, run)
    return counts
