"""How far a run is, as a table for a terminal: the risk of every policy so far, and about how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from selfloop.engine.curves import NO_MEASUREMENT, Curves
from selfloop.engine.tasks import TaskOutput
from selfloop.engine.time_left import TimeLeft
from selfloop.errors import printable
from selfloop.notebook import format_seconds
from selfloop.report.theme import describe_coordinates, sparkline
from selfloop.spec.spec import Spec
from selfloop.types import Coordinates

MAX_POLICIES = 12  # in the table: those with the newest measurements
WIDE, NARROW = 100, 72  # columns of a terminal: from the first on long names, below the second no seeds and no times
TREND_COLUMNS = 12  # of a curve


@dataclass(slots=True, eq=False)
class PolicyRun:
    """One policy at one point."""

    title: str
    risk: str  # or the first metric, if none is a risk
    curves: Curves
    done: Mapping[int, int]  # seed -> generations
    seconds: float = 0.0  # of computed steps
    changed: float = 0.0

    def cells(self, width: int) -> tuple[str, str, str, str]:
        """Newest generation, seeds that reached it, and the mean and the curve of the risk over these, ended chains too."""
        codes = self.curves.codes.get(self.risk, np.full((1, 1), NO_MEASUREMENT))
        reached = np.max((codes != NO_MEASUREMENT) * np.arange(1, codes.shape[1] + 1), axis=1)
        t = int(reached.max())
        if t == 0:
            return f"{max(self.done.values(), default=0)}/{self.curves.generations}", "", "", ""
        ended = (reached > 0) & (codes[np.arange(len(codes)), reached - 1] > NO_MEASUREMENT)
        mean = self.curves.values[self.risk][(reached == t) | ended, :t].mean(axis=0)
        loss = f"{ended.sum()} ended" if np.isnan(mean[-1]) else f"{mean[-1]:.4g}"
        return f"{t}/{self.curves.generations}", f"{(reached == t).sum()}/{len(codes)}", loss, sparkline(mean, width)


class RunState:
    """The policies of a run, and about how long it still takes."""

    def __init__(self, spec: Spec, left: TimeLeft) -> None:
        self.policies, self.left = dict[tuple[Coordinates, int], PolicyRun](), left
        metrics = [*(metric.name for metric in spec.metrics), "risk"]
        for point in spec.points():
            for position, label in enumerate(spec.policy_labels()):
                title = f"{label}; {describe_coordinates(point.coordinates)}" if point.coordinates else label
                key, curves = (point.coordinates, position), Curves(spec.seeds, point.spec.generations)
                risk = point.spec.risk_metric() or metrics[0]
                self.policies[key] = PolicyRun(printable(title), risk, curves, left.done[key])

    def add(self, output: TaskOutput) -> None:
        if not output.shared:
            run = self.policies[output.coordinates, output.policy]
            run.curves.merge(output.curves)
            run.seconds, run.changed = run.seconds + output.usage.seconds, time.monotonic()

    def table(self, width: int) -> Iterator[Table | Text]:
        """The policies with the newest measurements, in the order of the spec, and how many others there are."""
        runs = list(self.policies.values())
        newest = sorted(runs, key=lambda run: -run.changed)[:MAX_POLICIES]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        names = ["generation", "seeds", runs[0].risk, "trend", "computing", "about left"]
        if width < WIDE:
            names = ["t", "seeds", names[2], "trend", "time", "left"]
        visible = range(6) if width >= NARROW else (0, 2, 3)
        least = 2 * len(str(runs[0].curves.generations)) + 1, 5, 8, TREND_COLUMNS if width >= NARROW else 8, 4, 4
        table.add_column("policy", no_wrap=True, overflow="ellipsis", ratio=1)
        for i in visible:
            table.add_column(names[i], no_wrap=True, min_width=least[i], justify="left" if i == 3 else "right")
        for key, run in ((key, run) for key, run in self.policies.items() if run in newest):
            times = ("" if each is None else format_seconds(round(each)) for each in (run.seconds, self.left.seconds(key)))
            cells = (*run.cells(least[3]), *times)
            table.add_row(Text(run.title), *(Text(cells[i]) for i in visible))
        yield table
        if len(runs) > MAX_POLICIES:
            yield Text(f"… {len(runs) - MAX_POLICIES} more")
