"""Specs from TOML files, presets and `key=value` overrides."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from selfloop.errors import SpecError, os_error_reason, shown, unknown_name
from selfloop.plugins import component_names, presets
from selfloop.spec.spec import Spec, check_keys, with_value

MAX_BYTES = 10_000_000  # of a spec; larger files are something else


def read_spec(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """The spec in a TOML file or a preset, with `key=value` overrides (values as in TOML)."""
    return parse_spec(read_spec_text(path), str(path), overrides)


def read_spec_text(path: str | Path) -> str:
    shipped = presets()
    if str(path) in shipped:
        return str(shipped[str(path)].read_text(encoding="utf-8"))
    file = Path(os.path.expanduser(path))
    try:
        if file.is_dir():
            raise SpecError(f"{file}: is a folder. Give the path of a TOML file, or see `selfloop list`.")
        if not file.is_file():
            near = unknown_name("preset", str(path), shipped).partition(".")[2] if file.suffix != ".toml" else ""
            raise SpecError(f"{path}: no such file or preset.{near} Give the path of a TOML file, or see `selfloop list`.")
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(f"{file}: has {file.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}. Give a TOML file.")
        if {".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson"} & {end.lower() for end in file.suffixes[-2:]}:
            raise SpecError(f"{path}: is a table, not a spec. Run `selfloop audit {path}`, or name it in a spec (source.path).")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = os_error_reason(problem) if isinstance(problem, OSError) else f"byte {problem.start} is not UTF-8"
        raise SpecError(f"{path}: cannot be read ({reason}). Give a TOML file, which is UTF-8 text.") from problem


def read_changed_spec(path: str | Path, changes: Mapping[str, Any]) -> Spec:
    """A spec with other values of dotted keys; settings of a policy or curator by its name, as in a sweep."""
    table = parse_toml(read_spec_text(path), str(path))
    named = {key: value for key, value in changes.items() if key.startswith(("policies.", "curators."))}
    for key in (key for key in changes if key not in named):
        set_key(table, key, changes[key], key)
    spec = spec_from_table(table)
    for key, value in named.items():
        spec = with_value(spec, key, value)
    return spec


def fresh_spec(spec: Spec | str | Path) -> Spec:
    """A spec whose points are resolved now, because data files may have changed; read from a file or preset if it is a name."""
    if isinstance(spec, Spec):
        return replace(spec)
    if not isinstance(spec, str | Path):
        raise SpecError(f"spec: got {shown(spec)}; expected a Spec, the path of a TOML file, or the name of a preset.")
    return read_spec(spec)


def parse_spec(text: str, name: str, overrides: Iterable[str] = ()) -> Spec:
    """The spec in a TOML text, with `key=value` overrides; errors of the text start with `name`."""
    table = parse_toml(text, name)
    for override in overrides:
        set_key(table, *parse_override(override), f"--set {shown(override)}")
    return spec_from_table(table)


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The table in a TOML text; errors start with `name`."""
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))  # the mark that editors of Windows write first
    except (ValueError, RecursionError) as problem:  # TOMLDecodeError, and other errors that the parser lets through
        raise SpecError(f"{name}: not valid TOML ({problem}). Fix that line.") from problem


def spec_from_table(table: Mapping[str, Any]) -> Spec:
    """The spec in a table as TOML gives it."""
    check_keys(table, [f.name for f in fields(Spec) if f.name != "sampler"])
    for key in ("source", "family"):
        if key not in table:
            raise SpecError(f"{key}: missing. Add a table [{key}] with a name: {', '.join(component_names(key))}.")
    values = dict(table)
    if isinstance(values["family"], dict) and "sampler" in values["family"]:
        values["sampler"] = values["family"]["sampler"]
        values["family"] = {key: value for key, value in values["family"].items() if key != "sampler"}
    return Spec(**values)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`, with the value as in TOML; a bare word is text."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise SpecError(f"--set {shown(override)}: expected key=value, such as --set generations=3.")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), text


def set_key(table: dict[str, Any], key: str, value: object, origin: str) -> None:
    """Set a dotted key of nested tables; errors start with `origin`."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.get(parent, {})
        if not isinstance(inner, str | dict):
            raise SpecError(f"{origin}: {parent} is not a table, so it has no keys.")
        table[parent] = {"name": inner} if isinstance(inner, str) else {**inner}  # a copy: a change may hold the table
        table = table[parent]
    table[last] = value
