"""Forecasts in the report: a dashed continuation of each curve, and sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import selfloop
from selfloop.report.curve_records import fit_value_axis
from selfloop.report.figures import panel_figure
from selfloop.report.findings import findings, forecast_sentences
from selfloop.report.theme import policy_styles
from selfloop.report.values import CurveData, Panel
from selfloop.spec.parse import parse_spec
from selfloop.stats.forecast import forecast
from selfloop.theory.forecasts import PolicyForecast

SPEC = 'n = 100\ngenerations = {}\nseeds = {}\nsource = "gaussian"\nfamily = "gaussian"\npolicies = ["replace"]\n'


def panel_of(values: np.ndarray, generations: int = 3) -> Panel:
    forecasts = [PolicyForecast("replace", forecast(values, generations), None)]
    return Panel(metric="m", title="error", curves=[CurveData(policy="replace", values=values)], forecasts=forecasts)


def test_a_forecast_continues_its_curve_from_the_last_mean_and_stays_in_the_figure() -> None:
    values = np.arange(1.0, 7) + np.random.default_rng(1).normal(0, 0.1, (5, 6))
    panel = panel_of(values)
    figure = panel_figure(panel, policy_styles(["replace"]))
    records = figure.spec["datasets"]["forecasts"]
    assert [record["generation"] for record in records] == [6, 7, 8, 9]
    assert records[0]["value"] == float(f"{values[:, -1].mean():.6g}")
    assert [record["value"] for record in records[1:]] == [float(f"{x:.6g}") for x in panel.forecasts[0].forecast.mean]
    assert all(record["low"] < record["value"] < record["high"] for record in records)
    assert fit_value_axis(panel).contains(records[-1]["value"])
    assert "dashed beyond the run: forecast with 90 % limits" in figure.caption
    assert 'stroke-dasharray="4,4"' in figure.svg()


def test_a_curve_without_a_forecast_ends_with_the_run() -> None:
    figure = panel_figure(panel_of(np.array([[1.0, 2.0, 3.0, 4.0]])), policy_styles(["replace"]))
    assert "forecasts" not in figure.spec["datasets"]
    assert "dashed" not in figure.caption
    assert ">5</text>" not in figure.svg()


def test_a_report_and_the_command_line_have_one_sentence_per_forecast_or_its_reason(tmp_path: Path) -> None:
    result = selfloop.run(parse_spec(SPEC.format(8, 5), "test"), tmp_path)
    (sentence,) = forecast_sentences(result)
    assert sentence.startswith("Forecast: replace has mean_error ")
    assert "at generation 12 (90 % limits, exact law 0.11" in sentence
    assert sentence in list(findings(result))
    one = selfloop.run(parse_spec(SPEC.format(8, 1), "test"), tmp_path)
    assert list(forecast_sentences(one)) == ["Forecast: none of mean_error for replace: one seed; a forecast needs two."]
    short = selfloop.run(parse_spec(SPEC.format(3, 5), "test"), tmp_path)
    assert list(forecast_sentences(short)) == []
