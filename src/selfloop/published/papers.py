"""Numbers that papers printed, with their sources: one TOML file per work."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

from selfloop.component import Component, Scenario
from selfloop.errors import SpecError, unknown_name
from selfloop.settings import has_default_settings
from selfloop.stats.data_value import Cell

_ANY_SAMPLER = {"prompt", "prefix", "max_tokens", "batch"}  # of a text sampler: what changes no token's law


@dataclass(frozen=True, slots=True)
class Point:
    """A printed number and the size of one unit of its last digit."""

    generation: int
    value: float
    digit: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Published curves of one setting: policy -> points. Policies have default settings.

    With a `scale` (model and data, in words) the setting is one that cannot be run here: `source` is empty, `family` and
    `sampler` say what models it may stand beside.
    """

    group: str
    metric: str
    cite: str
    curves: Mapping[str, tuple[Point, ...]]
    source: Mapping[str, Any]
    family: Mapping[str, Any]
    sampler: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    seeds: int | None = None  # chains the published mean is over; None = exact, or not known
    unit: float = 1.0  # published values are multiples of it
    reading_error: float = 0.0  # largest relative error of reading the value
    scale: str = ""

    @property
    def generations(self) -> int:
        """The last published generation."""
        return max(point.generation for points in self.curves.values() for point in points)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Risk of models trained on so many real and so many synthetic rows, one run each, where a value was given.

    `stated` are the R^2 that the paper gives for its own, larger set of runs: of the number of real rows and their share.
    """

    metric: str
    cite: str
    scale: str
    cells: tuple[Cell, ...]
    stated: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Work:
    """A published work: its short title, its tables, and its grids of real against synthetic rows."""

    name: str
    title: str
    arxiv: str
    tables: tuple[Table, ...]
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedCurve:
    """A published curve to draw over a measured one, in the metric's own unit."""

    work: str
    label: str  # authors and year
    metric: str
    generations: tuple[int, ...]
    values: tuple[float, ...]
    source: str  # figure or table
    scale: str = ""  # model and data in words where they are not those of the run; empty when they are


def works() -> list[str]:
    """Names of the published works."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__package__).iterdir() if entry.name.endswith(".toml"))


def load(work: str) -> Work:
    """The numbers of a work; SpecError when there is none of that name."""
    if work not in works():
        raise SpecError(unknown_name("work", work, works()))
    found = tomllib.loads((files(__package__) / f"{work}.toml").read_text(encoding="utf-8"))
    tables, grids = map(_table, found["table"]), map(_grid, found.get("grid", ()))
    return Work(work, found["title"], found["arxiv"], tuple(tables), tuple(grids))


def published_curves(scenario: Scenario, *, another_scale: bool = False) -> list[PublishedCurve]:
    """The published curves of exactly this source, family, n and policy, up to the setting's last generation.

    With `another_scale` also those of the same kind of model, sampler and policy at a scale that cannot be run here, which
    `scale` says: of each work the one whose model is nearest in size.
    """
    if scenario.curated or scenario.start != "scratch" or not has_default_settings(scenario.policy):
        return []
    found = []
    for work in map(load, works()):
        tables = [table for table in work.tables if scenario.policy.name in table.curves]
        chosen = [table for table in tables if _is_exactly(table, scenario)]
        if another_scale:
            beside = [table for table in tables if table.scale and _is_like(table, scenario)]
            chosen += sorted(beside, key=partial(_distance, scenario))[:1]
        found += [_overlay(work, table, scenario) for table in chosen]
    return [overlay for overlay in found if overlay.generations]


def _overlay(work: Work, table: Table, scenario: Scenario) -> PublishedCurve:
    points = [p for p in table.curves[scenario.policy.name] if p.generation <= scenario.generations]
    generations, values = tuple(p.generation for p in points), tuple(p.value * table.unit for p in points)
    return PublishedCurve(work.name, work.title, table.metric, generations, values, table.cite, table.scale)


def _is_exactly(table: Table, scenario: Scenario) -> bool:
    same = _matches(table.source, scenario.source) and _matches(table.family, scenario.family)
    return same and table.n == scenario.n and has_default_settings(scenario.sampler)


def _is_like(table: Table, scenario: Scenario) -> bool:
    """Is it the same kind of model, sampled the same way? Sizes may differ, and so may what rows begin with."""
    settings: dict[str, Any] = scenario.family.settings()
    named = scenario.family.name == table.family["name"] and settings.get("arch") == table.family.get("arch")
    usual = {f.name: f.default for f in fields(scenario.sampler) if f.name not in _ANY_SAMPLER} | dict(table.sampler)
    return named and all(scenario.sampler.settings().get(name) == value for name, value in usual.items())


def _distance(scenario: Scenario, table: Table) -> float:
    """How far apart the sizes of two transformers are: weights grow with layers times the square of their width."""
    ours: dict[str, Any] = scenario.family.settings()
    theirs = table.family
    if not {"layers", "hidden"} <= ours.keys() & theirs.keys():
        return 0.0
    return abs(math.log(ours["layers"] * ours["hidden"] ** 2 / (theirs["layers"] * theirs["hidden"] ** 2)))


def _matches(settings: Mapping[str, Any], component: Component) -> bool:
    rest = {key: value for key, value in settings.items() if key != "name"}
    return settings.get("name") == component.name and component == type(component)(**rest)


def _grid(grid: Mapping[str, Any]) -> Grid:
    cells = [
        Cell(real, int(synthetic), np.array([float(text)]))
        for synthetic, line in grid["synthetic"].items()
        for real, text in zip(grid["real"], line.split(), strict=True)
        if text != "-"
    ]
    return Grid(**{key: grid[key] for key in ("metric", "cite", "scale", "stated")}, cells=tuple(cells))


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
