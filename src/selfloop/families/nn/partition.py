"""A network's parameters divided among ranks: each has the optimizer's state of its own ones alone (Rajbhandari et al. 2019,
1910.02054, stage 1), adds up their gradients in a fixed order, and sends their new values to all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from selfloop.ranks import Ranks

Tensors = list[Tensor] | tuple[Tensor, ...]


class Partition:
    """Groups of whole parameters of similar size, one for each rank: last bits depend on where tensors are cut.

    A tensor that is larger than one part makes the groups unequal, and may leave a rank without parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.ranks, self.shapes, self.counts = ranks, [p.shape for p in parameters], [p.numel() for p in parameters]
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
        """This rank's part of the vector of all values."""
        return vector[self.span]
