"""The decoder in torch operations: for GPUs, and for machines without a C compiler."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selfloop.errors import ChainEndedError
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.decoder import Job, Linear, Singles, Tokens, Weights, uniforms
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.types import Floats, Ints


class Looped:
    """A network with a static cache for `slots` rows at once; every step has the same shapes, whatever the rows are.

    Prompts are fed token by token beside the rows that are drawn: while all slots are busy a token costs the same either way.
    """

    def __init__(self, shape: Shape, weights: Weights, slots: int, device: torch.device) -> None:
        def moved(array: Singles) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        def linear(pair: Linear) -> tuple[Tensor, Tensor]:
            return moved(pair[0]), moved(pair[1])

        self.shape, self.slots, self.device = shape, slots, device
        self.embedding, self.positions = moved(weights.embedding), moved(weights.positions)
        self.layers = [[linear(pair) for pair in layer] for layer in weights.layers]
        self.head = linear(weights.head)
        heads = shape.kv_heads or shape.heads
        size = (shape.layers, 2, slots, shape.context, heads, shape.head_size)
        self.cache = torch.zeros(size, device=device)  # keys and values
        self.each, self.range = torch.arange(slots, device=device), torch.arange(shape.context, device=device)

    @torch.inference_mode()
    def step(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits [slots, vocab] after the token that each slot has at its place (0, 1, ...)."""
        shape, x = self.shape, self.embedding[tokens]
        if shape.arch == "gpt2":
            x = x + self.positions[places]
        seen = (self.range <= places[:, None])[:, None, None]
        for (qkv, out, up, down), cache in zip(self.layers, self.cache, strict=True):
            heads = _mapped(self._normal(x), qkv).view(self.slots, -1, shape.head_size)
            q, k, v = heads.split_with_sizes([shape.heads, cache.shape[-2], cache.shape[-2]], 1)
            if shape.arch == "llama":
                q, k = (_rotated(part, self.positions[places]) for part in (q, k))
            cache[0].index_put_((self.each, places), k)
            cache[1].index_put_((self.each, places), v)
            keys, values = cache.transpose(2, 3)
            mixed = functional.scaled_dot_product_attention(
                q.unsqueeze(2), keys, values, seen, scale=1.0, enable_gqa=shape.heads != keys.shape[1]
            )
            x = x + _mapped(mixed.flatten(1), out)
            inner = _mapped(self._normal(x), up)
            if shape.arch == "llama":
                gate, inner = inner.chunk(2, 1)
                inner = functional.silu(gate) * inner
            else:
                inner = functional.gelu(inner, approximate="tanh")
            x = x + _mapped(inner, down)
        return _mapped(self._normal(x), self.head)

    def _normal(self, x: Tensor) -> Tensor:
        form = functional.layer_norm if self.shape.arch == "gpt2" else functional.rms_norm
        return form(x, (self.shape.hidden,), eps=self.shape.epsilon)

    def logits(self, tokens: Tokens) -> Singles:
        """Scores [len(tokens), vocab] of the token after each of a sequence's."""
        same = torch.from_numpy(tokens.astype(np.int64)).to(self.device).unsqueeze(1).expand(-1, self.slots)
        steps = (self.step(token, torch.full_like(token, place)) for place, token in enumerate(same))
        return torch.stack([scores[0] for scores in steps]).cpu().numpy()

    def decode(self, job: Job) -> tuple[Tokens, Ints]:
        """Tokens [rows, limit] and lengths of the job's rows; ChainEndedError("diverged") when logits are not finite."""
        made, lengths = np.zeros((len(job), job.limit), np.uint32), np.zeros(len(job), np.int64)
        prompts, inputs = job.prompts, np.diff(job.prompts.offsets)
        rows, fed = np.full(self.slots, -1), np.zeros(self.slots, np.int64)
        known, taken = np.zeros(self.slots, np.int64), 0
        while True:
            for slot in np.flatnonzero(rows < 0)[: len(job) - taken]:
                made[taken, : inputs[taken]] = prompts.values[prompts.offsets[taken] : prompts.offsets[taken + 1]]
                rows[slot], fed[slot], known[slot] = taken, 0, inputs[taken]
                taken += 1
            busy = rows >= 0
            if not busy.any():
                return made, lengths
            tokens = np.where(fed > 0, made[rows, fed - 1], job.start).astype(np.int64)
            scores = self.step(*(torch.from_numpy(a).to(self.device) for a in (tokens, fed)))
            fed[busy] += 1
            drawn = _draw(scores, job.sampler, uniforms(job.key, job.first + rows, known))
            ready = np.flatnonzero(busy & (fed > known))
            if (drawn[ready] < 0).any():
                raise ChainEndedError("diverged")
            made[rows[ready], known[ready]] = drawn[ready]
            known[ready] += 1
            over = ready[(drawn[ready] == job.end) | (known[ready] == job.limit)]
            lengths[rows[over]] = known[over]
            rows[over], fed[over] = -1, 0


def _mapped(x: Tensor, linear: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(linear[1], x, linear[0])


def _rotated(x: Tensor, table: Tensor) -> Tensor:
    """Heads [slots, heads, size] turned by their position (Su et al. 2021, 2104.09864, eq. 34, halves instead of pairs)."""
    (a, b), (cosine, sine) = x.chunk(2, -1), table.unsqueeze(2).unbind(1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


@torch.inference_mode()
def _draw(logits: Tensor, sampler: TextSampler, u: Floats) -> Ints:
    """A token of each row, drawn where u cuts the cumulative probabilities; -1 where logits are not finite."""
    if sampler.temperature == 0:
        chosen = logits.argmax(-1)
    else:
        scores = logits.double() / sampler.temperature
        if sampler.top_k is not None:
            least = scores.topk(min(sampler.top_k, scores.shape[1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        p = scores.softmax(-1)
        if sampler.top_p is not None:
            likeliest = p.sort(descending=True).values
            before = likeliest.cumsum(-1) - likeliest
            least = likeliest.masked_fill(before >= sampler.top_p, torch.inf).amin(-1, keepdim=True)
            p = p.masked_fill(p < least, 0.0)
        cumulative = p.cumsum(-1)
        cut = cumulative[:, -1:] * torch.from_numpy(u).to(p.device).unsqueeze(1)
        chosen = torch.searchsorted(cumulative, cut, right=True).squeeze(1).clamp(max=p.shape[1] - 1)
    finite: Any = logits.isfinite().all(-1)
    return cast(Ints, torch.where(finite, chosen, -1).cpu().numpy())
