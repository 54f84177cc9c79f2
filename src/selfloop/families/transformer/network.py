"""GPT-2 and Llama decoders in plain torch, parameters named and shaped as in transformers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.transformer.config import Shape

DEVIATION = 0.02  # of initial weights, as transformers draws them for both
CHUNK_BYTES = 1 << 20  # of logits at a time on a processor: they stay in its cache
GPU_CHUNK_BYTES = 1 << 30


class Conv1D(nn.Module):
    """A linear map whose matrix is stored [in, out], as GPT-2 has it."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(into, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.mm(x.flatten(0, -2), self.weight)
        return out.add_(self.bias.to(out.dtype)).view(*x.shape[:-1], -1)  # addmm copies the bias first: slower


class Gpt2Attention(nn.Module):
    """Causal attention with one matrix for queries, keys and values."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(shape.hidden, 3 * shape.hidden), Conv1D(shape.hidden, shape.hidden)
        self.heads, self.dropout = shape.heads, dropout

    def forward(self, x: Tensor, place: Place) -> Tensor:
        attended = place.attend(self.c_attn(x), self.heads, self.heads, self.dropout if self.training else 0.0)
        return cast(Tensor, self.c_proj(attended))


class Gpt2Mlp(nn.Module):
    """Two maps with GELU between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(shape.hidden, shape.mlp), Conv1D(shape.mlp, shape.hidden)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        out = place.mlp(x, self.c_fc.weight, self.c_proj.weight, bias=self.c_fc.bias)
        return out + self.c_proj.bias.to(out.dtype)


class Gpt2Layer(nn.Module):
    """Attention and perceptron, each on the normalised stream and added to it (Radford et al. 2019)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(shape.hidden, shape.epsilon) for _ in range(2))
        self.attn, self.mlp = Gpt2Attention(shape, dropout), Gpt2Mlp(shape)
        self.dropout = dropout

    def forward(self, x: Tensor, place: Place) -> Tensor:
        x = x + functional.dropout(self.attn(self.ln_1(x), place), self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.ln_2(x), place), self.dropout, self.training)


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions (Su et al. 2021, 2104.09864) and possibly fewer heads of keys and values."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = shape.heads, shape.kv_heads or shape.heads, dropout
        narrow = self.kv_heads * shape.head_size
        self.q_proj, self.o_proj = (nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(shape.hidden, narrow, bias=False) for _ in range(2))

    def forward(self, x: Tensor, place: Place) -> Tensor:
        fused = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])  # one product instead of three
        dropout = self.dropout if self.training else 0.0
        return cast(Tensor, self.o_proj(place.attend(functional.linear(x, fused), self.heads, self.kv_heads, dropout)))


class LlamaMlp(nn.Module):
    """SwiGLU (Shazeer 2020, 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.hidden, shape.mlp, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        return place.mlp(x, self.up_proj.weight.t(), self.down_proj.weight.t(), gate=self.gate_proj.weight.t())


class LlamaLayer(nn.Module):
    """Attention and SwiGLU, each on the normalised stream and added to it (Touvron et al. 2023, 2302.13971)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(shape, dropout), LlamaMlp(shape)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(shape.hidden, shape.epsilon) for _ in range(2))

    def forward(self, x: Tensor, place: Place) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), place)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x), place))


class Network(nn.Module):
    """A decoder of either kind: tokens [B, T] in, the normalised stream before the output matrix [B, T, hidden] out.

    `dropout` acts where transformers' classes have it: GPT-2 on embeddings, attention and both branches, Llama on attention.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.apply_layer: Callable[..., Tensor] = apply_layer  # or a compiled one
        embedding = nn.Embedding(shape.vocab, shape.hidden)
        if shape.arch == "gpt2":
            layers: list[nn.Module] = [Gpt2Layer(shape, dropout) for _ in range(shape.layers)]
            norm: nn.Module = nn.LayerNorm(shape.hidden, shape.epsilon)
            parts = {"wte": embedding, "wpe": nn.Embedding(shape.context, shape.hidden)}
            self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(layers), "ln_f": norm})
        else:
            layers = [LlamaLayer(shape, dropout) for _ in range(shape.layers)]
            norm = nn.RMSNorm(shape.hidden, shape.epsilon)
            self.model = nn.ModuleDict({"embed_tokens": embedding, "layers": nn.ModuleList(layers), "norm": norm})
        if not shape.tied:
            self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """As transformers does: normal weights, zero biases, GPT-2's residual branches smaller by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                branch = self.shape.arch == "gpt2" and name.endswith("c_proj.weight")
                nn.init.normal_(p, std=DEVIATION / math.sqrt(2 * self.shape.layers) if branch else DEVIATION)

    def head(self) -> Tensor:
        """The output matrix [vocab, hidden]."""
        if not self.shape.tied:
            return self.lm_head.weight
        return cast(Tensor, (self.transformer["wte"] if self.shape.arch == "gpt2" else self.model["embed_tokens"]).weight)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """`documents` [B, T] numbers each position's document: attention stays inside it, positions count from its start."""
        place = Place(self.shape, *positions_of(tokens, documents))
        if self.shape.arch == "gpt2":
            body, layers, norm = self.transformer, self.transformer["h"], self.transformer["ln_f"]
            x = functional.dropout(body["wte"](tokens) + body["wpe"](place.positions), self.dropout, self.training)
        else:
            body, layers, norm = self.model, self.model["layers"], self.model["norm"]
            x = body["embed_tokens"](tokens)
        for layer in cast(nn.ModuleList, layers):
            x = self.apply_layer(layer, x, place)
        return cast(Tensor, norm(x))

    def logits(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Scores of the next token [B, T, vocab]."""
        return functional.linear(self(tokens, documents), self.head())


def apply_layer(layer: nn.Module, x: Tensor, place: Place) -> Tensor:
    """One layer of a network: what torch compiles, once for all layers and all networks of the same shape."""
    return cast(Tensor, layer(x, place))


def positions_of(tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Each token's position in its document, and the earliest place of a window that it sees (None: all)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    if documents is None:
        return places, None
    begins = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    first = torch.where(begins, places, 0).cummax(1).values
    return places - first, first


class Place:
    """Where the tokens of some windows stand, and the operations that depend on it."""

    def __init__(self, shape: Shape, positions: Tensor, first: Tensor | None) -> None:
        self.positions, self.mask, self.rotary = positions, None, None
        if first is not None:
            places = torch.arange(first.shape[1], device=first.device)
            self.mask = ((places >= first[:, :, None]) & (places <= places[:, None]))[:, None]
        if shape.arch == "llama":
            self.rotary = rotary_table(shape, positions)

    def attend(self, qkv: Tensor, heads: int, kv_heads: int, dropout: float) -> Tensor:
        """Causal attention of [B, T, (heads + 2 kv_heads) x size]; each head of keys and values serves a group of queries."""
        parts = qkv.view(*qkv.shape[:2], heads + 2 * kv_heads, -1).transpose(1, 2)
        q, k, v = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
        if self.rotary is not None:
            cosine, sine = (torch.cat([half, half], -1).unsqueeze(-3) for half in self.rotary.unbind(-2))
            q, k = ((part * cosine + _half_turned(part) * sine).to(v.dtype) for part in (q, k))
        out = functional.scaled_dot_product_attention(
            q, k, v, self.mask, dropout, is_causal=self.mask is None, enable_gqa=heads != kv_heads
        )
        return out.transpose(1, 2).flatten(2)

    def mlp(self, x: Tensor, up: Tensor, down: Tensor, bias: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """gelu(x up + bias) down, with transformers' "gelu_new"; or, gated, (silu(x gate) * x up) down."""
        wide = x @ up
        if bias is not None:
            wide = functional.gelu(wide + bias.to(wide.dtype), approximate="tanh")
        if gate is not None:
            wide = functional.silu(x @ gate) * wide
        return wide @ down


def rotary_table(shape: Shape, positions: Tensor) -> Tensor:
    """Cosines and sines [.., 2, size / 2] of the angles by which positions turn the halves of a head."""
    half = torch.arange(0, shape.head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * shape.rope_theta ** (-half / shape.head_size)
    return torch.stack([angles.cos(), angles.sin()], -2)


def _half_turned(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], -1)


class _CrossEntropy(torch.autograd.Function):
    """The weighted sum of -log p(target), its gradients taken on the way: logits exist a chunk at a time, once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        to_hidden, to_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        size = _chunk(head)
        parts = [torch.split(tensor, size) for tensor in (hidden, to_hidden, targets[:, None], weights[:, None])]
        with torch.autocast(hidden.device.type, enabled=False):
            for inputs, outputs, target, weight in zip(*parts, strict=True):
                scores = torch.log_softmax(torch.mm(inputs, head.t()).float(), -1)
                total -= (scores.gather(1, target) * weight).sum()
                scores = scores.exp_().mul_(weight).scatter_add_(1, target, -weight).to(head.dtype)  # d loss / d logits
                torch.mm(scores, head, out=outputs)
                if head.dtype == torch.float32:
                    to_head.addmm_(scores.t(), inputs)
                else:
                    to_head += torch.mm(scores.t(), inputs)
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_hidden, to_head = ctx.saved_tensors
        return to_hidden * gradient, to_head * gradient, None, None


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weight times -log p(target), nats."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        short = torch.get_autocast_dtype(kind)
        hidden, head = hidden.to(short), head.to(short)
    flat = (hidden.flatten(0, -2), head, targets.flatten(), weights.flatten())
    return cast(Tensor, _CrossEntropy.apply(*flat))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def log_prob(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """log p of every target given the ones before it, nats; of a network in use, not in training."""
    parts = zip(*(torch.split(each, _chunk(head)) for each in (hidden.flatten(0, -2), targets.reshape(-1, 1))), strict=True)
    scores = [torch.log_softmax(torch.mm(inputs, head.t()), -1).gather(1, target) for inputs, target in parts]
    return torch.cat(scores).view(targets.shape)


def _chunk(head: Tensor) -> int:
    """How many tokens' logits are held at a time."""
    return max((GPU_CHUNK_BYTES if head.is_cuda else CHUNK_BYTES) // (4 * len(head)), 32)
