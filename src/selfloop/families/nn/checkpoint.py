"""The state of an unfinished fit on disk: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], identity: str, step: int) -> None:
    """Write the state after `step` steps; whoever reads finds the old file or the new one, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for last in (False, False, True):  # who finishes the same stage removes the folder, at whatever moment: then once more
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(contiguous, part, metadata={"identity": identity, "step": str(step)})
            os.replace(part, path)
            return
        except (SafetensorError, OSError) as problem:
            part.unlink(missing_ok=True)
            if last:
                raise OSError(f"{path}: {problem}") from problem


def load(path: Path, identity: str) -> tuple[int, dict[str, Tensor]] | None:
    """Steps done and tensors of the fit with that identity; None when there is no such file or it is damaged."""
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()  # once: `safe_open` opens the name again for the tensors, and another process may replace it
        tensors = load_tensors(data)
        facts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    except (SafetensorError, OSError, KeyError):
        return None
    return (int(facts["step"]), tensors) if facts["identity"] == identity else None
