"""Logistic and Poisson regression by unpenalized maximum likelihood, all seeds at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np

from selfloop.columns import Array, Columns, Floats, Params
from selfloop.component import Component, Context, Sampler
from selfloop.errors import DataError
from selfloop.families.ensemble import DesignRows, EnsembleFamily, check_columns, sum_design_rows
from selfloop.families.trivial import risk_without_inputs, squared_error_of_mean
from selfloop.protocols import EnsembleFit, SeedStreams
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake

Link = Literal["logit", "log"]
MAX_EVALUATIONS = 100  # of a likelihood until its fit has status not_converged; 5 to 10 are usual
CONVERGED_STEP = 1e-14  # squared Newton step in standard errors; after one more step the error is rounding
MIN_SAFE_CURVATURE = 1e-9  # over the mass of a row; below, only a linear program can decide: see `_maximize`
MIN_CURVATURE = 1e-13  # over the mass of a row; less is rounding
CHUNK_NUMBERS = 1 << 18  # numbers of a design that are processed together: in the cache, fits take 0.8 of the time
MAX_EXPONENT = 700.0  # exp of more overflows
MAX_LOG_RATE = 40.0  # numpy draws no Poisson counts larger than about exp(43)


@dataclass(frozen=True, kw_only=True)
class GlmSampler(Sampler):
    """How the outcomes of new rows follow from a fitted regression.

    There are no noiseless outcomes: predicted means in place of outcomes have their maximum of likelihood at the same model.
    """

    name: ClassVar[str] = "glm"
    default_identity: ClassVar[type[Component] | None] = Sampler  # results from before it had settings
    labels: Annotated[Literal["sampled", "argmax"], "outcomes of new rows: drawn from the model, or the likeliest"] = "sampled"


@dataclass(frozen=True, kw_only=True)
class Glm(EnsembleFamily):
    """Generalized linear model with canonical link for outcomes `y` given inputs `x`.

    A chain ends with status `separated` if the likelihood has no maximum because a direction separates the outcomes (decided
    by a linear program: Konis 2007, eq. for quasi-separation), `not_identified` if it has many maxima (dependent inputs),
    `not_converged` if none was found.
    """

    name: ClassVar[str] = "glm"
    required_columns: ClassVar[tuple[str, ...]] = ("x", "y")
    default_metrics: ClassVar[tuple[str, ...]] = ("parameter_error", "log_loss", "accuracy")
    sampler_class: ClassVar[type[Sampler]] = GlmSampler
    trivial_model: ClassVar[str] = "the same prediction for every row"
    mergeable: ClassVar[Mapping[str, bool]] = {"coefficients": False}
    link: Annotated[Link, "`logit`: logistic regression of outcomes 0 and 1; `log`: Poisson regression of counts"] = "logit"

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        check_columns(self.name, takes)
        for take in takes:
            self._check_outcomes(take)
        rows = sum_design_rows(takes)
        seeds, n, d = rows.x.shape
        coefficients = np.zeros((seeds, d))  # zeros remain for a seed without a model
        if n < d:
            return EnsembleFit({"coefficients": coefficients}, ["not_identified"] * seeds)
        q, r = np.linalg.qr(rows.x)  # in the coordinates of q the unit of a column does not matter
        independent = (np.abs(np.diagonal(r, axis1=1, axis2=2)) > 1e-11 * np.linalg.norm(r, axis=1)).all(axis=1)
        size = max(1, CHUNK_NUMBERS // (n * d))
        chunks = [slice(first, first + size) for first in range(0, seeds, size)]
        fits = [_maximize(self.link, q[chunk], DesignRows(*(column[chunk] for column in rows))) for chunk in chunks]
        solution, converged, curvature = (np.concatenate(arrays) for arrays in zip(*fits, strict=True))
        status = [
            self._status(DesignRows(q[s], rows.mass[s], rows.total[s]), solution[s], bool(converged[s]), float(curvature[s]))
            if independent[s]
            else "not_identified"
            for s in range(seeds)
        ]
        fitted = np.array([s for s in range(seeds) if status[s] is None], np.int64)
        coefficients[fitted] = np.linalg.solve(r[fitted], solution[fitted, :, None])[:, :, 0]
        return EnsembleFit({"coefficients": coefficients}, status)

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        if cast(GlmSampler, sampler).labels == "argmax":
            return {"x": inputs["x"], "y": self.predict(params, inputs)}
        linear = _linear_predictor(params, inputs)
        y = [_draw_outcomes(self.link, of_seed, stream) for of_seed, stream in zip(linear, streams, strict=True)]
        return {"x": inputs["x"], "y": np.stack(y)}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log probability of each row's outcome given its inputs, in nats; one chain or with a leading seeds axis."""
        linear, y = _linear_predictor(params, rows), np.asarray(rows["y"], np.float64)
        if self.link == "logit":
            return np.asarray(y * linear - np.logaddexp(0, linear))
        from scipy.special import gammaln

        return np.asarray(y * linear - np.exp(np.minimum(linear, MAX_EXPONENT)) - gammaln(y + 1))

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        if metric == "squared_error":
            return squared_error_of_mean(initial["y"], holdout["y"])
        if metric not in ("nll", "log_loss"):
            return risk_without_inputs(metric, truth)
        from scipy.special import gammaln, xlogy

        mean, y = np.mean(np.asarray(initial["y"], np.float64)), np.asarray(holdout["y"], np.float64)
        others = xlogy(1 - y, 1 - mean) if self.link == "logit" else -mean - gammaln(y + 1)
        return -float(np.mean(xlogy(y, mean) + others))

    def predict_mean(self, params: Params, rows: Columns) -> Floats:
        linear = _linear_predictor(params, rows)
        if self.link == "logit":
            return np.asarray(0.5 * (1 + np.tanh(linear / 2)))
        return np.asarray(np.exp(np.minimum(linear, MAX_EXPONENT)))

    def predict(self, params: Params, rows: Columns) -> Floats:
        if self.link == "logit":
            return np.asarray(_linear_predictor(params, rows) > 0, np.float64)
        return np.floor(self.predict_mean(params, rows))

    def _check_outcomes(self, take: EnsembleTake) -> None:
        y = np.asarray(take.rows["y"])
        allowed = (y == 0) | (y == 1) if self.link == "logit" else (y >= 0) & (y == np.floor(y))
        if not allowed.all():
            expected = "0 or 1. For a table, set source.positive" if self.link == "logit" else "whole numbers of 0 or more"
            raise DataError(f"glm: got outcome {y[~allowed][0]:g} with link {self.link!r}; expected {expected}.")

    def _status(self, rows: DesignRows, solution: Floats, converged: bool, curvature: float) -> str | None:
        """The reason why one seed has no model; None if it has one."""
        if converged and curvature > MIN_SAFE_CURVATURE * rows.mass.max():
            return None
        if _is_separated(self.link, rows, solution):
            return "separated"
        if not converged:
            return "not_converged"
        return None if curvature > MIN_CURVATURE * rows.mass.max() else "not_identified"


def _linear_predictor(params: Params, rows: Columns) -> Floats:
    coefficients = np.asarray(params["coefficients"], np.float64)
    return np.asarray((np.asarray(rows["x"], np.float64) @ coefficients[..., None])[..., 0])


def _draw_outcomes(link: Link, linear: Floats, stream: RandomStream) -> Floats:
    rng = stream.generator()
    if link == "logit":
        return np.asarray(rng.random(linear.shape) < 0.5 * (1 + np.tanh(linear / 2)), np.float64)
    return np.asarray(rng.poisson(np.exp(np.minimum(linear, MAX_LOG_RATE))), np.float64)


def _maximize(link: Link, q: Floats, rows: DesignRows) -> tuple[Floats, Array, Floats]:
    """Newton's method with step halving in every seed: coefficients, whether converged, least curvature of the likelihood.

    On separated outcomes the likelihood becomes flat, so that the Newton step shrinks as it does at a maximum. Along the
    separating direction v, residual and curvature of a row with outcome probability 1 - e are at least and at most e. So a
    squared step (sum |q v| e)^2 / sum (q v)^2 e below CONVERGED_STEP implies a curvature below CONVERGED_STEP. A fit that
    converged with a curvature well above it therefore has a maximum.
    """
    seeds, d = q.shape[0], q.shape[2]
    others = rows.mass - rows.total if link == "logit" else rows.mass
    linked = np.log((rows.total + 0.5) / (others + 0.5))
    solution = trial = (linked[:, None, :] @ q)[:, 0]  # least squares on smoothed outcomes, from which few steps are needed
    step, scale, best = np.zeros((seeds, d)), np.ones(seeds), np.full(seeds, np.inf)
    converged, curvature = np.zeros(seeds, bool), np.zeros(seeds)
    live = np.arange(seeds)
    q, mass, total = np.ascontiguousarray(q.transpose(0, 2, 1)), rows.mass, rows.total
    for _ in range(MAX_EVALUATIONS):
        with np.errstate(over="ignore", invalid="ignore"):
            loss, gradient, information = _derivatives(link, q, mass, total, trial[live])
        better = loss <= best[live] + 1e-12 * (1 + np.abs(loss))
        scale[live[~better]] /= 2
        moved = live[better]
        solution[moved], best[moved], scale[moved] = trial[moved], loss[better], 1.0
        step[moved], small = _newton_step(gradient[better], information[better])
        done = moved[small]
        converged[done] = True
        curvature[done] = np.linalg.eigvalsh(information[better][small])[:, 0]
        trial = solution - scale[:, None] * step
        if done.size:
            unfinished = ~converged[live]
            live, q, mass, total = live[unfinished], q[unfinished], mass[unfinished], total[unfinished]
        if not live.size:
            break
    return trial, converged, curvature


def _derivatives(link: Link, q: Floats, mass: Floats, total: Floats, coefficients: Floats) -> tuple[Floats, Floats, Floats]:
    """Negative log-likelihood, its gradient and its Hessian in every seed; q is (seeds, features, rows)."""
    linear = (coefficients[:, None, :] @ q)[:, 0]
    if link == "logit":
        e = np.exp(-np.abs(linear))
        loss = mass * (np.maximum(linear, 0) + np.log1p(e)) - total * linear
        mean = np.where(linear >= 0, 1.0, e) / (1 + e)
        weight = mass * e / (1 + e) ** 2
    else:
        mean = np.exp(np.minimum(linear, MAX_EXPONENT))
        loss = mass * mean - total * linear
        weight = mass * mean
    gradient = (q @ (mass * mean - total)[:, :, None])[:, :, 0]
    return loss.sum(axis=1), gradient, (q * weight[:, None, :]) @ q.transpose(0, 2, 1)


def _newton_step(gradient: Floats, information: Floats) -> tuple[Floats, Array]:
    """The step of every seed, and whether it is small enough."""
    d = gradient.shape[1]
    trace = np.trace(information, axis1=1, axis2=2)[:, None, None]
    regular = information + (1e-14 * trace + 1e-300) * np.eye(d)
    step = np.linalg.solve(regular, gradient[:, :, None])[:, :, 0]
    return step, (step * gradient).sum(axis=1) < CONVERGED_STEP


def _is_separated(link: Link, rows: DesignRows, solution: Floats) -> bool:
    """True if the likelihood of one seed rises in some direction and falls along it nowhere (Konis 2007, sect. 4).

    The fit is often such a direction: every outcome is on its side. Otherwise a linear program maximizes the sum of signed
    margins, none of which may be negative. The margin of a row with both outcomes must be 0; for counts, so must that of a
    row with any count above 0.
    """
    from scipy.optimize import linprog

    x, mass, total = (column[rows.mass > 0] for column in rows)
    side = np.where(total == 0, -1.0, np.where((total == mass) & (link == "logit"), 1.0, 0.0))
    margins = side[side != 0, None] * x[side != 0]
    if link == "logit" and (side != 0).all() and (margins @ solution > 1e-6).all():
        return True
    if not len(margins):
        return False
    fixed = x[side == 0] if (side == 0).any() else None
    answer = linprog(
        -margins.sum(axis=0), A_ub=-margins, b_ub=np.zeros(len(margins)),
        A_eq=fixed, b_eq=None if fixed is None else np.zeros(len(fixed)), bounds=(-1, 1), method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )  # fmt: skip
    return bool(answer.status == 0 and -answer.fun > 1e-6)
