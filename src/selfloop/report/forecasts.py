"""Forecasts of a report: the risk of every policy for half as many generations again, as sentences and as a dashed line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selfloop.report.theme import format_interval, format_number
from selfloop.stats.forecast import LEVEL_OF_FORECAST, MIN_GENERATIONS
from selfloop.stats.intervals import Interval
from selfloop.theory.forecasts import PolicyForecast, forecast_policies

if TYPE_CHECKING:
    from selfloop.result import Result
    from selfloop.spec.point import Point

MAX_FORECAST_SENTENCES = 8  # of all points and policies; figures and `Result.forecast` have more


def risk_forecasts(result: Result, point: Point) -> list[PolicyForecast]:
    """The forecast of the risk for every policy of a point; empty for runs without a risk or of too few generations."""
    risk, generations = point.spec.risk_metric(), point.spec.generations
    if risk is None or generations < MIN_GENERATIONS:
        return []
    return list(forecast_policies(point, result.curves(point.coordinates), risk, generations // 2))


def forecast_sentences(result: Result) -> Iterator[str]:
    """One sentence per policy at every point, or per reason why there is no forecast; none for very many policies."""
    forecasts = [(point, each) for point in result.points for each in risk_forecasts(result, point)]
    if len(forecasts) > MAX_FORECAST_SENTENCES:
        return
    for point, forecast in forecasts:
        at = "".join(f", {key} = {value}" for key, value in point.coordinates)
        yield f"Forecast{at}: {forecast_sentence(forecast, point.spec.risk_metric() or '', point.spec.generations)}."


def forecast_sentence(forecast: PolicyForecast, metric: str, last: int) -> str:
    """The forecast of a policy at its last generation, with its limits, and the exact law; or the reason for none."""
    policy, (mean, low, high, reason), law = forecast.policy, forecast.forecast, forecast.law
    if reason:
        return f"none of {metric} for {policy}: {reason}"
    value = format_interval(Interval(float(mean[-1]), float(low[-1]), float(high[-1]), 0))
    exact = "" if law is None else f", exact law {format_number(float(law[-1]))}"
    return f"{policy} has {metric} {value} at generation {last + len(mean)} ({100 * LEVEL_OF_FORECAST:g} % limits{exact})"
