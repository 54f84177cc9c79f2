"""Transformers: their networks are transformers' own, their fits a function of rows, stream and settings."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer import kernels, network, torch_compile
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import Network, cross_entropy
from selfloop.rng import RandomStream
from selfloop.types import Ragged, TrainingRows

LEARNED = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0), "tokenizer/json": np.zeros(1, np.uint8)}
SHAPES = [
    Shape(arch="gpt2", layers=2, hidden=24, heads=3, mlp=40, context=20, vocab=50),
    Shape(arch="gpt2", layers=1, hidden=16, heads=2, mlp=64, context=20, vocab=50, tied=False),
    Shape(arch="llama", layers=2, hidden=24, heads=3, mlp=40, context=20, vocab=50, tied=False),
    Shape(arch="llama", layers=2, hidden=32, heads=4, kv_heads=2, mlp=40, context=20, vocab=50, tied=True),
    Shape(arch="llama", layers=1, hidden=32, heads=4, kv_heads=1, mlp=40, context=20, vocab=50, tied=False),
]
compiler = pytest.mark.skipif(kernels.library(8) is None, reason="no C compiler")


def tiny(**changes):
    training = TrainingSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, **changes.pop("training", {})})
    return Transformer(**{"vocab": 40, "hidden": 16, "layers": 2, "heads": 2, "context": 16, "training": training, **changes})


def chains(n=60, vocab=40):
    """Documents in which each token is the one before it plus one or two: half a bit a token, once learned."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate([1 + (rng.integers(1, 3, k).cumsum() + rng.integers(vocab)) % (vocab - 1) for k in lengths])
    values[offsets[1:] - 1] = 0
    return Ragged(values.astype(np.uint16), offsets)


def fitted(family=None, rows=None, name="fit", scratch=None, threads=1, start=None):
    data = TrainingRows((({"tokens": chains() if rows is None else rows}, None, 1.0),), LEARNED)
    return (family or tiny()).fit(data, Context(RandomStream((name,)), scratch, threads), start)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def shaken(shape, seed=0):
    """A network whose every parameter, biases and gains too, is random."""
    with trainer.seed_torch(RandomStream(("shaken", seed))):
        model = Network(shape)
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return model.eval()


def tokens_of(shape, rows=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(shape.vocab, size=(rows, shape.context)))


def library_network(shape):
    """transformers' own class."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if shape.arch == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.hidden, n_layer=shape.layers,
                       n_head=shape.heads, n_inner=shape.mlp, tie_word_embeddings=shape.tied, bos_token_id=0, eos_token_id=0)
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=shape.vocab, max_position_embeddings=shape.context, hidden_size=shape.hidden,
                    intermediate_size=shape.mlp, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                    rms_norm_eps=1e-5, num_key_value_heads=shape.kv_heads, tie_word_embeddings=shape.tied,
                    bos_token_id=0, eos_token_id=0)
    )  # fmt: skip


def disagreement(shape, change=None):
    """Largest difference of the logits of transformers' class and ours on the same arrays."""
    ours, theirs = shaken(shape), library_network(shape).eval()
    arrays = ours.state_dict()
    missing, unexpected = theirs.load_state_dict(arrays, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"} if shape.tied else not missing
    theirs.tie_weights()
    if change:
        change(ours)
    with torch.inference_mode():
        tokens = tokens_of(shape)
        return float((ours.logits(tokens) - theirs(input_ids=tokens).logits).abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.arch}-{s.heads}-{s.kv_heads}-{s.tied}")
def test_logits_are_those_of_transformers_own_class(shape):
    assert disagreement(shape) < 1e-4


@compiler
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.arch}-{s.heads}-{s.kv_heads}-{s.tied}")
def test_compiled_log_probabilities_are_those_of_transformers_own_class(shape):
    ours, theirs, tokens = shaken(shape), library_network(shape).eval(), tokens_of(shape)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    targets = tokens.roll(-1, 1)
    with torch.inference_mode():
        expected = theirs(input_ids=tokens).logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
        found = torch_compile.in_c(ours, True).log_prob(tokens, targets, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_that_test_would_notice_the_exact_gelu(monkeypatch):
    monkeypatch.setattr(network.functional, "gelu", lambda x, approximate: functional.silu(1.702 * x) / 1.702)
    assert disagreement(SHAPES[0]) > 1e-4


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"arch": "gpt2", "hidden": 256, "layers": 8, "mlp": 1024, "context": 2048}, 8_890_880),
     ({"arch": "llama", "hidden": 256, "layers": 8, "mlp": 1024, "context": 2048}, 12_488_960),
     ({"arch": "llama", "hidden": 512, "layers": 8, "mlp": 2048, "context": 2048, "heads": 8}, 41_755_136),
     ({"arch": "llama", "hidden": 768, "layers": 12, "mlp": 3072, "context": 2048, "heads": 12}, 125_553_408)],
)  # fmt: skip
def test_the_papers_models_have_the_papers_parameter_counts(settings, count):
    with torch.device("meta"):
        model = Network(Transformer(**{"heads": 8, "vocab": 8000, **settings}).shape())
    assert sum(p.numel() for p in model.parameters()) == count


def test_initial_weights_have_the_spread_that_transformers_gives_them():
    shape = Shape(arch="gpt2", layers=4, hidden=64, heads=4, mlp=256, context=64, vocab=200)
    with trainer.seed_torch(RandomStream(("init",))):
        ours, theirs = Network(shape), library_network(shape)
    for name, array in ours.state_dict().items():
        other = theirs.state_dict()[name]
        assert float(array.std()) == pytest.approx(float(other.std()), rel=0.1), name
        assert float(array.mean()) == pytest.approx(float(other.mean()), abs=0.002), name


@pytest.mark.parametrize("chunk", [1 << 20, 1])
def test_the_chunked_cross_entropy_and_its_gradients_are_torchs(monkeypatch, chunk):
    monkeypatch.setattr(network, "CHUNK_BYTES", chunk)
    rng = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(*size, generator=rng, requires_grad=True) for size in ((5, 20, 8), (30, 8)))
    targets, weights = torch.randint(30, (5, 20), generator=rng), torch.rand(5, 20, generator=rng)
    plain = (
        functional.cross_entropy((hidden @ head.T).flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()
    ).sum()
    ours = cross_entropy(hidden, head, targets, weights)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for mine, its in zip(
        torch.autograd.grad(2 * ours, (hidden, head)), torch.autograd.grad(2 * plain, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def gradients(shape, tokens, documents, change=None):
    model = shaken(shape)
    if change:
        change(model)
    loss = cross_entropy(model(tokens, documents), model.head(), tokens.roll(-1, 1), weights_of(tokens))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def gradients_in_c(shape, tokens, documents):
    model = shaken(shape)
    loss = 2 * torch_compile.in_c(model, True).loss(tokens, tokens.roll(-1, 1), 0.5 * weights_of(tokens), documents)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def weights_of(tokens):
    return torch.from_numpy(np.random.default_rng(5).integers(3, size=tokens.shape)).float()


@compiler
@pytest.mark.parametrize("context", [1, 8, 33, 140])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", range(len(SHAPES)))
def test_compiled_losses_have_torchs_values_and_gradients(kind, documents, context):
    shape = replace(SHAPES[kind], context=context)
    tokens = tokens_of(shape)
    ids = torch.from_numpy(np.random.default_rng(0).random(tokens.shape) < 0.2).cumsum(1) if documents else None
    for mine, its in zip(gradients_in_c(shape, tokens, ids), gradients(shape, tokens, ids), strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-4, atol=2e-4)


@compiler
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("heads", [1, 2])
def test_compiled_losses_agree_in_several_pieces_and_with_shapes_as_wide_as_the_presets(arch, heads):
    shape = Shape(arch=arch, layers=2, hidden=64 * heads, heads=heads, mlp=288, context=140, vocab=301)
    tokens = tokens_of(shape, 5)  # pieces of one window; products deeper and wider than what is worked on at a time
    for mine, its in zip(gradients_in_c(shape, tokens, None), gradients(shape, tokens, None), strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-4, atol=5e-4)


@compiler
def test_those_tests_would_notice_attention_across_documents():
    tokens, ids = tokens_of(SHAPES[3]), torch.arange(SHAPES[3].context).expand(3, -1) // 7
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            gradients_in_c(SHAPES[3], tokens, None), gradients(SHAPES[3], tokens, ids), rtol=2e-4, atol=2e-4
        )


@compiler
def test_compiled_windows_are_the_same_bits_whatever_is_computed_with_them():
    network, tokens = torch_compile.in_c(shaken(SHAPES[3]), True), tokens_of(SHAPES[3], 30)
    together = network.log_prob(tokens, tokens, None)
    alone = [network.log_prob(window[None], window[None], None)[0] for window in tokens]
    assert torch.equal(together, torch.stack(alone))


@compiler
def test_a_network_that_broke_has_no_log_probabilities():
    model = shaken(SHAPES[0])
    model.transformer["h"][0].mlp.c_fc.weight.data[3, 4] = float("nan")
    tokens = tokens_of(SHAPES[0])
    assert not torch.isfinite(torch_compile.in_c(model, True).log_prob(tokens, tokens, None)).all()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=compiler)])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=lambda s: s.arch)
def test_documents_in_one_window_are_as_if_each_were_alone(shape, compiled):
    model, tokens = shaken(shape), tokens_of(shape, 1)
    documents = torch.tensor([[4] * 7 + [5] * 3 + [6] * 10])

    def look(tokens, documents):
        if compiled:
            return torch_compile.in_c(model, True).log_prob(tokens, tokens, documents)
        return model.logits(tokens, documents)

    with torch.inference_mode():
        together, alone = look(tokens, documents), torch.cat([look(part, None) for part in tokens.split([7, 3, 10], 1)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


FAMILIES = {
    "gpt2": tiny(),
    "torch's operations": tiny(training={"compile": False}),
    "llama, documents": tiny(arch="llama", heads=4, kv_heads=2, packing="documents"),
    "dropout": tiny(dropout=0.1),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_fit_stopped_anywhere_continues_to_the_same_bits(tmp_path, monkeypatch, family):
    family = Transformer(**{**family.settings(), "training": TrainingSettings(**{**vars(family.training), "checkpoint_seconds": 0.0})})
    whole = fitted(family, threads=2)
    advance = trainer._TrainingState.advance
    for stop in (3, 9):

        def until(state, step, *rest, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            advance(state, step, *rest)

        monkeypatch.setattr(trainer._TrainingState, "advance", until)
        with pytest.raises(KeyboardInterrupt):
            fitted(family, scratch=tmp_path, threads=2)
    monkeypatch.setattr(trainer._TrainingState, "advance", advance)
    assert (tmp_path / "fit.safetensors").exists()
    assert same(fitted(family, scratch=tmp_path, threads=2), whole)
    assert not same(fitted(family, name="another"), whole)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_fit_learns_what_there_is_to_learn(family):
    family = Transformer(**{**family.settings(), "training": TrainingSettings(steps=150, batch_size=16, learning_rate=1e-2, warmup=0.05)})
    curve = fitted(family, chains(300))["training/loss"]
    assert curve[0] > 3.4
    assert curve[-10:].mean() < 2.2


def test_threads_change_no_more_than_last_bits():
    one, two = (fitted(threads=threads) for threads in (1, 2))
    assert same(two, fitted(threads=2))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_a_model_carries_what_its_tokenizer_learned_and_transformers_names():
    params = fitted()
    assert {name for name in params if name.startswith("tokenizer/")} == set(LEARNED)
    names = {name for name in params if not name.startswith(("tokenizer/", "training/"))}
    assert names == set(library_network(tiny().shape()).state_dict()) - {"lm_head.weight"}
    assert params["transformer.h.1.mlp.c_fc.weight"].shape == (16, 64)  # [in, out]


def test_a_fit_can_begin_from_another_models_parameters():
    model = fitted()
    again = fitted(tiny(training={"steps": 1, "learning_rate": 1e-12}), start=model, name="later")
    np.testing.assert_allclose(again["transformer.wte.weight"], model["transformer.wte.weight"], atol=1e-9)


def test_a_model_with_another_tokenizer_is_no_place_to_begin():
    model = fitted()
    other = {**model, "tokenizer/json": np.frombuffer(b"another", np.uint8)}
    with pytest.raises(DataError, match="start: that model was trained with another tokenizer"):
        fitted(start=other)


def test_weights_of_rows_decide_what_is_learned():
    """Two documents contradict each other: a model of one token's place says which weighs how much."""
    a, b = (Ragged(np.array([5, token, 0], np.uint16), np.array([0, 3])) for token in (7, 9))
    parts = (({"tokens": a}, np.zeros(30, np.int64), 3.0), ({"tokens": b}, np.zeros(30, np.int64), 1.0))
    family = tiny(packing="documents", training={"steps": 150, "batch_size": 16, "learning_rate": 1e-2})
    model = family.fit(TrainingRows(parts, LEARNED), Context(RandomStream(("fit",))), None)
    for row, share in ((a, 0.75), (b, 0.25)):
        assert np.exp(family.token_log_prob(model, {"tokens": row}, Context(RandomStream())).values[1]) == pytest.approx(
            share, abs=0.06
        )


def test_log_probabilities_are_the_networks_and_stand_by_their_tokens():
    family, model, rows = tiny(packing="documents", context=32), fitted(tiny(packing="documents", context=32)), chains(20)
    found = family.token_log_prob(model, {"tokens": rows}, Context(RandomStream()))
    assert np.array_equal(found.offsets, rows.offsets)
    plain = Network(family.shape())
    trainer.load_params(plain, model)
    first = torch.tensor([[0, *rows.values[: rows.offsets[1]].tolist()]])  # the first row is alone at its window's start
    with torch.inference_mode():
        by_hand = plain.eval().logits(first[:, :-1]).log_softmax(-1).gather(2, first[:, 1:, None])[0, :, 0]
    np.testing.assert_allclose(found.values[: rows.offsets[1]], by_hand, atol=1e-4)


def test_only_packed_documents_do_not_see_each_other():
    model, two = fitted(), Ragged(np.array([3, 4, 0, 8, 9, 0], np.uint16), np.array([0, 3, 6]))
    alone = two[np.array([1])]
    for packing, independent in (("documents", True), ("stream", False)):
        family = tiny(packing=packing)
        both, one = (family.token_log_prob(model, {"tokens": rows}, Context(RandomStream())).values for rows in (two, alone))
        assert np.allclose(both[3:], one, atol=1e-5) == independent


def test_without_a_compiler_a_fit_uses_torchs_operations_and_says_so_when_others_are_asked_for(monkeypatch):
    expected = fitted(tiny(training={"compile": False}))
    monkeypatch.setattr(kernels.native, "library", lambda *_: None)
    found = fitted()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(SpecError, match=r"family\.training\.compile: found no compiler"):
        fitted(tiny(training={"compile": True}))


def test_layers_that_torch_cannot_compile_stay_as_they_are(monkeypatch):
    def broken(*_):
        raise RuntimeError("no triton")

    monkeypatch.setattr(compiling, "_compiled", broken)
    model, context = Network(SHAPES[0]), Context(RandomStream())
    torch_compile._compile_layers(model, TrainingSettings(compile="auto"), 2, context)
    assert model.apply_layer is network.apply_layer
    with pytest.raises(SpecError, match=r"family\.training\.compile: torch cannot compile here \(no triton\)"):
        torch_compile._compile_layers(model, TrainingSettings(compile=True), 2, context)


def test_layers_compiled_by_torch_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(compiling, "_compiler", lambda: torch.compile(network.apply_layer, dynamic=False, backend="aot_eager"))
    ours = gradients(
        SHAPES[3], tokens_of(SHAPES[3]), None, lambda model: setattr(model, "apply_layer", torch_compile._compiled)
    )
    torch.testing.assert_close(ours, gradients(SHAPES[3], tokens_of(SHAPES[3]), None), rtol=1e-4, atol=1e-5)


def test_tokens_that_the_model_does_not_know_are_refused():
    with pytest.raises(DataError, match=r"the rows hold token 39; this model has room for 30 tokens\. The tokenizer does not"):
        fitted(tiny(vocab=30))


def test_bfloat16_agrees_roughly():
    plain, short = (fitted(tiny(training={"precision": p}))["training/loss"] for p in ("float32", "bfloat16"))
    assert not np.array_equal(plain, short)
    np.testing.assert_allclose(plain, short, atol=0.05)


def test_the_first_generation_may_have_steps_of_its_own():
    family = tiny(training={"first_generation_steps": 3, "steps": 9})
    assert [family.for_generation(t).training.steps for t in (1, 2, 3)] == [3, 9, 9]
    assert family.for_generation(2) == tiny(training={"steps": 9})  # so later generations do not depend on it
    assert family.for_generation(1).training.first_generation_steps is None


def test_a_batch_that_grows_with_the_rows_keeps_the_steps():
    training = TrainingSettings(steps=10, epochs=2, batch_size=4, scale_batch=True)
    assert [(training.batch_size_for(rows), training.count_steps(rows)) for rows in (50, 500)] == [(10, 10), (100, 10)]
    with pytest.raises(SpecError, match=r"family\.training\.grow: needs family\.training\.steps"):
        TrainingSettings(scale_batch=True)


def test_reading_a_specification_does_not_load_torch():
    code = "import sys, selfloop.families.transformer.family as f; assert not {'torch', 'transformers'} & set(sys.modules), f"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layers", 0), ("hidden", 0), ("vocab", 0), ("context", 0), ("mlp", 0), ("heads", 3), ("kv_heads", 2), ("arch", "bert"),
     ("packing", "tight"), ("dropout", 1.0)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.{setting}: got"):
        Transformer(**{setting: value})


def test_a_llamas_heads_have_halves():
    with pytest.raises(SpecError, match=r"family\.heads: got 2"):
        Transformer(arch="llama", hidden=6, heads=2)
    assert partial(Transformer, arch="gpt2", hidden=6, heads=2)().shape().head_size == 3
