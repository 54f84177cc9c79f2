"""AdamW on long vectors, against the published algorithm and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.nn.trainer import ADAM_UNDERFLOW, AdamW

PLAIN = TrainingSettings(steps=1, learning_rate=0.1, lr_schedule="constant")


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def test_steps_are_those_of_the_published_algorithm_with_clipping() -> None:
    """Loshchilov and Hutter 2017 (1711.05101), algorithm 2; biases do not decay."""
    settings = TrainingSettings(weight_decay=0.2, max_grad_norm=0.5)
    rng = np.random.default_rng(0)
    shapes, decays = [(3, 4), (4,)], [0.2, 0.0]
    parameters = [nn.Parameter(torch.from_numpy(rng.standard_normal(shape)).float()) for shape in shapes]
    x = [p.detach().numpy().astype(float) for p in parameters]
    m, v = [np.zeros(shape) for shape in shapes], [np.zeros(shape) for shape in shapes]
    optimizer = AdamW(parameters, settings)
    for t in range(1, 31):
        gradients = [(0.01 if t % 3 else 1.0) * rng.standard_normal(shape) for shape in shapes]  # below the norm, or above
        optimizer.step([torch.from_numpy(g).float() for g in gradients], 0.01)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        for i, g in enumerate(gradients):
            g = g * min(1, 0.5 / norm)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            x[i] *= 1 - 0.01 * decays[i]
            x[i] -= 0.01 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    for mine, expected in zip(parameters, x, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_transposed_in_memory_moves_the_right_parameters() -> None:
    target = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
    parameter = zeros(2, 3)
    gradient = (-target.t().contiguous()).t()
    assert not gradient.is_contiguous()
    AdamW([parameter], PLAIN).step([gradient], 0.1)
    assert parameter.detach().numpy() == pytest.approx(0.1 * target.numpy(), abs=1e-6)  # the first step has the gradient's sign


def test_parameters_that_share_one_gradient_tensor_are_clipped_equally() -> None:
    parameters = [zeros(2), zeros(2)]
    optimizer = AdamW(parameters, TrainingSettings(max_grad_norm=1.0))
    for _ in range(20):
        one, other = torch.autograd.grad((parameters[0] + parameters[1] - 9).square().sum(), parameters)
        assert one.data_ptr() == other.data_ptr()
        optimizer.step([one, other], 0.1)
    assert torch.equal(*parameters)


def test_averages_of_a_gradient_that_stays_zero_become_zero_and_not_denormal() -> None:
    """The gradient is not 0 in the first step only. 0.9^800 is below the smallest normal number."""
    optimizer, averages = AdamW([zeros(3)], PLAIN), []
    for step in range(901):
        optimizer.step([torch.full((3,), 1.0 if step == 0 else 0.0)], 0.1)
        if step % 50 == 0:
            optimizer.clear_underflow()
            averages.append(optimizer.first.clone())
    smallest = torch.finfo(torch.float32).tiny
    assert averages[1].min() > ADAM_UNDERFLOW > smallest
    assert all(((average == 0) | (average.abs() >= smallest)).all() for average in averages)
    assert (averages[-1] == 0).all()


@pytest.mark.parametrize(("ema_decay", "expected"), [(None, 0.2), (0.5, (0.25 * 0.1 + 0.5 * 0.2) / 0.75)])
def test_the_parameter_average_does_not_contain_the_initial_parameters(ema_decay: float | None, expected: float) -> None:
    parameter = zeros(1)
    optimizer = AdamW([parameter], TrainingSettings(ema_decay=ema_decay))
    for _ in range(2):  # with a constant gradient each step of AdamW has the size of the learning rate
        optimizer.step([-torch.ones(1)], 0.1)
    optimizer.apply_average()
    assert parameter.item() == pytest.approx(expected, abs=1e-5)


def test_a_parameter_that_is_not_finite_is_found() -> None:
    parameter = zeros(2)
    optimizer = AdamW([parameter], PLAIN)
    assert optimizer.is_finite()
    parameter.data[1] = np.nan
    assert not optimizer.is_finite()
