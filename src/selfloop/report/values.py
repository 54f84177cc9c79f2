"""Values of a report, filled from a result. They hold no drawing code, and no text in them has to be escaped.

`page.render_page(reports)` is one self-contained HTML file of one or more reports. `page.write_figures` saves every
figure as SVG, PNG and PDF. A missing number is NaN, or None where the type allows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Literal

import numpy as np

from selfloop.columns import Bools, Columns, ColumnType, Floats
from selfloop.component import Better
from selfloop.policies.schedule import ScheduleEntry
from selfloop.published.papers import PublishedCurve
from selfloop.stats.comparison import Comparison
from selfloop.stats.data_value import DataValue, GridCell
from selfloop.stats.intervals import SeedSummary, level_of_look, summarize_seeds
from selfloop.theory.forecasts import PolicyForecast
from selfloop.theory.law import Kind
from selfloop.theory.laws import LawCurve
from selfloop.theory.moments import NoiseLedger
from selfloop.types import Coordinates, Unit, Verdict

CategoryKind = Literal["class", "attribute", "symbol", "token"]
GROUPED = ("symbol", "token")  # kinds whose names are rarity groups


@dataclass(frozen=True, kw_only=True)
class CurveData:
    """The measured curve of one policy."""

    policy: str
    values: Floats  # (seeds, generations), NaN where a chain has ended
    better: Better = "lower"  # as of the metric
    positive: bool = False  # True if 0 is the lowest possible value
    real: float | None = None  # its value for real rows, where it is measured with it
    is_partial: bool = False  # True if the run is not finished: no missing value is an ended chain
    ends_are_worst: bool = True  # False if a chain ended for another reason than collapse: medians are undefined from there on

    @cached_property
    def summary(self) -> SeedSummary:
        """Mean, interval, median and number of chains per generation."""
        return summarize_seeds(self.values, self.better if self.ends_are_worst else "", positive=self.positive)

    @property
    def ends(self) -> tuple[tuple[int, float], tuple[int, float]] | None:
        """(generation, mean) of the first and the last defined mean; None without any."""
        means = [(t, mean) for t, mean in enumerate(self.summary.mean.tolist(), 1) if math.isfinite(mean)]
        return (means[0], means[-1]) if means else None

    @property
    def right(self) -> float | None:
        """The best value, if it is known and at neither end."""
        if isinstance(self.better, str):
            return None if self.better in ("lower", "higher") else self.real
        return self.better

    @property
    def badness(self) -> float:
        """How far the last mean is on the worse side; without a known one, how far it moved; -inf if it cannot be ranked."""
        first, last = map(float, self.values[:, [0, -1]].mean(axis=0))
        if math.isnan(last):
            collapsed = self.ends_are_worst and self.has_ended_chains and np.isfinite(self.values).any()
            return math.inf if collapsed else -math.inf
        distance = abs(last - (first if self.right is None else self.right))
        return {"lower": last, "higher": -last}.get(str(self.better), -math.inf if math.isnan(distance) else distance)

    @property
    def has_ended_chains(self) -> bool:
        """True if a chain has no value at some generation."""
        return not self.is_partial and bool((self.summary.surviving < len(self.values)).any())


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric at one point of the sweep, all policies."""

    metric: str
    title: str
    unit: str = ""
    coordinates: Coordinates = ()
    curves: Sequence[CurveData]
    laws: Sequence[tuple[str, LawCurve]] = ()  # (policy, law)
    published: Sequence[tuple[str, PublishedCurve]] = ()  # (policy, curve)
    trivial: tuple[str, float] | None = None  # the trivial model in words, and its value
    forecasts: Sequence[PolicyForecast] = ()  # of the generations after the run
    aspect: str = "other"  # what the metric is about
    real: float | None = None  # its value for real rows, where it is measured with it


@dataclass(frozen=True, kw_only=True)
class CategoryShares:
    """Shares of sampled rows by class or with each attribute, or of rarity groups that are alive, at one point of the sweep."""

    kind: CategoryKind  # the shares of classes add up to one
    names: Sequence[str]
    samples: Mapping[str, Floats]  # policy -> (seeds, generations, names), NaN where a chain has ended
    real: Floats | None = None  # (seeds, names), of real rows, where measured
    coordinates: Coordinates = ()

    @property
    def n_generations(self) -> int:
        return max(int(values.shape[1]) for values in self.samples.values())


@dataclass(frozen=True, slots=True)
class Extinction:
    """When categories vanished under one policy, (seeds, names)."""

    generation: Floats  # the first one of those without it; the last generation + 1 if it is still there; NaN if unknown
    remains: Bools  # at the last generation; of a rarity group, at least half of its members


@dataclass(frozen=True, kw_only=True)
class ExtinctionOrder:
    """When classes, attributes or rarity groups vanished, against how rare they are, at one point of the sweep."""

    noun: str  # of one category
    names: Sequence[str]
    real: Floats  # share among real rows (seeds, names); of a rarity group, the mean of its members
    generations: int
    policies: Mapping[str, Extinction]
    laws: Mapping[str, tuple[Kind, Floats]] = field(default_factory=dict)  # policy -> expected generation of each name
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class DataValuePanel:
    """The risk over numbers of real and synthetic rows at one point of the sweep, and the regressions on them."""

    title: str
    unit: str = ""
    cells: Sequence[GridCell]
    value: DataValue
    positive: bool = False  # True if 0 is the lowest possible value
    published: Sequence[tuple[str, float, float]] = ()  # label, R^2 of the log count, R^2 of the share
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources used by all chains of one policy, or by the steps that all policies share."""

    policy: str  # empty for the shared steps
    seconds: float
    steps: float  # training steps; 0 for closed-form fits
    rows: int  # rows sampled
    bytes: int  # written to the store
    stored_share: float  # share of its stored steps that were read from the store, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Example rows, all with the columns of `schema`. Sampled texts may also have a column `prompt`."""

    schema: Mapping[str, ColumnType]
    real: Columns
    samples: Mapping[str, Mapping[int, Columns]]  # policy -> generation -> rows
    coordinates: Coordinates = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """One experiment. The metric of the first panel is the main metric, which the headline shows."""

    title: str
    spec_text: str  # TOML
    versions: Mapping[str, str]
    generated: datetime  # with a time zone
    panels: Sequence[Panel]
    facts: Sequence[str] = ()  # beside the title: rows, generations, seeds
    unfinished: str = ""  # how far the run is, if it is not finished
    verdicts: Sequence[Verdict] = ()
    look: int = 1  # how often the question was asked, with more seeds each time
    primary: Sequence[str] = ()  # the two policies of the primary comparison, if there is one
    controls: Mapping[str, str] = field(default_factory=dict)  # label of a control -> that of its policy
    real_shares: Mapping[tuple[Coordinates, str], float] = field(default_factory=dict)  # of the last training mass, by policy
    definitions: Mapping[str, str] = field(default_factory=dict)  # criterion -> its definition in one line
    questions: Mapping[str, str] = field(default_factory=dict)  # criterion -> the question that it answers, in plain words
    commands: Sequence[str] = ()  # that repeat the run
    missing: Sequence[str] = ()  # metrics without any value, with the reason: one sentence each
    leads: Sequence[str] = ()  # the findings that the first screen shows: the look, primary comparisons, poor first models
    findings: Sequence[str] = ()  # these, orders of policies, late changes, inflection points: one sentence each
    differences: Mapping[Coordinates, Sequence[Comparison]] = field(
        default_factory=dict
    )  # of the risk, at points with two policies
    data_values: Sequence[DataValuePanel] = ()
    shares: Sequence[CategoryShares] = ()
    extinctions: Sequence[ExtinctionOrder] = ()
    schedules: Mapping[str, Sequence[ScheduleEntry]] = field(default_factory=dict)  # of one point, by policy
    ledgers: Mapping[str, NoiseLedger] = field(default_factory=dict)  # of the same point, by policy, where laws are moments
    unit: Unit = "rows"  # of the schedules' counts
    training: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)  # policy -> tokens, steps of that point
    galleries: Sequence[Gallery] = ()
    costs: Sequence[Cost] = ()
    notes: Sequence[str] = ()  # which comparisons are paired, how many chains ended, ...

    @property
    def n_seeds(self) -> int:
        return len(self.panels[0].curves[0].values) if self.panels else 0

    @property
    def answer_level(self) -> float:
        """Coverage of the intervals that answers rest on, 0 to 1."""
        return level_of_look(self.look)

    @property
    def drawn_panels(self) -> list[Panel]:
        """The panels with a value; the others would be empty axes."""
        return [panel for panel in self.panels if any(np.isfinite(curve.values).any() for curve in panel.curves)]

    def policies(self) -> list[str]:
        """Labels of all policies, in order of appearance."""
        labels = [
            *(curve.policy for panel in self.panels for curve in panel.curves),
            *(policy for gallery in self.galleries for policy in gallery.samples),
            *self.schedules,
            *(cost.policy for cost in self.costs if cost.policy),
        ]
        return list(dict.fromkeys(labels))
