"""Features of pairs of atoms that are piecewise linear in the pair's length, and messages along pairs.

A ReLU perceptron of one number is linear between the lengths at which one of its units switches. Linear layers after it are
computed once per piece and not once per pair: exactly, up to rounding, with half of all products. Sums use `embedding_bag`,
the fastest sum of rows on a CPU. Its own derivatives are slow, so they are written out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torch.nn.functional import linear as linear_layer


class PairSegments(NamedTuple):
    """The segment and the length of some pairs. A segment is a range of lengths of one edge type."""

    rows: Tensor  # (pairs, 2) rows of a flat table of pieces: value at length 0, slope
    weights: Tensor  # (pairs, 2) weights of these rows: 1, length
    order: Tensor  # (2 * pairs,) pairs by row of the table
    order_weights: Tensor
    starts: Tensor  # (2 * segments,) index in `order` of the first pair of each row of the table

    @classmethod
    def of(cls, segment: Tensor, length: Tensor, n_segments: int) -> PairSegments:
        one = torch.ones_like(length)
        rows, weights = torch.stack([segment, segment + n_segments], 1), torch.stack([one, length], 1)
        if not torch.is_grad_enabled():
            return cls(rows, weights, segment, length, segment)
        order = segment.argsort(stable=True)
        counts = torch.bincount(segment, minlength=n_segments)
        starts = counts.cumsum(0) - counts
        by_row = torch.cat([order, order]), torch.cat([one, length[order]]), torch.cat([starts, starts + len(segment)])
        return cls(rows, weights, *by_row)

    def evaluate(self, pieces: Tensor) -> Tensor:
        """Features (pairs, features) of pieces (2, segments, features): values at length 0, and slopes per ångström."""
        return _Evaluate.apply(pieces.flatten(0, 1), *self)  # type: ignore[no-any-return,no-untyped-call]  # autograd is untyped


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, *by_row: Tensor) -> Tensor:
        ctx.save_for_backward(*by_row)
        return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, weights, starts = ctx.saved_tensors
        grad_table = embedding_bag(order, gradients[0].contiguous(), starts, per_sample_weights=weights, mode="sum")
        return grad_table, *[None] * 5


def perceptron_pieces(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Pieces (2, segments, features) of second(relu(first(length))), and the breakpoints above 0."""
    slope, start = first.weight[:, 0], first.bias
    with torch.no_grad():
        breakpoints = -start / slope
        breakpoints = breakpoints[(breakpoints > 0) & breakpoints.isfinite()].sort().values
        last = breakpoints[-1:] + 1 if len(breakpoints) else breakpoints.new_ones(1)
        ends = torch.cat([breakpoints.new_zeros(1), breakpoints, last])
        on = ((ends[1:] + ends[:-1]) / 2)[:, None] * slope + start > 0  # (segments, units)
    return linear_pieces(torch.stack([on * start, on * slope]), second.weight, second.bias), breakpoints


def linear_pieces(pieces: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Pieces of a linear layer's output."""
    return linear_layer(pieces, weight) + torch.stack([bias, torch.zeros_like(bias)])[:, None]


class Convolve(torch.autograd.Function):
    """For each atom the sum of x_other * filters * weights: filters per pair, weights per direction."""

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
        weighted = embedding_bag(target[:, None], gradients[0].contiguous(), per_sample_weights=weights[:, None], mode="sum")
        forward, backward = x.index_select(0, source).mul_(weighted).view(2, *filters.shape)
        weighted.view(2, *filters.shape).mul_(filters)
        opposite = (order + len(order) // 2) % len(order)  # direction of each direction
        grad_x = embedding_bag(opposite, weighted, starts, mode="sum")
        return grad_x, forward.add_(backward), *[None] * 5
