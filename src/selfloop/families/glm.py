"""Logistic and Poisson regression by unpenalised maximum likelihood, all seeds at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np

from selfloop.component import Sampler
from selfloop.errors import DataError, SpecError
from selfloop.families.ensemble import EnsembleFamily, multiplicity
from selfloop.families.pooling import is_masked, masked_positions, part_weights, pick, taken
from selfloop.protocols import EnsembleFit, EnsembleTake
from selfloop.rng import RandomStream
from selfloop.types import Array, Columns, Floats, Params

STEPS = 100  # evaluations of a likelihood before its fit counts as not converged; five to ten are usual
CONVERGED = 1e-14  # squared Newton step in standard errors after which one more step leaves nothing to gain
SUSPECT = 1e-9  # least curvature over the mass of a row below which only a linear program can tell; see `_maximise`
FLAT = 1e-13  # least curvature that is not rounding
CACHED = 1 << 18  # numbers of a design that are worked on at once, so that they stay in the cache
LOG_RATE_LIMIT = 40.0  # numpy draws no larger Poisson counts than about exp(43)


class _Rows(NamedTuple):
    """Design rows, and for each the mass of its training rows and their sum of outcomes; leading seeds axis."""

    x: Floats
    mass: Floats
    total: Floats


@dataclass(frozen=True, kw_only=True)
class Glm(EnsembleFamily):
    """Generalised linear model with canonical link for outcomes `y` given inputs `x`.

    Ends a chain with status `separated` when the likelihood has no maximum because a direction separates the outcomes
    (decided by a linear program: Konis 2007, eq. for quasi-separation), `not_identified` when it has many (dependent
    inputs), `not_converged` when none was found.
    """

    name: ClassVar[str] = "glm"
    required_columns: ClassVar[tuple[str, ...]] = ("x", "y")
    default_metrics: ClassVar[tuple[str, ...]] = ("parameter_error", "log_loss", "accuracy")
    link: str = "logit"  # "logit": logistic regression of 0/1 outcomes; "log": Poisson regression of counts

    def __post_init__(self) -> None:
        if self.link not in ("logit", "log"):
            raise SpecError(f"family.link: got {self.link!r}; expected 'logit' (outcomes 0 or 1) or 'log' (counts).")

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        for part in parts:
            self._check(part)
        rows = _on_one_design(parts) or _pooled(parts)
        seeds, n, d = rows.x.shape
        coefficients = np.zeros((seeds, d))  # stays so where there is no model
        if n < d:
            return EnsembleFit({"coefficients": coefficients}, ["not_identified"] * seeds)
        q, r = np.linalg.qr(rows.x)  # in the coordinates of q, columns of any unit are alike
        independent = (np.abs(np.diagonal(r, axis1=1, axis2=2)) > 1e-11 * np.linalg.norm(r, axis=1)).all(axis=1)
        size = max(1, CACHED // (n * d))
        pieces = [slice(first, first + size) for first in range(0, seeds, size)]
        fits = [_maximise(self.link, q[at], _Rows(*(each[at] for each in rows))) for at in pieces]
        found, converged, curvature = (np.concatenate(each) for each in zip(*fits, strict=True))
        status = [
            self._status(_Rows(q[s], rows.mass[s], rows.total[s]), found[s], bool(converged[s]), float(curvature[s]))
            if independent[s]
            else "not_identified"
            for s in range(seeds)
        ]
        good = np.array([s for s in range(seeds) if status[s] is None], np.int64)
        coefficients[good] = np.linalg.solve(r[good], found[good, :, None])[:, :, 0]
        return EnsembleFit({"coefficients": coefficients}, status)

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        linear = _linear(params, inputs)
        return {
            "x": inputs["x"],
            "y": np.stack([draw_outcomes(self.link, *pair) for pair in zip(linear, streams, strict=True)]),
        }

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log probability of each row's outcome given its inputs, in nats; one chain or with a leading seeds axis."""
        linear, y = _linear(params, rows), np.asarray(rows["y"], np.float64)
        if self.link == "logit":
            return np.asarray(y * linear - np.logaddexp(0, linear))
        from scipy.special import gammaln

        return np.asarray(y * linear - np.exp(np.minimum(linear, 700)) - gammaln(y + 1))

    def predict(self, params: Params, rows: Columns) -> Floats:
        """The most probable outcome of each row; one chain or with a leading seeds axis."""
        linear = _linear(params, rows)
        return np.asarray(linear > 0 if self.link == "logit" else np.floor(np.exp(np.minimum(linear, 700))), np.float64)

    def _check(self, part: EnsembleTake) -> None:
        if "outcomes checked" in part.cache:
            return
        if set(part.rows) != {"x", "y"}:
            raise DataError(f"glm: got columns {', '.join(part.rows)}; expected inputs 'x' and outcomes 'y'. Name a target.")
        y = np.asarray(part.rows["y"])
        allowed = (y == 0) | (y == 1) if self.link == "logit" else (y >= 0) & (y == np.floor(y))
        if not allowed.all():
            wanted = "0 or 1" if self.link == "logit" else "whole numbers of 0 or more"
            raise DataError(f"glm: outcome {y[~allowed][0]:g} with link {self.link!r}; expected {wanted}.")
        part.cache["outcomes checked"] = True

    def _status(self, rows: _Rows, found: Floats, converged: bool, curvature: float) -> str | None:
        if converged and curvature > SUSPECT * rows.mass.max():
            return None
        if _is_separated(self.link, rows, found):
            return "separated"
        if not converged:
            return "not_converged"
        return None if curvature > FLAT * rows.mass.max() else "not_identified"


def _linear(params: Params, rows: Columns) -> Floats:
    coefficients = np.asarray(params["coefficients"], np.float64)
    return np.asarray((np.asarray(rows["x"], np.float64) @ coefficients[..., None])[..., 0])


def draw_outcomes(link: str, linear: Floats, stream: RandomStream) -> Floats:
    """Outcomes of one chain with that linear predictor."""
    rng = stream.generator()
    if link == "logit":
        return np.asarray(rng.random(linear.shape) < 0.5 * (1 + np.tanh(linear / 2)), np.float64)
    return np.asarray(rng.poisson(np.exp(np.minimum(linear, LOG_RATE_LIMIT))), np.float64)


def _pooled(parts: Sequence[EnsembleTake]) -> _Rows:
    if is_masked(parts):
        at = masked_positions(parts)
        x, y = (np.asarray(pick([np.asarray(part.rows[name]) for part in parts], at), np.float64) for name in ("x", "y"))
        mass = part_weights(parts, at)
    else:
        x, y = (np.asarray(np.concatenate([taken(part, name) for part in parts], axis=1), np.float64) for name in ("x", "y"))
        mass = np.concatenate([np.full(taken(part, "y").shape, part.weight) for part in parts], axis=1)
    return _Rows(x, mass, mass * y)


def _on_one_design(parts: Sequence[EnsembleTake]) -> _Rows | None:
    """All parts summed by design row when they share their inputs (row i has input i mod n), so that t batches cost as one."""
    design = np.asarray(parts[0].rows["x"])
    seeds, n = len(design), _period(design)
    mass, total = np.zeros((seeds, n)), np.zeros((seeds, n))
    for part in parts:
        if not _repeats(part, design):
            return None
        y = np.asarray(part.rows["y"], np.float64)
        times = multiplicity(part)
        weight = np.broadcast_to(part.weight, y.shape) if times is None else part.weight * times
        for first in range(0, y.shape[1], n):
            piece = weight[:, first : first + n]
            mass[:, : piece.shape[1]] += piece
            total[:, : piece.shape[1]] += piece * y[:, first : first + n]
    return _Rows(np.asarray(design[:, :n], np.float64), mass, total)


def _repeats(part: EnsembleTake, design: Array) -> bool:
    x = np.asarray(part.rows["x"])
    if x is design:
        return True
    known = cast(tuple[Array, bool] | None, part.cache.get("repeats"))
    if known is None or known[0] is not design:
        n = design.shape[1]
        pieces = (x[:, first : first + n] for first in range(0, x.shape[1], n))
        known = design, all(np.array_equal(piece, design[:, : piece.shape[1]]) for piece in pieces)
        part.cache["repeats"] = known
    return known[1]


def _period(x: Array) -> int:
    """After how many rows the inputs start again, in every seed; their number when they do not."""
    for p in (np.flatnonzero((x[0, 1:] == x[0, 0]).all(axis=1)) + 1).tolist():
        if np.array_equal(x[0, p:], x[0, :-p]) and np.array_equal(x[:, p:], x[:, :-p]):
            return int(p)
    return int(x.shape[1])


def _maximise(link: str, q: Floats, rows: _Rows) -> tuple[Floats, Array, Floats]:
    """Newton's method with step halving in every seed: coefficients, whether converged, least curvature of the likelihood.

    On separated outcomes the likelihood flattens, so the Newton step shrinks as if to a maximum. Along the separating direction
    v, residual and curvature of a row with outcome probability 1 - e are at least and at most e, so a squared step
    (sum |q v| e)^2 / sum (q v)^2 e below CONVERGED forces a curvature below CONVERGED as well: converged *with* a curvature
    well above it proves that the maximum exists.
    """
    seeds, d = q.shape[0], q.shape[2]
    at = trial = _start(link, q, rows)
    step, scale, best = np.zeros((seeds, d)), np.ones(seeds), np.full(seeds, np.inf)
    converged, curvature = np.zeros(seeds, bool), np.zeros(seeds)
    live = np.arange(seeds)
    q, mass, total = np.ascontiguousarray(q.transpose(0, 2, 1)), rows.mass, rows.total
    for _ in range(STEPS):
        with np.errstate(over="ignore", invalid="ignore"):
            loss, gradient, information = _derivatives(link, q, mass, total, trial[live])
        better = loss <= best[live] + 1e-12 * (1 + np.abs(loss))
        worse = live[~better]
        scale[worse] /= 2
        moved = live[better]
        at[moved], best[moved], scale[moved] = trial[moved], loss[better], 1.0
        step[moved], small = _newton_step(gradient[better], information[better])
        done = moved[small]
        converged[done] = True
        curvature[done] = np.linalg.eigvalsh(information[better][small])[:, 0]
        trial = at - scale[:, None] * step
        if done.size:
            keep = ~converged[live]
            live, q, mass, total = live[keep], q[keep], mass[keep], total[keep]
        if not live.size:
            break
    return trial, converged, curvature


def _start(link: str, q: Floats, rows: _Rows) -> Floats:
    """Least squares on the linked, smoothed outcomes: near enough that Newton needs few steps."""
    if link == "logit":
        linked = np.log((rows.total + 0.5) / (rows.mass - rows.total + 0.5))
    else:
        linked = np.log((rows.total + 0.5) / (rows.mass + 0.5))
    return np.asarray((linked[:, None, :] @ q)[:, 0])


def _derivatives(link: str, q: Floats, mass: Floats, total: Floats, at: Floats) -> tuple[Floats, Floats, Floats]:
    """Negative log-likelihood, its gradient and its Hessian in every seed; q is (seeds, features, rows)."""
    linear = (at[:, None, :] @ q)[:, 0]
    if link == "logit":
        e = np.exp(-np.abs(linear))
        loss = mass * (np.maximum(linear, 0) + np.log1p(e)) - total * linear
        mean = np.where(linear >= 0, 1.0, e) / (1 + e)
        weight = mass * e / (1 + e) ** 2
    else:
        mean = np.exp(np.minimum(linear, 700))
        loss = mass * mean - total * linear
        weight = mass * mean
    gradient = (q @ (mass * mean - total)[:, :, None])[:, :, 0]
    return loss.sum(axis=1), gradient, (q * weight[:, None, :]) @ q.transpose(0, 2, 1)


def _newton_step(gradient: Floats, information: Floats) -> tuple[Floats, Array]:
    d = gradient.shape[1]
    trace = np.trace(information, axis1=1, axis2=2)[:, None, None]
    never_singular = information + (1e-14 * trace + 1e-300) * np.eye(d)
    step = np.linalg.solve(never_singular, gradient[:, :, None])[:, :, 0]
    return step, (step * gradient).sum(axis=1) < CONVERGED


def _is_separated(link: str, rows: _Rows, found: Floats) -> bool:
    """Is there, in one seed, a direction along which the likelihood never falls and somewhere rises? (Konis 2007, sect. 4.)

    Often the fit has found one: all outcomes on their sides. Otherwise maximise the sum of signed margins, none of which may
    be negative; rows whose outcomes pull both ways must not move. For counts only rows without any count pull one way.
    """
    from scipy.optimize import linprog

    x, mass, total = (each[rows.mass > 0] for each in rows)
    side = np.where(total == 0, -1.0, np.where((total == mass) & (link == "logit"), 1.0, 0.0))
    margins = side[side != 0, None] * x[side != 0]
    if link == "logit" and (side != 0).all() and (margins @ found > 1e-6).all():
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
