"""Processor time and size of a report of a million measurements: 5 policies, 20 generations, 1,000 seeds, 10 metrics.

The numbers are synthetic; everything after the run is measured: `build_report` (statistics, verdicts, comparisons) and
`render_page` (figures, tables). Run it with:
    python benchmarks/report.py [--profile]
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from selfloop.engine.curves import Curves
from selfloop.report.build import build_report
from selfloop.report.page import render_page
from selfloop.result import Result
from selfloop.spec.parse import fresh_spec
from selfloop.spec.spec import Spec
from selfloop.store.calls import Usage
from selfloop.types import Coordinates

POLICIES = ["replace", "accumulate", "accumulate_subsample", "mix", "control"]
GENERATIONS, SEEDS, N_METRICS, TARGET = 20, 1000, 10, 3.0


def synthetic_result(store: Path) -> Result:
    """A result with invented values: errors that grow, with one spread for all metrics."""
    spec = fresh_spec(
        Spec(
            source={"name": "linear", "dim": 3}, family={"name": "linear"}, n=50, generations=GENERATIONS, seeds=SEEDS,
            policies=POLICIES, metrics=["excess_risk"],
        )
    )  # fmt: skip
    rng, t = np.random.default_rng(1), np.arange(GENERATIONS)
    table: dict[tuple[Coordinates, str], Curves] = {}
    for i, label in enumerate(spec.policy_labels()):
        names = ["excess_risk", *(f"value_{k}" for k in range(1, N_METRICS))]
        curves = Curves(spec.seeds, GENERATIONS)
        for name in names:
            curves.values[name] = rng.gamma(20, 1 / 20, (SEEDS, GENERATIONS)) * (1 + 0.1 * t / (i + 1))
            curves.codes[name] = np.zeros((SEEDS, GENERATIONS), np.uint8)
        table[(), label] = curves
    return Result(spec, table, store, {label: Usage() for label in spec.policy_labels()})


def measure(result: Result) -> tuple[float, float, int]:
    """Seconds of processor time to build and to render, which other programs do not lengthen much, and bytes of the page."""
    start = time.process_time()
    report = build_report(result)
    built = time.process_time()
    page = render_page([report])
    return built - start, time.process_time() - built, len(page.encode())


def main() -> None:
    """Print the times, and with --profile where they go."""
    with tempfile.TemporaryDirectory() as folder:
        result = synthetic_result(Path(folder))
        measure(result)  # imports, and the bundle of scripts, which is made once per process
        profile = cProfile.Profile()
        if "--profile" in sys.argv:
            profile.enable()
        build, render, size = measure(result)
        profile.disable()
    n = len(POLICIES) * GENERATIONS * SEEDS * N_METRICS
    sys.stdout.write(f"{n:,} measurements: {build:.2f} s to build, {render:.2f} s to render, {size / 1e6:.2f} MB")
    sys.stdout.write(f" (target {TARGET:g} s in all, 5 MB)\n")
    if "--profile" in sys.argv:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
