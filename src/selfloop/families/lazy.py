"""Modules that load torch, imported at their first use: reading a spec needs the settings of a family only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "checkpoint", "decoder_torch", "hf_model", "hf_network", "image_networks", "image_tensors",
    "molecule_diffusion", "molecule_networks", "text_networks", "torch", "torch_compile", "trainer", "vae_networks",
]  # fmt: skip


class LazyModule:
    """A module that is imported when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as what copying asks for
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


if TYPE_CHECKING:
    import torch

    from selfloop.families.finetune import hf_model
    from selfloop.families.geodiff import diffusion as molecule_diffusion
    from selfloop.families.geodiff import network as molecule_networks
    from selfloop.families.image_diffusion import network as image_networks
    from selfloop.families.nn import checkpoint, image_tensors, trainer
    from selfloop.families.transformer import decoder_torch, hf_network, torch_compile
    from selfloop.families.transformer import network as text_networks
    from selfloop.families.vae import network as vae_networks
else:
    torch = LazyModule("torch")
    hf_model = LazyModule("selfloop.families.finetune.hf_model")
    molecule_diffusion = LazyModule("selfloop.families.geodiff.diffusion")
    molecule_networks = LazyModule("selfloop.families.geodiff.network")
    image_networks = LazyModule("selfloop.families.image_diffusion.network")
    image_tensors = LazyModule("selfloop.families.nn.image_tensors")
    checkpoint = LazyModule("selfloop.families.nn.checkpoint")
    trainer = LazyModule("selfloop.families.nn.trainer")
    decoder_torch = LazyModule("selfloop.families.transformer.decoder_torch")
    hf_network = LazyModule("selfloop.families.transformer.hf_network")
    text_networks = LazyModule("selfloop.families.transformer.network")
    torch_compile = LazyModule("selfloop.families.transformer.torch_compile")
    vae_networks = LazyModule("selfloop.families.vae.network")
