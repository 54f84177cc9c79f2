"""GPT-2 and Llama decoders in plain torch, parameters named and shaped as in transformers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.transformer.config import TransformerConfig

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


class Gpt2Attention(nn.Module):
    """Causal attention with one matrix for queries, keys and values."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(config.hidden, 3 * config.hidden), Conv1D(config.hidden, config.hidden)
        self.heads, self.dropout = config.heads, dropout

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        attention = context.attend(self.c_attn(x), self.heads, self.heads, self.dropout if self.training else 0.0)
        return cast(Tensor, self.c_proj(attention))


class Gpt2Mlp(nn.Module):
    """Two maps with GELU between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(config.hidden, config.mlp_hidden), Conv1D(config.mlp_hidden, config.hidden)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        out = context.mlp(x, self.c_fc.weight, self.c_proj.weight, bias=self.c_fc.bias)
        return out + self.c_proj.bias.to(out.dtype)


class Gpt2Layer(nn.Module):
    """Attention and perceptron, each on the normalized stream and added to it (Radford et al. 2019)."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(config.hidden, config.epsilon) for _ in range(2))
        self.attn, self.mlp = Gpt2Attention(config, dropout), Gpt2Mlp(config)
        self.dropout = dropout

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        x = x + functional.dropout(self.attn(self.ln_1(x), context), self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.ln_2(x), context), self.dropout, self.training)


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions (Su et al. 2021, 2104.09864) and possibly fewer heads of keys and values."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = config.heads, config.kv_heads or config.heads, dropout
        narrow = self.kv_heads * config.head_size
        self.q_proj, self.o_proj = (nn.Linear(config.hidden, config.hidden, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(config.hidden, narrow, bias=False) for _ in range(2))

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        fused = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])  # one product instead of three
        dropout = self.dropout if self.training else 0.0
        return cast(Tensor, self.o_proj(context.attend(functional.linear(x, fused), self.heads, self.kv_heads, dropout)))


class LlamaMlp(nn.Module):
    """SwiGLU (Shazeer 2020, 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden, config.mlp_hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(config.mlp_hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        return context.mlp(x, self.up_proj.weight.t(), self.down_proj.weight.t(), gate=self.gate_proj.weight.t())


class LlamaLayer(nn.Module):
    """Attention and SwiGLU, each on the normalized stream and added to it (Touvron et al. 2023, 2302.13971)."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(config, dropout), LlamaMlp(config)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(config.hidden, config.epsilon) for _ in range(2))

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x), context))


class TransformerNetwork(nn.Module):
    """Maps tokens (batch, tokens) to the normalized residual stream before the output matrix, (batch, tokens, hidden).

    Dropout is that of transformers' classes: GPT-2 on embeddings, attention and both branches, Llama on attention.
    """

    def __init__(self, config: TransformerConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.apply_layer: Callable[..., Tensor] = apply_layer  # or a compiled one
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
        context = AttentionContext(self.config, *document_positions(tokens, documents))
        if self.config.arch == "gpt2":
            body, layers, norm = self.transformer, self.transformer["h"], self.transformer["ln_f"]
            x = functional.dropout(body["wte"](tokens) + body["wpe"](context.positions), self.dropout, self.training)
        else:
            body, layers, norm = self.model, self.model["layers"], self.model["norm"]
            x = body["embed_tokens"](tokens)
        for layer in cast(nn.ModuleList, layers):
            x = self.apply_layer(layer, x, context)
        return cast(Tensor, norm(x))

    def logits(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Logits of the next token (batch, tokens, vocab)."""
        return functional.linear(self(tokens, documents), self.head())

    @classmethod
    def without_weights(cls, config: TransformerConfig) -> TransformerNetwork:
        """A network with uninitialized parameters: nothing is drawn for parameters that are replaced at once."""
        with torch.device("meta"):
            network = cls(config)
        return network.to_empty(device="cpu")


def apply_layer(layer: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    """One layer of a network: the unit that torch.compile compiles, once for all layers and networks of the same shape."""
    return cast(Tensor, layer(x, context))


def document_positions(tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Position of each token in its document, and the first position of the window that it attends to (None: 0)."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    if documents is None:
        return positions, None
    begins = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    first = torch.where(begins, positions, 0).cummax(1).values
    return positions - first, first


class AttentionContext:
    """Positions of the tokens of some windows, and the operations that depend on them."""

    def __init__(self, config: TransformerConfig, positions: Tensor, first: Tensor | None) -> None:
        self.positions, self.mask, self.rotary = positions, None, None
        if first is not None:
            keys = torch.arange(first.shape[1], device=first.device)
            self.mask = ((keys >= first[:, :, None]) & (keys <= keys[:, None]))[:, None]
        if config.arch == "llama":
            self.rotary = rotary_table(config, positions)

    def attend(self, qkv: Tensor, heads: int, kv_heads: int, dropout: float) -> Tensor:
        """Causal attention of (batch, tokens, (heads + 2 kv_heads) x size); a head of keys and values serves some queries."""
        parts = qkv.view(*qkv.shape[:2], heads + 2 * kv_heads, -1).transpose(1, 2)
        q, k, v = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
        if self.rotary is not None:
            cosine, sine = (torch.cat([half, half], -1).unsqueeze(-3) for half in self.rotary.unbind(-2))
            q, k = ((part * cosine + _rotate_half(part) * sine).to(v.dtype) for part in (q, k))
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


def rotary_table(config: TransformerConfig, positions: Tensor) -> Tensor:
    """Cosines and sines (.., 2, size / 2) of the angles by which positions rotate the halves of a head."""
    half = torch.arange(0, config.head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * config.rope_theta ** (-half / config.head_size)
    return torch.stack([angles.cos(), angles.sin()], -2)


def _rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], -1)


class _CrossEntropy(torch.autograd.Function):
    """The weighted sum of -log p(target). Forward also computes the gradients, so the logits exist only chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        size = _chunk_tokens(head)
        chunks = [torch.split(tensor, size) for tensor in (hidden, grad_hidden, targets[:, None], weights[:, None])]
        with torch.autocast(hidden.device.type, enabled=False):
            for inputs, outputs, target, weight in zip(*chunks, strict=True):
                scores = torch.log_softmax(torch.mm(inputs, head.t()).float(), -1)
                total -= (scores.gather(1, target) * weight).sum()
                scores = scores.exp_().mul_(weight).scatter_add_(1, target, -weight).to(head.dtype)  # d loss / d logits
                torch.mm(scores, head, out=outputs)
                if head.dtype == torch.float32:
                    grad_head.addmm_(scores.t(), inputs)
                else:
                    grad_head += torch.mm(scores.t(), inputs)
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * gradient, grad_head * gradient, None, None


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weight times -log p(target), nats."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head = hidden.to(dtype), head.to(dtype)
    flat = (hidden.flatten(0, -2), head, targets.flatten(), weights.flatten())
    return cast(Tensor, _CrossEntropy.apply(*flat))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def log_prob(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """log p of every target given the preceding tokens, in nats, without gradients."""
    chunks = (torch.split(tensor, _chunk_tokens(head)) for tensor in (hidden.flatten(0, -2), targets.reshape(-1, 1)))
    scores = [torch.log_softmax(torch.mm(x, head.t()), -1).gather(1, target) for x, target in zip(*chunks, strict=True)]
    return torch.cat(scores).view(targets.shape)


def _chunk_tokens(head: Tensor) -> int:
    """Number of tokens whose logits exist at a time."""
    return max((GPU_CHUNK_BYTES if head.is_cuda else CHUNK_BYTES) // (4 * len(head)), 32)
