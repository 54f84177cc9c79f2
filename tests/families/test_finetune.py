"""Fine-tuning of pretrained language models: trained and counted tokens, the start of a generation, sampled rows."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, MissingExtraError, SettingError, SpecError
from selfloop.families.finetune import hf_model
from selfloop.families.finetune.family import Finetune, Lora, base_folder
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.decoder import DecodeRequest
from selfloop.families.transformer.hf_network import generate
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.families.transformer.tokenizer import find_text
from selfloop.plugins import component_class, component_names
from selfloop.protocols import SupportsExport, SupportsTokenLogProb, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.sources.text_files import TextSource
from selfloop.spec.components import make_settings
from selfloop.store.identity import identity
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import (
    POSITIONS,
    TEXTS,
    VOCAB,
    encode,
    mean_log_prob,
    prepare_encoder,
    ragged,
    save_base,
    token_lists,
    training_rows,
)

ARCHS = ("gpt2", "llama", "gpt_neox")
CTX = Context(RandomStream(("test",)))
SHORT = TrainingSettings(epochs=8, batch_size=8, learning_rate=4e-3, lr_schedule="constant", warmup=0.05)
STILL = TrainingSettings(steps=1, learning_rate=1e-12)  # a fit that changes nothing


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Function that returns the folder of the tiny base of an architecture."""
    root, folders = tmp_path_factory.mktemp("bases"), {}

    def folder(arch: str = "gpt2") -> Path:
        if arch not in folders:
            folders[arch] = save_base(root / arch, arch)
        return folders[arch]

    return folder


@pytest.fixture(scope="module")
def fitted(base):
    """Function that returns the short fit of an architecture, with or without adapters of rank 2."""
    models = {}

    def fit(arch: str = "gpt2", lora: Lora | None = None):
        if (arch, lora) not in models:
            tuned = family(base(arch), lora=lora)
            models[arch, lora] = tuned.fit(training_rows(tuned), CTX, None)
        return models[arch, lora]

    return fit


def family(folder, **settings):
    return Finetune(**{"base_model": str(folder), "context": POSITIONS, "training": SHORT, **settings})


def open_base(folder):
    return hf_model.open_base(base_folder(Path(folder), None))


def weights(params):
    return {name: array for name, array in params.items() if not name.startswith(("tokenizer/", "training/"))}


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def plain_log_prob(model, tokens, start):
    """Log p of one document's tokens, alone and without padding."""
    inputs = torch.tensor([[start, *tokens[:-1]]])
    with torch.inference_mode():
        scores = torch.log_softmax(model(inputs).logits[0].double(), -1)
    return scores[torch.arange(len(tokens)), torch.tensor(tokens)].numpy()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["all", "lora"])
def test_fine_tuning_raises_the_likelihood_of_its_text(base, fitted, arch, lora):
    tuned = family(base(arch), lora=lora)
    untrained = float(np.mean([np.mean(values) for values in base_log_probs(base(arch))]))
    assert mean_log_prob(tuned, fitted(arch, lora)) > untrained + (0.1 if lora else 1.0)


def base_log_probs(folder):
    """Log p of the tokens of every text under the base."""
    model, tuned = open_base(folder), family(folder)
    start = int(prepare_encoder(tuned)["tokenizer/start"])
    return [plain_log_prob(model, tokens, start) for tokens in token_lists(encode(tuned)["tokens"])]


def test_a_fit_starts_from_the_base_or_from_another_model(base, fitted):
    still = family(base(), training=STILL)
    rows, first = training_rows(still), fitted()
    own = hf_model.network_arrays(open_base(base()))
    from_base, from_first = (weights(still.fit(rows, CTX, init)) for init in (None, first))
    assert all(np.allclose(from_base[name], own[name], atol=1e-9) for name in own)
    assert all(np.allclose(from_first[name], first[name], atol=1e-9) for name in own)
    assert not np.allclose(from_first["transformer.wte.weight"], own["transformer.wte.weight"], atol=1e-3)


def test_adapters_continue_from_a_model_with_the_same_adapters(base, fitted):
    tuned, rows = family(base(), lora=Lora(rank=2)), training_rows(family(base()))
    first = fitted("gpt2", Lora(rank=2))
    again = replace(tuned, training=STILL).fit(rows, CTX, first)
    assert all(np.allclose(again[name], first[name], atol=1e-9) for name in weights(first))
    with pytest.raises(SpecError, match="init_from: the arrays are no adapters of this base"):
        replace(tuned, lora=Lora(rank=2, target_modules=("c_attn",))).fit(rows, CTX, first)
    with pytest.raises(SpecError, match="init_from: the arrays do not fit"):
        family(base()).fit(rows, CTX, first)


def test_the_same_fit_gives_the_same_bits_and_keeps_the_encoders_arrays(base, fitted):
    tuned, first = family(base(), lora=Lora(rank=2)), fitted("gpt2", Lora(rank=2))
    rows = training_rows(tuned)
    assert equal(first, tuned.fit(rows, CTX, None))
    assert all(np.array_equal(first[name], rows.prepared[name]) for name in rows.prepared)
    assert not equal(first, tuned.fit(rows, Context(RandomStream(("another",))), None))


@pytest.mark.parametrize("arch", ARCHS)
def test_a_model_with_adapters_is_small_and_merging_keeps_its_logits(base, fitted, arch):
    lora = Lora(rank=2)
    params = fitted(arch, lora)
    model = open_base(base(arch))
    assert sum(array.size for array in weights(params).values()) < sum(p.numel() for p in model.parameters()) / 5
    inputs = torch.arange(40)[None] + 3
    with torch.inference_mode():
        beside = hf_model.open_network(base_folder(base(arch), None), lora, params).eval()(inputs).logits
        merged = hf_model.open_merged(base_folder(base(arch), None), lora, params)(inputs).logits
        without = model(inputs).logits
    torch.testing.assert_close(beside, merged, rtol=1e-4, atol=1e-4)
    assert (without - merged).abs().max() > 0.01, "the test needs adapters with an effect"


def training_losses(tuned, rows):
    """The rows' training losses at the base, without dropout."""
    model = open_base(tuned.base_model)
    indices = np.arange(len(rows))
    problem = hf_model.training_problem(model, rows, indices, tuned.context, tuned.response_template, adapters_only=False)
    model.eval()
    with torch.no_grad():
        return problem.loss(torch.from_numpy(indices)).numpy()


def expected_losses(folder, rows, begins):
    """Sum of the losses of the tokens from `begins` on, over the mean number of such tokens per row."""
    model, start = open_base(folder), int(rows.prepared["tokenizer/start"])
    documents = token_lists(rows.takes[0].rows["tokens"])
    losses = [-plain_log_prob(model, tokens, start)[k:] for tokens, k in zip(documents, begins, strict=True)]
    return np.array([values.sum() for values in losses]) * len(losses) / sum(map(len, losses))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_losses_of_rows_average_to_the_mean_loss_of_a_token(base, arch):
    tuned = family(base(arch))
    rows = training_rows(tuned, TEXTS[:4])
    assert training_losses(tuned, rows) == pytest.approx(expected_losses(base(arch), rows, [0] * 4), rel=1e-4)


def test_only_tokens_after_the_response_template_count(base):
    chats = ("user: a dog?\nassistant: the sun", "user: the cat?\nassistant: a mat assistant: on", "user: nobody answers", "x")
    tuned = family(base(), response_template="assistant:")
    rows = training_rows(tuned, chats)
    begins = []
    for tokens, chat in zip(token_lists(rows.takes[0].rows["tokens"]), chats, strict=True):
        prefixes = {"tokens": ragged([tokens[:k] for k in range(len(tokens) + 1)])}
        texts = [text.decode() for text in tuned.encoder().decode(prefixes, rows.prepared)["text"].to_bytes()]
        begins.append(next((k for k, text in enumerate(texts) if "assistant:" in text), len(texts)))
        assert chat in texts[-1]
    losses = training_losses(tuned, rows)
    assert losses == pytest.approx(expected_losses(base(), rows, begins), rel=1e-4)
    assert losses[2] == losses[3] == 0
    assert np.abs(losses - expected_losses(base(), rows, [0] * 4)).max() > 0.1  # all tokens counted


@pytest.mark.parametrize("limit", [0.005, 0.001])
def test_tokens_above_the_truncation_of_the_loss_do_not_count(base, limit):
    tuned = family(base())
    rows, indices = training_rows(tuned, TEXTS[:4]), np.arange(4)
    model, start = open_base(base()), int(rows.prepared["tokenizer/start"])
    problem = hf_model.training_problem(model, rows, indices, tuned.context, "", adapters_only=False, truncation=limit)
    model.eval()
    with torch.no_grad():
        losses = problem.loss(torch.from_numpy(indices)).numpy()
    log_prob = [plain_log_prob(model, tokens, start) for tokens in token_lists(rows.takes[0].rows["tokens"])]
    expected = [-values[np.exp(values) <= limit].sum() for values in log_prob]
    assert losses == pytest.approx(np.array(expected) * 4 / sum(map(len, log_prob)), rel=1e-4)
    assert np.abs(losses - training_losses(tuned, rows)).max() > 1e-3


def test_a_fit_without_training_tokens_ends_its_chain(base):
    tuned = family(base(), response_template="no such text")
    with pytest.raises(ChainEndedError, match="no_training_tokens"):
        tuned.fit(training_rows(tuned), CTX, None)


def test_a_response_template_that_no_document_has_is_refused_before_training(base, tmp_path):
    (tmp_path / "a.txt").write_text("user: x\nASSISTANT: y\n\nuser: z")
    source = TextSource(path=tmp_path / "a.txt")
    family(base(), response_template="assistant:").check(source, TextSampler())
    with pytest.raises(SettingError, match=r"^family\.response_template: got 'zzz', which is in no document of the source"):
        family(base(), response_template="zzz").check(source, TextSampler())


def test_micro_batches_give_the_same_model_as_whole_minibatches(base, monkeypatch):
    models = []
    for n_bytes in (hf_model.TRAINING_BYTES, 1):
        monkeypatch.setattr(hf_model, "TRAINING_BYTES", n_bytes)
        tuned = family(base("llama"), training=TrainingSettings(steps=3, batch_size=9, learning_rate=1e-3))
        models.append(weights(tuned.fit(training_rows(tuned), CTX, None)))
    for name, whole in models[0].items():
        assert np.allclose(whole, models[1][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("arch", ARCHS)
def test_log_probabilities_are_those_of_single_unpadded_rows(base, arch):
    tuned = family(base(arch))
    rows, start = encode(tuned)["tokens"], int(prepare_encoder(tuned)["tokenizer/start"])
    found = hf_model.token_log_prob(open_base(base(arch)), rows, start, POSITIONS)
    assert np.array_equal(found.offsets, rows.offsets)
    assert found.values == pytest.approx(np.concatenate(base_log_probs(base(arch))), abs=1e-4)


def test_the_most_probable_tokens_include_the_own_one_in_its_rank(base, fitted):
    tuned, params = family(base(), lora=Lora(rank=2)), fitted("gpt2", Lora(rank=2))
    rows, ctx = encode(tuned), Context(RandomStream(("top",)))
    top, own = tuned.top_tokens(params, rows, VOCAB + 7, ctx), rows["tokens"].values
    assert top.tokens.shape == (len(own), VOCAB)
    assert np.allclose(top.log_prob, tuned.token_log_prob(params, rows, ctx).values, atol=1e-6)
    assert np.allclose(top.log_probs[top.tokens == own[:, None]], top.log_prob)
    assert np.allclose(np.exp(top.log_probs).sum(axis=1), 1, atol=1e-5)
    assert (np.diff(top.log_probs) <= 0).all()
    assert ctx.backends["judging"].startswith("torch ")


def test_rows_longer_than_the_window_are_scored_in_windows_that_overlap_by_half(base):
    tuned, model = family(base("llama"), context=20), open_base(base("llama"))
    rows, start = encode(tuned, (" ".join(TEXTS[:4]), "the cat"))["tokens"], int(prepare_encoder(tuned)["tokenizer/start"])
    found = hf_model.token_log_prob(model, rows, start, 20)
    tokens = token_lists(rows)[0]
    assert len(tokens) > 60
    sequence = torch.tensor([[start, *tokens]])
    for position, token in enumerate(tokens):
        first = 0 if position < 20 else (position - 20) // 10 * 10 + 10  # the window in which it is scored
        with torch.inference_mode():
            scores = torch.log_softmax(model(sequence[:, first : position + 1]).logits[0, -1], -1)
        assert found.values[position] == pytest.approx(scores[token].item(), abs=1e-4)
    assert np.array_equal(found.offsets, rows.offsets)
    assert np.isfinite(found.values).all()


def test_long_documents_are_dropped_or_truncated_and_counted(base):
    lengths = np.diff(encode(family(base()))["tokens"].offsets)
    context = int(np.sort(lengths)[len(lengths) // 2])
    counts = {}
    for how in ("drop", "truncate"):
        training = TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-3)
        tuned = family(base(), context=context, long_documents=how, training=training)
        says = pytest.warns(
            UserWarning, match=rf"family\.context: more than 5% of the documents of a fit have more than {context} tokens"
        )
        with says if how == "drop" else nullcontext():
            params = tuned.fit(training_rows(tuned), CTX, None)
        assert int(params["training/long_documents"]) == (lengths > context).sum() > 0
        counts[how] = int(params["training/rows"])
        assert math.isnan(tuned.count_steps(16)) if how == "drop" else tuned.count_steps(16) == params["training/steps"]
    assert counts["truncate"] == 16 > counts["drop"] >= (lengths <= context).sum()
    with pytest.raises(DataError, match=r"family\.context: got 2; all 16 documents are longer"):
        family(base(), context=2).fit(training_rows(family(base())), CTX, None)


def test_weights_and_indices_of_takes_remain_when_documents_are_dropped(base):
    tuned = family(base(), context=20)
    rows = encode(tuned)
    short = np.flatnonzero(np.diff(rows["tokens"].offsets) <= 20)
    taken = np.arange(4, 16)
    data = TrainingRows((RowTake(rows, None, 3.0), RowTake(rows, taken, 1.0)), prepare_encoder(tuned))
    with pytest.warns(UserWarning, match=r"left out; shorter samples are all used"):
        indices, _ = tuned._select_documents(data)
    problem = hf_model.training_problem(open_base(base()), data, indices, 20, "", adapters_only=False)
    expected = np.concatenate([np.full(len(short), 3.0), np.ones(np.isin(taken, short).sum())])
    assert problem.weights == pytest.approx(expected / expected.mean())


def next_token_probabilities(model, inputs, sampler):
    """Probabilities of the next token under a sampler's settings."""
    with torch.inference_mode():
        logits = model(torch.tensor([inputs])).logits[0, -1].double().numpy() / sampler.temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    p[order[sampler.top_k or len(p) :]] = 0
    p /= p.sum()
    if sampler.top_p:
        p[order[np.concatenate([[0], np.cumsum(p[order])[:-1]]) >= sampler.top_p]] = 0
    return p / p.sum()


def p_value(p, counts):
    """Chi-square test of counts; rare tokens are one category. 0 if an impossible token was drawn."""
    common = p * counts.sum() >= 10
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(p[common], p[~common].sum())
    possible = expected > 0
    if counts[p == 0].any():
        return 0.0
    return float(chisquare(observed[possible], expected[possible] * counts.sum()).pvalue)


def request(tuned, n, limit, sampler, prompts=None):
    prepared = prepare_encoder(tuned)
    start, end = int(prepared["tokenizer/start"]), int(prepared["tokenizer/end"])
    prompts = read_prompts({}, n) if prompts is None else prompts
    return DecodeRequest(np.arange(len(prompts)), np.full(len(prompts), start), prompts, 0, end, limit, sampler)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.8, "temperature": 1.5}], ids=str)
def test_other_architectures_are_sampled_from_their_softmax(base, settings):
    tuned, sampler, model = family(base("gpt_neox")), TextSampler(batch_size=1000, **settings), open_base(base("gpt_neox"))
    model.generation_config.update(top_k=1, temperature=0.1)  # settings of the base, which are not used
    asked = request(tuned, 4000, 1, sampler)
    counts = np.bincount(generate(model, asked, CTX).values, minlength=VOCAB)
    assert p_value(next_token_probabilities(model, [int(asked.starts[0])], sampler), counts) > 1e-3
    assert p_value(next_token_probabilities(model, [int(asked.starts[0])], TextSampler(temperature=0.4)), counts) < 1e-3


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_rows_are_sampled_from_the_merged_model(base, fitted, arch):
    tuned, params = family(base(arch), lora=Lora(rank=2)), fitted(arch, Lora(rank=2))
    samples = tuned.sample(params, 30_000, TextSampler(max_tokens=1), {}, CTX)["tokens"].values
    counts, start = np.bincount(samples, minlength=VOCAB), int(params["tokenizer/start"])
    merged = hf_model.open_merged(base_folder(base(arch), None), Lora(rank=2), params)
    assert p_value(next_token_probabilities(merged, [start], TextSampler()), counts) > 1e-3
    assert p_value(next_token_probabilities(open_base(base(arch)), [start], TextSampler()), counts) < 1e-3


def test_prompts_before_the_response_end_where_the_tokens_that_count_begin(base, fitted):
    chats = [text for text in TEXTS if "assistant:" in text]
    tuned, params = family(base(), response_template="assistant:"), fitted("gpt2")
    sampler = TextSampler(prompt="before").complete(tuned)
    rows, prepared = encode(tuned, chats), prepare_encoder(tuned)
    prompts = sampler.draw_prompts(len(chats) + 2, {**rows, **prepared}, CTX)
    begins = find_text(rows["tokens"], prepared, "assistant:")
    n_prompt = np.diff(prompts["prompt"].offsets)
    assert n_prompt.tolist() == [*begins, *begins[:2]]
    samples = tuned.sample(params, len(n_prompt), sampler, prompts, CTX)["tokens"]
    for row, prompt, real in zip(
        token_lists(samples), token_lists(prompts["prompt"]), token_lists(rows["tokens"]) * 2, strict=False
    ):
        assert row[: len(prompt)] == prompt == real[: len(prompt)]
        assert len(row) > len(prompt)
    with pytest.raises(SpecError, match=r"^family\.sampler\.prompt: got prompts of \d+ tokens; expected less than 4\. Raise"):
        tuned.sample(params, len(n_prompt), replace(sampler, max_tokens=4), prompts, CTX)
    with pytest.raises(SettingError, match=r"^family\.sampler\.response_template: got ''; prompt = 'before' needs"):
        TextSampler(prompt="before").complete(family(base()))


def test_documents_that_are_not_trained_on_begin_no_text(base):
    chats = [text for text in TEXTS if "assistant:" in text][:3]
    long = "user: " + "the cat sat " * 40 + "\nassistant: the cat"
    texts = [chats[0], long, chats[1], chats[2]]
    tuned, prepared = family(base(), response_template="assistant:"), prepare_encoder(family(base()))
    rows = encode(tuned, texts)
    for long_documents in ("drop", "truncate"):
        sampler = TextSampler(prompt="before").complete(replace(tuned, long_documents=long_documents))
        prompts = token_lists(sampler.draw_prompts(6, {**rows, **prepared}, CTX)["prompt"])
        assert prompts == [prompts[0], prompts[2], prompts[2], prompts[3], prompts[0], prompts[2]]
        assert max(map(len, prompts)) < tuned.context
        with pytest.raises(DataError, match=r"^family\.sampler\.prompt: 1 of 1 initial rows are too long"):
            sampler.draw_prompts(1, {**encode(tuned, [long]), **prepared}, CTX)
    ends_late = [chats[0] + " the cat sat" * 40, chats[1]]  # its prompt fits, and truncated documents are trained on
    for long_documents, is_drawn in (("drop", False), ("truncate", True)):
        sampler = TextSampler(prompt="before").complete(replace(tuned, long_documents=long_documents))
        first, second = token_lists(sampler.draw_prompts(2, {**encode(tuned, ends_late), **prepared}, CTX)["prompt"])
        assert (first != second or chats[0] == chats[1]) == is_drawn
    tight = TextSampler(prompt="before", max_tokens=3).complete(tuned)
    with pytest.raises(DataError, match=r"^family\.sampler\.prompt: 3 of 3 initial rows are too long to begin a text of 3"):
        tight.draw_prompts(3, {**encode(tuned, chats), **prepared}, CTX)


def test_rows_begin_with_their_prompts_and_end_with_the_end_token_or_at_the_limit(base, fitted):
    tuned, params = family(base("gpt_neox")), fitted("gpt_neox")
    end, prompts = int(params["tokenizer/end"]), ragged([list(range(20, 20 + k)) for k in [3, 0, 5, 3, 11, 1] * 4])
    rows = tuned.sample(params, 24, TextSampler(max_tokens=12, batch_size=4), {"prompt": prompts}, CTX)["tokens"]
    for row, prompt in zip(token_lists(rows), token_lists(prompts), strict=True):
        assert row[: len(prompt)] == prompt
        assert len(row) == 12 or row[-1] == end
        assert end not in row[:-1]
    assert rows.values.dtype == encode(tuned)["tokens"].values.dtype
    with pytest.raises(SpecError, match=r"family\.sampler\.prefix_tokens: got prompts of 12 tokens; expected less than 12"):
        tuned.sample(params, 1, TextSampler(max_tokens=12), {"prompt": ragged([range(12)])}, CTX)


def test_every_minibatch_of_sampled_rows_has_its_own_random_numbers(base):
    tuned, model = family(base("gpt_neox")), open_base(base("gpt_neox"))
    rows = [generate(model, request(tuned, 60, 12, TextSampler(batch_size=20)), CTX) for _ in range(2)]
    assert len({tuple(row) for row in token_lists(rows[0])}) > 55
    assert np.array_equal(rows[0].values, rows[1].values)


def test_greedy_rows_are_the_most_probable_tokens_one_after_another(base):
    tuned, model = family(base("gpt_neox")), open_base(base("gpt_neox"))
    asked = request(tuned, 3, 8, TextSampler(temperature=0))
    row = [int(asked.starts[0])]
    while len(row) < 9 and asked.end not in row[1:]:
        row.append(int(next_token_probabilities(model, row, TextSampler()).argmax()))
    assert token_lists(generate(model, asked, CTX)) == [row[1:]] * 3


def test_the_identity_of_a_family_is_its_settings_and_the_content_of_its_folder(tmp_path):
    folder = save_base(tmp_path / "base", "gpt2")
    first = identity(family(folder))
    for protocol in (UsesEncoder, SupportsTokenLogProb, SupportsExport):
        assert isinstance(family(folder), protocol)
    copied = save_base(tmp_path / "copy", "gpt2")
    assert identity(family(copied)) == first
    (copied / "generation_config.json").write_text("{}")
    assert identity(family(copied)) != first


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"has a tokenizer of \d+ entries and a network of 270 embeddings"):
        prepare_encoder(family(save_base(tmp_path / "small", "gpt2", vocab=270)))
    with pytest.raises(SpecError, match=r"has a tokenizer without an end token"):
        prepare_encoder(family(save_base(tmp_path / "endless", "gpt2", end=None)))


def test_more_tokens_than_the_model_has_positions_are_refused(base, fitted):
    with pytest.raises(SpecError, match=rf"^context: got 65; the base model has {POSITIONS} positions"):
        family(base(), context=POSITIONS + 1)
    tuned = family(base("gpt_neox"))
    with pytest.raises(SpecError, match=rf"family\.sampler\.max_tokens: got 65; the base model has {POSITIONS} positions"):
        tuned.sample(fitted("gpt_neox"), 2, TextSampler(max_tokens=POSITIONS + 1), {}, CTX)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base_model": "someone/model"}, r"revision: got None; there is no folder 'someone/model'"),
        ({"base_model": "someone/model", "revision": "main"}, r"revision: got 'main'"),
        ({"revision": "a" * 40}, r"revision: got .* is a local path, which has no revision"),
        ({"context": 0}, r"context: got 0"),
        ({"long_documents": "split"}, r"long_documents: got 'split'"),
    ],
)
def test_impossible_settings_are_refused_by_name(base, settings, sentence):
    with pytest.raises(SpecError, match=f"^{sentence}"):
        Finetune(**{"base_model": str(base())} | settings)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"rank": 0}, r"family\.lora\.rank: got 0"),
        ({"alpha": 0.0}, r"family\.lora\.alpha: got 0.0"),
        ({"rnak": 3}, r"family\.lora\.rnak: unknown"),
    ],
)
def test_settings_of_adapters_are_checked_in_a_spec(base, table, sentence):
    settings = {"base_model": str(base()), "context": 9}
    good = make_settings(Finetune, settings | {"lora": {"rank": 3, "target_modules": ["c_attn"]}}, "family")
    assert good.lora == Lora(rank=3, target_modules=("c_attn",))
    with pytest.raises(SpecError, match=sentence):
        make_settings(Finetune, settings | {"lora": table}, "family")


def test_adapters_of_unknown_modules_are_refused(base):
    tuned = family(base(), lora=Lora(target_modules=("nowhere",)))
    with pytest.raises(SpecError, match=r"family\.lora\.target_modules: Target modules"):
        tuned.fit(training_rows(tuned), CTX, None)


def test_without_peft_adapters_name_the_extra_that_installs_it(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"family\.lora: needs peft.*pip install 'selfloop\[lora\]'"):
        family(base(), lora=Lora())


def test_the_published_settings_are_the_default():
    tuned = Finetune(base_model="a/b", revision="0" * 40)
    assert tuned.base_model == "a/b"
    training = tuned.training
    published = (training.learning_rate, training.lr_schedule, training.batch_size, training.max_grad_norm)
    assert published == (8e-6, "constant", 128, 1.0)
    rates = [training.learning_rate_at(step, 98) for step in range(98)]
    assert rates[:5] == pytest.approx([8e-6 * k / 5 for k in range(1, 6)])  # 5 % of 98 steps
    assert set(rates[4:]) == {8e-6}


def test_the_start_token_is_the_bases_own_or_its_end_token(base):
    for arch, start in (("gpt2", "<|endoftext|>"), ("llama", "<s>")):
        prepared = prepare_encoder(family(base(arch)))
        ids = {entry["content"]: entry["id"] for entry in json.loads(prepared["tokenizer/json"].tobytes())["added_tokens"]}
        assert (int(prepared["tokenizer/start"]), int(prepared["tokenizer/end"])) == (ids[start], ids["<|endoftext|>"])


def test_a_component_whose_library_is_missing_names_the_extra_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "needs_peft.py").write_text("import peft.tuners\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(component_names("metric"), "tuned", "needs_peft:Tuned")
    with pytest.raises(MissingExtraError, match=r"metrics: 'tuned': needs peft.*pip install 'selfloop\[lora\]'"):
        component_class("metric", "tuned", "metrics")
