"""Output files, written beside their place and then moved there: a failure leaves yesterday's file as it was."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from selfloop.errors import SelfloopError, SpecError, os_error_reason


def check_outputs(outputs: Mapping[str, Path | str | None], inputs: Iterable[Path] = ()) -> None:
    """Raise SpecError before the run for files that cannot be written, or would replace an input or another output."""
    used_files = {file.resolve() for file in inputs}
    for option, target in outputs.items():
        if target is None or target == "-":
            continue
        path = Path(target).resolve()
        if path.is_dir():
            raise SpecError(f"{option} {target}: is a folder. Choose another file.")
        if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise SpecError(f"{option} {target}: cannot be written. Choose a file in an existing folder.")
        if used_files & {path, *path.parents}:
            raise SpecError(f"{option} {target}: is the spec, belongs to its data, or is written already. Choose another file.")
        used_files.add(path)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which is moved to `path` at the end of the block, or removed if the block fails.

    It has the suffix of `path`. A pipe, a device, or a file in a folder that takes no other is written directly. Raises
    SelfloopError, with the name of the file, if it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link to the new file
    alone = target.is_file() and not os.access(target.parent, os.W_OK)
    direct = alone or (target.exists() and not target.is_file() and not target.is_dir())
    beside = target if direct else target.with_name(f".selfloop-{secrets.token_hex(8)}{target.suffix}")
    try:
        yield beside
        if not direct:
            if target.is_file():
                shutil.copymode(target, beside)
            os.replace(beside, target)
    except OSError as problem:
        if problem.filename is not None and str(beside) not in str(problem.filename):  # of another file, read in the block
            raise
        raise SelfloopError(f"{path}: cannot be written ({os_error_reason(problem)}). Choose another place.") from problem
    finally:
        if not direct:
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def write_bytes(path: str | Path, *chunks: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    with replace_file(path) as beside, beside.open("wb") as file:
        file.writelines(chunks)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode())
