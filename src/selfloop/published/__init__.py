"""Numbers that papers printed, with their sources: one TOML file per work."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

from selfloop.component import Component, Setting, is_default
from selfloop.errors import SpecError, unknown_name


@dataclass(frozen=True, slots=True)
class Point:
    """A printed number and the size of one unit of its last digit."""

    generation: int
    value: float
    digit: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Published curves of one setting: policy -> points. Policies have default settings.

    With a `scale` (model and data, in words) the setting is one that cannot be run here, and `source` is empty.
    """

    group: str
    metric: str
    cite: str
    curves: Mapping[str, tuple[Point, ...]]
    source: Mapping[str, Any]
    family: Mapping[str, Any]
    n: int | None = None
    seeds: int | None = None  # chains the published mean is over; None = exact, or not known
    unit: float = 1.0  # published values are multiples of it
    reading_error: float = 0.0  # largest relative error of reading the value
    scale: str = ""

    @property
    def generations(self) -> int:
        """The last published generation."""
        return max(point.generation for points in self.curves.values() for point in points)


@dataclass(frozen=True, slots=True)
class Work:
    """A published work: its short title and its tables."""

    name: str
    title: str
    arxiv: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Overlay:
    """A published curve to draw over a measured one, in the metric's own unit."""

    work: str
    label: str  # authors and year
    metric: str
    generations: tuple[int, ...]
    values: tuple[float, ...]
    source: str  # figure or table
    note: str = ""  # how the setting differs; empty when it is the same


def works() -> list[str]:
    """Names of the published works."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__package__).iterdir() if entry.name.endswith(".toml"))


def load(work: str) -> Work:
    """The numbers of a work; SpecError when there is none of that name."""
    if work not in works():
        raise SpecError(unknown_name("work", work, works()))
    found = tomllib.loads((files(__package__) / f"{work}.toml").read_text(encoding="utf-8"))
    return Work(work, found["title"], found["arxiv"], tuple(_table(table) for table in found["table"]))


def overlays(setting: Setting, *, another_scale: bool = False) -> list[Overlay]:
    """The published curves of exactly this source, family, n and policy, up to the setting's last generation.

    With `another_scale` also those of the same kind of model and policy at a scale that cannot be run here, which says
    the note.
    """
    if setting.curated or setting.start != "scratch" or not is_default(setting.sampler):
        return []
    found = []
    for work in map(load, works()):
        for table in work.tables:
            exact = _matches(table.source, setting.source) and _matches(table.family, setting.family) and table.n == setting.n
            elsewhere = another_scale and table.scale and table.family["name"] == setting.family.name
            if (exact or elsewhere) and is_default(setting.policy):
                points = [p for p in table.curves.get(setting.policy.name, ()) if p.generation <= setting.generations]
                note = f"another scale: {table.scale}" if elsewhere else ""
                generations = tuple(p.generation for p in points)
                values = tuple(p.value * table.unit for p in points)
                found.append(Overlay(work.name, work.title, table.metric, generations, values, table.cite, note))
    return [overlay for overlay in found if overlay.generations]


def _matches(settings: Mapping[str, Any], component: Component) -> bool:
    rest = {key: value for key, value in settings.items() if key != "name"}
    return settings.get("name") == component.name and component == type(component)(**rest)


def _table(table: Mapping[str, Any]) -> Table:
    given = {f.name: table[f.name] for f in fields(Table) if f.name in table}
    curves = {
        policy: tuple(
            Point(t, float(text), 10.0 ** -len(text.partition(".")[2]))
            for t, text in zip(table["generations"], line.split(), strict=True)
            if text != "-"
        )
        for policy, line in table["curves"].items()
    }
    return Table(**{"source": {}, **given, "curves": curves})
