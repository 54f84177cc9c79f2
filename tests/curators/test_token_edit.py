"""Token edits: which tokens change, from which distribution, and on what they depend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfloop.columns import Ragged, select_rows
from selfloop.component import Context
from selfloop.curator import CuratorView
from selfloop.curators.edits import TokenEdit
from selfloop.errors import SpecError
from selfloop.families.gaussian import Gaussian
from selfloop.families.ngram import Ngram
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import RandomStream
from selfloop.sources.distributions import GaussianSource
from selfloop.sources.text_corpora import PythonDocs
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import TEXTS, logits

CTX = Context(RandomStream(("token edits",)))
FAMILY = Transformer(
    layers=1, hidden=16, heads=2, context=32, vocab=300, training=TrainingSettings(steps=150, batch_size=4, learning_rate=1e-2)
)


@pytest.fixture(scope="module")
def rows_and_view():
    """Encoded texts and the view of a model that was trained on them; the last row is longer than its context."""
    texts = Ragged.of_bytes([text.encode() for text in (*TEXTS, " ".join(TEXTS[:4]))])
    encoder = FAMILY.encoder()
    prepared = encoder.prepare([{"text": texts}], CTX)
    rows = encoder.encode({"text": texts}, prepared)
    params = FAMILY.fit(TrainingRows((RowTake(rows),), prepared), CTX, None)
    n = len(texts)
    return rows, CuratorView(1, PythonDocs(), FAMILY, TextSampler(), params, None, rows, {}, np.arange(n), np.ones(n, bool), {})


def edit(rows, view, ctx=CTX, **settings):
    judged = TokenEdit(**settings).judge(rows, view, ctx)
    assert judged.keep.all()
    return judged.rows["tokens"]


def test_the_top_tokens_are_those_of_the_network_after_the_row_s_own_tokens(rows_and_view):
    rows, view = rows_and_view
    top = FAMILY.top_tokens(view.params, rows, 5, CTX)
    from selfloop.families.transformer.network import TransformerNetwork

    network = TransformerNetwork(FAMILY.config())
    network.load_state_dict({name: torch.tensor(view.params[name]) for name in network.state_dict()})
    row = rows["tokens"].values[rows["tokens"].offsets[2] : rows["tokens"].offsets[3]].astype(np.int64)
    inputs = torch.tensor([[int(view.params["tokenizer/start"]), *row[:-1]]])
    expected = torch.log_softmax(logits(network.eval(), inputs)[0].double(), -1).detach().numpy()
    part = slice(*rows["tokens"].offsets[2:4])
    assert np.allclose(top.log_prob[part], expected[np.arange(len(row)), row], atol=1e-5)
    assert np.allclose(top.log_probs[part], -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
    assert np.allclose(np.take_along_axis(expected, top.tokens[part], 1), top.log_probs[part], atol=1e-5)
    assert not np.allclose(top.log_prob[part], expected[np.arange(len(row)), np.roll(row, 1)], atol=1e-2)
    last = select_rows(rows, np.array([len(rows["tokens"]) - 1]))
    assert len(last["tokens"].values) > 2 * FAMILY.context  # in windows that overlap by half
    windows = FAMILY.token_log_prob(view.params, last, CTX, half_stride=True).values
    assert np.allclose(FAMILY.top_tokens(view.params, last, 1, CTX).log_prob, windows, atol=1e-5)


def test_no_token_has_a_probability_above_1_and_nearly_all_have_one_above_0(rows_and_view):
    rows, view = rows_and_view
    before, end = rows["tokens"], int(view.params["tokenizer/end"])
    assert np.array_equal(edit(rows, view, threshold=1.0).values, before.values)
    after = edit(rows, view, threshold=0.0, temperature=20.0)
    assert np.array_equal(after.offsets, before.offsets)
    assert after.values.dtype == before.values.dtype
    first, changed = before.offsets[:-1], after.values != before.values
    assert np.array_equal(after.values[first], before.values[first])
    assert np.array_equal(after.values == end, before.values == end)
    editable = np.ones(len(changed), bool)
    editable[first], editable[before.values == end] = False, False
    assert changed[editable].mean() > 0.8
    assert not changed[~editable].any()


def test_tokens_are_drawn_from_the_most_probable_ones_at_a_temperature(rows_and_view):
    rows, view = rows_and_view
    position, n = 4, 4000
    copies = select_rows(rows, np.zeros(n, np.int64))
    top = FAMILY.top_tokens(view.params, select_rows(rows, np.array([0])), 3, CTX)
    tokens = edit(copies, view, threshold=0.0, top_k=3, temperature=2.0)
    drawn = tokens.values[tokens.offsets[:-1] + position]
    counts = np.array([np.mean(drawn == token) for token in top.tokens[position]])
    assert counts.sum() == pytest.approx(1)

    def z(temperature: float) -> float:
        p = np.exp(top.log_probs[position] / temperature)
        p /= p.sum()
        return float(np.abs((counts - p) / np.sqrt(p * (1 - p) / n)).max())

    assert z(2.0) < 4
    assert z(1.0) > 4


def test_a_row_s_edit_depends_on_no_other_row(rows_and_view):
    rows, view = rows_and_view
    settings = {"threshold": 0.3, "temperature": 20.0, "drop_below": 0.05}
    whole = edit(rows, view, **settings).to_bytes()
    assert whole != rows["tokens"].to_bytes()
    other = select_rows(rows, np.array([5, 6, 2, 3]))
    part = replace(view, slots=np.arange(4), synthetic=np.ones(4, bool))
    assert edit(other, part, **settings).to_bytes()[2:] == whole[2:4]
    assert edit(rows, view, CTX.child("other"), **settings).to_bytes() != whole


def test_improbable_tokens_are_dropped_but_no_prompt_and_no_first_token(rows_and_view):
    rows, view = rows_and_view
    tokens = rows["tokens"]
    prompts = Ragged(np.zeros(3 * len(tokens), np.uint16), 3 * np.arange(len(tokens) + 1))
    after = edit(rows, replace(view, inputs={"prompt": prompts}), threshold=1.0, drop_below=1.0)
    assert np.array_equal(np.diff(after.offsets), np.full(len(tokens), 4))  # the prompt and the end token
    assert np.array_equal(after[np.array([1])].values[:3], tokens[np.array([1])].values[:3])
    few = edit(rows, view, threshold=1.0, drop_below=0.05)
    p = np.exp(FAMILY.top_tokens(view.params, rows, 1, CTX).log_prob)
    inner = np.ones(len(p), bool)
    inner[tokens.offsets[:-1]], inner[tokens.values == int(view.params["tokenizer/end"])] = False, False
    assert 0 < len(tokens.values) - len(few.values) == ((p < 0.05) & inner).sum()


def test_edits_of_real_text_keep_its_bigrams_and_samples_lose_them():
    """The bigram check of Zhu et al. (2412.14689): edited text keeps the coverage of real text."""
    text = real_texts()
    model = Ngram(order=2, smoothing=0.0, vocab=600)
    prepared = model.encoder().prepare([text], CTX)
    rows = model.encoder().encode(text, prepared)
    params = model.fit(TrainingRows((RowTake(rows),), prepared), CTX, None)
    n = len(rows["tokens"])
    view = CuratorView(1, PythonDocs(), model, TextSampler(), params, None, rows, {}, np.arange(n), np.ones(n, bool), {})
    edited = edit(rows, view, threshold=0.5)
    assert (edited.values != rows["tokens"].values).mean() > 0.005
    samples = model.sample(params, n, TextSampler(), {}, CTX)["tokens"]
    real = bigrams(rows["tokens"])
    assert len(real & bigrams(edited)) / len(real) > 0.99
    assert len(real & bigrams(samples)) / len(real) < 0.8


def test_the_top_tokens_of_an_n_gram_model_are_those_of_its_probabilities():
    text = real_texts(40)
    model = Ngram(order=3, vocab=300)
    prepared = model.encoder().prepare([text], CTX)
    rows = model.encoder().encode(text, prepared)
    params = model.fit(TrainingRows((RowTake(rows),), prepared), CTX, None)
    few = select_rows(rows, np.array([7]))
    top, tokens = model.top_tokens(params, few, 3, CTX), few["tokens"].values
    position = len(tokens) // 2
    others = [np.concatenate([tokens[:position], [token], tokens[position + 1 :]]) for token in range(300)]
    offsets = len(tokens) * np.arange(301)
    values = model.token_log_prob(params, {"tokens": Ragged(np.concatenate(others), offsets)}, CTX).values
    expected = values[offsets[:-1] + position]
    assert np.allclose(top.log_prob[position], expected[tokens[position]])
    assert np.allclose(top.log_probs[position], -np.sort(-expected)[:3])
    assert np.allclose(expected[top.tokens[position]], top.log_probs[position])


def real_texts(n: int = 300) -> dict[str, Ragged]:
    """Texts that every machine has."""
    return PythonDocs().draw(0, n, CTX)


def bigrams(tokens: Ragged) -> set[tuple[int, int]]:
    """The different pairs of successive tokens, across rows too."""
    return set(zip(tokens.values[:-1].tolist(), tokens.values[1:].tolist(), strict=True))


def test_a_family_without_tokens_is_refused_before_any_work():
    with pytest.raises(SpecError, match=r"token_edit needs a language model .* gaussian is none"):
        TokenEdit().check(GaussianSource(), Gaussian(), Gaussian.sampler_class())
