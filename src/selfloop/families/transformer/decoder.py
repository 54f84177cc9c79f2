"""Inputs of both decoders: a network as a few plain linear maps, and the rows to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from selfloop.columns import Floats, Ints, Params, Ragged
from selfloop.families.transformer.config import TransformerConfig
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.rng import SPLITMIX_STEP, splitmix64

Float32s = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.uint32]
DenseLayer = tuple[Float32s, Float32s]  # weight (inputs, outputs) and bias


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder's arrays in one form for both architectures, with norms that have no gains or biases.

    Gains and biases of a norm are part of the layers that follow it, 1 / sqrt(head size) is part of the queries.
    """

    embedding: Float32s  # (vocab, hidden)
    positions: Float32s  # (context, hidden) learned, or (context, 2, head size / 2) cosines and sines
    layers: tuple[tuple[DenseLayer, DenseLayer, DenseLayer, DenseLayer], ...]  # queries+keys+values, out, (gate+)up, down
    head: DenseLayer


@dataclass(frozen=True)
class DecodeRequest:
    """Rows first .. first + len(prompts) - 1 of a stream of rows: their prompts, and how they continue and end."""

    first: int
    prompts: Ragged  # uint32
    random_key: int  # of the stream's random numbers
    start: int
    end: int
    max_tokens: int  # of a row
    sampler: TextSampler

    def __len__(self) -> int:
        return len(self.prompts)


def build_decoder_weights(config: TransformerConfig, params: Params) -> DecoderWeights:
    """The weights of a model with Hugging Face's names."""
    arrays = {name: np.asarray(array, np.float32) for name, array in params.items() if not name.startswith("tokenizer/")}
    return _gpt2(config, arrays) if config.arch == "gpt2" else _llama(config, arrays)


def _gpt2(config: TransformerConfig, arrays: dict[str, Float32s]) -> DecoderWeights:
    body = {name.removeprefix("transformer."): array for name, array in arrays.items()}

    def dense(name: str, norm: str | None = None) -> DenseLayer:
        weight, bias = body[f"{name}.weight"], body[f"{name}.bias"]
        return (weight, bias) if norm is None else _after_norm(weight, bias, body[f"{norm}.weight"], body[f"{norm}.bias"])

    layers = tuple(
        (
            _scale_queries(config, dense(f"h.{i}.attn.c_attn", f"h.{i}.ln_1")),
            dense(f"h.{i}.attn.c_proj"),
            dense(f"h.{i}.mlp.c_fc", f"h.{i}.ln_2"),
            dense(f"h.{i}.mlp.c_proj"),
        )
        for i in range(config.layers)
    )
    head = body["wte.weight" if config.tie_embeddings else "lm_head.weight"].T
    final = _after_norm(head, np.zeros(config.vocab, np.float32), body["ln_f.weight"], body["ln_f.bias"])
    return DecoderWeights(body["wte.weight"], body["wpe.weight"], layers, final)


def _llama(config: TransformerConfig, arrays: dict[str, Float32s]) -> DecoderWeights:
    body = {name.removeprefix("model."): array for name, array in arrays.items()}

    def dense(names: Sequence[str], norm: str | None = None) -> DenseLayer:
        weight = np.concatenate([body[f"{name}.weight"] for name in names]).T
        bias = np.zeros(weight.shape[1], np.float32)
        return (weight, bias) if norm is None else _after_norm(weight, bias, body[f"{norm}.weight"], bias[:1])

    layers = tuple(
        (
            _scale_queries(config, dense([f"{layer}.self_attn.{name}_proj" for name in "qkv"], f"{layer}.input_layernorm")),
            dense([f"{layer}.self_attn.o_proj"]),
            dense([f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"], f"{layer}.post_attention_layernorm"),
            dense([f"{layer}.mlp.down_proj"]),
        )
        for layer in (f"layers.{i}" for i in range(config.layers))
    )
    half = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    angles = np.arange(config.context, dtype=np.float32)[:, None] * (1 / np.float32(config.rope_theta) ** half)
    head = dense(["embed_tokens" if config.tie_embeddings else "lm_head"], "norm")
    return DecoderWeights(body["embed_tokens.weight"], np.stack([np.cos(angles), np.sin(angles)], 1), layers, head)


def _after_norm(weight: Float32s, bias: Float32s, gain: Float32s, offset: Float32s) -> DenseLayer:
    """(x gain + offset) weight + bias as one map of x."""
    return gain[:, None] * weight, bias + (weight * offset[:, None]).sum(0)


def _scale_queries(config: TransformerConfig, dense: DenseLayer) -> DenseLayer:
    scale = np.ones(dense[0].shape[1], np.float32)
    scale[: config.hidden] = config.head_size**-0.5
    return dense[0] * scale, dense[1] * scale


def token_uniforms(random_key: int, rows: Ints, positions: Ints) -> Floats:
    """Numbers in [0, 1) that decide the token at a position of a row, `token_uniform` of decoder.c.

    They are SplitMix64 of a state that is SplitMix64 of (key, row), so that no two rows share a sequence.
    """
    states = splitmix64(np.uint64(random_key) + (rows.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
    bits = splitmix64(states + (positions.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
    return cast(Floats, (bits >> np.uint64(11)) * 2.0**-53)
