"""The interface of trackers: runs, their values by generation, and their ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

PROJECT = "selfloop"  # default name of the project or experiment that runs are listed in
FIRST_CHARACTERS = 8  # of an id, in the name of a run


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
