"""Options that several commands have, and what a shell completes: specs, keys of a spec, names of components, none imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from typing import Annotated, Any

import typer

from selfloop.errors import SpecError, shown
from selfloop.source_code import class_node


def complete_spec(incomplete: str) -> list[str]:
    from selfloop.plugins import presets

    folders = [*glob(f"{escape(incomplete)}*{os.sep}")]
    return _matching([*presets(), *glob(f"{escape(incomplete)}*.toml"), *folders], incomplete)


def complete_kind(incomplete: str) -> list[str]:
    from selfloop.plugins import BUILT_IN

    return _matching([*BUILT_IN, "preset"], incomplete)


def complete_component(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind before them."""
    from selfloop.plugins import component_names, presets

    kind = ctx.params.get("kind") or ""
    return _matching(presets() if kind == "preset" else component_names(kind), incomplete)


def complete_criterion(incomplete: str) -> list[str]:
    from selfloop.plugins import component_names

    return _matching(["any", *component_names("criterion")], incomplete)


def complete_key(ctx: typer.Context, incomplete: str) -> list[str]:
    """`key=` for the keys of a spec: those that all have, those of its file, and the settings of its source and family."""
    from selfloop.errors import SelfloopError
    from selfloop.spec.parse import parse_toml, read_spec_text

    keys = [*_fields("selfloop.spec.spec:Spec")]
    named = ctx.params.get("spec") or ctx.params.get("specs") or ""
    spec = next(iter(ctx.args or ([named] if isinstance(named, str) else named)))  # args: while the value of --set is missing
    with suppress(SelfloopError, OSError):
        table = parse_toml(read_spec_text(spec), spec)
        keys += [*_flat_keys(table, ""), *_component_keys(table)]
    return _matching([f"{key}=" for key in dict.fromkeys(keys)], incomplete)


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _flat_keys(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in table.items():
        yield from _flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def _component_keys(table: Mapping[str, Any]) -> Iterator[str]:
    """Keys such as "family.latent", from the source code of the components."""
    from selfloop.plugins import BUILT_IN

    for kind in ("source", "family"):
        name = table[kind].get("name", "") if isinstance(table.get(kind), dict) else table.get(kind, "")
        if target := BUILT_IN[kind].get(str(name)):
            yield from (f"{kind}.{key}" for key in _fields(target))


def _fields(target: str) -> list[str]:
    """The fields that a class declares itself."""
    node = class_node(target)
    fields = [each for each in (node.body if node else ()) if isinstance(each, ast.AnnAssign)]
    return [ast.unparse(each.target) for each in fields if "ClassVar" not in ast.unparse(each.annotation)]


def json_file(value: str | None) -> str | None:
    """The file of `--json`; SpecError for a word that belongs to the command, as in `list --json policy`."""
    from selfloop.plugins import BUILT_IN, presets

    names = {"preset", *BUILT_IN, *presets(), *(name for names in BUILT_IN.values() for name in names)}
    if value in names or (value or "").endswith(".toml"):
        raise SpecError(f"--json {value}: is no file for JSON (it takes one, or - for standard output). Choose another file.")
    return value


def figure_file(value: Path | None) -> Path | None:
    """The file of `--figure`; SpecError for another ending than those of figures, before any work."""
    if value is not None and value.suffix not in (".svg", ".png", ".pdf"):
        raise SpecError(f"--figure: got {shown(str(value))}; expected a file that ends in .svg, .png or .pdf. Rename it.")
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
FigureOption = Annotated[Path | None, typer.Option(help="Draw the curves to a .svg, .png or .pdf file.", callback=figure_file)]
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
        spec: [t.removeprefix(f"{spec}:") for t in settings if t.startswith(f"{spec}:") or not t.startswith(prefixes)]
        for spec in specs
    }
