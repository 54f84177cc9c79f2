"""What the curators of numbers keep, weight and move, on rows whose right answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from selfloop.columns import Columns, Floats, Ragged
from selfloop.component import Context
from selfloop.curator import Curator, CuratorView, Judged, Score
from selfloop.curators.edits import Corrector
from selfloop.curators.scores import Closeness, ColumnValue, LikelihoodScore, MetricValue
from selfloop.curators.selection import BestOf, ClassProbability, Deduplicate, Detector, EntropyChoice, TopShare, Verifier
from selfloop.errors import SettingError, SpecError
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.metrics.image_distances import PixelStd
from selfloop.metrics.text import TextLength
from selfloop.metrics.text_features import CorrectRate
from selfloop.metrics.true_parameters import MeanError, SecondMoment
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource, ZipfSource

CTX = Context(RandomStream(("selection",)))
X = ColumnValue(column="x")


def view(rows: Columns, initial: Columns | None = None, **fields: Any) -> CuratorView:
    n = len(next(iter(rows.values())))
    defaults: dict[str, Any] = {
        "generation": 1, "source": GaussianSource(), "family": Gaussian(), "sampler": GaussianSampler(),
        "params": {"mean": np.zeros(1), "covariance": np.eye(1)}, "previous": None,
        "initial": rows if initial is None else initial, "inputs": {}, "slots": np.arange(n),
        "synthetic": np.ones(n, bool), "prepared": {},
    }  # fmt: skip
    return CuratorView(**{**defaults, **fields})


def judge(curator: Curator, rows: Columns, initial: Columns | None = None, **fields: Any) -> Judged:
    prepared = curator.prepare(view(rows, initial, **fields).initial, rows, view(rows, initial, **fields), CTX)
    return curator.judge(rows, view(rows, initial, prepared=prepared, **fields), CTX)


def column(*values: float) -> Columns:
    return {"x": np.array(values, np.float64)[:, None]}


def test_a_verifier_keeps_good_and_bad_rows_with_their_probabilities() -> None:
    rows = column(*np.repeat([-1.0, 1.0], 20_000))
    keep = judge(Verifier(score=X, keep_good=0.8, keep_bad=0.3), rows).keep
    for part, chance in ((keep[:20_000], 0.3), (keep[20_000:], 0.8)):
        assert abs(part.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / 20_000)
    assert judge(Verifier(score=X, threshold=1.0), rows).keep.tolist() == [False] * 20_000 + [True] * 20_000


def test_a_verifier_learns_its_threshold_from_the_best_initial_rows() -> None:
    initial = column(*range(100))
    keep = judge(Verifier(score=X, share=0.25), column(70.0, 74.0, 75.0, 1000.0), initial).keep
    assert keep.tolist() == [False, False, True, True]


@dataclass(frozen=True, kw_only=True)
class Noise(Score):
    """A random number per row."""

    name: ClassVar[str] = "noise"

    def score(self, rows: Columns, view: CuratorView, ctx: Context) -> Floats:
        return ctx.stream.generator().random(len(rows["x"]))


def test_a_score_and_its_curator_have_random_numbers_of_their_own() -> None:
    rows, n = column(*range(10_000)), 10_000
    keep = judge(Verifier(score=Noise(), threshold=0.5, keep_good=0.5, keep_bad=0.5), rows).keep
    scores = Noise().score(rows, view(rows), Context(CTX.stream.child("score")))
    assert abs(scores[keep].mean() - 0.5) < 4 / np.sqrt(12 * n / 2)


def test_a_threshold_of_initial_rows_needs_no_prompts() -> None:
    rows = {"tokens": Ragged(np.arange(6), np.array([0, 2, 3, 6]))}
    score = MetricValue(metric=TextLength())
    params = {"tokenizer/end": np.array(99), "tokenizer/start": np.array(99)}
    seen = view(rows, inputs={"prompt": Ragged(np.zeros(0, np.int64), np.zeros(1, np.int64))}, params=params)
    prepared = Verifier(score=score, share=0.5).prepare(rows, rows, seen, CTX)
    assert prepared["threshold"] == 2


def test_the_top_share_of_a_round_is_kept_and_at_least_one_row() -> None:
    rows = column(5, 1, 4, 2, 3)
    assert judge(TopShare(score=X, share=0.4), rows).keep.tolist() == [True, False, True, False, False]
    assert judge(TopShare(score=X, share=0.01), rows).keep.sum() == 1
    center = judge(TopShare(score=LikelihoodScore(), share=0.4), column(-3, 0.1, 2, -0.2, 1)).keep
    assert center.tolist() == [False, True, False, True, False]


def test_the_best_candidate_of_every_slot_is_kept() -> None:
    rows, slots = column(1, 5, 3, 2, 0, 4), np.array([0, 1, 2, 0, 1, 2])
    assert judge(BestOf(score=X), rows, slots=slots).keep.tolist() == [False, True, False, True, False, True]
    closest = judge(BestOf(score=Closeness(target=(1.0,))), rows, slots=slots).keep
    assert closest.tolist() == [True, False, True, False, True, False]


def test_a_choice_at_a_temperature_has_the_probabilities_of_bradley_and_terry() -> None:
    n = 40_000
    rows, slots = column(*np.tile([0.0, 1.0], n)), np.repeat(np.arange(n), 2)
    chance = 1 / (1 + np.exp(-1 / 0.5))
    share = judge(BestOf(score=X, temperature=0.5), rows, slots=slots).keep[1::2].mean()
    error = np.sqrt(chance * (1 - chance) / n)
    assert abs(share - chance) < 4 * error
    assert abs(share - 1 / (1 + np.exp(-1))) > 4 * error  # temperature 1


def test_copies_are_dropped_exactly_or_up_to_case_and_space() -> None:
    texts = {"text": Ragged.of_bytes([b"A cat", b"a  cat", b"A cat", b"dog"])}
    assert judge(Deduplicate(), texts).keep.tolist() == [True, True, False, True]
    assert judge(Deduplicate(normalize=True), texts).keep.tolist() == [True, False, False, True]
    numbers = {"label": np.array([9, 10, 32, 65, 97])}  # their bytes are white space and letters
    assert judge(Deduplicate(normalize=True), numbers).keep.all()
    of_initial = Deduplicate(applies_to="new_rows", of_initial=True)
    assert judge(of_initial, column(1, 2, 2, 3), column(3, 4)).keep.tolist() == [True, True, False, False]


def test_rows_far_from_each_other_are_chosen_in_units_of_the_initial_rows() -> None:
    rows = {"x": np.array([[0, 0], [0.1, 0], [0, 900], [5, 0], [5.1, 1]], np.float64)}
    initial = {"x": np.array([[-1, -1000], [1, 1000]], np.float64)}
    assert judge(EntropyChoice(rows=2), rows, initial).keep.tolist() == [True, False, False, False, True]
    assert judge(EntropyChoice(rows=3), rows, initial).keep.tolist() == [True, False, True, False, True]
    assert judge(EntropyChoice(), rows, initial).keep.sum() == 2


def test_a_learned_detector_finds_shifted_rows_and_no_others() -> None:
    rng = np.random.default_rng(0)
    real, shifted = rng.standard_normal((2, 500, 1)) + np.array([0.0, 4.0])[:, None, None]
    keep = judge(Detector(), {"x": shifted}, {"x": real}).keep
    assert keep.mean() < 0.1
    detector = Detector(action="weight", power=2.0)
    params = detector.prepare({"x": real}, {"x": shifted}, view({"x": real}), CTX)
    weight = detector.judge({"x": real}, view({"x": real}, prepared=params), CTX).weight
    assert weight is not None
    assert weight.mean() > 0.8


def test_rows_move_towards_the_nearest_center() -> None:
    initial = column(0, 0.2, 10, 10.2)
    moved = judge(Corrector(strength=3.0, centers=2), column(1.1, 8.1), initial).rows
    np.testing.assert_allclose(np.ravel(moved["x"]), [(1.1 + 3 * 0.1) / 4, (8.1 + 3 * 10.1) / 4])
    moved = judge(Corrector(strength=1.0), column(8.2), initial).rows  # every row is a center
    np.testing.assert_allclose(np.ravel(moved["x"]), [(8.2 + 10) / 2])


def test_the_probability_of_a_row_s_own_class_is_high_where_its_class_is() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 100)
    rows = {"x": rng.standard_normal((300, 2)) + 5 * np.eye(3)[label][:, :2], "label": label}
    score = ClassProbability()
    params = score.prepare(rows, view(rows), CTX)
    right = score.score(rows, view(rows, prepared=params), CTX)
    wrong = score.score({**rows, "label": (label + 1) % 3}, view(rows, prepared=params), CTX)
    assert right.mean() > 0.9
    assert wrong.mean() < 0.1
    unknown = score.score({**rows, "label": label + 9}, view(rows, prepared=params), CTX)
    assert (unknown == 0).all()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (ColumnValue(column="y"), "score.column: got 'y'"),
        (ColumnValue(column="x", element=3), "score.element: got 3"),
        (Closeness(target=(1.0, 2.0)), "score.target: got 2 numbers"),
        (MetricValue(metric=MeanError()), "score.metric: got mean_error, which has no value of a single row"),
        (MetricValue(metric=PixelStd()), "score.metric: got pixel_std, which has no value of a single row"),
        (MetricValue(metric=SecondMoment()), "score.metric: got second_moment, which has no value of a single row"),
        (MetricValue(metric=TextLength()), "score.metric: got text_length, which cannot be measured of gaussian"),
        (MetricValue(metric=CorrectRate()), "'correct_rate' needs a source that can check"),
        (ClassProbability(), "score.label: got 'label'"),
    ],
)
def test_scores_that_do_not_exist_are_refused(score: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        score.check(GaussianSource(), Gaussian(), GaussianSampler())


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="beside a threshold"):
        Verifier(score=X, threshold=1.0, share=0.5)
    with pytest.raises(SettingError, match="without a sensitivity"):
        Detector(false_alarms=0.1)
    with pytest.raises(SettingError, match="which include initial rows"):
        Deduplicate(of_initial=True)
    with pytest.raises(SpecError, match="whose values are int64"):
        Corrector(column="symbol").check(ZipfSource(), Gaussian(), GaussianSampler())
    assert MetricValue(metric=TextLength()).sees_tokens
