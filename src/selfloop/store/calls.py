"""Calls of stored steps, and their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepCall:
    """One call of a stored step, complete enough to compute it again."""

    key: str
    step: Callable[..., Any]
    arguments: tuple[Any, ...]


class NotStoredError(Exception):
    """A read-only store has no result of a call."""

    def __init__(self, call: StepCall) -> None:
        super().__init__(call.key)
        self.call = call


@dataclass(slots=True)
class Usage:
    """Steps that a run computed and reused, and their cost."""

    computed: int = 0
    reused: int = 0
    seconds: float = 0.0  # of computed steps
    seconds_saved: float = 0.0  # that the reused steps took when they were computed
    bytes: int = 0  # of arrays written
    keys: set[str] = field(default_factory=set)  # of the records of all steps
    by_step: dict[str, tuple[int, float]] = field(default_factory=dict)  # name -> (computed, seconds)
    warnings: dict[str, None] = field(default_factory=dict)  # of computed and reused steps, each once
    backends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (purpose, backend) -> records

    def add(self, other: Usage) -> None:
        """Add the usage of another run."""
        for name in ("computed", "reused", "seconds", "seconds_saved", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for step, (count, seconds) in other.by_step.items():
            before = self.by_step.get(step, (0, 0.0))
            self.by_step[step] = (before[0] + count, before[1] + seconds)
        self.keys |= other.keys
        self.warnings |= other.warnings
        self.backends.update(other.backends)
