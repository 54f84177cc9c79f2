"""C that is compiled on the user's machine, for one set of constants, and kept in the user's cache folder."""

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
WIDE = ("-mprefer-vector-width=512",)  # compilers avoid it for old processors that lower their clock


@lru_cache(maxsize=64)
def library(names: str, constants: tuple[tuple[str, float], ...]) -> ctypes.CDLL | None:
    """The C files "a.c b.c" beside this one, as one, constants as macros: compiled in a second or found in the cache.

    None where there is no compiler (cc, gcc or clang), or what it makes cannot be loaded.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    text = "\n".join(Path(__file__).with_name(source).read_text(encoding="utf-8") for source in names.split())
    wide = WIDE if platform.machine() in ("x86_64", "AMD64") else ()
    command = [compiler, *FLAGS, *wide, *(f"-D{name}={value}" for name, value in constants), "-x", "c", "-"]
    identity = repr((text, command, os.path.realpath(compiler), _processor()))
    name = f"{Path(names.split()[-1]).stem}-{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}.so"
    for folder in _folders():
        try:
            return _loaded(folder / name, command, text)
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _loaded(path: Path, command: list[str], text: str) -> ctypes.CDLL:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        subprocess.run([*command, "-o", str(part)], input=text.encode(), check=True, capture_output=True, timeout=300)
        os.replace(part, path)
    return ctypes.CDLL(str(path))


def _folders() -> Iterator[Path]:
    """Where compiled code may lie: the user's cache, else a fresh folder that nobody else can write to."""
    with suppress(RuntimeError):  # a user without a home
        yield Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache") / "selfloop"
    with tempfile.TemporaryDirectory() as folder:  # a loaded library stays when its file is gone
        yield Path(folder)


def _processor() -> str:
    """What -march=native depends on."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if facts.exists() else []
    wanted = (line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))
    return "\n".join([platform.machine(), platform.processor(), *wanted])
