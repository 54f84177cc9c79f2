"""The command `store`."""

from __future__ import annotations

from typing import Annotated

import typer

from selfloop.commands.options import QuietOption, store_at
from selfloop.commands.progress import show_progress
from selfloop.commands.terminal import show
from selfloop.errors import SpecError, unknown_name

ActionArgument = Annotated[str, typer.Argument(metavar="push|pull", help="The direction.")]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A folder, or s3://BUCKET/PREFIX (gs, az).")]
OtherArgument = Annotated[str, typer.Argument(metavar="OTHER", help="Another one.")]


def store(action: ActionArgument, place: StoreArgument, other: OtherArgument, quiet: QuietOption = False) -> None:
    """Copy from one store to another what it lacks: push from the first to the second, pull from the second to the first.

    Each file is checked by its digest. A copy may be interrupted and repeated. Exits with 1 if a file is damaged.

    Example: selfloop store push .selfloop s3://team-bucket/results
    """
    from selfloop.commands.copy_store import copy_store

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
