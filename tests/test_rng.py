"""A stream's numbers are a function of its path alone."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from selfloop.rng import SPLITMIX_STEP, RandomStream, splitmix64

parts = st.one_of(st.text(alphabet="ab/:1 'ü", max_size=4), st.integers(-3, 300))
paths = st.lists(parts, max_size=4).map(tuple)


@given(paths, paths)
def test_different_paths_give_different_numbers(a: tuple[str | int, ...], b: tuple[str | int, ...]) -> None:
    assume(a != b)
    assert RandomStream(a).integer() != RandomStream(b).integer()
    assert RandomStream(a).generator().random() != RandomStream(b).generator().random()


def test_names_that_look_like_two_parts_are_one_part() -> None:
    tricky = [("a", "b"), ("a/str:b",), ("a//str:b",), ("a/", "b"), ("a", "/b"), ("1",), (1,), ("int:1",), ()]
    assert len({RandomStream(path).integer() for path in tricky}) == len(tricky)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert RandomStream(("step", np.int64(3))).integer() == RandomStream(("step", 3)).integer()  # type: ignore[arg-type]


@given(paths, parts)
def test_a_child_is_the_longer_path_and_leaves_its_parent_alone(path: tuple[str | int, ...], name: str | int) -> None:
    stream = RandomStream(path)
    before = stream.generator().random(3)
    child = stream.child(name)
    child.generator().random(100)
    assert child == RandomStream((*path, name))
    assert np.array_equal(stream.generator().random(3), before)


def test_a_stream_gives_the_same_numbers_for_ever() -> None:  # golden: another digest means other numbers in every store
    stream = RandomStream(("seed", 0)).child("fit", 2)
    assert stream.integer() == 4252083898747390268
    assert stream.generator().integers(2**32) == 1283107555


def test_siblings_are_uncorrelated() -> None:
    draws = np.array([RandomStream(("seed", s)).generator().standard_normal(1000) for s in range(30)])
    z = (draws @ draws.T / np.sqrt(1000))[np.triu_indices(30, 1)]
    assert np.abs(z).max() < 4.5  # the largest of 435
    same = np.array([RandomStream(("seed", 0)).generator().standard_normal(1000) for _ in range(2)])
    assert abs(same[0] @ same[1] / np.sqrt(1000)) > 4.5  # the test would notice equal streams


def test_splitmix64_has_the_published_first_numbers_of_a_seed() -> None:
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * SPLITMIX_STEP
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
