"""The decoder in torch operations: for GPUs, and for machines without a C compiler."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selfloop.columns import Floats, Ints
from selfloop.errors import ChainEndedError
from selfloop.families.transformer.decoder import (
    DecodeRequest,
    DecoderWeights,
    Float32s,
    Tokens,
    TransformerConfig,
    token_uniforms,
)
from selfloop.families.transformer.text_sampler import TextSampler


class TorchDecoder:
    """A network with a static cache for `slots` rows; every step has the same shapes, whatever the rows are.

    Prompts are fed token by token beside the rows that are drawn: while all slots are busy, a token costs the same either way.
    """

    def __init__(self, config: TransformerConfig, weights: DecoderWeights, slots: int, device: torch.device) -> None:
        def to_device(array: Float32s) -> Tensor:
            return torch.tensor(np.ascontiguousarray(array), device=device)  # copied: arrays of a store are read-only

        self.config, self.slots, self.device = config, slots, device
        self.embedding, self.positions = to_device(weights.embedding), to_device(weights.positions)
        self.layers = [[(to_device(weight), to_device(bias)) for weight, bias in layer] for layer in weights.layers]
        self.head = to_device(weights.head[0]), to_device(weights.head[1])
        heads = config.kv_heads or config.heads
        size = (config.layers, 2, slots, config.context, heads, config.head_size)
        self.cache = torch.zeros(size, device=device)  # keys and values
        self.slot_ids, self.all_positions = torch.arange(slots, device=device), torch.arange(config.context, device=device)

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (slots, vocab) after the token that each slot has at its position (0, 1, ...)."""
        config, x = self.config, self.embedding[tokens]
        if config.arch == "gpt2":
            x = x + self.positions[positions]
        mask = (self.all_positions <= positions[:, None])[:, None, None]
        for (qkv, out, up, down), cache in zip(self.layers, self.cache, strict=True):
            heads = _apply_dense(self._norm(x), qkv).view(self.slots, -1, config.head_size)
            q, k, v = heads.split_with_sizes([config.heads, cache.shape[-2], cache.shape[-2]], 1)
            if config.arch == "llama":
                q, k = (_apply_rope(part, self.positions[positions]) for part in (q, k))
            cache[0].index_put_((self.slot_ids, positions), k)
            cache[1].index_put_((self.slot_ids, positions), v)
            keys, values = cache.transpose(2, 3)
            attention = functional.scaled_dot_product_attention(
                q.unsqueeze(2), keys, values, mask, scale=1.0, enable_gqa=config.heads != keys.shape[1]
            )
            x = x + _apply_dense(attention.flatten(1), out)
            inner = _apply_dense(self._norm(x), up)
            if config.arch == "llama":
                gate, inner = inner.chunk(2, 1)
                inner = functional.silu(gate) * inner
            else:
                inner = functional.gelu(inner, approximate="tanh")
            x = x + _apply_dense(inner, down)
        return _apply_dense(self._norm(x), self.head)

    def _norm(self, x: Tensor) -> Tensor:
        norm = functional.layer_norm if self.config.arch == "gpt2" else functional.rms_norm
        return norm(x, (self.config.hidden,), eps=self.config.epsilon)

    def decode(self, request: DecodeRequest) -> tuple[Tokens, Ints]:
        """Tokens (rows, max_tokens) and lengths of the rows; ChainEndedError("diverged") if logits are not finite."""
        samples, lengths = np.zeros((len(request), request.max_tokens), np.uint32), np.zeros(len(request), np.int64)
        prompts, prompt_lengths = request.prompts, np.diff(request.prompts.offsets)
        rows, n_cached = np.full(self.slots, -1), np.zeros(self.slots, np.int64)
        n_tokens, next_row = np.zeros(self.slots, np.int64), 0
        while True:
            for slot in np.flatnonzero(rows < 0)[: len(request) - next_row]:
                prompt = prompts.values[prompts.offsets[next_row] : prompts.offsets[next_row + 1]]
                samples[next_row, : len(prompt)] = prompt
                rows[slot], n_cached[slot], n_tokens[slot] = next_row, 0, prompt_lengths[next_row]
                next_row += 1
            busy = rows >= 0
            if not busy.any():
                return samples, lengths
            tokens = np.where(n_cached > 0, samples[rows, n_cached - 1], request.starts[rows]).astype(np.int64)
            scores = self.step(*(torch.from_numpy(array).to(self.device) for array in (tokens, n_cached)))
            n_cached[busy] += 1
            drawn = _sample_tokens(scores, request.sampler, token_uniforms(request.random_key, request.numbers[rows], n_tokens))
            ready = np.flatnonzero(busy & (n_cached > n_tokens))
            if (drawn[ready] < 0).any():
                raise ChainEndedError("diverged")
            samples[rows[ready], n_tokens[ready]] = drawn[ready]
            n_tokens[ready] += 1
            finished = ready[(drawn[ready] == request.end) | (n_tokens[ready] == request.max_tokens)]
            lengths[rows[finished]] = n_tokens[finished]
            rows[finished], n_cached[finished] = -1, 0


def _apply_dense(x: Tensor, dense: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(dense[1], x, dense[0])


def _apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Heads (slots, heads, size) rotated by their position (Su et al. 2021, 2104.09864, eq. 34, halves instead of pairs)."""
    (a, b), (cosine, sine) = x.chunk(2, -1), table.unsqueeze(2).unbind(1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


@torch.inference_mode()
def _sample_tokens(logits: Tensor, sampler: TextSampler, u: Floats) -> Ints:
    """A token per row: the first whose cumulative probability exceeds u; -1 where logits are not finite."""
    if sampler.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        scores = logits.double() / sampler.temperature
        if sampler.top_k is not None:
            least = scores.topk(min(sampler.top_k, scores.shape[1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        p = scores.softmax(-1)
        if sampler.top_p is not None:
            descending = p.sort(descending=True).values
            before = descending.cumsum(-1) - descending
            least = descending.masked_fill(before >= sampler.top_p, torch.inf).amin(-1, keepdim=True)
            p = p.masked_fill(p < least, 0.0)
        cumulative = p.cumsum(-1)
        target = cumulative[:, -1:] * torch.from_numpy(u).to(p.device).unsqueeze(1)
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=p.shape[1] - 1)
    finite: Any = logits.isfinite().all(-1)
    return cast(Ints, torch.where(finite, tokens, -1).cpu().numpy())
