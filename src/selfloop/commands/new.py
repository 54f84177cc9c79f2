"""A commented spec to start from: every setting of a family and a source, with its default and its description."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any

from selfloop.component import Component, Family, Source
from selfloop.errors import SpecError
from selfloop.plugins import component_class
from selfloop.protocols import SupportsCheck
from selfloop.settings import SettingInfo, Settings, default_of, describe_fields, setting_types, settings_tables
from selfloop.spec.point import check_pair
from selfloop.spec.write import toml_value

HEAD = """\
# A selfloop experiment: real data, a model family, and policies that mix real and synthetic rows.
# Check it with `selfloop plan`, run it with `selfloop run`, report it with `selfloop report`. After #: defaults or examples.

{n}{holdout}generations = 5               # generation 1 is fitted on real rows only
seeds = 3                     # seeds 0, 1, 2; or a list such as [3, 5, 8]
policies = [
    "replace",                # train on the rows of the newest model only
    "accumulate",             # train on the real rows and all synthetic rows
    "accumulate_subsample",   # draw a fixed number of rows from the same pool
    # {{ name = "fresh", ratio = 1.0 }},
    # {{ name = "replace", curators = ["deduplicate"] }},  # rows are curated before anyone trains on them
]
# metrics = [{metrics}]  # a list replaces these
# criteria = ["any_increase"] # default: all installed definitions of collapse
# subsets = "overlapping"     # or "disjoint": seeds of a finite source share no rows
# init_from = "scratch"       # or "previous", or the safetensors file of a model
"""
SWEEP = """# [sweep]                      # one run for every combination of values
# "n" = [100, 1000]

# [resources]                  # of one chain; no result depends on them
# cpus = 2                     # threads; also gpus and memory_gb, which limit how many chains run at a time
"""


def spec_template(family: str, source: str) -> str:
    """A commented spec with every setting of a family and a source.

    Raises SpecError for unknown names, and for a family that cannot model the rows of the source.
    """
    family_class = component_class("family", family, "family")
    source_class = component_class("source", source, "source")
    assert issubclass(family_class, Family)
    assert issubclass(source_class, Source)
    _check_pair(family_class, source_class)
    if source_class.n_rows is Source.n_rows:  # an unlimited source has no default for n
        n = f"n = 1000{'':22}# initial real rows\n"
    else:
        n = f"# n = 1000{'':20}# initial real rows, an example; default: all rows except the holdout\n"
    holdout = (
        f"# holdout = 300{'':15}# real rows that no fit sees, an example; default: 30 % of a finite source, otherwise 500\n"
    )
    if source_class.n_holdout is not Source.n_holdout:
        holdout = "# The source may have a holdout of its own: see its settings. If not, `holdout` is the number of its rows.\n"
    metrics = ", ".join(f'"{name}"' for name in family_class.default_metrics)
    tables = [_settings_table("source", source_class), _settings_table("family", family_class)]
    if fields(family_class.sampler_class):
        tables.append(_settings_table("family.sampler", family_class.sampler_class, named=False))
    return "\n".join([HEAD.format(n=n, holdout=holdout, metrics=metrics), *tables, SWEEP])


def _check_pair(family: type[Family], source: type[Source]) -> None:
    """Raise SpecError as a run would, if both components can be created without settings."""
    if any(default_of(f) is MISSING for cls in (family, source) for f in fields(cls)):  # type: ignore[arg-type]  # dataclasses
        return
    try:
        model, rows = family(), source()
    except SpecError:  # one of several settings is required
        return
    check_pair(model, rows)
    if isinstance(model, SupportsCheck):
        model.check(rows, family.sampler_class())


def _settings_table(key: str, cls: type[Any], named: bool = True, defaults: Any = None) -> str:
    """The table of a class with a line for every setting; nested tables follow it, commented out."""
    lines, tables = [f"[{key}]"] + ([f'name = "{cls.name}"'] if named else []), ""
    for setting in describe_fields(cls, defaults):
        name, types = f"{key}.{setting.name}", settings_tables(setting_types(cls)[setting.name])
        required = [table for table in types if not issubclass(table, Component)]
        if isinstance(setting.default, Settings):
            tables += f"\n# {_settings_table(name, type(setting.default), named=False, defaults=setting.default)}"
        elif setting.default is MISSING and required:
            tables += f"\n{_settings_table(name, required[0], named=False)}"
        else:
            lines.append(_setting_line(setting))
    return "\n".join(lines) + "\n" + tables


def _setting_line(setting: SettingInfo) -> str:
    if setting.default is MISSING:
        text = f"{setting.name} = " + ('["..."]' if setting.type.startswith("a list") else '"..."')
    else:
        text = f"# {setting.name}" + ("" if setting.default is None else f" = {toml_value(setting.default)}")
    words = re.findall(r'"[^"]+"', setting.type)
    is_choice = " or ".join(words) == setting.type and not all(word.strip('"') in setting.description for word in words)
    comment = "; ".join(filter(None, (setting.description, setting.type if is_choice else "")))
    return f"{text:28}  # {comment}" if comment else text
