"""The sentence of a result whose first models are worse than a trivial model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

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
    curves, spec = result.curves(point.coordinates), point.spec
    risk, suffix = spec.risk_metric() or "", "".join(f", {key} = {value}" for key, value in point.coordinates)
    firsts = [measured[risk][:, 0] for measured in curves.values() if risk in measured]
    trivial = trivial_loss(point, risk)
    if trivial is None or not firsts or np.isnan(firsts[0]).all():
        return None
    first, (loss, model) = float(np.nanmean(firsts[0])), trivial
    if not first > loss + MARGIN * max(1.0, abs(loss)):
        return None
    return (
        f"The first model{suffix} is worse than {model}: {risk} {format_number(first)}, against {format_number(loss)}. Its "
        "later generations tell little about collapse: choose other settings or more rows."
    )


def trivial_loss(point: Point, risk: str) -> tuple[float, str] | None:
    """The risk of a model that ignores all structure of the same rows, and that model in words; None if there is none."""
    source, settings = point.spec.source, point.spec.family.settings()
    contexts = [Context(RandomStream(("seed", seed)).child("source")) for seed in point.spec.seeds[:MAX_SEEDS]]
    if risk == "cross_entropy" and "vocab" in settings:
        return math.log(settings["vocab"]), "equal probabilities of all tokens"
    if risk in ("excess_risk", "parameter_error") and "coefficients" in source.truth(contexts[0]):
        truths: list[dict[str, Any]] = [dict(source.truth(ctx)) for ctx in contexts]
        scale = [truth["variances"] if risk == "excess_risk" else 1.0 for truth in truths]
        losses = [np.sum(s * np.square(truth["coefficients"])) for s, truth in zip(scale, truths, strict=True)]
        return float(np.mean(losses)), "coefficients of 0"
    column = next((name for name in ("y", "symbol", "x") if name in source.schema()), None)
    if risk not in ("nll", "log_loss") or column is None:
        return None
    draws = ((point.holdout, point.n), (0, point.holdout))
    training, holdout = (
        np.asarray(source.draw(first, min(n, MAX_ROWS), contexts[0])[column], np.float64) for first, n in draws
    )
    if column == "symbol":
        return math.log(len(np.unique(np.concatenate([training, holdout])))), "equal probabilities of all symbols"
    return _constant_loss(training, holdout, settings.get("link"))


def _constant_loss(training: Floats, holdout: Floats, link: str | None) -> tuple[float, str] | None:
    """Mean loss, in nats per row, of one distribution for all rows, fitted to the training rows."""
    if link == "logit":
        share = (training.sum() + 0.5) / (len(training) + 1)
        return -float(np.mean(np.log(np.where(holdout == 1, share, 1 - share)))), "the same probability for every row"
    if link == "log":
        rate = training.mean() + 0.5 / len(training)
        return float(np.mean(rate - xlogy(holdout, rate) + gammaln(holdout + 1))), "the same rate for every row"
    mean, variance = training.mean(axis=0), training.var(axis=0)
    if not np.all(variance > 0):
        return None
    nats = 0.5 * (np.square(holdout - mean) / variance + np.log(2 * np.pi * variance))
    return float(nats.reshape(len(holdout), -1).sum(axis=1).mean()), "a normal distribution of each column"
