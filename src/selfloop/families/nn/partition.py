"""A network's parameters divided among ranks.

Each rank has the optimizer's state of its own parameters alone (Rajbhandari et al. 2019, 1910.02054, stage 1), adds up their
gradients in a fixed order, and sends their new values to all. Or torch's FSDP2 divides parameters and gradients too, for a
network that does not fit on a GPU: sums over ranks are torch's then, so last bits may differ from those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfloop.ranks import Ranks

Tensors = list[Tensor] | tuple[Tensor, ...]


class Partition:
    """Groups of whole parameters of similar size, one for each rank: last bits depend on where tensors are cut.

    A tensor that is larger than one part makes the groups unequal, and may leave a rank without parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.ranks, self.parameters = ranks, parameters
        self.shapes, self.counts = [p.shape for p in parameters], [p.numel() for p in parameters]
        self.device, firsts = parameters[0].device, [0, *accumulate(self.counts)]
        targets = [firsts[-1] * rank / ranks.count for rank in range(ranks.count + 1)]
        bounds = [min(range(len(firsts)), key=lambda i: abs(firsts[i] - target)) for target in targets]
        self.indices = [slice(*pair) for pair in pairwise(bounds)]  # of each rank's parameters
        self.spans = [slice(firsts[part.start], firsts[part.stop]) for part in self.indices]  # in the vector of all values
        self.own, self.span, self.n_values = self.indices[ranks.rank], self.spans[ranks.rank], firsts[-1]

    def exchange(self, loss: Tensor, gradients: Tensors) -> list[tuple[Tensor, Tensors]]:
        """The loss of every rank and its gradients of this rank's parameters, in the order of ranks."""
        if self.ranks.count == 1:
            return [(loss, gradients)]
        sent = torch.cat([x.reshape(-1) for part in self.indices for x in (loss, *gradients[part])])
        sizes = [1 + span.stop - span.start for span in self.spans]
        received = sent.new_empty(self.ranks.count, sizes[self.ranks.rank])
        self.ranks.run("all_to_all_single", received.view(-1), sent, [received.shape[1]] * self.ranks.count, sizes)
        results: list[tuple[Tensor, Tensors]] = []
        for first, *others in (torch.split(message, [1, *self.counts[self.own]]) for message in received):
            results.append((first[0], [x.view(shape) for x, shape in zip(others, self.shapes[self.own], strict=True)]))
        return results

    def norms(self, gradients: Tensors) -> Tensor:
        """The norm of the gradient of every parameter, from this rank's gradients."""
        if self.ranks.count == 1:
            return torch.stack(torch._foreach_norm(gradients))
        norms = torch.zeros(len(self.counts), device=self.device)
        for i, norm in enumerate(torch._foreach_norm(gradients) if gradients else (), self.own.start):
            norms[i] = norm
        self.ranks.run("all_reduce", norms)  # zeros but for one rank: exact
        return norms

    def share(self, vector: Tensor) -> None:
        """Replace the values of each rank's parameters, in the vector of all values, by those of that rank."""
        for rank, span in enumerate(self.spans):
            if self.ranks.count > 1 and span.stop > span.start:
                self.ranks.run("broadcast", vector[span], rank)

    def join(self, part: Tensor) -> Tensor:
        """The vector of all values from those of this rank's parameters."""
        if self.ranks.count == 1:
            return part
        vector = part.new_empty(self.n_values)
        vector[self.span] = part
        self.share(vector)
        return vector

    def cut(self, vector: Tensor) -> Tensor:
        return vector[self.span]


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
        super().__init__([nn.Parameter(rows) for rows in self.rows], ranks)
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
