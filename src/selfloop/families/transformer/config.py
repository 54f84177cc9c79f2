"""What a decoder-only transformer looks like: enough to build it, count its parameters and write its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arch = Literal["gpt2", "llama"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """GPT-2 (learned positions, LayerNorm, GELU) or Llama (rotary positions, RMSNorm, SwiGLU), as transformers builds them."""

    arch: Arch
    layers: int
    hidden: int  # width of the residual stream
    heads: int
    mlp: int  # width of the hidden layer between attentions
    context: int  # positions
    vocab: int  # tokens
    kv_heads: int | None = None  # llama: heads of keys and values; None = as many as `heads`
    tied: bool = True  # is the output matrix the embedding? GPT-2 yes, Llama-2 no
    rope_theta: float = 10_000.0  # llama: base of the rotary frequencies
    epsilon: float = 1e-5  # of the norms

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads
