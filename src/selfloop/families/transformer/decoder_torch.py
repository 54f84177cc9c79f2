"""The decoder in torch operations: for GPUs, where a step is one CUDA graph, and for machines without a C compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask

from selfloop.columns import Ints
from selfloop.errors import ChainEndedError
from selfloop.families.nn.static_call import StaticCall
from selfloop.families.transformer.decoder import DecodeRequest, DecoderWeights, Float32s, Tokens, TransformerConfig
from selfloop.families.transformer.text_sampler import TextSampler

BLOCK_POSITIONS = 128  # of the cache, which flex attention reads or skips together
STEPS_PER_CHECK = 32  # on a GPU, between two looks at the number of finished rows, each of which waits for the GPU


class TorchDecoder:
    """A network with a static cache for `slots` rows; every step has the same shapes, whatever the rows are.

    Prompts are fed token by token beside the rows that are drawn: while all slots are busy, a token costs the same either way.
    A slot whose row is finished goes on with the next row in the same step. All of this happens on the device. `attend`, flex
    attention, reads only those blocks of the cache that are filled; without it attention reads all and masks the rest.
    """

    def __init__(
        self, config: TransformerConfig, weights: DecoderWeights, slots: int, device: torch.device,
        cache_dtype: torch.dtype = torch.float32, attend: Callable[..., Tensor] | None = None,
    ) -> None:  # fmt: skip
        def to_device(array: Float32s) -> Tensor:
            return torch.tensor(np.ascontiguousarray(array), device=device)  # copied: arrays of a store are read-only

        self.config, self.slots, self.device, self.attend = config, slots, device, attend
        self.embedding, self.positions = to_device(weights.embedding), to_device(weights.positions)
        self.layers = [[(to_device(weight), to_device(bias)) for weight, bias in layer] for layer in weights.layers]
        self.head = to_device(weights.head[0]), to_device(weights.head[1])
        length = config.context if attend is None else -(-config.context // BLOCK_POSITIONS) * BLOCK_POSITIONS
        size = (config.layers, 2, slots, config.kv_heads or config.heads, length, config.head_size)
        self.cache = torch.zeros(size, dtype=cache_dtype, device=device)  # keys and values
        self.slot_ids, self.all_positions = torch.arange(slots, device=device), torch.arange(length, device=device)
        self.rows: _Rows | None = None

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (slots, vocab) after the token that each slot has at its position (0, 1, ...)."""
        config, x = self.config, self.embedding[tokens]
        if config.arch == "gpt2":
            x = x + self.positions[positions]
        attend = self._attention(positions)
        for (qkv, out, up, down), cache in zip(self.layers, self.cache, strict=True):
            heads = _apply_dense(self._norm(x), qkv).view(self.slots, -1, config.head_size)
            q, k, v = heads.split_with_sizes([config.heads, cache.shape[2], cache.shape[2]], 1)
            if config.arch == "llama":
                q, k = (_apply_rope(part, self.positions[positions]) for part in (q, k))
            for stored, new in zip(cache, (k, v), strict=True):
                stored[self.slot_ids, :, positions] = _round_to(stored.dtype, new)
            attention = attend(_round_to(cache.dtype, q).unsqueeze(2), *cache).to(x.dtype)
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

    def _attention(self, positions: Tensor) -> Callable[..., Tensor]:
        """Attention of queries (slots, heads, 1, size) to the keys and values of the cache up to the slots' positions."""
        is_grouped = self.cache.shape[3] != self.config.heads
        if self.attend is None:
            mask = (self.all_positions <= positions[:, None])[:, None, None]
            attend = functional.scaled_dot_product_attention
            return lambda q, keys, values: attend(q, keys, values, mask, scale=1.0, enable_gqa=is_grouped)
        n_blocks, attend = (positions // BLOCK_POSITIONS + 1).to(torch.int32)[:, None, None], self.attend
        indices = (self.all_positions[::BLOCK_POSITIONS] // BLOCK_POSITIONS).to(torch.int32).repeat(self.slots, 1, 1, 1)
        blocks = BlockMask.from_kv_blocks(
            n_blocks, indices, BLOCK_SIZE=(BLOCK_POSITIONS, BLOCK_POSITIONS),
            mask_mod=lambda slot, head, query, key: key <= positions[slot],
            seq_lengths=(1, len(self.all_positions)),
        )  # fmt: skip
        return lambda q, keys, values: attend(q, keys, values, block_mask=blocks, scale=1.0, enable_gqa=is_grouped)

    @torch.inference_mode()
    def decode(self, request: DecodeRequest) -> tuple[Tokens, Ints]:
        """Tokens (rows, max_tokens) and lengths of the rows; ChainEndedError("diverged") if logits are not finite."""
        is_gpu, n_finished = self.device.type == "cuda", 0
        if self.rows is None or len(request) > self.rows.capacity or request.sampler != self.rows.sampler:
            self.rows = _Rows(len(request), self.config.context, self.slots, self.device, request.sampler)
            self.advance = StaticCall(self._advance, self.device, capture=is_gpu)
        self.rows.load(request)
        with tensor_cores(self.device):
            while n_finished < len(request):
                for _ in range(STEPS_PER_CHECK if is_gpu else 1):
                    self.advance()
                n_finished, n_failed = self.rows.counts.tolist()
                if n_failed:
                    raise ChainEndedError("diverged")
        samples = self.rows.samples[: len(request), : request.max_tokens]
        return samples.cpu().numpy().astype(np.uint32), self.rows.lengths[: len(request)].cpu().numpy()

    def _advance(self) -> Tensor:
        """One token of every slot: the next of its prompt, or one that is drawn. Idle slots begin the next rows first."""
        r = self.rows
        assert r is not None
        is_idle = r.row == r.capacity
        following = r.next_row + is_idle.cumsum(0) - 1
        begins = is_idle & (following < r.n_rows)
        row, n_cached = torch.where(begins, following, r.row), r.n_cached.masked_fill(is_idle, 0)
        n_tokens = torch.where(is_idle, r.prompt_lengths[row], r.n_tokens)
        tokens = torch.where(n_cached > 0, r.samples[row, (n_cached - 1).clamp(min=0)], r.starts[row])
        place = row, n_tokens.clamp(max=self.config.context - 1)
        drawn = draw_tokens(self.step(tokens, n_cached), r.sampler, r.uniforms[place])
        n_cached = n_cached + 1
        is_drawn = (row < r.capacity) & (n_cached > n_tokens)
        r.samples[place] = torch.where(is_drawn, drawn, r.samples[place])
        n_tokens = n_tokens + is_drawn
        ends = is_drawn & ((drawn == r.end) | (n_tokens == r.max_tokens))
        r.lengths[row] = torch.where(ends, n_tokens, r.lengths[row])
        for old, new in ((r.row, row.masked_fill(ends, r.capacity)), (r.n_cached, n_cached), (r.n_tokens, n_tokens)):
            old.copy_(new)
        r.next_row += begins.sum()
        return r.counts.add_(torch.stack([ends.sum(), (is_drawn & (drawn < 0)).sum()]))


class _Rows:
    """The rows of one request at a time on the device, and the row of each slot: `capacity` is that of idle slots."""

    def __init__(self, capacity: int, width: int, slots: int, device: torch.device, sampler: TextSampler) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.capacity, self.sampler, self.samples = capacity, sampler, zeros(capacity + 1, width)
        self.uniforms = torch.zeros((capacity + 1, width), dtype=torch.float64, device=device)
        self.starts, self.prompt_lengths, self.lengths = (zeros(capacity + 1) for _ in range(3))
        self.row, self.n_cached, self.n_tokens, self.counts = zeros(slots), zeros(slots), zeros(slots), zeros(2)
        self.n_rows, self.next_row, self.end, self.max_tokens = (zeros() for _ in range(4))

    def load(self, request: DecodeRequest) -> None:
        n, lengths = len(request), np.diff(request.prompts.offsets)
        prompts = np.zeros((n, self.samples.shape[1]), np.int64)
        prompts[np.arange(prompts.shape[1]) < lengths[:, None]] = request.prompts.values
        self.uniforms[:n, : request.max_tokens] = torch.from_numpy(request.uniforms())
        of_rows = {"samples": prompts, "starts": request.starts, "prompt_lengths": lengths}
        for name, values in of_rows.items():
            getattr(self, name)[:n] = torch.from_numpy(np.array(values, np.int64)).to(self.samples.device)
        for tensor, value in (
            (self.n_rows, n), (self.next_row, 0), (self.end, request.end), (self.max_tokens, request.max_tokens),
            (self.row, self.capacity), (self.counts, 0),
        ):  # fmt: skip
            tensor.fill_(value)


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Inside, a GPU rounds the factors of float32 products to 10 bits (TF32), which is ten times as fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _round_to(dtype: torch.dtype, x: Tensor) -> Tensor:
    if x.dtype == dtype:
        return x
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def _apply_dense(x: Tensor, dense: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(dense[1], x, dense[0])


def _apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Heads (slots, heads, size) rotated by their position (Su et al. 2021, 2104.09864, eq. 34, halves instead of pairs)."""
    (a, b), (cosine, sine) = x.chunk(2, -1), table.unsqueeze(2).unbind(1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def draw_tokens(logits: Tensor, sampler: TextSampler, u: Tensor) -> Tensor:
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
        target = cumulative[:, -1:] * u.unsqueeze(1)
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=p.shape[1] - 1)
    return torch.where(logits.isfinite().all(-1), tokens, -1)
