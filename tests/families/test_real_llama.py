"""A trained TinyStories model of somebody else's, put into our network, tells its stories."""

import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from selfloop.component import Context
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import Network
from selfloop.rng import RandomStream
from selfloop.types import Ragged

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "tinystories"


def llama2c(path, permuted=True):
    """karpathy's llama2.c checkpoint, version 0, under transformers' names: his heads turn neighbours, theirs halves."""
    data = path.read_bytes()
    hidden, mlp, layers, heads, kv_heads, vocab, context = struct.unpack("7i", data[:28])
    values, at = np.frombuffer(data, np.float32, offset=28), 0
    narrow, size = hidden * kv_heads // heads, hidden // heads

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return values[at - int(np.prod(shape)) : at].reshape(shape)

    def by_halves(matrix):
        return matrix.reshape(layers, -1, size // 2, 2, hidden).swapaxes(2, 3).reshape(matrix.shape) if permuted else matrix

    arrays = {"model.embed_tokens.weight": take(vocab, hidden)}
    each = {"input_layernorm": take(layers, hidden)}
    each |= {
        "self_attn.q_proj": by_halves(take(layers, hidden, hidden)),
        "self_attn.k_proj": by_halves(take(layers, narrow, hidden)),
    }
    each |= {"self_attn.v_proj": take(layers, narrow, hidden), "self_attn.o_proj": take(layers, hidden, hidden)}
    each |= {"post_attention_layernorm": take(layers, hidden), "mlp.gate_proj": take(layers, mlp, hidden)}
    each |= {"mlp.down_proj": take(layers, hidden, mlp), "mlp.up_proj": take(layers, mlp, hidden)}
    arrays |= {f"model.layers.{i}.{name}.weight": array[i] for name, array in each.items() for i in range(layers)}
    arrays["model.norm.weight"] = take(hidden)
    family = Transformer(arch="llama", layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, mlp=mlp, context=context,
                         vocab=vocab, tied=True)  # fmt: skip
    return family, {**arrays, "tokenizer/start": np.array(1), "tokenizer/end": np.array(1)}


def vocabulary(path):
    """Pieces and scores of llama2.c's tokenizer file."""
    data, at, pieces = path.read_bytes(), 4, []
    while at < len(data):
        score, length = struct.unpack("fi", data[at : at + 8])
        pieces.append((data[at + 8 : at + 8 + length].decode(errors="replace"), score))
        at += 8 + length
    return pieces


def encoded(text, pieces):
    """The best-scored neighbours merged until none is left."""
    known = {piece: i for i, (piece, _) in enumerate(pieces)}
    ids = [known[c] for c in " " + text if c in known]
    while True:
        merged = [
            (pieces[known[pair]][1], -i)
            for i, pair in enumerate(pieces[a][0] + pieces[b][0] for a, b in pairwise(ids))
            if pair in known
        ]
        if not merged:
            return ids
        i = -max(merged)[1]
        ids[i : i + 2] = [known[pieces[ids[i]][0] + pieces[ids[i + 1]][0]]]


@pytest.fixture(scope="module")
def real():
    if not STORIES.exists():
        pytest.skip("no TinyStories beside the project")
    pieces = vocabulary(STORIES / "stories260K" / "tok512.bin")
    stories = (STORIES / "TinyStories-slice-valid.txt").read_text("utf-8").split("<|endoftext|>")
    rows = [[*encoded(story.strip()[:400], pieces)] for story in stories[:20]]
    return pieces, {"tokens": Ragged(np.concatenate(rows).astype(np.uint16), np.cumsum([0, *map(len, rows)]))}


@pytest.mark.parametrize("compiled", ["auto", False])
@pytest.mark.parametrize("permuted", [True, False])
def test_a_trained_llama_knows_real_stories_and_only_by_the_right_rotary_halves(real, permuted, compiled):
    family, params = llama2c(STORIES / "stories260K" / "stories260K.bin", permuted)
    family = replace(family, packing="documents", training=TrainingSettings(compile=compiled))
    loss = -family.token_log_prob(params, real[1], Context(RandomStream())).values.mean()
    assert (loss < 1.6) == permuted
    assert permuted or loss > 2.0


def test_a_trained_llama_tells_its_known_story(real):
    family, params = llama2c(STORIES / "stories260K" / "stories260K.bin")
    model = Network(family.shape())
    trainer.load_params(model, params)
    tokens = [1]
    with torch.inference_mode():
        for _ in range(40):
            tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    text = "".join(real[0][token][0] for token in tokens[1:])
    assert text.startswith(" Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
