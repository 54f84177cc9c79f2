"""The sentence of a result whose first models are worse than a trivial model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from scipy.special import gammaln, xlogy

from selfloop.columns import Floats
from selfloop.component import Context
from selfloop.report.theme import format_number
from selfloop.rng import RandomStream
from selfloop.spec.point import Point

if TYPE_CHECKING:
    from selfloop.result import Result

MAX_ROWS = 5000  # that the trivial model is fitted on, and measured on
MAX_SEEDS = 20  # whose true coefficients are averaged
MARGIN = 0.05  # share of the trivial model's loss, at least 0.05, that chance may add


def first_model_sentence(result: Result, point: Point) -> str | None:
    """The sentence about a first model, which all policies share, that is worse than a trivial one; None for all others."""
    risk, suffix = point.spec.risk_metric() or "", "".join(f", {key} = {value}" for key, value in point.coordinates)
    curve = next(iter(result.curves(point.coordinates).values())).get(risk, np.empty((0, 1)))
    losses, trivial = curve[~np.isnan(curve[:, 0]), 0], trivial_loss(point, risk)
    if trivial is None or not len(losses) or not losses.mean() > trivial[0] + MARGIN * max(1.0, abs(trivial[0])):
        return None
    first, least = (format_number(float(loss)) for loss in (losses.mean(), trivial[0]))
    return (
        f"The first model{suffix} is worse than {trivial[1]}: {risk} {first}, against {least}. Its later generations tell "
        "little about collapse: choose other settings or more rows."
    )


def trivial_loss(point: Point, risk: str) -> tuple[float, str] | None:
    """The risk of a model that ignores all structure of the same rows, and that model in words; None if there is none."""
    source, family = point.spec.source, point.spec.family
    settings, outcome = family.settings(), ("", *family.required_columns)[-1]
    contexts = [Context(RandomStream(("seed", seed)).child("source")) for seed in point.spec.seeds[:MAX_SEEDS]]
    if risk == "cross_entropy" and "vocab" in settings:
        return math.log(settings["vocab"]), "equal probabilities of all tokens"
    if risk in ("excess_risk", "parameter_error"):  # of a source with true coefficients
        truths = [cast(Mapping[str, Floats], source.truth(ctx)) for ctx in contexts]
        scales = [truth["variances"] if risk == "excess_risk" else 1.0 for truth in truths]
        squares = [np.sum(scale * truth["coefficients"] ** 2) for scale, truth in zip(scales, truths, strict=True)]
        return float(np.mean(squares)), "coefficients of 0"
    if risk not in ("nll", "log_loss") or outcome not in ("x", "y", "symbol"):
        return None
    draws = ((point.holdout, point.n), (0, point.holdout))
    with warnings.catch_warnings(action="ignore"):  # the run has repeated what a source warns of
        training, holdout = (
            np.asarray(source.draw(first, min(n, MAX_ROWS), contexts[0])[outcome], np.float64) for first, n in draws
        )
    if outcome == "symbol":
        return math.log(len(np.unique(np.concatenate([training, holdout])))), "equal probabilities of all symbols"
    mean, variance = training.mean(axis=0), training.var(axis=0)
    if settings.get("link") == "logit":
        return -float((xlogy(holdout, mean) + xlogy(1 - holdout, 1 - mean)).mean()), "the same probability for every row"
    if settings.get("link") == "log":
        return float((mean - xlogy(holdout, mean) + gammaln(holdout + 1)).mean()), "the same rate for every row"
    with np.errstate(divide="ignore", invalid="ignore"):  # no value for a constant column
        nats = 0.5 * (np.square(holdout - mean) / variance + np.log(2 * np.pi * variance))
    return float(nats.reshape(len(holdout), -1).sum(axis=1).mean()), "a normal distribution of each column"
