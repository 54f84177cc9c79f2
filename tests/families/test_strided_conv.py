"""Strided convolutions and their transposes, against torch's own layers."""

import pytest
import torch
from torch.nn import functional

from selfloop.families.vae.strided_conv import DownConv, UpConv

SIZES = [(8, 7), (5, 8), (4, 4), (3, 4), (2, 2), (1, 3)]  # small sizes use matrix products, large ones oneDNN


def values_and_gradients(function, features, weight, bias):
    """The result and the gradients of the features, of the kernel (coarse, fine, 3, 3) and of the bias."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in (features, weight, bias)]
    result = function(*inputs)
    result.mul(torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)).sum().backward()
    return [result.detach(), *(x.grad for x in inputs)]


def compare(layer, size, plain):
    """Values and gradients of both on random features (3, channels, *size), contiguous and with channels last."""
    layer = layer.double()
    weight = layer.weight.detach().permute(0, 3, 1, 2)
    channels = weight.shape[0] if isinstance(layer, UpConv) else weight.shape[1]
    features = torch.randn(3, channels, *size, dtype=torch.float64)

    def ours(features, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight.permute(0, 2, 3, 1), "bias": bias}, features)

    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = (features.contiguous(memory_format=layout), weight, layer.bias)
        yield values_and_gradients(ours, *inputs), values_and_gradients(plain, *inputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_down_convolutions_are_torchs_own_with_their_gradients(size, channels):
    def plain(features, weight, bias):
        return functional.conv2d(features, weight, bias, stride=2, padding=1).relu()

    for ours, theirs in compare(DownConv(channels, 5), size, plain):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours[2], theirs[2].flip(3))  # a mirrored kernel


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("relu", [False, True])
def test_up_convolutions_are_torchs_own_transposes_with_their_gradients(size, channels, relu):
    def plain(features, weight, bias):
        result = functional.conv_transpose2d(features, weight, bias, 2, 1, [1 - side % 2 for side in size])
        return result.relu() if relu else result

    halved = tuple((side + 1) // 2 for side in size)
    for ours, theirs in compare(UpConv(5, channels, size, relu), halved, plain):
        torch.testing.assert_close(ours, theirs)
