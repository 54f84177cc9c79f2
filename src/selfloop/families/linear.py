"""Linear regression with normal noise: least squares, ridge, minimum norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from selfloop.component import Sampler
from selfloop.errors import SpecError
from selfloop.families.ensemble import EnsembleFamily, added, multiplicity, shares
from selfloop.families.wishart import bartlett, split
from selfloop.protocols import EnsembleFit, EnsembleTake, SufficientStatistics
from selfloop.rng import RandomStream
from selfloop.types import Columns, Floats, Params

SINGULAR = 1e-12  # smallest share of a column's square that the columns before it must leave unexplained


@dataclass(frozen=True, kw_only=True)
class LinearSampler(Sampler):
    """Labels drawn from a fitted regression."""

    name: ClassVar[str] = "linear"
    noise: float | tuple[float, ...] | None = None  # standard deviation; entry t - 1 for rows of model t, the last one stays

    def __post_init__(self) -> None:
        levels = self.noise if isinstance(self.noise, tuple) else (0.0 if self.noise is None else self.noise,)
        if not levels or not all(level >= 0 for level in levels):
            raise SpecError(f"family.sampler.noise: got {self.noise}; expected standard deviations of 0 or more.")

    def for_generation(self, t: int, truth: Params) -> LinearSampler:
        """Noise left open is the source's, if known: what the laws assume. Otherwise it is the fit's own."""
        if isinstance(self.noise, tuple):
            return replace(self, noise=self.noise[min(t, len(self.noise)) - 1])
        if self.noise is None and "noise" in truth:
            return replace(self, noise=float(np.ravel(truth["noise"])[0]))  # a setting of the source: the same for all seeds
        return self

    def level(self, fitted: Floats) -> Floats:
        """Standard deviation of the noise of each seed."""
        if isinstance(self.noise, tuple):
            raise SpecError("family.sampler.noise: one number per generation; choose a generation's with `at(t, truth)`.")
        return fitted if self.noise is None else np.full_like(fitted, self.noise)


@dataclass(frozen=True, kw_only=True)
class Linear(EnsembleFamily):
    """Coefficients that minimise the weighted mean squared residual + ridge ||w||^2; of many, those of least norm.

    `ridge` scales with the pooled size: (X'X/N + ridge I) w = X'y/N. `noise` is the standard deviation of the residuals
    (divisor N - d); runs on statistics do not estimate it, their labels have the noise of the source's law.

    Statistics of a batch of n rows are the triangular `root` R with R'R = X'X/n and the `response` u with R'u = X'y/n:
    u = R w + noise z/sqrt(n), z standard normal. Batches on one fixed design share one `root` *object*, so they merge by
    averaging responses and a fit is one triangular solve: O(d^2), whatever n. Different roots merge into gram and moment.
    """

    name: ClassVar[str] = "linear"
    required_columns: ClassVar[tuple[str, ...]] = ("x", "y")
    default_metrics: ClassVar[tuple[str, ...]] = ("excess_risk",)
    sampler_class: ClassVar[type[Sampler]] = LinearSampler
    ridge: float = 0.0  # penalty per row, in squared units of x

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise SpecError(f"family.ridge: got {self.ridge}; expected a number of 0 or more.")

    def fit_rows(self, parts: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        sums = _sums(parts)
        moment, mass = sums["moment"], sums["mass"]
        penalty = self.ridge * mass
        w = self._solve(sums["gram"], moment, penalty)
        # at the solution w' gram w = w' moment - penalty |w|^2
        residual = np.maximum(sums["square"] - np.vecdot(w, moment) - penalty * np.vecdot(w, w), 0) / mass
        spread = sums["rows"] / np.maximum(sums["rows"] - w.shape[1], 1)
        return EnsembleFit({"coefficients": w, "noise": np.sqrt(residual * spread)})

    def sample_rows(
        self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: Sequence[RandomStream]
    ) -> Columns:
        x, w = cast(Floats, inputs["x"]), cast(Floats, params["coefficients"])
        level = cast(LinearSampler, sampler).level(cast(Floats, params["noise"]))
        noise = np.empty((len(w), n))
        for out, stream in zip(noise, streams, strict=True):
            stream.generator().standard_normal(out=out)
        return {**inputs, "y": (x @ w[..., None])[..., 0] + level[:, None] * noise}

    def merge(self, parts: Sequence[tuple[SufficientStatistics, float]]) -> SufficientStatistics:
        counts = [cast(Floats, stats["count"]) for stats, _ in parts]
        responses = [cast(Floats, stats["response"]) for stats, _ in parts]
        roots = [cast(Floats, stats["root"]) for stats, _ in parts]
        share = shares(counts, [weight for _, weight in parts])
        if all(root is roots[0] for root in roots):
            response = added([a[:, None] * each for a, each in zip(share, responses, strict=True)])
            return {"root": roots[0], "response": response, "count": added(counts)}
        gram = np.zeros((len(counts[0]), *[roots[0].shape[2]] * 2))
        for a, root in zip(share, roots, strict=True):
            gram += a[:, None, None] * (root.mT @ root)
        moments = [a[:, None] * (u[:, None] @ root)[:, 0] for a, u, root in zip(share, responses, roots, strict=True)]
        return {"gram": gram, "moment": added(moments), "count": added(counts)}

    def fit_statistics(self, statistics: SufficientStatistics) -> EnsembleFit:
        penalty = np.full(len(statistics["count"]), self.ridge)  # statistics are per row
        if "gram" in statistics:
            gram, moment = cast(Floats, statistics["gram"]), cast(Floats, statistics["moment"])
            return EnsembleFit({"coefficients": self._solve(gram, moment, penalty)})
        root, response = cast(Floats, statistics["root"]), cast(Floats, statistics["response"])
        if self.ridge:
            return EnsembleFit({"coefficients": self._solve(root.mT @ root, (response[:, None] @ root)[:, 0], penalty)})
        if root.shape[1] < root.shape[2]:  # fewer rows than coefficients: the least-norm solution R'(R R')^-1 u
            dual = np.linalg.solve(root @ root.mT, response[..., None])
            return EnsembleFit({"coefficients": (root.mT @ dual)[..., 0]})
        return EnsembleFit({"coefficients": _solve_triangular(root, response)})

    def draw_statistics(
        self,
        params: Params,
        n: int,
        sampler: Sampler,
        truth: Params,
        initial: SufficientStatistics | None,
        rng: np.random.Generator,
    ) -> SufficientStatistics:
        w, noise = cast(Floats, params["coefficients"]), cast(LinearSampler, sampler).level(cast(Floats, truth["noise"]))
        seeds, d = w.shape
        if initial is None:
            for_design, rng = split(rng)
            root = bartlett(n, d, seeds, for_design).mT * np.sqrt(cast(Floats, truth["variances"]) / n)[:, None]
            root = np.ascontiguousarray(root)
        elif np.any(n % initial["count"]):
            raise SpecError("linear: on a fixed design, statistics are of whole copies of it; this policy needs rows.")
        else:
            root = cast(Floats, initial["root"])
        response = (root @ w[..., None])[..., 0]
        response += noise[:, None] / np.sqrt(n) * rng.standard_normal(response.shape)
        return {"root": root, "response": response, "count": np.full(seeds, float(n))}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        """Log density of each row's y given its x, in nats."""
        x, y, noise = np.asarray(rows["x"]), np.asarray(rows["y"]), float(params["noise"])
        return np.asarray(-0.5 * ((y - x @ params["coefficients"]) / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi)))

    def _solve(self, gram: Floats, moment: Floats, penalty: Floats) -> Floats:
        """Solution of (gram + penalty I) w = moment of each seed; the one of least norm where that is singular."""
        if self.ridge:
            gram = gram + penalty[:, None, None] * np.eye(gram.shape[1])
        return np.stack([_solve_one(*each) for each in zip(gram, moment, strict=True)])


def _solve_one(gram: Floats, moment: Floats) -> Floats:
    from scipy.linalg.lapack import dposv  # 0.1 s to import, and runs on statistics of a fixed design do without

    root, w, failed = dposv(gram.T, moment)  # in the memory order that needs no transposing
    if failed or np.any(root.diagonal() ** 2 < SINGULAR * gram.diagonal()):
        return _least_norm(gram, moment)
    return np.asarray(w, np.float64)


def _least_norm(gram: Floats, moment: Floats) -> Floats:
    """Of all solutions of gram w = moment the shortest; columns may have any units."""
    scale = np.sqrt(gram.diagonal())
    scale = np.where(scale > 0, scale, 1)
    values, vectors = np.linalg.eigh(gram / scale / scale[:, None])  # rank is judged on columns of one length
    seen = values > SINGULAR * values[-1]
    w = vectors[:, seen] @ (vectors[:, seen].T @ (moment / scale) / values[seen]) / scale
    unseen = np.linalg.qr(vectors[:, ~seen] / scale[:, None]).Q
    return np.asarray(w - unseen @ (unseen.T @ w), np.float64)


def _solve_triangular(root: Floats, response: Floats) -> Floats:
    """w with root w = response for upper-triangular roots, all seeds at once: faster than a solver call per seed."""
    w = np.empty_like(response)
    for j in range(w.shape[1] - 1, -1, -1):
        w[:, j] = (response[:, j] - np.vecdot(root[:, j, j + 1 :], w[:, j + 1 :])) / root[:, j, j]
    return w


def _sums(parts: Sequence[EnsembleTake]) -> dict[str, Floats]:
    """Weighted sums over the training rows of x x', x y, y^2, 1, and the number of rows, per seed."""
    designs: dict[int, list[EnsembleTake]] = {}
    for part in parts:  # batches of a fixed design hold the same array of inputs
        designs.setdefault(id(part.rows["x"]), []).append(part)
    sums = [_sums_of_design(shared) for shared in designs.values()]
    return {key: added([each[key] for each in sums]) for key in sums[0]}


def _sums_of_design(parts: Sequence[EnsembleTake]) -> dict[str, Floats]:
    x = cast(Floats, parts[0].rows["x"])
    mass, labels = np.zeros((2, *x.shape[:2]))  # of each row of the design, over all batches
    square, rows = np.zeros((2, len(x)))
    for part in parts:
        y, taken = cast(Floats, part.rows["y"]), multiplicity(part)
        weighted = part.weight * y if taken is None else part.weight * taken * y
        mass += part.weight if taken is None else part.weight * taken
        labels += weighted
        square += np.vecdot(weighted, y)
        rows += y.shape[1] if taken is None else taken.sum(1)
    if all(part.indices is None for part in parts):
        gram, moment = mass[:, :1, None] * _whole_gram(parts[0]), (labels[:, None] @ x)[:, 0]
    else:
        gram, moment = _weighted_sums(x, mass, labels)
    return {"gram": gram, "moment": moment, "square": square, "mass": mass.sum(1), "rows": rows}


def _whole_gram(part: EnsembleTake) -> Floats:
    if "gram" not in part.cache:
        x = cast(Floats, part.rows["x"])
        part.cache["gram"] = x.mT @ x
    return cast(Floats, part.cache["gram"])


def _weighted_sums(x: Floats, mass: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """X' diag(mass) X and X' labels of each seed; rows that were not taken (a third of a subsample) cost nothing."""
    seeds, _, d = x.shape
    gram, moment = np.empty((seeds, d, d)), np.empty((seeds, d))
    buffer = np.empty(x.shape[1:])  # one for all seeds: fresh memory for each costs as much as filling it
    for s in range(seeds):
        once = np.flatnonzero(mass[s] == 1)  # first, as these need no scaling
        taken = np.concatenate([once, np.flatnonzero((mass[s] != 0) & (mass[s] != 1))])
        scale = np.sqrt(mass[s, taken])
        rows = x[s].take(taken, axis=0, out=buffer[: len(taken)], mode="clip")
        rows[len(once) :] *= scale[len(once) :, None]
        np.matmul(rows.T, rows, out=gram[s])
        np.matmul(labels[s, taken] / scale, rows, out=moment[s])
    return gram, moment
