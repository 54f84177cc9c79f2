"""Why modalities differ: how much of a model's loss under `replace` is bias, and how much is noise of its sampled rows.

    python benchmarks/modalities.py [--only linear kde] [--store FOLDER] --set bias_molecules:source.path=qm9.npz

Every preset refits a model once on n and once on 10 n of its own rows, with the same number of optimizer steps. A part of the
rise of the held-out loss that is proportional to 1 / rows is noise, 10/9 of the difference between both rises; the rest, the
rise without limit of rows, is bias. Intervals have 95 %, over seeds, paired by seed; that of a share is Fieller's.

Exact values: laws of least squares and of the second moment of kernel densities; for the loss of a kernel density of width h,
the density of the same real rows with kernels of width sqrt(2) h, which is generation 2 without limit of rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from selfloop.columns import Floats
from selfloop.commands.options import own_settings
from selfloop.errors import DataError, MissingExtraError, SpecError
from selfloop.report.theme import describe_coordinates, format_interval, format_number
from selfloop.result import Result, run
from selfloop.spec.parse import read_spec
from selfloop.stats.intervals import Interval, mean_interval

PRESETS = ("linear", "kde", "text", "vae", "ddpm", "molecules")
COLUMNS = ("modality", "loss", "seeds", "loss(1)", "rise, n rows", "rise, 10 n rows", "noise", "bias", "share of bias", "exact")
LEVEL = 0.95


def split_rise(first: Floats, few: Floats, many: Floats) -> tuple[Floats, Floats]:
    """Noise and bias of each seed from the losses of model 1 and of models 2 on n and on 10 n rows.

    rise(n) = bias + noise and rise(10 n) = bias + noise / 10.
    """
    noise = (few - many) * 10 / 9
    return noise, few - first - noise


def share_interval(part: Floats, whole: Floats) -> Interval:
    """Mean of `part` over mean of `whole`, of any sign, with Fieller's limits; None if the mean of `whole` may be 0."""
    n, top, bottom = len(part), float(part.mean()), float(whole.mean())
    if n < 2:
        return Interval(top / bottom, None, None, n)
    (xx, xy), (_, yy) = np.cov(part, whole) * float(stdtrit(n - 1, (1 + LEVEL) / 2)) ** 2 / n
    a, b, c = bottom**2 - yy, bottom * top - xy, top**2 - xx  # limits r solve a r^2 - 2 b r + c = 0
    if a <= 0:
        return Interval(top / bottom, None, None, n)
    half = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval(top / bottom, (b - half) / a, (b + half) / a, n)


def table_rows(name: str, result: Result, wider: Result | None) -> Iterator[tuple[str, ...]]:
    """One row per point and metric."""
    n_rows, ten_n_rows = result.spec.policy_labels()
    for i, point in enumerate(result.points):
        curves = result.curves(point.coordinates)
        for metric in (m.name for m in point.spec.metrics):
            first, few = curves[n_rows][metric].T
            many = curves[ten_n_rows][metric][:, 1]
            noise, bias = split_rise(first, few, many)
            share = share_interval(bias, few - first)
            laws = [
                law.values[1] - law.values[0]
                for label in (n_rows, ten_n_rows)
                for law in result.laws[point.coordinates, label]
                if law.metric == metric and law.kind == "exact"
            ]
            exact = f"rises {' and '.join(map(format_number, laws))} by law" if laws else ""
            if wider is not None and metric == "nll":
                coordinates = wider.points[i].coordinates
                limit = wider.curves(coordinates)[n_rows][metric][:, 0] - first
                exact = f"bias {format_interval(mean_interval(limit, LEVEL))} with sqrt(2) h"
            yield (
                " ".join(filter(None, (name, describe_coordinates(point.coordinates)))), metric, str(len(first)),
                format_number(float(first.mean())),
                *(format_interval(mean_interval(x, LEVEL)) for x in (few - first, many - first, noise, bias)),
                "undecided" if share.low is None else format_interval(share), exact,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="PRESET:KEY=VALUE")
    options = parser.parse_args()
    try:
        settings = own_settings([f"bias_{name}" for name in PRESETS], options.set)
    except SpecError as problem:
        parser.error(str(problem))
    print("\t".join(COLUMNS))
    for name in options.only:
        preset, changes, wider = f"bias_{name}", settings[f"bias_{name}"], None
        try:
            result = run(read_spec(preset, changes), options.store, threads=1)
        except (DataError, SpecError, MissingExtraError) as problem:
            print(f"{name}\tnot run: {problem}", flush=True)
            continue
        if name == "kde":
            widths = [math.sqrt(2) * dict(point.coordinates)["family.bandwidth"] for point in result.points]
            wide = ["generations=1", "policies=['replace']", "metrics=['nll']", f"sweep={{'family.bandwidth'={widths}}}"]
            wider = run(read_spec(preset, [*changes, *wide]), options.store, threads=1)
        for row in table_rows(name, result, wider):
            print("\t".join(row), flush=True)


if __name__ == "__main__":
    main()
