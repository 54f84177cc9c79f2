"""Text metrics against hand-worked values and distributions that rows are drawn from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from token_rows import END, PARAMS, Unigram, draw_rows, measure, zipf_probabilities

from selfloop.component import Metric
from selfloop.metrics.text import (
    CrossEntropy,
    Distinct,
    DuplicateRate,
    LongDocuments,
    Memorization,
    Repetition,
    SelfBleu,
    SelfCrossEntropy,
    TailMass,
    TextLength,
    Vocabulary,
)
from selfloop.protocols import SupportsTokenLogProb


def test_cross_entropy_is_the_mean_over_tokens_and_not_over_rows() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125])
    holdout = [[1, 1, 1, 1, END], [2, END]]
    expected = (4 * 2 + 3 + 2 * 1) * math.log(2) / 7
    values = measure(CrossEntropy(), [], holdout=holdout, params={**PARAMS, "p": p})
    assert values == pytest.approx({"cross_entropy": expected, "perplexity": math.exp(expected)}, rel=1e-6)
    over_rows = ((4 * 2 + 1) / 5 + (3 + 1) / 2) / 2 * math.log(2)
    assert values["cross_entropy"] != pytest.approx(over_rows, rel=0.01)
    assert isinstance(Unigram(), SupportsTokenLogProb)


def test_a_perplexity_that_overflows_is_infinite() -> None:
    values = measure(CrossEntropy(), [], holdout=[[1]], params={**PARAMS, "p": np.exp([-1.0, -720.0])})
    assert values["cross_entropy"] == pytest.approx(720)
    assert math.isinf(values["perplexity"])


def test_self_cross_entropy_of_samples_of_the_model_is_its_entropy() -> None:
    p = np.array([0.1, 0.5, 0.3, 0.1])
    rng = np.random.default_rng(0)
    params = {**PARAMS, "p": p}
    entropy, deviation = -p @ np.log(p), np.sqrt(p @ np.log(p) ** 2 - (p @ np.log(p)) ** 2)
    bound = 4 * deviation / math.sqrt(400 * 50)
    samples, colder = (rng.choice(4, (400, 50), p=q / q.sum()).tolist() for q in (p, p**2))
    assert abs(measure(SelfCrossEntropy(), samples, params=params)["self_cross_entropy"] - entropy) < bound
    assert abs(measure(SelfCrossEntropy(), colder, params=params)["self_cross_entropy"] - entropy) > bound
    first_two = measure(SelfCrossEntropy(max_rows=2), [[1], [1], [3]], params=params)["self_cross_entropy"]
    assert first_two == pytest.approx(-math.log(0.5))


def test_self_cross_entropy_leaves_prompts_out() -> None:
    params, real = {**PARAMS, "p": np.array([0.5, 0.25, 0.125, 0.125])}, [[3, 3, 3, 3, END], [2, 3, END]]
    samples = [[3, 3, 3, 1], [2, 3, 1, 1, END], [3, 3, 3]]  # prompts: 333, 23, 333
    value = measure(SelfCrossEntropy(), samples, real, params=params, prefix=3)["self_cross_entropy"]
    assert value == pytest.approx((2 + 2 + 2 + 1) / 4 * math.log(2))
    with_prompts = measure(SelfCrossEntropy(), samples, real, params=params)["self_cross_entropy"]
    assert with_prompts > value + 0.5


def test_the_share_of_prompts_is_that_of_real_tokens_in_sampled_rows() -> None:
    real = [[3, 3, 3, 3, END], [2, 3, END]]
    samples = [[3, 3, 3, 1], [2, 3, 1, 1, END], [3, 3]]  # prompts: 333, 23, 33 of a row that the sampler cut
    assert measure(TextLength(), samples, real, prefix=3)["text_length_prompt_share"] == pytest.approx(7 / 10)
    assert "text_length_prompt_share" not in measure(TextLength(), samples, real)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("metric", [Vocabulary(), Distinct(), TailMass()])
def test_prompts_are_left_out_of_sampled_rows_and_of_real_rows(metric: Any, finished: bool) -> None:
    """With prompts of 3 tokens the values are those of rows without their first 3 tokens, and not those of whole rows."""
    p, rng = zipf_probabilities(60, 1.0), np.random.default_rng(0)
    real, samples = ([[61, 62, 63, *row] for row in draw_rows(p, 80, 12, seed)] for seed in (1, 2))
    if not finished:
        samples = [row[: rng.integers(4, 12)] for row in samples]
    expected = measure(metric, [row[3:] for row in samples], [row[3:] for row in real])
    assert all(map(math.isfinite, expected.values()))
    assert measure(metric, samples, real, prefix=3) == expected
    whole = measure(metric, samples, real)
    assert abs(whole[metric.name] - expected[metric.name]) > 0.01


def test_length_excludes_end_tokens_and_the_finished_rate_counts_them() -> None:
    values = measure(TextLength(), [[5, 6, END], [7, 8, 9], [END]])
    assert values == pytest.approx({"text_length": 5 / 3, "text_length_finished_rate": 2 / 3})


def test_vocabulary_counts_sampled_tokens_and_the_share_of_real_tokens_among_them() -> None:
    real = [[1, 2, 3, 4, END], *[[5, 6, 7, 8, END]] * 7]  # an eighth of the tokens: 1, 2, 3, 4
    samples = [[1, 1, END], [2, 9, END]]
    assert measure(Vocabulary(), samples, real) == {"vocabulary": 3, "vocabulary_kept": 0.5}
    assert measure(Vocabulary(max_tokens=2), samples, real) == {"vocabulary": 1, "vocabulary_kept": 0.5}


@pytest.mark.parametrize("metric", [Vocabulary(max_tokens=20), Distinct(max_tokens=20)])
def test_fewer_real_than_sampled_tokens_after_the_cut_give_nan(metric: Any) -> None:
    real = [[*range(1, 41), END]] * 4  # 160 tokens; 16 if cut after 4 tokens, as the last sampled row
    samples = [[1, 2, 3, 4, END]] * 9
    assert all(math.isnan(value) for value in measure(metric, [*samples, [1, 2, 3, 4]], real).values())
    assert all(math.isfinite(value) for value in measure(metric, [*samples, [1, 2, 3, 4, 5, 6]], real).values())


@pytest.mark.parametrize("metric", [Vocabulary(max_tokens=300), Distinct(max_tokens=300), SelfBleu(max_rows=10)])
def test_more_sampled_rows_change_no_value_of_a_fixed_amount(metric: Metric) -> None:
    samples, real = (draw_rows(zipf_probabilities(100, 1.0), 200, 10, seed) for seed in (0, 1))
    assert measure(metric, samples, real) == measure(metric, samples[:40], real)
    assert all(map(math.isnan, measure(metric, samples[:5], real).values()))


def test_tail_mass_is_one_for_the_real_distribution_and_less_without_its_tail() -> None:
    """Standard error of a share is sqrt(share / tokens), and the rare share is about a tenth."""
    p = zipf_probabilities(3000, 1.0)
    real, samples = (draw_rows(p, 400, 50, seed) for seed in (1, 2))
    bound = 4 * math.sqrt(2 * 0.1 / (200 * 50)) / 0.1
    assert abs(measure(TailMass(), samples, real)["tail_mass"] - 1) < bound
    colder = draw_rows(p**1.3 / (p**1.3).sum(), 400, 50, 2)
    assert measure(TailMass(), colder, real)["tail_mass"] < 1 - bound
    truncated = draw_rows(p[:100] / p[:100].sum(), 400, 50, 2)
    assert measure(TailMass(), truncated, real)["tail_mass"] < 0.05


def test_ends_of_real_rows_count_as_lost_only_if_sampled_rows_finish() -> None:
    """Rare words are in the second half of real rows only: a model that is cut before them has not lost them."""
    starts, ends = (np.random.default_rng(seed) for seed in (0, 1))
    real = [[*starts.integers(1, 20, 10).tolist(), *ends.integers(20, 99, 10).tolist(), END] for _ in range(400)]
    cut, finished = [row[:10] for row in real[::-1]], [[*row[:10], END] for row in real[::-1]]
    assert measure(TailMass(), cut, real)["tail_mass"] == pytest.approx(1, abs=0.1)
    assert measure(TailMass(), finished, real)["tail_mass"] == 0
    assert measure(Vocabulary(max_tokens=500), cut, real)["vocabulary_kept"] == 1
    assert measure(Vocabulary(max_tokens=500), finished, real)["vocabulary_kept"] < 0.5


def test_tail_mass_selected_and_counted_on_the_same_rows_would_be_too_large() -> None:
    """With few tokens of many kinds, tokens that are rare by chance look rarer than they are."""
    p = zipf_probabilities(2000, 0.5)
    values, biased = [], []
    for seed in range(30):
        real, samples = (draw_rows(p, 100, 20, 2 * seed + half) for half in (0, 1))
        values.append(measure(TailMass(), samples, real)["tail_mass"])
        doubled = [row for row in real[::2] for _ in range(2)]  # both halves are the same rows
        biased.append(measure(TailMass(), samples, doubled)["tail_mass"])
    z = [(np.mean(v) - 1) / (np.std(v, ddof=1) / math.sqrt(30)) for v in (values, biased)]
    assert abs(z[0]) < 4 < z[1]


def test_tail_mass_of_hand_worked_rows() -> None:
    """Token 1 is nine of ten tokens of the selected row: token 2 is rare, and so are tokens that the row lacks."""
    real = [[*[1] * 9, 2, END], [1, 1, 1, 2, END]]
    assert measure(TailMass(), [[1, 1, 1, 1, 1, 1, 1, 3, END]], real)["tail_mass"] == pytest.approx((1 / 8) / (1 / 4))
    assert measure(TailMass(tail=0.05), [[2, 3]], real)["tail_mass"] != pytest.approx(4)
    assert math.isnan(measure(TailMass(), [[1, 2]], [[1, 1, 2], [1, 1, 1]])["tail_mass"])


def test_long_documents_are_those_of_the_fit() -> None:
    assert measure(LongDocuments(), [], params={"training/long_documents": np.asarray(3)}) == {"long_documents": 3.0}


ALL: list[Metric] = [
    SelfCrossEntropy(), TextLength(), Vocabulary(), TailMass(), Distinct(), SelfBleu(), Repetition(),
    DuplicateRate(), Memorization(),
]  # fmt: skip


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_metrics_have_no_value_without_samples_and_a_plausible_or_nan_value_of_empty_texts(metric: Metric) -> None:
    real = draw_rows(zipf_probabilities(20, 1.0), 40, 20, 0)
    params = {**PARAMS, "p": np.full(30, 1 / 30)}
    assert measure(metric, [], real, params=params) == {}
    empty = measure(metric, [[END]] * 30, real, params=params)
    assert next(iter(empty)) == metric.name
    assert all(math.isnan(v) or v in (0, 1) or v == pytest.approx(math.log(30)) for v in empty.values())
    assert list(measure(metric, real, real, params=params)) == list(empty)
