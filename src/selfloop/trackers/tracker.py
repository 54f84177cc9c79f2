"""The interface of trackers: runs, their values by generation, and their ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from selfloop.errors import SettingError, missing_extra, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image

TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")
PROJECT = "selfloop"  # default name of the project or experiment that runs are listed in
FIRST_CHARACTERS = 8  # of an id, in the name of a run


def split_tracker(text: str) -> tuple[str, str]:
    """Name and target of a text such as `mlflow=sqlite:///runs.db`. Loads no tool; raises SelfloopError if it has none."""
    name, equals, target = str(text).partition("=")
    if name not in TRACKERS:
        raise SettingError("track", unknown_name("track", name, TRACKERS, "tracker").removeprefix("track: "))
    if not target and (equals or name == "tensorboard"):
        example = "tensorboard=runs" if name == "tensorboard" else f"{name}=..., or {name} alone"
        raise SettingError("track", f"got {text!r}, whose target is empty; expected one, such as {example}.")
    if find_spec(name) is None:
        raise missing_extra(f"track: {name!r}", name)
    return name, target


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One chain, or all chains of a policy at a point. Equal settings, seeds and data have equal ids."""

    id: str
    label: str  # policy and seed in words
    group: str  # family and source
    config: Mapping[str, bool | int | float | str]

    @property
    def name(self) -> str:
        """A name of its own among all runs."""
        return f"{self.label}, {self.id[:FIRST_CHARACTERS]}"


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The end of a run, after its last generation: answers of criteria and the status, pictures, texts."""

    generation: int
    summary: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Image] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


class Tracker(ABC):
    """Writes runs to one tool. It receives stored values again at every run, and must not double them."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.runs: dict[str, Any] = {}  # the tool's own, while they are open

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """Create the run, or open it again."""

    @abstractmethod
    def log(self, run: TrackedRun, generation: int, values: Mapping[str, float]) -> None:
        """Write the values of one generation."""

    @abstractmethod
    def finish(self, run: TrackedRun, end: RunEnd | None) -> None:
        """Write the end of the run and close it; None if it was interrupted."""
