"""Random networks, their exact distributions, and what the tests of both decoders share."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfloop.component import Context
from selfloop.families.transformer import decoder_c
from selfloop.families.transformer.decoder import TransformerConfig, build_decoder_weights, token_uniforms
from selfloop.families.transformer.hf_network import build_hf_model, to_hf_config
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.families.transformer.sample_tokens import sample_tokens
from selfloop.families.transformer.text_sampler import read_prompts
from selfloop.rng import RandomStream

START, END = 0, 1
GPT2 = TransformerConfig(arch="gpt2", layers=2, hidden=24, heads=2, mlp_hidden=40, context=24, vocab=40)
LLAMA = TransformerConfig(
    arch="llama", layers=2, hidden=48, heads=4, kv_heads=2, mlp_hidden=40, context=24, vocab=40, tie_embeddings=False
)
HAS_COMPILER = decoder_c.load_decoder(GPT2) is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")


def random_model(config, spread=0.2):
    """Arrays of a random network whose next tokens have very different probabilities."""
    torch.manual_seed(5)
    network = TransformerNetwork(config)
    with torch.no_grad():
        for p in network.parameters():
            p += spread * torch.randn_like(p)
    arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    return arrays | {"tokenizer/start": np.array(START), "tokenizer/end": np.array(END)}


def reference_logits(config, params, tokens):
    """Logits (len(tokens), vocab) of transformers' own class."""
    network = build_hf_model(to_hf_config(config, START, END), params).eval()
    with torch.no_grad():
        return network(torch.tensor(np.asarray(tokens, np.int64))[None]).logits[0].double().numpy()


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def distances_of_draws(config, params, rows, random_key, start=START):
    """How far outside its token's part of [0, 1) each number that decided a token lies, by transformers' probabilities."""
    distances = []
    for i, row in enumerate(rows):
        p = np.exp(log_softmax(reference_logits(config, params, [start, *row[:-1]])))
        drawn = np.arange(len(row)), np.asarray(row)
        ends, u = p.cumsum(-1)[drawn], token_uniforms(random_key, np.full(len(row), i), drawn[0])
        distances.append(np.maximum(ends - p[drawn] - u, u - ends).clip(0))
    return np.concatenate(distances)


def c_decoder(config, params):
    return decoder_c.try_c_decoder(config, build_decoder_weights(config, params))


def context(*path, **changes):
    return replace(Context(RandomStream(("seed", 3, *path))), **changes)


def draw(config, params, n, sampler, ctx, prompts=None):
    """n rows, or one row per prompt."""
    return sample_tokens(config, params, read_prompts({} if prompts is None else {"prompt": prompts}, n), sampler, ctx)
