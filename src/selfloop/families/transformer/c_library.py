"""C code that is compiled on the user's machine for one set of constants and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC", "-std=gnu11")
WIDE_VECTOR_FLAGS = ("-mprefer-vector-width=512",)  # compilers avoid them because old processors lower their clock for them
COMPILE_SECONDS = 120  # after which a compiler is stopped


class _CompilerError(Exception):
    """A compiler failed, or its library gives wrong results; the reason in a few words."""


def load_c_library(source: str, constants: Mapping[str, float], passes_test: Callable[[Path], bool]) -> ctypes.CDLL | None:
    """The C file beside this module with constants as macros, compiled in about a second or found in the cache.

    None without a compiler (cc, gcc or clang). None, with a warning, if the compiler fails or if its library fails the test.
    The name of a file in the cache has a digest of its source and machine, and one of its content, which is checked. Folders
    and files that another user could have written are not used.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or os.name != "posix":
        return None
    path = Path(__file__).with_name(source)
    texts = [file.read_bytes() for file in (path, *sorted(path.parent.glob("*.h")))]
    flags = (*FLAGS, *(WIDE_VECTOR_FLAGS if platform.machine() in ("x86_64", "AMD64") else ()))
    command = [compiler, *flags, *(f"-D{name}={value}" for name, value in constants.items()), str(path)]
    identity = repr((texts, command[:-1], os.path.realpath(compiler), _describe_processor()))
    name = f"{path.stem}-{_digest(identity.encode())}"
    for folder in _cache_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_private(folder):
                return _find(folder, name) or _compile(folder, name, command, passes_test)
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
    """The library in a folder; damaged ones, and what compilers left that were killed, are deleted."""
    for path in folder.glob("*.part"):
        if time.time() - path.lstat().st_mtime > 2 * COMPILE_SECONDS:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{name}-*.so"):
        if is_private(path) and path.name == f"{name}-{_digest(path.read_bytes())}.so":
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    return None


def _compile(folder: Path, name: str, command: list[str], passes_test: Callable[[Path], bool]) -> ctypes.CDLL:
    part = folder / f"{name}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        if run_for([*command, "-o", str(part)], COMPILE_SECONDS) != 0 or not part.is_file():
            raise _CompilerError("cannot compile")
        part.chmod(0o700)  # whatever the umask
        if not passes_test(part):
            raise _CompilerError("compiles wrong code")
        path = folder / f"{name}-{_digest(part.read_bytes())}.so"
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
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
