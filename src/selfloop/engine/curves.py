"""Measurements as arrays: one value per seed and generation, and a code for each value that is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from selfloop.columns import Array, Floats, Params
from selfloop.types import Coordinates, Measurement

VALUE, NO_MEASUREMENT = 0, 1  # codes: a value; the chain had ended before. Other codes are positions in `statuses`
STATUSES = ("", "no measurement")
NOT_FINITE = "not_finite"
NOT_COMPUTED = "not_computed"  # status of generations that a run which is not finished lacks
TRIVIAL = "_trivial"  # end of the name of a risk of the trivial model, which has one value per chain, at generation 1


@dataclass(frozen=True, slots=True)
class SeedMeasurements:
    """One metric of many chains at one generation."""

    policy: str
    seeds: Sequence[int]
    generation: int
    metric: str
    values: Floats  # one per seed
    ended: Mapping[int, str | None]  # by position: status of a chain that ends here, None for one that ended before


@dataclass(slots=True)
class Curves:
    """Every metric of the chains of one policy: values (seeds, generations), and a code per value."""

    seeds: Sequence[int]
    generations: int
    values: dict[str, Floats] = field(default_factory=dict)  # NaN without a value
    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=lambda: list(STATUSES))

    def arrays(self, metric: str) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Values and codes of a metric, created when it is first named."""
        if metric not in self.values:
            shape = len(self.seeds), self.generations
            self.values[metric] = np.full(shape, np.nan)
            self.codes[metric] = np.full(shape, NO_MEASUREMENT, np.uint8)
        return self.values[metric], self.codes[metric]

    def code(self, status: str | None) -> int:
        """The code of a status; None is the code of a value."""
        if status is None:
            return VALUE
        if status not in self.statuses:
            self.statuses.append(status)
        return self.statuses.index(status)

    def count_ended(self, metric: str) -> int:
        """How many chains end with a status instead of a value of this metric."""
        ends = [code for code, status in enumerate(self.statuses) if status not in (*STATUSES, NOT_FINITE, NOT_COMPUTED)]
        return int(np.isin(self.codes[metric], ends).any(axis=1).sum()) if metric in self.codes else 0

    def add(self, measurement: Measurement, position: int) -> None:
        """Add one measurement; `position` is that of its seed."""
        values, codes = self.arrays(measurement.metric)
        values[position, measurement.generation - 1] = np.nan if measurement.value is None else measurement.value
        codes[position, measurement.generation - 1] = self.code(measurement.status)

    def add_seeds(self, measured: SeedMeasurements) -> None:
        """Add one generation of one metric of all chains."""
        values, codes = self.arrays(measured.metric)
        finite = np.isfinite(measured.values)
        values[:, measured.generation - 1] = np.where(finite, measured.values, np.nan)
        column = codes[:, measured.generation - 1]
        column[:] = VALUE
        if not finite.all():
            column[~finite] = self.code(NOT_FINITE)
        for s, status in measured.ended.items():
            values[s, measured.generation - 1] = np.nan
            column[s] = NO_MEASUREMENT if status is None else self.code(status)

    def merge(self, other: Curves) -> None:
        """Add the measurements of other curves' chains that are among these seeds."""
        other_positions = {seed: s for s, seed in enumerate(other.seeds)}
        positions = [s for s, seed in enumerate(self.seeds) if seed in other_positions]
        rows = [other_positions[self.seeds[s]] for s in positions]
        recode = np.array([VALUE, NO_MEASUREMENT, *(self.code(status) for status in other.statuses[2:])], np.uint8)
        for metric in other.values:
            values, codes = self.arrays(metric)
            new_codes = recode[other.codes[metric][rows]]
            measured = new_codes != NO_MEASUREMENT
            values[positions] = np.where(measured, other.values[metric][rows], values[positions])
            codes[positions] = np.where(measured, new_codes, codes[positions])

    def pack(self) -> dict[str, Array]:
        """The curves as plain arrays, for the store."""
        names = {"metrics": _to_bytes(self.values), "statuses": _to_bytes(self.statuses)}
        return {**self.values, **{f"status/{name}": codes for name, codes in self.codes.items()}, **names}

    @staticmethod
    def unpack(arrays: Params, seeds: Sequence[int]) -> Curves:
        metrics = _from_bytes(arrays["metrics"])
        values = {name: np.asarray(arrays[name], np.float64) for name in metrics}
        generations = next(iter(values.values())).shape[1]
        codes = {name: np.asarray(arrays[f"status/{name}"], np.uint8) for name in metrics}
        return Curves(seeds, generations, values, codes, _from_bytes(arrays["statuses"]))

    def measurements(
        self, policy: str, coordinates: Coordinates, derived: Mapping[str, Sequence[float]]
    ) -> Iterator[Measurement]:
        """Every measurement, seed by seed and generation by generation; `derived` has one value per generation."""
        columns = [(name, self.values[name].tolist(), self.codes[name].tolist()) for name in self.values]
        measured = (np.array([*self.codes.values()]) != NO_MEASUREMENT).any(axis=0)
        for s, t in np.argwhere(measured).tolist():
            for name, values, codes in columns:
                if (code := codes[s][t]) != NO_MEASUREMENT:
                    value, status = (None, self.statuses[code]) if code else (values[s][t], None)
                    yield Measurement(policy, self.seeds[s], t + 1, name, value, status, coordinates)
            for name, numbers in derived.items():
                yield Measurement(policy, self.seeds[s], t + 1, name, numbers[t], None, coordinates)


def _to_bytes(names: Iterable[str]) -> Array:
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def _from_bytes(array: Array) -> list[str]:
    return bytes(np.asarray(array)).decode().split("\n")
