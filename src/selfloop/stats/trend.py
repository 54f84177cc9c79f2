"""The trend that a curve over generations follows, and the generation after which more synthetic rows no longer help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfloop.columns import Floats
from selfloop.stats.intervals import Interval, answer_level, before_first_end, mean_interval, paired_difference

MIN_GENERATIONS = 8  # a form with three parameters then leaves three degrees of freedom without the last quarter of them
FLAT_TOLERANCE = 0.02  # change that counts as none, as a share of the scale of a risk
MIN_PLAUSIBILITY = 0.001  # of the best form, by an F test


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of a curve within its generations; `kind` is None if it is undecided. `reason` gives the number it rests on."""

    kind: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Form:
    """a + b shape(t, c), for c in a range that a number of generations can resolve; c does not matter without a range."""

    kind: str
    n_parameters: int
    shape: Callable[[Floats, Floats], Floats]
    rates: Callable[[float], tuple[float, float]] = lambda span: (1.0, 1.0)


# Sums in place of log t and t^-c: the laws of accumulate and of replace_multiple are exactly such sums.
_FORMS = (
    _Form("constant", 1, lambda t, c: 0 * t + 1),
    _Form("saturating", 3, lambda t, c: np.cumsum(t ** -(1 + c), axis=1), lambda span: (0.5, 4.0)),
    _Form("saturating", 3, lambda t, c: np.exp(-c * t), lambda span: (1 / span, 3.0)),
    _Form("log", 2, lambda t, c: np.cumsum(1 / t)),
    _Form("linear", 2, lambda t, c: t),
    _Form("exponential", 3, lambda t, c: np.exp(np.minimum(c * t, 600.0)), lambda span: (1 / span, 3.0)),
)
_N_PARAMETERS = {form.kind: form.n_parameters for form in _FORMS}
TRENDS = tuple(_N_PARAMETERS)


def late_slopes(curves: Floats) -> Floats:
    """Least-squares slope per generation over the last half of the generations (at least two), per seed."""
    late = curves[:, min(curves.shape[1] // 2, max(curves.shape[1] - 2, 0)) :]
    t = np.arange(late.shape[1]) - (late.shape[1] - 1) / 2
    return np.asarray(late @ t / max(np.sum(t**2), 0.5), np.float64)


def late_change(curves: Floats) -> Floats:
    """Change of a curve over the last half of its generations, at its slope there, per seed."""
    return np.asarray(late_slopes(curves) * curves.shape[1] / 2, np.float64)


def describe_late_change(change: Interval, margin: float, generations: int) -> str:
    """The statement on the rise of a risk that `generations` generations allow without a model of it, with its numbers."""
    if change.low is None or change.high is None or change.estimate is None:
        return f"may or may not still rise at generation {generations}: the seeds give no interval"
    statement = "has levelled off by" if change.low >= -margin else "no longer rises at"
    if change.high > margin:
        statement = "still rises at" if change.low > margin else "may or may not still rise at"
    limits = f"{change.estimate:.3g} [{change.low:.3g}, {change.high:.3g}]"
    return f"{statement} generation {generations}: change over the last half {limits}, margin {margin:.3g}"


def describe_trend(curves: Floats, scale: float) -> str:
    """Whether a risk still rises at the last generation, and the form of its curve so far. Later generations are not known."""
    generations, margin = curves.shape[1], FLAT_TOLERANCE * scale
    statement = describe_late_change(mean_interval(late_change(curves)), margin, generations)
    if generations < MIN_GENERATIONS:
        return f"{statement}."
    trend = fit_trend(curves, margin)
    form = "closest of five forms so far" if trend.kind else "the form so far is not decided"
    return f"{statement}; {form}: {trend.reason}."


def fit_trend(curves: Floats, margin: float, min_weight: float = 0.9) -> Trend:
    """The trend of the mean over seeds of (seeds, generations) curves, decided if its weight is at least `min_weight`.

    Least squares weighted by the variance over seeds, compared by QAIC weights (Burnham and Anderson 2002, sections 2.5 and
    2.9), so that a lucky run of correlated generations does not count as a trend. It must have the weight without the last
    quarter of the generations too. Every other form contains the constant, which therefore never has all the weight: it is
    decided if it has the largest one and the change from the first to the last generation is within `margin`. Undecided if no
    form fits (F test at 0.001). Generations from the first end of a chain on are left out.
    """
    complete = before_first_end(curves)
    seeds, generations = complete.shape
    if seeds < 2 or generations < MIN_GENERATIONS:
        return Trend(None, f"{seeds} seeds x {generations} generations; a trend needs 2 x {MIN_GENERATIONS}")
    if np.ptp(complete[:, 0]) == 0:
        complete = complete[:, 1:]  # all chains have the same first fit, as on a table: it gives no spread over seeds
    whole, early = (_fit_trend(complete[:, :t], margin, min_weight) for t in (generations, 3 * generations // 4))
    if whole.kind == early.kind or whole.kind is None:
        return whole
    return Trend(None, f"{whole.reason}, but {early.reason} without the last quarter of the generations")


def _fit_trend(curves: Floats, margin: float, min_weight: float) -> Trend:
    from scipy.special import fdtrc

    seeds, generations = curves.shape
    whiten = _whitening_matrix(curves)
    if whiten is None:
        return Trend(None, "the seeds do not differ")
    mean = curves.mean(axis=0)
    misfits = {kind: min(_misfit(form, mean, whiten) for form in _FORMS if form.kind == kind) for kind in TRENDS}
    freedom = generations - max(_N_PARAMETERS.values())
    dispersion = min(misfits.values()) / freedom
    if not fdtrc(freedom, seeds - 1, dispersion) > MIN_PLAUSIBILITY:
        return Trend(None, "no trend fits the curve")
    scores = np.array([misfits[kind] / max(dispersion, 1) + 2 * _N_PARAMETERS[kind] for kind in TRENDS])
    raw = np.exp(-(scores - scores.min()) / 2)
    kind, weight = TRENDS[int(raw.argmax())], float((raw / raw.sum()).max())
    change = mean_interval(curves[:, -1] - curves[:, 0])
    is_flat = change.low is not None and change.high is not None and -margin <= change.low <= change.high <= margin
    decided = is_flat if kind == "constant" else weight >= min_weight
    return Trend(kind if decided else None, f"{kind} has weight {weight:.2f}")


def inflection_point(curves: Floats) -> Interval | None:
    """The generation with the lowest mean, if the curve falls to it and rises after it; None otherwise.

    Paired by seed, with Bonferroni's correction over generations: one generation at least must lie below both the first
    and the last. The limits enclose every generation that does not lie above the lowest. One seed gives an estimate
    without limits. None if a chain has ended, because the last generation is then undefined.
    """
    seeds, generations = curves.shape
    lowest = int(curves.mean(axis=0).argmin())
    if np.isnan(curves).any() or lowest in (0, generations - 1):
        return None
    if seeds < 2:
        return Interval(float(lowest + 1), None, None, seeds)

    def above(a: Floats, b: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        differences = paired_difference(a, b, 1 - (1 - answer_level()) / generations)
        return np.array([d.low is not None and d.low > 0 for d in differences])

    first, last, low = (np.broadcast_to(curves[:, [i]], curves.shape) for i in (0, generations - 1, lowest))
    if not (above(first, curves) & above(last, curves)).any():
        return None
    candidates = np.flatnonzero(~above(curves, low)) + 1
    return Interval(float(lowest + 1), float(candidates[0]), float(candidates[-1]), seeds)


def rise_after_minimum(curves: Floats) -> Interval:
    """Rise of the mean from its lowest generation to the last, paired by seed.

    The lowest generation is chosen from the same curves, so the limits have Bonferroni's correction over generations:
    they hold for any choice.
    """
    generations, lowest = curves.shape[1], int(curves.mean(axis=0).argmin())
    return mean_interval(curves[:, -1] - curves[:, lowest], 1 - (1 - answer_level()) / generations)


def _misfit(form: _Form, mean: Floats, whiten: Floats) -> float:
    """Squared whitened residuals of least squares, chi-square distributed if the form is right.

    The rate is searched on a grid that is refined around the best value.
    """
    t, (low, high) = np.arange(1.0, len(mean) + 1), form.rates(len(mean) - 1.0)
    for _ in range(4):
        rates = np.geomspace(low, high, 100)
        shapes = np.atleast_2d(form.shape(t, rates[:, None]))
        columns = np.vstack([t**0, mean, shapes / np.abs(shapes).max(axis=1, keepdims=True)]) @ whiten.T
        size = np.linalg.norm(columns[0])
        constant = columns[0] / size
        target, *rest = columns[1:] - np.outer(columns[1:] @ constant, constant)
        directions = np.array(rest) / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-9 * size)
        misfits = np.sum((target - (directions @ target)[:, None] * directions) ** 2, axis=1)
        best = int(np.argmin(misfits))
        low, high = rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)]
    return float(misfits[best])


def _whitening_matrix(curves: Floats) -> Floats | None:
    """Matrix that maps the mean curve to uncorrelated numbers with variance 1; None if the seeds do not differ.

    Chains are nearly random walks: their increments are nearly uncorrelated. Those after generation 1 get one variance, the
    median of their variances, so that fewer seeds than generations suffice.
    """
    seeds, generations = curves.shape
    differences = np.eye(generations) - np.eye(generations, k=-1)
    variance = np.var(curves @ differences.T, axis=0, ddof=1)
    variance[1:] = np.median(variance[1:])
    if not (variance > 1e-24 * np.max(np.abs(curves)) ** 2).all():
        return None
    return np.asarray(differences / np.sqrt(variance / seeds)[:, None], np.float64)
