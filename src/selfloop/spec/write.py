"""A spec as TOML text, and the settings of a component that differ from their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from selfloop.component import Component, Family, Sampler
from selfloop.errors import SelfloopError
from selfloop.settings import Settings, default_of, describe_fields
from selfloop.spec.spec import Spec


def spec_text(spec: Spec, *, brief: bool = False) -> str:
    """The spec as TOML with every setting, or if `brief` without those that are the same if they are left out.

    Components that are not built in are written by name.
    """
    lines = [f"{key} = {getattr(spec, key)}" for key in ("n", "holdout", "generations") if getattr(spec, key) is not None]
    seeds = len(spec.seeds) if spec.seeds == tuple(range(len(spec.seeds))) else list(spec.seeds)
    lines.append(f"seeds = {seeds}")
    usual, values = _defaults(spec, brief), {key: getattr(spec, key) for key in ("init_from", "subsets", "unit")}
    lines += [f"{key} = {toml_value(value)}" for key, value in values.items() if value != usual.get(key)]
    if spec.merge is not None:
        lines.append(f"merge = {spec.merge}")
    for key in ("policies", "metrics", "criteria", "curators"):
        if components := getattr(spec, key):
            lines += [f"{key} = [", *(f"    {_inline_component(component, brief)}," for component in components), "]"]
    if spec.primary:
        lines.append(f"primary = {toml_value(spec.primary)}")
    for key in ("source", "external", "second_holdout", "family"):
        if component := getattr(spec, key):
            lines += ["", f"[{key}]", *_component_lines(component, key, brief)]
    sampler = _given_settings(spec.sampler, spec.family) if brief else spec.sampler
    if settings := _component_lines(sampler, "family.sampler", brief)[1:]:
        lines += ["", "[family.sampler]", *settings]
    if spec.sweep:
        lines += ["", "[sweep]", *(f'"{key}" = {toml_value(values)}' for key, values in spec.sweep.items())]
    if resources := _set_values(spec.resources):  # the last table: a run's name leaves it out
        lines += ["", "[resources]", *(f"{key} = {toml_value(value)}" for key, value in resources.items())]
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


def _given_settings(sampler: Sampler, family: Family) -> Sampler:
    """The sampler without the settings that the family sets."""
    reduced = sampler
    for f in fields(sampler):
        with suppress(SelfloopError):  # this one has no default here
            without = replace(reduced, **{f.name: default_of(f)})
            reduced = without if without.complete(family) == sampler else reduced
    return reduced


def _set_values(table: Any, defaults: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The name of a component, and the settings of a table that are neither default nor None, which TOML cannot write."""
    named = {"name": table.name} if isinstance(table, Component) else {}
    values = {f.name: getattr(table, f.name) for f in fields(table)}
    return named | {key: value for key, value in values.items() if value is not None and value != defaults.get(key)}


def _component_lines(component: Component, key: str, brief: bool) -> list[str]:
    """The settings of a component, with its nested tables after them."""
    lines, tables, defaults = list[str](), list[str](), _defaults(component, brief)
    for name, value in _set_values(component, defaults).items():
        if isinstance(value, Settings):
            usual = defaults.get(name) if not isinstance(value, Component) else None
            inner = _set_values(value, vars(usual) if type(usual) is type(value) else {})
            tables += ["", f"[{key}.{name}]", *(f"{setting} = {toml_value(v)}" for setting, v in inner.items())]
        else:
            lines.append(f"{name} = {toml_value(value)}")
    return lines + tables


def _defaults(settings: Any, brief: bool) -> dict[str, Any]:
    """The values that are left out, by setting."""
    return {f.name: default_of(f) for f in fields(settings)} if brief else {}


def _inline_component(component: Component, brief: bool) -> str:
    values = _set_values(component, _defaults(component, brief))
    settings = [f"{name} = {toml_value(value)}" for name, value in values.items() if value != ()]
    return f"{{ {', '.join(settings)} }}" if len(settings) > 1 else toml_value(component.name)
