"""Operations of a network in training, compiled from C: on a processor in float32 faster than torch's own, to the same sums."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor

from selfloop.families.transformer import native
from selfloop.families.transformer.network import Place, rotary_table
from selfloop.families.transformer.shape import Shape


class _Windows(ctypes.Structure):
    """`Attention` of kernels.c."""

    _fields_ = [  # noqa: RUF012  # as ctypes wants it
        *((name, ctypes.c_int64) for name in ("windows", "length", "heads", "kv_heads")),
        *((name, ctypes.c_void_p) for name in ("qkv", "rotary", "first")),
    ]


class CompiledPlace(Place):
    """The same with operations in C: float32, on a processor, without dropout in attention."""

    def __init__(self, library: ctypes.CDLL, shape: Shape, positions: Tensor, first: Tensor | None) -> None:
        self.library, self.positions = library, positions
        self.first = None if first is None else first.to(torch.int32)
        places = torch.arange(positions.shape[-1])
        self.table = rotary_table(shape, places) if shape.arch == "llama" else None

    def attend(self, qkv: Tensor, heads: int, kv_heads: int, dropout: float) -> Tensor:
        assert not dropout
        return cast(Tensor, _Attend.apply(qkv, self, (heads, kv_heads)))

    def gelu(self, x: Tensor, bias: Tensor) -> Tensor:
        return cast(Tensor, _Gelu.apply(x, bias, self.library))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return cast(Tensor, _SwiGlu.apply(gate, up, self.library))

    def windows(self, qkv: Tensor, heads: tuple[int, int]) -> _Windows:
        """What the C functions want to know; the tensors live longer than the call."""
        return _Windows(*qkv.shape[:2], *heads, *map(_address, (qkv, self.table, self.first)))


def library(head_size: int) -> ctypes.CDLL | None:
    """The operations for heads of that size; None where they cannot be compiled."""
    return native.library("kernels.c", (("HEAD", head_size),))


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _call(function: Any, *arguments: Any) -> None:
    """Call a C function on tensors, sizes and structures."""
    if function(*(ctypes.c_void_p(_address(a)) if isinstance(a, Tensor) else a for a in arguments)):
        raise MemoryError


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, place: CompiledPlace, heads: tuple[int, int]) -> Tensor:  # type: ignore[override]  # torch's signature is (*args)
        out = qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // (heads[0] + 2 * heads[1]) * heads[0]))
        _call(place.library.attention, ctypes.byref(place.windows(qkv, heads)), out)
        ctx.save_for_backward(qkv)
        ctx.place, ctx.heads = place, heads
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (qkv,) = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        windows = ctx.place.windows(qkv, ctx.heads)
        _call(ctx.place.library.attention_backward, ctypes.byref(windows), by_out.contiguous(), gradient)
        return gradient, None, None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, library: ctypes.CDLL) -> Tensor:  # type: ignore[override]
        out, ctx.sizes, ctx.library = torch.empty_like(x), _sizes(x), library
        _call(library.gelu, *ctx.sizes, x, bias, out)
        ctx.save_for_backward(x, bias)
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, bias = ctx.saved_tensors
        by_x, by_bias = torch.empty_like(x), torch.zeros_like(bias)
        _call(ctx.library.gelu_backward, *ctx.sizes, x, bias, by_out.contiguous(), by_x, by_bias)
        return by_x, by_bias, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, library: ctypes.CDLL) -> Tensor:  # type: ignore[override]
        out, ctx.library = torch.empty_like(gate), library
        _call(library.swiglu, ctypes.c_int64(gate.numel()), gate, up, out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
        _call(ctx.library.swiglu_backward, ctypes.c_int64(gate.numel()), gate, up, by_out.contiguous(), by_gate, by_up)
        return by_gate, by_up, None


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(x.numel() // x.shape[-1]), ctypes.c_int64(x.shape[-1])
