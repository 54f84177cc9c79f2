"""Size and form of a decoder-only transformer, and the inputs of both decoders: a network as linear maps, rows to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from selfloop.columns import Floats, Ints, Params, Ragged
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import SPLITMIX_STEP, splitmix64

Float32s = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.uint32]
DenseLayer = tuple[Float32s, Float32s]  # weight (inputs, outputs) and bias
MAPS: dict[Arch, list[tuple[list[str], str | None]]] = {  # of a layer: names of the maps, and of the norm before them
    "gpt2": [(["attn.c_attn"], "ln_1"), (["attn.c_proj"], None), (["mlp.c_fc"], "ln_2"), (["mlp.c_proj"], None)],
    "llama": [
        (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "input_layernorm"),
        (["self_attn.o_proj"], None),
        (["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm"),
        (["mlp.down_proj"], None),
    ],
}
Arch = Literal["gpt2", "llama"]
BLOCK_NUMBERS = 2**18  # random numbers that are computed at a time


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """GPT-2 (learned positions, LayerNorm, GELU) or Llama (rotary positions, RMSNorm, SwiGLU), as transformers builds them."""

    arch: Arch
    layers: int
    hidden: int  # width of the residual stream
    heads: int
    mlp_hidden: int  # width of the hidden layer between attentions
    context: int  # positions
    vocab: int  # tokens
    kv_heads: int | None = None  # llama: heads of keys and values; None = `heads`
    tie_embeddings: bool = True  # True: the output matrix is the embedding, as in GPT-2; Llama-2 has two matrices
    rope_theta: float = 10_000.0  # llama: base of the rotary frequencies
    epsilon: float = 1e-5  # of the norms

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder's arrays in one form for both architectures, with norms that have no gains or biases.

    Gains and biases of a norm are part of the layers that follow it, 1 / sqrt(head size) is part of the queries.
    """

    embedding: Float32s  # (vocab, hidden)
    positions: Float32s  # (context, hidden) learned, or (context, 2, head size / 2) cosines and sines
    layers: list[list[DenseLayer]]  # of each layer: queries+keys+values, out, (gate+)up, down
    head: DenseLayer


@dataclass(frozen=True)
class DecodeRequest:
    """Some rows of a stream of rows: their prompts, and how they continue and end."""

    numbers: Ints  # of the rows in their stream
    starts: Ints  # the input before each row's first token: the start token, or where a row goes on the token before
    prompts: Ragged  # uint32
    random_key: int  # of the stream's random numbers
    end: int
    max_tokens: int  # of a row
    sampler: TextSampler

    def __len__(self) -> int:
        return len(self.prompts)

    def uniforms(self) -> Floats:
        """Numbers in [0, 1) that decide the token at each position of each row, (rows, max_tokens)."""
        table, positions = np.empty((len(self.numbers), self.max_tokens)), np.arange(self.max_tokens)
        n_rows = max(1, BLOCK_NUMBERS // max(1, self.max_tokens))
        for first in range(0, len(table), n_rows):
            block = slice(first, first + n_rows)
            table[block] = token_uniforms(self.random_key, self.numbers[block, None], positions)
        return table


def build_decoder_weights(config: TransformerConfig, params: Params) -> DecoderWeights:
    """The weights of a model with Hugging Face's names."""
    body = {
        name.removeprefix("transformer.").removeprefix("model."): np.asarray(array, np.float32)
        for name, array in params.items()
        if not name.startswith("tokenizer/")
    }

    def dense(names: Sequence[str], norm: str | None, are_transposed: bool) -> DenseLayer:
        """The maps of these names side by side, as one map of the input of the norm before them."""
        weight = np.concatenate([body[f"{name}.weight"] for name in names])
        weight = weight.T if are_transposed else weight
        bias = body.get(f"{names[0]}.bias", np.zeros(weight.shape[1], np.float32))
        if norm is None:
            return weight, bias
        gain = body[f"{norm}.weight"]
        offset = body.get(f"{norm}.bias", np.zeros_like(gain))
        return gain[:, None] * weight, bias + (weight * offset[:, None]).sum(0)  # (x gain + offset) weight + bias

    is_llama = config.arch == "llama"
    layers = []
    for layer in (f"layers.{i}." if is_llama else f"h.{i}." for i in range(config.layers)):
        (weight, bias), *others = (
            dense([layer + name for name in names], norm and layer + norm, is_llama) for names, norm in MAPS[config.arch]
        )
        scale = np.ones(len(bias), np.float32)
        scale[: config.hidden] = config.head_size**-0.5
        layers.append([(weight * scale, bias * scale), *others])
    embedding = "embed_tokens" if is_llama else "wte"
    head = dense([embedding if config.tie_embeddings else "lm_head"], "norm" if is_llama else "ln_f", True)
    positions = rotary_table(config) if is_llama else body["wpe.weight"]
    return DecoderWeights(body[f"{embedding}.weight"], positions, layers, head)


def rotary_table(config: TransformerConfig) -> Float32s:
    """Cosines and sines of the rotary angles, (context, 2, head size / 2)."""
    half = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    angles = np.arange(config.context, dtype=np.float32)[:, None] * (1 / np.float32(config.rope_theta) ** half)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def token_uniforms(random_key: int, rows: Ints, positions: Ints) -> Floats:
    """Numbers in [0, 1) that decide the token at a position of a row.

    They are SplitMix64 of a state that is SplitMix64 of (key, row), so that no two rows share a sequence.
    """
    states = splitmix64(np.uint64(random_key) + (rows.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
    bits = splitmix64(states + (positions.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
    return cast(Floats, (bits >> np.uint64(11)) * 2.0**-53)
