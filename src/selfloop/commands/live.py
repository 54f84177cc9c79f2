"""How far a run is: the risk of every policy so far, about how long it still takes, and both as a table for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table
from rich.text import Text

from selfloop.columns import Floats
from selfloop.commands.console import sparkline
from selfloop.commands.plan import fit_work
from selfloop.engine.curves import NO_MEASUREMENT, Curves
from selfloop.engine.tasks import TaskOutput
from selfloop.errors import printable
from selfloop.report.tables import format_seconds
from selfloop.report.theme import describe_coordinates, format_number
from selfloop.spec.spec import Spec
from selfloop.types import Coordinates

MAX_POLICIES = 12  # in the table: those with the newest measurements
WIDE, NARROW = 100, 72  # columns of a terminal: from the first on long names, below the second no seeds and no times
TREND_COLUMNS = 12  # of a curve
MEMORY = 0.9  # weight of the times so far at each further step


@dataclass(slots=True, eq=False)
class PolicyRun:
    """One policy at one point. Work: [generations, fits in units of that of generation 1]."""

    title: str
    risk: str  # or the first metric, if none is a risk
    curves: Curves
    fits: Floats  # work of the fit of each generation
    left: Floats  # work
    seconds: float = 0.0  # of computed steps
    changed: float = 0.0
    done: dict[int, int] = field(default_factory=dict)  # seed -> generations

    def take_work(self, output: TaskOutput, *, ensemble: bool) -> Floats:
        """The work of an output, which is no longer left. Generation 1 of a chain is shared, and no work of its own."""
        self.curves.merge(output.curves)
        self.seconds, self.changed = self.seconds + output.usage.seconds, time.monotonic()
        for seed in output.curves.seeds:
            self.done[seed] = self.done.get(seed, 0) + output.generations
        t = self.done[output.curves.seeds[0]]
        work = (
            len(output.curves.seeds) * np.array([len(self.fits), self.fits.sum()])
            if ensemble
            else np.array([1.0, self.fits[t - 1]])
        )
        work = work * (ensemble or t > 1)
        self.left = np.maximum(self.left - work, 0)
        return work

    def cells(self, width: int) -> tuple[str, str, str, str]:
        """Newest generation, seeds that reached it, and the mean and the curve of the risk over these, ended chains too."""
        codes = self.curves.codes.get(self.risk, np.full((1, 1), NO_MEASUREMENT))
        reached = np.max((codes != NO_MEASUREMENT) * np.arange(1, codes.shape[1] + 1), axis=1)
        t = int(reached.max())
        if t == 0:
            return f"{max([*self.done.values()], default=0)}/{len(self.fits)}", "", "", ""
        ended = (reached > 0) & (codes[np.arange(len(codes)), reached - 1] > NO_MEASUREMENT)
        mean = self.curves.values[self.risk][(reached == t) | ended, :t].mean(axis=0)
        loss = f"{ended.sum()} ended" if np.isnan(mean[-1]) else format_number(float(mean[-1]))
        return f"{t}/{len(self.fits)}", f"{(reached == t).sum()}/{len(codes)}", loss, sparkline(mean, width)


class RunState:
    """The policies of a run and the times of its steps so far."""

    def __init__(self, spec: Spec) -> None:
        self.policies: dict[tuple[Coordinates, int], PolicyRun] = {}
        self.ensembles = {point.coordinates: point.runs_as_ensemble for point in spec.points()}
        self.shared_left = len(spec.seeds) * (len(self.ensembles) - sum(self.ensembles.values()))  # first generations
        self.products, self.times, self.busy = np.zeros((2, 2)), np.zeros(2), 0.0  # of the least squares of seconds on work
        self.started = self.last = time.monotonic()
        self.steps = 0  # that were computed
        metrics = [*(metric.name for metric in spec.metrics), "risk"]
        for point in spec.points():
            for position, (label, policy) in enumerate(zip(spec.policy_labels(), point.spec.policies, strict=True)):
                fits = np.array([fit_work(point.spec.family, e.t, e.trained_rows) for e in point.schedule(policy)])
                own = (fits := fits / fits[0])[0 if point.runs_as_ensemble else 1 :]
                title = f"{label}; {describe_coordinates(point.coordinates)}" if point.coordinates else label
                self.policies[point.coordinates, position] = PolicyRun(
                    printable(title), point.spec.risk_metric() or metrics[0], Curves(spec.seeds, len(fits)), fits,
                    len(spec.seeds) * np.array([len(own), own.sum()]),
                )  # fmt: skip

    def add(self, output: TaskOutput) -> None:
        """Note an output as it arrives."""
        work = np.ones(2) * output.generations
        if output.shared:
            self.shared_left -= output.generations
        else:
            run = self.policies[output.coordinates, output.policy]
            work = run.take_work(output, ensemble=self.ensembles[output.coordinates])
        if output.usage.computed and work.any():
            if self.steps < 2:  # the first step loads libraries, too
                self.products, self.times, self.busy = np.zeros((2, 2)), np.zeros(2), 0.0
                self.started = time.monotonic() - output.usage.seconds
            self.steps += 1
            self.products = MEMORY * self.products + np.outer(work, work)
            self.times = MEMORY * self.times + work * output.usage.seconds
            self.busy, self.last = self.busy + output.usage.seconds, time.monotonic()

    def seconds_left(self, *runs: PolicyRun) -> float | None:
        """About how many seconds these policies, or all work, still take at the pace so far; None before the first step ends.

        Seconds of a step: a + b x work of its fit, by least squares. While all fits are equal, a = b.
        """
        if not self.busy:
            return None
        left = sum((run.left for run in runs or self.policies.values()), np.zeros(2)) + (0 if runs else self.shared_left)
        seconds = float(left @ np.linalg.pinv(self.products, rcond=1e-6, hermitian=True) @ self.times)
        pace = self.busy / max(self.last - self.started, 1e-3)  # steps that run at the same time
        return max(seconds / pace - (0 if runs else time.monotonic() - self.last), 0.0)

    def table(self, width: int) -> Iterator[Table | Text]:
        """The policies with the newest measurements, in the order of the spec, and how many others there are."""
        runs = list(self.policies.values())
        newest = sorted(runs, key=lambda run: -run.changed)[:MAX_POLICIES]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        names = ["generation", "seeds", runs[0].risk, "trend", "computing", "about left"]
        if width < WIDE:
            names = ["t", "seeds", names[2], "trend", "time", "left"]
        visible = range(6) if width >= NARROW else (0, 2, 3)
        least = 2 * len(str(len(runs[0].fits))) + 1, 5, 8, TREND_COLUMNS if width >= NARROW else 8, 4, 4
        table.add_column("policy", no_wrap=True, overflow="ellipsis", ratio=1)
        for i in visible:
            table.add_column(names[i], no_wrap=True, min_width=least[i], justify="left" if i == 3 else "right")
        for run in (run for run in runs if run in newest):
            times = ("" if each is None else format_seconds(round(each)) for each in (run.seconds, self.seconds_left(run)))
            cells = (*run.cells(least[3]), *times)
            table.add_row(Text(run.title), *(Text(cells[i]) for i in visible))
        yield table
        if len(runs) > MAX_POLICIES:
            yield Text(f"… {len(runs) - MAX_POLICIES} more")
