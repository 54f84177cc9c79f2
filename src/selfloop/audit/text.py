"""The first screen of an audit as text."""

from __future__ import annotations

from collections.abc import Iterator

from selfloop.audit.answer import Audit, Detail
from selfloop.notebook import format_seconds
from selfloop.stats.intervals import Interval
from selfloop.stats.sequential import PROMISED

MAX_DETAILS = 6  # metrics in a line
INDENT = 10


def first_screen(audit: Audit) -> str:
    """The answers, the share to keep, the control, the cost and the limits of the answer: a few lines of plain text."""
    lines = [line for each in audit.all() for line in _answer_lines(each)]
    for answer in audit.all():
        if changed := [detail for detail in answer.details if detail.answer in ("worse", "better")]:
            words = ", ".join(f"{d.metric} {d.answer} ({format_pair(d)})" for d in changed[:MAX_DETAILS])
            lines.append(_labeled("IN WHAT", f"{answer.policy_title}: {words}."))
        if answer.keep:
            lines.append(_labeled("KEEP", answer.keep.text[0].upper() + answer.keep.text[1:]))
    notes = dict.fromkeys(f"{each.control_note}." for each in audit.all())
    lines += [_labeled("CONTROL", note[0].upper() + note[1:]) for note in notes]
    lines.append(_labeled("COST", describe_cost(audit)))
    lines.append(_labeled("NOT SAID", ", ".join(audit.not_said) + "."))
    return "\n".join(lines)


def _answer_lines(audit: Audit) -> Iterator[str]:
    yield _labeled(audit.verdict.upper(), describe_answer(audit))
    if certainty := describe_certainty(audit):
        yield " " * INDENT + certainty


def describe_answer(audit: Audit) -> str:
    """The answer of one policy in a sentence, with its interval and the bound."""
    bound = format_excess(audit.bound, audit) + bound_in_unit(audit)
    if audit.verdict == "not auditable":
        return f"{audit.policy_title}: {audit.reason}."
    if audit.excess.estimate is None:
        return f"{audit.policy_title}: {audit.reason}; bound {bound}."
    side = "above" if audit.excess.estimate >= 0 else "against"  # the sign is that of the limits
    size = format_excess(audit.excess.estimate, audit)
    end = f"at generation {audit.generations}{_format_limits(audit.excess, audit)}; bound {bound}."
    if audit.is_absolute or audit.of == audit.title:
        return f"{audit.policy_title}: {audit.metric} {size} {side} the matched control {end}"
    return f"{audit.policy_title}: {audit.metric} {side} the matched control, by {size} of its {audit.of}, {end}"


def describe_certainty(audit: Audit) -> str:
    """How sure the answer of one policy is."""
    if audit.verdict in ("undecided", "not auditable"):
        return "" if audit.excess.estimate is None else f"{audit.reason[0].upper()}{audit.reason[1:]}."
    wrong = "within the bound" if audit.verdict == "degrades" else "over the bound"
    seeds = f"Decided after {audit.seeds} of at most {audit.max_seeds} seeds"
    signs = audit.reason.partition("; ")[2]
    return f"{seeds}{f' ({signs})' if signs else ''}; nominally, at most {100 * PROMISED:g} % of loops {wrong} are called so."


def describe_cost(audit: Audit) -> str:
    """Time and fits of an audit."""
    cost = audit.cost
    saved = f"; the store saved {format_seconds(round(cost.seconds_saved))}" if cost.seconds_saved >= 1 else ""
    fits = f"{cost.fits:,} fits" if cost.is_complete else f"at least {cost.fits:,} fits, as the budget ended a run"
    return f"{format_seconds(round(cost.seconds))}, {fits}{saved}."


def format_excess(value: float, audit: Audit) -> str:
    """An excess with its unit."""
    return f"{value:.3g} {audit.of}".rstrip() if audit.is_absolute else f"{_percent(value)} %"


def bound_in_unit(audit: Audit) -> str:
    """In parentheses what a bound in percent of a risk is in the risk's unit; empty for others."""
    own = next((detail for detail in audit.details if detail.metric == audit.metric and detail.unit), None)
    if audit.is_absolute or own is None or audit.of != audit.title:
        return ""
    return f" ({audit.bound * own.control:.2g} {own.unit})"


def format_pair(detail: Detail) -> str:
    """The means of policy and control."""
    return f"{detail.policy:.4g}, control {detail.control:.4g}"


def _format_limits(interval: Interval, audit: Audit) -> str:
    if interval.low is None or interval.high is None:
        return ""
    low, high = ((f"{x:.3g}" if audit.is_absolute else _percent(x)) for x in (interval.low, interval.high))
    return f" [{low}, {high}]"


def _percent(value: float) -> str:
    number = 100 * value
    return f"{number:.1f}" if abs(number) < 100 else f"{number:,.0f}"


def _labeled(label: str, text: str) -> str:
    return f"{label:<{INDENT - 1}} {text}"
