"""3 x 3 convolutions of stride 2 and their transposes: the values of torch's own layers, faster on a CPU.

Channels are last in memory everywhere, kernels and gradients included, so that no array is copied to another layout. Small
feature maps, on which oneDNN takes four times as long, use one matrix product. The gradient of a transposed convolution's
kernel is computed as that of the convolution that it mirrors. `fine` is the side of the image, `coarse` the other side.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_weight

MAX_MATMUL_POSITIONS = 4  # of the coarse side; up to this size the convolution is a matrix product


class DownConv(nn.Module):
    """Convolution and ReLU to half the height and width, rounded up."""

    def __init__(self, fine_channels: int, coarse_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = _first_parameters(nn.Conv2d(fine_channels, coarse_channels, 3))

    def forward(self, features: Tensor) -> Tensor:
        return _DownConvFunction.apply(*_as_autocast(features, self.weight, self.bias))  # type: ignore[no-any-return, no-untyped-call]  # autograd is untyped


class UpConv(nn.Module):
    """Transposed convolution, and ReLU if `relu`, back to the height and width `size`."""

    def __init__(self, coarse_channels: int, fine_channels: int, size: tuple[int, int], relu: bool) -> None:
        super().__init__()
        self.size, self.relu = size, relu
        self.weight, self.bias = _first_parameters(nn.ConvTranspose2d(coarse_channels, fine_channels, 3))

    def forward(self, features: Tensor) -> Tensor:
        return _UpConvFunction.apply(*_as_autocast(features, self.weight, self.bias), self.size, self.relu)  # type: ignore[no-any-return, no-untyped-call]  # autograd is untyped


def _first_parameters(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Kernels (coarse channels, 3, 3, fine channels) and biases of a layer with torch's initial values."""
    return nn.Parameter(layer.weight.detach().permute(0, 2, 3, 1).contiguous()), cast(nn.Parameter, layer.bias)


def _as_autocast(features: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """The arguments in autocast's number format: autocast does not apply to functions with their own backward."""
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return [_channels_last(features).to(dtype), weight.to(dtype), bias.to(dtype)]


def _channels_last(features: Tensor) -> Tensor:
    """The same values with the channels last in memory. With one channel the strides are set too."""
    rows, depth, height, width = features.shape
    return features.permute(0, 2, 3, 1).flatten(1).view(rows, height, width, depth).permute(0, 3, 1, 2)


class _DownConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fine: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = _strided_conv(fine, weight, bias).relu_()
        ctx.save_for_backward(fine, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        fine, weight, out = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(_channels_last(gradient), out, 0)  # of ReLU
        grad_input = _transposed_conv(gradient, weight, None, fine.shape[2:]) if ctx.needs_input_grad[0] else None
        return grad_input, _kernel_gradient(fine, gradient, weight), gradient.sum((0, 2, 3))


class _UpConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coarse: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int], relu: bool) -> Tensor:
        out = _transposed_conv(coarse, weight, bias, size)
        ctx.save_for_backward(coarse, weight, out.relu_() if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        coarse, weight, out = ctx.saved_tensors
        gradient = _channels_last(gradient)
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        grad_input = _strided_conv(gradient, weight, None) if ctx.needs_input_grad[0] else None
        return grad_input, _kernel_gradient(gradient, coarse, weight), gradient.sum((0, 2, 3)), None, None


def _strided_conv(fine: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, _, height, width = fine.shape
    height, width = (height + 1) // 2, (width + 1) // 2
    if height * width > MAX_MATMUL_POSITIONS:
        return functional.conv2d(fine, weight.permute(0, 3, 1, 2), bias, stride=2, padding=1)
    return functional.linear(_patches(fine), weight.flatten(1), bias).view(rows, height, width, -1).permute(0, 3, 1, 2)


def _transposed_conv(coarse: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """The transposed convolution to the height and width `size`."""
    rows, _, height, width = coarse.shape
    fine_channels = weight.shape[3]
    if height * width > MAX_MATMUL_POSITIONS and fine_channels > 1:
        output_padding = [1 - side % 2 for side in size]
        return functional.conv_transpose2d(coarse, weight.permute(0, 3, 1, 2), bias, 2, 1, output_padding)
    taps = (_as_rows(coarse) @ weight.flatten(1)).view(rows, height, width, 3, 3, fine_channels)
    out = taps.new_zeros(rows, 2 * height + 1, 2 * width + 1, fine_channels)
    for i in range(3):
        for j in range(3):
            out[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] += taps[:, :, :, i, j]
    cropped = out[:, 1 : size[0] + 1, 1 : size[1] + 1]
    return (cropped.contiguous() if bias is None else cropped + bias).permute(0, 3, 1, 2)


def _kernel_gradient(fine: Tensor, coarse: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a kernel: one side is the layer's input, the other is the gradient of its output."""
    if coarse.shape[2] * coarse.shape[3] > MAX_MATMUL_POSITIONS:
        shape = weight.permute(0, 3, 1, 2).shape
        gradient = conv2d_weight(fine, shape, coarse, stride=2, padding=1)  # type: ignore[no-untyped-call]  # untyped in torch
        return cast(Tensor, gradient).permute(0, 2, 3, 1)
    return (_as_rows(coarse).t() @ _patches(fine)).view(weight.shape)


def _as_rows(features: Tensor) -> Tensor:
    """Features (positions, channels)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _patches(fine: Tensor) -> Tensor:
    """The 3 x 3 fine positions under the kernel at each coarse position: (coarse positions, 9 x channels)."""
    rows, depth, height, width = fine.shape
    padded = functional.pad(fine.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
    row_stride, y_stride, x_stride, _ = padded.stride()
    shape = (rows, (height + 1) // 2, (width + 1) // 2, 3, 3, depth)
    return padded.as_strided(shape, (row_stride, 2 * y_stride, 2 * x_stride, y_stride, x_stride, 1)).reshape(-1, 9 * depth)
