"""Parameters that ranks divide, without their processes: which rank has what, and how often each computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from selfloop.component import Context
from selfloop.errors import ChainEndedError
from selfloop.families.nn import trainer
from selfloop.families.nn.partition import Partition
from selfloop.families.nn.settings import TrainingSettings
from selfloop.ranks import Ranks
from selfloop.rng import RandomStream

EMBEDDING = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((16_000, 256), (768, 256), (1024, 256), (9000, 256))]


class Alone(Ranks):
    """A rank whose messages reach nobody."""

    def run(self, operation: str, *arguments: Any) -> None:
        self.store.extend(tensor.device.type for tensor in arguments if isinstance(tensor, Tensor))

    def tell(self, message: Any) -> Any:
        return message


def test_ranks_own_whole_tensors_in_parts_as_similar_as_these_allow() -> None:
    owned = [[Partition(EMBEDDING, Ranks(rank, count)).own for rank in range(count)] for count in (2, 4)]
    assert owned[0] == [slice(0, 1), slice(1, 4)]
    assert [(part.start, part.stop) for part in owned[1]] == [(0, 0), (0, 1), (1, 3), (3, 4)]


def test_a_rank_that_owns_nothing_meets_the_others_on_their_device() -> None:
    for rank in range(4):
        partition = Partition(EMBEDDING, Alone(rank, 4, store=[]))
        partition.norms([torch.empty_like(p) for p in EMBEDDING[partition.own]])
        assert partition.ranks.store == ["meta"]


@pytest.fixture
def fake_group(request: pytest.FixtureRequest) -> Iterator[int]:
    """Rank 0 or 1 of two, of which the other does nothing."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=2)
    yield request.param
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("fake_group", [0, 1], indirect=True)
def test_ranks_that_divide_a_network_compute_equally_often(fake_group: int) -> None:
    """Shares of 5 rows have 3 and 2, which are 2 passes and 1 of two rows; FSDP2 would wait for the second one of rank 1."""
    network, passes = nn.Sequential(nn.Linear(4, 4)), list[int]()

    def loss(indices: Tensor) -> Tensor:
        passes.append(len(indices))
        return network(torch.ones(len(indices), 4)).square().sum(1)

    settings = TrainingSettings(steps=1, batch_size=5, shares=2)
    problem = trainer.TrainingProblem(network, loss, np.ones(5), micro_batch=2, is_divided=True)
    with suppress(ChainEndedError):  # what the other rank sends is never set
        trainer.fit(problem, settings, Context(RandomStream(), ranks=Alone(fake_group, 2, store=[])), None)
    assert passes == [2, 1]
