"""Models and batches of many chains."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfloop.columns import Bools, Columns, Floats, Params
from selfloop.formats.safetensors import NamedArrays
from selfloop.protocols import SufficientStatistics


@dataclass(slots=True)
class EnsembleModel:
    """The models of one generation of many chains."""

    params: Params
    ended: dict[int, tuple[int, str]]  # position in the block -> (generation, status)


@dataclass(slots=True)
class EnsembleBatch:
    """One batch of many chains: its rows or its statistics, and results that the family keeps about it."""

    rows: Columns = field(default_factory=NamedArrays)
    statistics: SufficientStatistics = field(default_factory=dict)
    cache: dict[str, object] = field(default_factory=dict)
    row_weights: Floats | None = None  # as in EnsembleTake
    starved: Bools | None = None  # seeds with too few curated rows
    synthetic: bool = False
