"""Repetition, duplicates and copies in sampled text against hand-worked values and plain loops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from token_rows import END, Rows, draw_rows, few_rows, measure, ragged, zipf_probabilities

from selfloop.metrics.text import Distinct, DuplicateRate, Memorization, Repetition, SelfBleu, bleu_scores


def test_distinct_counts_ngrams_inside_rows() -> None:
    samples = [[1, 2, 1, 2, END], [1, 2, END]]
    real = [[9] * 49]  # an eighth of 48 tokens, because one may be an end token
    values = measure(Distinct(), samples, real)
    grams = {n: [tuple(row[i : i + n]) for row in ([1, 2, 1, 2], [1, 2]) for i in range(len(row) - n + 1)] for n in range(1, 5)}
    expected = {f"distinct_{n}": len(set(all_grams)) / len(all_grams) for n, all_grams in grams.items()}
    assert values == pytest.approx({"distinct": np.mean(list(expected.values())), **expected})
    joined = [1, 2, 1, 2, 1, 2]
    across_rows = [tuple(joined[i : i + 2]) for i in range(5)]
    assert values["distinct_2"] == 2 / 4 != len(set(across_rows)) / len(across_rows)


def plain_bleu(hypothesis: Sequence[int], references: Rows) -> float:
    """Sentence BLEU with method 1 as in the papers, one n-gram at a time."""

    def count_grams(row: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
        return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))

    logs = 0.0
    for n in range(1, 5):
        grams, reference_grams = count_grams(hypothesis, n), [count_grams(reference, n) for reference in references]
        matches = sum(min(count, max(reference[gram] for reference in reference_grams)) for gram, count in grams.items())
        if n == 1 and matches == 0:
            return 0.0
        logs += math.log((matches or 0.1) / max(sum(grams.values()), 1)) / 4
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    return math.exp(logs) * (1.0 if len(hypothesis) > closest else math.exp(1 - closest / len(hypothesis)))


@settings(max_examples=40)
@given(few_rows)
def test_bleu_scores_are_those_of_a_plain_implementation(rows: Rows) -> None:
    expected = [plain_bleu(row, [*rows[:i], *rows[i + 1 :]]) for i, row in enumerate(rows)]
    assert bleu_scores(ragged(rows)) == pytest.approx(expected, rel=1e-12)


def test_self_bleu_with_a_row_among_its_own_references_would_always_be_one() -> None:
    samples = draw_rows(zipf_probabilities(50, 1.0), 12, 15, 0)
    value = measure(SelfBleu(), samples, samples * 2)["self_bleu"]
    plain = [row[:-1] for row in samples]
    assert value == pytest.approx(np.mean([plain_bleu(row, [*plain[:i], *plain[i + 1 :]]) for i, row in enumerate(plain)]))
    assert value < 0.7 < 1 == np.mean([plain_bleu(row, plain) for row in plain])
    assert measure(SelfBleu(), [[1, 2, 3, 4, 5, END]] * 9, samples)["self_bleu"] == pytest.approx(1)


def test_repetition_is_the_mean_over_rows_and_excludes_short_rows() -> None:
    rows = [[1, 2, 1, 2, 1, 2, END], [1, 2, 3, 4, 5, END], [1, END], [1, 2, 1, 2, END]]
    assert measure(Repetition(ngram=2), rows)["repetition"] == pytest.approx((3 / 5 + 0 + 1 / 3) / 3)
    assert measure(Repetition(ngram=2), rows)["repetition"] != pytest.approx(1 - (2 + 4 + 2) / 12)
    assert measure(Repetition(ngram=2, max_rows=1), rows)["repetition"] == pytest.approx(3 / 5)
    assert math.isnan(measure(Repetition(ngram=9), rows)["repetition"])
    assert measure(Repetition(ngram=1), [[7], [1, 8], [2, 9]])["repetition"] == 0  # tokens that equal their row's number


def test_rows_that_differ_only_in_their_end_token_are_no_duplicates() -> None:
    assert measure(DuplicateRate(), [[1, 2], [2, 1], [1, 2], [1, 2, END], [1, 2]])["duplicate_rate"] == pytest.approx(3 / 5)
    assert measure(DuplicateRate(), [[1, 2], [2, 1], [1, 1, 2]])["duplicate_rate"] == 0
    assert measure(DuplicateRate(), [[], []])["duplicate_rate"] == 1


@settings(max_examples=30)
@given(few_rows)
def test_the_duplicate_rate_is_that_of_a_count(rows: Rows) -> None:
    copies = Counter(map(tuple, rows))
    expected = sum(copies[tuple(row)] > 1 for row in rows) / len(rows)
    assert measure(DuplicateRate(), rows)["duplicate_rate"] == pytest.approx(expected)


def test_memorization_is_the_share_of_long_ngrams_in_a_single_real_row() -> None:
    real = [[1, 2, 3, 4, 5, END], [6, 7, 8, END]]
    samples = [[2, 3, 4, 5, 6, 7, END], [9, 9, 9, 9, END], [6, 7, 8, 1, 2, 3], [7, END]]
    copied = 2 + 0 + 2  # 234 345 | | 678 123; 456 and 567 go across two real rows
    values = measure(Memorization(ngram=3), samples, real)
    assert values == pytest.approx({"memorization": copied / (4 + 2 + 4), "copied_run": (4 + 0 + 3 + 0) / 4})
    assert values["memorization"] != pytest.approx((4 + 0 + 2) / 10)
    assert measure(Memorization(ngram=3), real, real) == {"memorization": 1, "copied_run": 4}
    assert math.isnan(measure(Memorization(), samples, real)["memorization"])


def test_prompts_are_no_memorization() -> None:
    real = [[1, 2, 3, 4, 5, 6, END], [7, 8, END]]
    samples = [[1, 2, 3, 9, 4, 5, 6, END], [7, 8, 1, 2, 3, 4], [1, 2, 3, END], [7, END]]  # prompts: 123, 78, 123, 7
    assert measure(Memorization(ngram=3), samples, real) == pytest.approx({"memorization": 5 / 10, "copied_run": 2.5})
    prompted = measure(Memorization(ngram=3), samples, real, prefix=3)
    assert prompted == pytest.approx({"memorization": 3 / 4, "copied_run": (3 + 4 + 0 + 0) / 4})
