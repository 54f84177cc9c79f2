"""The commands `store push` and `store pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.options import QuietOption, store_at
from selfloop.commands.progress import show_progress
from selfloop.commands.terminal import show

PLACE = "A folder, or s3://BUCKET/PREFIX, gs://... or az://..."
store_app = typer.Typer(no_args_is_help=True, help="Copy results between stores.")
PlaceArgument = Annotated[Path, typer.Argument(help=PLACE)]


@store_app.command()
def push(store: PlaceArgument, other: PlaceArgument, quiet: QuietOption = False) -> None:
    """Copy to another store what it lacks: records, objects, the list of runs. May be interrupted and repeated.

    Example: selfloop store push .selfloop s3://team-bucket/results
    """
    _copy(store, other, quiet)


@store_app.command()
def pull(store: PlaceArgument, other: PlaceArgument, quiet: QuietOption = False) -> None:
    """Copy from another store what this one lacks: records, objects, the list of runs. May be interrupted and repeated.

    Example: selfloop store pull .selfloop s3://team-bucket/results
    """
    _copy(other, store, quiet)


def _copy(source: Path, target: Path, quiet: bool) -> None:
    from selfloop.commands.copy_store import copy_store

    with show_progress(quiet, "records") as progress:
        copied = copy_store(store_at(source), store_at(target), progress)
    show(
        f"copied: {copied.records:,} records, {copied.objects:,} objects ({copied.bytes / 1e6:,.1f} MB); "
        f"{copied.present:,} records were there; {copied.damaged:,} are damaged and were not copied."
    )
    if copied.damaged:
        raise typer.Exit(1)
