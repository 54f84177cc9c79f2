from collections import Counter
from itertools import product

import numpy as np
import pytest

import selfloop
from law_checks import CONTEXT, training_rows
from selfloop.columns import Ragged, take_spans
from selfloop.errors import SettingError, SpecError
from selfloop.families.ngram import Ngram
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.sources.text_corpora import PythonDocs
from selfloop.spec.spec import Spec

TEXTS = [b"abcab", b"abab", b"cab", b"ba"]
BYTES = BytePair(vocab=257)
PREPARED = BYTES.prepare([{"text": Ragged.of_bytes(TEXTS)}], CONTEXT)
END, V = int(PREPARED["tokenizer/end"]), 257
WEIGHTS = [1.0, 1.0, 1.0, 3.0]


def encoded(texts):
    return BYTES.encode({"text": Ragged.of_bytes(texts)}, PREPARED)


def fitted(family, weights=(1.0, 1.0, 1.0, 1.0)):
    takes = [(encoded([text]), None, weight) for text, weight in zip(TEXTS, weights, strict=True)]
    rows = training_rows(*takes)
    return family.fit(type(rows)(rows.takes, PREPARED), CONTEXT, None)


def tokens_of(text):
    return encoded([text])["tokens"].values.tolist()


def by_hand(family, text, weights=(1.0, 1.0, 1.0, 1.0)):
    """Log p of each token, from dictionaries of counts."""
    scale, counts, contexts = np.mean(weights), Counter(), Counter()
    for row, weight in zip(TEXTS, weights, strict=True):
        tokens = [END] * (family.order - 1) + tokens_of(row)
        for i, k in product(range(family.order - 1, len(tokens)), range(1, family.order + 1)):
            gram = tuple(tokens[i - k + 1 : i + 1])
            counts[gram] += weight / scale
            contexts[gram[:-1], k] += weight / scale
    tokens, values = [END] * (family.order - 1) + tokens_of(text), []
    for i in range(family.order - 1, len(tokens)):
        p = 1 / V
        for k in range(1, family.order + 1) if family.backoff else [family.order]:
            gram = tuple(tokens[i - k + 1 : i + 1])
            total = contexts[gram[:-1], k] + family.smoothing
            p = (counts[gram] + family.smoothing * p) / total if total else p
        values.append(np.log(p) if p else -np.inf)
    return values


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
@pytest.mark.parametrize("family", [
    Ngram(order=1), Ngram(order=2, backoff=False, smoothing=2.0), Ngram(), Ngram(order=4, smoothing=0.3), Ngram(smoothing=0.0),
], ids=repr)  # fmt: skip
def test_probabilities_are_smoothed_shares_of_counts(family, weights):
    params, texts = fitted(family, weights), [*TEXTS, b"abcabz", b"zzab"]
    rows = encoded(texts)
    rows = {"tokens": rows["tokens"][np.arange(len(texts))]}
    expected = [by_hand(family, text, weights) for text in texts]
    log_prob = family.token_log_prob(params, rows, CONTEXT)
    np.testing.assert_allclose(log_prob.values, np.concatenate(expected), rtol=1e-12)
    np.testing.assert_allclose(family.log_prob(params, rows), [sum(row) for row in expected], rtol=1e-12)
    if family.smoothing:
        other = Ngram(order=family.order, backoff=family.backoff, smoothing=family.smoothing + 0.1)
        assert np.abs(other.token_log_prob(params, rows, CONTEXT).values - np.concatenate(expected)).max() > 1e-3


def distances(family, sampler, expected, n=20_000):
    """z of the shares of the sampled rows of each text, whose probability is expected."""
    rows = family.sample(fitted(family), n, sampler, {}, CONTEXT)
    texts = Counter(BYTES.decode(rows, PREPARED)["text"].to_bytes())
    return [(texts[text] - n * p) / np.sqrt(n * p * (1 - p)) for text, p in expected.items()]


def test_texts_are_sampled_with_their_probabilities():
    texts = [*TEXTS, b"ab", b"cabab", b"caba", b""]
    for family in (Ngram(smoothing=0.0), Ngram(smoothing=0.5), Ngram(order=2, backoff=False, smoothing=0.8)):
        right = {text: p for text in texts if (p := np.exp(sum(by_hand(family, text)))) > 1e-4}
        assert len(right) >= 4
        assert np.abs(distances(family, TextSampler(max_tokens=40), right)).max() < 4
        wrong = {text: np.exp(sum(by_hand(Ngram(order=1, smoothing=0.0), text))) for text in right}
        assert np.abs(distances(family, TextSampler(max_tokens=40), wrong)).max() > 4


def test_both_ways_of_drawing_have_the_same_distribution():
    family = Ngram(smoothing=0.5)
    model = family._counts(fitted(family))
    state = [np.zeros(3, np.int64), np.full(3, -1), np.full(3, -1)]
    for _ in range(2):
        state = model.advance(state, np.full(3, END))
    tokens = np.array([tokens_of(b"a")[0], tokens_of(b"z")[0], END])
    state = model.advance(state, tokens)
    p = model.probabilities(state)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
    n = 40_000
    for row in range(3):
        u = (np.arange(n) + 0.5) / n
        drawn = model.draw([np.repeat(contexts[row], n) for contexts in state], u)
        assert np.abs(np.bincount(drawn, minlength=V) / n - p[row]).max() < 6 / n


def test_temperature_and_truncation_change_the_draws():
    family = Ngram(order=2, smoothing=0.0)
    after_start = {b"abcab": 2, b"cab": 1, b"ba": 1}  # of the first token: counts are a 2, b 1, c 1
    first = {text[:1]: count**2 / 6 for text, count in after_start.items()}
    rows = family.sample(fitted(family), 20_000, TextSampler(temperature=0.5, batch_size=6000, max_tokens=1), {}, CONTEXT)
    texts = Counter(BYTES.decode(rows, PREPARED)["text"].to_bytes())
    z = [(texts[text] - 20_000 * p) / np.sqrt(20_000 * p * (1 - p)) for text, p in first.items()]
    assert np.abs(z).max() < 4
    assert abs(texts[b"a"] - 20_000 * 2 / 4) / np.sqrt(5000) > 4
    for sampler in (TextSampler(temperature=0), TextSampler(top_k=1), TextSampler(top_p=0.4)):
        rows = family.sample(fitted(family), 9, sampler, {}, CONTEXT)
        assert set(BYTES.decode(rows, PREPARED)["text"].to_bytes()) == {b"ab"}


def test_rows_do_not_depend_on_the_others_and_begin_with_their_prompts():
    family, sampler = Ngram(), TextSampler(prompt="prefix", prefix_tokens=2, top_p=0.9, batch_size=3, max_tokens=12)
    prompts = sampler.draw_prompts(8, encoded(TEXTS), CONTEXT)
    rows = [family.sample(fitted(family), n, sampler, prompts, CONTEXT)["tokens"] for n in (8, 5)]
    assert rows[0].values[: rows[0].offsets[5]].tolist() == rows[1].values.tolist()
    starts = take_spans(rows[0].values, rows[0].offsets[:-1], rows[0].offsets[:-1] + 1)
    assert starts.values.tolist() == [tokens_of(text)[0] for text in TEXTS] * 2
    assert np.diff(rows[0].offsets).max() <= 12
    with pytest.raises(SpecError, match="init_from: got 'previous', which changes nothing: ngram"):
        Spec(source=PythonDocs(), family=family, n=10, init_from="previous", policies=("replace",)).points()
    with pytest.raises(SettingError, match="num_beams: got 2"):
        Spec(
            source=PythonDocs(), family=family, sampler=TextSampler(num_beams=2), n=10, holdout=5, policies=("replace",)
        ).points()


def test_chains_of_real_text_get_worse(tmp_path):
    spec = Spec(source=PythonDocs(), family=Ngram(vocab=300), n=200, holdout=40, generations=3, seeds=1,
                policies=("replace", "accumulate"), metrics=("cross_entropy", "nll"))  # fmt: skip
    curves = selfloop.run(spec, tmp_path).curves()
    replaced, accumulated = (curves[policy]["cross_entropy"][0] for policy in ("replace", "accumulate"))
    assert replaced[2] > accumulated[2] > replaced[0]
    assert replaced[0] < curves["replace"]["cross_entropy_trivial"][0, 0]
    assert (curves["replace"]["nll"] > replaced).all()  # of rows
