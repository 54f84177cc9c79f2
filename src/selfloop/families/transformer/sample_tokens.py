"""Rows drawn from a GPT-2 or Llama network: choice of a decoder, and storage of finished rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selfloop.columns import Ints, Params, Ragged, take_spans
from selfloop.component import Context
from selfloop.errors import DataError
from selfloop.families.lazy import checkpoint, decoder_torch, torch, torch_compile, trainer
from selfloop.families.transformer import decoder_c
from selfloop.families.transformer.decoder import DecodeRequest, Tokens, TransformerConfig, build_decoder_weights
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

    A row that fills the window of `config.context` positions goes on in a new one, whose first half is the end of the last
    one: so a token is drawn after at least half a window of its row, as the windows of training begin anywhere in a row.

    The random numbers of a row are a function of (stream, row, position), so it does not depend on others. On a processor
    with a C compiler a row has the same bits with any number of threads and slots. Its keys and values have 16 bits: about
    2e-4 of a trained model's probability moves to other tokens (50 times as much in bfloat16). Without a compiler torch
    computes in float32, on GPUs in TF32 with a float16 cache, so that a row may continue with a different token now and then.
    `beam_search`, if it is there, replaces the decoder, and its rows share random numbers. With a scratch folder finished rows
    are stored chunk by chunk, and a killed call continues to the same bits.

    Raises ChainEndedError("diverged") if logits are not finite, SpecError if prompts are too long.
    """
    n, limit = len(prompts), sampler.max_tokens or config.context
    start, end = (int(params[f"tokenizer/{name}"]) for name in ("start", "end"))
    if (largest := max(start, int(np.max(prompts.values, initial=0)))) >= config.vocab:
        raise DataError(f"transformer: got a prompt with token {largest}; the model has {config.vocab}. Encode prompts again.")
    window = min(limit, config.context)  # caches have this length; a window's last token is never its input
    if (longest := int(np.diff(prompts.offsets).max(initial=0))) >= window:
        raise sampler.too_long(longest, window)
    decode = beam_search or _choose_decoder(replace(config, context=window), params, sampler, ctx)
    dtype, size = np.uint16 if config.vocab <= 1 << 16 else np.uint32, ROWS_PER_SLOT * sampler.batch_size

    def decode_chunk(chunk: int) -> list[tuple[Ints, Ragged]]:
        first, pieces = chunk * size, list[tuple[Ints, Ragged]]()
        numbers = np.arange(first, min(first + size, n))
        starts, length = np.full(len(numbers), start), 0
        request: DecodeRequest | None
        request = DecodeRequest(numbers, starts, prompts[numbers], ctx.stream.integer(), end, window, sampler)
        while request:
            n_known = 0 if length == 0 else int(request.prompts.offsets[1])
            identity = repr((config, sampler, n, ctx.backends.get("sampling")))
            rows = _decode_or_load(request, decode, identity, f"rows-{first}-{request.random_key:016x}", ctx)
            pieces.append((request.numbers, take_spans(rows.values, rows.offsets[:-1] + n_known, rows.offsets[1:])))
            length += request.max_tokens - n_known
            request = _continue_rows(request, rows, limit - length, ctx.stream.child("window", length).integer())
        return pieces

    return _join_pieces([piece for pieces in ctx.ranks.map(decode_chunk, -(-n // size)) for piece in pieces], n, dtype)


def _continue_rows(request: DecodeRequest, rows: Ragged, n_left: int, random_key: int) -> DecodeRequest | None:
    """The next window of the rows that a full window cut; None if there are none, or if no tokens are left."""
    window = request.max_tokens
    ends = rows.offsets[1:][np.diff(rows.offsets) == window]
    cut = rows.values[ends - 1] != request.end
    if n_left == 0 or not cut.any():
        return None
    n_known = max(1, window // 2)  # inputs that the next window begins with
    known = rows.values[ends[cut, None] + np.arange(-n_known, 0)]
    prompts = Ragged(known[:, 1:].reshape(-1), np.arange(len(known) + 1) * (n_known - 1))
    numbers = request.numbers[np.diff(rows.offsets) == window][cut]
    length = min(window, n_known - 1 + n_left)
    return DecodeRequest(numbers, known[:, 0].astype(np.int64), prompts, random_key, request.end, length, request.sampler)


def _join_pieces(pieces: Sequence[tuple[Ints, Ragged]], n: int, dtype: type[np.unsignedinteger[Any]]) -> Ragged:
    """Rows 0 .. n - 1 from (row numbers, tokens) of their windows, in order."""
    lengths = np.zeros(n, np.int64)
    for numbers, tokens in pieces:
        lengths[numbers] += np.diff(tokens.offsets)
    values, filled = np.zeros(lengths.sum(), dtype), np.cumsum(lengths) - lengths
    for numbers, tokens in pieces:
        sizes = np.diff(tokens.offsets)
        values[np.repeat(filled[numbers] - tokens.offsets[:-1], sizes) + np.arange(len(tokens.values))] = tokens.values
        filled[numbers] += sizes
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def _choose_decoder(
    config: TransformerConfig, params: Params, sampler: TextSampler, ctx: Context
) -> Callable[[DecodeRequest], Ragged]:
    torch.set_num_threads(ctx.threads)
    weights, device = build_decoder_weights(config, params), trainer.device()
    if device.type == "cpu" and (c_decoder := decoder_c.try_c_decoder(config, weights)):
        ctx.backends["sampling"] = "c decoder"
        return lambda request: _cut_rows(*c_decoder.decode(request, ctx.threads))
    ctx.backends["sampling"] = f"torch decoder {device.type}"
    if device.type == "cpu":
        decoder = decoder_torch.TorchDecoder(config, weights, sampler.batch_size, device)
    else:
        attention = torch.float16, torch_compile.attend_compiled
        decoder = decoder_torch.TorchDecoder(config, weights, sampler.batch_size, device, *attention)
        with decoder_torch.tensor_cores(device):  # as in sampling: another precision would compile again
            torch_compile.compile_attention(decoder)
        ctx.backends["sampling"] += " tf32, float16 cache, cuda graph"
    return lambda request: _cut_rows(*decoder.decode(request))


def _cut_rows(tokens: Tokens, lengths: Ints) -> Ragged:
    return Ragged(tokens[np.arange(tokens.shape[1]) < lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))


def _decode_or_load(
    request: DecodeRequest, decode: Callable[[DecodeRequest], Ragged], identity: str, name: str, ctx: Context
) -> Ragged:
    """The rows of a request from the scratch folder, or else from the decoder; then they are stored."""
    path = ctx.scratch / f"{name}.safetensors" if ctx.scratch else None
    if path is not None and (stored := checkpoint.load(path, identity)):
        return Ragged(stored[1]["values"].numpy(), stored[1]["offsets"].numpy())
    rows = decode(request)
    if path is not None:
        arrays = {"values": torch.from_numpy(rows.values), "offsets": torch.from_numpy(rows.offsets)}
        checkpoint.save(path, arrays, identity, len(rows))
    return rows
