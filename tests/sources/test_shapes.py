"""Shapes compared with scikit-learn's, and streams of rows that do not depend on how draws are split into calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_circles, make_moons, make_swiss_roll

from selfloop.columns import Floats
from selfloop.component import Context, Source
from selfloop.rng import RandomStream
from selfloop.sources.shapes import BLOB_CENTERS, Blobs, Circles, Moons, SwissRoll

SOURCES = [Blobs(), Circles(), Moons(), Moons(first_group_size=7, group_size=10), SwissRoll()]


def draw(source: Source, first: int, n: int, seed: int = 0) -> Floats:
    return np.asarray(source.draw(first, n, Context(RandomStream(("seed", seed, "source"))))["x"], np.float64)


@given(source=st.sampled_from(SOURCES), first=st.integers(0, 700), n=st.integers(0, 700), cut=st.integers(0, 700))
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_how_draws_are_split_into_calls(source: Source, first: int, n: int, cut: int) -> None:
    cut, whole = min(cut, n), draw(source, first, n)
    assert len(whole) == n
    assert np.array_equal(np.concatenate([draw(source, first, cut), draw(source, first + cut, n - cut)]), whole)


def sorted_rows(x: Floats) -> Floats:
    return x[np.lexsort(np.round(x, 9).T)]


@pytest.mark.parametrize("rows", [10, 100])
def test_a_group_is_one_scikit_learn_call(rows: int) -> None:
    moons = draw(Moons(noise=0, first_group_size=rows, group_size=rows), rows, rows)
    circles = draw(Circles(noise=0, first_group_size=rows, group_size=rows), 0, rows)
    assert sorted_rows(moons) == pytest.approx(sorted_rows(make_moons(rows)[0]), abs=1e-9)
    assert sorted_rows(circles) == pytest.approx(sorted_rows(make_circles(rows, factor=0.8)[0]), abs=1e-9)
    # every group is shuffled on its own
    assert not np.array_equal(moons, draw(Moons(noise=0, first_group_size=rows, group_size=rows), 0, rows))


@pytest.mark.parametrize("group_size", [0, 100])
def test_noise_is_the_standard_deviation_around_the_curve(group_size: int) -> None:
    x = draw(Circles(group_size=group_size), 0, 20_000)
    radius = np.hypot(*x.T)  # a mixture of 0.8 and 1 with equal weights, both with noise
    assert radius.std() == pytest.approx(np.hypot(0.1, 0.05), rel=0.03)
    blobs = draw(Blobs(group_size=group_size), 0, 20_000)
    nearest = np.linalg.norm(blobs[:, None] - BLOB_CENTERS, axis=2).argmin(axis=1)
    assert np.bincount(nearest) / 20_000 == pytest.approx(np.full(3, 1 / 3), abs=0.015)
    assert (blobs - BLOB_CENTERS[nearest]).std() == pytest.approx(1.0, rel=0.03)


def test_the_swiss_roll_has_the_moments_of_scikit_learn() -> None:
    rows, expected = draw(SwissRoll(), 0, 20_000), make_swiss_roll(20_000, noise=0.05, random_state=0)[0]
    error = expected.std(axis=0) * np.sqrt(2 / 20_000)
    assert (np.abs(rows.mean(axis=0) - expected.mean(axis=0)) / error < 4).all()
    assert rows.std(axis=0) == pytest.approx(expected.std(axis=0), rel=0.03)


def test_seeds_have_different_rows_and_equal_centers() -> None:
    a, b = draw(Blobs(), 0, 3000, seed=0), draw(Blobs(), 0, 3000, seed=1)
    assert not np.array_equal(a, b)
    assert a.mean(axis=0) == pytest.approx(b.mean(axis=0), abs=0.5)
