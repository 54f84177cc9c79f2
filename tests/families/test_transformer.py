"""The transformer family: a fit is a function of rows, stream and settings, and its log probabilities are the network's."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.engine.steps import load_params
from selfloop.errors import DataError, SettingError
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.hf_network import build_hf_model, to_hf_config
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.rng import RandomStream
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import logits, ragged

PREPARED = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0), "tokenizer/json": np.zeros(1, np.uint8)}
CTX = Context(RandomStream())
SHORT = TrainingSettings(epochs=2, batch_size=8, learning_rate=3e-3)


def tiny(training=SHORT, **settings):
    return Transformer(**{"vocab": 40, "hidden": 16, "layers": 2, "heads": 2, "context": 16, "training": training, **settings})


def random_walks(n=60, vocab=40):
    """Documents in which each token is the preceding token plus one or two: half a bit per token, once learned."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate([1 + (rng.integers(1, 3, k).cumsum() + rng.integers(vocab)) % (vocab - 1) for k in lengths])
    values[offsets[1:] - 1] = 0
    return Ragged(values.astype(np.uint16), offsets)


def fit(family=None, rows=None, name="fit", scratch=None, threads=1, init=None):
    training_rows = TrainingRows((RowTake({"tokens": random_walks() if rows is None else rows}),), PREPARED)
    return (family or tiny()).fit(training_rows, Context(RandomStream((name,)), scratch, threads), init)


@pytest.fixture(scope="module")
def model():
    """A short fit of the tiny family."""
    return fit()


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


FAMILIES = {
    "gpt2": tiny(),
    "llama with documents apart": tiny(arch="llama", heads=4, kv_heads=2, cross_document_attention=False),
    "dropout": tiny(dropout=0.1),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@each_family
def test_a_fit_that_is_stopped_continues_to_the_same_bits(tmp_path, monkeypatch, family):
    family = replace(family, training=TrainingSettings(steps=6, batch_size=8, learning_rate=3e-3, checkpoint_seconds=0.0))
    threads = 1 if family.dropout else 2  # threads inside operations are slow on a busy machine
    whole = fit(family, threads=threads)
    advance = trainer._TrainingState.advance
    for stop in (2, 5):

        def stop_at(state, step, *rest, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            advance(state, step, *rest)

        monkeypatch.setattr(trainer._TrainingState, "advance", stop_at)
        with pytest.raises(KeyboardInterrupt):
            fit(family, scratch=tmp_path, threads=threads)
    monkeypatch.setattr(trainer._TrainingState, "advance", advance)
    assert (tmp_path / "fit.safetensors").exists()
    assert equal(fit(family, scratch=tmp_path, threads=threads), whole)
    assert not equal(fit(family, name="another"), whole)


@each_family
def test_a_fit_learns_the_rule_of_the_documents(family):
    training = TrainingSettings(steps=120, batch_size=16, learning_rate=1e-2, warmup=0.05)
    curve = fit(replace(family, training=training), random_walks(300))["training/loss"]
    assert curve[0] > 3.4
    assert curve[-10:].mean() < 2.2


def test_threads_change_only_last_bits(model):
    two = fit(threads=2)
    for name in model:
        np.testing.assert_allclose(model[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_model_has_the_arrays_of_its_tokenizer_and_transformers_names(model):
    assert {name for name in model if name.startswith("tokenizer/")} == set(PREPARED)
    weights = {name for name in model if not name.startswith(("tokenizer/", "training/"))}
    library_model = build_hf_model(to_hf_config(tiny().config(), 0, 0), model)
    assert weights == set(library_model.state_dict()) - {"lm_head.weight"}
    assert model["transformer.h.1.mlp.c_fc.weight"].shape == (16, 64)  # (inputs, outputs)


def test_a_fit_continues_from_another_models_parameters(model):
    still = tiny(TrainingSettings(steps=1, learning_rate=1e-12))
    again = fit(still, init=model, name="later")
    np.testing.assert_allclose(again["transformer.wte.weight"], model["transformer.wte.weight"], atol=1e-9)


def test_a_fit_does_not_continue_from_a_model_with_another_tokenizer(model):
    other = {**model, "tokenizer/json": np.frombuffer(b"another", np.uint8)}
    with pytest.raises(DataError, match="init_from: that model was trained with another tokenizer"):
        fit(init=other)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_fit_starts_from_an_exported_model_in_bfloat16_with_its_tokenizer(arch, tmp_path):
    text = {"text": Ragged.of_bytes([b"the cat sat on the mat"] * 20)}
    family = tiny(TrainingSettings(steps=1, learning_rate=1e-12), arch=arch, vocab=300)
    prepared = family.encoder().prepare(iter([text]), CTX)
    rows = TrainingRows((RowTake(family.encoder().encode(text, prepared)),), prepared)
    params = family.fit(rows, CTX, None)
    family.export(params, tmp_path, "bfloat16")
    init = load_params(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="init_from: that model is without its tokenizer"):
        family.fit(rows, CTX, init)
    again = replace(family, tokenizer=tmp_path / "tokenizer.json").fit(rows, CTX, init)
    names = [name for name in params if "." in name]
    assert all(np.allclose(again[name], params[name], rtol=1e-2, atol=1e-6) for name in names)


def test_weights_of_rows_decide_the_probabilities_of_contradicting_documents():
    a, b = (ragged([[5, token, 0]]) for token in (7, 9))
    takes = (RowTake({"tokens": a}, np.zeros(30, np.int64), 3.0), RowTake({"tokens": b}, np.zeros(30, np.int64), 1.0))
    training = TrainingSettings(steps=150, batch_size=16, learning_rate=1e-2)
    family = tiny(training, cross_document_attention=False)
    fitted = family.fit(TrainingRows(takes, PREPARED), Context(RandomStream(("fit",))), None)
    for row, share in ((a, 0.75), (b, 0.25)):
        assert np.exp(family.token_log_prob(fitted, {"tokens": row}, CTX).values[1]) == pytest.approx(share, abs=0.06)


def test_log_probabilities_are_the_networks_and_have_the_rows_offsets(model):
    family, rows = tiny(cross_document_attention=False, context=16), random_walks(20)
    first = rows[np.array([np.flatnonzero(np.diff(rows.offsets) < 16)[0]])]  # fits into one window
    values = family.token_log_prob(model, {"tokens": first}, CTX)
    assert np.array_equal(values.offsets, first.offsets)
    network = TransformerNetwork(family.config())
    trainer.load_params(network, model)
    tokens = torch.tensor([[0, *first.values.tolist()]])
    with torch.inference_mode():
        expected = logits(network.eval(), tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
    np.testing.assert_allclose(values.values, expected, atol=1e-4)


@pytest.mark.parametrize("crosses", [True, False])
def test_half_a_stride_is_the_network_on_windows_half_a_context_apart(model, crosses):
    family, rows = tiny(cross_document_attention=crosses), ragged([[*range(1, 38), 0], [5, 6, 0]])
    found = family.token_log_prob(model, {"tokens": rows}, CTX, half_stride=True)
    network = TransformerNetwork(family.config()).eval()
    trainer.load_params(network, model)
    tokens, expected = torch.tensor([0, *rows.values.tolist()]), np.full(41, np.nan)
    for first in range(0, 40, 8):  # 16 tokens of context
        inputs, targets = tokens[first : first + 16], tokens[first + 1 : first + 17]
        documents = None if crosses else (torch.arange(first, first + len(inputs)) >= 38).long()[None]
        with torch.inference_mode():
            log_probs = logits(network, inputs[None], documents).log_softmax(-1)[0, : len(targets)]
        values = log_probs.gather(1, targets[:, None])[:, 0].numpy()
        part = slice(first + 8 if first else 0, first + len(targets))
        expected[part] = values[part.start - first :]
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert np.array_equal(found.offsets, rows.offsets)
    windows = family.token_log_prob(model, {"tokens": rows}, CTX).values
    assert np.array_equal(windows[:16], found.values[:16])
    assert not np.allclose(windows[16:24], found.values[16:24], atol=1e-3)


def test_attention_crosses_documents_only_if_it_is_set(model):
    rows = ragged([[3, 4, 0], [8, 9, 0]])
    for crosses in (True, False):
        family = tiny(cross_document_attention=crosses)
        both, one = (family.token_log_prob(model, {"tokens": r}, CTX).values for r in (rows, rows[np.array([1])]))
        assert np.allclose(both[3:], one, atol=1e-5) == (not crosses)


def test_a_step_enters_its_backend(model):
    ctx = Context(RandomStream())
    tiny().token_log_prob(model, {"tokens": random_walks(2)}, ctx)
    tiny().fit(TrainingRows((RowTake({"tokens": random_walks(2)}),), PREPARED), ctx, None)
    assert ctx.backends == {purpose: f"torch {trainer.device().type} float32" for purpose in ("measuring", "training")}


def test_bfloat16_agrees_approximately(model):
    curve = fit(tiny(replace(SHORT, precision="bfloat16")))["training/loss"]
    assert not np.array_equal(model["training/loss"], curve)
    np.testing.assert_allclose(model["training/loss"], curve, atol=0.05)


def test_the_first_generation_may_have_its_own_number_of_steps():
    family = tiny(TrainingSettings(first_generation_steps=3, steps=9))
    assert [family.for_generation(t).training.steps for t in (1, 2, 3)] == [3, 9, 9]
    assert family.for_generation(2) == tiny(TrainingSettings(steps=9))  # so later generations do not depend on it
    assert family.count_steps(50) == 9
    assert math.isnan(tiny().count_steps(50))  # depends on the lengths of the rows


def test_reading_a_spec_does_not_load_torch():
    code = "import sys, selfloop.families.transformer.family as f; assert not {'torch', 'transformers'} & set(sys.modules), f"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layers", 0), ("hidden", 0), ("vocab", 0), ("context", 1), ("mlp_hidden", 0), ("heads", 3), ("kv_heads", 2),
     ("arch", "bert"), ("dropout", 1.0)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        Transformer(**{setting: value})


def test_the_heads_of_a_llama_have_an_even_size():
    with pytest.raises(SettingError, match=r"^heads: got 2; expected a number that divides hidden = 6 into heads of an even"):
        Transformer(arch="llama", hidden=6, heads=2)
    assert Transformer(arch="gpt2", hidden=6, heads=2).config().head_size == 3
