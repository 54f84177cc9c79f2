"""Values, curves, orders and claims of papers, with their sources: one TOML file per paper."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.component import Component
from selfloop.errors import SpecError, unknown_name
from selfloop.published.claims import Claim
from selfloop.settings import has_default_settings
from selfloop.snapshots import Scenario
from selfloop.spec.components import make_settings
from selfloop.spec.parse import parse_toml, read_spec_text
from selfloop.spec.spec import Spec
from selfloop.stats.data_value import GridCell

KEYS = ("title", "arxiv", "orders", "table", "grid", "claim")  # of a paper's file


@dataclass(frozen=True, slots=True)
class PublishedValue:
    """A printed number. `digit` is the size of one unit of its last digit."""

    generation: int
    value: float
    digit: float


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """Published curves of one scenario, by policy; the policies have default settings.

    With a `scale` (model and data, in words) the scenario is too large to run here: `source` is empty, and `family` and
    `sampler` have the settings that the paper states.
    """

    group: str
    metric: str
    cite: str
    curves: Mapping[str, tuple[PublishedValue, ...]]
    source: Mapping[str, Any] = field(default_factory=dict)
    family: Mapping[str, Any]
    sampler: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    seeds: int | None = None  # chains of the published mean; None = exact, or unknown
    unit: float = 1.0  # published values are multiples of it
    reading_error: float = 0.0  # largest relative error of reading the value
    scale: str = ""

    @property
    def generations(self) -> int:
        """The last published generation."""
        return max(value.generation for values in self.curves.values() for value in values)


@dataclass(frozen=True, kw_only=True)
class PublishedGrid:
    """Risk of models trained on a number of real and a number of synthetic rows, one run per cell.

    `r_squared` holds the R^2 that the paper states for its own, larger set of runs: of the number of real rows
    (`log_count`) and of their share.
    """

    metric: str
    cite: str
    scale: str
    cells: tuple[GridCell, ...]
    r_squared: Mapping[str, float]


@dataclass(frozen=True)
class Paper:
    """A paper: its name, short title, tables, grids of real and synthetic rows, and claims.

    `orders`: policies with default settings by their risk, the highest first, in any run.
    """

    name: str
    title: str
    arxiv: str
    tables: tuple[PublishedTable, ...]
    grids: tuple[PublishedGrid, ...]
    orders: tuple[tuple[str, ...], ...]
    claim_tables: tuple[Mapping[str, Any], ...]

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The claims, which are checked when they are asked for. SpecError for one that cannot be judged."""
        tables = enumerate(self.claim_tables, 1)
        return tuple(make_settings(Claim, {"paper": self.name, **table}, f"{self.name}: claim {i}") for i, table in tables)


@dataclass(frozen=True, slots=True)
class PublishedCurve:
    """A published curve to draw beside a measured one, in the unit of the metric."""

    paper: str
    label: str  # authors and year
    metric: str
    generations: tuple[int, ...]
    values: tuple[float, ...]
    source: str  # figure or table


@cache
def papers() -> dict[str, Paper]:
    """Every paper by name, in the order of names."""
    texts = {e.name[:-5]: e.read_text(encoding="utf-8") for e in files(__package__).iterdir() if e.name.endswith(".toml")}
    return {name: _parse_paper(tomllib.loads(texts[name]), name) for name in sorted(texts)}


def find_paper(name: str) -> Paper:
    """The paper of that name, or in a TOML file of the same form. Raises SpecError if there is none."""
    if name.endswith(".toml"):
        content = parse_toml(read_spec_text(name), name)
        try:
            return _parse_paper(content, Path(name).stem)
        except (AttributeError, TypeError, ValueError) as problem:
            raise SpecError(f"{name}: not in the form of a paper, with tables [[claim]] ({problem}). Correct it.") from problem
    if name not in papers():
        raise SpecError(unknown_name("paper", name, papers()))
    return papers()[name]


def unmodified_policies(spec: Spec) -> list[str]:
    """Labels of the policies with default settings, which are those that papers ran."""
    labels = zip(spec.policy_labels(), spec.policies, strict=True)
    return [label for label, policy in labels if has_default_settings(policy)]


def claimed_orders(labels: Collection[str]) -> list[tuple[str, ...]]:
    """The claimed orders of these policies, the highest risk first, without those that are part of a longer one."""
    claims = [order for paper in papers().values() for order in paper.orders]
    orders = sorted({tuple(label for label in order if label in labels) for order in claims})
    return [order for order in orders if len(order) > 1 and not any(set(order) < set(other) for other in orders)]


def claimed_pairs(labels: Collection[str]) -> set[tuple[str, str]]:
    """Every pair (higher, lower) of the claimed orders of these policies."""
    return {pair for order in claimed_orders(labels) for pair in combinations(order, 2)}


def published_curves(scenario: Scenario) -> list[PublishedCurve]:
    """The published curves of exactly this source, family, n and policy, up to the last generation of the scenario."""
    from_scratch = scenario.init_from == "scratch" and scenario.merge is None
    if scenario.curators or not from_scratch or not has_default_settings(scenario.policy):
        return []
    curves = []
    for paper in papers().values():
        for table in paper.tables:
            published = [p for p in table.curves.get(scenario.policy.name, ()) if p.generation <= scenario.generations]
            if published and _is_exactly(table, scenario):
                generations, values = tuple(p.generation for p in published), tuple(p.value * table.unit for p in published)
                curves.append(PublishedCurve(paper.name, paper.title, table.metric, generations, values, table.cite))
    return curves


def _is_exactly(table: PublishedTable, scenario: Scenario) -> bool:
    same_components = _matches(table.source, scenario.source) and _matches(table.family, scenario.family)
    return same_components and table.n == scenario.n and has_default_settings(scenario.sampler)


def _matches(settings: Mapping[str, Any], component: Component) -> bool:
    rest = {key: value for key, value in settings.items() if key != "name"}
    return settings.get("name") == component.name and component == type(component)(**rest)


def _parse_paper(content: Mapping[str, Any], name: str) -> Paper:
    for key in content:
        if key not in KEYS:
            raise SpecError(unknown_name(name, key, KEYS, "key"))
    tables = tuple(_parse_table(**table) for table in content.get("table", ()))
    grids = tuple(_parse_grid(**grid) for grid in content.get("grid", ()))
    orders = tuple(tuple(order) for order in content.get("orders", ()))
    title, arxiv = content.get("title", name), content.get("arxiv", "")
    return Paper(name, title, arxiv, tables, grids, orders, tuple(map(dict, content.get("claim", ()))))


def _parse_table(*, generations: Sequence[int], curves: Mapping[str, str], **settings: Any) -> PublishedTable:
    def parse_line(line: str) -> tuple[PublishedValue, ...]:
        printed = [(t, text) for t, text in zip(generations, line.split(), strict=True) if text != "-"]
        return tuple(PublishedValue(t, float(text), 10.0 ** -len(text.partition(".")[2])) for t, text in printed)

    return PublishedTable(curves={policy: parse_line(line) for policy, line in curves.items()}, **settings)


def _parse_grid(*, real: Sequence[int], synthetic: Mapping[str, str], **settings: Any) -> PublishedGrid:
    lines = [(int(m), zip(real, line.split(), strict=True)) for m, line in synthetic.items()]
    cells = (GridCell(n, m, np.array([float(text)])) for m, line in lines for n, text in line if text != "-")
    return PublishedGrid(cells=tuple(cells), **settings)
