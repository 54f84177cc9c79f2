"""Sources with a known distribution: rows follow it, and do not depend on how draws are split into calls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource, LinearSource, LogisticSource, ZipfSource

CTX = Context(RandomStream(("seed", 3)))
SOURCES = [
    GaussianSource(dim=2, variance=4.0), ZipfSource(), LinearSource(dim=3, covariance="decay"),
    LinearSource(dim=3, design="fresh"), LogisticSource(), LogisticSource(link="log"),
]  # fmt: skip


@given(source=st.sampled_from(SOURCES), first=st.integers(0, 400), n=st.integers(0, 400))
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_how_draws_are_split_into_calls(source, first, n):
    whole, part = source.draw(0, 800, CTX), source.draw(first, n, CTX)
    for name, column_type in source.schema().items():
        np.testing.assert_array_equal(part[name], whole[name][first : first + n])
        assert (part[name].dtype, part[name].shape) == (np.dtype(column_type.dtype), (n, *column_type.shape))


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_seeds_and_blocks_of_rows_differ(source):
    rows, other = source.draw(0, 512, CTX), source.draw(0, 512, Context(RandomStream(("seed", 4))))
    for name in rows:
        assert not np.array_equal(rows[name], other[name])
        assert not np.array_equal(rows[name][:256], rows[name][256:])


def test_normal_rows_have_the_stated_moments():
    source = GaussianSource(dim=2, variance=4.0)
    x, truth = source.draw(0, 100_000, CTX)["x"], source.truth(CTX)
    assert np.abs(x.mean(0) - truth["mean"]).max() < 4 * 2 / np.sqrt(1e5)
    np.testing.assert_allclose(np.cov(x.T), truth["covariance"], atol=4 * 4 * np.sqrt(2 / 1e5))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_symbols_have_the_frequencies_of_zipf(exponent):
    source = ZipfSource(n_symbols=7, exponent=exponent)
    p = source.truth(CTX)["probabilities"]
    np.testing.assert_allclose(p / p[0], np.arange(1, 8.0) ** -exponent)
    counts = np.bincount(source.draw(0, 100_000, CTX)["symbol"], minlength=7)
    assert np.abs((counts - 1e5 * p) / np.sqrt(1e5 * p * (1 - p))).max() < 4


def test_linear_outcomes_have_the_stated_distribution():
    source = LinearSource(dim=3, noise=2.0, covariance=(0.5, 1.0, 4.0))
    rows, truth = source.draw(0, 100_000, CTX), source.truth(CTX)
    np.testing.assert_allclose(rows["x"].var(0), truth["variances"], rtol=4 * np.sqrt(2 / 1e5))
    residuals = rows["y"] - rows["x"] @ truth["coefficients"]
    assert abs(residuals.std() / 2 - 1) < 4 / np.sqrt(2e5)
    assert np.abs(residuals @ rows["x"]).max() < 4 * 2 * np.sqrt(4e5)


@pytest.mark.parametrize("link", ["logit", "log"])
def test_logistic_and_poisson_outcomes_follow_the_true_coefficients(link):
    source = LogisticSource(dim=3, link=link)
    rows = source.draw(0, 20_000, CTX)
    x, y, again = rows["x"], rows["y"], source.relabel({"x": rows["x"]}, 500, CTX)["y"]
    linear = x @ source.truth(CTX)["coefficients"]
    mean = 1 / (1 + np.exp(-linear)) if link == "logit" else np.exp(linear)
    variance = mean * (1 - mean) if link == "logit" else mean
    for outcomes in (y, again):
        z = ((outcomes - mean)[:, None] * x).sum(axis=0) / np.sqrt((variance[:, None] * x**2).sum(axis=0))
        assert (np.abs(z) < 4).all()
    assert not np.array_equal(y, again)


@pytest.mark.parametrize("source", [LinearSource, LogisticSource])
def test_a_fixed_design_repeats_the_initial_inputs_and_a_fresh_design_does_not(source):
    initial = source(dim=3).draw(0, 10, CTX)
    assert source(dim=3).draw_inputs(10, initial, CTX)["x"] is initial["x"]
    repeated = source(dim=3).draw_inputs(25, initial, CTX)["x"]
    np.testing.assert_array_equal(repeated, initial["x"][np.arange(25) % 10])
    fresh = [source(dim=3, design="fresh").draw_inputs(10, initial, CTX.child("t", t))["x"] for t in (1, 2)]
    assert fresh[0].shape == (10, 3)
    assert not np.array_equal(fresh[0], fresh[1])
    assert not np.array_equal(fresh[0], initial["x"])


def test_outcomes_of_later_rows_of_a_fixed_design_are_fresh():
    source = LinearSource(dim=3)
    initial = source.draw(0, 10, CTX)
    np.testing.assert_array_equal(source.relabel({"x": initial["x"]}, 0, CTX)["y"], initial["y"])
    assert np.abs(source.relabel({"x": initial["x"]}, 10, CTX)["y"] - initial["y"]).min() > 0


@pytest.mark.parametrize("covariance", ["wishart", (1.0, 2.0, 3.0), (1.0, 0.0), -1.0])
def test_covariances_of_wrong_length_or_sign_are_errors(covariance):
    with pytest.raises(SpecError, match=r"^covariance: got .*; expected"):
        LinearSource(dim=2, covariance=covariance)
