"""Overhead of selfloop: milliseconds per generation with the store and on replay, seconds to import and to show help.

The family computes almost nothing, so the measured time is that of the loop, the store and its files. Run it with:
    python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfloop.columns import Columns, ColumnType, Params
from selfloop.component import Context, Family, Metric, Sampler, Source
from selfloop.engine.run import iter_measurements
from selfloop.snapshots import Snapshot
from selfloop.spec.spec import Spec
from selfloop.types import TrainingRows

GENERATIONS, SEEDS, REPEATS = 200, 2, 5
COMMAND = "import sys; sys.argv = {}; from selfloop.commands.cli import main; main()"
STARTS = {
    "python -c pass": "pass",
    "import selfloop": "import selfloop",
    "selfloop --help": COMMAND.format(["selfloop", "--help"]),
    "selfloop run --help": COMMAND.format(["selfloop", "run", "--help"]),
}
TARGETS = {"stored": 2.0, "replayed": 0.3}


@dataclass(frozen=True, kw_only=True)
class TickSource(Source):
    name: ClassVar[str] = "ticks"

    def schema(self) -> Mapping[str, ColumnType]:
        return {"x": ColumnType("float64")}

    def draw(self, first: int, n: int, ctx: Context) -> Columns:
        return {"x": np.arange(first, first + n) / 7}


@dataclass(frozen=True, kw_only=True)
class MeanFamily(Family):
    name: ClassVar[str] = "mean"

    def fit(self, rows: TrainingRows, ctx: Context, init: Params | None) -> Params:
        return {"mean": np.asarray(rows.all()["x"]).mean(keepdims=True)}

    def sample(self, params: Params, n: int, sampler: Sampler, inputs: Columns, ctx: Context) -> Columns:
        return {"x": params["mean"] + ctx.stream.generator().standard_normal(n)}


@dataclass(frozen=True, kw_only=True)
class LevelMetric(Metric):
    name: ClassVar[str] = "level"

    def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
        return {"level": float(snap.params["mean"][0])}


def per_generation(store: str) -> tuple[float, float]:
    """Milliseconds (wall, processor) per generation of a run in a store."""
    spec = Spec(
        source=TickSource(), family=MeanFamily(), metrics=(LevelMetric(),), policies=("replace",), criteria=("any_increase",),
        n=20, holdout=0, generations=GENERATIONS, seeds=SEEDS,
    )  # fmt: skip
    wall, processor = time.perf_counter(), time.process_time()
    measurements = sum(1 for _ in iter_measurements(spec, store, threads=1))
    assert measurements == 3 * SEEDS * GENERATIONS  # a metric, real mass and data age
    per = 1000 / (SEEDS * GENERATIONS)
    return (time.perf_counter() - wall) * per, (time.process_time() - processor) * per


def start_up(code: str) -> float:
    """Seconds of a whole Python process, the median of several."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    measured: dict[str, list[tuple[float, float]]] = {"stored": [], "replayed": []}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as store:
            for repeats in measured.values():
                repeats.append(per_generation(store))
    print("per generation (fit, sample, measure)   wall ms   processor ms   target ms   (medians)")
    for name, repeats in measured.items():
        wall, processor = (statistics.median(values) for values in zip(*repeats, strict=True))
        print(f"{name:38} {wall:9.3f} {processor:14.3f} {TARGETS[name]:11.1f}")
    print("\nwhole process                            wall s                  target s")
    for name, code in STARTS.items():
        print(f"{name:38} {start_up(code):9.3f} {'' if code == 'pass' else '0.3':>25}")


if __name__ == "__main__":
    main()
