"""Modules that load torch, imported at their first use: reading a spec needs the settings of a family only."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# of modules whose names are other ones here
__all__ = ["image_networks", "molecule_diffusion", "molecule_networks", "text_networks", "vae_networks"]


class LazyModule:
    """A module that is imported when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as what copying asks for
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


# The imports are for type checkers; at run time each name is a `LazyModule`.
if TYPE_CHECKING:
    import torch as torch

    from selfloop.families.finetune import hf_model as hf_model
    from selfloop.families.geodiff import diffusion as molecule_diffusion
    from selfloop.families.geodiff import network as molecule_networks
    from selfloop.families.image_diffusion import network as image_networks
    from selfloop.families.nn import checkpoint as checkpoint
    from selfloop.families.nn import image_tensors as image_tensors
    from selfloop.families.nn import trainer as trainer
    from selfloop.families.transformer import decoder_torch as decoder_torch
    from selfloop.families.transformer import hf_network as hf_network
    from selfloop.families.transformer import network as text_networks
    from selfloop.families.transformer import torch_compile as torch_compile
    from selfloop.families.vae import network as vae_networks
else:
    torch = LazyModule("torch")
    for _package, _module, _name in re.findall(r"from (selfloop\S+) import (\w+) as (\w+)", Path(__file__).read_text("utf-8")):
        globals()[_name] = LazyModule(f"{_package}.{_module}")
