"""Models in the form of Hugging Face: configurations, networks, and folders that transformers and vLLM open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.columns import Params
from selfloop.errors import SpecError
from selfloop.families.nn.hf_logging import quiet
from selfloop.families.transformer.config import TransformerConfig

NON_WEIGHTS = ("tokenizer/", "training/")  # prefixes of arrays that are no weights


def to_hf_config(config: TransformerConfig, start: int, end: int) -> Any:
    """The configuration of transformers' GPT-2 or Llama class for a network; `start` and `end` are token ids."""
    from transformers import GPT2Config, LlamaConfig

    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": None, "tie_word_embeddings": config.tie_embeddings}
    if config.arch == "gpt2":
        return GPT2Config(
            vocab_size=config.vocab, n_positions=config.context, n_embd=config.hidden, n_layer=config.layers,
            n_head=config.heads, n_inner=config.mlp_hidden, layer_norm_epsilon=config.epsilon,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            architectures=["GPT2LMHeadModel"], **ids,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=config.vocab, max_position_embeddings=config.context, hidden_size=config.hidden, head_dim=config.head_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads or config.heads, intermediate_size=config.mlp_hidden, rms_norm_eps=config.epsilon,
        architectures=["LlamaForCausalLM"], rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, **ids,
    )  # fmt: skip


def from_hf_config(config: Any) -> TransformerConfig | None:
    """The form of a network; None if it is neither GPT-2 nor Llama, or a variant that `TransformerConfig` cannot describe."""
    c = config
    if c.model_type == "gpt2":
        is_variant = c.activation_function != "gelu_new" or not c.scale_attn_weights or c.add_cross_attention
        if is_variant or c.scale_attn_by_inverse_layer_idx:
            return None
        return TransformerConfig(
            arch="gpt2", layers=c.n_layer, hidden=c.n_embd, heads=c.n_head, mlp_hidden=c.n_inner or 4 * c.n_embd,
            context=c.n_positions, vocab=c.vocab_size, tie_embeddings=c.tie_word_embeddings, epsilon=c.layer_norm_epsilon,
        )  # fmt: skip
    if c.model_type != "llama" or c.hidden_act != "silu" or c.attention_bias or c.mlp_bias:
        return None
    rope = c.rope_parameters
    if rope.get("rope_type", "default") != "default" or c.head_dim != c.hidden_size // c.num_attention_heads:
        return None
    return TransformerConfig(
        arch="llama", layers=c.num_hidden_layers, hidden=c.hidden_size, heads=c.num_attention_heads,
        mlp_hidden=c.intermediate_size, context=c.max_position_embeddings, vocab=c.vocab_size, kv_heads=c.num_key_value_heads,
        tie_embeddings=c.tie_word_embeddings, rope_theta=rope["rope_theta"], epsilon=c.rms_norm_eps,
    )  # fmt: skip


def build_hf_model(config: Any, params: Params) -> Any:
    """transformers' model of a configuration with the arrays of `params`, in float32; SpecError if they do not fit."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    state = {name: torch.tensor(array) for name, array in params.items() if not name.startswith(NON_WEIGHTS)}
    with quiet():
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if wrong := [*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])]:
        raise SpecError(
            f"init_from: array {min(wrong)!r} does not fit this network. Start from a model of the same family and settings."
        )
    return model


def save_model(model: Any, folder: Path, dtype: str, sampling: Mapping[str, Any]) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    import torch
    from transformers import GenerationConfig

    with quiet():
        model.generation_config = GenerationConfig(**sampling)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    older = {"torch_dtype": dtype}  # these names are for transformers 4, which many versions of vLLM use
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        older["rope_theta"] = theta
    path.write_text(json.dumps(config | older, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(params: Params, context: int, folder: Path, chat_template: str | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json: a text begins with the start token, as in training."""
    from tokenizers import Tokenizer
    from tokenizers.processors import Sequence, TemplateProcessing

    tokenizer = Tokenizer.from_str(np.asarray(params["tokenizer/json"]).tobytes().decode())
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    first, last = tokenizer.id_to_token(start), tokenizer.id_to_token(end)
    if tokenizer.encode("a").ids[0] != start:
        template = TemplateProcessing(single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, start)])
        before = tokenizer.post_processor
        tokenizer.post_processor = Sequence([before, template]) if before else template
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": first, "eos_token": last, "pad_token": last, "model_max_length": context}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    chat = {} if chat_template is None else {"chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | names | chat, indent=2) + "\n", encoding="utf-8")


def save_folder(model: Any, params: Params, folder: Path, dtype: str, chat_template: str | None = None) -> None:
    """Write a model with its tokenizer; `generate` then samples from the model's distribution, as we do."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    context = model.config.get_text_config().max_position_embeddings
    model.config.bos_token_id, model.config.eos_token_id = start, end
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    save_model(model, folder, dtype, {**ids, "do_sample": True, "top_k": 0, "max_length": context})
    save_tokenizer(params, context, folder, chat_template)


def export_model(config: TransformerConfig, params: Params, folder: Path, dtype: str) -> None:
    """Write a model with its tokenizer."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    save_folder(build_hf_model(to_hf_config(config, start, end), params), params, folder, dtype)
