"""Names, summaries and settings of components and presets, and the runs of a store: for `selfloop list` and `runs`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from selfloop.component import Component, Family
from selfloop.errors import SpecError, unknown_name
from selfloop.plugins import BUILT_IN, component_class, component_names, presets
from selfloop.settings import SettingInfo, Settings, describe_fields, setting_types, settings_tables
from selfloop.source_code import class_node
from selfloop.spec.write import toml_value
from selfloop.store.runs import read_runs

KINDS = (*BUILT_IN, "preset")
PLURALS = {"policies": "policy", "families": "family", "criteria": "criterion"}


def summaries(kind: str | None) -> dict[str, dict[str, str]]:
    """Kind -> name -> first line of the documentation, of one kind or of all kinds. SpecError for an unknown kind."""
    singular = PLURALS.get(kind or "", (kind or "").removesuffix("s"))
    if kind and singular not in KINDS:
        raise SpecError(unknown_name("list", kind, KINDS))
    kinds = (singular,) if kind else KINDS
    heads = {name: entry.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for name, entry in sorted(presets().items())}
    return {each: heads if each == "preset" else _component_summaries(each) for each in kinds}


def component_settings(kind: str, name: str) -> tuple[str, list[SettingInfo]]:
    """Documentation of a component, and its settings. Their defaults are TOML text."""
    if kind not in BUILT_IN:
        raise SpecError(unknown_name("list", kind, KINDS))
    cls = component_class(kind, name, kind)
    text, settings = inspect.getdoc(cls) or "", list(_flat_settings(cls, ""))
    if issubclass(cls, Family) and cls.resources:
        usual = ", ".join(f"{key} = {value:g}" for key, value in cls.resources.items())
        text += f"\n\n[resources] of one chain, where a machine has them and the spec has none: {usual}."
    if issubclass(cls, Family) and fields(cls.sampler_class):
        text += f"\n\n[family.sampler] {inspect.getdoc(cls.sampler_class)}"
        settings += _flat_settings(cls.sampler_class, "sampler.")
    return text, settings


def list_runs(store: Path) -> list[dict[str, Any]]:
    """The runs of a store, the last one first: name, title, date, number of records, bytes. Runs share records."""
    runs = [(run, *run.size(store)) for run in read_runs(store)]
    return [
        {"name": run.name, "title": run.title, "last": datetime.fromtimestamp(run.time).astimezone().isoformat(),
         "records": records, "bytes": size}
        for run, records, size in runs
    ]  # fmt: skip


def _flat_settings(cls: type[Any], prefix: str, defaults: Any = None) -> Iterator[SettingInfo]:
    """The settings of a class, including the settings of its nested tables."""
    for setting in describe_fields(cls, defaults):
        if isinstance(setting.default, Component):
            yield setting._replace(name=prefix + setting.name, default=toml_value(setting.default.name))
        if isinstance(setting.default, Settings):
            yield from _flat_settings(type(setting.default), f"{prefix}{setting.name}.", setting.default)
            continue
        value = setting.default
        text = "unset" if value is None else "required" if value is MISSING else toml_value(value)
        yield setting._replace(name=prefix + setting.name, default=text)
        if setting.default in (None, MISSING):
            for table in settings_tables(setting_types(cls)[setting.name]):
                if setting.default is None or not issubclass(table, Component):  # a component is listed by itself
                    yield from _flat_settings(table, f"{prefix}{setting.name}.")


def _component_summaries(kind: str) -> dict[str, str]:
    """First docstring line of every component, from source files: importing every component would load torch and RDKit."""
    lines = {}
    for name, target in component_names(kind).items():
        node = class_node(target)
        lines[name] = (ast.get_docstring(node) or "").split("\n")[0] if node else "(cannot be loaded)"
    return lines
