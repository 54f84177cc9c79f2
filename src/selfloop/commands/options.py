"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from selfloop.commands.completion import complete_key, complete_spec
from selfloop.errors import SpecError, shown


def json_file(value: str | None) -> str | None:
    """The file of `--json`; SpecError for a word that belongs to the command, as in `list --json policy`."""
    from selfloop.plugins import BUILT_IN, presets

    names = {"preset", *BUILT_IN, *presets(), *(name for names in BUILT_IN.values() for name in names)}
    if value in names or (value or "").endswith(".toml"):
        raise SpecError(f"--json {value}: is no file for JSON (it takes one, or - for standard output). Choose another file.")
    return value


SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A TOML file or a preset.", autocompletion=complete_spec)]
SpecsArgument = Annotated[
    list[str], typer.Argument(metavar="SPEC...", help="TOML files or presets.", autocompletion=complete_spec)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; repeatable.", autocompletion=complete_key),
]
STORE_HELP = "Folder of the store, or s3://BUCKET/PREFIX (gs, az). Default: $SELFLOOP_STORE, else .selfloop."
StoreOption = Annotated[str | None, typer.Option(metavar="STORE", help=STORE_HELP)]  # no Path, which changes s3://
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes. Default: as many as the cores allow.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads per chain. Default: cores / chains, at least 1.")]
OnOption = Annotated[
    str | None, typer.Option(metavar="CLUSTER", help="Run on Ray: ray (started here), auto or ray://HOST:PORT (running).")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write one JSON object; - is stdout.", callback=json_file)
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]


def store_at(store: str | None) -> Path:
    """The folder of the store: that of the option, else of the variable, else the default."""
    from selfloop.engine.run import store_path

    return store_path(store)


def own_settings(specs: Sequence[str], settings: Sequence[str]) -> dict[str, list[str]]:
    """The `--set` options of each of several specs: those that name it, as `SPEC:KEY=VALUE`, and those that name none."""
    prefixes = tuple(f"{spec}:" for spec in specs)
    for text in settings:
        name, colon, _ = text.partition("=")[0].rpartition(":")
        if colon and not text.startswith(prefixes):
            raise SpecError(f"--set {shown(text)}: no spec {name} here. Allowed: {', '.join(specs)}.")
    return {
        spec: [
            text.removeprefix(f"{spec}:") for text in settings if text.startswith(f"{spec}:") or not text.startswith(prefixes)
        ]
        for spec in specs
    }
