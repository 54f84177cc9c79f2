"""Operations of a network in training, compiled from C: on a processor in float32 faster than torch's own, to the same sums."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor

from selfloop.families.transformer import native
from selfloop.families.transformer.network import Place, rotary_table
from selfloop.families.transformer.shape import Shape

TOKENS = 512  # that go through an MLP at a time


class _Windows(ctypes.Structure):
    """`Attention` of kernels.c."""

    _fields_ = [
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
        return cast(Tensor, _Attend.apply(qkv, self, (heads, kv_heads)))  # type: ignore[no-untyped-call]

    def mlp(self, x: Tensor, up: Tensor, down: Tensor, bias: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        flat, extra = x.flatten(0, -2), gate if bias is None else bias
        return cast(Tensor, _Mlp.apply(flat, up, down, extra, self.library)).view(x.shape)  # type: ignore[no-untyped-call]

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
    def forward(ctx: Any, qkv: Tensor, place: CompiledPlace, heads: tuple[int, int]) -> Tensor:
        out = qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // (heads[0] + 2 * heads[1]) * heads[0]))
        _call(place.library.attention, ctypes.byref(place.windows(qkv, heads)), out)
        ctx.save_for_backward(qkv)
        ctx.place, ctx.heads = place, heads
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None, None]:
        (qkv,) = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        windows = ctx.place.windows(qkv, ctx.heads)
        _call(ctx.place.library.attention_backward, ctypes.byref(windows), by_out.contiguous(), gradient)
        return gradient, None, None


class _Mlp(torch.autograd.Function):
    """Some tokens at a time, so that what is as wide as the hidden layer stays in the processor's cache. Of that only the
    activations' inputs are kept for the way back. `extra` is a bias, or the matrix of a gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, extra: Tensor, library: ctypes.CDLL) -> Tensor:
        kept, out = x.new_empty((extra.ndim, len(x), up.shape[1])), torch.empty_like(x)
        hidden = x.new_empty((3, TOKENS, up.shape[1]))  # products go there first: they would wait for memory of their own
        for i in range(0, len(x), TOKENS):
            rows, (wide, act, gate) = slice(i, i + TOKENS), hidden[:, : len(x) - i]
            torch.mm(x[rows], up, out=wide)
            if extra.ndim == 1:
                _call(library.gelu, *_sizes(act), wide, extra, kept[0, rows], act)
            else:
                torch.mm(x[rows], extra, out=gate)
                _call(library.swiglu, _size(act), wide, gate, kept[0, rows], kept[1, rows], act)
            torch.mm(act, down, out=out[rows])
        ctx.library = library
        ctx.save_for_backward(x, up, down, extra, kept)
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, extra, kept = ctx.saved_tensors
        by_x, by_up, by_down, by_extra = torch.empty_like(x), *(torch.zeros_like(each) for each in (up, down, extra))
        hidden = x.new_empty((3, TOKENS, up.shape[1]))
        for i in range(0, len(x), TOKENS):
            rows, (by, act, by_gate) = slice(i, i + TOKENS), hidden[:, : len(x) - i]
            torch.mm(by_out[rows], down.t(), out=by)
            if extra.ndim == 1:
                _call(ctx.library.gelu_backward, *_sizes(act), kept[0, rows], by, act, by_extra)
            else:
                _call(ctx.library.swiglu_backward, _size(act), kept[0, rows], kept[1, rows], by, act, by_gate)
            by_down.addmm_(act.t(), by_out[rows])
            by_up.addmm_(x[rows].t(), by)
            torch.mm(by, up.t(), out=by_x[rows])
            if extra.ndim == 2:
                by_extra.addmm_(x[rows].t(), by_gate)
                by_x[rows].addmm_(by_gate, extra.t())
        return by_x, by_up, by_down, by_extra, None


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1])


def _size(x: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(x.numel())
