"""Mixtures of normal distributions, fitted by expectation maximization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
from annotated_types import Ge, Gt

from selfloop.columns import Columns, Floats, Params
from selfloop.component import Context, Sampler
from selfloop.families.ensemble import EnsembleFamily, row_counts
from selfloop.families.trivial import normal_nll
from selfloop.protocols import EnsembleFit, SeedStreams
from selfloop.snapshots import EnsembleTake

N_CANDIDATES = 32  # rows of which the first centers are chosen
CHUNK_NUMBERS = 1 << 23  # of an array of seeds x rows x candidates
UNSEEN_SHARE = 1e-12  # of the rows, at their center: each component has them in addition to its own
MIN_SCALE = 1e-75  # standard deviation of constant rows


@dataclass(frozen=True, kw_only=True)
class Gmm(EnsembleFamily):
    """A mixture of normal distributions, by expectation maximization (Dempster, Laird and Rubin 1977).

    The fit is a function of the rows alone: first centers are rows, each the one of 32 evenly spaced rows that most lowers the
    sum of squared distances to the nearest center. Without `regularization` the likelihood would have no upper bound, because
    a component may shrink to a row. Arrays: weights (seeds, components), means (.., d) and covariances (.., d, d).
    """

    name: ClassVar[str] = "gmm"
    required_columns: ClassVar[tuple[str, ...]] = ("x",)
    default_metrics: ClassVar[tuple[str, ...]] = ("nll",)
    trivial_model: ClassVar[str] = "a normal distribution of each column"
    components: Annotated[int, Ge(1), "number of normal distributions"] = 3
    covariance: Annotated[Literal["full", "diag", "spherical"], "any, diagonal, or one variance for all columns"] = "full"
    iterations: Annotated[int, Ge(1), "largest number of steps"] = 100
    tolerance: Annotated[float, Ge(0), "gain in log density per row, in nats, at which a fit stops"] = 1e-3
    regularization: Annotated[float, Gt(0), "added to all variances, in mean variances of a column"] = 1e-6

    def fit_rows(self, takes: Sequence[EnsembleTake], previous: Params | None) -> EnsembleFit:
        columns = [np.asarray(take.rows["x"], np.float64) for take in takes]
        counts = [take.weights() if take.indices is None else cast(Floats, row_counts(take)) for take in takes]
        x, mass = np.concatenate(columns, 1), np.concatenate([t.weight * c for t, c in zip(takes, counts, strict=True)], 1)
        mass = mass / mass.sum(1, keepdims=True)
        size = max(1, CHUNK_NUMBERS // (x.shape[1] * N_CANDIDATES))
        chunks = [self._fit_seeds(x[i : i + size], mass[i : i + size]) for i in range(0, len(x), size)]
        return EnsembleFit({name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})

    def sample_rows(self, params: Params, n: int, sampler: Sampler, inputs: Columns, streams: SeedStreams) -> Columns:
        weights, means, covariances = (cast(Floats, params[name]) for name in ("weights", "means", "covariances"))
        roots, x = np.linalg.cholesky(covariances), np.empty((len(streams), n, means.shape[2]))
        for s, stream in enumerate(streams):
            rng, edges = stream.generator(), np.cumsum(weights[s])
            component = np.searchsorted(edges[:-1] / edges[-1], rng.random(n), side="right")
            noise = rng.standard_normal((n, means.shape[2]))
            x[s] = means[s, component] + (roots[s, component] @ noise[..., None])[..., 0]
        return {"x": x}

    def log_prob(self, params: Params, rows: Columns) -> Floats:
        one = {name: np.asarray(array, np.float64)[None] for name, array in params.items()}
        return cast(Floats, np.logaddexp.reduce(_log_joint(np.asarray(rows["x"], np.float64)[None], one), axis=2)[0])

    def trivial_risk(self, metric: str, initial: Columns, holdout: Columns, truth: Params, ctx: Context) -> float | None:
        return normal_nll(initial["x"], holdout["x"], truth) if metric == "nll" else None

    def _fit_seeds(self, x: Floats, mass: Floats) -> dict[str, Floats]:
        """Models of some seeds, in coordinates of mean 0 and mean variance 1. A seed whose density does not grow stops."""
        center = mass[:, None] @ x
        variance = (mass[:, None] @ np.square(x - center)).mean(2, keepdims=True)
        scale = np.maximum(np.sqrt(variance), MIN_SCALE)
        z, mass = (x - center) / scale, mass[..., None]
        params = self._maximize(z, mass * _first_components(z, mass[..., 0], self.components))
        density, active = np.full(len(z), -np.inf), np.arange(len(z))
        for _ in range(self.iterations):
            joint = _log_joint(z[active], {name: array[active] for name, array in params.items()})
            of_row = np.logaddexp.reduce(joint, axis=2, keepdims=True)
            new = (mass[active].mT @ of_row)[:, 0, 0]
            grows = new - density[active] > self.tolerance
            density[active] = new
            active, joint, of_row = active[grows], joint[grows], of_row[grows]
            if not len(active):
                break
            for name, array in self._maximize(z[active], mass[active] * np.exp(joint - of_row)).items():
                params[name][active] = array
        means, covariances = params["means"] * scale + center, params["covariances"] * scale[..., None] ** 2
        return {"weights": params["weights"], "means": means, "covariances": covariances}

    def _maximize(self, z: Floats, shares: Floats) -> dict[str, Floats]:
        """The components with these shares of the rows, (seeds, rows, components)."""
        weights, identity = (shares.mT @ np.ones((z.shape[1], 1)))[..., 0], np.eye(z.shape[2])
        own, means = weights + UNSEEN_SHARE, shares.mT @ z
        means /= own[..., None]
        covariances = np.empty((*means.shape, z.shape[2]))
        for k in range(self.components):
            offsets = np.sqrt(shares[:, :, k, None]) * (z - means[:, k, None])
            covariances[:, k] = (offsets.mT @ offsets + UNSEEN_SHARE * identity) / own[:, k, None, None]
        if self.covariance != "full":
            covariances *= identity
        if self.covariance == "spherical":
            covariances[:] = np.trace(covariances, axis1=2, axis2=3)[..., None, None] / z.shape[2] * identity
        return {"weights": weights, "means": means, "covariances": covariances + self.regularization * identity}


def _log_joint(x: Floats, params: Params) -> Floats:
    """Log density of each row times the weight of each component, (seeds, rows, components)."""
    weights, means = cast(Floats, params["weights"]), cast(Floats, params["means"])
    roots = np.linalg.cholesky(cast(Floats, params["covariances"]))
    to_white = np.linalg.inv(roots).mT
    with np.errstate(divide="ignore"):
        constant = np.log(weights) - np.log(np.diagonal(roots, axis1=2, axis2=3)).sum(2) - x.shape[2] / 2 * np.log(2 * np.pi)
    white = [(x - means[:, k, None]) @ to_white[:, k] for k in range(means.shape[1])]
    return np.stack([constant[:, k, None] - np.vecdot(w, w) / 2 for k, w in enumerate(white)], axis=2)


def _first_components(z: Floats, mass: Floats, n_components: int) -> Floats:
    """1 for the nearest first center of each row, 0 for the others, (seeds, rows, components)."""
    goals = (np.arange(N_CANDIDATES) + 0.5) / N_CANDIDATES
    positions = np.stack([np.searchsorted(np.cumsum(of_seed), goals * of_seed.sum()) for of_seed in mass])
    candidates = z[np.arange(len(z))[:, None], positions]
    distances = np.vecdot(z, z)[..., None] + np.vecdot(candidates, candidates)[:, None] - 2 * z @ candidates.mT
    nearest, columns = np.full(mass.shape, np.inf), []
    for _ in range(n_components):
        costs = mass[:, None] @ np.minimum(distances, nearest[..., None])
        columns.append(np.take_along_axis(distances, costs.argmin(2)[..., None], axis=2))
        nearest = np.minimum(nearest, columns[-1][..., 0])
    return np.asarray(np.eye(n_components)[np.concatenate(columns, axis=2).argmin(2)])
