"""Rows drawn by transformers' `generate`: beam search, and architectures that our decoders do not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.hf_folder import quiet
from selfloop.families.transformer.decoder import DecodeRequest
from selfloop.families.transformer.text_sampler import TextSampler


def generate(model: Any, request: DecodeRequest, ctx: Context) -> Ragged:
    """The rows of a request. Each minibatch has a stream of its own, so its rows share random numbers.

    Rows with prompts of the same length are sampled together, so that no prompt is padded.
    """
    sampler, prompts, end, limit = request.sampler, request.prompts, request.end, request.max_tokens
    lengths, rows = np.diff(prompts.offsets), [np.zeros(0, np.int64)] * len(request)
    if (longest := int(lengths.max(initial=0))) >= limit:
        raise SpecError(f"family.sampler.prefix_tokens: got prompts of {longest} tokens; rows have at most {limit}. Lower it.")
    ctx.backends["sampling"] = f"transformers generate {trainer.device().type}"
    model.to(trainer.device()).eval()
    for length in np.unique(lengths).tolist():
        same_length = np.flatnonzero(lengths == length)
        for b, group in enumerate(np.split(same_length, range(sampler.batch_size, len(same_length), sampler.batch_size))):
            prompt = np.array(prompts[group].values, np.int64).reshape(len(group), length)
            inputs = torch.from_numpy(np.column_stack([np.full(len(group), request.start), prompt])).to(trainer.device())
            with quiet(), torch.inference_mode(), trainer.seed_torch(ctx.stream.child("generate", length, b)):
                config = _generation_config(model, sampler, end, limit - length)
                samples = model.generate(inputs, generation_config=config, attention_mask=torch.ones_like(inputs))
            for i, row in zip(group, samples[:, 1:].cpu().numpy(), strict=True):
                ends = np.flatnonzero(row[length:] == end)
                rows[i] = row[: length + ends[0] + 1] if len(ends) else row
    values = np.concatenate([np.zeros(0, np.int64), *rows])
    dtype = np.uint16 if model.config.get_text_config().vocab_size <= 1 << 16 else np.uint32
    return Ragged(values.astype(dtype), np.cumsum([0, *map(len, rows)]))


def _generation_config(model: Any, sampler: TextSampler, end: int, n_tokens: int) -> Any:
    """All settings of `generate`; those of the base's generation_config.json are not used."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    random = {"temperature": sampler.temperature, "top_k": sampler.top_k or 0, "top_p": sampler.top_p or 1.0}
    return GenerationConfig(
        do_sample=sampler.temperature > 0, num_beams=sampler.num_beams, max_new_tokens=n_tokens, eos_token_id=end,
        pad_token_id=end, **(random if sampler.temperature > 0 else {}),
    )  # fmt: skip
