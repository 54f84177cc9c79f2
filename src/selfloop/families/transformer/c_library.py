"""C code that is compiled on the user's machine for one set of constants and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC", "-std=gnu11")
WIDE_VECTOR_FLAGS = ("-mprefer-vector-width=512",)  # compilers avoid them because old processors lower their clock for them
COMPILE_SECONDS = 300  # after which a compiler is stopped


@lru_cache(maxsize=64)
def load_c_library(source: str, constants: tuple[tuple[str, float], ...]) -> ctypes.CDLL | None:
    """The C file beside this module with constants as macros, compiled in about a second or found in the cache.

    None if the machine has no compiler (cc, gcc or clang) or if the compiled library cannot be loaded.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    path = Path(__file__).with_name(source)
    texts = [file.read_bytes() for file in (path, *sorted(path.parent.glob("*.h")))]
    flags = (*FLAGS, *(WIDE_VECTOR_FLAGS if platform.machine() in ("x86_64", "AMD64") else ()))
    command = [compiler, *flags, *(f"-D{name}={value}" for name, value in constants), str(path)]
    identity = repr((texts, command[:-1], os.path.realpath(compiler), _describe_processor()))
    name = f"{path.stem}-{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}.so"
    for folder in _cache_folders():
        try:
            return _compile_and_load(folder / name, command)
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _compile_and_load(path: Path, command: list[str]) -> ctypes.CDLL:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        subprocess.run([*command, "-o", str(part)], check=True, capture_output=True, timeout=COMPILE_SECONDS)
        os.replace(part, path)
    return ctypes.CDLL(str(path))


def _cache_folders() -> Iterator[Path]:
    """Folders for compiled code: the user's cache, else a new folder that nobody else can write to."""
    with suppress(RuntimeError):  # a user without a home
        yield Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache") / "selfloop"
    with tempfile.TemporaryDirectory() as folder:  # a loaded library stays when its file is deleted
        yield Path(folder)


def _describe_processor() -> str:
    """The properties that -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    properties = (line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))
    return "\n".join([platform.machine(), platform.processor(), *properties])
