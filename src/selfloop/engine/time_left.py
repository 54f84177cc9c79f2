"""About how long a run still takes: the work that is left, at the times of the steps so far."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from selfloop.columns import Floats
from selfloop.engine.tasks import TaskOutput
from selfloop.spec.spec import Spec
from selfloop.types import Coordinates

MEMORY = 0.9  # weight of the times so far at each further step


class TimeLeft:
    """Receives every output of a run. Work: [generations, fits in units of that of generation 1].

    `done`, by policy (coordinates and position): the generations of each of its seeds.
    """

    def __init__(self, spec: Spec) -> None:
        self.ensembles = {point.coordinates: point.runs_as_ensemble for point in spec.points()}
        self.shared_left = len(spec.seeds) * (len(self.ensembles) - sum(self.ensembles.values()))  # first generations
        self.products, self.times, self.busy = np.zeros((2, 2)), np.zeros(2), 0.0  # of the least squares of seconds on work
        self.paused = 0.0  # seconds that do not count
        self.started = self.last = self._now()
        self.steps = 0  # that were computed
        self.fits, self.left = dict[tuple[Coordinates, int], Floats](), dict[tuple[Coordinates, int], Floats]()
        self.done = dict[tuple[Coordinates, int], Counter[int]]()
        for point in spec.points():
            for position, policy in enumerate(point.spec.policies):
                family, key = point.spec.family, (point.coordinates, position)
                fits = np.array([family.for_generation(e.t).count_work(e.trained_rows) for e in point.schedule(policy)])
                own = (fits := fits / fits[0])[0 if point.runs_as_ensemble else 1 :]
                self.fits[key], self.left[key] = fits, len(spec.seeds) * np.array([len(own), own.sum()])
                self.done[key] = Counter()

    def add(self, output: TaskOutput) -> None:
        """Note an output as it arrives."""
        work = np.ones(2) * output.generations
        if output.shared:
            self.shared_left -= output.generations
        else:
            work = self._take_work(output)
        if output.usage.computed and work.any():
            if self.steps < 2:  # the first step loads libraries, too
                self.products, self.times, self.busy = np.zeros((2, 2)), np.zeros(2), 0.0
                self.started = self._now() - output.usage.seconds
            self.steps += 1
            self.products = MEMORY * self.products + np.outer(work, work)
            self.times = MEMORY * self.times + work * output.usage.seconds
            self.busy, self.last = self.busy + output.usage.seconds, self._now()

    def _now(self) -> float:
        return time.monotonic() - self.paused

    def _take_work(self, output: TaskOutput) -> Floats:
        """The work of an output, which is no longer left. Generation 1 of a chain is shared, and no work of its own."""
        key, seeds = (output.coordinates, output.policy), output.curves.seeds
        self.done[key].update(dict.fromkeys(seeds, output.generations))
        fits, t = self.fits[key], self.done[key][seeds[0]]
        ensemble = self.ensembles[output.coordinates]
        work = len(seeds) * np.array([len(fits), fits.sum()]) if ensemble else np.array([1.0, fits[t - 1]]) * (t > 1)
        self.left[key] = np.maximum(self.left[key] - work, 0)
        return work

    def seconds(self, *policies: tuple[Coordinates, int]) -> float | None:
        """About how many seconds these policies, or all work, still take at the pace so far; None before the first step ends.

        Seconds of a step: a + b x work of its fit, by least squares. While all fits are equal, a = b.
        """
        if not self.busy:
            return None
        left = sum((self.left[key] for key in policies or self.left), np.zeros(2)) + (0 if policies else self.shared_left)
        seconds = float(left @ np.linalg.pinv(self.products, rcond=1e-6, hermitian=True) @ self.times)
        pace = self.busy / max(self.last - self.started, 1e-3)  # steps that run at the same time
        return max(seconds / pace - (0 if policies else self._now() - self.last), 0.0)
