"""The first screen: sentences that the seeds support, undecided answers with the seeds that would decide, the sorted table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from example_galleries import HOSTILE
from example_reports import WHEN, digits_report, ending_report, hostile_report

import selfloop
from selfloop.component import Better, Context, Metric
from selfloop.criteria.judging import needed_seeds
from selfloop.report.answers import PolicyAnswer, first_screen, policy_answers, undecided_verdict
from selfloop.report.build import _aspect, _real_value, build_report
from selfloop.report.curve_records import prominent_policies
from selfloop.report.figures import panel_figure
from selfloop.report.page import render_page
from selfloop.report.theme import policy_styles
from selfloop.report.values import CurveData, Panel, Report
from selfloop.snapshots import Snapshot
from selfloop.stats.comparison import compare_all
from selfloop.stats.intervals import at_look, mean_interval
from selfloop.theory.laws import LawCurve
from selfloop.types import Coordinates, Verdict

T = np.arange(1.0, 9.0)
SHARED = "(a terminal has 95 %; here all looks, as seeds are added, share the 5 % of errors)"


def curves_of(mean: np.ndarray | list[float], noise: float = 0.02, seeds: int = 6, seed: int = 1) -> np.ndarray:
    """(seeds, generations) curves with an offset per seed and noise from generation 2 on."""
    rng = np.random.default_rng(seed)
    noises = rng.normal(0, noise, (seeds, len(mean))) * (np.arange(len(mean)) > 0)
    return np.asarray(np.array(mean) + rng.normal(0, 0.3, (seeds, 1)) + noises)


def report_of(
    curves: dict[str, np.ndarray], metric: str = "nll", better: Better = "lower", positive: bool = True, **more: object
) -> Report:
    """A report with one panel, of curves by policy."""
    data = [CurveData(policy=label, values=values, better=better, positive=positive) for label, values in curves.items()]
    panel = Panel(metric=metric, title="Negative log-likelihood", unit="nats", curves=data)
    return Report(title="r", spec_text="", versions={}, generated=WHEN, panels=[panel], **more)  # type: ignore[arg-type]


def answer_to(values: np.ndarray, **more: object) -> PolicyAnswer:
    """The answer to a report with one policy."""
    return policy_answers(report_of({"replace": values}, **more))[()][0]  # type: ignore[arg-type]


def test_a_rise_is_named_with_its_interval_its_unit_and_what_it_does_at_the_end() -> None:
    rising = answer_to(curves_of(3 + 0.1 * (T - 1)))
    assert rising.answer == "rose"
    pattern = (
        r"Under replace, loss rose by 0\.\d+ \[0\.\d+, 0\.\d+\] nats \(×1\.\d+\) from generation 1 to 8 and is still rising\."
    )
    assert re.fullmatch(pattern, rising.sentence)
    levelled = answer_to(curves_of(3 + np.minimum(T - 1, 1), noise=0.002))
    assert levelled.sentence.endswith(" from generation 1 to 8 and has levelled off.")
    slow = answer_to(curves_of(3 + np.minimum(T - 1, 1) + 0.005 * T, noise=0.002))
    assert slow.sentence.endswith("from generation 1 to 8 and rose by less than 0.0613 in its last half.")
    plateau = answer_to(curves_of(3 + np.minimum(T - 1, 6), noise=0.002))
    assert plateau.sentence.endswith(" from generation 1 to 8, though its last step alone does not show it.")
    for limit, end in (("finite", "rising, to a bound."), ("infinite", "rising."), (None, "rising.")):
        report = report_of({"replace": curves_of(3 + 0.1 * (T - 1))})
        law = LawCurve("a", "nll", "exact", "", "", 3 + 0.1 * T, limit)
        report = replace(report, panels=[replace(report.panels[0], laws=[("replace", law)])])
        assert policy_answers(report)[()][0].sentence.endswith(f" and is still {end}")
    back = answer_to(curves_of(3 + 0.5 - 0.04 * (T - 5) ** 2 + 0.3 * (T > 1), noise=0.002))
    assert back.answer == "rose"
    assert back.sentence.endswith(", but falls at the end.")


def test_a_fall_is_named_without_a_sign() -> None:
    answer = answer_to(curves_of(3 - 0.1 * (T - 1)), positive=False)
    assert answer.answer == "fell"
    pattern = r"Under replace, loss fell by 0\.\d+ \[0\.\d+, 0\.\d+\] nats from generation 1 to 8 and is still falling."
    assert re.fullmatch(pattern, answer.sentence)


def test_a_metric_with_a_zero_that_is_no_loss_is_a_multiple_of_its_first_value() -> None:
    answer = answer_to(curves_of(3 * T), metric="excess_risk")
    assert re.match(r"Under replace, excess risk rose to 7\.9 \[7\.4, 8\.4\] times its first value from gen", answer.sentence)


def test_a_change_within_the_margin_is_none() -> None:
    answer = answer_to(curves_of(3 + 0 * T))
    assert answer.answer == "unchanged"
    assert "loss did not change: " in answer.sentence
    assert re.search(r"within the margin of 0\.1\d\d?\.$", answer.sentence)  # 5 % of a first loss of about 3
    assert answer.needed == ""


def test_equal_values_of_all_seeds_are_unchanged_and_one_seed_is_undecided() -> None:
    assert answer_to(np.full((5, 3), 2.0)).answer == "unchanged"
    single = answer_to(curves_of(3 + 0.1 * T, seeds=1))
    assert (single.answer, single.needed) == ("undecided", "one seed gives no interval: add two or more")
    assert single.needed in single.sentence


@pytest.mark.parametrize("seed", range(30))
def test_nothing_rose_or_fell_if_its_interval_contains_zero_and_undecided_answers_name_what_would_decide(seed: int) -> None:
    values = curves_of(3 + 0.02 * (T - 1), noise=0.4, seed=seed)
    answer = answer_to(values)
    with at_look(1):
        interval = mean_interval(values[:, -1] - values[:, 0])
    assert interval.low is not None
    assert interval.high is not None
    contains_zero = interval.low <= 0 <= interval.high
    assert (answer.answer in ("rose", "fell")) == (not contains_zero)
    assert bool(re.search("rose|fell", answer.sentence)) == (not contains_zero)
    if answer.answer == "undecided":
        number = re.fullmatch(r"about ([\d,]+) more seeds? would decide", answer.needed)
        assert number
        with at_look(1):
            total = needed_seeds(interval, 0.0)
        assert total is not None
        assert 1 <= int(number[1].replace(",", "")) <= total - len(values)


def test_the_seed_number_is_that_of_the_nearer_conclusion() -> None:
    flat = curves_of(3 + 0 * T, noise=0.4)  # to show that it is within the margin takes fewer seeds than to find a tiny change
    answer = answer_to(flat)
    change = flat[:, -1] - flat[:, 0]
    assert answer.answer == "undecided"
    with at_look(1):
        interval, margin = mean_interval(change), 0.05 * flat[:, 0].mean()
        numbers = [needed_seeds(interval, bound) for bound in (0.0, np.copysign(margin, change.mean()))]
    assert all(numbers)
    assert answer.needed.startswith(f"about {min(filter(None, numbers)) - 6:,} more")


def test_a_later_look_needs_more_to_say_that_a_loss_rose() -> None:
    values = curves_of(3 + 0.02 * (T - 1), noise=0.15, seeds=8, seed=6)
    first, later = (answer_to(values, look=look) for look in (1, 3))
    assert (first.answer, later.answer) == ("rose", "undecided")
    certainty = first_screen(report_of({"replace": values}, look=3)).certainty
    assert certainty[0] == f"8 seeds; intervals of 99.75 % {SHARED}, at look 3."


def test_ended_chains_are_said_and_judged_by_their_median_only_if_they_collapsed() -> None:
    values = curves_of(3 + 0.1 * (T - 1), seeds=10)
    values[:3, 5:] = np.nan
    curve = CurveData(policy="replace", values=values)
    panel = Panel(metric="nll", title="L", curves=[curve, replace(curve, policy="other", ends_are_worst=False)])
    report = Report(title="r", spec_text="", versions={}, generated=WHEN, panels=[panel])
    worst, other = policy_answers(report)[()]
    assert worst.sentence == (
        "Under replace, 3 of 10 chains ended, the first at generation 6; with these as the worst values, the median loss rose."
    )
    assert other.sentence.endswith("for a reason that is no collapse: loss cannot be judged.")
    assert not first_screen(report).alarms


def test_chains_without_a_first_value_are_ended_ones_and_not_a_metric_without_any_value() -> None:
    values = curves_of(3 + 0.5 * (T - 1), seeds=12)
    values[:2], values[2:4, 5:] = np.nan, np.nan
    report = report_of({"accumulate": curves_of(3 + 0 * T), "replace": values})
    assert [panel.metric for panel in report.drawn_panels] == ["nll"]
    worst = policy_answers(report)[()][0]
    assert (worst.policy, worst.answer, worst.n_left) == ("replace", "ended", 8)
    assert worst.sentence == (
        "Under replace, 4 of 12 chains ended, the first at generation 1; of the 10 with a first value, with these "
        "as the worst values, the median loss rose."
    )
    assert "every chain" not in " ".join(first_screen(report).alarms)


def test_ended_chains_of_a_metric_whose_best_value_is_inside_are_judged_by_their_distance_or_not_at_all() -> None:
    values = curves_of(1 - 0.13 * (T - 1), noise=0.001, seeds=20) * 0 + np.geomspace(1, 0.08, 8) + np.zeros((20, 1))
    values[:2, 6:] = np.nan
    for better, end in (
        (1.0, "with these as the worst values, the median distance of variance ratio from 1 rose."),
        ("", "variance ratio has no worst value to judge these by."),
        ("feature_entropy_real", "variance ratio has no worst value to judge these by."),
    ):
        answer = answer_to(values, better=better, metric="variance_ratio")
        assert answer.sentence.endswith(end), answer.sentence


def test_what_would_decide_names_its_reason() -> None:
    late = curves_of(3 + 0.1 * T)
    late[0, 0] = np.nan
    assert answer_to(late).needed == "a chain without a value at generation 1 has no change"
    tiny = np.full((4, 2), 3.0) + np.array([[0, 1], [0, -1], [0, 1], [0, -1.0000001]])
    assert answer_to(tiny, positive=False).needed == "more than 10,000,000 seeds would be needed"


def test_the_interval_of_the_only_generation_of_an_amount_is_not_below_zero() -> None:
    answer = answer_to(np.exp(np.linspace(-2, 2, 8))[:, None] ** 1.2, metric="squared_error")
    assert "[" in answer.sentence
    assert "[−" not in answer.sentence


def test_a_run_whose_chains_all_ended_says_so_first() -> None:
    values = curves_of(3 + 0.1 * T)
    values[:, 4:] = np.nan
    page = render_page([report_of({"replace": values, "accumulate": values})])
    alarm = "Every chain of every policy ended before the last generation."
    assert page.index(alarm) < page.index("Under replace, every chain ended, the first at generation 5")


def test_an_unfinished_run_concludes_nothing() -> None:
    values = curves_of(3 + 0.2 * T)
    report = report_of({"replace": values}, unfinished="not finished: 34 of 120 generations so far")
    assert first_screen(report).alarms == ["Not finished: 34 of 120 generations so far."]
    assert policy_answers(report)[()][0].answer == "undecided"


def test_an_undecided_change_names_the_exact_law() -> None:
    report = report_of({"replace": curves_of(3 + 0 * T, noise=0.5)})
    law = LawCurve("3 t", "nll", "exact", "", "", 3 * T)
    panels = [replace(report.panels[0], laws=[("replace", law)])]
    assert "; by the exact law 21.0)" in policy_answers(replace(report, panels=panels))[()][0].sentence


def test_a_missing_control_is_said() -> None:
    curves = {"replace": curves_of(3 + 0.1 * T), "control": curves_of(3 + 0 * T)}
    assert any(line.startswith("No control: ") for line in first_screen(report_of(curves)).certainty)
    certainty = first_screen(report_of(curves, controls={"control": "replace"})).certainty
    assert not any("No control" in line for line in certainty)
    assert certainty[0] == f"6 seeds; intervals of 96 % {SHARED}, each on its own: some of many changes are due to chance."


@pytest.mark.parametrize(("better", "order"), [("lower", "abc"), ("higher", "cba"), (2.0, "acb"), ("", "acb")])
def test_policies_are_sorted_from_worst_to_best(better: Better, order: str) -> None:
    last = {"a": 9.0, "b": 2.5, "c": 1.0} if better != 2.0 else {"a": 5.0, "b": 2.1, "c": 1.0}
    curves = {name: curves_of(np.linspace(2.0, value, 4), noise=0.001) for name, value in last.items()}
    curves = {name: values - values.mean(axis=0) + np.linspace(2.0, last[name], 4) for name, values in curves.items()}
    page = render_page([report_of(curves, better=better, metric="m")])
    assert re.findall(r'<th scope="row" data-value="(\w)">', page)[:3] == list(order)


def test_policies_that_cannot_be_ranked_are_last_and_none_of_them_is_the_best() -> None:
    curves = {f"p{i}": curves_of(3 + 0.05 * i * (T - 1)) for i in range(7)}
    curves["p6"][0, 5:] = np.nan
    report = report_of(curves)
    (panel,) = report.panels
    panel = replace(panel, curves=[replace(curve, ends_are_worst=curve.policy != "p6") for curve in panel.curves])
    screen = first_screen(replace(report, panels=[panel]))
    assert [row.policy for row in screen.rows] == ["p5", "p4", "p3", "p2", "p1", "p0", "p6"]
    assert [policy for policy, _ in screen.sentences] == ["p5", "p0"]
    assert prominent_policies(panel.curves) == ["p5", "p0"]
    assert screen.about.endswith("Sorted from worst to best, then those that cannot be ranked.")


def test_policies_are_ranked_by_their_distance_from_real_rows_and_without_these_by_change() -> None:
    values = {"a": curves_of(np.linspace(2.0, 4.0, 4)), "b": curves_of(np.linspace(2.0, 3.0, 4))}
    report = report_of(values, better="m_real", metric="m")
    assert first_screen(report).about.endswith("Sorted by change, the largest first.")
    assert first_screen(report).rows[0].policy == "a"
    panel = replace(report.panels[0], curves=[replace(curve, real=4.0) for curve in report.panels[0].curves])
    screen = first_screen(replace(report, panels=[panel]))
    assert screen.about.endswith("Sorted from worst to best.")
    assert screen.rows[0].policy == "b"


def test_a_sweep_over_generations_has_no_single_last_one() -> None:
    short, long = report_of({"replace": curves_of([3.0, 4.0])}), report_of({"replace": curves_of([3.0, 4.0, 5.0])})
    panels = [replace(r.panels[0], coordinates=(("generations", t),)) for r, t in ((short, 2), (long, 3))]
    page = render_page([replace(short, panels=panels)])
    assert ">last t</th>" in page
    assert ">t = 2</th>" not in page


def test_above_five_policies_only_the_best_the_worst_and_the_primary_ones_have_a_sentence() -> None:
    curves = {f"p{i}": curves_of(3 + 0.05 * i * (T - 1)) for i in range(8)}
    report = report_of(curves, primary=("p4", "p2"))
    assert [policy for policy, _ in first_screen(report).sentences] == ["p7", "p4", "p2", "p0"]
    assert [row.policy for row in first_screen(report).rows] == [f"p{i}" for i in reversed(range(8))]
    few = report_of({label: curves[label] for label in list(curves)[:5]})
    assert len(first_screen(few).sentences) == 5


def sweep_report(n_points: int = 16) -> Report:
    points: list[Coordinates] = [(("n", 100 * i),) for i in range(1, n_points + 1)]
    report = report_of({"replace": curves_of(3 + 0.1 * T), "accumulate": curves_of(3 + 0 * T)})
    panels = [replace(report.panels[0], coordinates=point) for point in points]
    verdicts = [Verdict("any_increase", "replace", "yes", "nll", 0.0, 0.7, 0.6, 0.8, coordinates=point) for point in points]
    return replace(report, panels=panels, verdicts=verdicts)


def test_a_sweep_begins_with_its_figure_and_folds_every_point() -> None:
    page = render_page([sweep_report()])
    assert page.index('id="e0main" data-name="sweep"') < page.index('id="e0-points"')
    section = re.search(r'id="e0-points".*?</section>', page, flags=re.S)
    assert section
    assert section[0].count('<details class="point"><summary>n = ') == 16  # none is open
    outside = re.sub(r'<details class="point">.*?\n</details>\n', "", section[0], flags=re.S)
    assert "<figure" not in outside
    assert 'id="e0-curves"' not in page
    assert first_screen(sweep_report()).sentences[0][1].startswith("Under replace, loss rose at all 16 points, ×1.")


def test_the_ends_of_a_sweep_are_all_ratios_or_all_differences() -> None:
    report = report_of({"replace": curves_of(3 + 0.1 * T)})
    near_zero = report_of({"replace": curves_of([0.05, 8.0]) - 0.3})
    panels = [replace(r.panels[0], coordinates=(("n", n),)) for r, n in ((report, 2), (near_zero, 4))]
    (sentence,) = (words for _, words in first_screen(replace(report, panels=panels)).sentences)
    assert [row.is_ratio for point in policy_answers(replace(report, panels=panels)).values() for row in point] == [True, False]
    assert re.search(r"rose at all 2 points, \+0\.\d+ \(n = 2\) to \+\d\.\d+ \(n = 4\)\.", sentence)


def test_a_policy_that_a_sweep_does_not_change_is_said_so_and_one_generation_has_no_change() -> None:
    assert first_screen(sweep_report()).sentences[0][1].endswith("; the sweep does not change it.")
    answer = answer_to(np.linspace(1, 2, 6)[:, None])
    assert (answer.answer, answer.change_text()) == ("undecided", ("", ""))


def test_undecided_verdicts_and_differences_have_their_number_of_seeds_or_the_reason_why_none_helps() -> None:
    verdict = Verdict("any_increase", "replace", "undecided", "nll", 0.0, 0.1, -0.1, 0.3, "mean", needed_seeds=31)
    assert undecided_verdict(verdict, 6) == "about 25 more seeds would decide"
    rising = replace(verdict, needed_seeds=None, low=0.05, reason="still rises at generation 8")
    assert undecided_verdict(rising, 6) == "more seeds would not decide: still rises at generation 8"
    curves = {"replace": curves_of(3 + 0 * T, noise=0.3), "accumulate": curves_of(3 + 0 * T, noise=0.3, seed=5)}
    differences = {(): compare_all(curves, margin=0.1)}
    page = render_page([replace(report_of(curves), verdicts=[verdict, rising], differences=differences)])
    for cell in re.findall(r"<td[^>]*><span class=\"answer undecided\">.*?</td>", page, flags=re.S):
        assert re.search("more seeds? would|seeds one of|no number of seeds|</a>", cell), cell
    assert re.search(r'</i> undecided</span>: <span class="detail">\d+ seeds would detect a difference', page)


def test_cells_have_full_precision_for_csv() -> None:
    page = render_page([digits_report()])
    table = re.search(r'<table class="answers" data-csv="e0-answers">.*?</table>', page, flags=re.S)
    assert table
    values = [float(x) for x in re.findall(r'class="number" data-value="([^"]+)"', table[0])]
    ends = [curve.summary.mean[[0, -1]] for curve in digits_report().panels[0].curves]
    np.testing.assert_allclose(sorted(values), np.sort(np.concatenate(ends)), rtol=1e-12)
    assert len(re.findall(r'data-low="[^"]+" data-high="[^"]+"', table[0])) == 3
    assert {"e0-answers", "e0-verdicts", "e0-training-data", "e0-cost"} <= set(re.findall('data-csv="([^"]+)"', page))


def test_names_of_policies_are_escaped_in_sentences_and_tables() -> None:
    curves = {HOSTILE: curves_of(3 + 0.1 * T), f"{HOSTILE}2": curves_of(3 + 0 * T)}
    page = render_page([report_of(curves, controls={f"{HOSTILE}2": HOSTILE}), hostile_report()])
    assert "<script>alert(1)" not in page
    assert len(re.findall(r"<p>.{0,400}Under &lt;|<p>.{0,600}Under [^<]*&lt;script", page, flags=re.S)) > 0


def test_a_run_fills_the_first_screen(tmp_path: Path) -> None:
    policies = ["replace", "accumulate", "control"]
    spec = selfloop.Spec(
        source={"name": "gaussian", "dim": 1}, family={"name": "gaussian"}, n=20, generations=4, seeds=4, policies=policies,
        metrics=["nll", "variance_ratio"],
    )  # fmt: skip
    report = build_report(selfloop.run(spec, tmp_path / "a b"))
    assert report.facts == ["20 real rows", "4 generations", "4 seeds"]
    assert report.controls == {"control": "replace"}
    assert {label: share for (_, label), share in report.real_shares.items()} == {
        "replace": 0.0, "accumulate": pytest.approx(0.25), "control": 1.0,
    }  # fmt: skip
    assert {panel.metric: panel.aspect for panel in report.panels}["variance_ratio"] == "diversity"
    assert report.commands[0] == f"# with selfloop {selfloop.__version__} (see Provenance)"
    assert report.commands[1] == f"selfloop run run.toml --store '{tmp_path / 'a b'}'"
    page = render_page([report])
    assert "Is the error higher at the end than at the start?" in page
    summaries = re.findall(r'<details class="folded aspect"( open)?><summary><h4>([^<]+?) <small>', page)
    assert [title for _, title in summaries][:2] == ["Loss", "Diversity"]
    assert "The model" not in re.sub(r"<details.*?</details>", "", page, flags=re.S)  # definitions are shown on demand


def test_a_metric_of_a_package_is_about_what_it_declares() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sharpness(Metric):
        name: ClassVar[str] = "sharpness"
        aspect: ClassVar[str] = "quality"
        secondary_titles: ClassVar[Mapping[str, str]] = {"edges": "edges"}

        def measure(self, snap: Snapshot, ctx: Context) -> Mapping[str, float]:
            return {}

    assert _aspect("edges", Sharpness()) == "quality"
    assert _aspect("training_steps", Sharpness()) == "other"  # not its own value
    assert _aspect("distinct_2", None) == "diversity"


def test_values_of_real_rows_are_a_part_of_the_figure_of_their_metric() -> None:
    measured = [{"entropy": np.ones((2, 3)), "entropy_real": np.array([[0.5], [0.7]])}]
    assert _real_value(measured, "entropy", "entropy_real") == pytest.approx(0.6)
    assert _real_value(measured, "other", "lower") is None
    panel = replace(report_of({"replace": curves_of(3 + 0 * T)}).panels[0], real=0.6)
    assert "real rows: 0.600" in panel_figure(panel, policy_styles(["replace"])).caption


def test_ended_chains_of_a_sweep_are_counted_by_point() -> None:
    sentences = dict(first_screen(ending_report()).sentences)
    assert "has ended chains at all 2 points" in sentences["replace"]
