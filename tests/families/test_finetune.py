"""Fine-tuning given causal language models: what is trained and counted, where a generation begins, how rows are sampled."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from bases import POSITIONS, TEXTS, VOCAB, documents, learned_of, mean_log_prob, samples_of, save_base
from selfloop.component import Context
from selfloop.errors import ChainEndedError, DataError, MissingExtraError, SpecError
from selfloop.families.finetune import hf_model
from selfloop.families.finetune.family import Finetune, Lora
from selfloop.families.nn.settings import TrainingSettings
from selfloop.plugins import component_class, names
from selfloop.protocols import SupportsExport, SupportsTokenLogProb, UsesEncoder
from selfloop.rng import RandomStream
from selfloop.spec.components import make_settings
from selfloop.store.identity import identity
from selfloop.types import Ragged, TrainingRows

ARCHS = ("gpt2", "llama", "gpt_neox")
HERE = Context(RandomStream(("test",)))
SHORT = TrainingSettings(epochs=12, batch_size=8, learning_rate=3e-3, lr_schedule="constant", warmup=0.05)
STILL = TrainingSettings(steps=1, learning_rate=1e-12)  # a fit that leaves everything where it is


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Folder of the tiny base of an architecture."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def folder(arch: str = "gpt2") -> Path:
        if arch not in made:
            made[arch] = save_base(root / arch, arch)
        return made[arch]

    return folder


def family(folder, **settings):
    return Finetune(**{"base": str(folder), "context": POSITIONS, "training": SHORT, **settings})


def weights_of(params):
    return {name: array for name, array in params.items() if not name.startswith(("tokenizer/", "training/"))}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def plain_log_prob(model, tokens, start):
    """log p of one document's tokens, one row at a time and without padding."""
    inputs = torch.tensor([[start, *tokens[:-1].tolist()]])
    with torch.inference_mode():
        scores = torch.log_softmax(model(inputs).logits[0].double(), -1)
    return scores[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))].numpy()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("lora", [None, Lora(rank=8)])
def test_fine_tuning_raises_the_likelihood_of_its_text(base, arch, lora):
    tuned, before = family(base(arch), lora=lora), family(base(arch), training=STILL)
    rows = samples_of(tuned)
    untrained = mean_log_prob(before, before.fit(rows, HERE, None))
    assert mean_log_prob(tuned, tuned.fit(rows, HERE, None)) > untrained + (0.3 if lora else 1.0)


def test_a_fit_begins_from_the_base_or_from_the_model_it_is_given(base):
    still, rows = family(base(), training=STILL), samples_of(family(base()))
    first = family(base()).fit(rows, HERE, None)
    own = hf_model.arrays_of(hf_model.open_part("model", base(), None))
    from_base, from_first = (weights_of(still.fit(rows, HERE, start)) for start in (None, first))
    assert all(np.allclose(from_base[name], own[name], atol=1e-9) for name in own)
    assert all(np.allclose(from_first[name], first[name], atol=1e-9) for name in own)
    assert not np.allclose(from_first["transformer.wte.weight"], own["transformer.wte.weight"], atol=1e-3)


def test_adapters_continue_from_a_model_too(base):
    tuned, rows = family(base(), lora=Lora(rank=2)), samples_of(family(base()))
    first = tuned.fit(rows, HERE, None)
    again = replace(tuned, training=STILL).fit(rows, HERE, first)
    assert all(np.allclose(again[name], first[name], atol=1e-9) for name in weights_of(first))
    with pytest.raises(SpecError, match="start: the arrays are no adapters of this base"):
        replace(tuned, lora=Lora(rank=2, targets=("c_attn",))).fit(rows, HERE, first)
    with pytest.raises(SpecError, match="start: array"):
        family(base()).fit(rows, HERE, first)


def test_the_same_fit_gives_the_same_bits_and_keeps_the_encoders_arrays(base):
    tuned, rows = family(base(), lora=Lora(rank=2)), samples_of(family(base()))
    first, second = (tuned.fit(rows, HERE, None) for _ in range(2))
    assert same(first, second)
    assert all(np.array_equal(first[name], rows.learned[name]) for name in rows.learned)
    assert not same(first, tuned.fit(rows, Context(RandomStream(("another",))), None))


@pytest.mark.parametrize("arch", ARCHS)
def test_a_lora_model_is_small_and_merging_gives_what_its_adapters_give(base, arch):
    tuned, rows = family(base(arch), lora=Lora(rank=1)), samples_of(family(base(arch)))
    params = tuned.fit(rows, HERE, None)
    whole = sum(array.size for array in weights_of(family(base(arch), training=STILL).fit(rows, HERE, None)).values())
    assert sum(array.size for array in weights_of(params).values()) < whole / 10
    inputs = torch.arange(40)[None] + 3
    with torch.inference_mode():
        beside, merged = (m.eval()(inputs).logits for m in (hf_model.network(tuned, params), hf_model.merged(tuned, params)))
        without = hf_model.open_part("model", base(arch), None)(inputs).logits
    torch.testing.assert_close(beside, merged, rtol=1e-4, atol=1e-4)
    assert (without - merged).abs().max() > 0.01  # the adapters left out would be noticed


def losses_of(tuned, rows, indices=(0, 1, 2, 5)):
    """The rows' training losses at the base, dropout off."""
    model = hf_model.network(tuned, None)
    task = hf_model.task_of(tuned, model, rows, np.arange(len(rows)))
    model.eval()
    with torch.no_grad():
        return task.loss(torch.tensor(indices)).numpy()


def expected_losses(folder, rows, begin, indices=(0, 1, 2, 5)):
    """Summed loss of the tokens from `begin` on, over the mean number of such tokens of all rows."""
    model, tokens = hf_model.open_part("model", folder, None), rows.parts[0][0]["tokens"]
    each = [
        plain_log_prob(model, tokens[np.array([i])].values, int(rows.learned["tokenizer/start"])) for i in range(len(tokens))
    ]
    kept = [-values[k:] for values, k in zip(each, begin, strict=True)]
    return np.array([kept[i].sum() for i in indices]) * len(kept) / sum(map(len, kept))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_losses_of_rows_average_to_the_mean_loss_of_a_token(base, arch):
    tuned = family(base(arch))
    rows = samples_of(tuned)
    assert losses_of(tuned, rows) == pytest.approx(expected_losses(base(arch), rows, [0] * len(TEXTS)), rel=1e-4)


def test_loss_counts_behind_a_text_only(base):
    chats = ("user: a dog?\nassistant: the sun", "user: the cat?\nassistant: a mat assistant: on", "user: nobody answers", "x")
    tuned = family(base(), loss_after="assistant:")
    rows = samples_of(tuned, chats)
    ids = rows.parts[0][0]["tokens"]
    begin = []
    for i, chat in enumerate(chats):
        tokens = ids[np.array([i])]
        texts = [
            documents_text(tuned, Ragged(tokens.values[:k], np.array([0, k])), rows.learned)
            for k in range(len(tokens.values) + 1)
        ]
        begin.append(next((k for k, text in enumerate(texts) if "assistant:" in text), len(texts)))
        assert chat in texts[-1]
    assert begin[0] < len(ids[np.array([0])].values)
    found = losses_of(tuned, rows, (0, 1, 2, 3))
    assert found == pytest.approx(expected_losses(base(), rows, begin, (0, 1, 2, 3)), rel=1e-4)
    assert found[2] == found[3] == 0
    wrong = expected_losses(base(), rows, [0] * 4, (0, 1, 2, 3))  # all tokens counted
    assert np.abs(found - wrong).max() > 0.1


def documents_text(tuned, tokens, learned):
    return tuned.encoder().decode({"tokens": tokens}, learned)["text"].to_bytes()[0].decode()


def test_a_fit_without_any_token_to_count_ends_its_chain(base):
    tuned = family(base(), loss_after="no such text")
    with pytest.raises(ChainEndedError, match="nothing_to_learn"):
        tuned.fit(samples_of(tuned), HERE, None)


def test_a_large_batch_goes_through_in_pieces_to_the_same_model(base, monkeypatch):
    models = []
    for room in (hf_model.BYTES, 1):
        monkeypatch.setattr(pretrained, "BYTES", room)
        tuned = family(base("llama"), training=TrainingSettings(steps=3, batch_size=9, learning_rate=1e-3))
        models.append(weights_of(tuned.fit(samples_of(tuned), HERE, None)))
    for name, whole in models[0].items():
        assert np.allclose(whole, models[1][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("arch", ARCHS)
def test_log_probabilities_are_those_of_rows_alone_and_unpadded(base, arch):
    tuned = family(base(arch), training=STILL)
    rows, learned = documents(tuned)
    found = tuned.token_log_prob(tuned.fit(TrainingRows(((rows, None, 1.0),), learned), HERE, None), rows, HERE)
    model, tokens = hf_model.open_part("model", base(arch), None), rows["tokens"]
    assert np.array_equal(found.offsets, tokens.offsets)
    for i in range(len(tokens)):
        alone = plain_log_prob(model, tokens[np.array([i])].values, int(learned["tokenizer/start"]))
        assert found[np.array([i])].values == pytest.approx(alone, abs=1e-4)


def test_rows_longer_than_the_window_are_read_in_windows_that_overlap_by_half(base):
    tuned = family(base("llama"), training=STILL, context=20)
    rows, learned = documents(tuned, (" ".join(TEXTS[:4]), "the cat"))
    model = hf_model.open_part("model", base("llama"), None)
    found = hf_model.token_log_prob(model, rows["tokens"], int(learned["tokenizer/start"]), 20)
    tokens = rows["tokens"][np.array([0])].values
    assert len(tokens) > 60
    sequence = np.concatenate([[learned["tokenizer/start"]], tokens])
    for place in range(len(tokens)):
        first = 0 if place < 20 else (place - 20) // 10 * 10 + 10  # the window in which it is new
        with torch.inference_mode():
            scores = torch.log_softmax(
                model(torch.from_numpy(sequence[None, first : place + 1].astype(np.int64))).logits[0, -1], -1
            )
        assert found.values[place] == pytest.approx(scores[int(tokens[place])].item(), abs=1e-4)
    assert np.array_equal(found.offsets, rows["tokens"].offsets)
    assert np.isfinite(found.values).all()


def test_long_documents_are_left_out_or_cut_and_counted(base):
    lengths = np.diff(documents(family(base()))[0]["tokens"].offsets)
    context = int(np.sort(lengths)[len(lengths) // 2])
    counts = {}
    for how in ("drop", "cut"):
        tuned = family(base(), context=context, long=how, training=TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-3))
        params = tuned.fit(samples_of(tuned), HERE, None)
        assert int(params["training/long_documents"]) == (lengths > context).sum() > 0
        counts[how] = int(params["training/rows"])
    assert counts["cut"] == 16 > counts["drop"] >= (lengths <= context).sum()
    with pytest.raises(DataError, match=r"family\.context: all 16 documents are longer than 2 tokens"):
        family(base(), context=2).fit(samples_of(family(base())), HERE, None)


def test_weights_and_chosen_rows_are_kept_when_documents_are_left_out(base):
    tuned = family(base(), context=20)
    rows, learned = documents(tuned)
    short = np.flatnonzero(np.diff(rows["tokens"].offsets) <= 20)
    chosen = np.arange(4, 16)
    data = TrainingRows(((rows, None, 3.0), (rows, chosen, 1.0)), learned)
    kept, _ = tuned._documents(data)
    task = hf_model.task_of(tuned, hf_model.network(tuned, None), data, kept)
    expected = np.concatenate([np.full(len(short), 3.0), np.ones(np.isin(chosen, short).sum())])
    assert task.weights == pytest.approx(expected / expected.mean())


def prompts_of(lengths):
    """Prompts of those lengths."""
    return Ragged(np.arange(sum(lengths)) % 200 + 20, np.cumsum([0, *lengths]))


def law(model, inputs, sampler):
    """The next token's probabilities under a sampler's settings."""
    with torch.inference_mode():
        logits = model(torch.tensor([inputs])).logits[0, -1].double().numpy() / sampler.temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    keep = np.zeros(len(p), bool)
    keep[order[: sampler.top_k or len(p)]] = True
    p = np.where(keep, p, 0) / p[keep].sum()
    if sampler.top_p:
        order = np.argsort(-p)
        p[order[np.concatenate([[0], np.cumsum(p[order])[:-1]]) >= sampler.top_p]] = 0
    return p / p.sum()


def fit_of(p, counts):
    """p-value of counts under a law; rare tokens together."""
    common = p * counts.sum() >= 10
    rare = [] if common.all() else [True]
    observed = np.concatenate([counts[common], [counts[~common].sum()] if rare else []])
    expected = np.concatenate([p[common], [p[~common].sum()] if rare else []]) * counts.sum()
    return 0.0 if counts[p == 0].any() else float(chisquare(observed[expected > 0], expected[expected > 0]).pvalue)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.8, "temperature": 1.5}])
def test_other_architectures_are_sampled_by_the_law_of_their_softmax(base, settings):
    tuned = family(base("gpt_neox"), training=STILL)
    learned, sampler = learned_of(tuned), Finetune.sampler(max_tokens=1, batch=1000, **settings)
    model = hf_model.open_part("model", base("gpt_neox"), None)
    model.generation_config.update(top_k=1, temperature=0.1)  # what a base would rather have
    known = (int(learned["tokenizer/start"]), int(learned["tokenizer/end"]), 1)
    first = hf_model.generate(model, 5000, sampler, None, known, HERE).values
    counts = np.bincount(first, minlength=VOCAB)
    assert fit_of(law(model, [known[0]], sampler), counts) > 1e-3
    assert fit_of(law(model, [known[0]], Finetune.sampler(temperature=0.4)), counts) < 1e-3  # another law is noticed


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_rows_are_sampled_from_the_merged_model(base, arch):
    tuned = family(base(arch), lora=Lora(rank=2), training=replace(SHORT, learning_rate=0.02))
    params = tuned.fit(samples_of(tuned), HERE, None)
    first = tuned.sample(params, 5000, Finetune.sampler(max_tokens=1), {}, HERE)["tokens"].values
    counts, start = np.bincount(first, minlength=VOCAB), int(params["tokenizer/start"])
    assert fit_of(law(hf_model.merged(tuned, params), [start], Finetune.sampler()), counts) > 1e-3
    assert fit_of(law(hf_model.open_part("model", base(arch), None), [start], Finetune.sampler()), counts) < 1e-3


def test_rows_end_with_the_end_token_or_at_the_limit_and_begin_with_their_prompts(base):
    tuned = family(base("gpt_neox"))
    params = tuned.fit(samples_of(tuned), HERE, None)
    end, prompts = int(params["tokenizer/end"]), prompts_of([3, 0, 5, 3, 11, 1] * 4)
    rows = tuned.sample(params, 24, Finetune.sampler(max_tokens=12, batch=4), {"prompt": prompts}, HERE)["tokens"]
    for i in range(24):
        row, prompt = rows[np.array([i])].values, prompts[np.array([i])].values
        assert np.array_equal(row[: len(prompt)], prompt)
        assert len(row) == 12 or row[-1] == end
        assert end not in row[:-1]
    assert rows.values.dtype == documents(tuned)[0]["tokens"].values.dtype
    with pytest.raises(SpecError, match=r"family\.sampler\.prefix: a prompt has 12 tokens; a row may have 12"):
        tuned.sample(params, 1, Finetune.sampler(max_tokens=12), {"prompt": prompts_of([12])}, HERE)


def test_every_batch_of_rows_has_randomness_of_its_own(base):
    tuned = family(base("gpt_neox"), training=STILL)
    learned = learned_of(tuned)
    model, known = hf_model.open_part("model", base("gpt_neox"), None), (0, int(learned["tokenizer/end"]), 12)
    rows = hf_model.generate(model, 120, Finetune.sampler(batch=30), None, known, HERE)
    assert len({rows[np.array([i])].values.tobytes() for i in range(120)}) > 110
    again = hf_model.generate(model, 120, Finetune.sampler(batch=30), None, known, HERE)
    assert np.array_equal(rows.values, again.values)
    halves = [
        hf_model.generate(model, 30, Finetune.sampler(batch=30), None, known, HERE) for _ in range(4)
    ]  # one seed: the artefact
    assert len({half[np.array([i])].values.tobytes() for half in halves for i in range(30)}) <= 30


def test_greedy_rows_are_the_likeliest_tokens_one_after_another(base):
    tuned = family(base("gpt_neox"))
    learned, model = learned_of(tuned), hf_model.open_part("model", base("gpt_neox"), None)
    known = (int(learned["tokenizer/start"]), int(learned["tokenizer/end"]), 8)
    rows = hf_model.generate(model, 3, Finetune.sampler(temperature=0), None, known, HERE)
    row = [known[0]]
    while len(row) < 9 and known[1] not in row[1:]:
        row.append(int(law(model, row, Finetune.sampler()).argmax()))
    assert [rows[np.array([i])].values.tolist() for i in range(3)] == [row[1:]] * 3


def test_a_family_is_what_its_settings_say_and_what_lies_in_its_folder(tmp_path):
    folder = save_base(tmp_path / "base", "gpt2")
    first = identity(family(folder))
    assert isinstance(family(folder), UsesEncoder | SupportsTokenLogProb | SupportsExport)
    copied = save_base(tmp_path / "copy", "gpt2")
    assert identity(family(copied)) == first
    (copied / "generation_config.json").write_text("{}")
    assert identity(family(copied)) != first


def test_folders_that_are_no_model_are_refused(tmp_path, base):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"family\.base: .*empty is no model: it has no readable config.json"):
        family(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(SpecError, match=r"family\.base: the tokenizer of .* cannot be opened"):
        learned_of(family(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text((base() / "config.json").read_text())
    with pytest.raises(SpecError, match=r"family\.base: the model of .* cannot be opened"):
        family(tmp_path / "empty").fit(samples_of(family(base())), HERE, None)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"the tokenizer of .* has \d+ entries, its model 270 embeddings"):
        learned_of(family(save_base(tmp_path / "small", "gpt2", vocab=270)))
    with pytest.raises(SpecError, match=r"the tokenizer of .* has no end token"):
        learned_of(family(save_base(tmp_path / "endless", "gpt2", end=None)))


def test_more_tokens_than_the_model_has_positions_are_refused(base):
    with pytest.raises(SpecError, match=rf"family\.context: got 65; the base has {POSITIONS} positions"):
        family(base(), context=POSITIONS + 1)
    tuned = family(base("gpt_neox"), training=STILL)
    params = tuned.fit(samples_of(tuned), HERE, None)
    with pytest.raises(SpecError, match=rf"family\.sampler\.max_tokens: got 65; the base has {POSITIONS} positions"):
        tuned.sample(params, 2, Finetune.sampler(max_tokens=POSITIONS + 1), {}, HERE)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base": "someone/model"}, r"family\.revision: got None; 'someone/model' is no folder here"),
        ({"base": "someone/model", "revision": "main"}, r"family\.revision: got 'main'"),
        ({"revision": "a" * 40}, r"family\.revision: got .* is a folder, which has none"),
        ({"context": 0}, r"family\.context: got 0"),
        ({"long": "split"}, r"family\.long: got 'split'"),
    ],
)
def test_impossible_settings_are_refused_by_name(base, settings, sentence):
    with pytest.raises(SpecError, match=sentence):
        family(**{"folder": base()} | settings) if "base" not in settings else Finetune(**settings)


def test_a_name_on_the_hub_is_taken_with_its_commit():
    tuned = Finetune(base="someone/model", revision="0123456789abcdef0123456789abcdef01234567")
    assert tuned.base == "someone/model"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"rank": 0}, r"family\.lora\.rank: got 0"),
        ({"alpha": 0.0}, r"family\.lora\.alpha"),
        ({"rnak": 3}, r"family\.lora: got"),
    ],
)
def test_adapters_settings_are_checked_in_a_spec(base, table, sentence):
    assert make_settings(
        Finetune, {"base": str(base()), "context": 9, "lora": {"rank": 3, "targets": ["c_attn"]}}, "family"
    ).lora == Lora(rank=3, targets=("c_attn",))
    with pytest.raises(SpecError, match=sentence):
        make_settings(Finetune, {"base": str(base()), "context": 9, "lora": table}, "family")


def test_adapters_of_modules_that_there_are_not_are_refused(base):
    tuned = family(base(), lora=Lora(targets=("nowhere",)))
    with pytest.raises(SpecError, match=r"family\.lora\.targets: Target modules"):
        tuned.fit(samples_of(tuned), HERE, None)


def test_without_peft_adapters_name_the_extra_that_brings_it(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"family\.lora: needs peft.*pip install 'selfloop\[lora\]'"):
        family(base(), lora=Lora())


def test_the_published_settings_are_the_default():
    training = Finetune(base="a/b", revision="0" * 40).training
    assert (training.learning_rate, training.lr_schedule, training.batch_size, training.max_grad_norm) == (8e-6, "constant", 128, 1.0)
    rates = [training.learning_rate_at(step, 98) for step in range(98)]
    assert rates[:5] == pytest.approx([8e-6 * k / 5 for k in range(1, 6)])  # 5 % of 98 steps
    assert set(rates[4:]) == {8e-6}


def test_a_bases_files_are_read_as_its_library_wrote_them(base):
    """The start token is the base's own where it has one, else its end token."""
    for arch, start in (("gpt2", "<|endoftext|>"), ("llama", "<s>")):
        learned = learned_of(family(base(arch)))
        known = {entry["content"]: entry["id"] for entry in json.loads(learned["tokenizer/json"].tobytes())["added_tokens"]}
        assert (int(learned["tokenizer/start"]), int(learned["tokenizer/end"])) == (known[start], known["<|endoftext|>"])


def test_a_component_whose_library_is_missing_names_the_extra_that_brings_it(tmp_path, monkeypatch):
    (tmp_path / "needs_peft.py").write_text("import peft.tuners\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(names("metric"), "tuned", "needs_peft:Tuned")
    with pytest.raises(MissingExtraError, match=r"metrics: 'tuned': needs peft.*pip install 'selfloop\[lora\]'"):
        component_class("metric", "tuned", "metrics")
