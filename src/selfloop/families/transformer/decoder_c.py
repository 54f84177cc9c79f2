"""The decoder in C, compiled for a network's shape."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from selfloop.columns import Array, Ints, Ragged
from selfloop.errors import ChainEndedError
from selfloop.families.transformer import c_library
from selfloop.families.transformer.config import TransformerConfig
from selfloop.families.transformer.decoder import (
    DecodeRequest,
    DecoderWeights,
    DenseLayer,
    Float32s,
    Tokens,
    rotary_table,
    token_uniforms,
)
from selfloop.families.transformer.text_sampler import TextSampler

PANEL_COLS = 32  # columns of packed weights that are stored together, as in decoder.c
ALIGNMENT_BYTES = 64
OK, NOT_FINITE, NO_MEMORY = range(3)  # status codes of decoder.c
STOP = -(1 << 62)
TEST_ROWS, TEST_TOKENS, TEST_TOLERANCE = 4, 12, 1e-3  # of a compiled library; probability that a draw may be off
TEST_SECONDS = 120  # after which the test has failed
MAX_SLOTS = 32  # of a thread: the keys and values of more rows do not fit into the processor's caches


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_DecoderWeights = _structure("DecoderWeights", embedding=ctypes.c_void_p, positions=ctypes.c_void_p, layers=ctypes.c_void_p)
_DecodeRequest = _structure(
    "DecodeRequest", n_rows=ctypes.c_int64, first=ctypes.c_int64, max_tokens=ctypes.c_int64, n_slots=ctypes.c_int64,
    random_key=ctypes.c_uint64, start=ctypes.c_uint32, end=ctypes.c_uint32, temperature=ctypes.c_double,
    top_p=ctypes.c_double, top_k=ctypes.c_int64, prompts=ctypes.c_void_p, offsets=ctypes.c_void_p, tokens=ctypes.c_void_p,
    lengths=ctypes.c_void_p, next_row=ctypes.c_void_p,
)  # fmt: skip


@dataclass(frozen=True)
class CDecoder:
    """A network that is ready to decode. The bits of a row depend on that row alone, not on slots, threads or other rows."""

    library: ctypes.CDLL
    config: TransformerConfig
    arrays: tuple[Float32s, Float32s, Float32s]  # embedding, positions, packed layers

    def decode(self, request: DecodeRequest, threads: int) -> tuple[Tokens, Ints]:
        """Tokens (rows, max_tokens) and lengths of the rows; ChainEndedError("diverged") if logits are not finite."""
        tokens, lengths = np.zeros((len(request), request.max_tokens), np.uint32), np.zeros(len(request), np.int64)
        next_row = np.zeros(1, np.int64)
        prompts, offsets = np.array(request.prompts.values, np.uint32), np.array(request.prompts.offsets, np.int64)
        s, slots = request.sampler, min(-(-min(request.sampler.batch_size, len(request)) // threads), MAX_SLOTS)
        c_request = _DecodeRequest(
            len(request), request.first, request.max_tokens, slots, request.random_key, request.start, request.end,
            s.temperature, s.top_p or 1.0, min(s.top_k or 0, self.config.vocab),
            *(array.ctypes.data for array in (prompts, offsets, tokens, lengths, next_row)),
        )  # fmt: skip
        c_weights = _DecoderWeights(*(array.ctypes.data for array in self.arrays))
        arguments = (ctypes.byref(c_weights), ctypes.byref(c_request))
        with ThreadPoolExecutor(threads) as pool:
            calls = [pool.submit(self.library.selfloop_decode, *arguments) for _ in range(threads)]
            try:
                statuses = {call.result() for call in calls}
            finally:
                next_row[0] = STOP  # after an interruption threads end at their next step
        if NO_MEMORY in statuses:
            raise MemoryError
        if NOT_FINITE in statuses:
            raise ChainEndedError("diverged")
        return tokens, lengths


def try_c_decoder(config: TransformerConfig, weights: DecoderWeights) -> CDecoder | None:
    """The decoder compiled for a network; None if there is no compiler, or with a warning if it does not work."""
    library = load_decoder(config)
    return None if library is None else _decoder(library, config, weights)


@lru_cache(maxsize=64)
def load_decoder(config: TransformerConfig) -> ctypes.CDLL | None:
    """decoder.c compiled for a network's shape, tested in another process after it was compiled."""
    return c_library.load_c_library("decoder.c", compile_constants(config), partial(_passes_test, config))


def _decoder(library: ctypes.CDLL, config: TransformerConfig, weights: DecoderWeights) -> CDecoder:
    layers = [*(dense for layer in weights.layers for dense in layer), weights.head]
    packed = _align(np.concatenate([_pack_dense(dense) for dense in layers]))
    return CDecoder(library, config, (_align(weights.embedding), _align(weights.positions), packed))


def _passes_test(config: TransformerConfig, path: Path) -> bool:
    """True if a library draws tokens from torch's probabilities. It runs in another process, which it may crash or stop."""
    import torch

    from selfloop.families.transformer.decoder_torch import TorchDecoder

    code = f"from {__name__} import decode_test_rows; decode_test_rows({asdict(config)!r}, {str(path)!r})"
    with TemporaryFile() as file:
        if c_library.run_for([sys.executable, "-c", code], TEST_SECONDS, file) != 0:
            return False
        file.seek(0)
        rows = np.frombuffer(file.read(), np.uint32).astype(np.int64)
    weights, request = _test_case(config)
    if rows.size != len(request) * request.max_tokens or rows.max() >= config.vocab:
        return False
    rows, decoder = rows.reshape(len(request), -1), TorchDecoder(config, weights, len(request), torch.device("cpu"))
    inputs, indices = np.insert(rows, 0, request.start, axis=1), np.arange(len(request))
    for position in range(request.max_tokens):
        positions = np.full(len(request), position)
        p = decoder.step(torch.from_numpy(inputs[:, position]), torch.from_numpy(positions)).double().softmax(-1).numpy()
        ends, u = p.cumsum(-1)[indices, rows[:, position]], token_uniforms(request.random_key, indices, positions)
        if np.maximum(ends - p[indices, rows[:, position]] - u, u - ends).max() > TEST_TOLERANCE:
            return False
    return True


def decode_test_rows(config: dict[str, Any], path: str) -> None:
    """Write the tokens that a library draws for the test to standard output."""
    shape = TransformerConfig(**config)
    weights, request = _test_case(shape)
    tokens, _ = _decoder(ctypes.CDLL(path), shape, weights).decode(request, 1)
    sys.stdout.buffer.write(tokens.tobytes())


def _test_case(config: TransformerConfig) -> tuple[DecoderWeights, DecodeRequest]:
    """A random network, and a few rows without an end token."""
    rng, c = np.random.default_rng(0), config

    def dense(inputs: int, outputs: int) -> DenseLayer:
        return rng.standard_normal((inputs, outputs), np.float32) / np.float32(inputs**0.5), np.zeros(outputs, np.float32)

    qkv, up = (c.heads + 2 * (c.kv_heads or c.heads)) * c.head_size, c.mlp_hidden * (2 if c.arch == "llama" else 1)
    shapes = [(c.hidden, qkv), (c.hidden, c.hidden), (c.hidden, up), (c.mlp_hidden, c.hidden)]
    layers = [[dense(*shape) for shape in shapes] for _ in range(c.layers)]
    positions = rotary_table(c) if c.arch == "llama" else dense(c.context, c.hidden)[0]
    weights = DecoderWeights(
        dense(c.vocab, c.hidden)[0] * np.float32(c.vocab**0.5), positions, layers, dense(c.hidden, c.vocab)
    )
    prompts = Ragged(np.zeros(0, np.uint32), np.zeros(TEST_ROWS + 1, np.int64))
    return weights, DecodeRequest(0, prompts, 1, 0, c.vocab, min(c.context, TEST_TOKENS), TextSampler())


def _pack_dense(dense: DenseLayer) -> Float32s:
    """(columns / 32, 1 + inputs, 32): the bias first, columns padded with zeros."""
    both = np.concatenate([dense[1][None], dense[0]])
    both = np.pad(both, ((0, 0), (0, -both.shape[1] % PANEL_COLS)))
    return np.ascontiguousarray(both.reshape(len(both), -1, PANEL_COLS).swapaxes(0, 1)).reshape(-1)


def _align(array: Array) -> Float32s:
    buffer = np.empty(array.size + ALIGNMENT_BYTES // 4, np.float32)
    first = -buffer.ctypes.data % ALIGNMENT_BYTES // 4
    buffer[first : first + array.size] = array.reshape(-1)
    return buffer[first : first + array.size]


def compile_constants(config: TransformerConfig) -> dict[str, float]:
    """Macros that decoder.c is compiled with."""
    return {
        "LAYERS": config.layers, "HIDDEN_DIM": config.hidden, "HEADS": config.heads,
        "KV_HEADS": config.kv_heads or config.heads, "HEAD_DIM": config.head_size, "MLP_DIM": config.mlp_hidden,
        "CONTEXT": config.context, "VOCAB": config.vocab, "LLAMA": int(config.arch == "llama"), "EPSILON": config.epsilon,
    }  # fmt: skip
