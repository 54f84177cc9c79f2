"""Curves: which data are drawn, on which axis, in which colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_reports import digits_report, ending_report, linear_report

from selfloop.report.charts import value_scale
from selfloop.report.figures import ledger_figure, panel_figure, report_figures
from selfloop.report.theme import DARK, policy_styles, readable, show, show_interval, themed
from selfloop.report.values import Panel, PanelLaw, PanelPublished, curve_of, ledger_of

STYLES = policy_styles(["replace"])


def panel_of(values: np.ndarray, **more: object) -> Panel:
    curve = curve_of("replace", range(1, values.shape[1] + 1), values)
    return Panel(metric="m", title="error", unit="nats", curves=[curve], **more)  # type: ignore[arg-type]


def spread(means: list[float], width: float = 0.01, seeds: int = 4) -> np.ndarray:
    return np.array(means)[None, :] + np.linspace(-width, width, seeds)[:, None]


def test_means_carry_their_interval_and_stop_where_the_first_chain_ends() -> None:
    values = spread([1.0, 2.0, 3.0, 4.0])
    values[0, 2:] = np.nan
    spec = panel_figure(panel_of(values), policy_styles(["replace"])).spec
    means = spec["datasets"]["means"]
    assert [row["generation"] for row in means] == [1, 2]
    assert means[0]["low"] < means[0]["mean"] < means[0]["high"]
    assert [row["value"] for row in spec["datasets"]["survivors"]] == [4, 4, 3, 3]
    assert [row["generation"] for row in spec["datasets"]["medians"]] == [1, 2, 3, 4]


def test_chains_left_are_drawn_only_where_chains_end() -> None:
    whole, ends = digits_report().panels[0], ending_report().panels[0]
    assert (
        "survivors"
        not in panel_figure(whole, policy_styles(["replace", "accumulate", "accumulate_subsample"])).spec["datasets"]
    )
    assert "vconcat" in panel_figure(ends, policy_styles(["replace", "accumulate"])).spec


def test_single_chains_are_drawn_only_when_they_are_few() -> None:
    few, many = (panel_figure(panel_of(spread([1.0, 2.0], seeds=n)), policy_styles(["replace"])) for n in (12, 13))
    assert len(few.spec["datasets"]["chains"]) == 24
    assert "chains" not in many.spec["datasets"]
    assert "single chains" in few.caption
    assert "single chains" not in many.caption


def test_thousands_of_chains_cost_no_more_ink_than_fifty() -> None:
    few, many = (len(report_figures(linear_report(seeds))[0].svg()) for seeds in (50, 2000))
    assert abs(many - few) < 0.05 * few


def test_one_seed_is_a_line_without_a_band() -> None:
    means = panel_figure(panel_of(np.array([[1.0, 2.0]])), policy_styles(["replace"])).spec["datasets"]["means"]
    assert [row["low"] for row in means] == [None, None]


def test_laws_and_published_values_have_legends_of_their_own() -> None:
    report = linear_report()
    figure = report_figures(report)[0]
    svg = figure.svg()
    for label in ("replace: t d / (n - d - 1) (exact law)", "first error (bound)", "Fig. 2 (published)"):
        assert label in svg
    laws = [row for row in figure.spec["datasets"]["laws"] if row["label"].startswith("replace")]
    assert laws[-1]["value"] == pytest.approx(report.panels[0].laws[0].values[-1], rel=1e-5)
    assert "Gerstgrasser et al. 2024" in figure.caption


@pytest.mark.parametrize(
    ("means", "log"), [([1.0, 29.0], False), ([1.0, 31.0], True), ([-1.0, 100.0], False), ([0.0, 100.0], False)]
)
def test_the_axis_is_logarithmic_where_positive_values_span_a_factor_of_thirty_and_says_so(
    means: list[float], log: bool
) -> None:
    panel = panel_of(spread(means, 0.0))
    assert value_scale(panel).log is log
    assert ("log scale" in panel_figure(panel, policy_styles(["replace"])).svg()) is log


def elsewhere_of(values: list[float], first: int = 1, policy: str = "replace") -> PanelPublished:
    generations = range(first, first + len(values))
    return PanelPublished(label="A 2024", policy=policy, generations=generations, values=values, scale="big", source="table 2")


def test_curves_of_another_scale_begin_where_the_measured_one_does_and_keep_their_rise() -> None:
    figure = panel_figure(panel_of(spread([5.0, 6.0, 7.0]), published=[elsewhere_of([1.5, 2.0, 2.25])]), STYLES)
    rows = figure.spec["datasets"]["elsewhere"]
    assert [row["value"] for row in rows] == pytest.approx([5.0, 5.5, 5.75])
    assert [row["published"] for row in rows] == [1.5, 2.0, 2.25]
    assert "A 2024, big (another scale)" in figure.svg()
    assert "A 2024, table 2" in figure.caption
    assert "moved up or down as a whole" in figure.caption
    assert "published" not in figure.spec["datasets"]


def test_a_curve_of_another_scale_without_a_measured_start_is_not_drawn() -> None:
    other, late = elsewhere_of([1.0, 2.0], policy="accumulate"), elsewhere_of([1.0, 2.0], first=4)
    figure = panel_figure(panel_of(spread([5.0, 6.0]), published=[other, late]), STYLES)
    assert "elsewhere" not in figure.spec["datasets"]
    assert "NaN" not in figure.svg()


def test_curves_of_another_scale_lengthen_the_axis_by_half_at_most() -> None:
    near = value_scale(panel_of(spread([5.0, 6.0]), published=[elsewhere_of([1.0, 2.3])]))
    assert 6.3 < near.high < 6.5
    panel = panel_of(spread([5.0, 6.0]), published=[elsewhere_of([1.8, 9.8])])
    assert value_scale(panel).high < 6.7
    assert "curves of another scale are cut at the edge" in panel_figure(panel, STYLES).caption


def test_only_curves_of_the_same_setting_stretch_the_axis() -> None:
    here = PanelPublished(label="A", policy="replace", generations=[1, 2], values=[1.8, 9.8])
    assert value_scale(panel_of(spread([5.0, 6.0]), published=[here])).high > 9.8


def test_laws_and_curves_of_another_scale_keep_dashes_of_their_own() -> None:
    law = PanelLaw(name="law", kind="bound", policy="replace", generations=[1, 2], values=[5.0, 6.0])
    svg = panel_figure(panel_of(spread([5.0, 6.0]), laws=[law], published=[elsewhere_of([1.0, 1.5])]), STYLES).svg()
    assert "replace: law (bound)" in svg
    assert "A 2024, big (another scale)" in svg


def test_everything_but_wide_intervals_fits_the_axis() -> None:
    law = PanelLaw(name="law", kind="exact", policy="replace", generations=[1, 2], values=[5.0, 9.0])
    scale = value_scale(panel_of(spread([1.0, 2.0], 0.01), laws=[law]))
    assert scale.low < 1 < 9 < scale.high
    assert not scale.cut
    few = np.array([[1.0, 2.0], [1.3, 1.4]])  # two seeds: intervals twelve standard errors wide
    cut = value_scale(panel_of(few))
    assert cut.cut
    assert cut.high - cut.low < 3  # the interval alone is 7.6 long
    assert "cut at the edge" in panel_figure(panel_of(few), policy_styles(["replace"])).caption


def test_an_interval_that_reaches_zero_runs_off_a_logarithmic_axis_instead_of_vanishing() -> None:
    values = np.array([[1.0, 0.5, 90.0], [1.1, 9.0, 110.0]])  # the second interval reaches below 0
    figure = panel_figure(panel_of(values), policy_styles(["replace"]))
    second = figure.spec["datasets"]["means"][1]
    assert second["low"] < 0 < second["bottom"]
    assert "NaN" not in figure.svg()


def test_every_axis_has_a_name_and_the_unit() -> None:
    svg = panel_figure(panel_of(spread([1.0, 2.0])), policy_styles(["replace"])).svg()
    assert ">error (nats)<" in svg
    assert ">generation t<" in svg
    ledger = ledger_figure(linear_report().ledgers, policy_styles(linear_report().policies())).svg()
    for name in ("rows trained on", "real share of training mass", "mean data age (generations)", "generation t"):
        assert f">{name}<" in ledger


def test_the_ledger_is_read_from_the_schedule() -> None:
    from selfloop.policies.builtin import Accumulate

    ledger = ledger_of("accumulate", Accumulate(), 10, 3)
    assert list(ledger.rows) == [10, 20, 30]
    assert ledger.real_mass == pytest.approx([1, 1 / 2, 1 / 3])
    assert ledger.data_age == pytest.approx([1, 1.5, 2])


def test_known_policies_have_fixed_colours_and_all_pairs_of_colour_and_marker_differ() -> None:
    alone, among = policy_styles(["replace"]), policy_styles(["fresh", "accumulate", "replace", "mix"])
    assert alone["replace"] == among["replace"]
    labels = ["replace", "accumulate", *(f"fresh(ratio={i})" for i in range(14))]
    styles = policy_styles(labels).values()
    assert len({(style.color, style.marker) for style in styles}) == len(labels)
    assert all({style.color, style.shade} <= set(DARK) for style in styles)


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_colours_stand_out_from_their_ground(ground: str) -> None:
    def luminance(color: str) -> float:
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    def shown(color: str) -> str:
        return color if ground == "light" else DARK[color]

    ink, muted, _, paper = list(DARK)[:4]
    assert contrast(shown(ink), shown(paper)) > 12
    assert contrast(shown(muted), shown(paper)) > 4.5  # WCAG AA, text
    for style in policy_styles(["replace", "accumulate", "accumulate_subsample"]).values():
        assert contrast(shown(style.color), shown(paper)) > 3  # WCAG AA, graphics
        assert contrast(shown(style.shade), shown(paper)) > 7


def test_colours_of_an_inlined_picture_follow_the_scheme() -> None:
    svg = themed('<svg width="1"><g id="a" fill="#0072b2" stroke="#123456" clip-path="url(#a)"/></svg>', "f1", 'a "name"')
    assert 'fill="var(--c0072b2)"' in svg
    assert 'stroke="#123456"' in svg
    assert 'id="f1-a"' in svg
    assert "url(#f1-a)" in svg
    assert 'aria-label="a &quot;name&quot;"' in svg


def test_pictures_of_many_figures_do_not_share_ids() -> None:
    svgs = [themed(figure.svg(), f"f{i}", "x") for i, figure in enumerate(report_figures(digits_report()))]
    ids = [{part.split('"')[0] for part in svg.split('id="')[1:]} for svg in svgs]
    assert all(not a & b for a, b in itertools.combinations(ids, 2))


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
    assert show(value) == text


def test_intervals_are_shown_with_digits_enough_to_tell_their_ends_apart() -> None:
    assert show_interval(1.11, 1.08, 1.15) == "1.110 [1.080, 1.150]"
    assert show_interval(1.11342, 1.11311, 1.11373) == "1.11342 [1.11311, 1.11373]"
    assert show_interval(1234.5, 1100.0, 1400.0) == "1,234 [1,100, 1,400]"
    assert show_interval(2.0, None, None) == "2.00"
    assert show_interval(-0.12, -5.2, 5.1) == "0 [−5, 5]"


def test_what_no_picture_can_hold_is_made_visible() -> None:
    assert readable("a\x00b\x1bc\ud800d\x85\n") == "a␀b␛c\ufffdd\ufffd\n"
