"""N-grams, texts and runs against plain loops over tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import CTX, END, PARAMS, Rows, Unigram, columns, draw_rows, few_rows, measure, ragged, zipf_probabilities

from selfloop.columns import Ragged
from selfloop.component import Metric
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.metrics import ngrams
from selfloop.metrics.ngrams import contained, cut_length, longest_runs, prompt_lengths, texts
from selfloop.metrics.text import DuplicateRate, Memorization, TailMass, TextLength
from selfloop.snapshots import Snapshot


def test_texts_are_the_first_rows_without_their_end_tokens() -> None:
    rows = columns([[5, 6, END], [END], [7, 8], [9, END]])
    assert texts(rows, PARAMS).values.tolist() == [5, 6, 7, 8, 9]
    assert texts(rows, PARAMS).offsets.tolist() == [0, 2, 2, 4, 5]
    assert texts(rows, PARAMS, max_rows=2).offsets.tolist() == [0, 2, 2]
    first = texts(rows, PARAMS, max_tokens=3)
    assert (first.values.tolist(), first.offsets.tolist()) == ([5, 6, 7], [0, 2, 2, 3])
    assert texts(rows, PARAMS, max_tokens=99).values.tolist() == [5, 6, 7, 8, 9]
    assert texts(rows, PARAMS, max_length=1).values.tolist() == [5, 7, 9]
    assert texts(rows, PARAMS, max_length=1, max_tokens=2).values.tolist() == [5, 7]


def test_the_cut_length_is_that_of_rows_without_an_end_token() -> None:
    assert cut_length(columns([[1, 2, 3, END], [4, 5], [END]]), PARAMS) == 2
    assert cut_length(columns([[1, 2, 3, END], [], [END]]), PARAMS) is None


@settings(max_examples=30)
@given(few_rows, st.integers(1, 7))
def test_ngrams_have_equal_hashes_exactly_if_their_tokens_are_equal(rows: Rows, n: int) -> None:
    plain = [(tuple(row[i : i + n]), r) for r, row in enumerate(rows) for i in range(len(row) - n + 1)]
    hashes, row_of = ngrams.ngrams(ragged(rows), n)
    assert row_of.tolist() == [r for _, r in plain]
    by_gram = dict(zip([gram for gram, _ in plain], hashes.tolist(), strict=True))
    assert [by_gram[gram] for gram, _ in plain] == hashes.tolist()
    assert len(set(by_gram.values())) == len(by_gram)


def test_different_ngrams_have_different_hashes() -> None:
    """All 4-grams of 21 tokens: 194,481. With hashes of 32 bits, some 4 pairs would collide."""
    grid = np.stack(np.meshgrid(*[np.arange(21)] * 4), axis=-1).reshape(-1, 4).astype(np.uint16)
    hashes, _ = ngrams.ngrams(Ragged(grid.ravel(), np.arange(len(grid) + 1) * 4), 4)
    assert len(np.unique(hashes)) == len(grid)
    assert len(np.unique(hashes >> np.uint64(32))) < len(grid)


def test_chunks_of_rows_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, real = (draw_rows(zipf_probabilities(30, 1.0), 60, 20, seed) for seed in (0, 1))
    samples += samples[:7]
    metrics: list[Metric] = [TailMass(), DuplicateRate(), Memorization(ngram=2), TextLength()]
    before = [measure(metric, samples, real) for metric in metrics]
    monkeypatch.setattr(ngrams, "CHUNK_TOKENS", 50)
    assert [measure(metric, samples, real) for metric in metrics] == before


@settings(max_examples=30)
@given(few_rows, few_rows, st.integers(1, 4))
def test_contained_is_membership(samples: Rows, real: Rows, n: int) -> None:
    real_grams = {tuple(row[i : i + n]) for row in real for i in range(len(row) - n + 1)}
    grams, _ = ngrams.ngrams(ragged(samples), n)
    expected = [tuple(row[i : i + n]) in real_grams for row in samples for i in range(len(row) - n + 1)]
    assert contained(grams, ragged(real), n).tolist() == expected


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=6))
def test_longest_runs_end_with_their_row(rows: list[list[bool]]) -> None:
    flags = np.array([flag for row in rows for flag in row], bool)
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    expected = [max(map(len, "".join("x" if flag else " " for flag in row).split()), default=0) for row in rows]
    assert longest_runs(flags, row_of, len(rows)).tolist() == expected


def test_prompts_of_a_snapshot_repeat_and_those_of_its_sampler_are_not_drawn() -> None:
    rows, prompts = columns([[5, 6, 7, END], [5, 6], [5, 6, 7, 8, END]]), {"prompt": ragged([[5], [5, 6, 7]])}
    reading = TextSampler(prompt="before", response_template="a:")
    snap = Snapshot(1, Unigram(), reading, PARAMS, rows, {}, rows, {}, prompts=prompts)
    assert prompt_lengths(snap, rows, CTX).tolist() == [1, 2, 1]  # the second row is shorter than its prompt
    assert prompt_lengths(replace(snap, prompts={}), rows, CTX).tolist() == [0, 0, 0]
    drawn = replace(snap, prompts={}, sampler=TextSampler(prompt="first_token"))
    assert prompt_lengths(drawn, rows, CTX).tolist() == [1, 1, 1]
