"""What a shell completes: specs, keys of a spec, and names of components. No component is imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from glob import escape, glob
from typing import Any

import typer

from selfloop.source_code import class_node


def complete_spec(incomplete: str) -> list[str]:
    """Presets, TOML files and folders."""
    from selfloop.plugins import presets

    folders = [*glob(f"{escape(incomplete)}*{os.sep}")]
    return _matching([*presets(), *glob(f"{escape(incomplete)}*.toml"), *folders], incomplete)


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of components."""
    from selfloop.plugins import BUILT_IN

    return _matching([*BUILT_IN, "preset"], incomplete)


def complete_component(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind before them."""
    from selfloop.plugins import component_names, presets

    kind = ctx.params.get("kind") or ""
    return _matching(presets() if kind == "preset" else component_names(kind), incomplete)


def complete_criterion(incomplete: str) -> list[str]:
    """What `--fail-on` takes."""
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
