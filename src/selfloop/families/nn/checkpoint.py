"""The state of an unfinished fit on disk: a safetensors file with a digest at its end, replaced atomically.

It names its folder, whose name is the key of the step: the key covers the training rows, the family and the initial model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import blake2b, file_digest
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], identity: str, step: int) -> None:
    """Write the state after `step` steps. A reader gets the old file or the new file, never a mixture."""
    partial = path.with_name(f"{path.name}.part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, partial, metadata={"identity": f"{path.parent.name} {identity}", "step": str(step)})
        with partial.open("r+b") as file:
            file.write(file_digest(file, blake2b).digest())
        os.replace(partial, path)
    except (SafetensorError, OSError) as problem:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: {problem}") from problem


def load(path: Path, identity: str) -> tuple[int, dict[str, Tensor]] | None:
    """Steps done and tensors of the fit with that identity; None if there is no such file or a byte of it was changed."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    size = len(data) - blake2b().digest_size
    if size < 0 or blake2b(memoryview(data)[:size]).digest() != data[size:]:
        return None
    data = data[:size]
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return (int(metadata["step"]), load_tensors(data)) if metadata["identity"] == f"{path.parent.name} {identity}" else None
