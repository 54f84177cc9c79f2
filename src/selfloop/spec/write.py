"""Specs as text: a commented one to start from, and the whole of an existing one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from dataclasses import Field as DataclassField
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from selfloop.component import Component, Family, Source
from selfloop.engine.run import check_pair
from selfloop.errors import SpecError
from selfloop.plugins import component_class, names
from selfloop.spec.spec import Spec

HEAD = """\
# A selfloop experiment: real data, a model family, and policies for mixing real and synthetic rows.
# Look at it with `selfloop plan`, run it with `selfloop run`, draw it with `selfloop report`. Lines with # show defaults.

{n}{holdout}generations = 5               # generation 1 is fitted on real rows only
seeds = 3                     # seeds 0, 1, 2; or a list such as [3, 5, 8]
policies = [
    "replace",                # train on the newest model's rows only
    "accumulate",             # train on the real rows and every synthetic row so far
    "accumulate_subsample",   # the same pool, but a fixed number of rows per generation
    # {{ name = "fresh", ratio = 1.0 }},
]
# metrics = [{metrics}]
# criteria = ["any_increase"] # default: all eight published definitions of collapse
# start = "scratch"           # or "previous", or a model's safetensors file
"""


def template(family: str, source: str) -> str:
    """A commented spec of a family and a source, every setting with its default.

    SpecError for unknown names, and for a family that cannot model what the source gives.
    """
    family_class = component_class("family", family, "family")
    source_class = component_class("source", source, "source")
    assert issubclass(family_class, Family)
    assert issubclass(source_class, Source)
    _check_pair(family_class, source_class)
    if source_class.n_rows is Source.n_rows:  # it never runs out, so there is no "all rows left"
        n = f"n = 1000{'':22}# rows of real(1)\n"
    else:
        n = f"# n = 1000{'':20}# rows of real(1); default: all rows left after the holdout\n"
    holdout = f"# holdout = 300{'':15}# real rows no fit sees; default 30 % of a finite source, 500 rows otherwise\n"
    if source_class.n_holdout is not Source.n_holdout:
        holdout = "# Which real rows are held out is a setting of the source.\n"
    metrics = ", ".join(f'"{name}"' for name in family_class.metrics)
    parts = [HEAD.format(n=n, holdout=holdout, metrics=metrics), _table("source", source_class), _table("family", family_class)]
    if fields(family_class.sampler_class):
        parts.append(_table("family.sampler", family_class.sampler_class, named=False))
    parts.append('# [sweep]                      # axes, every combination is run\n# "n" = [100, 1000]\n')
    return "\n".join(parts)


def _check_pair(family: type[Family], source: type[Source]) -> None:
    """As before a run, for components that need no setting first."""
    if any(_default(f) is MISSING for cls in (family, source) for f in fields(cls)):  # type: ignore[arg-type]  # dataclasses
        return
    try:
        made = family(), source()
    except SpecError:  # one of several settings is needed
        return
    check_pair(*made)


def _table(where: str, cls: type[Any], named: bool = True, chosen: Any = None) -> str:
    comments, inner = _comments(cls), ""
    lines = [f"[{where}]"] + ([f'name = "{cls.name}"'] if named else [])
    for f in fields(cls):
        default = _default(f) if chosen is None else getattr(chosen, f.name)
        if _is_settings(default):
            inner += f"\n# {_table(f'{where}.{f.name}', type(default), named=False, chosen=default)}"
            continue
        text = f.name if default is None else f"{f.name} = {_value('...' if default is MISSING else default)}"
        note = comments.get(f.name, "")
        lines.append(f"{text if default is MISSING else '# ' + text:30}{'# ' + note if note else ''}".rstrip())
    return "\n".join(lines) + "\n" + inner


def _default(f: DataclassField[Any]) -> Any:
    """A field's default value; MISSING when it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def _is_settings(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _comments(cls: type[Any]) -> dict[str, str]:
    """The comment behind each field in the class's source: what the setting means."""
    found = {}
    for line in inspect.getsource(cls).splitlines():
        code, sign, comment = line.partition("  # ")
        name = code.strip().partition(":")[0]
        if sign and name.isidentifier():
            found[name] = comment.strip()
    return found


def describe_settings(kind: str, name: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Documentation of a component, and (setting, type, default, meaning) of each of its fields."""
    cls = component_class(kind, name, kind)
    rows = list(_settings(cls, "", None))
    if issubclass(cls, Family):
        rows += list(_settings(cls.sampler_class, "sampler.", None))
    return inspect.getdoc(cls) or "", rows


def changed_settings(chosen: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(Name, value, default) of every setting of a component that is not its default, those of its tables too."""
    for f in fields(chosen):
        yield from _changes(f"{prefix}{f.name}", getattr(chosen, f.name), _default(f))


def _changes(name: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    if _is_settings(default) and type(value) is type(default):
        for f in fields(value):
            yield from _changes(f"{name}.{f.name}", getattr(value, f.name), getattr(default, f.name))
    elif value != default:
        yield name, value, default


def _settings(cls: type[Any], prefix: str, chosen: Any) -> Iterator[tuple[str, str, str, str]]:
    """The fields of a class; their defaults are those of `chosen`, where a component sets others than the class."""
    comments, hints = _comments(cls), get_type_hints(cls)
    for f in fields(cls):
        default = _default(f) if chosen is None else getattr(chosen, f.name)
        if _is_settings(default):
            yield from _settings(type(default), f"{prefix}{f.name}.", default)
            continue
        shown = "required" if default is MISSING else _value(default)
        yield prefix + f.name, _type(hints[f.name], str(f.type)), shown, comments.get(f.name, "")


def _type(hint: Any, written: str) -> str:
    """A setting's type as it is written, or its allowed words where that is an alias of them."""
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return " | ".join(map(_value, words)) if words else written


def summaries(kind: str) -> dict[str, str]:
    """Name and first line of documentation of every component of a kind, read without importing what is heavy."""
    import ast
    from importlib.util import find_spec

    found = {}
    trees: dict[str, ast.Module] = {}
    for name, target in names(kind).items():
        module, _, attribute = target.partition(":")
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            found[name] = "(not installed)"
            continue
        if module not in trees:
            trees[module] = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        classes = {node.name: node for node in trees[module].body if isinstance(node, ast.ClassDef)}
        found[name] = (ast.get_docstring(classes[attribute]) or "").split("\n")[0] if attribute in classes else ""
    return found


def spec_text(spec: Spec) -> str:
    """The spec as TOML, every setting written out (components of a user's own included, by name)."""
    lines = []
    for key in ("n", "holdout", "generations"):
        if getattr(spec, key) is not None:
            lines.append(f"{key} = {getattr(spec, key)}")
    seeds = len(spec.seeds) if spec.seeds == tuple(range(len(spec.seeds))) else list(spec.seeds)
    lines.append(f"seeds = {seeds}")
    lines.append(f'start = "{spec.start}"')
    for key in ("policies", "metrics", "criteria", "curators"):
        if many := getattr(spec, key):
            lines += [f"{key} = [", *(f"    {_inline(each)}," for each in many), "]"]
    lines += ["", "[source]", *_entries(spec.source, "source"), "", "[family]", *_entries(spec.family, "family")]
    if fields(spec.sampler):
        lines += ["", "[family.sampler]", *_entries(spec.sampler, "family.sampler")[1:]]
    if spec.sweep:
        lines += ["", "[sweep]", *(f'"{key}" = {_value(values)}' for key, values in spec.sweep.items())]
    return "\n".join(lines) + "\n"


def _entries(component: Component, where: str) -> list[str]:
    plain, nested = [f'name = "{component.name}"'], list[str]()
    value: Any
    for key, value in component.settings().items():
        if _is_settings(value):
            inner = [
                f"{f.name} = {_value(getattr(value, f.name))}" for f in fields(value) if getattr(value, f.name) is not None
            ]
            nested += ["", f"[{where}.{key}]", *inner]
        elif value is not None:
            plain.append(f"{key} = {_value(value)}")
    return plain + nested


def _inline(component: Component) -> str:
    settings = [f"{key} = {_value(value)}" for key, value in component.settings().items() if value is not None and value != ()]
    named = ", ".join([f'name = "{component.name}"', *settings])
    return f"{{ {named} }}" if settings else f'"{component.name}"'


def _value(value: Any) -> str:
    if _is_settings(value):
        value = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) is not None}
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)
