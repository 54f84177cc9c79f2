"""The state of an unfinished fit on disk: one safetensors file, replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], identity: str, step: int) -> None:
    """Write the state after `step` steps; whoever reads finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, part, metadata={"identity": identity, "step": str(step)})
        os.replace(part, path)
    except (SafetensorError, FileNotFoundError) as problem:
        if path.parent.is_dir():
            raise OSError(f"{path}: {problem}") from problem
        # else another process finished this fit and removed the folder: nothing is left to be safe from
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, identity: str) -> tuple[int, dict[str, Tensor]] | None:
    """Steps done and tensors of the fit with that identity; None when there is no such file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("identity") != identity:
                return None
            return int(facts["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError):
        return None
