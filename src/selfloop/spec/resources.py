"""What a chain gets of a machine. It changes no number, so it is no part of the identity of results."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval

from selfloop.errors import SettingError, SpecError
from selfloop.settings import PositiveFloat, Settings

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Resources(Settings):
    """What one chain gets of a machine, in `[resources]`. It changes no number and no key."""

    cpus: Annotated[int | None, Interval(ge=1, le=10_000), "cores, its threads; default: by costs and machines"] = None
    gpus: Annotated[float | None, Ge(0), "GPUs, or a share of one; default: the family's, where there are GPUs"] = None
    memory_gb: Annotated[PositiveFloat | None, "memory in GB, which limits how many chains run at a time"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise SettingError("gpus", f"got {self.gpus}; expected a share of one GPU, or a whole number of them. Round it.")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as the variable CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return numbers if visible is None else [name for name in visible.split(",") if name not in ("", "-1")]


def share_gpus(gpus: Sequence[str], per_chain: float) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is for each chain that fits on these GPUs; empty for chains that need none."""
    if per_chain < 1:
        return [name for name in gpus for _ in range(int(1 / per_chain))] if per_chain else []
    size = int(per_chain)
    return [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]


def check_machine(resources: Resources, cores: int, gpus: Sequence[str]) -> None:
    """Raise SpecError if this machine has less than one chain needs."""
    memory = math.floor(memory_bytes() / GIGABYTE * 10) / 10
    for name, has, unit in (("cpus", cores, "cores"), ("gpus", len(gpus), "GPUs"), ("memory_gb", memory, "GB of memory")):
        if (asked := getattr(resources, name) or 0) > has:
            raise SpecError(
                f"resources.{name}: got {asked:g}; this machine has {has:g} {unit}. Lower it, or choose another machine."
            )


def memory_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that processes here may use: that of the machine, or less by the limit of a control group, as Slurm sets it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
            inside = Path(place.lstrip("/"))
            for group in (folder / inside, *(folder / parent for parent in inside.parents)):
                if (file := group / name).is_file() and (text := file.read_text().strip()).isdecimal():
                    limits.append(int(text))
    return min(limits)


def count_workers(resources: Resources, most: int, devices: Sequence[str]) -> int:
    """How many chains run here at a time, `most` at most, by their share of GPUs and by memory; 1 or more."""
    counts = [most, *([len(devices)] if devices else [])]
    if resources.memory_gb:
        counts.append(int(memory_bytes() / (resources.memory_gb * GIGABYTE)))
    return max(1, min(counts))
