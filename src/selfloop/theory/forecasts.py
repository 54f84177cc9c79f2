"""Forecasts of the policies of a point, with the exact law of each where one applies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from selfloop.columns import Floats
from selfloop.component import Policy
from selfloop.errors import SelfloopError, SpecError, shown
from selfloop.spec.point import Point
from selfloop.stats.forecast import Forecast, forecast
from selfloop.theory.laws import law_curves

MAX_FORECAST = 10_000  # generations


class PolicyForecast(NamedTuple):
    """The forecast of one policy, and the expectation by an exact law at the same generations; None without one."""

    policy: str
    forecast: Forecast
    law: Floats | None

    def lines(self, last: int) -> Iterator[dict[str, object]]:
        """One line of a frame per generation after `last`."""
        for i in range(len(self.forecast.mean)):
            numbers = {name: float(getattr(self.forecast, name)[i]) for name in ("mean", "low", "high")}
            reason = self.forecast.reason if math.isnan(numbers["mean"]) else ""
            law = {"law": math.nan if self.law is None else float(self.law[i]), "reason": reason}
            yield {"policy": self.policy, "generation": last + 1 + i, **numbers, **law}


def forecast_policies(
    point: Point, curves: Mapping[str, Mapping[str, Floats]], metric: str, generations: int
) -> Iterator[PolicyForecast]:
    """The generations after the run for every policy that has the metric; curves by policy and metric. Raises SpecError."""
    if not (isinstance(generations, int) and 1 <= generations <= MAX_FORECAST):
        raise SpecError(
            f"forecast: got {shown(generations)} generations; expected 1 to {MAX_FORECAST:,}, "
            "the number after the run's last one. Change it."
        )
    spec, positive = point.spec, metric in point.spec.positive_metrics()
    for label, policy in zip(spec.policy_labels(), spec.policies, strict=True):
        if metric in curves[label]:
            values = forecast(curves[label][metric], generations, positive=positive)
            yield PolicyForecast(label, values, _continue_law(point, policy, metric, generations))


def _continue_law(point: Point, policy: Policy, metric: str, generations: int) -> Floats | None:
    """The expectation of a metric after the run, by the exact law of the same scenario with more generations."""
    last = point.spec.generations
    with suppress(SelfloopError):  # a policy may not be defined for more generations
        scenario = replace(point.spec.scenario(policy, point.n), generations=last + generations)
        for law in law_curves(scenario):
            if law.kind == "exact" and law.metric == metric:
                return law.values[last:]
    return None
