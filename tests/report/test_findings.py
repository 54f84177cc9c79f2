"""Findings in words: claimed orders, trends and inflection points, with the numbers that they rest on."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import selfloop
from selfloop.report.answers import first_screen
from selfloop.report.build import build_report
from selfloop.report.figures import sweep_figure
from selfloop.report.findings import findings, leading_sentences, minimum_sentence, mode_sentence, order_sentence
from selfloop.report.page import render_page
from selfloop.report.theme import format_interval, policy_styles
from selfloop.spec.spec import Spec
from selfloop.stats.comparison import compare_all
from selfloop.stats.intervals import at_look, paired_difference

T = np.arange(1.0, 11.0)


def noisy(mean: np.ndarray, seeds: int = 5, noise: float = 0.01) -> np.ndarray:
    """Curves of some seeds: the mean with an offset per seed and noise."""
    rng = np.random.default_rng(1)
    return np.asarray(mean + rng.normal(0, 1, (seeds, 1)) + rng.normal(0, noise, (seeds, len(mean))))


def test_a_minimum_is_described_with_its_interval_and_the_rise_after_it() -> None:
    sentence = minimum_sentence(noisy(0.05 * (T - 4) ** 2), "cross_entropy")
    assert sentence
    assert sentence.startswith(
        "cross_entropy has its inflection point at generation 4 [4, 4], where it is lowest; it rises by 1.7"
    )
    assert sentence.endswith("] from there to generation 10.")


def test_a_curve_that_only_rises_has_no_inflection_point() -> None:
    assert minimum_sentence(noisy(0.2 * T), "m") is None


def test_a_curve_that_only_falls_has_no_inflection_point_so_far() -> None:
    assert minimum_sentence(noisy(-0.2 * T), "m") == "m is lowest at the last generation, 10: no inflection point so far."


def test_a_dip_within_the_noise_is_no_inflection_point() -> None:
    sentence = minimum_sentence(noisy(0.001 * (T - 4) ** 2, noise=0.3), "m")
    assert sentence is not None
    assert "not enough to call it an inflection point" in sentence


def test_an_inflection_point_of_one_seed_has_no_interval() -> None:
    sentence = minimum_sentence(noisy(0.05 * (T - 4) ** 2, seeds=1), "m")
    assert sentence is not None
    assert "[" not in sentence


def test_a_curve_with_an_ended_chain_has_no_inflection_point() -> None:
    curves = noisy(0.05 * (T - 4) ** 2)
    curves[0, 5:] = np.nan
    assert minimum_sentence(curves, "m") is None


def test_lost_modes_are_described_with_the_change_of_their_entropy() -> None:
    measured = {"mode_entropy": noisy(2.25 - 0.2 * T), "modes": np.tile(11 - T, (5, 1))}
    sentence = mode_sentence(measured)
    assert sentence
    assert re.search(r"at generation 10, a change of −1\.8\d+ \[−1\.8\d+, −1\.7\d+\]", sentence)
    assert sentence.endswith("; modes 10.0 → 1.00.")


def test_the_interval_of_a_change_of_entropy_within_the_noise_contains_0() -> None:
    sentence = mode_sentence({"mode_entropy": noisy(2.2 + 0 * T, noise=0.05)})
    assert sentence is not None
    assert re.search(r"a change of .* \[−0\.\d+, 0\.\d+\]", sentence)


def test_modes_of_one_seed_have_no_interval_and_modes_of_an_ended_chain_no_sentence() -> None:
    sentence = mode_sentence({"mode_entropy": noisy(2.25 - 0.2 * T, seeds=1)})
    assert sentence is not None
    assert "[" not in sentence
    ended = noisy(2.25 - 0.2 * T)
    ended[0, 4:] = np.nan
    assert mode_sentence({"mode_entropy": ended}) is None
    assert mode_sentence({"negative_elbo": ended}) is None


@pytest.mark.parametrize(("middle", "answer"), [(0.2, "holds"), (0.5, "violated"), (0.0, "undecided")])
def test_an_order_is_reported_with_the_difference_that_decides_each_pair(middle: float, answer: str) -> None:
    order = ("replace", "accumulate_subsample", "accumulate")
    curves = {
        policy: noisy(rise * T) + 0.02 * np.random.default_rng(i).normal(size=(5, len(T)))
        for i, (policy, rise) in enumerate(zip(order, (0.4, middle, 0.0), strict=True))
    }
    sentence = order_sentence(order, compare_all(curves, set(combinations(order, 2))), "cross_entropy")
    assert sentence.startswith(
        f"replace > accumulate_subsample > accumulate at every t ≥ 3: {answer}. Smallest paired differences"
    )
    assert sentence.count(" at t = ") == 2
    assert sentence.count("[") == 2
    assert ("5 seeds would detect a difference of" in sentence) == (answer == "undecided")


def test_few_seeds_with_skewed_values_are_named_before_their_intervals_are_trusted(tmp_path: Path) -> None:
    settings = {"source": {"name": "gaussian", "dim": 1}, "family": "gaussian", "n": 10, "generations": 3}
    few, many = (list(findings(selfloop.run(selfloop.Spec(**settings, seeds=n), tmp_path / str(n)))) for n in (4, 10))
    assert few[0].startswith("Seeds differ by more than half of the mean mean_error (replace, accumulate).")
    assert not any("Seeds differ" in sentence for sentence in many)


def test_the_findings_of_a_run_name_the_order_of_its_policies(tmp_path: Path) -> None:
    policies = ["replace", "accumulate", "accumulate_subsample", {"name": "window", "length": 2}]
    spec = selfloop.Spec(source="linear", family="linear", n=60, generations=6, seeds=40, policies=policies)  # type: ignore[arg-type]
    sentences = list(findings(selfloop.run(spec, tmp_path)))
    (order,) = [sentence for sentence in sentences if "at every t" in sentence]
    assert order.startswith("replace > accumulate_subsample > accumulate at every t ≥ 3: ")
    assert "excess_risk" in order
    assert any(re.match(r"replace: excess_risk .* at generation 6", sentence) for sentence in sentences)


def test_the_effect_of_synthetic_rows_is_the_difference_from_the_control(tmp_path: Path) -> None:
    custom = {"name": "custom", "takes": [{"batch": "synthetic(t-1)"}]}
    spec = Spec(
        source="gaussian", family="gaussian", n=10, generations=8, seeds=200, metrics=("mean_error",),
        policies=("replace", custom, "control", {"name": "control", "of": "accumulate"}),
    )  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    (sentence,) = [each for each in findings(result) if each.startswith("Effect of synthetic rows")]
    curves = {label: measured["mean_error"] for label, measured in result.curves().items()}
    with at_look(1):
        difference = paired_difference(curves["replace"], curves["control"])
    assert f"in mean_error is {format_interval(difference[-1])} (96 %) at the last generation" in sentence
    report = build_report(result)
    assert sentence in report.leads


def test_the_first_screen_of_a_sweep_has_the_effects_at_both_ends_and_a_line_for_the_control(tmp_path: Path) -> None:
    policies = ("replace", "control")
    spec = Spec(source="gaussian", family="gaussian", generations=8, seeds=50, policies=policies, sweep={"n": (10, 20, 400)})
    result = selfloop.run(spec, tmp_path)
    effects = [each for each in findings(result) if each.startswith("Effect of synthetic rows")]
    assert len(effects) == 3
    largest, _, smallest = [re.search(r"is (.*) \(96 %\) at the", each)[1] for each in effects]  # type: ignore[index]
    n = sum("(undecided)" in each for each in effects)
    (lead,) = leading_sentences(result)
    assert lead == (
        f"Effect of synthetic rows: replace − control in mean_error is {smallest} (96 %, n = 400) to {largest} (96 %, n = 10) "
        f"at the last generation{f'; undecided at {n} of 3 points' * bool(n)}."
    )
    report = build_report(result)
    figure = sweep_figure(report, policy_styles(report.policies()))
    assert figure
    assert figure.svg().count('stroke-dasharray="4,3"') == 1
    assert "dashed line: control" in figure.caption


def test_a_partial_run_has_no_findings_forecasts_or_ended_chains(tmp_path: Path) -> None:
    spec = Spec(source="gaussian", family="gaussian", n=10, generations=8, seeds=4, policies=("replace", "control"))
    whole = selfloop.run(spec, tmp_path)
    part = replace(whole, progress=(60, 64))
    assert any(each.startswith("Forecast") for each in findings(whole))
    assert not list(findings(part))
    report = build_report(part)
    (panel,) = (panel for panel in report.panels if panel.metric == spec.metrics[0].name)
    assert not panel.forecasts
    curve = panel.curves[0]
    curve.values[0, 5:] = np.nan
    assert not curve.has_ended_chains
    assert replace(curve, is_partial=False).has_ended_chains
    assert not any(line.startswith("Undecided") for line in first_screen(report).certainty)
    page = render_page([report])
    assert "more seed" not in page
    assert "no number of seeds" not in page
