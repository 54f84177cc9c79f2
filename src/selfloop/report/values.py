"""What a report is made of: plain values, filled from a result, that know nothing of how they are drawn.

`page.write_page(reports, path)` makes one self-contained HTML file of one or more of them; `figures.write_figures`
saves every figure as SVG, PNG and PDF. Numbers that do not exist are NaN (or None where a type says so); nothing here
has to be escaped by whoever fills it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from selfloop.component import Policy
from selfloop.engine.loop import schedule
from selfloop.stats.comparison import Comparison
from selfloop.stats.data_value import Cell, Value
from selfloop.stats.intervals import ratio_interval, summarize_seeds
from selfloop.types import Columns, ColumnType, Floats, Verdict

Coordinates = tuple[tuple[str, object], ...]  # one point of a sweep, as in `Measurement.coordinates`; empty without a sweep


@dataclass(frozen=True, kw_only=True)
class CurveData:
    """One policy's measured curve. Sequences are as long as `generations`."""

    policy: str
    generations: Sequence[int]
    mean: Sequence[float]  # over seeds; NaN from the generation at which the first chain has ended
    low: Sequence[float]  # 95 % interval of the mean; NaN where undefined (fewer than two seeds)
    high: Sequence[float]
    survivors: Sequence[int]  # chains that still have a value
    seeds: int  # chains that began
    individual: Floats | None = None  # (seeds, generations), NaN where a chain has ended; drawn up to 12 seeds
    median: Sequence[float] = ()  # over all chains, ended ones counted as worst; drawn where chains end
    multiplier: tuple[float, float, float] | None = None  # last over first generation: estimate, low, high (NaN: undefined)


@dataclass(frozen=True, kw_only=True)
class PanelLaw:
    """A closed form that applies to one policy of this panel."""

    name: str
    kind: str  # "exact", "bound" or "asymptotic"
    policy: str
    generations: Sequence[int]
    values: Sequence[float]
    source: str = ""  # authors, year, equation


@dataclass(frozen=True, kw_only=True)
class PanelPublished:
    """Numbers a paper printed for one policy, at this setting or, with a `scale`, for another model and other data."""

    label: str  # where they come from: authors, year
    policy: str
    generations: Sequence[int]
    values: Sequence[float]
    scale: str = ""  # model and data in words
    source: str = ""  # table or figure


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric at one point of the sweep, all policies."""

    metric: str
    title: str
    unit: str = ""
    coordinates: Coordinates = ()
    curves: Sequence[CurveData]
    laws: Sequence[PanelLaw] = ()
    published: Sequence[PanelPublished] = ()


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How sampled rows spread over classes, or how many of them have each attribute, at one point of the sweep."""

    kind: Literal["class", "attribute"]  # the shares of classes add up to one
    names: Sequence[str]
    samples: Mapping[str, Floats]  # policy -> (seeds, generations, names), NaN where a chain has ended
    real: Floats | None = None  # (seeds, names), of real rows, where measured
    coordinates: Coordinates = ()

    @property
    def generations(self) -> int:
        """The last one."""
        return max(int(values.shape[1]) for values in self.samples.values())


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The main metric of every policy minus another's, at one point of the sweep."""

    metric: str
    comparisons: Sequence[Comparison]
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class Worth:
    """The main metric over numbers of real and synthetic rows, at one point of the sweep, and what explains it."""

    metric: str
    title: str
    unit: str = ""
    cells: Sequence[Cell]
    value: Value
    published: Sequence[tuple[str, float, float]] = ()  # label, R^2 of the log count, R^2 of the share
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What one policy trains on, generation by generation."""

    policy: str
    generations: Sequence[int]
    rows: Sequence[int]  # one epoch
    real_mass: Sequence[float]  # share of rows x weight that is real
    data_age: Sequence[float]  # mean, in generations


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one policy took, all its chains together."""

    policy: str
    seconds: float
    steps: float  # optimiser steps; 0 for closed-form fits, NaN where they depend on the lengths of rows
    rows: int  # rows sampled
    bytes: int  # written to the store
    stored_share: float  # share of its stages that came from the store, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Rows to look at: real ones and each policy's, by generation, all with the columns of `schema`.

    Sampled texts may have a column `prompt`: what the model was given, the beginning of the row and of the real one.
    """

    schema: Mapping[str, ColumnType]
    real: Columns
    samples: Mapping[str, Mapping[int, Columns]]  # policy -> generation -> rows
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """One experiment. The first metric among `panels` is the main one: the headline tells it."""

    title: str
    spec_text: str  # TOML
    versions: Mapping[str, str]
    generated: datetime  # with a time zone
    panels: Sequence[Panel]
    summary: str = ""  # one sentence: family, source, n, generations, seeds
    verdicts: Sequence[Verdict] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)  # criterion -> its definition in one line
    findings: Sequence[str] = ()  # growth laws, inflection points, forecasts: one sentence each
    differences: Sequence[Differences] = ()
    worths: Sequence[Worth] = ()
    shares: Sequence[Shares] = ()
    ledgers: Sequence[Ledger] = ()
    galleries: Sequence[Gallery] = ()
    costs: Sequence[Cost] = ()
    notes: Sequence[str] = ()  # which comparisons are paired, how many chains are left, ...

    def policies(self) -> list[str]:
        """Labels of all policies, in order of appearance."""
        labels = [curve.policy for panel in self.panels for curve in panel.curves]
        labels += [law.policy for panel in self.panels for law in panel.laws]
        labels += [each.policy for panel in self.panels for each in panel.published]
        labels += [policy for each in self.differences for pair in each.comparisons for policy in (pair.upper, pair.lower)]
        labels += [policy for each in self.shares for policy in each.samples]
        labels += [policy for gallery in self.galleries for policy in gallery.samples]
        labels += [verdict.policy for verdict in self.verdicts]
        labels += [ledger.policy for ledger in self.ledgers]
        labels += [cost.policy for cost in self.costs]
        return list(dict.fromkeys(labels))


def ledger_of(label: str, policy: Policy, n: int, generations: int) -> Ledger:
    """The ledger of a policy, read from its schedule."""
    stages = list(schedule(policy, n, generations))
    return Ledger(
        policy=label,
        generations=[stage.t for stage in stages],
        rows=[stage.trained_rows for stage in stages],
        real_mass=[stage.real_mass for stage in stages],
        data_age=[stage.data_age for stage in stages],
    )


def curve_of(policy: str, generations: Sequence[int], values: Floats, better: str = "lower") -> CurveData:
    """The measured curve of (seeds, generations) values, NaN where a chain has ended."""
    summary = summarize_seeds(values, better)
    ratio = ratio_interval(values[:, -1], values[:, 0])
    limits = [np.nan if each is None else each for each in (ratio.estimate, ratio.low, ratio.high)]
    ends = bool((summary.surviving < len(values)).any())
    return CurveData(
        policy=policy,
        generations=generations,
        mean=summary.mean.tolist(),
        low=summary.low.tolist(),
        high=summary.high.tolist(),
        survivors=summary.surviving.tolist(),
        seeds=len(values),
        individual=values,
        median=summary.quantiles[0.5].tolist() if ends else (),
        multiplier=None if ratio.estimate is None else (limits[0], limits[1], limits[2]),
    )
