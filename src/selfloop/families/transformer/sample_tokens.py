"""Rows drawn from a GPT-2 or Llama network: choice of a decoder, and storage of finished rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from selfloop.columns import Ints, Params, Ragged, concat_rows
from selfloop.component import Context
from selfloop.errors import DataError, SpecError
from selfloop.families.transformer.config import TransformerConfig
from selfloop.families.transformer.decoder import DecodeRequest, Tokens, build_decoder_weights
from selfloop.families.transformer.text_sampler import TextSampler

ROWS_PER_SLOT = 32  # of a chunk, after which finished rows are stored: slots are idle 2 % of the time, at its end
BeamSearch = Callable[[DecodeRequest], Ragged]


def sample_tokens(
    config: TransformerConfig,
    params: Params,
    prompts: Ragged,
    sampler: TextSampler,
    ctx: Context,
    beam_search: BeamSearch | None = None,
) -> Ragged:
    """One row per prompt: the prompt, tokens drawn from the network, and the end token unless `max_tokens` is reached.

    The random numbers of a row are a function of (stream, row, position), so it does not depend on others. On a processor
    with a C compiler a row has the same bits with any number of threads and slots. Its keys and values have 16 bits: about
    2e-4 of a trained model's probability moves to other tokens (50 times as much in bfloat16). On GPUs and without a
    compiler torch computes in float32, so that a row may continue with a different token now and then. `beam_search`, if it
    is there, replaces the decoder, and its rows share random numbers. With a scratch folder finished rows are stored chunk
    by chunk, and a killed call continues to the same bits.

    Raises ChainEndedError("diverged") if logits are not finite, SpecError if rows or prompts are too long.
    """
    n, limit = len(prompts), _max_tokens(config, sampler, prompts)
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    if (largest := max(start, int(np.max(prompts.values, initial=0)))) >= config.vocab:
        raise DataError(f"transformer: got a prompt with token {largest}; the model has {config.vocab}. Encode prompts again.")
    # caches have the length of the longest row, which may be far below the number of positions
    decode = beam_search or _choose_decoder(replace(config, context=limit), params, sampler, ctx)
    dtype = np.uint16 if config.vocab <= 1 << 16 else np.uint32
    chunks = [{"tokens": Ragged(np.zeros(0, dtype), np.zeros(1, np.int64))}]
    for first in range(0, n, ROWS_PER_SLOT * sampler.batch_size):
        indices = np.arange(first, min(first + ROWS_PER_SLOT * sampler.batch_size, n))
        request = DecodeRequest(first, prompts[indices], ctx.stream.integer(), start, end, limit, sampler)
        rows = _decode_or_load(request, decode, repr((ctx.stream, config, sampler, n, ctx.backends.get("sampling"))), ctx)
        chunks.append({"tokens": Ragged(rows.values.astype(dtype), rows.offsets)})
    return cast(Ragged, concat_rows(chunks)["tokens"])


def _max_tokens(config: TransformerConfig, sampler: TextSampler, prompts: Ragged) -> int:
    """Tokens of the longest row. Its last token is never an input, so the limit is the number of positions."""
    limit = sampler.max_tokens or config.context
    if limit > config.context:
        raise SpecError(f"family.sampler.max_tokens: got {limit}; the model has {config.context} positions. Lower it.")
    longest = int(np.diff(prompts.offsets).max(initial=0))
    if longest >= limit:
        raise SpecError(f"family.sampler.prefix_tokens: got prompts of {longest} tokens; rows have at most {limit}. Lower it.")
    return limit


def _choose_decoder(
    config: TransformerConfig, params: Params, sampler: TextSampler, ctx: Context
) -> Callable[[DecodeRequest], Ragged]:
    """The fastest decoder of this machine."""
    import torch

    from selfloop.families.nn import trainer
    from selfloop.families.transformer.decoder_c import try_c_decoder
    from selfloop.families.transformer.decoder_torch import TorchDecoder

    torch.set_num_threads(ctx.threads)
    weights, device = build_decoder_weights(config, params), trainer.device()
    if device.type == "cpu" and (c_decoder := try_c_decoder(config, weights)):
        ctx.backends["sampling"] = "c decoder"
        return lambda request: _cut_rows(*c_decoder.decode(request, ctx.threads))
    ctx.backends["sampling"] = f"torch decoder {device.type}"
    torch_decoder = TorchDecoder(config, weights, sampler.batch_size, device)
    return lambda request: _cut_rows(*torch_decoder.decode(request))


def _cut_rows(tokens: Tokens, lengths: Ints) -> Ragged:
    return Ragged(tokens[np.arange(tokens.shape[1]) < lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))


def _decode_or_load(request: DecodeRequest, decode: Callable[[DecodeRequest], Ragged], identity: str, ctx: Context) -> Ragged:
    """The rows of a request from the scratch folder, or else from the decoder; then they are stored."""
    import torch

    from selfloop.families.nn import checkpoint

    path = ctx.scratch / f"rows-{request.first}.safetensors" if ctx.scratch else None
    if path is not None and (stored := checkpoint.load(path, identity)):
        return Ragged(stored[1]["values"].numpy(), stored[1]["offsets"].numpy())
    rows = decode(request)
    if path is not None:
        arrays = {"values": torch.from_numpy(rows.values), "offsets": torch.from_numpy(rows.offsets)}
        checkpoint.save(path, arrays, identity, len(rows))
    return rows
