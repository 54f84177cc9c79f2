"""Low-rank adapters of a base model, through peft: their settings, and adding them to a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from selfloop.columns import Array, Params
from selfloop.errors import SpecError
from selfloop.families.nn.settings import Count
from selfloop.settings import PositiveFloat, Settings


@dataclass(frozen=True, kw_only=True)
class Lora(Settings):
    """Low-rank adapters beside the base's matrices, which stay unchanged (Hu et al. 2021, 2106.09685)."""

    rank: Annotated[Count, "rank of each adapter"] = 16
    alpha: Annotated[PositiveFloat, "an adapter's product is multiplied by alpha / rank"] = 32.0
    target_modules: Annotated[
        tuple[str, ...], "names of the modules with adapters; none: all linear modules but the output matrix"
    ] = ()


def add_adapters(model: Any, lora: Lora, params: Params | None) -> Any:
    """The base with adapters: new ones, or those of `params`. SpecError if either does not fit the base."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers.pytorch_utils import Conv1D

    from selfloop.families.nn.hf_folder import quiet

    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, task_type="CAUSAL_LM", target_modules=lora.target_modules or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )  # fmt: skip
    try:
        with quiet():
            adapted = get_peft_model(model, settings)
    except ValueError as problem:
        reason = str(problem).split(".")[0]
        raise SpecError(f"family.lora.target_modules: {reason}. Give names of linear modules of the base.") from problem
    if params is not None:
        state = {name: torch.tensor(array) for name, array in params.items() if ".lora_" in name}
        if set(state) != set(adapter_arrays(adapted)):
            raise SpecError(
                "init_from: the arrays are no adapters of this base. Start from a model of the same family and settings."
            )
        set_peft_model_state_dict(adapted, state)
    return adapted


def adapter_arrays(model: Any) -> dict[str, Array]:
    """The arrays of the adapters by peft's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}
