import numpy as np
import pytest

from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.sources.distributions import LinearSource
from selfloop.sources.distributions import ZipfSource

CONTEXT = Context(RandomStream(("seed", 3)))
SOURCES = [GaussianSource(dim=2, variance=4.0), ZipfSource(), LinearSource(dim=3, covariance="decay"), LinearSource(dim=3, design="fresh")]


@pytest.mark.parametrize("source", SOURCES, ids=repr)
@pytest.mark.parametrize(("first", "n"), [(0, 10), (5, 5), (250, 20), (256, 256), (511, 700), (7, 0)])
def test_rows_do_not_depend_on_how_they_are_cut_into_calls(source, first, n):
    whole, part = source.draw(0, 1300, CONTEXT), source.draw(first, n, CONTEXT)
    for name, field in source.schema().items():
        np.testing.assert_array_equal(part[name], whole[name][first : first + n])
        assert (part[name].dtype, part[name].shape) == (np.dtype(field.dtype), (n, *field.shape))


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_seeds_and_rows_differ(source):
    rows, other = source.draw(0, 1000, CONTEXT), source.draw(0, 1000, Context(RandomStream(("seed", 4))))
    for name in rows:
        assert not np.array_equal(rows[name], other[name])
        assert not np.array_equal(rows[name][:256], rows[name][256:512])


def test_normal_rows_have_the_stated_moments():
    source = GaussianSource(dim=2, variance=4.0)
    x, truth = source.draw(0, 100_000, CONTEXT)["x"], source.truth(CONTEXT)
    assert np.abs(x.mean(0) - truth["mean"]).max() < 4 * 2 / np.sqrt(1e5)
    np.testing.assert_allclose(np.cov(x.T), truth["covariance"], atol=4 * 4 * np.sqrt(2 / 1e5))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_symbols_have_zipf_s_frequencies(exponent):
    source = ZipfSource(n_symbols=7, exponent=exponent)
    p = source.truth(CONTEXT)["probabilities"]
    np.testing.assert_allclose(p / p[0], np.arange(1, 8.0) ** -exponent)
    counts = np.bincount(source.draw(0, 100_000, CONTEXT)["symbol"], minlength=7)
    assert np.abs((counts - 1e5 * p) / np.sqrt(1e5 * p * (1 - p))).max() < 4


def test_labels_have_the_stated_law():
    source = LinearSource(dim=3, noise=2.0, covariance=(0.5, 1.0, 4.0))
    rows, truth = source.draw(0, 100_000, CONTEXT), source.truth(CONTEXT)
    np.testing.assert_allclose(rows["x"].var(0), truth["variances"], rtol=4 * np.sqrt(2 / 1e5))
    residuals = rows["y"] - rows["x"] @ truth["coefficients"]
    assert abs(residuals.std() / 2 - 1) < 4 / np.sqrt(2e5)
    assert np.abs(residuals @ rows["x"]).max() < 4 * 2 * np.sqrt(4e5)


def test_a_fixed_design_repeats_the_initial_inputs_with_fresh_labels():
    source = LinearSource(dim=3)
    initial = source.draw(0, 10, CONTEXT)
    assert source.draw_inputs(10, initial, CONTEXT)["x"] is initial["x"]
    given = source.draw_inputs(25, initial, CONTEXT)
    np.testing.assert_array_equal(given["x"], initial["x"][np.arange(25) % 10])
    np.testing.assert_array_equal(source.relabel({"x": initial["x"]}, 0, CONTEXT)["y"], initial["y"])
    again = source.relabel({"x": initial["x"]}, 10, CONTEXT)["y"]
    assert np.abs(again - initial["y"]).min() > 0


def test_a_fresh_design_gives_new_inputs():
    source = LinearSource(dim=3, design="fresh")
    initial = source.draw(0, 10, CONTEXT)
    given = [source.draw_inputs(10, initial, CONTEXT.child("given", t))["x"] for t in (1, 2)]
    assert not np.array_equal(given[0], given[1])
    assert not np.array_equal(given[0], initial["x"])


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (lambda: GaussianSource(dim=0), "dim"),
        (lambda: GaussianSource(variance=0), "variance"),
        (lambda: ZipfSource(n_symbols=0), "size"),
        (lambda: ZipfSource(exponent=float("inf")), "exponent"),
        (lambda: LinearSource(dim=0), "dim"),
        (lambda: LinearSource(noise=-1), "noise"),
        (lambda: LinearSource(design="random"), "design"),
        (lambda: LinearSource(covariance="wishart"), "covariance"),
        (lambda: LinearSource(dim=2, covariance=(1.0, 2.0, 3.0)), "covariance"),
        (lambda: LinearSource(covariance=-1.0), "covariance"),
    ],
)
def test_impossible_settings_are_refused(wrong, key):
    with pytest.raises(SpecError, match=rf"source\.{key}: got .*; expected"):
        wrong()
