"""Models in the form of Hugging Face: configurations, networks, their rows, and folders that transformers and vLLM open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import GenerationConfig, GPT2Config, LlamaConfig

from selfloop.columns import Ints, Params, Ragged
from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.hf_folder import load_hf_model, quiet
from selfloop.families.transformer.decoder import Arch, DecodeRequest, TransformerConfig
from selfloop.families.transformer.text_sampler import TextSampler

HF_NAMES: dict[Arch, dict[str, str]] = {  # settings of transformers' configurations
    "gpt2": {
        "layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "mlp_hidden": "n_inner", "context": "n_positions",
        "vocab": "vocab_size", "tie_embeddings": "tie_word_embeddings", "epsilon": "layer_norm_epsilon",
    },
    "llama": {
        "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads", "mlp_hidden": "intermediate_size", "context": "max_position_embeddings",
        "vocab": "vocab_size", "tie_embeddings": "tie_word_embeddings", "epsilon": "rms_norm_eps",
    },
}  # fmt: skip
NON_WEIGHTS = ("tokenizer/", "training/")  # prefixes of arrays that are no weights


def to_hf_config(config: TransformerConfig, start: int, end: int) -> Any:
    """The configuration of transformers' GPT-2 or Llama class for a network; `start` and `end` are token ids."""
    described = replace(config, kv_heads=config.kv_heads or config.heads)
    settings = {name: getattr(described, ours) for ours, name in HF_NAMES[config.arch].items()}
    settings |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": None}
    if config.arch == "gpt2":
        return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, architectures=["GPT2LMHeadModel"], **settings)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return LlamaConfig(head_dim=config.head_size, rope_parameters=rope, architectures=["LlamaForCausalLM"], **settings)


def from_hf_config(config: Any) -> TransformerConfig | None:
    """The form of a network; None if it is neither GPT-2 nor Llama, or a variant that `TransformerConfig` cannot describe."""
    c = config
    if c.model_type == "gpt2":
        is_variant = c.activation_function != "gelu_new" or not c.scale_attn_weights or c.add_cross_attention
        is_variant |= c.scale_attn_by_inverse_layer_idx
        other = {"mlp_hidden": c.n_inner or 4 * c.n_embd}
    elif c.model_type == "llama":
        rope, is_variant = c.rope_parameters, c.hidden_act != "silu" or c.attention_bias or c.mlp_bias
        is_variant |= rope.get("rope_type", "default") != "default" or c.head_dim != c.hidden_size // c.num_attention_heads
        other = {"rope_theta": rope["rope_theta"]}
    else:
        return None
    settings = {ours: getattr(c, name) for ours, name in HF_NAMES[c.model_type].items()}
    return None if is_variant else TransformerConfig(arch=c.model_type, **(settings | other))


def build_hf_model(config: Any, params: Params) -> Any:
    """transformers' network with the arrays of a model; SpecError if they do not fit."""
    model, wrong = load_hf_model(config, {name: array for name, array in params.items() if not name.startswith(NON_WEIGHTS)})
    if wrong:
        raise SpecError(
            f"init_from: the arrays do not fit this network: {wrong[0]}. Start from a model of the same family and settings."
        )
    return model


def open_model(config: TransformerConfig, params: Params) -> Any:
    """transformers' network of a model of the family `transformer`."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    return build_hf_model(to_hf_config(config, start, end), params).eval()


def generate(model: Any, request: DecodeRequest, ctx: Context) -> Ragged:
    """The rows of a request. Each minibatch has a stream of its own, so its rows share random numbers.

    Rows with prompts of the same length are sampled together, so that no prompt is padded.
    """
    sampler, prompts, end, limit = request.sampler, request.prompts, request.end, request.max_tokens
    lengths, size = np.diff(prompts.offsets), sampler.batch_size
    if (longest := int(lengths.max(initial=0))) >= limit:
        raise sampler.too_long(longest, limit)
    ctx.backends["sampling"] = f"transformers generate {trainer.device().type}"
    model.to(trainer.device()).eval()
    by_length = {length: np.flatnonzero(lengths == length) for length in np.unique(lengths).tolist()}
    groups = [
        (length, b, group)
        for length, same in by_length.items()
        for b, group in enumerate(np.split(same, range(size, len(same), size)))
    ]

    def sample_group(i: int) -> list[Ints]:
        length, b, group = groups[i]
        prompt = np.array(prompts[group].values, np.int64).reshape(len(group), length)
        inputs = torch.from_numpy(np.column_stack([request.starts[group], prompt])).to(trainer.device())
        with quiet(), torch.inference_mode(), trainer.seed_torch(ctx.stream.child("generate", length, b)):
            config = _generation_config(model, sampler, end, limit - length)
            samples = model.generate(inputs, generation_config=config, attention_mask=torch.ones_like(inputs))
        sampled = list[Ints]()
        for row in samples[:, 1:].cpu().numpy():
            ends = np.flatnonzero(row[length:] == end)
            sampled.append(row[: length + ends[0] + 1] if len(ends) else row)
        return sampled

    rows = [np.zeros(0, np.int64)] * len(request)
    for (_, _, group), sampled in zip(groups, ctx.ranks.map(sample_group, len(groups)), strict=True):
        for i, row in zip(group, sampled, strict=True):
            rows[i] = row
    values = np.concatenate([np.zeros(0, np.int64), *rows])
    dtype = np.uint16 if model.config.get_text_config().vocab_size <= 1 << 16 else np.uint32
    return Ragged(values.astype(dtype), np.cumsum([0, *map(len, rows)]))


def _generation_config(model: Any, sampler: TextSampler, end: int, n_tokens: int) -> Any:
    """All settings of `generate`; those of the base's generation_config.json are not used."""
    model.generation_config = GenerationConfig()
    random = {"temperature": sampler.temperature, "top_k": sampler.top_k or 0, "top_p": sampler.top_p or 1.0}
    return GenerationConfig(
        do_sample=sampler.temperature > 0, num_beams=sampler.num_beams, max_new_tokens=n_tokens, eos_token_id=end,
        pad_token_id=end, **(random if sampler.temperature > 0 else {}),
    )  # fmt: skip


def save_folder(model: Any, params: Params, folder: Path, dtype: str, chat_template: str | None = None) -> None:
    """Write a model with its tokenizer; `generate` then samples from the model's distribution, as we do."""
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    context = model.config.get_text_config().max_position_embeddings
    model.config.bos_token_id, model.config.eos_token_id = start, end
    with quiet():
        model.generation_config = GenerationConfig(
            bos_token_id=start, eos_token_id=end, pad_token_id=end, do_sample=True, top_k=0, max_length=context
        )
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    older = {"torch_dtype": dtype}  # these names are for transformers 4, which many versions of vLLM use
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        older["rope_theta"] = theta
    path.write_text(json.dumps(config | older, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _save_tokenizer(params, context, folder, chat_template)


def _save_tokenizer(params: Params, context: int, folder: Path, chat_template: str | None) -> None:
    """Write tokenizer.json and tokenizer_config.json: a text begins with the start token, as in training."""
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
