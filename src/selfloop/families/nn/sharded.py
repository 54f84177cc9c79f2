"""A network whose parameters, gradients and optimizer's state are all divided among ranks: torch's FSDP2, for one that does not
fit on a GPU. Sums over ranks are torch's, so last bits may differ from those of one process."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from selfloop.families.nn.partition import Partition, Tensors
from selfloop.ranks import Ranks


def shard(network: nn.Module) -> None:
    """Divide the parameters of a network on its device: those of a layer exist as a whole only while it computes."""
    from torch.distributed.fsdp import fully_shard

    layers = [layer for module in network.modules() if isinstance(module, nn.ModuleList) for layer in module]
    for module in (*reversed(layers), network):
        fully_shard(module)


def unshard(network: nn.Module) -> None:
    """Give a network whole parameters again, in memory of the processor."""
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module in network.modules():
        for name, p in [*module.named_parameters(recurse=False)]:
            if p not in whole:
                whole[p] = nn.Parameter(cast(Any, p).full_tensor().detach().cpu(), requires_grad=p.requires_grad)
            setattr(module, name, whole[p])


def holds_everywhere(answer: Tensor, ranks: Ranks) -> bool:
    """True if the answer is true on all ranks."""
    ranks.run("all_reduce", denied := (~answer).float())
    return not denied


def take_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients of this rank's rows after a backward pass, which the next pass does not add to."""
    gradients = []
    for p in parameters:
        gradients.append(cast(Any, p.grad).to_local())
        p.grad = None
    return gradients


class ShardedPartition(Partition):
    """Rows of every parameter for each rank, as FSDP2 divides them."""

    def __init__(self, parameters: list[nn.Parameter], ranks: Ranks) -> None:
        self.sharded: list[Any] = parameters
        self.rows = [cast(Any, p.detach()).to_local() for p in parameters]
        super().__init__(self.rows, ranks)
        self.own, self.span = slice(None), slice(None)
        self.n_values = sum(p.numel() for p in parameters)

    def exchange(self, loss: Tensor, gradients: Tensors) -> list[tuple[Tensor, Tensors]]:
        self.ranks.run("all_reduce", loss)
        return [(loss, gradients)]

    def norms(self, gradients: Tensors) -> Tensor:
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        self.ranks.run("all_reduce", squares)
        return squares.sqrt()

    def share(self, vector: Tensor) -> None:
        for rows, part in zip(self.rows, torch.split(vector, self.counts), strict=True):
            rows.copy_(part.view_as(rows))

    def join(self, part: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        wholes = []
        for p, rows, values in zip(self.sharded, self.rows, torch.split(part, self.counts), strict=True):
            local = values.view_as(rows)
            whole = DTensor.from_local(local, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
            wholes.append(whole.reshape(-1).cpu())
        return torch.cat(wholes)

    def cut(self, vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in self.sharded])
        cuts = []
        for p, whole in zip(self.sharded, parts, strict=True):
            rows = whole.view(p.shape).chunk(self.ranks.count)
            cuts.append(rows[self.ranks.rank].reshape(-1) if self.ranks.rank < len(rows) else whole[:0])
        return torch.cat(cuts)
