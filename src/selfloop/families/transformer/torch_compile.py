"""torch.compile for the layers of a network on a GPU, and training without it if it fails."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from selfloop.component import Context
from selfloop.errors import SpecError, first_line
from selfloop.families.nn import trainer
from selfloop.families.transformer.network import AttentionContext, TransformerNetwork, apply_layer

if TYPE_CHECKING:
    from selfloop.families.nn.settings import TrainingSettings
    from selfloop.families.transformer.decoder_torch import TorchDecoder

MIN_COMPILE_FLOPS = 1e15  # of a fit from which `compile = "auto"` compiles, which takes half a minute


def compile_if_useful(
    network: TransformerNetwork, training: TrainingSettings, n_windows: int, micro_batch: int, ctx: Context
) -> None:
    """Compile the layers of a network on a GPU for training on micro-batches of `micro_batch` windows.

    The decision is a function of settings, rows and machine, never of time. If torch cannot compile, "auto" keeps torch's
    usual operations and `true` raises SpecError. Compiled attention inside documents skips the blocks of other documents.
    """
    if trainer.device().type == "cpu" or training.compile is False:
        return
    if training.compile is True or _count_flops(network, training, n_windows) >= MIN_COMPILE_FLOPS:
        _compile_layers(network, training, min(micro_batch, training.batch_size_for(n_windows)), ctx)


def _count_flops(network: TransformerNetwork, training: TrainingSettings, n_windows: int) -> float:
    tokens = training.count_steps(n_windows) * training.batch_size_for(n_windows) * network.config.context
    return 6.0 * tokens * sum(p.numel() for p in network.parameters())  # per parameter 2 forward, 4 backward


def _compile_layers(network: TransformerNetwork, training: TrainingSettings, n_windows: int, ctx: Context) -> None:
    """Use compiled layers, and run them once, so that an error appears before the fit."""
    network.to(trainer.device()).train()
    network.apply_layer, network.skips_blocks = _apply_compiled, network.in_documents and not network.dropout
    _choose_cache_folder()
    tokens = torch.zeros((n_windows, network.config.context), dtype=torch.int64, device=trainer.device())
    error: Exception | None = None
    try:
        with trainer.seed_torch(ctx.stream), trainer.autocast(training, network):
            network(tokens, tokens if network.in_documents else None).sum().backward()
    except (RuntimeError, OSError) as problem:  # all errors of torch's and the system's compiler
        error, network.apply_layer, network.skips_blocks = problem, apply_layer, False
    network.zero_grad()
    if error is None:
        ctx.backends["layers"] = "torch.compile, block mask" if network.skips_blocks else "torch.compile"
    elif training.compile is True:
        raise SpecError(
            f"family.training.compile: got true; torch cannot compile here ({first_line(error)}). Set it to 'auto' or false."
        )
    else:
        warnings.warn(f"training is slower: torch cannot compile here ({first_line(error)})", stacklevel=2)


def _choose_cache_folder() -> None:
    with suppress(RuntimeError):  # torch's own folder has a name in /tmp, which another user could create first
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "selfloop" / "inductor"))


def compile_attention(decoder: TorchDecoder) -> None:
    """Let a decoder on a GPU read only the filled blocks of its cache; with a warning it reads all if torch cannot compile."""
    _choose_cache_folder()
    zeros = torch.zeros(decoder.slots, dtype=torch.int64, device=decoder.device)
    try:
        decoder.step(zeros, zeros)
    except (RuntimeError, OSError) as problem:
        decoder.attend = None
        warnings.warn(f"sampling is slower: torch cannot compile here ({first_line(problem)})", stacklevel=2)


@cache
def _compiled_layer() -> object:
    return torch.compile(apply_layer, dynamic=False)


@cache
def _compiled_attention() -> object:
    return torch.compile(flex_attention, dynamic=False)


def _apply_compiled(layer: nn.Module, x: Tensor, context: AttentionContext) -> Tensor:
    with _for_any_number_of_shapes():
        return _compiled_layer()(layer, x, context)  # type: ignore[operator,no-any-return]  # torch.compile returns Any


def attend_compiled(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    """Flex attention, compiled at the first call with new shapes."""
    with _for_any_number_of_shapes():
        return _compiled_attention()(q, k, v, **settings)  # type: ignore[operator,no-any-return]


def _for_any_number_of_shapes() -> Any:
    """No recompile limit: beyond it the last bits of a fit would depend on earlier fits of the same process."""
    return torch._dynamo.config.patch(recompile_limit=1 << 30, accumulated_recompile_limit=1 << 30)
