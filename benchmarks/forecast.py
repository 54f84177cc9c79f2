"""Coverage of forecasts on withheld generations: of presets that run in seconds, and of the complete runs of any stores.

    python benchmarks/forecast.py FOLDER [--seeds 3 5 10] [--cases 6] [--runs STORE ...]

FOLDER is a store for the presets: those without networks or files, of six generations or more, each with 200 seeds. A case is
one metric of one policy: the curves of a few seeds, cut after a length that users run, of which the last third or half is
withheld. "Expectation": the limits contain the mean of all other seeds, give or take its standard error. "Same seeds": they
contain the withheld mean of the seeds themselves. Every preset has the same weight. Widths are medians: as a multiple of the
95 % interval of the last generation, and of the change of the mean from the first to the forecast generation. The settings
of the method were chosen on the papers of the first half (alphabetically every other paper); the second half is the test.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import selfloop
from selfloop.columns import Floats
from selfloop.commands.plan import plan
from selfloop.errors import SelfloopError
from selfloop.result import Result
from selfloop.spec.parse import fresh_spec, parse_spec
from selfloop.spec.spec import Spec
from selfloop.stats.forecast import MIN_GENERATIONS, forecast
from selfloop.stats.intervals import summarize_seeds
from selfloop.store.runs import read_runs

N_SEEDS = 200
MIN_RUN = 6  # generations
LENGTHS = (6, 8, 10, 12, 15, 20, 30, 40, 60)  # of a run with its withheld part
NEEDS_DATA = re.compile("hub_|tinystories|celeba|qm9|geom|mnist|fashion|rdkit|HelpSteer")
HORIZONS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # generations ahead, as a share of the run


class Case(NamedTuple):
    """A metric of one policy: (seeds, generations)."""

    name: str
    curves: Floats
    positive: bool


@dataclass(frozen=True)
class ForecastCheck:
    """One forecast of one generation; NaN for what a case has not."""

    name: str
    ahead: float  # as a share of the run
    expectation: float
    same_seeds: float
    above: float  # 1 if the truth is above the limits
    width: float  # over that of the interval of the last generation
    change: float  # width over the change of the mean
    spread: float  # change of the mean, over the interval of the last generation


def read_cases(name: str, result: Result) -> Iterator[Case]:
    """Every metric, without secondary values, of every policy of a result but controls and chains that end."""
    main, positive, controls = [m.name for m in result.spec.metrics], result.spec.positive_metrics(), result.spec.controls()
    for point in result.points:
        for label, measured in result.curves(point.coordinates).items():
            for metric in main if label not in controls else ():
                if metric in measured and measured[metric].shape[1] >= MIN_RUN and np.isfinite(measured[metric]).all():
                    yield Case(name, measured[metric], metric in positive)


def quick_presets() -> dict[str, Spec]:
    """The presets that need no data and no network, with up to 200 seeds."""
    specs = {}
    for file in sorted((Path(selfloop.__file__).parent / "presets").glob("*.toml")):
        if not NEEDS_DATA.search(file.read_text(encoding="utf-8")):
            spec = fresh_spec(file.stem)
            if spec.generations >= MIN_RUN and all(point.runs_as_ensemble for point in spec.points()):
                specs[file.stem] = replace(spec, seeds=tuple(range(min(N_SEEDS, max(len(spec.seeds), 50)))))
    return specs


def read_stores(stores: Sequence[Path]) -> Iterator[Case]:
    """The cases of the complete runs that stores list, without runs of presets that the first part has."""
    for store in stores:
        for run in read_runs(store):
            try:
                spec = parse_spec(run.spec, run.name)
                costs = () if all(p.runs_as_ensemble for p in spec.points()) else plan(spec, store)
                if costs and all(cost.stored == cost.generations for cost in costs):
                    yield from read_cases(f"{run.title} {run.name}", selfloop.run(spec, store))
            except SelfloopError as problem:
                print(f"skipped: {run.title}: {problem}")


def check_forecasts(case: Case, seeds: int, n_cases: int, rng: np.random.Generator) -> Iterator[ForecastCheck]:
    """The forecasts of random groups of seeds and lengths."""
    n, last = case.curves.shape
    lengths = [length for length in LENGTHS if length <= last] or [last]
    for _ in range(min(n_cases, n // seeds * len(lengths))):
        whole = int(rng.choice(lengths))
        run = min(max(MIN_GENERATIONS, round(whole * rng.choice([1 / 2, 2 / 3]))), whole - 1)
        group = rng.choice(n, seeds, replace=False)
        curves, later = case.curves[group, :run], case.curves[group, run:whole].mean(axis=0)
        others = np.delete(case.curves, group, axis=0)
        result = forecast(curves, whole - run, positive=case.positive)
        if not np.isfinite(result.high).all():
            continue
        start, now = summarize_seeds(curves, positive=case.positive), curves.mean(axis=0)
        for i in range(whole - run):
            truth, error = np.nan, 0.0
            if len(others) >= 10 * seeds:
                truth, error = others[:, run + i].mean(), others[:, run + i].std(ddof=1) / np.sqrt(len(others))
            low, high = result.low[i], result.high[i]
            middle = later[i] if np.isnan(truth) else truth
            slack, band, move = 1e-9 * abs(later[i]), float((start.high - start.low)[-1]), abs(middle - now[0])
            yield ForecastCheck(
                name=case.name, ahead=(i + 1) / run,
                expectation=np.nan if np.isnan(truth) else float(low - error <= truth <= high + error),
                same_seeds=float(low - slack <= later[i] <= high + slack), above=float(middle > high),
                width=(high - low) / band, change=(high - low) / move if move else np.inf, spread=move / band,
            )  # fmt: skip


def weighted(rows: Sequence[ForecastCheck], name: str) -> float:
    """The mean of a field with the same weight for every preset, without undefined values."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if not np.isnan(value := getattr(row, name)):
            groups.setdefault(row.name, []).append(value)
    return float(np.mean([np.mean(values) for values in groups.values()])) if groups else np.nan


def print_table(title: str, rows: Sequence[ForecastCheck]) -> None:
    """Coverage and width by horizon."""
    print(f"\n{title}: {len({row.name for row in rows})} presets or runs, {len(rows):,} forecasts")
    print(
        f"{'ahead / run':>14} {'expectation':>12} {'same seeds':>11} {'above':>7} {'width / band':>13} {'width / change':>15}"
    )
    for low, high in (*HORIZONS, (0.0, 1.0)):
        part = [row for row in rows if low < row.ahead <= high]
        if part:
            moved = [row.change for row in part if row.spread > 1] or [np.nan]
            print(
                f"{low:>7.2f}-{high:<6.2f} {weighted(part, 'expectation'):>12.1%} {weighted(part, 'same_seeds'):>11.1%} "
                f"{weighted(part, 'above'):>7.1%} {np.nanmedian([row.width for row in part]):>13.2f} {np.median(moved):>15.2f}"
            )
    worst = sorted(
        {row.name: weighted([r for r in rows if r.name == row.name], "same_seeds") for row in rows}.items(), key=lambda p: p[1]
    )
    print("lowest, same seeds: " + ", ".join(f"{name} {share:.0%}" for name, share in worst[:4]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--cases", type=int, default=6, help="groups of seeds per metric and policy")
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    specs = quick_presets()
    cases = [case for name, spec in specs.items() for case in read_cases(name, selfloop.run(spec, arguments.store))]
    papers = sorted({name.split("_")[0] for name in specs})
    halves = {paper: "chosen on" if i % 2 == 0 else "tested on" for i, paper in enumerate(papers)}
    stored = list(read_stores(arguments.runs))
    for seeds in arguments.seeds:
        rng = np.random.default_rng(17)
        for half in ("chosen on", "tested on"):
            part = [case for case in cases if halves[case.name.split("_")[0]] == half]
            print_table(
                f"{seeds} seeds, {half}", [o for case in part for o in check_forecasts(case, seeds, arguments.cases, rng)]
            )
        if stored:
            print_table(
                f"{seeds} seeds, stored runs",
                [o for case in stored for o in check_forecasts(case, seeds, arguments.cases, rng)],
            )


if __name__ == "__main__":
    main()
