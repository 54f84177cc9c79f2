"""Features of pairs of atoms that are linear in the pair's length, and messages along pairs.

A perceptron of one number is linear between the lengths at which one of its units turns on or off. So what follows it
without another bend is computed once per stretch, not per pair: exactly, up to rounding, with half of all products left.
Sums go through `embedding_bag`, the fastest sum of rows on a processor; its own derivatives are not, so they are written out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torch.nn.functional import linear as linear_layer

from selfloop.families.geodiff.graphs import Directions


class Cells(NamedTuple):
    """Where some pairs are: in a cell, that is a stretch of lengths of one type of edge, and at a length."""

    places: Tensor  # (pairs, 2) rows of a table of lines, flat
    weights: Tensor  # (pairs, 2) how much of each: 1, and the length
    order: Tensor  # (2 * pairs,) pairs by row of the table
    order_weights: Tensor
    starts: Tensor  # (2 * cells,) where the pairs of a row begin in `order`

    @classmethod
    def of(cls, cell: Tensor, length: Tensor, cells: int) -> Cells:
        one = torch.ones_like(length)
        places, weights = torch.stack([cell, cell + cells], 1), torch.stack([one, length], 1)
        if not torch.is_grad_enabled():
            return cls(places, weights, cell, length, cell)
        order = cell.argsort(stable=True)
        counts = torch.bincount(cell, minlength=cells)
        starts = counts.cumsum(0) - counts
        both = torch.cat([order, order]), torch.cat([one, length[order]]), torch.cat([starts, starts + len(cell)])
        return cls(places, weights, *both)

    def read(self, lines: Tensor) -> Tensor:
        """Features (pairs, features) of lines (2, cells, features): their values at length 0, and what an ångström adds."""
        return _Read.apply(lines.flatten(0, 1), *self)  # type: ignore[no-any-return,no-untyped-call]  # autograd is untyped


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor, weights: Tensor, *by_row: Tensor) -> Tensor:
        ctx.save_for_backward(*by_row)
        return embedding_bag(places, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, weights, starts = ctx.saved_tensors
        to_table = embedding_bag(order, gradients[0].contiguous(), starts, per_sample_weights=weights, mode="sum")
        return to_table, *[None] * 5


def perceptron(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Lines (2, stretches, features) of second(relu(first(length))), and the lengths above 0 where they bend."""
    slope, start = first.weight[:, 0], first.bias
    with torch.no_grad():
        bends = -start / slope
        bends = bends[(bends > 0) & bends.isfinite()].sort().values
        ends = torch.cat([bends.new_zeros(1), bends, bends[-1:] + 1 if len(bends) else bends.new_ones(1)])
        on = ((ends[1:] + ends[:-1]) / 2)[:, None] * slope + start > 0  # (stretches, units)
    return linear(torch.stack([on * start, on * slope]), second.weight, second.bias), bends


def linear(lines: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Lines of a linear layer's answer."""
    return linear_layer(lines, weight) + torch.stack([bias, torch.zeros_like(bias)])[:, None]


def hear(x: Tensor, edge: Tensor, directions: Directions) -> Tensor:
    """What each atom hears, the sum of relu(x_other + edge): edge is of pairs."""
    return _Hear.apply(x, edge, *directions)  # type: ignore[no-any-return,no-untyped-call]  # autograd is untyped


class _Hear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor, *directions: Tensor) -> Tensor:
        target, source, order, starts = directions
        messages = x.index_select(0, source)
        messages.view(2, *edge.shape).add_(edge).relu_()
        ctx.save_for_backward(messages, target, order, starts)
        return embedding_bag(order, messages, starts, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        messages, target, order, starts = ctx.saved_tensors
        spread = torch.ops.aten.threshold_backward(gradients[0].index_select(0, target), messages, 0)
        there, back = spread.chunk(2)
        return embedding_bag(_reverse(order), spread, starts, mode="sum"), there + back, *[None] * 4


def _reverse(order: Tensor) -> Tensor:
    """For each direction to an atom the one from it."""
    return (order + len(order) // 2) % len(order)


def convolve(x: Tensor, filters: Tensor, weights: Tensor, directions: Directions) -> Tensor:
    """What each atom hears, the sum of x_other * filters * weights: filters are of pairs, weights of directions."""
    return _Convolve.apply(x, filters, weights, *directions)  # type: ignore[no-any-return,no-untyped-call]  # untyped


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, weights: Tensor, *directions: Tensor) -> Tensor:
        _, source, order, starts = directions
        ctx.save_for_backward(x, filters, weights, *directions)
        messages = x.index_select(0, source)
        messages.view(2, *filters.shape).mul_(filters)
        return embedding_bag(order, messages, starts, per_sample_weights=weights[order], mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, weights, target, source, order, starts = ctx.saved_tensors
        spread = embedding_bag(target[:, None], gradients[0].contiguous(), per_sample_weights=weights[:, None], mode="sum")
        there, back = x.index_select(0, source).mul_(spread).view(2, *filters.shape)
        spread.view(2, *filters.shape).mul_(filters)
        return embedding_bag(_reverse(order), spread, starts, mode="sum"), there.add_(back), *[None] * 5
