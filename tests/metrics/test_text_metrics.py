"""Text metrics against hand-worked values, plain loops over tokens, and laws that rows are drawn from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfloop.component import Context, Encoder, Family, Metric, Sampler, Snapshot
from selfloop.errors import SpecError
from selfloop.metrics import ngrams
from selfloop.metrics.ngrams import contained, cut_of, longest_runs, texts
from selfloop.metrics.text import CrossEntropy, SelfCrossEntropy, TailMass, TextLength, Vocabulary, ZipfExponent, zipf_exponent
from selfloop.metrics.text_diversity import Distinct, DuplicateRate, Memorization, Repetition, SelfBleu, bleu_among
from selfloop.protocols import SupportsTokenLogProb
from selfloop.rng import RandomStream
from selfloop.types import Columns, Floats, Params, Ragged

END = 0
LEARNED: Params = {"tokenizer/end": np.asarray(END)}
CTX = Context(RandomStream(("measure",)))
Rows = Sequence[Sequence[int]]


def ragged(rows: Rows) -> Ragged:
    values = np.array([token for row in rows for token in row], np.uint16)
    return Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))


def columns(rows: Rows) -> Columns:
    return {"tokens": ragged(rows)}


@dataclass(frozen=True, kw_only=True)
class Unigram(Family):
    """Tokens independent of each other."""

    def encoder(self) -> Encoder:
        raise NotImplementedError

    def token_log_prob(self, params: Params, rows: Columns, ctx: Context) -> Ragged:
        tokens = rows["tokens"]
        assert isinstance(tokens, Ragged)
        return Ragged(np.log(params["p"])[tokens.values].astype(np.float32), tokens.offsets)


def measure(metric: Any, new: Rows, initial: Rows = (), holdout: Rows = (), params: Params = LEARNED) -> Mapping[str, float]:
    real = columns(initial)
    snap = Snapshot(1, Unigram(), Sampler(), params, columns(new) if len(new) else {}, columns(holdout), real, {})
    return metric.measure(snap, CTX)


def drawn(p: Floats, rows: int, length: int, seed: int, first: int = 1) -> list[list[int]]:
    """Rows of tokens first, first + 1, ... with probabilities p, each with its end token."""
    made = np.random.default_rng(seed).choice(len(p), (rows, length), p=p) + first
    return [[*row, END] for row in made.tolist()]


def zipfian(size: int, s: float) -> Floats:
    p = np.arange(1, size + 1) ** -s
    return p / p.sum()


few_rows = st.lists(st.lists(st.integers(1, 4), max_size=12), min_size=2, max_size=8)


def test_texts_are_the_first_rows_without_their_end_tokens() -> None:
    rows = {"tokens": ragged([[5, 6, END], [END], [7, 8], [9, END]])}
    assert texts(rows, LEARNED).values.tolist() == [5, 6, 7, 8, 9]
    assert texts(rows, LEARNED).offsets.tolist() == [0, 2, 2, 4, 5]
    assert texts(rows, LEARNED, most_rows=2).offsets.tolist() == [0, 2, 2]
    cut = texts(rows, LEARNED, most_tokens=3)
    assert (cut.values.tolist(), cut.offsets.tolist()) == ([5, 6, 7], [0, 2, 2, 3])
    assert texts(rows, LEARNED, most_tokens=99).values.tolist() == [5, 6, 7, 8, 9]
    assert texts(rows, LEARNED, longest=1).values.tolist() == [5, 7, 9]
    assert texts(rows, LEARNED, longest=1, most_tokens=2).values.tolist() == [5, 7]


def test_rows_were_cut_at_the_length_of_those_that_did_not_end() -> None:
    assert cut_of(columns([[1, 2, 3, END], [4, 5], [END]]), LEARNED) == 2
    assert cut_of(columns([[1, 2, 3, END], [], [END]]), LEARNED) is None


@given(few_rows, st.integers(1, 7))
def test_ngrams_are_equal_exactly_when_their_tokens_are(rows: Rows, n: int) -> None:
    plain = [(tuple(row[i : i + n]), r) for r, row in enumerate(rows) for i in range(len(row) - n + 1)]
    hashes, of = ngrams.ngrams(ragged(rows), n)
    assert of.tolist() == [r for _, r in plain]
    numbers = dict(zip([gram for gram, _ in plain], hashes.tolist(), strict=True))
    assert [numbers[gram] for gram, _ in plain] == hashes.tolist()
    assert len(set(numbers.values())) == len(numbers)


def test_ngrams_do_not_meet_by_chance() -> None:
    """All 4-grams of 25 tokens: 390,625; a hash of 32 bits would bring some 18 pairs together."""
    grid = np.stack(np.meshgrid(*[np.arange(25)] * 4), axis=-1).reshape(-1, 4).astype(np.uint16)
    found, _ = ngrams.ngrams(Ragged(grid.ravel(), np.arange(len(grid) + 1) * 4), 4)
    assert len(np.unique(found)) == len(grid)
    assert len(np.unique(found >> np.uint64(32))) < len(grid)


def test_blocks_of_rows_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    new, real = (drawn(zipfian(30, 1.0), 60, 20, seed) for seed in (0, 1))
    new += new[:7]
    metrics: list[Metric] = [TailMass(), ZipfExponent(ranks=10), DuplicateRate(), Memorization(length=2), TextLength()]
    before = [measure(metric, new, real) for metric in metrics]
    monkeypatch.setattr(ngrams, "BLOCK", 50)
    assert [measure(metric, new, real) for metric in metrics] == before


def test_cross_entropy_is_the_mean_over_tokens_and_not_over_rows() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125])
    holdout = [[1, 1, 1, 1, END], [2, END]]
    expected = (4 * 2 + 3 + 2 * 1) * math.log(2) / 7
    found = measure(CrossEntropy(), [], holdout=holdout, params={**LEARNED, "p": p})
    assert found == {
        "cross_entropy": pytest.approx(expected, rel=1e-6),
        "perplexity": pytest.approx(math.exp(expected), rel=1e-6),
    }
    over_rows = ((4 * 2 + 1) / 5 + (3 + 1) / 2) / 2 * math.log(2)
    assert found["cross_entropy"] != pytest.approx(over_rows, rel=0.01)
    assert isinstance(Unigram(), SupportsTokenLogProb)


def test_cross_entropy_that_is_too_large_for_a_perplexity_says_so() -> None:
    found = measure(CrossEntropy(), [], holdout=[[1]], params={**LEARNED, "p": np.exp([-1.0, -720.0])})
    assert found["cross_entropy"] == pytest.approx(720)
    assert math.isinf(found["perplexity"])


def test_self_cross_entropy_of_a_models_own_draws_is_its_entropy() -> None:
    p = np.array([0.1, 0.5, 0.3, 0.1])
    rng = np.random.default_rng(0)
    new = rng.choice(4, (400, 50), p=p).tolist()
    params = {**LEARNED, "p": p}
    entropy, spread = -p @ np.log(p), np.sqrt(p @ np.log(p) ** 2 - (p @ np.log(p)) ** 2)
    bound = 4 * spread / math.sqrt(400 * 50)
    found = measure(SelfCrossEntropy(), new, params=params)["self_cross_entropy"]
    assert abs(found - entropy) < bound
    colder = rng.choice(4, (400, 50), p=p**2 / (p**2).sum()).tolist()
    assert abs(measure(SelfCrossEntropy(), colder, params=params)["self_cross_entropy"] - entropy) > bound
    assert measure(SelfCrossEntropy(rows=2), [[1], [1], [3]], params=params)["self_cross_entropy"] == pytest.approx(
        -math.log(0.5)
    )


def test_length_counts_no_end_token_and_ended_counts_rows_that_have_one() -> None:
    assert measure(TextLength(), [[5, 6, END], [7, 8, 9], [END]]) == {
        "text_length": pytest.approx(5 / 3),
        "ended": pytest.approx(2 / 3),
    }


def test_vocabulary_counts_what_is_in_use_and_what_of_the_real_is_left() -> None:
    real = [[1, 2, 3, 4, END], *[[5, 6, 7, 8, END]] * 7]  # an eighth of the tokens: 1, 2, 3, 4
    assert measure(Vocabulary(), [[1, 1, END], [2, 9, END]], real) == {"vocabulary": 3, "vocabulary_kept": 0.5}
    assert measure(Vocabulary(tokens=2), [[1, 1, END], [2, 9, END]], real) == {"vocabulary": 1, "vocabulary_kept": 0.5}


@pytest.mark.parametrize("metric", [Vocabulary(tokens=20), Distinct(tokens=20)])
def test_fewer_real_tokens_than_new_ones_where_both_are_cut_give_no_number(metric: Any) -> None:
    real = [[*range(1, 41), END]] * 4  # 160 tokens; cut after 4 as the last new row is, 16
    new = [[1, 2, 3, 4, END]] * 9
    assert all(math.isnan(value) for value in measure(metric, [*new, [1, 2, 3, 4]], real).values())
    assert all(math.isfinite(value) for value in measure(metric, [*new, [1, 2, 3, 4, 5, 6]], real).values())


@pytest.mark.parametrize("metric", [Vocabulary(tokens=300), Distinct(tokens=300), SelfBleu(rows=10)])
def test_more_new_rows_change_no_number_of_a_fixed_amount(metric: Metric) -> None:
    new, real = (drawn(zipfian(100, 1.0), 200, 10, seed) for seed in (0, 1))
    assert measure(metric, new, real) == measure(metric, new[:40], real)
    assert all(map(math.isnan, measure(metric, new[:5], real).values()))


def test_tail_mass_is_one_for_the_real_law_and_less_without_its_tail() -> None:
    """Standard error of a share is sqrt(share / tokens), and the rare share is about a tenth."""
    p = zipfian(3000, 1.0)
    real, new = (drawn(p, 400, 50, seed) for seed in (1, 2))
    bound = 4 * math.sqrt(2 * 0.1 / (200 * 50)) / 0.1
    assert abs(measure(TailMass(), new, real)["tail_mass"] - 1) < bound
    colder = drawn(p**1.3 / (p**1.3).sum(), 400, 50, 2)
    assert measure(TailMass(), colder, real)["tail_mass"] < 1 - bound
    lost = drawn(p[:100] / p[:100].sum(), 400, 50, 2)
    assert measure(TailMass(), lost, real)["tail_mass"] < 0.05


def test_the_ends_of_real_rows_count_as_lost_only_where_sampling_let_rows_end() -> None:
    """Rare words in the second half of real rows only: a model cut before them has not lost them."""
    starts, ends = (np.random.default_rng(seed) for seed in (0, 1))
    real = [[*starts.integers(1, 20, 10).tolist(), *ends.integers(20, 99, 10).tolist(), END] for _ in range(400)]
    cut, ended = [row[:10] for row in real[::-1]], [[*row[:10], END] for row in real[::-1]]
    assert measure(TailMass(), cut, real)["tail_mass"] == pytest.approx(1, abs=0.1)
    assert measure(TailMass(), ended, real)["tail_mass"] == 0
    assert measure(Vocabulary(tokens=500), cut, real)["vocabulary_kept"] == 1
    assert measure(Vocabulary(tokens=500), ended, real)["vocabulary_kept"] < 0.5


def test_tail_mass_chosen_and_counted_on_the_same_rows_would_be_too_large() -> None:
    """Few tokens of many kinds: those that are rare by chance look rarer than they are."""
    p = zipfian(2000, 0.5)
    found, wrong = [], []
    for seed in range(30):
        real, new = (drawn(p, 100, 20, 2 * seed + half) for half in (0, 1))
        found.append(measure(TailMass(), new, real)["tail_mass"])
        doubled = [row for row in real[::2] for _ in range(2)]  # both halves are the same rows
        wrong.append(measure(TailMass(), new, doubled)["tail_mass"])
    z = [(np.mean(each) - 1) / (np.std(each, ddof=1) / math.sqrt(30)) for each in (found, wrong)]
    assert abs(z[0]) < 4 < z[1]


def test_tail_mass_worked_by_hand() -> None:
    """The chosen row has token 1 nine times in ten: 2 is rare, and so is what it never saw."""
    real = [[*[1] * 9, 2, END], [1, 1, 1, 2, END]]
    assert measure(TailMass(), [[1, 1, 1, 1, 1, 1, 1, 3, END]], real)["tail_mass"] == pytest.approx((1 / 8) / (1 / 4))
    assert measure(TailMass(tail=0.05), [[2, 3]], real)["tail_mass"] != pytest.approx(4)
    assert math.isnan(measure(TailMass(), [[1, 2]], [[1, 1, 2], [1, 1, 1]])["tail_mass"])


@pytest.mark.parametrize("s", [0.7, 1.0, 1.3])
def test_zipf_finds_the_exponent_that_tokens_are_drawn_with(s: float) -> None:
    p = zipfian(3000, s)
    batches = [drawn(p, 400, 250, seed) for seed in range(8)]
    found = [measure(ZipfExponent(), new)["zipf"] for new in batches]
    assert abs(np.mean(found) - s) < 4 * np.std(found, ddof=1) / math.sqrt(8)


def test_zipf_is_flat_for_a_flat_law_and_ranks_and_counts_of_the_same_rows_would_not_be() -> None:
    batches = [drawn(np.full(50, 0.02), 200, 20, seed) for seed in range(12)]
    found = [measure(ZipfExponent(), new)["zipf"] for new in batches]
    same = [zipf_exponent(np.sort(np.bincount(np.ravel([row[:-1] for row in new]))[1:])[::-1]) for new in batches]
    z = [np.mean(each) / (np.std(each, ddof=1) / math.sqrt(12)) for each in (found, same)]
    assert abs(z[0]) < 4 < z[1]


def test_the_zipf_exponent_is_where_the_likelihood_is_greatest() -> None:
    counts = np.array([50, 20, 20, 5, 9])
    grid = np.linspace(0, 3, 30_001)
    logs = np.log(np.arange(1, 6))
    likelihood = -grid * (counts @ logs) - counts.sum() * np.log(np.exp(-np.outer(grid, logs)).sum(axis=1))
    assert zipf_exponent(counts) == pytest.approx(grid[likelihood.argmax()], abs=1e-4)
    assert all(math.isnan(zipf_exponent(np.array(none, int))) for none in ([], [7], [7, 0, 0], [0, 0]))


def test_distinct_counts_ngrams_inside_rows() -> None:
    new = [[1, 2, 1, 2, END], [1, 2, END]]
    real = [[9] * 49]  # an eighth of 48, as one may be an end
    found = measure(Distinct(), new, real)
    grams = {n: [tuple(row[i : i + n]) for row in ([1, 2, 1, 2], [1, 2]) for i in range(len(row) - n + 1)] for n in range(1, 5)}
    expected = {n: len(set(each)) / len(each) for n, each in grams.items()}
    assert found == {
        "distinct": pytest.approx(np.mean(list(expected.values()))),
        **{f"distinct_{n}": pytest.approx(share) for n, share in expected.items()},
    }
    joined = [1, 2, 1, 2, 1, 2]
    across = [tuple(joined[i : i + 2]) for i in range(5)]
    assert found["distinct_2"] == 2 / 4 != len(set(across)) / len(across)


def plain_bleu(hypothesis: Sequence[int], references: Rows) -> float:
    """Sentence BLEU with method 1, written as the papers say it, one n-gram at a time."""

    def counted(row: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
        return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))

    logs = 0.0
    for n in range(1, 5):
        mine, theirs = counted(hypothesis, n), [counted(reference, n) for reference in references]
        matched = sum(min(count, max(each[gram] for each in theirs)) for gram, count in mine.items())
        if n == 1 and matched == 0:
            return 0.0
        logs += math.log((matched or 0.1) / max(sum(mine.values()), 1)) / 4
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    return math.exp(logs) * (1.0 if len(hypothesis) > closest else math.exp(1 - closest / len(hypothesis)))


@given(few_rows)
def test_self_bleu_is_what_a_plain_implementation_says(rows: Rows) -> None:
    expected = [plain_bleu(row, [*rows[:i], *rows[i + 1 :]]) for i, row in enumerate(rows)]
    assert bleu_among(ragged(rows)) == pytest.approx(expected, rel=1e-12)


def test_self_bleu_with_a_row_among_its_own_references_would_always_be_one() -> None:
    new = drawn(zipfian(50, 1.0), 12, 15, 0)
    found = measure(SelfBleu(), new, new * 2)["self_bleu"]
    plain = [row[:-1] for row in new]
    assert found == pytest.approx(np.mean([plain_bleu(row, [*plain[:i], *plain[i + 1 :]]) for i, row in enumerate(plain)]))
    assert found < 0.7 < 1 == np.mean([plain_bleu(row, plain) for row in plain])
    assert measure(SelfBleu(), [[1, 2, 3, 4, 5, END]] * 9, new)["self_bleu"] == pytest.approx(1)


def test_repetition_is_the_mean_over_rows_and_leaves_short_ones_out() -> None:
    rows = [[1, 2, 1, 2, 1, 2, END], [1, 2, 3, 4, 5, END], [1, END], [1, 2, 1, 2, END]]
    assert measure(Repetition(length=2), rows)["repetition"] == pytest.approx((3 / 5 + 0 + 1 / 3) / 3)
    assert measure(Repetition(length=2), rows)["repetition"] != pytest.approx(1 - (2 + 4 + 2) / 12)
    assert measure(Repetition(length=2, rows=1), rows)["repetition"] == pytest.approx(3 / 5)
    assert math.isnan(measure(Repetition(length=9), rows)["repetition"])


def test_duplicates_are_rows_with_another_copy_whether_or_not_they_ended() -> None:
    assert measure(DuplicateRate(), [[1, 2], [2, 1], [1, 2], [1, 2, END], [1, 2]])["duplicate_rate"] == pytest.approx(3 / 5)
    assert measure(DuplicateRate(), [[1, 2], [2, 1], [1, 1, 2]])["duplicate_rate"] == 0
    assert measure(DuplicateRate(), [[], []])["duplicate_rate"] == 1


@given(few_rows)
def test_the_duplicate_rate_is_what_counting_says(rows: Rows) -> None:
    copies = Counter(map(tuple, rows))
    assert measure(DuplicateRate(), rows)["duplicate_rate"] == pytest.approx(
        sum(copies[tuple(r)] > 1 for r in rows) / len(rows)
    )


def test_memorisation_is_the_share_of_long_ngrams_in_one_real_row() -> None:
    real = [[1, 2, 3, 4, 5, END], [6, 7, 8, END]]
    new = [[2, 3, 4, 5, 6, 7, END], [9, 9, 9, 9, END], [6, 7, 8, 1, 2, 3], [7, END]]
    copied = 2 + 0 + 2  # 234 345 | | 678 123; 456 and 567 go across two real rows
    found = measure(Memorization(length=3), new, real)
    assert found == {"memorization": pytest.approx(copied / (4 + 2 + 4)), "copied_run": pytest.approx((4 + 0 + 3 + 0) / 4)}
    assert found["memorization"] != pytest.approx((4 + 0 + 2) / 10)
    assert measure(Memorization(length=3), real, real) == {"memorization": 1, "copied_run": 4}
    assert math.isnan(measure(Memorization(), new, real)["memorization"])


@given(few_rows, few_rows, st.integers(1, 4))
def test_contained_is_membership(new: Rows, real: Rows, n: int) -> None:
    there = {tuple(row[i : i + n]) for row in real for i in range(len(row) - n + 1)}
    grams, _ = ngrams.ngrams(ragged(new), n)
    expected = [tuple(row[i : i + n]) in there for row in new for i in range(len(row) - n + 1)]
    assert contained(grams, ragged(real), n).tolist() == expected


@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=6))
def test_longest_runs_stay_in_their_row(rows: list[list[bool]]) -> None:
    flags = np.array([flag for row in rows for flag in row], bool)
    of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    expected = [max(map(len, "".join("x" if flag else " " for flag in row).split()), default=0) for row in rows]
    assert longest_runs(flags, of, len(rows)).tolist() == expected


EVERY: list[Metric] = [
    SelfCrossEntropy(), TextLength(), Vocabulary(), TailMass(), ZipfExponent(), Distinct(), SelfBleu(), Repetition(), DuplicateRate(),
    Memorization(),
]  # fmt: skip


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_a_metric_of_new_rows_says_nothing_without_them_and_is_never_wrong_on_empty_stories(metric: Metric) -> None:
    real = drawn(zipfian(20, 1.0), 40, 20, 0)
    params = {**LEARNED, "p": np.full(30, 1 / 30)}
    assert measure(metric, [], real, params=params) == {}
    found = measure(metric, [[END]] * 30, real, params=params)
    assert next(iter(found)) == metric.name
    assert all(math.isnan(v) or v in (0, 1) or v == pytest.approx(math.log(30)) for v in found.values())
    assert list(measure(metric, real, real, params=params)) == list(found)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Vocabulary(tokens=0), "metrics.vocabulary.tokens: got 0"),
        (lambda: ZipfExponent(ranks=1), "metrics.zipf.ranks: got 1; expected 2 or more"),
        (lambda: SelfBleu(rows=1), "metrics.self_bleu.rows: got 1"),
        (lambda: TailMass(tail=1.0), "metrics.tail_mass.tail: got 1.0"),
        (lambda: Memorization(length=0), "metrics.memorisation.length: got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()
