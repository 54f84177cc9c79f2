"""Rows drawn from a GPT-2 or Llama network, many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from selfloop.component import Context
from selfloop.errors import SpecError
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.decoder import Job, Tokens, weights_of
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.types import Ints, Params, Ragged, concat_rows

BLOCK = 32  # rows per slot that are drawn before finished ones are kept: slots stand idle some 2 % of the time, at its end


def sample_tokens(shape: Shape, params: Params, n: int, sampler: TextSampler, prompts: Ragged | None, ctx: Context) -> Ragged:
    """n rows of tokens: each its prompt, what the network says, and the end token unless it is cut at `max_tokens`.

    A row has random numbers of its own, a function of (stream, row, place): it does not depend on n. On processors with a C
    compiler it is the same bits with any number of threads and slots, and keys and values are kept in 16 bits: about 2e-4 of
    a trained model's probability goes to other tokens (bfloat16: 50 times that). On GPUs and without a compiler torch does the
    same work in float32, so that a row may go on with another token now and then. Rows of beam sampling share their numbers.
    With a scratch folder finished rows are kept block by block, and a killed call continues to the same bits.

    Raises ChainEndedError("diverged") when logits are not finite, SpecError when rows or prompts are longer than they may be.
    """
    prompts = prompts or Ragged(np.zeros(0, np.uint32), np.zeros(n + 1, np.int64))
    limit = _limit(shape, sampler, prompts)
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    decode = _decoder(replace(shape, context=limit), params, sampler, ctx)  # caches are as long as rows, not as all positions
    values = np.uint16 if shape.vocab <= 1 << 16 else np.uint32
    parts = [{"tokens": Ragged(np.zeros(0, values), np.zeros(1, np.int64))}]
    for first in range(0, n, BLOCK * sampler.batch):
        rows = np.arange(first, min(first + BLOCK * sampler.batch, n))
        job = Job(first, prompts[rows], ctx.stream.integer(), start, end, limit, sampler)
        kept = _kept(job, decode, repr((ctx.stream, shape, sampler, n)), ctx)
        parts.append({"tokens": Ragged(kept.values.astype(values), kept.offsets)})
    return cast(Ragged, concat_rows(parts)["tokens"])


def _limit(shape: Shape, sampler: TextSampler, prompts: Ragged) -> int:
    """Tokens of the longest row: its last one is never an input, so they may be as many as the network has positions."""
    limit = sampler.max_tokens or shape.context
    if limit > shape.context:
        raise SpecError(f"family.sampler.max_tokens: got {limit}; the model has {shape.context} positions. Lower it.")
    longest = int(np.diff(prompts.offsets).max(initial=0))
    if longest >= limit:
        raise SpecError(f"family.sampler.prefix: got prompts of {longest} tokens; rows end at {limit}. Lower it.")
    return limit


def _decoder(shape: Shape, params: Params, sampler: TextSampler, ctx: Context) -> Callable[[Job], Ragged]:
    """How a job's rows are made on this machine."""
    import torch

    from selfloop.families.nn import trainer
    from selfloop.families.transformer.decoder_c import compiled
    from selfloop.families.transformer.decoder_torch import Looped

    torch.set_num_threads(ctx.threads)
    if sampler.beams > 1:
        return _searcher(shape, params, ctx)
    weights, device = weights_of(shape, params), trainer.device()
    if device.type == "cpu" and (network := compiled(shape, weights)):
        return lambda job: _cut(*network.decode(job, ctx.threads))
    slow = Looped(shape, weights, sampler.batch, device)
    return lambda job: _cut(*slow.decode(job))


def _searcher(shape: Shape, params: Params, ctx: Context) -> Callable[[Job], Ragged]:
    from selfloop.families.finetune import hf_model
    from selfloop.families.transformer import hf_export

    known = (int(params["tokenizer/start"]), int(params["tokenizer/end"]))
    model = hf_export.model_of(hf_export.config_of(shape, *known), params)

    def search(job: Job) -> Ragged:
        each = ctx.child("beams", job.first)
        return hf_model.generate(model, len(job), job.sampler, job.prompts, (*known, job.limit), each)

    return search


def _cut(tokens: Tokens, lengths: Ints) -> Ragged:
    return Ragged(tokens[np.arange(tokens.shape[1]) < lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))


def _kept(job: Job, decode: Callable[[Job], Ragged], identity: str, ctx: Context) -> Ragged:
    """The job's rows, from the scratch folder if they are there, else made and put there."""
    import torch

    from selfloop.families.nn import checkpoint

    path = ctx.scratch / f"rows-{job.first}.safetensors" if ctx.scratch else None
    if path is not None and (found := checkpoint.load(path, identity)):
        return Ragged(found[1]["values"].numpy(), found[1]["offsets"].numpy())
    rows = decode(job)
    if path is not None:
        arrays = {"values": torch.from_numpy(rows.values), "offsets": torch.from_numpy(rows.offsets)}
        checkpoint.save(path, arrays, identity, len(rows))
    return rows
