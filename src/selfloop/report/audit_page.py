"""The page of an audit: one self-contained HTML file whose first screen answers it in sentences for any reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, get_args

import altair as alt
import numpy as np

from selfloop.audit.answer import (
    Aspect,
    Audit,
    AuditVerdict,
    Detail,
    Keep,
    bound_in_unit,
    describe_certainty,
    describe_cost,
    format_excess,
    format_pair,
)
from selfloop.audit.excess import Bound, NotAuditableError, read_excess
from selfloop.errors import printable
from selfloop.report import charts, curve_records
from selfloop.report.charts import Figure
from selfloop.report.gallery import GalleryView, read_galleries, view_gallery
from selfloop.report.page import template_environment
from selfloop.report.theme import FONT, INK, MUTED, Style, format_interval_parts, policy_styles
from selfloop.spec.write import spec_text
from selfloop.stats.forecast import forecast
from selfloop.stats.intervals import Interval
from selfloop.types import Coordinates

TITLES: Mapping[AuditVerdict, str] = {
    "degrades": "Degrades", "within": "Within the bound", "undecided": "Undecided", "not auditable": "Not auditable",
}  # fmt: skip
STARTS: Mapping[AuditVerdict, str] = {
    "degrades": "Yes, it gets worse on its own output",
    "within": "No, it does not get worse on its own output by more than the bound",
    "undecided": "Not decided",
}
VERDICT_ORDER: Sequence[AuditVerdict] = ("degrades", "undecided", "not auditable", "within")  # the first one is the page's
CHART_HEIGHT = 200
SHARE_TITLE = "real rows in every training set (%)"


def render_audit_page(audit: Audit, generated: datetime | None = None) -> str:
    """The page as text. The template escapes everything that comes from specs, models or data."""
    audits = sorted(audit.all(), key=lambda answer: VERDICT_ORDER.index(answer.verdict))
    styles = policy_styles(list(dict.fromkeys(label for each in audits for label in (each.policy, each.control))))
    forecasts = {each.policy: forecast for each in audits if (forecast := forecast_excess(each))}
    when, spec = generated or datetime.now(UTC), audit.spec
    searched = next((each for each in audits if each.keep), None)
    x = {"key": "a", "styles": styles, "galleries": list(_galleries(audits, styles))}
    page = template_environment().get_template("audit_page.html").render(
        answer_sentence=answer_sentence, audit_aspects=audit_aspects, describe_amount=describe_amount,
        describe_certainty=describe_certainty, describe_scale=describe_scale, detail_answers=detail_answers,
        keep_sentence=keep_sentence, titles=TITLES, audits=audits, forecasts=forecasts, searched=searched,
        title=f"Audit: {spec.family.name} on {spec.source.title()}", generated=f"{when.day} {when:%B %Y}", x=x,
        size=f"{spec.n:,} rows per training set, {spec.generations} generations" if spec.n else "",
        excess=excess_chart(audits, forecasts, styles) if any(has_curve(each) for each in audits) else None,
        keep_chart=keep_chart(searched.keep, searched) if searched and searched.keep and searched.keep.points else None,
        notes=list(dict.fromkeys(each.control_note for each in audits)), cost=describe_cost(audit),
        spec=spec_text(spec, brief=True),
        command=repeat_command(audit), versions={name: version(name) for name in ("selfloop", "numpy", "scipy")},
    )  # fmt: skip
    return printable(page)


def answer_sentence(audit: Audit) -> str:
    """Whether the loop degrades, in one or two sentences without words of statistics."""
    if audit.verdict == "not auditable":
        return f"This loop cannot be judged: {audit.reason}."
    start, estimate = STARTS[audit.verdict], audit.excess.estimate
    bound = f"The bound is {describe_bound(audit)}{bound_in_unit(audit)}."
    if estimate is None:  # chains collapsed, or no look was possible
        return _tight(f"{start}: {audit.reason}. {bound}")
    title, side = audit.title[:1].lower() + audit.title[1:], "above" if estimate >= 0 else "below"
    title += "," * ("," in title)  # ends the clause inside it
    amount = describe_amount(audit.excess, audit).split(" [")[0].lstrip("+−")
    control = f"{side} that of the same model on real rows"
    size = f"{control}, by {amount} of its {audit.of}" if describe_scale(audit) else f"{amount} {control}"
    return _tight(f"{start}: after {audit.generations} generations the {title} is {size}. {bound}")


def describe_scale(audit: Audit) -> str:
    """What 100 % is, if it is not the risk of the control; empty otherwise."""
    return "" if audit.is_absolute or audit.of == audit.title else f"100\u00a0% is the {audit.of}."


def describe_amount(interval: Interval, audit: Audit) -> str:
    """An excess with sign, unit and limits; empty without an estimate."""
    if interval.estimate is None:
        return ""
    factor, unit = (1, f" {audit.of}".rstrip()) if audit.is_absolute else (100, " %")
    low, high = (None if x is None else factor * x for x in (interval.low, interval.high))
    scaled = Interval(factor * interval.estimate, low, high, interval.n)
    number, limits = format_interval_parts(scaled)
    sign = "+" if not number.startswith("−") and number.strip("0.") else ""
    return _tight(f"{sign}{number}{unit}" + (f" {limits}" if limits else ""))


def _tight(text: str) -> str:
    """The text without line breaks before percent signs."""
    return text.replace(" %", "\u00a0%")


def repeat_command(audit: Audit) -> str:
    bound = f"{audit.bound:g}abs" if audit.is_absolute else f"{100 * audit.bound:g}%"
    looks = ",".join(map(str, audit.looks))
    return f"selfloop audit audit.toml --metric {audit.metric} --bound {bound} --looks {looks} --report audit.html"


def detail_answers(audit: Audit) -> Iterator[tuple[Detail, str]]:
    """Every metric with its answer; that of the risk is the verdict, whose test is more powerful."""
    main = {"degrades": "worse", "within": "same"}.get(audit.verdict, "undecided")
    for detail in audit.details:
        yield detail, main if detail.metric == audit.metric else detail.answer


def audit_aspects(audit: Audit) -> Iterator[tuple[str, str, str]]:
    """The answer of each aspect, that of its worst metric, with its numbers; then the aspects that were not measured."""
    unmeasured = []
    for aspect in get_args(Aspect):
        answers = {answer: detail for detail, answer in reversed(list(detail_answers(audit))) if detail.aspect == aspect}
        if answers:
            answer = next(answer for answer in ("worse", "better", "undecided", "same") if answer in answers)
            yield aspect, answer, f"{answers[answer].title} {format_pair(answers[answer])}"
        elif aspect not in ("quality", "length", "other"):  # of some kinds of rows only
            unmeasured.append(aspect)
    if unmeasured:
        yield ", ".join(unmeasured), "not measured", ""


def keep_sentence(audit: Audit) -> str:
    if audit.keep is not None:
        return _tight(audit.keep.text[0].upper() + audit.keep.text[1:])
    within = f"Within the bound without more of it, over {audit.generations} generations at these settings."
    return within if audit.verdict == "within" else "Not measured."


def _galleries(audits: Sequence[Audit], styles: Mapping[str, Style]) -> Iterator[tuple[Coordinates, GalleryView]]:
    """Sampled rows of the policies and their controls, where the store has any."""
    result = next((each.result for each in audits if each.result), None)
    if result is not None:
        for gallery in read_galleries(result.points, result.store):
            yield gallery.coordinates, view_gallery(gallery, styles)


def forecast_excess(audit: Audit) -> list[Interval]:
    """The excess of half as many generations again, with 90 % limits; empty if the seeds support no forecast."""
    metric = next((m for m in audit.spec.metrics if m.name == audit.metric), None)
    if audit.result is None or metric is None:
        return []
    try:
        curves = read_excess(audit.result, audit.policy, audit.control, metric, Bound(audit.bound, audit.is_absolute))
    except NotAuditableError:
        return []
    if not np.isfinite(curves.values).all():
        return []
    ahead = forecast(curves.values, max(audit.generations // 2, 1))
    limits = zip(ahead.mean.tolist(), ahead.low.tolist(), ahead.high.tolist(), strict=True)
    return [curves.to_fractions(Interval(*each, len(curves.values))) for each in limits] if not ahead.reason else []


def has_curve(audit: Audit) -> bool:
    """True if the excess is defined at a generation after the first, which policy and control share."""
    return any(interval.estimate is not None for interval in audit.excess_curve[1:])


def excess_chart(audits: Sequence[Audit], forecasts: Mapping[str, Sequence[Interval]], styles: Mapping[str, Style]) -> Figure:
    """The excess over the control by generation, its interval, the bound, and the forecast."""
    drawn = [audit for audit in audits if has_curve(audit)]
    measured = [record for audit in drawn for record in _records(audit, audit.excess_curve, 1)]
    ahead = [
        record
        for audit in drawn
        if audit.policy in forecasts
        for record in _records(audit, [audit.excess_curve[-1], *forecasts[audit.policy]], audit.generations)
    ]
    first, sets = drawn[0], {"excess": measured, "forecast": ahead}
    axis = _fit_axis([*measured, *ahead], _scaled(first.bound, first))
    y = _excess_channel(first, axis)
    last = max(record["generation"] for record in [*measured, *ahead])
    color, shape = charts.policy_channels(styles, [audit.policy for audit in drawn])

    def base(name: str, column: str) -> Any:
        return alt.Chart(alt.NamedData(name=name)).encode(
            x=charts.generation_axis(last), y=alt.Y(f"{column}:Q", **y), color=color
        )

    layers = []
    for name, opacity, dash in (("excess", 0.2, [1, 0]), ("forecast", 0.1, [4, 4])):
        if sets[name]:
            band = base(name, "low").mark_area(clip=True, opacity=opacity).encode(y2="high:Q")
            layers += [band, base(name, "value").mark_line(strokeWidth=2.4, strokeDash=dash, clip=True)]
    layers.append(base("excess", "value").mark_point(filled=True, size=50, opacity=1, clip=True).encode(shape=shape))
    layers += _rules(first, y)
    chart = alt.layer(*layers).properties(width=charts.WIDTH, height=CHART_HEIGHT)
    lasts = [(a, a.excess_curve[-1].estimate) for a in drawn]
    ends = "; ".join(f"{a.policy} {'undefined' if x is None else format_excess(x, a)}" for a, x in lasts)
    dashed = " Dashed: forecast with 90\u00a0% limits." if ahead else ""
    return Figure(
        name="excess",
        alt=f"Excess over the control by generation, at the last one: {ends}. The bound is {describe_bound(first)}.",
        caption="Excess over the matched control, which trains on real rows in place of the model's own. Bands: intervals at "
        f"the confidence of the audit, cut at the edge of the figure.{dashed}",
        spec=charts.finish_chart(chart, "Excess over the control by generation", sets),
    )


def keep_chart(keep: Keep, audit: Audit) -> Figure:
    """The measured excess by share of real rows, the bound, and the shares that may just meet it."""
    points: curve_records.Records = [
        {"share": 100 * point.real_share, **_limits(point.excess, audit)}
        for point in keep.points
        if point.excess.estimate is not None
    ]
    y = _excess_channel(audit, _fit_axis(points, _scaled(audit.bound, audit)))
    scale, sets = alt.Scale(domain=[0, 100], nice=False, padding=6), {"points": points}
    x = alt.X("share:Q", title=SHARE_TITLE, scale=scale, axis=alt.Axis(grid=False))
    base = alt.Chart(alt.NamedData(name="points")).encode(x=x)
    line = base.mark_line(strokeWidth=1.5, color=MUTED, clip=True).encode(y=alt.Y("value:Q", **y))
    whiskers = base.mark_rule(strokeWidth=1.6, color=INK, clip=True).encode(y=alt.Y("low:Q", **y), y2="high:Q")
    layers = [line, whiskers, base.mark_point(filled=True, size=60, color=INK, opacity=1).encode(y=alt.Y("value:Q", **y))]
    if keep.low is not None and keep.high is not None:
        span = alt.Chart(alt.Data(values=[{"low": 100 * keep.low, "high": 100 * keep.high}]))
        layers.insert(
            0, span.mark_rect(opacity=0.12, color=INK).encode(x=alt.X("low:Q", title=SHARE_TITLE, scale=scale), x2="high:Q")
        )
    if keep.theory is not None:
        theory = alt.Chart(alt.Data(values=[{"share": 100 * keep.theory}])).encode(x=x)
        layers.append(theory.mark_rule(strokeDash=[6, 3], color=MUTED, strokeWidth=1.5))
    chart = alt.layer(*layers, *_rules(audit, y)).properties(width=charts.WIDTH, height=CHART_HEIGHT)
    theory_words = (
        f" Dashed upright line: exact theory for means, {100 * keep.theory:.0f} %." if keep.theory is not None else ""
    )
    return Figure(
        name="keep",
        alt=f"Excess over the control by share of real rows: {keep.text}",
        caption=f"Points: measured shares with 95 % intervals. Gray area: shares that may just meet the bound.{theory_words}",
        spec=charts.finish_chart(chart, "Excess by share of real rows", sets),
    )


def describe_bound(audit: Audit) -> str:
    return f"{audit.bound:g} {audit.of}".rstrip() if audit.is_absolute else f"{100 * audit.bound:g} %"


def _rules(audit: Audit, y: Mapping[str, Any]) -> Iterator[Any]:
    """The bound with its name, and the level of the control."""
    rows = [(_scaled(audit.bound, audit), f"bound {describe_bound(audit)}", "bottom"), (0.0, "control", "top")]
    for value, label, baseline in rows:
        line = alt.Chart(alt.Data(values=[{"value": value, "label": label}])).encode(y=alt.Y("value:Q", **y))
        yield line.mark_rule(strokeWidth=1.4, color=INK, strokeDash=[2, 3] if value else [1, 0])
        text = line.mark_text(
            align="left", baseline=baseline, dy=3 if baseline == "top" else -3, font=FONT, fontSize=12, color=INK
        )
        yield text.encode(x=alt.value(4), text="label:N")


def _records(audit: Audit, intervals: Sequence[Interval], first: int) -> Iterator[dict[str, Any]]:
    for t, interval in enumerate(intervals, first):
        if interval.estimate is not None:
            yield {"policy": audit.policy, "generation": t, **_limits(interval, audit)}


def _limits(interval: Interval, audit: Audit) -> dict[str, Any]:
    """The numbers of an interval in the unit of the chart; limits that do not exist are at the estimate."""
    estimate = interval.estimate
    low, high = (estimate if x is None else x for x in (interval.low, interval.high))
    numbers = {"value": estimate, "low": low, "high": high}
    return {name: curve_records.json_number(_scaled(x, audit)) for name, x in numbers.items() if x is not None}


def _scaled(value: float, audit: Audit) -> float:
    return value if audit.is_absolute else 100 * value


def _fit_axis(records: curve_records.Records, bound: float) -> curve_records.ValueAxis:
    """The axis with all estimates, 0 and the bound; limits may lengthen it by half at either end."""
    numbers = {name: [record[name] for record in records if record[name] is not None] for name in ("value", "low", "high")}
    low, high = min([0.0, *numbers["value"]]), max([bound, *numbers["value"]])
    margin = (high - low) / 2
    low, high = max(min([low, *numbers["low"]]), low - margin), min(max([high, *numbers["high"]]), high + margin)
    room = 0.06 * (high - low)
    return curve_records.ValueAxis(low - room, high + room, log=False, cut=False)


def _excess_channel(audit: Audit, axis: curve_records.ValueAxis) -> dict[str, Any]:
    unit = f"excess ({audit.of or 'absolute'})" if audit.is_absolute else "excess over the control (%)"
    return {
        "title": unit,
        "scale": alt.Scale(domain=[axis.low, axis.high], nice=False, zero=False),
        "axis": alt.Axis(tickCount=5),
    }
