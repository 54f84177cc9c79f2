"""Calls on fixed buffers: the bits of training steps without them. Nothing here captures: that needs a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from selfloop.component import Context
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.nn.static_call import StaticCall
from selfloop.families.nn.trainer import TrainingProblem
from selfloop.rng import RandomStream

ROWS, D = 50, 6
SETTINGS = TrainingSettings(steps=40, batch_size=16, learning_rate=0.01, weight_decay=0.1, warmup=5, ema_decay=0.9)
CPU = torch.device("cpu")


def fit(*, is_static, threads=1, micro_batch=None, scratch=None):
    """A fit with weights of rows and dropout, whose loss gets the rows in buffers or finds them by their indices."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((ROWS, D))).float()
    with trainer.seed_torch(RandomStream(("init",))):
        network = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Dropout(0.0 if threads > 1 else 0.2), nn.Linear(16, 1))

    def loss(rows):
        return (network(rows)[:, 0] - rows.sum(1)).square()

    problem = TrainingProblem(network, lambda indices: loss(x[indices]), rng.random(ROWS) + 0.5, micro_batch, threads)
    if is_static:
        problem = replace(problem, loss=loss, inputs=lambda indices: (x[indices],))
    return trainer.fit(problem, SETTINGS, Context(RandomStream(("fit",)), scratch), None)


def are_equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("threads", "micro_batch"), [(1, None), (1, 5), (2, None), (3, 2)])
def test_steps_on_fixed_buffers_have_the_bits_of_plain_steps(threads, micro_batch):
    static, plain = (fit(is_static=is_static, threads=threads, micro_batch=micro_batch) for is_static in (True, False))
    assert are_equal(static, plain)


def test_that_test_would_notice_buffers_that_keep_their_first_minibatch(monkeypatch):
    plain, call = fit(is_static=False), StaticCall.__call__
    monkeypatch.setattr(StaticCall, "__call__", lambda self, *new: call(self, *(self.buffers or new)))
    assert not are_equal(fit(is_static=True), plain)


def test_a_learning_rate_in_a_tensor_has_all_digits():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter, rate in zip(parameters, (0.1, torch.tensor(0.1, dtype=torch.float64)), strict=True):
        trainer.AdamW([parameter], SETTINGS).step([torch.tensor([1.0, -2.0, 0.5])], rate)
    assert torch.equal(*parameters)


def test_arguments_are_copied_into_the_same_buffers_and_shapes_are_fixed():
    seen = []
    call = StaticCall(lambda x: (seen.append(x.data_ptr()), x * 2)[1], CPU, capture=False)
    assert [call(torch.full((2,), value)).tolist() for value in (1.0, 3.0)] == [[2, 2], [6, 6]]
    assert len(set(seen)) == 1
    with pytest.raises(AssertionError, match="fixed shapes"):
        call(torch.ones(1))  # copying would repeat it
