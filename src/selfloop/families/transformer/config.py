"""Size and form of a decoder-only transformer: enough to build it, count its parameters and write its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arch = Literal["gpt2", "llama"]


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
