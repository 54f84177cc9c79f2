"""The loss of a network and its gradient, compiled from C: on a processor in float32 faster than torch's operations."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfloop.families.transformer import c_library
from selfloop.families.transformer.network import Network, positions_of, rotary_table

TOKENS = 256  # about how many go through the network at a time
GLOBAL = {"gpt2": ("wte", "wpe", "ln_f"), "llama": ("embed_tokens", "", "norm")}
OF_LAYER = {
    "gpt2": ("ln_1", "attn.c_attn", "", "", "attn.c_proj", "ln_2", "mlp.c_fc", "", "mlp.c_proj"),
    "llama": (
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "post_attention_layernorm", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj",
    ),
}  # fmt: skip


class _Map(ctypes.Structure):
    """As in training.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "by_weight", "by_bias")]


class _Job(ctypes.Structure):
    """As in training.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "mlp", "vocab", "out_first", "windows", "length")
        ),
        ("epsilon", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "targets", "first", "rotary", "weights", "maps", "log_prob", "memory")
        ),
    ]


class Compiled:
    """A network on a processor in float32, without dropout, its loss computed in C. Several threads may use it at once."""

    def __init__(self, library: ctypes.CDLL, model: Network) -> None:
        self.library, self.shape = library, model.shape
        self.modules = list(_modules(model))
        self.parameters = list(model.parameters())
        self.rotary = rotary_table(self.shape, torch.arange(self.shape.context)) if self.shape.arch == "llama" else None
        self.rooms = list[Tensor]()  # memory that no thread uses now

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, documents: Tensor | None) -> Tensor:
        """Sum over windows and places [B, T] of weight times -log p(target), nats."""
        windows = (tokens, targets, weights, documents)
        return cast(Tensor, _Loss.apply(self, windows, *self.parameters))  # type: ignore[no-untyped-call]  # autograd is untyped

    def log_prob(self, tokens: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        """log p of every target [B, T] given the ones before it, nats."""
        return self.run((tokens, targets, None, documents), [])

    def run(self, windows: tuple[Tensor, Tensor, Tensor | None, Tensor | None], gradients: list[Tensor]) -> Tensor:
        """log p of every target [B, T]; the gradient of `loss` is added to `gradients` where there are weights."""
        tokens, targets, weights, documents = windows
        s, (count, length) = self.shape, tokens.shape
        _, first = positions_of(tokens, documents)
        first = None if first is None else first.to(torch.int32)
        log_prob = torch.empty(tokens.shape)
        maps = self._maps(gradients)
        held = [tokens.contiguous(), targets.contiguous(), first, self.rotary, weights]
        job = _Job(
            s.layers, s.hidden, s.heads, s.kv_heads or s.heads, s.mlp, s.vocab, s.arch == "llama", count, length, s.epsilon,
            *map(_address, held), ctypes.addressof(maps), _address(log_prob),
        )  # fmt: skip
        memory = self._room(int(self.library.room(ctypes.byref(job))))
        job.memory = _address(memory)
        self.library.run(ctypes.byref(job))
        self.rooms.append(memory)
        return log_prob

    def _maps(self, gradients: list[Tensor]) -> ctypes.Array[_Map]:
        by = dict(zip(map(id, self.parameters), gradients, strict=False))
        rows = []
        for module in self.modules:
            own = [getattr(module, name, None) for name in ("weight", "bias")]
            rows.append(_Map(*map(_address, own), *(_address(by.get(id(p))) for p in own)))
        return (_Map * len(rows))(*rows)

    def _room(self, floats: int) -> Tensor:
        try:
            found = self.rooms.pop()
        except IndexError:
            return torch.empty(floats)
        return found if len(found) >= floats else torch.empty(floats)


def library(head_size: int) -> ctypes.CDLL | None:
    """The functions for heads of that size; None where they cannot be compiled."""
    found = c_library.library("attention.c training.c", (("HEAD", head_size), ("TOKENS", TOKENS)))
    if found is not None:
        found.room.restype = ctypes.c_int64
    return found


def _modules(model: Network) -> Iterator[nn.Module | None]:
    """The network's parts with parameters in the order of training.c; None where it has no such part."""
    body = model.transformer if model.shape.arch == "gpt2" else model.model
    for name in GLOBAL[model.shape.arch]:
        yield body.get_submodule(name) if name else None
    yield body.get_submodule(GLOBAL[model.shape.arch][0]) if model.shape.tied else model.lm_head
    for layer in cast(nn.ModuleList, body["h" if model.shape.arch == "gpt2" else "layers"]):
        for name in OF_LAYER[model.shape.arch]:
            yield layer.get_submodule(name) if name else None


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


class _Loss(torch.autograd.Function):
    """Gradients are taken on the way."""

    @staticmethod
    def forward(
        ctx: Any, network: Compiled, windows: tuple[Tensor, Tensor, Tensor, Tensor | None], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = [torch.zeros_like(p) for p in parameters]
        return -torch.dot(network.run(windows, ctx.gradients).flatten(), windows[2].flatten())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        torch._foreach_mul_(ctx.gradients, gradient)
        return None, None, *ctx.gradients
