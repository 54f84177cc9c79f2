"""Measurements and verdicts as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from selfloop.types import Measurement, Verdict


def measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    """A measurement as the object of a JSON line; `status` only if there is one, coordinates as further keys."""
    line = measurement._asdict()
    coordinates = line.pop("coordinates")
    if measurement.status is None:
        del line["status"]
    return {**line, **dict(coordinates)}


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a JSON object, with coordinates as further keys; a value that is not finite is None."""
    line = asdict(verdict)
    coordinates = dict(line.pop("coordinates"))
    return {**{name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}, **coordinates}


def write_measurements(
    measurements: Iterable[Measurement], write: Callable[[str], object], verdicts: Iterable[Verdict] = ()
) -> None:
    """One JSON object per line: every measurement, then every verdict as `{"verdict": {...}}`."""
    for measurement in measurements:
        write(json.dumps(measurement_to_json(measurement)) + "\n")
    for verdict in verdicts:
        write(json.dumps({"verdict": verdict_to_json(verdict)}) + "\n")
