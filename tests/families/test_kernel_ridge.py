"""Kernel ridge regression and random features: the fit itself, self-distillation, and the worlds they run in."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge as ReferenceKernelRidge
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

from law_checks import CONTEXT, curves, training_rows
from selfloop.columns import Floats
from selfloop.errors import DataError
from selfloop.families.kernel_ridge import KernelRidge, RandomFeatures
from selfloop.families.linear import Linear, LinearSampler
from selfloop.metrics.likelihood import Nll, SquaredError
from selfloop.policies.builtin import Accumulate, AccumulateSubsample, Replace
from selfloop.rng import RandomStream
from selfloop.snapshots import EnsembleTake
from selfloop.sources.distributions import LinearSource

RNG = np.random.default_rng(3)
X, Z = RNG.standard_normal((40, 3)), RNG.standard_normal((15, 3))
Y = np.sin(X[:, 0]) + 0.3 * RNG.standard_normal(40)


def predictions(family: KernelRidge | RandomFeatures | Linear, *takes: tuple[Floats, Floats, float]) -> Floats:
    rows = training_rows(*(({"x": x, "y": y}, None, weight) for x, y, weight in takes))
    return family.predict_mean(family.fit(rows, CONTEXT, None), {"x": Z})


def test_the_kernels_are_those_of_scikit_learn() -> None:
    np.testing.assert_allclose(KernelRidge(bandwidth=0.7).gram(X, Z), rbf_kernel(X, Z, gamma=1 / (2 * 0.49)), rtol=1e-12)
    laplace = KernelRidge(kernel="laplace", bandwidth=0.7)
    np.testing.assert_allclose(laplace.gram(X, Z), laplacian_kernel(X, Z, gamma=1 / 0.7), rtol=1e-12)


def test_a_fit_is_that_of_scikit_learn_with_weights_and_repeated_designs() -> None:
    family, more = KernelRidge(ridge=0.02), RNG.standard_normal(40)
    reference = ReferenceKernelRidge(alpha=0.02 * 40, kernel="rbf", gamma=0.5).fit(X, Y)
    np.testing.assert_allclose(predictions(family, (X, Y, 1.0)), reference.predict(Z), rtol=1e-9)
    np.testing.assert_allclose(predictions(family, (X, Y, 3.0)), reference.predict(Z), rtol=1e-9)
    weights, total = np.repeat([1.0, 2.0], 40), 120  # a design that repeats, and one that does not
    for x in (X, X + 0.1):
        takes = ((X, Y, 1.0), (x, more, 2.0))
        reference = ReferenceKernelRidge(alpha=0.02 * total, kernel="rbf", gamma=0.5)
        reference.fit(np.r_[X, x], np.r_[Y, more], sample_weight=weights)
        np.testing.assert_allclose(predictions(family, *takes), reference.predict(Z), rtol=1e-7)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_with_the_linear_kernel_it_is_linear_regression(ridge: float) -> None:
    x = np.concatenate([X, X])  # more rows than dimensions, and equal ones
    rows = training_rows(({"x": x, "y": np.r_[Y, 2 * Y]}, None, 1.0), ({"x": X, "y": Y}, np.arange(9), 0.5))
    kernel, linear = KernelRidge(kernel="linear", ridge=ridge), Linear(ridge=ridge)
    params, reference = (family.fit(rows, CONTEXT, None) for family in (kernel, linear))
    np.testing.assert_allclose(kernel.predict_mean(params, {"x": Z}), Z @ reference["coefficients"], rtol=1e-9)
    if not ridge:
        np.testing.assert_allclose(params["noise"], reference["noise"], rtol=1e-9)  # divisor N - d
    else:
        assert params["noise"] < reference["noise"]  # a fit with a ridge has fewer degrees of freedom than d


def test_without_a_ridge_it_interpolates() -> None:
    params = KernelRidge(bandwidth=0.3).fit(training_rows(({"x": X, "y": Y}, None, 1.0)), CONTEXT, None)
    np.testing.assert_allclose(KernelRidge(bandwidth=0.3).predict_mean(params, {"x": X}), Y, atol=1e-8)


def test_many_fourier_features_approach_the_kernel_and_wider_models_keep_their_first_features() -> None:
    kernel, errors = rbf_kernel(X, Z, gamma=0.5), []
    for width in (100, 10_000):
        family = RandomFeatures(width=width)
        errors.append(np.abs(family.map_inputs(X) @ family.map_inputs(Z).T - kernel).max())
    assert errors[1] < 0.06 < errors[0]
    few, many = (RandomFeatures(width=w, features="relu").map_inputs(X) * np.sqrt(w / 2) for w in (3, 8))
    np.testing.assert_allclose(few, many[:, :3])
    assert not np.allclose(RandomFeatures(features_seed=1).map_inputs(X), RandomFeatures().map_inputs(X))


def test_random_features_are_ridge_regression_on_features() -> None:
    family = RandomFeatures(width=20, features="relu", ridge=0.1)
    phi, more = family.map_inputs(X), RNG.standard_normal(40)
    gram, moment = 3 * phi.T @ phi + 0.1 * 120 * np.eye(20), phi.T @ (Y + 2 * more)
    expected = family.map_inputs(Z) @ np.linalg.solve(gram, moment)
    np.testing.assert_allclose(predictions(family, (X, Y, 1.0), (X, more, 2.0)), expected, rtol=1e-9)


@pytest.mark.parametrize("ridges", [(0.05,), (0.2, 0.01, 0.05)])
def test_self_distillation_shrinks_every_eigenvector_by_its_power(ridges: tuple[float, ...]) -> None:
    # Mobahi, Farajtabar, Bartlett 2020 (2002.05715): f_t = (K (K + c I)^-1)^t y, c = ridge N
    family, y, streams = KernelRidge(ridge=ridges), Y[None], [RandomStream(("noiseless",))]
    values, vectors = np.linalg.eigh(rbf_kernel(X, X, gamma=0.5))
    expected = vectors.T @ Y
    for t in range(1, 8):
        model = family.for_generation(t).fit_rows([EnsembleTake({"x": X[None], "y": y})], None).params
        y = family.sample_rows(model, 40, LinearSampler(labels="noiseless"), {"x": X[None]}, streams)["y"]
        expected = expected * values / (values + ridges[min(t, len(ridges)) - 1] * 40)
        assert np.abs(vectors.T @ y[0] - expected).max() < 1e-12
    constant = values**7 / (values + ridges[-1] * 40) ** 7 * (vectors.T @ Y)
    assert len(ridges) == 1 or np.abs(vectors.T @ y[0] - constant).max() > 1e-3


FAMILIES = [KernelRidge(ridge=0.01), RandomFeatures(width=8, ridge=0.01)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("policy", [Replace(), Accumulate(), AccumulateSubsample()], ids=lambda p: p.name)
@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_a_seed_does_not_depend_on_the_others(family, policy, design) -> None:
    options = {"n": 12, "generations": 4, "holdout": 20}
    source, metrics = LinearSource(dim=2, design=design), [SquaredError(), Nll()]
    many, few = (curves(source, family, policy, metrics, seeds=seeds, **options) for seeds in (range(5), (1, 3)))
    for name, values in many.items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values[[1, 3]], few[name])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_missing_outcomes_are_refused(family) -> None:
    with pytest.raises(DataError, match=f"{family.name}: got columns x; expected inputs 'x' and outcomes 'y'"):
        family.fit(training_rows(({"x": X}, None, 1.0)), CONTEXT, None)


@pytest.mark.parametrize("family", [KernelRidge(ridge=0.02), RandomFeatures(width=12, ridge=0.02)], ids=lambda f: f.name)
def test_weights_of_rows_act_as_numbers_of_rows(family) -> None:
    copies = np.arange(40) % 3
    weighted = EnsembleTake({"x": X[None], "y": Y[None]}, None, 1.0, row_weights=copies[None].astype(float))
    index = np.repeat(np.arange(40), copies)
    plain = EnsembleTake({"x": X[None], "y": Y[None]}, index[None])
    fits = [family.fit_rows([take], None).params for take in (weighted, plain, EnsembleTake({"x": X[None], "y": Y[None]}))]
    predicted, expected, unweighted = (family.predict_mean(params, {"x": Z[None]}) for params in fits)
    np.testing.assert_allclose(predicted, expected, rtol=1e-8)
    np.testing.assert_allclose(fits[0]["noise"], fits[1]["noise"], rtol=1e-8)
    assert np.abs(unweighted - expected).max() > 0.01


@pytest.mark.parametrize("family", [KernelRidge(), Linear(), RandomFeatures()])
def test_a_model_that_interpolates_its_rows_has_no_density(family: KernelRidge | Linear | RandomFeatures) -> None:
    few = {"x": RNG.standard_normal((2, 3)), "y": np.array([1.0, -2.0])}
    params = family.fit(training_rows((few, None, 1.0)), CONTEXT, None)
    held_out = {"x": Z, "y": np.ones(len(Z))}
    assert (family.log_prob(params, held_out) == -np.inf).all()  # and not that of a noise of rounding errors, 1e22 nats
    assert np.isfinite(family.log_prob({**params, "noise": np.float64(1e-6)}, held_out)).all()
