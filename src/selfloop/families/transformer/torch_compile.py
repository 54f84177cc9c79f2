"""Which networks run compiled: C on a processor, torch.compile on a GPU; and that a fit goes on without either."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.nn import trainer
from selfloop.families.transformer import kernels
from selfloop.families.transformer.network import Place, apply_layer

if TYPE_CHECKING:
    from selfloop.families.nn.settings import Compile, Training
    from selfloop.families.transformer.network import Network

WORTH = 1e15  # floating-point operations of a fit from which "auto" lets torch compile: it takes half a minute


def in_c(model: Network, choice: Compile) -> kernels.Compiled | None:
    """A network on a processor with its loss in C, where that is possible; SpecError when it is asked for and is not."""
    if choice is False or model.dropout or trainer.device().type != "cpu":
        return None
    library = kernels.library(model.shape.head_size)
    if library is None and choice is True:
        raise SpecError(
            "family.training.compile: found no compiler (cc, gcc or clang) that works. Install one, or set it to 'auto'."
        )
    return None if library is None else kernels.Compiled(library, model)


def prepare(model: Network, training: Training, windows: int, at_once: int, ctx: Context) -> kernels.Compiled | None:
    """Make a network ready to be trained on pieces of `at_once` windows; its loss in C on a processor.

    What is compiled is a function of settings, rows and machine, never of time. Where it cannot be, "auto" stays with
    torch's operations and `true` is a SpecError.
    """
    if trainer.device().type == "cpu":
        return None if trainer.uses_bfloat16(training, model) else in_c(model, training.compile)
    if training.compile is True or (training.compile == "auto" and _operations(model, training, windows) >= WORTH):
        _compile_layers(model, training, min(at_once, training.batch_for(windows)), ctx)
    return None


def _operations(model: Network, training: Training, windows: int) -> float:
    tokens = training.steps_for(windows) * training.batch_for(windows) * model.shape.context
    return 6.0 * tokens * sum(p.numel() for p in model.parameters())  # 2 forward, 4 backward for each parameter


def _compile_layers(model: Network, training: Training, windows: int, ctx: Context) -> None:
    """torch.compile, tried once before the fit."""
    model.to(trainer.device()).train()
    model.apply_layer = _compiled
    tokens = torch.zeros((windows, model.shape.context), dtype=torch.int64, device=trainer.device())
    problem: Exception | None = None
    try:
        with trainer.seeded(ctx.stream), trainer.precision(training, model):
            model(tokens).sum().backward()
    except (RuntimeError, OSError) as found:  # everything that torch's and the system's compiler raise
        problem, model.apply_layer = found, apply_layer
    model.zero_grad()
    if problem is not None and training.compile is True:
        reason = str(problem).strip().splitlines()[0]
        raise SpecError(f"family.training.compile: torch cannot compile here ({reason}). Set it to 'auto' or false.")


@cache
def _compiler() -> object:
    return torch.compile(apply_layer, dynamic=False)


def _compiled(layer: nn.Module, x: Tensor, place: Place) -> Tensor:
    # without a limit: at its end the same fit would give other last bits, depending on what ran before in this process
    with torch._dynamo.config.patch(recompile_limit=1 << 30, accumulated_recompile_limit=1 << 30):
        return _compiler()(layer, x, place)  # type: ignore[operator,no-any-return]  # what torch compiles is untyped
