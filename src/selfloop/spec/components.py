"""Components and settings from names and tables, with errors that name the key the user typed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from selfloop.component import Component, Policy
from selfloop.errors import DataError, SettingError, SpecError, shown, unknown_name
from selfloop.plugins import component_class, component_names
from selfloop.protocols import CuratesRows
from selfloop.settings import (
    Settings,
    allowed_classes,
    check_setting,
    default_of,
    describe_fields,
    item_classes,
    setting_types,
    settings_tables,
)

S = TypeVar("S")
CURATION_KEYS = {"curators", "max_rounds"}  # in the table of any policy


def make_component(kind: str, value: Any, key: str) -> Any:
    """A component from a component, its name, a text such as "mix(real_share=0.3)", or a table with its name and settings."""
    if isinstance(value, Component):
        return value
    table = {"name": value} if isinstance(value, str) else value
    if isinstance(table, Mapping) and "(" in (text := str(table.get("name"))):
        table = {**_parse_call(text, key), **{name: setting for name, setting in table.items() if name != "name"}}
    if kind == "policy" and isinstance(table, Mapping) and table.get("name") != "curated" and CURATION_KEYS & set(table):
        inner = {name: setting for name, setting in table.items() if name not in CURATION_KEYS}
        curation = {name: table[name] for name in CURATION_KEYS & set(table)}
        return make_component(kind, {"name": "curated", "of": inner, **curation}, key)
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        allowed = ", ".join(component_names(kind))
        raise SpecError(f"{key}: got {shown(value)}; expected a name or a table with a name. Allowed: {allowed}.")
    cls = component_class(kind, table["name"], f"{key}.name" if value is table else key)
    return make_settings(cls, {name: setting for name, setting in table.items() if name != "name"}, key)


def _parse_call(text: str, key: str) -> dict[str, Any]:
    """The table of a text such as "mix(real_share=0.3)"; SpecError for another form."""
    match = re.fullmatch(r"\s*([\w-]+)\s*\((.*)\)\s*", text, re.DOTALL)
    try:
        table: dict[str, Any] = tomllib.loads(f"v = {{ {match[2]} }}")["v"] if match else {}
    except ValueError:
        match = None
    if match is None or "name" in table:
        raise SpecError(f'{key}: got {shown(text)}; expected a name and settings, such as "mix(real_share=0.3)". Correct it.')
    return {"name": match[1], **table}


def make_components(kind: str, values: Any, key: str) -> tuple[Any, ...]:
    """Components of one kind, from one value or many."""
    if isinstance(values, str | Mapping | Component) or not isinstance(values, Iterable):
        return (make_component(kind, values, key),)
    return tuple(make_component(kind, value, f"{key}[{i}]") for i, value in enumerate(values))


def make_settings(cls: type[S], table: Mapping[str, Any], key: str) -> S:
    """A dataclass of settings from a table. Raises SpecError for unknown, missing and rejected settings."""
    values = _read_settings(cls, table, key)
    missing = [f.name for f in fields(cls) if default_of(f) is MISSING and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise SpecError(f"{key}.{missing[0]}: missing. Set {' and '.join(missing)}.")
    with errors_under(key):
        return cls(**values)


def change_settings(settings: S, table: Mapping[str, Any], key: str) -> S:
    """The settings with those in a table changed; a table inside it changes single settings of a settings table."""
    values = _read_settings(type(settings), table, key, settings)
    with errors_under(key):
        return replace(settings, **values)  # type: ignore[type-var]  # a dataclass


def _read_settings(cls: type[Any], table: Mapping[str, Any], key: str, base: Any = None) -> dict[str, Any]:
    """The settings in a table, checked. `base`: an instance whose values replace the defaults of the class."""
    defaults = {f.name: default_of(f) if base is None else getattr(base, f.name) for f in fields(cls)}
    hints, values = setting_types(cls), dict[str, Any]()
    for name, value in table.items():
        if name not in defaults:
            raise SpecError(unknown_name(f"{key}.{name}", name, defaults, "key"))
        default, hint = defaults[name], hints.get(name, Any)
        kinds = [allowed.component_kind for allowed in allowed_classes(hint) if issubclass(allowed, Component)]
        listed = [item.component_kind for item in item_classes(hint) if issubclass(item, Component)]
        if listed:
            values[name] = make_components(listed[0], value, f"{key}.{name}")
        elif kinds and isinstance(value, str) and str not in allowed_classes(hint):
            values[name] = make_component(kinds[0], value, f"{key}.{name}")
        elif isinstance(value, Mapping) and "name" in value and kinds:
            # single settings of the default are changed; a policy with curators is another one
            if getattr(default, "name", None) == value["name"] and not CURATION_KEYS & set(value):
                inner = {key: setting for key, setting in value.items() if key != "name"}
                values[name] = change_settings(default, inner, f"{key}.{name}")
            else:
                values[name] = make_component(kinds[0], value, f"{key}.{name}")
        elif isinstance(value, Mapping) and isinstance(default, Settings):
            values[name] = change_settings(default, value, f"{key}.{name}")
        elif isinstance(value, Mapping) and (tables := settings_tables(hint)):
            values[name] = make_settings(tables[0], value, f"{key}.{name}")
        else:
            if base is not None and isinstance(value, Mapping) and isinstance(default, Mapping):
                value = {**default, **value}  # single entries of a table are changed
            with errors_under(key):
                values[name] = check_setting(hint, value, name)
    return values


@contextmanager
def errors_under(key: str) -> Iterator[None]:
    """Errors of settings inside name the setting with `key` in front; those of a source name its table."""
    try:
        yield
    except SettingError as problem:
        raise problem.under(key) from None
    except DataError as problem:
        raise DataError(re.sub(r"(^|--set )source(?=[.:])", rf"\g<1>{key}", str(problem))) from problem


def policy_label(policy: Component, with_settings: bool) -> str:
    """Name of a policy, with `with_settings` followed by the settings that are not default: `fresh(ratio=2)`.

    Curators follow the name of their policy: `replace + verifier(share=0.5)`.
    """
    if isinstance(policy, CuratesRows):
        rounds = [] if policy.max_rounds is None or not with_settings else [f"max_rounds={policy.max_rounds}"]
        return " + ".join([*(policy_label(part, with_settings) for part in (policy.of, *policy.curators)), *rounds])
    changed = [
        f"{setting.name}={_short(getattr(policy, setting.name))}"
        for setting in describe_fields(type(policy))
        if getattr(policy, setting.name) != (None if setting.default is MISSING else setting.default)
    ]
    return f"{policy.name}({', '.join(changed)})" if changed and with_settings else policy.name


def policy_settings(policy: Component, key: str = "policy") -> dict[str, object]:
    """The settings of a policy as columns of a frame: `policy.name`, `policy.real_share`, `policy.of.name`, ...

    Of a policy with curators the name and settings are those of the policy inside, and `policy.curators` is text.
    """
    if isinstance(policy, CuratesRows):
        rounds = {} if policy.max_rounds is None else {f"{key}.max_rounds": policy.max_rounds}
        labels = " + ".join(policy_label(curator, with_settings=True) for curator in policy.curators)
        return {**policy_settings(policy.of, key), f"{key}.curators": labels, **rounds}
    columns: dict[str, object] = {f"{key}.name": policy.name}
    for name, value in policy.settings().items():
        inner = policy_settings(value, f"{key}.{name}") if isinstance(value, Policy) else {f"{key}.{name}": value}
        columns |= inner if isinstance(value, Policy | bool | int | float | str | None) else {f"{key}.{name}": _short(value)}
    return columns


def _short(value: Any) -> str:
    if isinstance(value, Component):
        return policy_label(value, with_settings=True)
    return f"{value:g}" if isinstance(value, float) else str(value)
