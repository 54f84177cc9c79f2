"""Curves: the data that are drawn, their axes and their colors."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from example_reports import digits_report, ending_report, linear_report

from selfloop.errors import printable
from selfloop.policies.builtin import Accumulate, Replace
from selfloop.policies.schedule import schedule
from selfloop.published.papers import PublishedCurve
from selfloop.report.curve_records import MAX_EQUAL_POLICIES, fit_value_axis, move_apart, prominent_policies, wrap_name
from selfloop.report.figures import main_figure, panel_figure, panel_figures, report_figures, schedule_figure, sweep_figure
from selfloop.report.theme import DARK, PAPER, describe_better, format_interval, format_number, policy_styles, theme_svg
from selfloop.report.values import CurveData, Panel, Report
from selfloop.stats.intervals import Interval
from selfloop.theory.laws import LawCurve

STYLES = policy_styles(["replace"])


def panel_of(values: np.ndarray, **more: object) -> Panel:
    """A panel of `replace` with these (seeds, generations) values."""
    return Panel(metric="m", title="error", unit="nats", curves=[CurveData(policy="replace", values=values)], **more)  # type: ignore[arg-type]


def spread(means: list[float], width: float = 0.01, seeds: int = 4) -> np.ndarray:
    """Values (seeds, generations) with these means."""
    return np.array(means)[None, :] + np.linspace(-width, width, seeds)[:, None]


def test_means_carry_their_interval_and_stop_where_the_first_chain_ends() -> None:
    values = spread([1.0, 2.0, 3.0, 4.0])
    values[0, 2:] = np.nan
    spec = panel_figure(panel_of(values), STYLES).spec
    means = spec["datasets"]["means"]
    assert [row["generation"] for row in means] == [1, 2]
    assert means[0]["low"] < means[0]["mean"] < means[0]["high"]
    assert [row["value"] for row in spec["datasets"]["survivors"]] == [4, 4, 3, 3]
    assert spec["vconcat"][1]["encoding"]["y"]["axis"]["values"] == [0, 2, 4]  # whole chains: no label occurs twice
    assert [row["generation"] for row in spec["datasets"]["medians"]] == [1, 2, 3, 4]


def test_the_number_of_chains_is_drawn_only_if_chains_end() -> None:
    whole, ends = digits_report().panels[0], ending_report().panels[0]
    assert (
        "survivors"
        not in panel_figure(whole, policy_styles(["replace", "accumulate", "accumulate_subsample"])).spec["datasets"]
    )
    assert "vconcat" in panel_figure(ends, policy_styles(["replace", "accumulate"])).spec


def test_single_chains_are_drawn_only_if_they_are_few() -> None:
    few, many = (panel_figure(panel_of(spread([1.0, 2.0], seeds=n)), STYLES) for n in (12, 13))
    assert len(few.spec["datasets"]["chains"]) == 24
    assert "chains" not in many.spec["datasets"]
    assert "single chains" in few.caption
    assert "single chains" not in many.caption


def test_an_svg_of_thousands_of_chains_is_no_longer_than_one_of_fifty() -> None:
    panels = [linear_report(seeds).panels[0] for seeds in (50, 2000)]
    styles = policy_styles([curve.policy for curve in panels[0].curves])
    few, many = (len(panel_figure(panel, styles).svg()) for panel in panels)
    assert abs(many - few) < 0.05 * few


def test_one_seed_is_a_line_without_a_band() -> None:
    means = panel_figure(panel_of(np.array([[1.0, 2.0]])), STYLES).spec["datasets"]["means"]
    assert [row["low"] for row in means] == [None, None]


def test_laws_and_published_values_have_their_own_legends() -> None:
    report = linear_report()
    figure = report_figures(report)[0]
    svg = figure.svg()
    for label in ("replace: t d / (n - d - 1) (exact law)", "first error (bound)", "Fig. 2 (published)"):
        assert label in svg
    laws = [row for row in figure.spec["datasets"]["laws"] if row["label"].startswith("replace")]
    assert laws[-1]["value"] == pytest.approx(report.panels[0].laws[0][1].values[-1], rel=1e-5)
    assert "Gerstgrasser et al. 2024" in figure.caption


@pytest.mark.parametrize(
    ("means", "log"), [([1.0, 29.0], False), ([1.0, 31.0], True), ([-1.0, 100.0], False), ([0.0, 100.0], False)]
)
def test_the_axis_is_logarithmic_and_labeled_so_if_positive_values_span_a_factor_of_thirty(
    means: list[float], log: bool
) -> None:
    panel = panel_of(spread(means, 0.0))
    assert fit_value_axis(panel).log is log
    assert ("log scale" in panel_figure(panel, STYLES).svg()) is log


def test_curves_of_the_same_scenario_always_fit_the_axis() -> None:
    same = ("replace", PublishedCurve("a", "A", "m", (1, 2), (1.8, 9.8), ""))
    assert fit_value_axis(panel_of(spread([5.0, 6.0]), published=[same])).high > 9.8


def test_everything_but_wide_intervals_fits_the_axis() -> None:
    law = ("replace", LawCurve("law", "m", "exact", "", "", np.array([5.0, 9.0])))
    scale = fit_value_axis(panel_of(spread([1.0, 2.0], 0.01), laws=[law]))
    assert scale.low < 1 < 9 < scale.high
    assert not scale.cut
    few = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    cut = fit_value_axis(panel_of(few))
    assert cut.cut
    assert cut.high - cut.low < 2.7  # the interval alone is 2.9 long
    assert "cut at the edge" in panel_figure(panel_of(few), STYLES).caption


def test_an_interval_that_contains_zero_is_cut_by_a_logarithmic_axis() -> None:
    values = np.array([[1.0, 0.5, 90.0], [1.1, 9.0, 110.0], [1.1, 0.5, 110.0]])  # the second interval contains 0
    figure = panel_figure(panel_of(values), STYLES)
    second = figure.spec["datasets"]["means"][1]
    assert second["low"] < 0 < second["bottom"]
    assert "NaN" not in figure.svg()


def test_the_interval_of_two_seeds_is_not_drawn_and_one_seed_has_none() -> None:
    two = panel_figure(panel_of(spread([1.0, 2.0], seeds=2)), STYLES)
    assert "top" not in two.spec["datasets"]["means"][0]
    assert two.spec["datasets"]["means"][0]["low"] < 1  # a reader who points at the marker sees it
    assert "NaN" not in two.svg()
    assert "mean over 2 seeds; its 95 % interval is too wide to draw for two seeds; thin lines: single chains" in two.caption
    assert fit_value_axis(panel_of(spread([1.0, 2.0], seeds=2))).high < 2.1
    assert "mean over 1 seed; lower is better" in panel_figure(panel_of(np.array([[1.0, 2.0]])), STYLES).caption


@pytest.mark.parametrize(("value", "is_drawn"), [(2.9, True), (1.5, True), (0.1, True), (3.2, False), (-1.0, False)])
def test_a_trivial_model_near_the_curves_is_a_labelled_line_and_is_named_otherwise(value: float, is_drawn: bool) -> None:
    panel = panel_of(spread([1.0, 2.0], width=0.0), trivial=("the mean image", value))
    figure, axis = panel_figure(panel, STYLES), fit_value_axis(panel)
    assert (">the mean image<" in figure.svg()) is is_drawn
    assert (axis.low < value < axis.high) is is_drawn
    assert axis.high - axis.low < 3  # the curves keep a third of the height, even on an axis that begins at 0
    place = "dashed gray line" if is_drawn else "outside of the figure"
    assert f"{place}: the mean image, {format_number(value)}" in figure.caption
    assert is_drawn or axis == fit_value_axis(panel_of(spread([1.0, 2.0], width=0.0)))


@pytest.mark.parametrize(("value", "baseline"), [(0.95, "top"), (1.05, "bottom"), (0.78, "bottom")])
def test_the_name_of_a_trivial_model_is_not_where_the_curves_begin_and_has_a_halo_under_the_markers(
    value: float, baseline: str
) -> None:
    figure = panel_figure(panel_of(spread([1.0, 0.8, 2.0], width=0.0), trivial=("the mean image", value)), STYLES)
    marks = [layer["mark"] for layer in figure.spec["layer"]]
    halo, name = (mark for mark in marks if mark["type"] == "text" and "fontSize" in mark and mark["fontSize"] == 11)
    assert (halo["stroke"], halo["baseline"], name["baseline"]) == (PAPER, baseline, baseline)
    assert "stroke" not in name
    assert marks.index(name) < next(i for i, mark in enumerate(marks) if mark["type"] == "point")


def test_a_trivial_value_below_zero_is_outside_of_a_logarithmic_axis() -> None:
    panel = panel_of(np.array([[1.0, 100.0]]), trivial=("the mean image", -1.0))
    assert fit_value_axis(panel).log
    assert "outside of the figure: the mean image" in panel_figure(panel, STYLES).caption
    shown = panel_of(np.array([[1.0, 100.0]]), trivial=("the mean image", 2000.0))
    assert ">the mean image<" in panel_figure(shown, STYLES).svg()


def test_the_axis_of_one_generation_names_no_other() -> None:
    svg = panel_figure(panel_of(np.array([[1.0], [2.0], [3.0]])), STYLES).svg()
    assert ">1<" in svg
    assert ">0<" not in svg
    assert ">2<" not in svg


def test_a_caption_says_which_value_is_best() -> None:
    for better, words in (("higher", "higher is better"), (1.0, "best: 1"), ("m_real", "best: the value of m_real")):
        curve = CurveData(policy="replace", values=np.array([[1.0, 2.0]]), better=better)
        assert words in panel_figure(Panel(metric="m", title="m", curves=[curve]), STYLES).caption
    assert describe_better("") == ""


def test_every_axis_has_a_name_and_a_unit() -> None:
    svg = panel_figure(panel_of(spread([1.0, 2.0])), STYLES).svg()
    assert ">error (nats)<" in svg
    assert ">generation t<" in svg
    svg_of_schedules = schedule_figure({"replace": list(schedule(Replace(), 10, 3))}, STYLES).svg()
    for name in ("rows trained on", "real share of training mass", "mean data age (generations)", "generation t"):
        assert f">{name}<" in svg_of_schedules


def test_the_training_data_are_those_of_the_schedule() -> None:
    rows = schedule_figure({"accumulate": list(schedule(Accumulate(), 10, 3))}, policy_styles(["accumulate"])).spec
    rows = rows["datasets"]["schedules"]
    assert [row["rows"] for row in rows] == [10, 20, 30]
    assert [row["real_mass"] for row in rows] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [row["data_age"] for row in rows] == pytest.approx([1, 1.5, 2])


def test_known_policies_have_fixed_colors_and_all_pairs_of_color_and_marker_differ() -> None:
    alone, among = policy_styles(["replace"]), policy_styles(["fresh", "accumulate", "replace", "mix"])
    assert alone["replace"] == among["replace"]
    labels = ["replace", "accumulate", *(f"fresh(ratio={i})" for i in range(14))]
    styles = policy_styles(labels).values()
    assert len({(style.color, style.marker) for style in styles}) == len(labels)
    assert all({style.color, style.shade} <= set(DARK) for style in styles)


@pytest.mark.parametrize("background", ["light", "dark"])
def test_colors_contrast_with_their_background(background: str) -> None:
    def luminance(color: str) -> float:
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    def drawn(color: str) -> str:
        return color if background == "light" else DARK[color]

    ink, muted, _, paper = list(DARK)[:4]
    assert contrast(drawn(ink), drawn(paper)) > 12
    assert contrast(drawn(muted), drawn(paper)) > 4.5  # WCAG AA, text
    for style in policy_styles(["replace", "accumulate", "accumulate_subsample"]).values():
        assert contrast(drawn(style.color), drawn(paper)) > 3  # WCAG AA, graphics
        assert contrast(drawn(style.shade), drawn(paper)) > 7


def test_colors_of_an_inlined_picture_follow_the_scheme() -> None:
    svg = theme_svg('<svg width="1"><g id="a" fill="#0072b2" stroke="#123456" clip-path="url(#a)"/></svg>', "f1", 'a "name"')
    assert 'fill="var(--c0072b2)"' in svg
    assert 'stroke="#123456"' in svg
    assert 'id="f1-a"' in svg
    assert "url(#f1-a)" in svg
    assert 'aria-label="a &quot;name&quot;"' in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (24.412, "24.4"),
        (0.012345, "0.0123"),
        (-1234.6, "−1,235"),
        (-0.0, "0"),
        (1e-7, "1.00e-07"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers_are_shown_with_three_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_intervals_have_enough_digits_to_distinguish_their_limits() -> None:
    assert format_interval(Interval(1.11, 1.08, 1.15, 4)) == "1.110 [1.080, 1.150]"
    assert format_interval(Interval(1.11342, 1.11311, 1.11373, 4)) == "1.11342 [1.11311, 1.11373]"
    assert format_interval(Interval(1234.5, 1100.0, 1400.0, 4)) == "1,234 [1,100, 1,400]"
    assert format_interval(Interval(2.0, None, None, 4)) == "2.00"
    assert format_interval(Interval(-0.12, -5.2, 5.1, 4)) == "0 [−5, 5]"


def test_characters_that_svg_does_not_allow_have_visible_substitutes() -> None:
    assert printable("a\x00b\x1bc\ud800d\x85\n") == r"a\x00b\x1bc\ud800d\x85" + "\n"


def test_boxes_that_overlap_move_apart_as_little_as_possible() -> None:
    moved = move_apart(np.array([50.0, 10.0, 52.0, 100.0]), np.full(4, 10.0), 0.0, 200.0)
    np.testing.assert_allclose(moved, [46.0, 10.0, 56.0, 100.0])  # each of the two moves by 4
    high = move_apart(np.array([98.0, 99.0, 100.0]), np.full(3, 10.0), 0.0, 100.0)
    np.testing.assert_allclose(high, [75.0, 85.0, 95.0])  # inside, in their order
    assert len(move_apart(np.empty(0), np.empty(0), 0.0, 10.0)) == 0


def test_names_beside_curves_never_overlap_and_are_in_the_order_of_the_curves() -> None:
    curves = [CurveData(policy=f"fresh(ratio={i})", values=np.array([[1.0, 2 + 0.001 * i]])) for i in range(5)]
    panel = Panel(metric="m", title="m", curves=curves)
    names = panel_figure(panel, policy_styles([curve.policy for curve in curves])).spec["datasets"]["names"]
    for scale in ("at", "other"):  # the linear axis and the logarithmic one
        heights = [row[scale] for row in sorted(names, key=lambda row: row[scale])]
        assert np.diff(heights).min() >= 13
    assert sorted(names, key=lambda row: -row["at"])[0]["policy"] == "fresh(ratio=0)"


def test_with_many_policies_only_the_best_the_worst_and_controls_are_drawn_in_full() -> None:
    def curves(n: int, better: str) -> list[CurveData]:
        return [CurveData(policy=f"p{i}", values=np.array([[1.0, i]]), better=better) for i in range(n)]  # type: ignore[arg-type]

    assert len(prominent_policies(curves(MAX_EQUAL_POLICIES, "lower"))) == MAX_EQUAL_POLICIES
    assert set(prominent_policies(curves(12, "lower"))) == {"p0", "p11"}
    control = CurveData(policy="control(of=mix)", values=np.array([[1.0, 5.0]]))
    assert set(prominent_policies([*curves(12, "lower"), control])) == {"p0", "p11", "control(of=mix)"}
    assert wrap_name("incremental(replaced_share=0.05)") == ["incremental", "(replaced_share=0.05)"]


def test_panels_of_one_metric_share_their_value_axis() -> None:
    panels = [panel_of(spread(ends), coordinates=(("n", n),)) for n, ends in ((10, [1.0, 5.0]), (20, [1.0, 2.0]))]
    domains = [figure.spec["usermeta"]["y"]["scale"]["domain"] for figure in panel_figures(panels, STYLES)]
    assert domains[0] == domains[1]
    assert domains[0] != panel_figure(panels[1], STYLES).spec["usermeta"]["y"]["scale"]["domain"]


def test_another_scale_is_offered_only_if_all_values_are_above_zero() -> None:
    other = panel_figure(panel_of(spread([1.0, 2.0])), STYLES).spec["usermeta"]["other_y"]
    assert other["scale"]["type"] == "log"
    assert panel_figure(panel_of(spread([1.0, 90.0])), STYLES).spec["usermeta"]["other_y"]["scale"]["type"] == "linear"
    assert "other_y" not in panel_figure(panel_of(spread([-1.0, 2.0])), STYLES).spec["usermeta"]


def test_the_main_figure_names_each_change_and_draws_controls_as_thin_dashed_lines() -> None:
    curves = [
        CurveData(policy="replace", values=spread([2.0, 3.9]), positive=True),
        CurveData(policy="mix", values=spread([2.0, 1.5])),
        CurveData(policy="control", values=spread([2.0, 2.0]), positive=True),
    ]
    report = replace(digits_report(), panels=[Panel(metric="m", title="m", curves=curves)])
    figure = main_figure(report, policy_styles(report.policies()))
    assert figure
    svg = figure.svg()
    for text in (">replace<", "×1.95", "−0.500", "×1.00"):
        assert text in svg
    assert len(re.findall(r'stroke-dasharray="4,3"', svg)) == 1
    assert main_figure(replace(report, panels=[]), {}) is None


def test_a_sweep_of_one_axis_has_its_last_values_at_true_distances_with_intervals() -> None:
    panels = [
        panel_of(spread([1.0, last], width), coordinates=(("n", n),)) for n, last, width in ((1000, 2.0, 0.1), (10, 5.0, 0.2))
    ]
    figure = sweep_figure(replace(digits_report(), panels=panels), STYLES)
    assert figure
    rows = figure.spec["datasets"]["means"]
    assert [(row["at"], row["mean"]) for row in rows] == [(10, 5.0), (1000, 2.0)]
    assert all(row["low"] < row["mean"] < row["high"] for row in rows)
    assert "n, log scale" in figure.svg()
    low, high = figure.spec["usermeta"]["y"]["scale"]["domain"]
    panels[0].curves[0].values[:2, 1] = -90, 94  # single chains, which this figure does not draw, with the same mean
    again = sweep_figure(replace(digits_report(), panels=panels), STYLES)
    assert again
    assert again.spec["usermeta"]["y"]["scale"]["domain"][1] < 20 > high > low
    assert "from 2.00 at n = 1000 to 5.00 at n = 10" in figure.alt


@pytest.mark.parametrize("key", ["policies.mix.real_share", "mean", "policy", "value"])
def test_a_sweep_with_ended_chains_keeps_its_values_whatever_its_axis_is_called(key: str) -> None:
    panels = [panel_of(spread([1.0, last]), coordinates=((key, at),)) for at, last in ((0.25, 4.0), (0.5, 3.0))]
    panels[1].curves[0].values[0, 1] = np.nan
    figure = sweep_figure(replace(digits_report(), panels=panels), STYLES)
    assert figure
    assert [(row["at"], row["mean"], row["policy"]) for row in figure.spec["datasets"]["means"]] == [(0.25, 4.0, "replace")]
    medians = [(row["at"], row["value"]) for row in figure.spec["datasets"]["medians"]]
    assert medians == [(0.25, 4.0), (0.5, pytest.approx(3.0067, abs=1e-4))]
    assert key in figure.svg()


def test_a_sweep_of_switches_has_two_places_and_one_of_lengths_no_single_last_generation() -> None:
    panels = [panel_of(spread([1.0, 2.0]), coordinates=(("family.pooled", at),)) for at in (True, False)]
    figure = sweep_figure(replace(digits_report(), panels=panels), STYLES)
    assert figure
    assert [row["at"] for row in figure.spec["datasets"]["means"]] == ["True", "False"]
    assert "at generation 2;" in figure.caption
    panels = [panel_of(spread([1.0] * t), coordinates=(("generations", t),)) for t in (2, 3)]
    figure = sweep_figure(replace(digits_report(), panels=panels), STYLES)
    assert figure
    assert "over seeds at the last generation;" in figure.caption


def test_a_sweep_of_two_axes_is_a_heat_map_and_one_of_three_has_no_figure() -> None:
    def report(*axes: str) -> Report:
        points = itertools.product((1, 2), repeat=len(axes))
        panels = [panel_of(spread([1.0, sum(at)]), coordinates=tuple(zip(axes, at, strict=True))) for at in points]
        return replace(digits_report(), panels=panels)

    figure = sweep_figure(report("n", "d"), STYLES)
    assert figure
    levels = {(row["across"], row["down"]): row["level"] for row in figure.spec["datasets"]["points"]}
    assert levels["1", "1"] < levels["1", "2"] == levels["2", "1"] < levels["2", "2"]
    assert "NaN" not in figure.svg()
    assert sweep_figure(report("n", "d", "k"), STYLES) is None


def test_only_a_browser_gets_the_values_for_pointers() -> None:
    figure = panel_figure(panel_of(spread([1.0, 2.0])), STYLES)
    assert figure.spec["datasets"]["hover"][1] == {"generation": 2, "replace": "2.000 [1.986, 2.014]"}
    assert "1.986" not in figure.svg()
