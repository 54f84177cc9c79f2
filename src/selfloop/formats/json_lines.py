"""Values as JSON, and measurements and verdicts as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfloop.types import Measurement, Verdict


def measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    """A measurement as the object of a JSON line; `status` only if there is one, coordinates as further keys."""
    line = measurement._asdict()
    coordinates = line.pop("coordinates")
    if measurement.status is None:
        del line["status"]
    return {**line, **dict(coordinates)}


def to_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses and coordinates as objects, arrays and sets as lists, numbers not finite as null."""
    import numpy as np

    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_json(dict(item) if key == "coordinates" else item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_line(value: Any) -> str:
    return json.dumps(to_json(value), allow_nan=False) + "\n"


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a JSON object, with coordinates as further keys; a value that is not finite is None."""
    line = to_json(verdict)
    coordinates = line.pop("coordinates")
    return {**line, **coordinates}


def write_measurements(
    measurements: Iterable[Measurement], write: Callable[[str], object], verdicts: Iterable[Verdict] = ()
) -> None:
    """One JSON object per line: every measurement, then every verdict as `{"verdict": {...}}`."""
    for measurement in measurements:
        write(json.dumps(measurement_to_json(measurement)) + "\n")
    for verdict in verdicts:
        write(json.dumps({"verdict": verdict_to_json(verdict)}) + "\n")
