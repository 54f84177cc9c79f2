"""3 x 3 convolutions of stride 2 and their transposes: torch's own numbers, sooner on a processor.

Channels are last in memory everywhere, in kernels and gradients too, so that nothing is rearranged on the way; small
features, on which oneDNN takes four times as long, are one matrix product; and the gradient of a transpose's kernel is
computed as that of the convolution it mirrors. `outer` are the channels on the image's side, `inner` those on the other.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_weight

SMALL = 4  # positions; with so few the convolution is a matrix product


class Halve(nn.Module):
    """Features of half the height and width, rounded up: a convolution and ReLU."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.weight, self.bias = _parameters(nn.Conv2d(outer, inner, 3))

    def forward(self, features: Tensor) -> Tensor:
        return _Halve.apply(*_prepared(features, self.weight, self.bias))  # type: ignore[no-any-return, no-untyped-call]  # torch's


class Double(nn.Module):
    """Features of the height and width that `Halve` had: a transposed convolution, and ReLU if asked for."""

    def __init__(self, inner: int, outer: int, size: tuple[int, int], relu: bool) -> None:
        super().__init__()
        self.size, self.relu = size, relu
        self.weight, self.bias = _parameters(nn.ConvTranspose2d(inner, outer, 3))

    def forward(self, features: Tensor) -> Tensor:
        return _Double.apply(*_prepared(features, self.weight, self.bias), self.size, self.relu)  # type: ignore[no-any-return, no-untyped-call]  # torch's


def _parameters(made: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Kernels (inner, 3, 3, outer) and biases with torch's usual first values."""
    return nn.Parameter(made.weight.detach().permute(0, 2, 3, 1).contiguous()), cast(nn.Parameter, made.bias)


def _prepared(features: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Arguments in the type of the autocast around, which does not reach into functions with a backward of their own."""
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return [_channels_last(features).to(dtype), weight.to(dtype), bias.to(dtype)]


def _channels_last(features: Tensor) -> Tensor:
    """The same numbers with the channels last in memory; by its strides too where there is but one channel."""
    rows, depth, height, width = features.shape
    return features.permute(0, 2, 3, 1).flatten(1).view(rows, height, width, depth).permute(0, 3, 1, 2)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, big: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = _shrink(big, weight, bias).relu_()
        ctx.save_for_backward(big, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        big, weight, out = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(_channels_last(gradient), out, 0)  # ReLU's
        below = _spread(gradient, weight, None, big.shape[2:]) if ctx.needs_input_grad[0] else None
        return below, _kernel_gradient(big, gradient, weight), gradient.sum((0, 2, 3))


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, small: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int], relu: bool) -> Tensor:
        out = _spread(small, weight, bias, size)
        ctx.save_for_backward(small, weight, out.relu_() if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        small, weight, out = ctx.saved_tensors
        gradient = _channels_last(gradient)
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        below = _shrink(gradient, weight, None) if ctx.needs_input_grad[0] else None
        return below, _kernel_gradient(gradient, small, weight), gradient.sum((0, 2, 3)), None, None


def _shrink(big: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution."""
    rows, _, height, width = big.shape
    height, width = (height + 1) // 2, (width + 1) // 2
    if height * width > SMALL:
        return functional.conv2d(big, weight.permute(0, 3, 1, 2), bias, stride=2, padding=1)
    return functional.linear(_patches(big), weight.flatten(1), bias).view(rows, height, width, -1).permute(0, 3, 1, 2)


def _spread(small: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """The transposed convolution to images of that size."""
    rows, _, height, width = small.shape
    outer = weight.shape[3]
    if height * width > SMALL and outer > 1:
        beyond = [1 - side % 2 for side in size]
        return functional.conv_transpose2d(small, weight.permute(0, 3, 1, 2), bias, 2, 1, beyond)
    taps = (_as_rows(small) @ weight.flatten(1)).view(rows, height, width, 3, 3, outer)
    out = taps.new_zeros(rows, 2 * height + 1, 2 * width + 1, outer)
    for i in range(3):
        for j in range(3):
            out[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] += taps[:, :, :, i, j]
    inside = out[:, 1 : size[0] + 1, 1 : size[1] + 1]
    return (inside.contiguous() if bias is None else inside + bias).permute(0, 3, 1, 2)


def _kernel_gradient(big: Tensor, small: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the kernel that links both, where one is what it was applied to and the other the gradient of the result."""
    if small.shape[2] * small.shape[3] > SMALL:
        shape = weight.permute(0, 3, 1, 2).shape
        gradient = conv2d_weight(big, shape, small, stride=2, padding=1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return cast(Tensor, gradient).permute(0, 2, 3, 1)
    return (_as_rows(small).t() @ _patches(big)).view(weight.shape)


def _as_rows(features: Tensor) -> Tensor:
    """One row per position, one column per channel."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _patches(big: Tensor) -> Tensor:
    """One row per position of the smaller side: the 3 x 3 positions below its kernel, with their channels."""
    rows, depth, height, width = big.shape
    padded = functional.pad(big.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
    row, down, right, _ = padded.stride()
    shape = (rows, (height + 1) // 2, (width + 1) // 2, 3, 3, depth)
    return padded.as_strided(shape, (row, 2 * down, 2 * right, down, right, 1)).reshape(-1, 9 * depth)
