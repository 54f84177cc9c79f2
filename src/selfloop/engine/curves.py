"""Measured numbers by the array: what rows are when there are many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from selfloop.types import Array, Floats, Measurement, Params

Coordinates = tuple[tuple[str, object], ...]
VALUE, ABSENT = 0, 1  # codes: there is a value; there is no row (the chain had ended). Others are places in `statuses`
STATUSES = ("", "no row")
NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class SeedMeasurements:
    """One metric of many chains at one generation; as an iterable, its rows."""

    policy: str
    seeds: Sequence[int]
    generation: int
    metric: str
    values: Floats  # one per seed
    ended: Mapping[int, str | None]  # chains without a value, by position: why they end here, None if they had before

    def __iter__(self) -> Iterator[Measurement]:
        for s, (seed, value) in enumerate(zip(self.seeds, self.values.tolist(), strict=True)):
            if s not in self.ended:
                finite = math.isfinite(value)
                status = None if finite else NOT_FINITE
                yield Measurement(self.policy, seed, self.generation, self.metric, value if finite else None, status)
            elif self.ended[s] is not None:
                yield Measurement(self.policy, seed, self.generation, self.metric, None, self.ended[s])


@dataclass(slots=True)
class Curves:
    """Every metric of the chains of one policy: (seeds, generations) values, and a code for each of what it is."""

    seeds: Sequence[int]
    generations: int
    values: dict[str, Floats] = field(default_factory=dict)  # NaN where there is no value
    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=lambda: list(STATUSES))

    def of(self, metric: str) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Values and codes of a metric, made on first sight."""
        if metric not in self.values:
            shape = len(self.seeds), self.generations
            self.values[metric] = np.full(shape, np.nan)
            self.codes[metric] = np.full(shape, ABSENT, np.uint8)
        return self.values[metric], self.codes[metric]

    def code(self, status: str | None) -> int:
        """The code of a status; None is the code of a value."""
        if status is None:
            return VALUE
        if status not in self.statuses:
            self.statuses.append(status)
        return self.statuses.index(status)

    def put(self, row: Measurement, place: int) -> None:
        """Enter one row; `place` is its seed's position."""
        values, codes = self.of(row.metric)
        values[place, row.generation - 1] = np.nan if row.value is None else row.value
        codes[place, row.generation - 1] = self.code(row.status)

    def enter(self, measured: SeedMeasurements) -> None:
        """Enter one generation of one metric of all chains."""
        values, codes = self.of(measured.metric)
        finite = np.isfinite(measured.values)
        values[:, measured.generation - 1] = np.where(finite, measured.values, np.nan)
        column = codes[:, measured.generation - 1]
        column[:] = VALUE
        if not finite.all():
            column[~finite] = self.code(NOT_FINITE)
        for s, status in measured.ended.items():
            values[s, measured.generation - 1] = np.nan
            column[s] = ABSENT if status is None else self.code(status)

    def merge(self, other: Curves) -> None:
        """Enter the chains of another block that are among these seeds."""
        theirs = {seed: s for s, seed in enumerate(other.seeds)}
        ours = [s for s, seed in enumerate(self.seeds) if seed in theirs]
        rows = [theirs[self.seeds[s]] for s in ours]
        recode = np.array([VALUE, ABSENT, *(self.code(status) for status in other.statuses[2:])], np.uint8)
        for metric in other.values:
            values, codes = self.of(metric)
            values[ours] = other.values[metric][rows]
            codes[ours] = recode[other.codes[metric][rows]]

    def pack(self) -> dict[str, Array]:
        """As plain arrays, for the store."""
        words = {"metrics": _as_bytes(self.values), "statuses": _as_bytes(self.statuses)}
        return {**self.values, **{f"status/{name}": codes for name, codes in self.codes.items()}, **words}

    @staticmethod
    def unpack(arrays: Params, seeds: Sequence[int]) -> Curves:
        """From plain arrays."""
        metrics = _as_words(arrays["metrics"])
        values = {name: np.asarray(arrays[name], np.float64) for name in metrics}
        generations = next(iter(values.values())).shape[1]
        codes = {name: np.asarray(arrays[f"status/{name}"], np.uint8) for name in metrics}
        return Curves(seeds, generations, values, codes, _as_words(arrays["statuses"]))

    def rows(self, label: str, coordinates: Coordinates, derived: Mapping[str, Sequence[float]]) -> Iterator[Measurement]:
        """Every row, seed by seed and generation by generation; `derived` metrics have one value per generation."""
        columns = [(name, self.values[name].tolist(), self.codes[name].tolist()) for name in self.values]
        for s, seed in enumerate(self.seeds):
            for t in range(self.generations):
                any_row = False
                for name, values, codes in columns:
                    if (code := codes[s][t]) != ABSENT:
                        any_row, value = True, values[s][t]
                        yield Measurement(
                            label, seed, t + 1, name, None if code else value, self.statuses[code] or None, coordinates
                        )
                if any_row:
                    for name, numbers in derived.items():
                        yield Measurement(label, seed, t + 1, name, numbers[t], None, coordinates)


def _as_bytes(words: Iterable[str]) -> Array:
    return np.frombuffer("\n".join(words).encode(), np.uint8)


def _as_words(array: Array) -> list[str]:
    return bytes(np.asarray(array)).decode().split("\n")
