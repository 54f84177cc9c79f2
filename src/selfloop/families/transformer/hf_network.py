"""Models in the form of Hugging Face: configurations, networks, their rows, and folders that transformers and vLLM open.

vLLM itself was never run with this module: its tests use a small package with the same interface.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
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
from selfloop.rng import SPLITMIX_STEP, splitmix64

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
MIN_TOKENS = 16  # drawn tokens of rows that are compared: shorter ones are equal by chance
MIN_ROWS = 10  # equal rows at the same places of two calls that show equal seeds
MAX_DUPLICATES = 0.01  # share of rows without a warning
MEMORY_SHARE = 0.8  # of the GPU's memory, the rest of which torch may hold


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


class VllmDecoder:
    """An engine of vLLM (https://docs.vllm.ai) with one model, on a GPU that vLLM supports.

    Every row has a seed of its own, derived from the stream and the row's number. Rows are independent draws from the model in
    half precision. vLLM's bits depend on its version, its kernels and the rows that it computes together, so that a row may
    differ from call to call.
    """

    def __init__(self, save: Callable[[Path, str], None], dtype: str, context: int, ctx: Context) -> None:
        import vllm

        ctx.backends["sampling"] = f"vllm {vllm.__version__} {dtype}"
        self.new_request, self.seen, self.previous = vllm.SamplingParams, set[int](), list[tuple[int, ...]]()
        with TemporaryDirectory() as folder:
            save(Path(folder), dtype)
            self.engine: Any = vllm.LLM(
                model=folder, dtype=dtype, max_model_len=context, skip_tokenizer_init=True, generation_config="vllm",
                gpu_memory_utilization=MEMORY_SHARE,
            )  # fmt: skip

    def __call__(self, request: DecodeRequest) -> Ragged:
        """The rows of a request; SpecError if vLLM draws the rows of two calls with the same random numbers."""
        s, offsets = request.sampler, request.prompts.offsets
        known = [request.prompts.values[first:end].tolist() for first, end in pairwise(offsets.tolist())]
        keys = splitmix64(np.uint64(request.random_key) + (request.numbers.astype(np.uint64) + np.uint64(1)) * SPLITMIX_STEP)
        requests = [
            self.new_request(
                temperature=s.temperature, top_k=s.top_k or -1, top_p=s.top_p or 1.0, seed=seed, detokenize=False,
                max_tokens=request.max_tokens - len(prompt), stop_token_ids=[request.end], ignore_eos=True,
            )
            for prompt, seed in zip(known, (keys >> np.uint64(1)).tolist(), strict=True)
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": [start, *row]} for start, row in zip(request.starts.tolist(), known, strict=True)]
        outputs = self.engine.generate(prompts, requests, use_tqdm=False)
        drawn = [tuple(output.outputs[0].token_ids) for output in outputs]
        if s.temperature > 0:
            self._compare(drawn)
        rows = [np.array([*prompt, *tokens], np.uint32) for prompt, tokens in zip(known, drawn, strict=True)]
        return Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    def _compare(self, drawn: list[tuple[int, ...]]) -> None:
        """Warn of rows that repeat earlier ones; raise if a whole call repeats the one before, place by place."""
        long = [tokens for tokens in drawn if len(tokens) >= MIN_TOKENS]
        repeats = sum(a == b for a, b in zip(self.previous, drawn, strict=False) if len(a) >= MIN_TOKENS)
        neighbors = sum(a == b for a, b in pairwise(long))  # as often as other pairs, if rows are independent
        self.previous = drawn
        if repeats >= MIN_ROWS and repeats > len(long) / 2 and neighbors < len(long) / 10:
            raise SpecError(
                f"family.sampler.decoder: vllm drew {repeats} of {len(long)} rows with the random numbers of an earlier call. "
                "Set decoder to 'auto', or install another version of vllm."
            )
        n_equal = 0
        for tokens in map(hash, long):
            n_equal += tokens in self.seen
            self.seen.add(tokens)
        if n_equal > MAX_DUPLICATES * len(long):
            warnings.warn(
                f"vllm: {n_equal} of {len(long)} rows of {MIN_TOKENS} or more drawn tokens equal an earlier row "
                f"({n_equal / len(long):.1%}): the model repeats itself, or rows share random numbers",
                stacklevel=2,
            )


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
