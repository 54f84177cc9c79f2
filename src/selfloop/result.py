"""What a run gives back: rows, and everything that is computed from rows."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selfloop.engine.curves import Curves
from selfloop.engine.loop import ScheduleEntry, schedule
from selfloop.engine.run import Progress, parts, resolved_points, schedule_metrics, store_path
from selfloop.settings import has_default_settings
from selfloop.spec.spec import Coordinates, Spec
from selfloop.stats.comparison import SINCE, Comparison, compare_all
from selfloop.stats.data_value import Cell
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.store.store import Usage
from selfloop.types import Floats, Measurement, Verdict, real, synthetic

if TYPE_CHECKING:
    import pandas as pd

PolicyCurves = dict[str, dict[str, Floats]]  # policy -> metric -> (seeds, generations), NaN where there is no value


@dataclass(frozen=True)
class Result:
    """Everything a finished run measured, with the spec it comes from and what the store was used for."""

    spec: Spec
    table: Mapping[tuple[Coordinates, str], Curves]  # by point and policy
    store: Path
    usage: Mapping[str, Usage] = field(default_factory=dict)  # by policy
    shared: Usage = field(default_factory=Usage)  # of the stages that all policies share, met again under each of them

    @cached_property
    def points(self) -> dict[Coordinates, Spec]:
        """The sweep's points (one without a sweep, under the empty axes), with n and holdout filled in."""
        return dict(resolved_points(self.spec))

    def schedules(self, coordinates: Coordinates = ()) -> dict[str, list[ScheduleEntry]]:
        """What every generation of each policy emits and trains on."""
        point = self.points[coordinates]
        n = cast(int, point.n)
        return {
            label: list(schedule(policy, n, point.generations))
            for label, policy in zip(point.policy_labels(), point.policies, strict=True)
        }

    @property
    def rows(self) -> Iterator[Measurement]:
        """Every row in the spec's order: points, policies, seeds, generations, metrics; real mass and data age last."""
        for (coordinates, label), curves in self.table.items():
            yield from curves.rows(label, coordinates, schedule_metrics(self.schedules(coordinates)[label]))

    def curves(self, coordinates: Coordinates = ()) -> PolicyCurves:
        """Policy -> metric -> (seeds, generations), NaN where a chain has no value."""
        return {label: curves.values for (where, label), curves in self.table.items() if where == coordinates}

    def statuses(self, label: str, coordinates: Coordinates = ()) -> set[str]:
        """Why chains of a policy ended or numbers are missing."""
        curves = self.table[coordinates, label]
        return {curves.statuses[code] for codes in curves.codes.values() for code in np.unique(codes) if code > 1}

    def metrics(self) -> list[str]:
        """Names of what was measured, main metric first."""
        return list(dict.fromkeys(metric for curves in self.table.values() for metric in curves.values))

    def to_pandas(self) -> pd.DataFrame:
        """One line per row: policy, seed, generation, metric, value, status and the sweep's axes."""
        import pandas as pd

        return pd.DataFrame([measurement_to_json(row) for row in self.rows])

    def curve(self, metric: str, coordinates: Coordinates = ()) -> pd.DataFrame:
        """Mean over seeds with its 95 % Student-t interval: policy, generation, mean, low, high, seeds."""
        import pandas as pd

        lines = []
        for policy, measured in self.curves(coordinates).items():
            for t, values in enumerate(measured[metric].T, 1):
                each: Interval = mean_interval(values)
                alive = int(np.sum(~np.isnan(values)))
                lines.append((policy, t, each.estimate, each.low, each.high, alive))
        return pd.DataFrame(lines, columns=["policy", "generation", "mean", "low", "high", "seeds"])

    def verdicts(self) -> list[Verdict]:
        """Every criterion on every policy of every point; "risk" is the first metric of the spec of which less is better.

        In a sweep over n a criterion also sees the risk at every n with the other axes equal, as "risk@n=100".
        """
        found = []
        for coordinates, point in self.points.items():
            for policy, measured in self.curves(coordinates).items():
                seen = {**self._risks(policy, coordinates), **measured}
                found += [replace(c.judge(seen), policy=policy, coordinates=coordinates) for c in point.criteria]
        return found

    def _risks(self, policy: str, coordinates: Coordinates) -> dict[str, Floats]:
        risks = {}
        others = [each for each in coordinates if each[0] != "n"]
        for where, point in self.points.items():
            risk = self.curves(where).get(policy, {}).get(point.risk_metric() or "")
            if risk is not None and [each for each in where if each[0] != "n"] == others:
                risks[f"risk@n={point.n}"] = risk
                if where == coordinates:
                    risks["risk"] = risk
        return risks if len(risks) > 2 else {name: risk for name, risk in risks.items() if name == "risk"}

    def compare(self, coordinates: Coordinates = (), metric: str | None = None, since: int = SINCE) -> list[Comparison]:
        """Policies against each other, paired by seed: of the risk, or of another metric, at one point of the sweep."""
        point = self.points[coordinates]
        chosen = metric or point.risk_metric() or ""
        curves = {label: measured[chosen] for label, measured in self.curves(coordinates).items() if chosen in measured}
        usual = [
            label for label, policy in zip(point.policy_labels(), point.policies, strict=True) if has_default_settings(policy)
        ]
        return compare_all(curves, usual if metric in (None, point.risk_metric()) else (), since)

    def cells(self) -> dict[Coordinates, list[Cell]]:
        """The risk over numbers of real and synthetic training rows, by the sweep's axes other than n.

        Of last generations whose synthetic rows all come from first models, so that cells differ in numbers of rows and
        not in how far the models had gone; and of generation 1. Training sets of equal size are one cell, their mean; one
        that several policies train on, as on generation 1's, counts once.
        """
        found: dict[Coordinates, dict[tuple[float, float], dict[Hashable, Floats]]] = {}
        for (coordinates, label), curves in self.table.items():
            cells = found.setdefault(tuple(axis for axis in coordinates if axis[0] != "n"), {})
            risk = curves.values.get(self.points[coordinates].risk() or "")
            stages = self.schedules(coordinates)[label]
            for stage in {stage.t: stage for stage in (stages[0], stages[-1])}.values():
                batches = [take.batch for take in stage.plan.takes]
                if risk is not None and {*batches} <= {real(stage.t), real(1), synthetic(1)}:
                    trained_on = coordinates, stage.t, stage.plan, *(stage.available[batch] for batch in batches)
                    cells.setdefault(_counts(stage), {})[trained_on] = risk[:, stage.t - 1]
        return {
            coordinates: [Cell(*rows, np.mean([*risks.values()], axis=0)) for rows, risks in sorted(cells.items())]
            for coordinates, cells in found.items()
        }

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file."""
        from selfloop.report.build import write_report

        return write_report([self], Path(path))


def _counts(stage: ScheduleEntry) -> tuple[float, float]:
    """Real and synthetic rows a generation trains on; of a budget, those to be expected."""
    rows = {kind: sum(take.rows or 0 for take in stage.plan.takes if take.batch.kind == kind) for kind in ("real", "synthetic")}
    share = stage.trained_rows / sum(rows.values())
    return rows["real"] * share, rows["synthetic"] * share


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
    shared = Usage()
    labels = spec.policy_labels()
    table = {
        (coordinates, label): Curves(spec.seeds, point.generations) for coordinates, point in spec.points() for label in labels
    }
    where = {seed: s for s, seed in enumerate(spec.seeds)}
    for part in parts(spec, store, workers=workers, threads=threads, progress=progress):
        label = labels[part.policy]
        (shared if part.shared else usage.setdefault(label, Usage())).add(part.usage)
        if part.curves:
            table[part.coordinates, label].merge(part.curves)
        for row in part.rows:
            table[row.coordinates, row.policy].put(row, where[row.seed])
    return Result(spec, table, store_path(store), usage, shared)


def measurement_to_json(row: Measurement) -> dict[str, Any]:
    """A row as the object of a JSON line; `status` only where there is one, axes as further keys."""
    line: dict[str, Any] = {
        "policy": row.policy, "seed": row.seed, "generation": row.generation, "metric": row.metric, "value": row.value,
    }  # fmt: skip
    if row.status is not None:
        line["status"] = row.status
    return {**line, **dict(row.coordinates)}


def write_measurements(rows: Iterable[Measurement], write: Any) -> None:
    """One JSON object per line."""
    for row in rows:
        write(json.dumps(measurement_to_json(row)) + "\n")
