"""The page of an audit: one self-contained HTML file whose first screen answers it in sentences for any reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from selfloop.audit.answer import (
    Aspect,
    Audit,
    AuditVerdict,
    Detail,
    bound_in_unit,
    describe_certainty,
    describe_cost,
    format_pair,
)
from selfloop.errors import printable
from selfloop.formats.replacing import write_text
from selfloop.report.audit_charts import describe_bound, excess_chart, forecast_excess, has_curve, keep_chart
from selfloop.report.gallery import GalleryView, read_galleries, view_gallery
from selfloop.report.page import template_environment
from selfloop.report.theme import Style, format_interval_parts, policy_styles
from selfloop.spec.write import spec_text
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


def write_audit_page(audit: Audit, path: Path) -> Path:
    """Write the page of an audit and return its file."""
    write_text(path, render_audit_page(audit))
    return path


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
    """The command that repeats the audit from its spec."""
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
    """How much real data is needed."""
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
