"""A paper's numbers measured again: one line per published number, with interval and z."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from selfloop.errors import SpecError, unknown_name
from selfloop.published.papers import Point, Table, load
from selfloop.stats.intervals import mean_interval
from selfloop.types import Floats

SEEDS = {"paper": 100, "small": 20}  # chains, where the paper does not say how many it ran
HEAVY = 0.5  # share of the spread that one chain may carry before z stops meaning much
Progress = Callable[[int, int], None]
Measure = Callable[[Table, int, Progress], Mapping[str, Floats]]  # -> policy -> (seeds, generations)


@dataclass(frozen=True, slots=True)
class Line:
    """A published number beside the measured mean over seeds with its interval; None where chains have ended.

    z divides their difference by its standard error: of both means (the paper's from its number of seeds and the spread
    measured here), of rounding, and of reading the value.
    """

    group: str
    setting: str
    policy: str
    generation: int
    metric: str
    published: float
    measured: float | None
    low: float | None
    high: float | None
    z: float | None
    note: str = ""


def reproduce(
    work: str,
    only: Sequence[str] | None = None,
    *,
    scale: str = "paper",
    store: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> list[Line]:
    """Every number of a work that can be run here, group by group; `only` names groups.

    At scale "paper" with the paper's number of seeds, at "small" with 20, or as many as a number says. SpecError for an
    unknown work, group or scale.
    """
    tables = [table for table in load(work).tables if table.source]
    groups = list(dict.fromkeys(table.group for table in tables))
    for name in only or ():
        if name not in groups:
            raise SpecError(unknown_name("only", name, groups))
    fixed = int(scale) if scale.isdecimal() and int(scale) > 0 else SEEDS.get(scale)
    if fixed is None:
        raise SpecError(f"scale: got {scale!r}; expected paper, small, or a number of seeds of at least 1.")
    chosen = [table for table in tables if table.group in (only or groups)]
    steps = [table.generations * len(table.curves) for table in chosen]
    lines = []
    for i, table in enumerate(chosen):
        seeds = table.seeds if scale == "paper" and table.seeds else fixed
        report = partial(_report, progress, sum(steps[:i]), steps[i], sum(steps))
        curves = (measure or partial(simulate, store=store))(table, seeds, report)
        lines += [_line(table, policy, point, curves[policy]) for policy, points in table.curves.items() for point in points]
    return lines


def simulate(table: Table, seeds: int, progress: Progress, *, store: Path | None = None) -> dict[str, Floats]:
    """Policy -> (seeds, generations) curves of a table's setting."""
    from selfloop.result import run
    from selfloop.spec.spec import spec_from_table

    spec = spec_from_table({
        "source": table.source, "family": table.family, "n": table.n, "generations": table.generations, "seeds": seeds,
        "policies": list(table.curves), "metrics": [table.metric],
    })  # fmt: skip
    return {policy: curves[table.metric] for policy, curves in run(spec, store, progress=progress).curves().items()}


def _report(progress: Progress | None, before: int, share: int, whole: int, done: int, total: int) -> None:
    if progress:
        progress(before + share * done // total, whole)


def _line(table: Table, policy: str, point: Point, curves: Floats) -> Line:
    values = curves[:, point.generation - 1] / table.unit
    interval = mean_interval(values)
    settings = {key: value for part in (table.source, table.family) for key, value in part.items() if key != "name"}
    setting = ", ".join([str(table.source["name"]), *(f"{key} {value}" for key, value in settings.items()), f"n {table.n}"])
    z, note = None, ""
    if interval.estimate is not None:
        z = (interval.estimate - point.value) / _error(table, point, values)
        squares = (values - interval.estimate) ** 2
        if squares.max() > HEAVY * squares.sum() > 0:
            note = f"heavy tail: one chain carries {squares.max() / squares.sum():.0%} of the spread"
    return Line(
        table.group, setting, policy, point.generation, table.metric, point.value, interval.estimate, interval.low,
        interval.high, z, note,
    )  # fmt: skip


def _error(table: Table, point: Point, values: Floats) -> float:
    spread = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    chains = spread / len(values) + (spread / table.seeds if table.seeds else 0.0)
    uniform = (point.digit**2 + (2 * table.reading_error * point.value) ** 2) / 12  # rounding and reading
    return float(np.sqrt(chains + uniform))
