"""A spec as TOML text, and the settings of a component that differ from their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from selfloop.component import Component
from selfloop.settings import Settings, describe_fields
from selfloop.spec.spec import Spec


def spec_text(spec: Spec) -> str:
    """The spec as TOML with every setting written out; components that are not built in are written by name."""
    lines = [f"{key} = {getattr(spec, key)}" for key in ("n", "holdout", "generations") if getattr(spec, key) is not None]
    seeds = len(spec.seeds) if spec.seeds == tuple(range(len(spec.seeds))) else list(spec.seeds)
    lines += [
        f"seeds = {seeds}",
        f"init_from = {toml_value(spec.init_from)}",
        f"subsets = {toml_value(spec.subsets)}",
        f"unit = {toml_value(spec.unit)}",
    ]
    if spec.merge is not None:
        lines.append(f"merge = {spec.merge}")
    for key in ("policies", "metrics", "criteria", "curators"):
        if components := getattr(spec, key):
            lines += [f"{key} = [", *(f"    {_inline_component(component)}," for component in components), "]"]
    if spec.primary:
        lines.append(f"primary = {toml_value(spec.primary)}")
    for key in ("source", "external", "second_holdout", "family"):
        if component := getattr(spec, key):
            lines += ["", f"[{key}]", *_component_lines(component, key)]
    if fields(spec.sampler):
        lines += ["", "[family.sampler]", *_component_lines(spec.sampler, "family.sampler")[1:]]
    if spec.sweep:
        lines += ["", "[sweep]", *(f'"{key}" = {toml_value(values)}' for key, values in spec.sweep.items())]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A setting's value as TOML; a settings table is written as an inline table."""
    if isinstance(value, Settings):
        value = _set_values(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)  # TOML has no pairs of surrogates


def changed_settings(settings: Any, prefix: str = "", defaults: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """(Name, value, default) of every setting that differs from its default, including settings in nested tables.

    `defaults`: an instance whose values replace the defaults of the class.
    """
    for setting in describe_fields(type(settings), defaults):
        name, value = f"{prefix}{setting.name}", getattr(settings, setting.name)
        if isinstance(setting.default, Settings) and type(value) is type(setting.default):
            yield from changed_settings(value, f"{name}.", setting.default)
        elif value != setting.default:
            yield name, value, setting.default


def _set_values(table: Any) -> dict[str, Any]:
    """The name of a component inside another, and the settings of a table that are not None, which TOML cannot write."""
    named = {"name": table.name} if isinstance(table, Component) else {}
    return {**named, **{f.name: getattr(table, f.name) for f in fields(table) if getattr(table, f.name) is not None}}


def _component_lines(component: Component, key: str) -> list[str]:
    """The settings of a component, with its nested tables after them."""
    lines, tables = list[str](), list[str]()
    for name, value in _set_values(component).items():
        if isinstance(value, Settings):
            tables += ["", f"[{key}.{name}]", *(f"{inner} = {toml_value(v)}" for inner, v in _set_values(value).items())]
        else:
            lines.append(f"{name} = {toml_value(value)}")
    return lines + tables


def _inline_component(component: Component) -> str:
    settings = [f"{name} = {toml_value(value)}" for name, value in _set_values(component).items() if value != ()]
    return f"{{ {', '.join(settings)} }}" if len(settings) > 1 else toml_value(component.name)
