"""What a run gives back: rows, and everything that is computed from rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selfloop.loop import Stage, schedule
from selfloop.runtime import Progress, resolved_points, store_path, stream
from selfloop.spec import Axes, Spec
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.store import Usage
from selfloop.types import Floats, Row, Verdict

if TYPE_CHECKING:
    import pandas as pd

Curves = dict[str, dict[str, Floats]]  # policy -> metric -> (seeds, generations), NaN where there is no value


@dataclass(frozen=True)
class Result:
    """Rows of a finished run, with the spec they come from and what the store was used for."""

    spec: Spec
    rows: tuple[Row, ...]
    store: Path
    usage: Mapping[str, Usage] = field(default_factory=dict)

    @cached_property
    def points(self) -> dict[Axes, Spec]:
        """The sweep's points (one without a sweep, under the empty axes), with n and holdout filled in."""
        return dict(resolved_points(self.spec))

    def ledger(self, axes: Axes = ()) -> dict[str, list[Stage]]:
        """What every generation of each policy emits and trains on."""
        point = self.points[axes]
        n = cast(int, point.n)
        return {
            label: list(schedule(policy, n, point.generations))
            for label, policy in zip(point.labels(), point.policies, strict=True)
        }

    @cached_property
    def all_curves(self) -> dict[Axes, Curves]:
        """Every point's curves."""
        curves: dict[Axes, Curves] = {axes: {label: {} for label in point.labels()} for axes, point in self.points.items()}
        where = {seed: s for s, seed in enumerate(self.spec.seeds)}
        for row in self.rows:
            of_policy = curves[row.axes][row.policy]
            if row.metric not in of_policy:
                of_policy[row.metric] = np.full((len(where), self.points[row.axes].generations), np.nan)
            if row.value is not None:
                of_policy[row.metric][where[row.seed], row.generation - 1] = row.value
        return curves

    def curves(self, axes: Axes = ()) -> Curves:
        """Policy -> metric -> (seeds, generations), NaN where a chain has no value."""
        return self.all_curves[axes]

    def metrics(self) -> list[str]:
        """Names of what was measured, main metric first."""
        return list(dict.fromkeys(row.metric for row in self.rows))

    def frame(self) -> pd.DataFrame:
        """One line per row: policy, seed, generation, metric, value, status and the sweep's axes."""
        import pandas as pd

        return pd.DataFrame([as_json(row) for row in self.rows])

    def curve(self, metric: str, axes: Axes = ()) -> pd.DataFrame:
        """Mean over seeds with its 95 % Student-t interval: policy, generation, mean, low, high, seeds."""
        import pandas as pd

        lines = []
        for policy, measured in self.curves(axes).items():
            for t, values in enumerate(measured[metric].T, 1):
                each: Interval = mean_interval(values)
                alive = int(np.sum(~np.isnan(values)))
                lines.append((policy, t, each.estimate, each.low, each.high, alive))
        return pd.DataFrame(lines, columns=["policy", "generation", "mean", "low", "high", "seeds"])

    def verdicts(self) -> list[Verdict]:
        """Every criterion on every policy of every point; "risk" is the first metric of the spec."""
        found = []
        for axes, point in self.points.items():
            for policy, measured in self.curves(axes).items():
                main = point.metrics[0].name
                seen = {"risk": measured[main], **measured} if main in measured else measured
                found += [replace(c.judge(seen), policy=policy, axes=axes) for c in point.criteria]
        return found

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file."""
        from selfloop.report.build import write_report

        return write_report([self], Path(path))


def run(
    spec: Spec,
    store: str | Path | None = None,
    *,
    workers: int | None = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a spec to the end; what is stored already is not computed again.

    `workers=None` starts as many processes as the cores allow (from a script, guard the call with
    `if __name__ == "__main__":`). The numbers do not depend on it.
    """
    usage: dict[str, Usage] = {}
    rows = list(stream(spec, store, workers=workers, threads=threads, progress=progress, usage=usage))
    return Result(spec, tuple(_ordered(spec, rows)), store_path(store), usage)


def _ordered(spec: Spec, rows: list[Row]) -> list[Row]:
    """Rows in the spec's order, however many processes they came from, with the ledger's numbers added."""
    points = resolved_points(spec)
    metrics = {name: i for i, name in enumerate(dict.fromkeys(row.metric for row in rows))}
    order = {axes: (i, {label: p for p, label in enumerate(point.labels())}) for i, (axes, point) in enumerate(points)}
    seeds = {seed: s for s, seed in enumerate(spec.seeds)}
    rows = rows + list(_ledger_rows(points, rows))
    last = len(metrics)

    def place(row: Row) -> tuple[int, ...]:
        point, labels = order[row.axes]
        return point, labels[row.policy], seeds[row.seed], row.generation, metrics.get(row.metric, last)

    return sorted(rows, key=place)


def _ledger_rows(points: list[tuple[Axes, Spec]], rows: list[Row]) -> Iterable[Row]:
    reached = {(row.axes, row.policy, row.seed, row.generation) for row in rows}
    stages: dict[tuple[Axes, str], list[Stage]] = {}
    for axes, point in points:
        for label, policy in zip(point.labels(), point.policies, strict=True):
            stages[axes, label] = list(schedule(policy, cast(int, point.n), point.generations))
    for axes, label, seed, generation in reached:
        at = stages[axes, label][generation - 1]
        yield Row(label, seed, generation, "real_mass", at.real_mass, None, axes)
        yield Row(label, seed, generation, "data_age", at.data_age, None, axes)


def as_json(row: Row) -> dict[str, Any]:
    """A row as the object of a JSON line; `status` only where there is one, axes as further keys."""
    line: dict[str, Any] = {
        "policy": row.policy, "seed": row.seed, "generation": row.generation, "metric": row.metric, "value": row.value,
    }  # fmt: skip
    if row.status is not None:
        line["status"] = row.status
    return {**line, **dict(row.axes)}


def write_rows(rows: Iterable[Row], write: Any) -> None:
    """One JSON object per line."""
    for row in rows:
        write(json.dumps(as_json(row)) + "\n")
