"""torch.compile for the layers of a network on a GPU, and training without it if it fails."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from selfloop.component import Context
from selfloop.errors import SpecError, first_line
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer.decoder_torch import TorchDecoder
from selfloop.families.transformer.network import TransformerNetwork, apply_layer

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
    tokens = training.count_steps(n_windows) * training.batch_size_for(n_windows) * network.config.context
    flops = 6.0 * tokens * sum(p.numel() for p in network.parameters())  # per parameter 2 forward, 4 backward
    if training.compile is True or flops >= MIN_COMPILE_FLOPS:
        _compile_layers(network, training, min(micro_batch, training.batch_size_for(n_windows)), ctx)


def _compile_layers(network: TransformerNetwork, training: TrainingSettings, n_windows: int, ctx: Context) -> None:
    """Use compiled layers, and run them once, so that an error appears before the fit."""
    network.to(trainer.device()).train()
    _choose_cache_folder()
    tokens = torch.zeros((n_windows, network.config.context), dtype=torch.int64, device=trainer.device())
    error: Exception | None = None
    try:
        network.apply_layer, network.skips_blocks = compile_once(apply_layer), network.in_documents and not network.dropout
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
    with suppress(RuntimeError, OSError):  # torch's own folder has a name in /tmp, which another user could create first
        folder = Path.home() / ".cache" / "selfloop"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the decoder in C trusts no folder that others can write


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
def compile_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, compiled at its first call with new shapes.

    It has no recompile limit: beyond it the last bits of a fit would depend on earlier fits of the same process.
    """
    compiled_function = torch.compile(function, dynamic=False)

    def call(*arguments: Any, **settings: Any) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=1 << 30, accumulated_recompile_limit=1 << 30):
            return compiled_function(*arguments, **settings)

    return call


def attend_compiled(*arguments: Tensor, **settings: Any) -> Tensor:
    """Flex attention, compiled."""
    return compile_once(flex_attention)(*arguments, **settings)
