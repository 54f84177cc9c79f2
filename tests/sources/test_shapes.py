"""Shapes against scikit-learn's, and streams of rows that do not depend on how they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_circles, make_moons, make_swiss_roll

from selfloop.component import Context, Source
from selfloop.errors import SpecError
from selfloop.rng import RandomStream
from selfloop.sources.distributions import LogisticSource
from selfloop.sources.shapes import BLOB_CENTERS
from selfloop.sources.shapes import Blobs
from selfloop.sources.shapes import Circles
from selfloop.sources.shapes import Moons
from selfloop.sources.shapes import SwissRoll
from selfloop.types import Floats

SOURCES = [Blobs(), Circles(), Moons(), Moons(group_size=0), Moons(first_group_size=7, group_size=10), SwissRoll(), LogisticSource(), LogisticSource(link="log")]


def context(seed: int) -> Context:
    return Context(RandomStream(("seed", seed, "source")))


def draw(source: Source, first: int, n: int, seed: int = 0) -> Floats:
    return np.asarray(source.draw(first, n, context(seed))["x"], np.float64)


@given(source=st.sampled_from(SOURCES), first=st.integers(0, 700), n=st.integers(0, 700), cut=st.integers(0, 700))
@settings(max_examples=60, deadline=None)
def test_rows_do_not_depend_on_how_they_are_cut_into_calls(source: Source, first: int, n: int, cut: int) -> None:
    whole = source.draw(first, n, context(1))
    cut = min(cut, n)
    for name, column in whole.items():
        parts = [np.asarray(source.draw(*piece, context(1))[name]) for piece in ((first, cut), (first + cut, n - cut))]
        assert np.array_equal(np.concatenate(parts), np.asarray(column))
        assert len(np.asarray(column)) == n


def sorted_rows(x: Floats) -> Floats:
    return x[np.lexsort(np.round(x, 9).T)]


@pytest.mark.parametrize("rows", [10, 11, 100, 500])
def test_a_group_is_one_scikit_learn_call(rows: int) -> None:
    moons = draw(Moons(noise=0, first_group_size=rows, group_size=rows), rows, rows)
    circles = draw(Circles(noise=0, first_group_size=rows, group_size=rows), 0, rows)
    if rows % 2 == 0:  # of an odd call scikit-learn gives the last point to the other curve
        assert sorted_rows(moons) == pytest.approx(sorted_rows(make_moons(rows)[0]), abs=1e-9)
        assert sorted_rows(circles) == pytest.approx(sorted_rows(make_circles(rows, factor=0.8)[0]), abs=1e-9)
    assert not np.array_equal(moons, draw(Moons(noise=0, first_group_size=rows, group_size=rows), 0, rows))  # shuffled afresh


@pytest.mark.parametrize("group", [0, 100])
def test_noise_is_the_standard_deviation_around_the_curve(group: int) -> None:
    x = draw(Circles(group_size=group), 0, 20_000)
    radius = np.hypot(*x.T)  # of a mixture: 0.8 and 1 with equal weight, each with the noise
    assert radius.std() == pytest.approx(np.hypot(0.1, 0.05), rel=0.03)
    blobs = draw(Blobs(group_size=group), 0, 20_000)
    nearest = np.linalg.norm(blobs[:, None] - BLOB_CENTERS, axis=2).argmin(axis=1)
    assert np.bincount(nearest) / 20_000 == pytest.approx(np.full(3, 1 / 3), abs=0.015)
    assert (blobs - CENTRES[nearest]).std() == pytest.approx(1.0, rel=0.03)


def test_the_swiss_roll_has_scikit_learns_moments() -> None:
    ours, theirs = draw(SwissRoll(), 0, 20_000), make_swiss_roll(20_000, noise=0.05, random_state=0)[0]
    error = theirs.std(axis=0) * np.sqrt(2 / 20_000)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error < 4).all()
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.03)


def test_seeds_differ_in_their_rows_and_share_the_centres() -> None:
    a, b = draw(Blobs(), 0, 3000, seed=0), draw(Blobs(), 0, 3000, seed=1)
    assert not np.array_equal(a, b)
    assert a.mean(axis=0) == pytest.approx(b.mean(axis=0), abs=0.5)


def test_outcomes_follow_the_true_coefficients_and_can_be_drawn_anew() -> None:
    for link in ("logit", "log"):
        source = LogisticSource(dim=3, link=link)
        rows = source.draw(0, 20_000, context(0))
        x, y = np.asarray(rows["x"]), np.asarray(rows["y"])
        linear = x @ np.asarray(source.truth(context(0))["coefficients"])
        mean = 1 / (1 + np.exp(-linear)) if link == "logit" else np.exp(linear)
        spread = mean * (1 - mean) if link == "logit" else mean
        for outcomes in (y, np.asarray(source.relabel({"x": x}, 500, context(0))["y"])):
            z = ((outcomes - mean)[:, None] * x).sum(axis=0) / np.sqrt((spread[:, None] * x**2).sum(axis=0))
            assert (np.abs(z) < 4).all()
        assert not np.array_equal(y, np.asarray(source.relabel({"x": x}, 500, context(0))["y"]))


def test_a_fixed_design_repeats_the_initial_inputs_and_a_fresh_one_does_not() -> None:
    initial = LogisticSource().draw(0, 4, context(0))
    x = np.asarray(initial["x"])
    repeated = np.asarray(LogisticSource().given(6, initial, context(0).child("given", 2))["x"])
    assert np.array_equal(repeated, x[[0, 1, 2, 3, 0, 1]])
    fresh = np.asarray(LogisticSource(design="fresh").given(4, initial, context(0).child("given", 2))["x"])
    assert fresh.shape == (4, 5)
    assert not np.array_equal(fresh, x)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Moons(noise=-1), "source.noise: got -1"),
        (lambda: Blobs(group_size=-5), "source.group: got -5"),
        (lambda: Circles(first_group_size=-5), "source.head: got -5"),
        (lambda: Circles(factor=1.5), "source.factor: got 1.5"),
        (lambda: SwissRoll(noise=float("nan")), "source.noise: got nan"),
        (lambda: LogisticSource(dim=0), "source.dim: got 0"),
        (lambda: LogisticSource(link="probit"), "source.link: got 'probit'"),
        (lambda: LogisticSource(design="new"), "source.design: got 'new'"),
        (lambda: LogisticSource(coefficient_norm=-1), "source.norm: got -1"),
    ],
)
def test_impossible_settings_are_refused(make: object, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        make()  # type: ignore[operator]
