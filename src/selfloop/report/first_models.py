"""First models beside the trivial model of their family, and the sentence of a result whose first models hardly pass it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from selfloop.engine.curves import TRIVIAL
from selfloop.protocols import SupportsTrivialModel
from selfloop.report.theme import describe_coordinates, format_number
from selfloop.spec.point import Point

if TYPE_CHECKING:
    from selfloop.result import Result

# A gain that hardly counts: as a share of the trivial risk (of log losses: McFadden's R^2) or, of log densities, whose zero
# depends on the unit of the rows, in nats per row (Cox and Snell's R^2, 1 - exp(-2 gain), of a tenth).
HARDLY_BETTER = 0.05


def trivial_model(result: Result, point: Point, metric: str) -> tuple[str, float] | None:
    """The family's trivial model in words and its mean value of a metric over the seeds; None if it has none."""
    values = next(iter(result.curves(point.coordinates).values())).get(f"{metric}{TRIVIAL}")
    name = "" if values is None else cast(SupportsTrivialModel, point.spec.family).trivial_model
    return None if values is None else (name, float(np.nanmean(values[:, 0])))


def first_model_sentence(result: Result, point: Point) -> str | None:
    """The sentence about first models, which all policies share, that are hardly better than a trivial one; None for others."""
    risk = next((metric for metric in point.spec.metrics if metric.name == point.spec.risk_metric()), None)
    curves = next(iter(result.curves(point.coordinates).values()))
    if risk is None or f"{risk.name}{TRIVIAL}" not in curves:
        return None
    pairs = np.stack([curves[name][:, 0] for name in (risk.name, f"{risk.name}{TRIVIAL}")], axis=1)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if not len(pairs):
        return None
    first, trivial = pairs.mean(axis=0).tolist()
    has_zero = risk.has_zero or risk.name == "negative_elbo"  # 0 is a perfect copy, though no ratio depends on it alone
    if trivial - first > HARDLY_BETTER * (trivial if has_zero else 1.0):
        return None
    at = f" at {describe_coordinates(point.coordinates)}" if point.coordinates else ""
    better, name = "worse" if first > trivial else "hardly better", cast(SupportsTrivialModel, point.spec.family).trivial_model
    return (
        f"The first model{at} is {better} than {name}: {risk.name} {format_number(first)}, against {format_number(trivial)}. "
        "Its later generations tell little about collapse: choose other settings or more rows."
    )
