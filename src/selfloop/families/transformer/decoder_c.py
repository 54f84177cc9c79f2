"""The decoder in C, compiled on the user's machine for a network's shape and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from selfloop.columns import Array, Ints, Ragged
from selfloop.errors import ChainEndedError
from selfloop.families.lazy import decoder_torch, torch
from selfloop.families.transformer import decoder
from selfloop.families.transformer.text_sampler import TextSampler

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC", "-std=gnu11")
WIDE_VECTOR_FLAGS = ("-mprefer-vector-width=512",)  # compilers avoid them because old processors lower their clock for them
COMPILE_SECONDS = 120  # after which a compiler, or the test of its library, is stopped
PANEL_COLS = 32  # columns of packed weights that are stored together, as in decoder.c
ALIGNMENT_BYTES = 64
OK, NOT_FINITE, NO_MEMORY = range(3)  # status codes of decoder.c
STOP = -(1 << 62)
TEST_ROWS, TEST_TOKENS, TEST_TOLERANCE = 4, 12, 1e-3  # of a compiled library; probability that a draw may be off
MAX_SLOTS = 32  # of a thread: the keys and values of more rows do not fit into the processor's caches


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_DecoderWeights = _structure("DecoderWeights", embedding=ctypes.c_void_p, positions=ctypes.c_void_p, layers=ctypes.c_void_p)
_DecodeRequest = _structure(
    "DecodeRequest", n_rows=ctypes.c_int64, max_tokens=ctypes.c_int64, n_slots=ctypes.c_int64, end=ctypes.c_uint32,
    temperature=ctypes.c_double, top_p=ctypes.c_double, top_k=ctypes.c_int64, uniforms=ctypes.c_void_p, starts=ctypes.c_void_p,
    prompts=ctypes.c_void_p, offsets=ctypes.c_void_p, tokens=ctypes.c_void_p, lengths=ctypes.c_void_p, next_row=ctypes.c_void_p,
)  # fmt: skip


class _CompilerError(Exception):
    """A compiler failed, or its library gives wrong results; the reason in a few words."""


@dataclass(frozen=True)
class CDecoder:
    """A network that is ready to decode. The bits of a row depend on that row alone, not on slots, threads or other rows."""

    library: ctypes.CDLL
    config: decoder.TransformerConfig
    arrays: tuple[decoder.Float32s, decoder.Float32s, decoder.Float32s]  # embedding, positions, packed layers

    def decode(self, request: decoder.DecodeRequest, threads: int) -> tuple[decoder.Tokens, Ints]:
        """Tokens (rows, max_tokens) and lengths of the rows; ChainEndedError("diverged") if logits are not finite."""
        tokens, lengths = np.zeros((len(request), request.max_tokens), np.uint32), np.zeros(len(request), np.int64)
        next_row = np.zeros(1, np.int64)
        uniforms, starts = request.uniforms(), np.array(request.starts, np.uint32)
        prompts, offsets = np.array(request.prompts.values, np.uint32), np.array(request.prompts.offsets, np.int64)
        s, slots = request.sampler, min(-(-min(request.sampler.batch_size, len(request)) // threads), MAX_SLOTS)
        c_request = _DecodeRequest(
            len(request), request.max_tokens, slots, request.end, s.temperature, s.top_p or 1.0,
            min(s.top_k or 0, self.config.vocab),
            *(array.ctypes.data for array in (uniforms, starts, prompts, offsets, tokens, lengths, next_row)),
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


def try_c_decoder(config: decoder.TransformerConfig, weights: decoder.DecoderWeights) -> CDecoder | None:
    """The decoder compiled for a network; None if there is no compiler, or with a warning if it does not work."""
    library = load_decoder(config)
    return None if library is None else _decoder(library, config, weights)


@lru_cache(maxsize=64)
def load_decoder(config: decoder.TransformerConfig) -> ctypes.CDLL | None:
    """decoder.c with a network's shape as macros, compiled in about a second and tested, or found in the cache.

    None without a compiler (cc, gcc or clang). None, with a warning, if the compiler fails or if its library fails the test.
    The name of a file in the cache has a digest of its source and machine, and one of its content, which is checked. Folders
    and files that another user could have written are not used.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    path = Path(__file__).with_name("decoder.c")
    texts = [file.read_bytes() for file in (path, *sorted(path.parent.glob("*.h")))]
    flags = (*FLAGS, *(WIDE_VECTOR_FLAGS if platform.machine() in ("x86_64", "AMD64") else ()))
    command = [compiler, *flags, *(f"-D{name}={value}" for name, value in compile_constants(config).items()), str(path)]
    identity = repr((texts, command[:-1], os.path.realpath(compiler), _describe_processor()))
    name = f"{path.stem}-{_digest(identity.encode())}"
    for folder in _cache_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_private(folder):
                return _find(folder, name) or _compile(folder, name, command, config)
        except OSError:
            continue
        except _CompilerError as problem:
            warnings.warn(f"sampling uses torch, which is slower: {compiler} {problem}", stacklevel=2)
            return None
    warnings.warn("sampling uses torch, which is slower: no folder can hold compiled code", stacklevel=2)
    return None


def is_private(path: Path) -> bool:
    """True for a file or folder, not a link, that only this user can write."""
    status = path.lstat()
    return not stat.S_ISLNK(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _find(folder: Path, name: str) -> ctypes.CDLL | None:
    """The library in a folder; damaged ones, and what processes left that were killed while compiling, are deleted."""
    for path in folder.glob("*.part"):  # a folder, or a file of an older version
        with suppress(OSError):  # another process has just deleted it
            if time.time() - path.lstat().st_mtime > 2 * COMPILE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(f"{name}-*.so"):
        if is_private(path) and path.name == f"{name}-{_digest(path.read_bytes())}.so":
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    return None


def _compile(folder: Path, name: str, command: list[str], config: decoder.TransformerConfig) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(".part", f"{name}.", folder) as new_folder:
        library = Path(new_folder, "library.so")
        if run_for([*command, "-o", str(library)], COMPILE_SECONDS) != 0 or not library.is_file():
            raise _CompilerError("cannot compile")
        library.chmod(0o700)  # whatever the umask
        if not _passes_test(config, library):
            raise _CompilerError("compiles wrong code")
        path = folder / f"{name}-{_digest(library.read_bytes())}.so"
        os.replace(library, path)
    return ctypes.CDLL(str(path))


def run_for(command: list[str], seconds: float, output: IO[bytes] | int = subprocess.DEVNULL) -> int | None:
    """Exit status of a command; None if it did not end in time. Then it is killed with its children."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=output, stderr=null, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _cache_folders() -> Iterator[Path]:
    """Folders for compiled code: the user's cache, else a new folder that nobody else can write to."""
    with suppress(RuntimeError):  # a user without a home
        yield Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache") / "selfloop"
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:  # a loaded library stays when its file is deleted
        yield Path(folder)


def _describe_processor() -> str:
    """The properties that -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    properties = (line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))
    return "\n".join([platform.machine(), platform.processor(), *properties])


def _decoder(library: ctypes.CDLL, config: decoder.TransformerConfig, weights: decoder.DecoderWeights) -> CDecoder:
    layers = [*(dense for layer in weights.layers for dense in layer), weights.head]
    packed = _align(np.concatenate([_pack_dense(dense) for dense in layers]))
    return CDecoder(library, config, (_align(weights.embedding), _align(weights.positions), packed))


def _passes_test(config: decoder.TransformerConfig, path: Path) -> bool:
    """True if a library draws tokens from torch's probabilities. It runs in another process, which it may crash or stop."""
    code = f"from {__name__} import decode_test_rows; decode_test_rows({asdict(config)!r}, {str(path)!r})"
    with tempfile.TemporaryFile() as file:
        if run_for([sys.executable, "-c", code], COMPILE_SECONDS, file) != 0:
            return False
        file.seek(0)
        rows = np.frombuffer(file.read(), np.uint32).astype(np.int64)
    weights, request = _test_case(config)
    if rows.size != len(request) * request.max_tokens or rows.max() >= config.vocab:
        return False
    rows, network = (
        rows.reshape(len(request), -1),
        decoder_torch.TorchDecoder(config, weights, len(request), torch.device("cpu")),
    )
    inputs, indices = np.column_stack([request.starts, rows]), request.numbers
    for position in range(request.max_tokens):
        positions = np.full(len(request), position)
        p = network.step(torch.from_numpy(inputs[:, position]), torch.from_numpy(positions)).double().softmax(-1).numpy()
        ends, u = p.cumsum(-1)[indices, rows[:, position]], request.uniforms()[:, position]
        if np.maximum(ends - p[indices, rows[:, position]] - u, u - ends).max() > TEST_TOLERANCE:
            return False
    return True


def decode_test_rows(config: dict[str, Any], path: str) -> None:
    """Write the tokens that a library draws for the test to standard output."""
    shape = decoder.TransformerConfig(**config)
    weights, request = _test_case(shape)
    tokens, _ = _decoder(ctypes.CDLL(path), shape, weights).decode(request, 1)
    sys.stdout.buffer.write(tokens.tobytes())


def _test_case(config: decoder.TransformerConfig) -> tuple[decoder.DecoderWeights, decoder.DecodeRequest]:
    """A random network, and a few rows without an end token."""
    rng, c = np.random.default_rng(0), config

    def dense(inputs: int, outputs: int) -> decoder.DenseLayer:
        return rng.standard_normal((inputs, outputs), np.float32) / np.float32(inputs**0.5), np.zeros(outputs, np.float32)

    qkv, up = (c.heads + 2 * (c.kv_heads or c.heads)) * c.head_size, c.mlp_hidden * (2 if c.arch == "llama" else 1)
    shapes = [(c.hidden, qkv), (c.hidden, c.hidden), (c.hidden, up), (c.mlp_hidden, c.hidden)]
    layers = [[dense(*shape) for shape in shapes] for _ in range(c.layers)]
    positions = decoder.rotary_table(c) if c.arch == "llama" else dense(c.context, c.hidden)[0]
    weights = decoder.DecoderWeights(
        dense(c.vocab, c.hidden)[0] * np.float32(c.vocab**0.5), positions, layers, dense(c.hidden, c.vocab)
    )
    prompts = Ragged(np.zeros(0, np.uint32), np.zeros(TEST_ROWS + 1, np.int64))
    rows = np.arange(TEST_ROWS)
    return weights, decoder.DecodeRequest(rows, rows * 0, prompts, 1, c.vocab, min(c.context, TEST_TOKENS), TextSampler())


def _pack_dense(dense: decoder.DenseLayer) -> decoder.Float32s:
    """(columns / 32, 1 + inputs, 32): the bias first, columns padded with zeros."""
    both = np.concatenate([dense[1][None], dense[0]])
    both = np.pad(both, ((0, 0), (0, -both.shape[1] % PANEL_COLS)))
    return np.ascontiguousarray(both.reshape(len(both), -1, PANEL_COLS).swapaxes(0, 1)).reshape(-1)


def _align(array: Array) -> decoder.Float32s:
    buffer = np.empty(array.size + ALIGNMENT_BYTES // 4, np.float32)
    first = -buffer.ctypes.data % ALIGNMENT_BYTES // 4
    buffer[first : first + array.size] = array.reshape(-1)
    return buffer[first : first + array.size]


def compile_constants(config: decoder.TransformerConfig) -> dict[str, float]:
    """Macros that decoder.c is compiled with."""
    return {
        "LAYERS": config.layers, "HIDDEN_DIM": config.hidden, "HEADS": config.heads,
        "KV_HEADS": config.kv_heads or config.heads, "HEAD_DIM": config.head_size, "MLP_DIM": config.mlp_hidden,
        "CONTEXT": config.context, "VOCAB": config.vocab, "LLAMA": int(config.arch == "llama"), "EPSILON": config.epsilon,
    }  # fmt: skip
