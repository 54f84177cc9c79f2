"""What both decoders start from: a network as few plain linear maps, and the rows that are wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.types import Floats, Ints, Params, Ragged

Singles = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.uint32]
Linear = tuple[Singles, Singles]  # weight [inputs, outputs] and bias
ODD, MIX = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Weights:
    """A decoder's arrays in one form for both architectures, their norms without gains or biases.

    Gains and biases of a norm are part of the maps that follow it, 1 / sqrt(head size) is part of the queries.
    """

    embedding: Singles  # [vocab, hidden]
    positions: Singles  # [context, hidden] learned ones, or [context, 2, head size / 2] cosines and sines
    layers: tuple[tuple[Linear, Linear, Linear, Linear], ...]  # queries+keys+values, out, (gate+)up, down
    head: Linear


@dataclass(frozen=True)
class Job:
    """Rows first .. first + len(prompts) - 1 of a stream of rows: what they begin with, how they go on and end."""

    first: int
    prompts: Ragged  # uint32
    key: int  # of the stream's random numbers
    start: int
    end: int
    limit: int  # tokens of the longest row
    sampler: TextSampler

    def __len__(self) -> int:
        return len(self.prompts)


def weights_of(shape: Shape, params: Params) -> Weights:
    """The weights of a model with Hugging Face's names."""
    arrays = {name: np.asarray(array, np.float32) for name, array in params.items() if not name.startswith("tokenizer/")}
    return _gpt2(shape, arrays) if shape.arch == "gpt2" else _llama(shape, arrays)


def _gpt2(shape: Shape, arrays: dict[str, Singles]) -> Weights:
    body = {name.removeprefix("transformer."): array for name, array in arrays.items()}

    def linear(name: str, norm: str | None = None) -> Linear:
        weight, bias = body[f"{name}.weight"], body[f"{name}.bias"]
        return (weight, bias) if norm is None else _after_norm(weight, bias, body[f"{norm}.weight"], body[f"{norm}.bias"])

    layers = tuple(
        (
            _scaled(shape, linear(f"h.{i}.attn.c_attn", f"h.{i}.ln_1")),
            linear(f"h.{i}.attn.c_proj"),
            linear(f"h.{i}.mlp.c_fc", f"h.{i}.ln_2"),
            linear(f"h.{i}.mlp.c_proj"),
        )
        for i in range(shape.layers)
    )
    head = body["wte.weight" if shape.tied else "lm_head.weight"].T
    final = _after_norm(head, np.zeros(shape.vocab, np.float32), body["ln_f.weight"], body["ln_f.bias"])
    return Weights(body["wte.weight"], body["wpe.weight"], layers, final)


def _llama(shape: Shape, arrays: dict[str, Singles]) -> Weights:
    body = {name.removeprefix("model."): array for name, array in arrays.items()}

    def linear(names: Sequence[str], norm: str | None = None) -> Linear:
        weight = np.concatenate([body[f"{name}.weight"] for name in names]).T
        bias = np.zeros(weight.shape[1], np.float32)
        return (weight, bias) if norm is None else _after_norm(weight, bias, body[f"{norm}.weight"], bias[:1])

    layers = tuple(
        (
            _scaled(shape, linear([f"{at}.self_attn.{part}_proj" for part in "qkv"], f"{at}.input_layernorm")),
            linear([f"{at}.self_attn.o_proj"]),
            linear([f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"], f"{at}.post_attention_layernorm"),
            linear([f"{at}.mlp.down_proj"]),
        )
        for at in (f"layers.{i}" for i in range(shape.layers))
    )
    half = np.arange(0, shape.head_size, 2, dtype=np.float32) / np.float32(shape.head_size)
    angles = np.arange(shape.context, dtype=np.float32)[:, None] * (1 / np.float32(shape.rope_theta) ** half)
    head = linear(["embed_tokens" if shape.tied else "lm_head"], "norm")
    return Weights(body["embed_tokens.weight"], np.stack([np.cos(angles), np.sin(angles)], 1), layers, head)


def _after_norm(weight: Singles, bias: Singles, gain: Singles, offset: Singles) -> Linear:
    """(x gain + offset) weight + bias as one map of x."""
    return gain[:, None] * weight, bias + (weight * offset[:, None]).sum(0)


def _scaled(shape: Shape, linear: Linear) -> Linear:
    scale = np.ones(linear[0].shape[1], np.float32)
    scale[: shape.hidden] = shape.head_size**-0.5
    return linear[0] * scale, linear[1] * scale


def uniforms(key: int, rows: Ints, places: Ints) -> Floats:
    """The number in [0, 1) that decides token `place` of each row: SplitMix64 (Steele, Lea and Flood 2014) from a digest of
    (key, row), so no two rows share a sequence. The compiled decoder has the same lines."""
    with np.errstate(over="ignore"):
        row = _mixed(np.uint64(key) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(ODD))
        mixed = _mixed(row + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(ODD))
    return cast(Floats, (mixed >> np.uint64(11)) * 2.0**-53)


def _mixed(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in zip((30, 27), MIX, strict=True):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
