"""The answer of a report: what happened to the main metric under each policy, in one sentence that its seeds support."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from selfloop.criteria.judging import MAX_NEEDED_SEEDS, Reference, judge_ended, needed_seeds
from selfloop.report.curve_records import prominent_policies
from selfloop.report.theme import (
    describe_better,
    describe_coordinates,
    format_change,
    format_count,
    format_interval,
    format_number,
)
from selfloop.report.values import CurveData, Panel, Report
from selfloop.stats.comparison import MARGIN_SHARE
from selfloop.stats.intervals import Interval, at_look, mean_interval, ratio_interval
from selfloop.stats.trend import FLAT_TOLERANCE, last_step, late_change
from selfloop.types import Coordinates, Verdict

Change = Literal["rose", "fell", "unchanged", "undecided", "ended", "missing"]
LOSSES = ("nll", "log_loss", "cross_entropy", "negative_elbo", "denoising_loss", "evaluation")  # "loss" in a sentence
_SWEEP_WORDS: Mapping[Change, str] = {
    "rose": "rose", "fell": "fell", "unchanged": "did not change", "undecided": "is undecided", "ended": "has ended chains",
    "missing": "has no value",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PolicyAnswer:
    """What the main metric did under one policy at one point of the sweep, from the first to the last generation."""

    policy: str
    coordinates: Coordinates
    answer: Change
    sentence: str
    change: Interval  # of a ratio to the first value if `is_ratio`, else of a difference; at the level of the look
    difference: Interval
    is_ratio: bool
    values: tuple[float, float]  # means at the first and the last generation, NaN if undefined
    badness: float  # policies are sorted by it, the worst first
    needed: str = ""  # how many more seeds would decide, or why none; empty unless undecided
    real_share: float | None = None  # of the training mass at the last generation, where known
    n_left: int = 0  # chains with a value at the last generation
    n_collapsed: int = 0  # verdicts with a yes
    n_undecided: int = 0
    n_measured: int = 0  # verdicts with an answer

    def change_text(self) -> tuple[str, str]:
        return format_change(self.change, is_ratio=self.is_ratio)


@dataclass(frozen=True, kw_only=True)
class FirstScreen:
    """The answer as the page shows it first."""

    alarms: list[str]  # said before all else: not finished, no values, every chain ended
    sentences: list[tuple[str, str]]  # (policy, sentence)
    about: str  # the main metric in words, its unit and direction
    rows: list[PolicyAnswer]  # of the table, the worst first
    generations: int  # 0 if points of the sweep have different numbers of them
    certainty: list[str]  # how sure, one sentence each


def first_screen(report: Report) -> FirstScreen:
    if not report.panels:
        return FirstScreen(alarms=[*report.missing], sentences=[], about="", rows=[], generations=0, certainty=[])
    answers, main = policy_answers(report), report.panels[0]
    rows = [row for point in answers.values() for row in point]
    lengths = {curve.values.shape[1] for panel in report.panels if panel.metric == main.metric for curve in panel.curves}
    if len(answers) == 1:
        leading = {*prominent_policies(main.curves), *report.primary}
        sentences = [(row.policy, row.sentence) for row in rows if row.policy in leading]
    else:
        sentences = list(sweep_sentences(rows, len(answers), metric_noun(main)))
    return FirstScreen(
        alarms=list(_alarms(report, answers)), sentences=sentences, about=_describe_metric(main, rows),
        rows=sorted(rows, key=lambda row: -row.badness), generations=lengths.pop() if len(lengths) == 1 else 0,
        certainty=list(_certainty(report, rows)),
    )  # fmt: skip


def _alarms(report: Report, answers: dict[Coordinates, list[PolicyAnswer]]) -> Iterator[str]:
    if report.unfinished:
        yield f"{report.unfinished[0].upper()}{report.unfinished[1:]}."
    yield from report.missing
    rows = [row for point in answers.values() for row in point]
    if all(row.answer == "ended" and np.isnan(row.values[1]) and row.n_left == 0 for row in rows):
        yield "Every chain of every policy ended before the last generation."


def _describe_metric(panel: Panel, rows: list[PolicyAnswer]) -> str:
    """The metric, and how the rows of the table are sorted."""
    noun = metric_noun(panel).capitalize()
    parts = [panel.title, panel.unit, describe_better(panel.curves[0].better)]
    is_known = panel.curves[0].better in ("lower", "higher") or panel.curves[0].right is not None
    order = "from worst to best" if is_known else "by change, the largest first"
    last = ", then those that cannot be ranked" * any(row.badness == -np.inf for row in rows)
    return f"{noun}: {', '.join(part for part in parts if part and part != noun)}. Sorted {order}{last}."


def _certainty(report: Report, rows: list[PolicyAnswer]) -> Iterator[str]:
    """How many seeds and looks the answers rest on, whether there is a control, and the number of undecided answers."""
    own = ", each on its own: some of many changes are due to chance" * (len(rows) > 1)
    look = f", at look {report.look}" if report.look > 1 else ""
    why = " (a terminal has 95 %; here all looks, as seeds are added, share the 5 % of errors)"
    yield f"{format_count(report.n_seeds, 'seed')}; intervals of {100 * report.answer_level:.4g} %{why}{own}{look}."
    if not report.controls:
        yield "No control: what part of a change is due to synthetic rows is not known."
    if report.unfinished:
        return
    n_policies = sum(row.answer == "undecided" for row in rows)
    n_verdicts = sum(verdict.answer == "undecided" for verdict in report.verdicts)
    n_pairs = sum(pair.answer == "undecided" for pairs in report.differences.values() for pair in pairs)
    counts = ((n_policies, "change"), (n_verdicts, "verdict"), (n_pairs, "difference"))
    if undecided := ", ".join(format_count(n, noun) for n, noun in counts if n):
        yield f"Undecided: {undecided}; beside each stands how many more seeds would decide, or why none would."


def policy_answers(report: Report) -> dict[Coordinates, list[PolicyAnswer]]:
    """The answers at every point of the sweep, the worst policy first."""
    answers = {}
    with at_look(report.look):
        for panel in (panel for panel in report.panels if panel.metric == report.panels[0].metric):
            rows = [_answer(report, panel, curve) for curve in panel.curves]
            answers[panel.coordinates] = sorted(rows, key=lambda row: -row.badness)
    return answers


def metric_noun(panel: Panel) -> str:
    return "loss" if panel.metric in LOSSES else panel.metric.replace("_", " ")


def _answer(report: Report, panel: Panel, curve: CurveData) -> PolicyAnswer:
    values, noun = curve.values, metric_noun(panel)
    verdicts = [v for v in report.verdicts if (v.policy, v.coordinates) == (curve.policy, panel.coordinates)]
    first, last = float(values[:, 0].mean()), float(values[:, -1].mean())
    has_change = values.shape[1] > 1
    difference = mean_interval(values[:, -1] - values[:, 0]) if has_change else Interval(None, None, None, len(values))
    ratio = ratio_interval(values[:, -1], values[:, 0]) if curve.positive and has_change else difference
    is_ratio = curve.positive and ratio.estimate is not None and (ratio.high is not None or difference.high is None)
    margin = MARGIN_SHARE * _scale(panel, curve)
    answer, statement, needed = _without_change(report, panel, curve) or _judge_change(panel, curve, difference, margin)
    if answer in ("rose", "fell"):
        by = f"by {_in_unit(difference if answer == 'rose' else mean_interval(values[:, 0] - values[:, -1]), panel)}"
        if is_ratio:
            times = f"to {format_interval(ratio)} times its first value"
            by = f"{by} (×{format_number(ratio.estimate)})" if panel.metric in LOSSES else times
        small = f", less than the margin of {format_number(margin)}" if max(map(abs, _limits(difference))) < margin else ""
        is_bounded = any(label == curve.policy and law.limit in ("finite", "zero") for label, law in panel.laws)
        statement = f"{noun} {answer} {by} {_generations(curve)}{small}{_trend(panel, curve, answer, is_bounded)}"
    return PolicyAnswer(
        policy=curve.policy, coordinates=panel.coordinates, answer=answer, needed=needed,
        sentence=f"Under {curve.policy}, {statement}{': ' * bool(needed)}{needed}.",
        change=ratio if is_ratio else difference, difference=difference, is_ratio=is_ratio, values=(first, last),
        badness=curve.badness,
        real_share=report.real_shares.get((panel.coordinates, curve.policy)),
        n_left=int((~np.isnan(values[:, -1])).sum()),
        n_undecided=sum(verdict.answer == "undecided" for verdict in verdicts),
        n_collapsed=sum(verdict.answer == "yes" for verdict in verdicts),
        n_measured=sum(verdict.answer != "not measured" for verdict in verdicts),
    )  # fmt: skip


def _without_change(report: Report, panel: Panel, curve: CurveData) -> tuple[Change, str, str] | None:
    """The answer of a curve that has no change to judge, its statement, and what would decide; None for others."""
    noun, n_ended = metric_noun(panel), int(np.isnan(curve.values[:, -1]).sum())
    if report.unfinished:
        return "undecided", f"{noun} is undecided, as the run is not finished", "the other generations will tell"
    if not np.isfinite(curve.values).any():
        return "missing", f"no chain has a value of {noun}", ""
    if n_ended:
        return "ended", _describe_ended(curve, noun, n_ended), ""
    if curve.values.shape[1] < 2:
        value = _in_unit(mean_interval(curve.values[:, 0], positive=curve.positive), panel)
        return "undecided", f"{noun} is {value} at the only generation", "no seeds, but a second generation would tell"
    return None


def _judge_change(panel: Panel, curve: CurveData, difference: Interval, margin: float) -> tuple[Change, str, str]:
    """The answer of a curve without ended chains, its statement unless it rose or fell, and what would decide."""
    noun, (low, high) = metric_noun(panel), _limits(difference)
    if low > 0 or high < 0:
        return "rose" if low > 0 else "fell", "", ""
    if len(curve.values) > 1 and not (curve.values[:, -1] - curve.values[:, 0]).any():
        return "unchanged", f"{noun} is the same at the first and the last generation in all {len(curve.values):,} seeds", ""
    change = f"{_in_unit(difference, panel)} {_generations(curve)}"
    if -margin < low and high < margin:
        return "unchanged", f"{noun} did not change: {change}, within the margin of {format_number(margin)}", ""
    law = next((law for label, law in panel.laws if label == curve.policy and law.kind == "exact"), None)
    theory = "" if law is None else f"; by the exact law {format_number(float(law.values[-1] - law.values[0]))}"
    return "undecided", f"whether {noun} changed is undecided ({change}{theory})", _describe_need(difference, margin)


def _generations(curve: CurveData) -> str:
    return f"from generation 1 to {curve.values.shape[1]:,}"


def _describe_need(difference: Interval, margin: float) -> str:
    """How many more seeds would find a change, or show that it is within the margin; or why no number is known."""
    if difference.n < 2:
        return "one seed gives no interval: add two or more"
    if difference.estimate is None:
        return "a chain without a value at generation 1 has no change"
    if difference.low is None:
        return "the seeds do not differ, so that no number is known"
    bounds = [0.0, *([np.copysign(margin, difference.estimate)] if abs(difference.estimate) < margin else [])]
    numbers = [seeds for bound in bounds if (seeds := needed_seeds(difference, float(bound))) is not None]
    if not numbers:
        return f"more than {MAX_NEEDED_SEEDS:,} seeds would be needed"
    return f"about {format_count(min(numbers) - difference.n, 'more seed')} would decide"


def _describe_ended(curve: CurveData, noun: str, n_ended: int) -> str:
    """Which chains ended, from which generation on, and how the median over all chains changed."""
    n, first = len(curve.values), int(np.isnan(curve.values).any(axis=0).argmax()) + 1
    statement = f"{'every chain' if n_ended == n else f'{n_ended:,} of {n:,} chains'} ended, the first at generation {first:,}"
    if not curve.ends_are_worst:
        return f"{statement}, for a reason that is no collapse: {noun} cannot be judged"
    values, is_amount = curve.values, curve.better == "higher"
    if isinstance(curve.better, float | int):
        values, noun = np.abs(values - curve.better), f"distance of {noun} from {curve.better:g}"
    elif curve.better not in ("lower", "higher"):
        return f"{statement}: {noun} has no worst value to judge these by"
    started = values[~np.isnan(values[:, 0])]
    answer = judge_ended(started[:, -1] - started[:, 0], 0.0, noun, is_amount=is_amount).answer if len(started) else "undecided"
    median = {"yes": f"the median {noun} {'fell' if is_amount else 'rose'}", "no": f"the median {noun} is no worse"}
    those = f"of the {len(started):,} with a first value, " * (len(started) < n) + "with these as the worst values"
    return f"{statement}; {those}, {median.get(answer, f'a change of the median {noun} is undecided')}"


def _trend(panel: Panel, curve: CurveData, answer: Change, is_bounded: bool) -> str:
    """Whether a curve that rose or fell goes on at its end, by the last half of its generations and the last step alone."""
    if curve.values.shape[1] < 3:
        return ""
    margin, (low, high) = FLAT_TOLERANCE * _scale(panel, curve), _limits(mean_interval(late_change(curve.values)))
    if -margin <= low <= 0 <= high <= margin:
        return " and has levelled off"
    if -margin <= low and high <= margin:
        return f" and {'rose' if low > 0 else 'fell'} by less than {format_number(margin)} in its last half"
    ups, downs = low > margin, high < -margin
    if ups or downs:
        still, again = ("rising", "rises") if ups else ("falling", "falls")
        low, high = _limits(last_step(curve.values))
        if ups != (answer == "rose"):
            return f", but {again} at the end"
        if not (low > 0 if ups else high < 0):
            return ", though its last step alone does not show it"
        return f" and is still {still}{', to a bound' * (ups and is_bounded)}"
    return f"; whether it still {'rises' if answer == 'rose' else 'falls'} is undecided"


def _scale(panel: Panel, curve: CurveData) -> float:
    """The size that margins refer to, as in comparisons."""
    trivial = None if panel.trivial is None else np.full((1, 1), panel.trivial[1])
    return Reference(curve.positive, trivial).scale(curve.values)


def _limits(interval: Interval) -> tuple[float, float]:
    """The limits, infinite where they are undefined."""
    return (-np.inf if interval.low is None else interval.low), (np.inf if interval.high is None else interval.high)


def _in_unit(interval: Interval, panel: Panel) -> str:
    return " ".join(filter(None, (format_interval(interval), panel.unit)))


def sweep_sentences(answers: list[PolicyAnswer], n_points: int, noun: str) -> Iterator[tuple[str, str]]:
    """Per policy, one sentence on all points of a sweep: at how many its main metric rose, fell, or did neither."""
    for policy in dict.fromkeys(row.policy for row in answers):
        parts = []
        for answer, words in _SWEEP_WORDS.items():
            if rows := [row for row in answers if (row.policy, row.answer) == (policy, answer)]:
                count = f"all {n_points} points" if len(rows) == n_points else f"{len(rows)} of {n_points} points"
                changes = [row for row in rows if answer in ("rose", "fell")]
                if not all(row.is_ratio for row in changes):
                    changes = [replace(row, change=row.difference, is_ratio=False) for row in changes]
                changes.sort(key=lambda row: row.change.estimate or 0.0)
                ends = (*changes[:1], *changes[1:][-1:])
                limits = " to ".join(f"{row.change_text()[0]} ({describe_coordinates(row.coordinates)})" for row in ends)
                parts.append(f"{words} at {count}{', ' * bool(limits)}{limits}")
        parts += ["the sweep does not change it"] * (len({row.values for row in answers if row.policy == policy}) == 1)
        yield policy, f"Under {policy}, {noun} {'; '.join(parts)}."


def undecided_verdict(verdict: Verdict, n_seeds: int) -> str:
    """How many more seeds would decide a verdict, or why more seeds would not."""
    if verdict.needed_seeds is not None:
        return f"about {format_count(max(verdict.needed_seeds - n_seeds, 1), 'more seed')} would decide"
    if verdict.threshold is not None and verdict.low is not None and verdict.low > verdict.threshold:
        return f"more seeds would not decide: {verdict.reason}"
    return f"no number of seeds is known to decide: {verdict.reason}"
