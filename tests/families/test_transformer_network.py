"""Networks of GPT-2 and Llama: transformers' logits, torch's gradients, documents that stay apart."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer import network, torch_compile
from selfloop.families.transformer.decoder import TransformerConfig
from selfloop.families.transformer.hf_network import build_hf_model, to_hf_config
from selfloop.families.transformer.network import TransformerNetwork, cross_entropy
from selfloop.rng import RandomStream
from tiny_language_models import logits

Config = partial(TransformerConfig, context=20, vocab=50)
CONFIGS = [
    Config(arch="gpt2", layers=2, hidden=24, heads=3, mlp_hidden=40),
    Config(arch="gpt2", layers=1, hidden=16, heads=2, mlp_hidden=64, tie_embeddings=False),
    Config(arch="llama", layers=2, hidden=24, heads=3, mlp_hidden=40, tie_embeddings=False),
    Config(arch="llama", layers=2, hidden=32, heads=4, kv_heads=2, mlp_hidden=40),
    Config(arch="llama", layers=1, hidden=32, heads=4, kv_heads=1, mlp_hidden=40, tie_embeddings=False),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.arch}-{c.heads}-{c.kv_heads}-{c.tie_embeddings}")


def random_network(config):
    """A network with random parameters, biases and gains too."""
    with trainer.seed_torch(RandomStream(("random network",))):
        model = TransformerNetwork(config)
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return model.eval()


def random_tokens(config, rows=3):
    return torch.from_numpy(np.random.default_rng(0).integers(config.vocab, size=(rows, config.context)))


def library_network(ours):
    """transformers' own class with the same arrays."""
    arrays = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    return build_hf_model(to_hf_config(ours.config, 0, 0), arrays).eval()


def loss_and_gradients(network, logits_or_hidden, config):
    """Loss of the next tokens with weights 0, 1 and 2, and its gradients by the name of the parameter."""
    tokens = random_tokens(config)
    weights = torch.from_numpy(np.random.default_rng(5).integers(3, size=tokens.shape)).float()
    loss = logits_or_hidden(tokens, tokens.roll(-1, 1), weights)
    names, parameters = zip(*network.named_parameters(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def our_loss(model, tokens, targets, weights):
    return cross_entropy(model(tokens), model.head(), targets, weights)


def library_loss(model, tokens, targets, weights):
    logits = model(input_ids=tokens, use_cache=False).logits.transpose(1, 2)
    return (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()


@each_config
def test_logits_losses_and_gradients_are_those_of_transformers_own_class(config):
    ours = random_network(config)
    theirs = library_network(ours)
    with torch.inference_mode():
        tokens = random_tokens(config)
        torch.testing.assert_close(logits(ours, tokens), theirs(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)
    loss, gradients = loss_and_gradients(ours, partial(our_loss, ours), config)
    expected_loss, expected = loss_and_gradients(theirs, partial(library_loss, theirs), config)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0.0)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-4, atol=2e-4)


def test_that_test_would_notice_another_gelu(monkeypatch):
    monkeypatch.setattr(functional, "gelu", lambda x, approximate: x * torch.sigmoid(1.702 * x))
    with pytest.raises(AssertionError):
        test_logits_losses_and_gradients_are_those_of_transformers_own_class(CONFIGS[0])


def test_initial_weights_have_the_standard_deviations_of_transformers():
    config = TransformerConfig(arch="gpt2", layers=4, hidden=64, heads=4, mlp_hidden=256, context=64, vocab=200)
    with trainer.seed_torch(RandomStream(("init",))):
        ours, theirs = TransformerNetwork(config), type(library_network(TransformerNetwork(config)))(to_hf_config(config, 0, 0))
    for name, array in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        assert float(array.std()) == pytest.approx(float(expected.std()), rel=0.1), name
        assert float(array.mean()) == pytest.approx(float(expected.mean()), abs=0.002), name


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1])
def test_the_chunked_cross_entropy_and_its_gradients_are_torchs(monkeypatch, chunk_bytes):
    monkeypatch.setattr(network, "CHUNK_BYTES", chunk_bytes)
    rng = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(*size, generator=rng, requires_grad=True) for size in ((5, 20, 8), (30, 8)))
    targets, weights = torch.randint(30, (5, 20), generator=rng), torch.rand(5, 20, generator=rng)
    losses = functional.cross_entropy((hidden @ head.T).flatten(0, 1), targets.flatten(), reduction="none")
    expected, ours = (losses * weights.flatten()).sum(), cross_entropy(hidden, head, targets, weights)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0.0)
    gradients, expected = (torch.autograd.grad(2 * loss, (hidden, head)) for loss in (ours, expected))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=lambda c: c.arch)
def test_documents_of_one_window_have_the_logits_of_separate_windows(config):
    model, tokens = random_network(config), random_tokens(config, 1)
    documents = torch.tensor([[4] * 7 + [5] * 3 + [6] * 10])
    with torch.inference_mode():
        together = logits(model, tokens, documents)
        separate = torch.cat([logits(model, part) for part in tokens.split([7, 3, 10], 1)], 1)
        torch.testing.assert_close(together, separate, rtol=1e-4, atol=1e-5)
        assert (logits(model, tokens) - separate)[0, 7:].abs().max() > 0.01


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=lambda c: c.arch)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_attention_that_skips_blocks_is_that_with_a_mask(monkeypatch, config):
    """Several blocks of 128 positions, documents across their borders; its gradient needs a GPU."""
    config = replace(config, context=300)
    model, tokens = random_network(config), random_tokens(config, 2)
    documents = torch.repeat_interleave(torch.arange(6), torch.tensor([100, 30, 1, 169, 140, 160])).view(2, 300)
    with torch.inference_mode():
        expected = model(tokens, documents)
        model.skips_blocks = True
        torch.testing.assert_close(model(tokens, documents), expected, rtol=1e-4, atol=1e-5)
        block_mask = network.block_mask
        monkeypatch.setattr(network, "block_mask", lambda first: block_mask(torch.zeros_like(first)))
        assert (model(tokens, documents) - expected).abs().max() > 0.01, "the test would notice attention across documents"
    apart, together = (block_mask(torch.full((1, 1024), first)) for first in (512, 0))
    assert apart.sparsity() > together.sparsity(), "blocks before a document are skipped"


def test_documents_that_change_compile_nothing_again():
    counter, config = CompileCounter(), replace(CONFIGS[3], layers=1, context=256)
    model = random_network(config)
    layer, tokens = torch.compile(network.apply_layer, dynamic=False, backend=counter), random_tokens(config, 1)
    model.apply_layer, model.skips_blocks = layer, True
    with torch.no_grad():
        for first in (20, 150, 255):
            model(tokens, (torch.arange(256) >= first).long()[None])
    assert counter.frame_count == 1


def test_layers_that_torch_cannot_compile_stay_as_they_are(monkeypatch):
    def fail(*_):
        raise RuntimeError("no triton")

    monkeypatch.setattr(torch_compile, "compile_once", lambda function: fail)
    model, ctx = TransformerNetwork(CONFIGS[0]), Context(RandomStream())
    with pytest.warns(UserWarning, match=r"training is slower: torch cannot compile here \(no triton\)"):
        torch_compile._compile_layers(model, TrainingSettings(compile="auto"), 2, ctx)
    assert model.apply_layer is network.apply_layer
    assert "layers" not in ctx.backends
    with pytest.raises(SpecError, match=r"family\.training\.compile: got true; torch cannot compile .* \(no triton\)"):
        torch_compile._compile_layers(model, TrainingSettings(compile=True), 2, ctx)


@pytest.mark.slow
def test_layers_compiled_by_torch_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = replace(CONFIGS[3], layers=1)
    model = random_network(config)
    expected = loss_and_gradients(model, partial(our_loss, model), config)
    model.apply_layer = torch_compile.compile_once.__wrapped__(network.apply_layer)
    found = loss_and_gradients(model, partial(our_loss, model), config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
