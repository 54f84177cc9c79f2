"""A published TinyStories model in our network: real stories are probable, and greedy rows are its published story."""

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import context, distances_of_draws, draw, needs_compiler

from selfloop.families.nn import trainer
from selfloop.families.transformer import decoder_c
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import TransformerNetwork
from selfloop.families.transformer.text_sampler import TextSampler
from tiny_language_models import logits, ragged, token_lists

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "tinystories"
OPENING = " Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
pytestmark = pytest.mark.skipif(not STORIES.exists(), reason="the folder of real data is missing")


def read_llama2c(path, by_halves=True):
    """llama2.c's checkpoint, version 0, under transformers' names. It rotates neighbors of a head, transformers halves."""
    data = path.read_bytes()
    hidden, mlp, layers, heads, kv_heads, vocab, context = struct.unpack("7i", data[:28])
    values, start = np.frombuffer(data, np.float32, offset=28), 0
    kv_dim, size = hidden * kv_heads // heads, hidden // heads

    def read(*shape):
        nonlocal start
        start += int(np.prod(shape))
        return values[start - int(np.prod(shape)) : start].reshape(shape)

    def permute(matrix):
        return matrix.reshape(layers, -1, size // 2, 2, hidden).swapaxes(2, 3).reshape(matrix.shape) if by_halves else matrix

    arrays = {"model.embed_tokens.weight": read(vocab, hidden)}
    stacked = {
        "input_layernorm": read(layers, hidden),
        "self_attn.q_proj": permute(read(layers, hidden, hidden)),
        "self_attn.k_proj": permute(read(layers, kv_dim, hidden)),
        "self_attn.v_proj": read(layers, kv_dim, hidden),
        "self_attn.o_proj": read(layers, hidden, hidden),
        "post_attention_layernorm": read(layers, hidden),
        "mlp.gate_proj": read(layers, mlp, hidden),
        "mlp.down_proj": read(layers, hidden, mlp),
        "mlp.up_proj": read(layers, mlp, hidden),
    }
    arrays |= {f"model.layers.{i}.{name}.weight": array[i] for name, array in stacked.items() for i in range(layers)}
    arrays["model.norm.weight"] = read(hidden)
    family = Transformer(
        arch="llama", layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, mlp_hidden=mlp, context=context,
        vocab=vocab, tie_embeddings=True, cross_document_attention=False,
    )  # fmt: skip
    return family, {**arrays, "tokenizer/start": np.array(1), "tokenizer/end": np.array(1)}


def read_vocabulary(path):
    """Pieces and scores of llama2.c's tokenizer file."""
    data, start, pieces = path.read_bytes(), 4, []
    while start < len(data):
        score, length = struct.unpack("fi", data[start : start + 8])
        pieces.append((data[start + 8 : start + 8 + length].decode(errors="replace"), score))
        start += 8 + length
    return pieces


def encode(text, pieces):
    """The neighbors with the best score are merged until no merge is left."""
    ids_of_pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
    ids = [ids_of_pieces[c] for c in " " + text if c in ids_of_pieces]
    while True:
        pairs = (pieces[a][0] + pieces[b][0] for a, b in pairwise(ids))
        merges = [(pieces[ids_of_pieces[pair]][1], -i) for i, pair in enumerate(pairs) if pair in ids_of_pieces]
        if not merges:
            return ids
        i = -max(merges)[1]
        ids[i : i + 2] = [ids_of_pieces[pieces[ids[i]][0] + pieces[ids[i + 1]][0]]]


@pytest.fixture(scope="module")
def pieces():
    return read_vocabulary(STORIES / "stories260K" / "tok512.bin")


@pytest.fixture(scope="module")
def model():
    return read_llama2c(STORIES / "stories260K" / "stories260K.bin")


@pytest.mark.parametrize("by_halves", [True, False])
def test_a_published_llama_fits_real_stories_only_with_the_right_rotary_halves(pieces, by_halves):
    family, params = read_llama2c(STORIES / "stories260K" / "stories260K.bin", by_halves)
    stories = (STORIES / "TinyStories-slice-valid.txt").read_text("utf-8").split("<|endoftext|>")
    rows = {"tokens": ragged([encode(story.strip()[:400], pieces) for story in stories[:10]])}
    loss = -family.token_log_prob(params, rows, context()).values.mean()
    assert (loss < 1.6) == by_halves
    assert by_halves or loss > 2.0


def test_the_network_tells_the_models_published_story(pieces, model):
    family, params = model
    network = TransformerNetwork(family.config())
    trainer.load_params(network, params)
    tokens = [1]
    with torch.inference_mode():
        for _ in range(40):
            tokens.append(int(logits(network, torch.tensor([tokens]))[0, -1].argmax()))
    assert "".join(pieces[token][0] for token in tokens[1:]).startswith(OPENING)


@pytest.mark.parametrize("decoder", [pytest.param("c", marks=needs_compiler), "torch"])
def test_both_decoders_tell_the_models_published_story(pieces, model, decoder, monkeypatch):
    if decoder == "torch":
        monkeypatch.setattr(decoder_c, "try_c_decoder", lambda config, weights: None)
    family, params = model
    greedy = draw(family.config(), params, 1, TextSampler(temperature=0.0, max_tokens=40, batch_size=2), context("story"))
    assert "".join(pieces[token][0] for token in greedy.values).startswith(OPENING)


@needs_compiler
def test_sixteen_bits_of_keys_and_values_hardly_change_a_trained_models_probabilities(model):
    family, params = model
    ctx = context("bits")
    rows = token_lists(draw(family.config(), params, 10, TextSampler(max_tokens=300), ctx))
    distances = distances_of_draws(family.config(), params, rows, ctx.stream.integer(), start=1)
    assert (distances > 0).mean() < 2e-3  # tokens that differ; bfloat16: 1e-2
    assert distances.max() < 1e-4
