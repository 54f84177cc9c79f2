"""The decoder in C, compiled for a network's shape."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from selfloop.errors import ChainEndedError
from selfloop.families.transformer import c_library
from selfloop.families.transformer.config import Shape
from selfloop.families.transformer.decoder import Job, Linear, Singles, Tokens, Weights
from selfloop.types import Array, Ints

PANEL = 32  # columns of packed weights that lie together, as in decode.c
ALIGNED = 64  # bytes
DONE, DIVERGED, NO_MEMORY = range(3)
STOP = -(1 << 62)
SLOTS = 32  # of a thread, at most: the keys and values of more of them crowd each other out of the processor's caches


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_Network = _structure("Network", embedding=ctypes.c_void_p, positions=ctypes.c_void_p, linears=ctypes.c_void_p)
_Job = _structure(
    "Job", rows=ctypes.c_int64, first=ctypes.c_int64, limit=ctypes.c_int64, slots=ctypes.c_int64, key=ctypes.c_uint64,
    start=ctypes.c_uint32, end=ctypes.c_uint32, temperature=ctypes.c_double, top_p=ctypes.c_double, top_k=ctypes.c_int64,
    prompts=ctypes.c_void_p, offsets=ctypes.c_void_p, tokens=ctypes.c_void_p, lengths=ctypes.c_void_p, next=ctypes.c_void_p,
)  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A network ready to decode; every row's bits depend on that row alone, not on slots, threads or other rows."""

    library: ctypes.CDLL
    shape: Shape
    arrays: tuple[Singles, Singles, Singles]  # embedding, positions, packed linear maps

    def decode(self, job: Job, threads: int) -> tuple[Tokens, Ints]:
        """Tokens [rows, limit] and lengths of the job's rows; ChainEndedError("diverged") when logits are not finite."""
        tokens, lengths = np.zeros((len(job), job.limit), np.uint32), np.zeros(len(job), np.int64)
        taken = np.zeros(1, np.int64)
        s, slots = job.sampler, min(-(-min(job.sampler.batch, len(job)) // threads), SLOTS)
        held: list[Array] = [
            np.array(job.prompts.values, np.uint32),
            np.array(job.prompts.offsets, np.int64),
            tokens,
            lengths,
            taken,
        ]
        task = _Job(
            len(job), job.first, job.limit, slots, job.key, job.start, job.end, s.temperature, s.top_p or 1.0,
            min(s.top_k or 0, self.shape.vocab), *(array.ctypes.data for array in held),
        )  # fmt: skip
        network = _Network(*(array.ctypes.data for array in self.arrays))
        with ThreadPoolExecutor(threads) as pool:
            calls = [pool.submit(self.library.decode, ctypes.byref(network), ctypes.byref(task)) for _ in range(threads)]
            try:
                statuses = {call.result() for call in calls}
            finally:
                taken[0] = STOP  # after an interruption threads end at their next step
        if NO_MEMORY in statuses:
            raise MemoryError
        if DIVERGED in statuses:
            raise ChainEndedError("diverged")
        return tokens, lengths

    def logits(self, tokens: Tokens) -> Singles:
        """Scores [len(tokens), vocab] of the token after each of a sequence's."""
        out = np.zeros((len(tokens), -(-self.shape.vocab // PANEL) * PANEL), np.float32)
        network = _Network(*(array.ctypes.data for array in self.arrays))
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (tokens, out))
        if self.library.score(ctypes.byref(network), len(tokens), *pointers) == NO_MEMORY:
            raise MemoryError
        return out[:, : self.shape.vocab]


def compiled(shape: Shape, weights: Weights) -> Compiled | None:
    """The network compiled; None where there is no compiler (gcc or clang) or what it makes cannot be loaded."""
    library = c_library.library("decode.c", tuple(constants(shape).items()))
    if library is None:
        return None
    maps = [*(linear for layer in weights.layers for linear in layer), weights.head]
    to_safetensors = _aligned(np.concatenate([_packed(linear) for linear in maps]))
    return Compiled(library, shape, (_aligned(weights.embedding), _aligned(weights.positions), to_safetensors))


def _packed(linear: Linear) -> Singles:
    """[columns / 32][1 + inputs][32], the bias first, columns filled up with zeros."""
    both = np.concatenate([linear[1][None], linear[0]])
    both = np.pad(both, ((0, 0), (0, -both.shape[1] % PANEL)))
    return np.ascontiguousarray(both.reshape(len(both), -1, PANEL).swapaxes(0, 1)).reshape(-1)


def _aligned(array: Array) -> Singles:
    room = np.empty(array.size + ALIGNED // 4, np.float32)
    first = -room.ctypes.data % ALIGNED // 4
    room[first : first + array.size] = array.reshape(-1)
    return room[first : first + array.size]


def constants(shape: Shape) -> dict[str, float]:
    """What decode.c is compiled for."""
    return {
        "LAYERS": shape.layers, "HIDDEN": shape.hidden, "HEADS": shape.heads, "KV_HEADS": shape.kv_heads or shape.heads,
        "HEAD": shape.head_size, "MLP": shape.mlp, "CONTEXT": shape.context, "VOCAB": shape.vocab,
        "LLAMA": int(shape.arch == "llama"), "EPSILON": shape.epsilon,
    }  # fmt: skip
