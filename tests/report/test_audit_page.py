"""The page of an audit answers on its first screen, in plain sentences, and holds nothing that a reader has to fetch."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from example_galleries import HOSTILE

import selfloop
from selfloop.audit.answer import Audit, AuditCost, Detail, Keep, MeasuredShare
from selfloop.formats.replacing import write_text
from selfloop.report.audit_page import (
    answer_sentence,
    audit_aspects,
    describe_amount,
    excess_chart,
    forecast_excess,
    keep_chart,
    render_audit_page,
    repeat_command,
)
from selfloop.report.theme import DARK, policy_styles
from selfloop.spec.parse import parse_spec
from selfloop.stats.intervals import Interval

SPEC = parse_spec(
    'n = 100\ngenerations = 6\nseeds = 5\nmetrics = ["mean_error"]\nsource = "gaussian"\nfamily = "gaussian"\n'
    'policies = [{ name = "mix", real_share = 0.3 }, { name = "control", of = { name = "mix", real_share = 0.3 } }]\n',
    "test",
)
WHEN = datetime(2026, 3, 2, tzinfo=UTC)
DETAILS = (
    Detail(
        metric="mean_error", title="squared error of the mean", unit="", aspect="loss", policy=0.012, control=0.0113,
        difference=Interval(0.0007, 0.0001, 0.0013, 8), answer="undecided",
    ),
    Detail(
        metric="entropy", title="entropy", unit="nats", aspect="diversity", policy=1.0, control=1.1,
        difference=Interval(-0.1, -0.15, -0.05, 8), answer="worse",
    ),
    Detail(
        metric="modes", title="modes", unit="", aspect="classes", policy=10.0, control=10.0,
        difference=Interval(0.0, None, None, 8), answer="same",
    ),
)  # fmt: skip
KEEP = Keep(
    setting="mix.real_share", answer="keep", text="at least 63 % real rows in every training set [51, 74].",
    estimate=0.63, low=0.51, high=0.74, theory=0.59,
    points=tuple(
        MeasuredShare(value=x, real_share=x, excess=Interval(0.09 - 0.1 * x, 0.07 - 0.1 * x, 0.11 - 0.1 * x, 8), seeds=8)
        for x in (0.0, 0.5, 0.75)
    ),
)  # fmt: skip


def example_audit(**changes: object) -> Audit:
    excess = [Interval(0.012 * (t - 1), 0.008 * (t - 1), 0.016 * (t - 1), 8) for t in range(1, 7)]
    audit = Audit(
        verdict="degrades", reason="decided after 8 seeds", policy="mix", control="control", metric="mean_error",
        title="Squared error of the mean", bound=0.02, of="Squared error of the mean", is_absolute=False, generations=6,
        excess=excess[-1], growth=Interval(0.012, 0.008, 0.016, 8), excess_curve=tuple(excess), seeds=8, looks=(5, 8, 12),
        max_seeds=12, details=DETAILS, keep=KEEP, control_note="real rows in place of synthetic ones, same number and steps",
        cost=AuditCost(fits=80, seconds=4320.0, seconds_saved=0.0),
        not_said=("other sampling settings", "more than 6 generations"), result=None, spec=SPEC,
    )  # fmt: skip
    return replace(audit, **changes)  # type: ignore[arg-type]


class _Text(HTMLParser):
    """The words of the page before the first section, and all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.everything, self.skip, self.is_first, self.links = "", "", 0, True, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skip += tag in ("style", "svg", "script")
        self.is_first = self.is_first and tag != "section"
        self.links += [value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag in ("style", "svg", "script")

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.everything += data
            self.first += data if self.is_first else ""


def read_page(audit: Audit) -> _Text:
    parser = _Text()
    parser.feed(render_audit_page(audit, WHEN))
    parser.first, parser.everything = (" ".join(text.split()) for text in (parser.first, parser.everything))
    return parser


def test_the_first_screen_answers_every_question() -> None:
    text = read_page(example_audit(audits=(example_audit(policy="accumulate", verdict="within", keep=None),))).first
    for words in (
        "Degrades mix",
        "Yes, it gets worse on its own output: after 6 generations the squared error of the mean is 6.0 % above that of the "
        "same model on real rows. The bound is 2 %.",
        "+1.20 % [0.80, 1.60] per generation; +6.0 % [4.0, 8.0] at generation 6",
        "loss ▲ worse squared error of the mean 0.012, control 0.0113 diversity ▲ worse entropy 1, control 1.1",
        "classes = same modes 10, control 10 tails, duplicates – not measured",
        "At least 63 % real rows in every training set [51, 74].",
        "Decided after 8 of at most 12 seeds",
        "1 h 12 min, 80 fits",
        "Other sampling settings, more than 6 generations.",
        "accumulate Within the bound",
    ):
        assert words in text


def test_the_page_is_one_short_file_without_scripts_for_both_color_schemes(tmp_path: Path) -> None:
    write_text(file := tmp_path / "audit.html", render_audit_page(example_audit()))
    html = file.read_text(encoding="utf-8")
    assert read_page(example_audit()).links == []
    assert "<script" not in html
    assert "script-src &#39;none&#39;" in html
    assert len(html) < 120_000
    drawn = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', html))
    assert drawn & set(DARK) == set(), "a color that stays as it is in the dark"
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"verdict": "within", "excess": Interval(-0.002, -0.01, 0.006, 8)},
            "more than the bound: after 6 generations .* 0.2 % below",
        ),
        ({"verdict": "undecided"}, "^Not decided: after 6 generations"),
        ({"verdict": "not auditable", "reason": "chains ended"}, "^This loop cannot be judged: chains ended.$"),
        (
            {"excess": Interval(None, None, None, 0), "reason": "decided after 8 seeds; 6 of 8 chains of the policy collapsed"},
            "^Yes, it gets worse on its own output: decided after 8 seeds; 6 of 8 chains of the policy collapsed. The bound",
        ),
        (
            {"verdict": "undecided", "excess": Interval(None, None, None, 0), "excess_curve": ()},
            "^Not decided: decided after 8",
        ),
        (
            {"is_absolute": True, "of": "nats per row", "bound": 0.05},
            "0.060 nats per row above .* The bound is 0.05 nats per row.$",
        ),
        (
            {"of": "distance of nll from the mean"},
            "is above that of the same model on real rows, by 6.0 % of its distance of nll",
        ),
        (
            {"is_absolute": True, "of": "", "bound": 0.05, "title": "loss, as computed"},
            "the loss, as computed, is 0.060 above .* The bound is 0.05.$",
        ),
    ],
)
def test_every_verdict_has_its_sentence(changes: dict[str, object], words: str) -> None:
    audit = example_audit(**changes)
    assert re.search(words, answer_sentence(audit).replace("\u00a0", " "))
    assert read_page(audit).first


def test_the_answer_of_the_risk_is_the_verdict_and_not_the_weaker_test_of_the_table() -> None:
    for verdict, answer in (("degrades", "worse"), ("within", "same"), ("undecided", "undecided")):
        assert next(audit_aspects(example_audit(verdict=verdict)))[:2] == ("loss", answer)


def test_a_bound_in_percent_is_named_in_the_unit_of_the_loss_and_within_claims_these_settings_only() -> None:
    loss = replace(DETAILS[0], unit="nats per token", control=4.66)
    text = read_page(example_audit(details=(loss,), verdict="within", bound=0.05, keep=None)).first
    assert "The bound is 5 % (0.23 nats per token)." in text
    assert "Within the bound without more of it, over 6 generations at these settings." in text
    gained = example_audit(details=(loss,), of="gain over independent columns")
    assert "nats per token)" not in answer_sentence(gained), "5 % of a gain is no 5 % of the loss"


def test_the_worst_policy_comes_first() -> None:
    page = read_page(example_audit(verdict="within", policy="good", audits=(example_audit(policy="bad"),))).first
    assert page.index("Degrades bad") < page.index("good Within the bound")


def test_limits_keep_their_sign_and_undefined_ones_are_left_out() -> None:
    audit = example_audit()
    assert describe_amount(Interval(0.06, -0.01, 0.13, 5), audit) == "+6\u00a0% [−1, 13]"
    assert describe_amount(Interval(-0.031, None, None, 1), audit) == "−3.10\u00a0%"
    assert describe_amount(Interval(0.0, -0.01, 0.01, 5), audit) == "0.0\u00a0% [−1.0, 1.0]"
    assert describe_amount(Interval(None, None, None, 0), audit) == ""


def test_the_chart_has_the_bound_every_generation_and_a_gap_without_limits() -> None:
    audit = example_audit(excess_curve=(*example_audit().excess_curve[:5], Interval(0.06, None, None, 1)))
    figure = excess_chart([audit], {}, policy_styles(["mix"]))
    records = figure.spec["datasets"]["excess"]
    assert [record["generation"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert (records[-1]["low"], records[-1]["high"]) == (6.0, 6.0)
    assert "bound 2 %" in figure.svg()
    assert "at the last one: mix 6.0 %. The bound is 2 %." in figure.alt


def test_a_policy_whose_chains_all_collapse_has_a_page_without_numbers() -> None:
    none = Interval(None, None, None, 8)
    collapsed = example_audit(excess=none, growth=none, excess_curve=(Interval(0.0, None, None, 8), *[none] * 5))
    text = read_page(collapsed).first
    assert text.startswith("Audit: gaussian on gaussian")
    assert "Degrades mix Yes, it gets worse" in text
    assert "By how much" not in text
    assert "<svg" in render_audit_page(example_audit(audits=(collapsed,)), WHEN)


def test_the_share_to_keep_is_drawn_with_its_interval_and_theory() -> None:
    figure = keep_chart(KEEP, example_audit())
    assert [record["share"] for record in figure.spec["datasets"]["points"]] == [0, 50, 75]
    assert "exact theory for means, 59 %" in figure.caption
    assert "exact theory" not in keep_chart(replace(KEEP, theory=None, low=None, high=None), example_audit()).caption


def test_the_forecast_of_an_audit_continues_its_excess_and_needs_a_result(tmp_path: Path) -> None:
    assert forecast_excess(example_audit()) == []
    result = selfloop.run(SPEC, tmp_path)
    audit = example_audit(result=result)
    forecast = forecast_excess(audit)
    assert len(forecast) == 3
    measured = result.curves()
    ratio = np.log(measured["mix(0.3)" if "mix(0.3)" in measured else "mix"]["mean_error"] / measured["control"]["mean_error"])
    assert abs(np.log1p(forecast[0].estimate) - ratio[:, -1].mean()) < 3 * ratio[:, -1].std()
    text = read_page(audit).first
    assert "Forecast: " in text
    assert "at generation 9, with 90 % limits" in text


def test_the_command_repeats_the_audit() -> None:
    command = repeat_command(example_audit())
    assert command == "selfloop audit audit.toml --metric mean_error --bound 2% --looks 5,8,12 --report audit.html"
    assert "--bound 0.05abs" in repeat_command(example_audit(is_absolute=True, bound=0.05))


def test_text_of_the_user_cannot_break_out_of_the_page() -> None:
    details = tuple(replace(detail, title=HOSTILE, unit=HOSTILE) for detail in DETAILS)
    hostile = example_audit(
        reason=HOSTILE, title=HOSTILE, of=HOSTILE, details=details, control_note=HOSTILE, not_said=(HOSTILE,), policy=HOSTILE,
        keep=replace(KEEP, text=HOSTILE),
    )  # fmt: skip
    html = render_audit_page(hostile, WHEN)
    assert "<script" not in html
    assert HOSTILE not in html
