"""Models as Hugging Face has them: configurations of shapes, networks of arrays, folders that transformers and vLLM open."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from selfloop.errors import SpecError
from selfloop.families.transformer.config import Shape
from selfloop.types import Params

FACTS = ("tokenizer/", "training/")  # prefixes of arrays that are no weights


def config_of(shape: Shape, start: int, end: int) -> Any:
    """The configuration of transformers' GPT-2 or Llama class with that shape; `start` and `end` are token ids."""
    from transformers import GPT2Config, LlamaConfig

    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": None, "tie_word_embeddings": shape.tied}
    if shape.arch == "gpt2":
        return GPT2Config(
            vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
            n_inner=shape.mlp, layer_norm_epsilon=shape.epsilon, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            architectures=["GPT2LMHeadModel"], **ids,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=shape.vocab, max_position_embeddings=shape.context, hidden_size=shape.hidden, head_dim=shape.head_size,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads or shape.heads,
        intermediate_size=shape.mlp, rms_norm_eps=shape.epsilon, architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, **ids,
    )  # fmt: skip


def shape_of(config: Any) -> Shape | None:
    """The shape of a configuration; None when it is neither GPT-2 nor Llama, or a variant that a Shape does not describe."""
    c = config
    if c.model_type == "gpt2":
        plain = c.activation_function == "gelu_new" and c.scale_attn_weights and not c.add_cross_attention
        if not plain or c.scale_attn_by_inverse_layer_idx:
            return None
        return Shape(
            arch="gpt2", layers=c.n_layer, hidden=c.n_embd, heads=c.n_head, mlp=c.n_inner or 4 * c.n_embd,
            context=c.n_positions, vocab=c.vocab_size, tied=c.tie_word_embeddings, epsilon=c.layer_norm_epsilon,
        )  # fmt: skip
    if c.model_type != "llama" or c.hidden_act != "silu" or c.attention_bias or c.mlp_bias:
        return None
    rope = c.rope_parameters
    if rope.get("rope_type", "default") != "default" or c.head_dim != c.hidden_size // c.num_attention_heads:
        return None
    return Shape(
        arch="llama", layers=c.num_hidden_layers, hidden=c.hidden_size, heads=c.num_attention_heads, mlp=c.intermediate_size,
        context=c.max_position_embeddings, vocab=c.vocab_size, kv_heads=c.num_key_value_heads, tied=c.tie_word_embeddings,
        rope_theta=rope["rope_theta"], epsilon=c.rms_norm_eps,
    )  # fmt: skip


def model_of(config: Any, params: Params) -> Any:
    """transformers' model of a configuration with those arrays, in float32; SpecError when they do not fit."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    state = {name: torch.tensor(array) for name, array in params.items() if not name.startswith(FACTS)}
    with quiet():
        model, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if wrong := [*found["missing_keys"], *found["unexpected_keys"], *(name for name, *_ in found["mismatched_keys"])]:
        raise SpecError(
            f"start: array {min(wrong)!r} is not as this network needs it. Start from a model of the same family and settings."
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and peft show no progress bars and say nothing but errors inside."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def save_model(model: Any, folder: Path, dtype: str, sampling: Mapping[str, Any]) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    import torch
    from transformers import GenerationConfig

    with quiet():
        model.generation_config = GenerationConfig(**sampling)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    older = {"torch_dtype": dtype}  # transformers 4, with which many versions of vLLM run, looks for these names
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        older["rope_theta"] = theta
    path.write_text(json.dumps(config | older, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(params: Params, context: int, folder: Path, chat_template: str | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json: a text begins with the start token, as the model learned it."""
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
    """Write a model with its tokenizer; `generate` then samples from the model's own law, as we do."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    context = model.config.get_text_config().max_position_embeddings
    model.config.bos_token_id, model.config.eos_token_id = start, end
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    save_model(model, folder, dtype, {**ids, "do_sample": True, "top_k": 0, "max_length": context})
    save_tokenizer(params, context, folder, chat_template)


def export_shape(shape: Shape, params: Params, folder: Path, dtype: str) -> None:
    """Write a model of that shape with its tokenizer."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    save_folder(model_of(config_of(shape, start, end), params), params, folder, dtype)
