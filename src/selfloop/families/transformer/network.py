"""GPT-2 and Llama decoders in plain torch, parameters named and shaped as in transformers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from selfloop.families.transformer.decoder import TransformerConfig

INITIAL_STD = 0.02  # of initial weights, transformers' value for both
CHUNK_BYTES = 1 << 20  # of logits that exist at a time on a processor: they stay in its cache
GPU_CHUNK_BYTES = 1 << 30


class Conv1D(nn.Module):
    """A linear map whose matrix is stored as (inputs, outputs), as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.mm(x.flatten(0, -2), self.weight)
        return out.add_(self.bias.to(out.dtype)).view(*x.shape[:-1], -1)  # addmm copies the bias first: slower


class Gpt2Layer(nn.Module):
    """Attention and perceptron, each on the normalized stream and added to it (Radford et al. 2019)."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.mlp_hidden
        self.ln_1, self.ln_2 = (nn.LayerNorm(hidden, config.epsilon) for _ in range(2))
        self.attn = nn.ModuleDict({"c_attn": Conv1D(hidden, 3 * hidden), "c_proj": Conv1D(hidden, hidden)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(hidden, inner), "c_proj": Conv1D(inner, hidden)})
        self.dropout = dropout

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed = context.attention(self.attn["c_attn"](self.ln_1(x)), dropout)
        x = x + functional.dropout(self.attn["c_proj"](mixed), dropout)
        inner = functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + functional.dropout(self.mlp["c_proj"](inner), dropout)


class LlamaLayer(nn.Module):
    """Attention and SwiGLU, each on the normalized stream and added to it (Touvron et al. 2023, 2302.13971).

    Rotary positions: Su et al. 2021, 2104.09864; SwiGLU: Shazeer 2020, 2002.05202.
    """

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        hidden, inner, narrow = config.hidden, config.mlp_hidden, config.head_size * (config.kv_heads or config.heads)
        attention = {"q_proj": hidden, "o_proj": hidden, "k_proj": narrow, "v_proj": narrow}
        self.self_attn = nn.ModuleDict({name: nn.Linear(hidden, width, bias=False) for name, width in attention.items()})
        self.mlp = nn.ModuleDict({name: nn.Linear(hidden, inner, bias=False) for name in ("gate_proj", "up_proj")})
        self.mlp["down_proj"] = nn.Linear(inner, hidden, bias=False)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(hidden, config.epsilon) for _ in range(2))
        self.dropout = dropout

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        attn, mlp = self.self_attn, self.mlp
        fused = torch.cat([cast(Tensor, attn[f"{name}_proj"].weight) for name in "qkv"])  # one product instead of three
        qkv = functional.linear(self.input_layernorm(x), fused)
        x = x + attn["o_proj"](context.attention(qkv, self.dropout if self.training else 0.0))
        normed = self.post_attention_layernorm(x)
        return cast(Tensor, x + mlp["down_proj"](functional.silu(mlp["gate_proj"](normed)) * mlp["up_proj"](normed)))


class TransformerNetwork(nn.Module):
    """Maps tokens (batch, tokens) to the normalized residual stream before the output matrix, (batch, tokens, hidden).

    Dropout is that of transformers' classes: GPT-2 on embeddings, attention and both branches, Llama on attention.
    """

    def __init__(self, config: TransformerConfig, dropout: float = 0.0, in_documents: bool = False) -> None:
        super().__init__()
        self.config, self.dropout, self.in_documents = config, dropout, in_documents
        self.apply_layer: Callable[..., Tensor] = apply_layer  # or a compiled one
        self.skips_blocks = False  # True: flex attention, which is fast if it is compiled, and has no dropout
        embedding = nn.Embedding(config.vocab, config.hidden)
        if config.arch == "gpt2":
            layers: list[nn.Module] = [Gpt2Layer(config, dropout) for _ in range(config.layers)]
            norm: nn.Module = nn.LayerNorm(config.hidden, config.epsilon)
            parts = {"wte": embedding, "wpe": nn.Embedding(config.context, config.hidden)}
            self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(layers), "ln_f": norm})
        else:
            layers = [LlamaLayer(config, dropout) for _ in range(config.layers)]
            norm = nn.RMSNorm(config.hidden, config.epsilon)
            self.model = nn.ModuleDict({"embed_tokens": embedding, "layers": nn.ModuleList(layers), "norm": norm})
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """Initialize as transformers does: normal weights, zero biases, GPT-2's residual branches smaller by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if p.ndim == 2:
                is_branch = self.config.arch == "gpt2" and name.endswith("c_proj.weight")
                nn.init.normal_(p, std=INITIAL_STD / math.sqrt(2 * self.config.layers) if is_branch else INITIAL_STD)

    def head(self) -> Tensor:
        """The output matrix (vocab, hidden)."""
        if not self.config.tie_embeddings:
            return self.lm_head.weight
        return cast(Tensor, (self.transformer["wte"] if self.config.arch == "gpt2" else self.model["embed_tokens"]).weight)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """`documents` (batch, tokens) numbers the document of each token: attention and positions then stay inside it."""
        context = AttentionContext(self.config, tokens, documents, self.skips_blocks)
        if self.config.arch == "gpt2":
            body, layers, norm = self.transformer, self.transformer["h"], self.transformer["ln_f"]
            x = functional.dropout(body["wte"](tokens) + body["wpe"](context.positions), self.dropout, self.training)
        else:
            body, layers, norm = self.model, self.model["layers"], self.model["norm"]
            x = body["embed_tokens"](tokens)
        for layer in cast(nn.ModuleList, layers):
            x = self.apply_layer(layer, x, context)
        return cast(Tensor, norm(x))


def apply_layer(layer: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    """One layer of a network: the unit that torch.compile compiles, once for all layers and networks of the same shape."""
    return cast(Tensor, layer(x, context))


class AttentionContext:
    """Position of each token in its document, and the attention that depends on it."""

    def __init__(self, config: TransformerConfig, tokens: Tensor, documents: Tensor | None, skips_blocks: bool = False) -> None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        self.positions, self.mask, self.rotary = positions, None, None
        self.blocks: BlockMask | None = None
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        if documents is not None:
            begins = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
            first = torch.where(begins, positions, 0).cummax(1).values  # position that a token's attention begins at
            if skips_blocks:
                self.blocks = block_mask(first)
            else:
                self.mask = ((positions >= first[:, :, None]) & (positions <= positions[:, None]))[:, None]
            self.positions = positions - first
        if config.arch == "llama":
            self.rotary = rotary_tables(config, self.positions)

    def attention(self, qkv: Tensor, dropout: float) -> Tensor:
        """Causal attention of (batch, tokens, (heads + 2 kv_heads) x size); a head of keys and values serves some queries."""
        n_heads = self.heads + 2 * self.kv_heads
        if self.rotary is not None:
            qkv = apply_rope(qkv, *self.rotary, n_heads)
        parts = qkv.view(*qkv.shape[:2], n_heads, -1).transpose(1, 2)
        q, k, v = torch.split(parts, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        is_grouped = self.heads != self.kv_heads
        if self.blocks is not None:
            out = flex_attention(q, k, v, block_mask=self.blocks, enable_gqa=is_grouped)
        else:
            out = functional.scaled_dot_product_attention(
                q, k, v, self.mask, dropout, is_causal=self.mask is None, enable_gqa=is_grouped
            )
        return out.transpose(1, 2).flatten(2)


def block_mask(first: Tensor) -> BlockMask:
    """Causal attention that begins at the position `first` (batch, tokens) of each token, with the blocks that it needs."""
    batch, n_tokens = first.shape

    def is_seen(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[b, query])

    return create_block_mask(is_seen, batch, None, n_tokens, n_tokens, device=first.device)


def rotary_tables(config: TransformerConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (.., (heads + 2 kv_heads) x size) of the angles by which positions rotate queries and keys.

    Values have angle 0. Sines of the first half of a head are negative (Su et al. 2021, 2104.09864, eq. 34, with halves).
    """
    half = torch.arange(0, config.head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * config.rope_theta ** (-half / config.head_size)
    cosine, sine, kv_heads = angles.cos(), angles.sin(), config.kv_heads or config.heads
    values = torch.zeros(*angles.shape[:-1], kv_heads * config.head_size, device=angles.device)
    n_rotated = config.heads + kv_heads
    return torch.cat([cosine, cosine] * n_rotated + [values + 1], -1), torch.cat([-sine, sine] * n_rotated + [values], -1)


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor, n_heads: int) -> Tensor:
    """Heads (batch, tokens, n_heads x size) rotated by the tables of `rotary_tables`."""
    left, right = x.view(*x.shape[:2], n_heads, 2, -1).unbind(-2)
    return torch.addcmul(x * cosine, torch.stack([right, left], -2).view(x.shape), sine).to(x.dtype)


class _CrossEntropy(torch.autograd.Function):
    """The weighted sum of -log p(target). Forward also computes the gradients, so the logits exist only chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, truncation: float) -> Tensor:
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        size = _chunk_tokens(head)
        chunks = [torch.split(tensor, size) for tensor in (hidden, grad_hidden, targets[:, None], weights[:, None])]
        with torch.autocast(hidden.device.type, enabled=False):
            for inputs, outputs, target, weight in zip(*chunks, strict=True):
                logits = torch.mm(inputs, head.t()).float()
                p = torch.softmax(logits, -1)
                if truncation < 1:
                    weight = weight * (p.gather(1, target) <= truncation)
                log_sum = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()  # of exp(logits)
                total += ((log_sum - logits.gather(1, target)) * weight).sum()
                grad_logits = p.mul_(weight).scatter_add_(1, target, -weight).to(head.dtype)
                torch.mm(grad_logits, head, out=outputs)
                if head.dtype == torch.float32:
                    grad_head.addmm_(grad_logits.t(), inputs)
                else:
                    grad_head += torch.mm(grad_logits.t(), inputs)
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * gradient, grad_head * gradient, None, None, None


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, truncation: float = 1.0) -> Tensor:
    """Sum over tokens of weight times -log p(target), nats, of the targets with p up to `truncation`."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head = hidden.to(dtype), head.to(dtype)
    flat = (hidden.flatten(0, -2), head, targets.flatten(), weights.flatten(), truncation)
    return cast(Tensor, _CrossEntropy.apply(*flat))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def log_prob(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """log p of every target given the preceding tokens, in nats, without gradients."""
    chunks = (torch.split(tensor, _chunk_tokens(head)) for tensor in (hidden.flatten(0, -2), targets.reshape(-1, 1)))
    scores = [torch.log_softmax(torch.mm(x, head.t()), -1).gather(1, target) for x, target in zip(*chunks, strict=True)]
    return torch.cat(scores).view(targets.shape)


def _chunk_tokens(head: Tensor) -> int:
    """Number of tokens whose logits exist at a time."""
    return max((GPU_CHUNK_BYTES if head.is_cuda else CHUNK_BYTES) // (4 * len(head)), 32)
