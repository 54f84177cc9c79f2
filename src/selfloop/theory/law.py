"""What a law is: a curve with its conditions and its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from selfloop.component import Scenario
from selfloop.engine.loop import ScheduleEntry, schedule
from selfloop.types import Floats, Ints, real, synthetic

MOST_TAKES = 50_000  # of all generations together; `accumulate` reaches it at generation 315
Kind = Literal["exact", "bound", "asymptotic"]


@dataclass(frozen=True, kw_only=True)
class Law:
    """The expectation over seeds of one metric, for the settings that meet every condition."""

    name: str
    metric: str
    kind: Kind
    source: str  # authors, year, theorem or equation, arXiv id
    conditions: str  # one sentence
    holds: Callable[[Scenario], bool]
    values: Callable[[Scenario], Floats]  # at generations 1 .. setting.generations, in the metric's unit

    def applies(self, scenario: Scenario) -> bool:
        """Do all conditions hold? Never for curated rows or models that start from another model."""
        return not scenario.curated and scenario.start == "scratch" and _is_small(scenario) and self.holds(scenario)

    def curve(self, scenario: Scenario, t: Ints) -> Floats:
        """The law at generations t, each from 1 to setting.generations."""
        return self.values(scenario)[t - 1]


def _is_small(scenario: Scenario) -> bool:
    """Moments cost the square of the batches in use: a thousand generations of `accumulate` would take a minute."""
    return sum(len(stage.plan.takes) for stage in stages(scenario)) <= MOST_TAKES


def stages(scenario: Scenario) -> Iterator[ScheduleEntry]:
    """What every generation trains on."""
    return schedule(scenario.policy, scenario.n, scenario.generations)


def takes_whole_batches(scenario: Scenario) -> bool:
    """Does every generation take all rows of whichever batches it takes? (A budget may be drawn from them.)"""
    return all(take.rows == stage.available[take.batch] for stage in stages(scenario) for take in stage.plan.takes)


def newest_rows(scenario: Scenario) -> list[int] | None:
    """Training rows of every generation, if each uses all rows of the newest batch and nothing else; None otherwise."""
    rows = []
    for stage in stages(scenario):
        newest = real(1) if stage.t == 1 else synthetic(stage.t - 1)
        alone = len(stage.plan.takes) == 1 and stage.plan.budget is None
        if not alone or (stage.plan.takes[0].batch, stage.trained_rows) != (newest, stage.available[newest]):
            return None
        rows.append(stage.trained_rows)
    return rows


def all_rows(scenario: Scenario) -> list[int] | None:
    """Training rows of every generation, if each uses all rows so far alike and no later real ones; None otherwise."""
    rows = []
    for stage in stages(scenario):
        expected = {real(1), *(synthetic(k) for k in range(1, stage.t))}
        whole = {take.batch: take.rows for take in stage.plan.takes} == dict(stage.available)
        alike = len({take.weight for take in stage.plan.takes}) == 1 and len(stage.plan.takes) == stage.t
        if not whole or not alike or stage.plan.budget is not None or set(stage.available) != expected:
            return None
        rows.append(stage.trained_rows)
    return rows
