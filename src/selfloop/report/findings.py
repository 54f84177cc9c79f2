"""Findings of a report as sentences with numbers: first models, orders of policies, changes, modes, forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import cast

import numpy as np

from selfloop.columns import Floats
from selfloop.criteria.judging import Reference
from selfloop.engine.curves import TRIVIAL
from selfloop.protocols import SupportsTrivialModel
from selfloop.published.papers import claimed_orders, unmodified_policies
from selfloop.report.shares import extinction_orders, order_sentences
from selfloop.report.theme import describe_coordinates, format_interval, format_number
from selfloop.result import Result
from selfloop.spec.point import Point
from selfloop.stats.comparison import FIRST_COMPARED, Comparison
from selfloop.stats.forecast import LEVEL_OF_FORECAST, MIN_GENERATIONS
from selfloop.stats.intervals import Interval, answer_level, at_look, level_of_look, mean_interval, paired_difference
from selfloop.stats.trend import (
    FLAT_TOLERANCE,
    describe_late_change,
    inflection_point,
    last_step,
    late_change,
    rise_after_minimum,
)
from selfloop.theory.forecasts import PolicyForecast, forecast_policies

MIN_SEEDS, MAX_SPREAD = 10, 0.5  # intervals of skewed values have their level from ten seeds on, or if the spread is small
# A gain that hardly counts: as a share of the trivial risk (of log losses: McFadden's R^2) or, of log densities, whose zero
# depends on the unit of the rows, in nats per row (Cox and Snell's R^2, 1 - exp(-2 gain), of a tenth).
HARDLY_BETTER = 0.05
MAX_FORECAST_SENTENCES = 8  # of all points and policies; figures and `Result.forecast` have more


def trivial_model(result: Result, point: Point, metric: str) -> tuple[str, float] | None:
    """The family's trivial model in words and its mean value of a metric over the seeds; None if it has none."""
    values = next(iter(result.curves(point.coordinates).values())).get(f"{metric}{TRIVIAL}")
    name = "" if values is None else cast(SupportsTrivialModel, point.spec.family).trivial_model
    return None if values is None else (name, float(np.nanmean(values[:, 0])))


def first_model_sentence(result: Result, point: Point) -> str | None:
    """The sentence about first models, which all policies share, that are hardly better than a trivial one; None for others."""
    risk = next((metric for metric in point.spec.metrics if metric.name == point.spec.risk_metric()), None)
    curves = next(iter(result.curves(point.coordinates).values()))
    if risk is None or f"{risk.name}{TRIVIAL}" not in curves:
        return None
    pairs = np.stack([curves[name][:, 0] for name in (risk.name, f"{risk.name}{TRIVIAL}")], axis=1)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if not len(pairs):
        return None
    first, trivial = pairs.mean(axis=0).tolist()
    has_zero = risk.has_zero or risk.name == "negative_elbo"  # 0 is a perfect copy, though no ratio depends on it alone
    if trivial - first > HARDLY_BETTER * (trivial if has_zero else 1.0):
        return None
    at = f" at {describe_coordinates(point.coordinates)}" if point.coordinates else ""
    better, name = "worse" if first > trivial else "hardly better", cast(SupportsTrivialModel, point.spec.family).trivial_model
    return (
        f"The first model{at} is {better} than {name}: {risk.name} {format_number(first)}, against {format_number(trivial)}. "
        "Its later generations tell little about collapse: choose other settings or more rows."
    )


def findings(result: Result) -> Iterator[str]:
    """One sentence for each finding: primary comparisons, the first models, the risk and the modes at every point."""
    yield from first_sentences(result)
    if result.progress:
        return  # chains that are not computed yet look like ended ones
    with at_look(result.look):
        yield from chain(_findings(result), control_sentences(result), *map(order_sentences, extinction_orders(result)))
        yield from forecast_sentences(result)


def leading_sentences(result: Result) -> Iterator[str]:
    """The findings that a page shows first: primary comparisons, poor first models, and controls."""
    yield from first_sentences(result)
    yield from filter(None, (first_model_sentence(result, point) for point in result.points))
    if not result.progress:
        with at_look(result.look):
            yield from control_sentences(result, brief=True)


def first_sentences(result: Result) -> Iterator[str]:
    """The look, if it is a later one, and the primary comparison at every point."""
    level = f"{100 * level_of_look(result.look):.4g} %"
    if result.look > 1:
        yield (
            f"This is look {result.look}: the spec was run before with fewer of its seeds. Its answers rest on intervals of "
            f"{level}, so that all looks together give false answers in at most 5 % of runs."
        )
    for point in result.points:
        suffix = "".join(f" at {key} = {value}" for key, value in point.coordinates)
        for pair in (each for each in result.compare(point.coordinates) if each.declared):
            t, answer = pair.first_generation, f"{pair.answer} ({pair.reason})" if pair.reason else pair.answer
            difference = f"{pair.higher} − {pair.lower} in {pair.metric} at t = {t}"
            interval = format_interval(pair.differences[t - 1])
            yield f"Primary comparison{suffix}: {pair.higher} > {pair.lower}: {answer}. {difference} is {interval} ({level})."


def _findings(result: Result) -> Iterator[str]:
    yield from filter(None, (first_model_sentence(result, point) for point in result.points))
    for point in result.points:
        spec, curves = point.spec, result.curves(point.coordinates)
        if spec.generations < 3:
            continue
        risk, suffix = spec.risk_metric() or "", "".join(f", {key} = {value}" for key, value in point.coordinates)
        risks = {label: measured[risk] for label, measured in curves.items() if risk in measured}
        with np.errstate(over="ignore"):
            wide = [label for label, c in risks.items() if (c.std(axis=0) > MAX_SPREAD * np.abs(c.mean(axis=0))).any()]
        if wide and risk in spec.positive_metrics() and len(spec.seeds) < MIN_SEEDS:
            yield (
                f"Seeds differ by more than half of the mean {risk}{suffix} ({', '.join(wide)}). The interval of the mean of "
                f"so few skewed values misses it in up to 10 % of runs, not in 5 %. Plan at least {MIN_SEEDS} seeds."
            )
        comparisons = result.compare(point.coordinates)
        for order in claimed_orders(unmodified_policies(spec)):
            if set(order) <= set(risks):
                yield order_sentence(order, comparisons, f"{risk}{suffix}")
        for label, values in risks.items():
            reference = Reference(risk in spec.positive_metrics(), curves[label].get(f"{risk}_trivial"))
            change, margin = mean_interval(late_change(values)), FLAT_TOLERANCE * reference.scale(values)
            yield f"{label}{suffix}: {risk} {describe_late_change(change, margin, values.shape[1], last_step(values))}."
            if minimum := minimum_sentence(values, risk):
                yield f"{label}{suffix}: {minimum}"
        for label, measured in curves.items():
            if modes := mode_sentence(measured):
                yield f"{label}{suffix}: {modes}"


def minimum_sentence(curves: Floats, metric: str) -> str | None:
    """The minimum of a curve that first falls, and the rise after it; None for a curve that rises from the start."""
    mean, generations = curves.mean(axis=0), curves.shape[1]
    if not mean.min() < mean[0]:  # also if a chain has ended: its mean is NaN
        return None
    lowest = int(mean.argmin()) + 1
    if lowest == generations:
        return f"{metric} is lowest at the last generation, {lowest}: no inflection point so far."
    rise = f"it rises by {format_interval(rise_after_minimum(curves))} from there to generation {generations}"
    point = inflection_point(curves)
    if point is None:
        return f"{metric} is lowest at generation {lowest}; {rise}, which is not enough to call it an inflection point."
    limits = "" if point.low is None or point.high is None else f" [{point.low:.0f}, {point.high:.0f}]"
    return f"{metric} has its inflection point at generation {lowest}{limits}, where it is lowest; {rise}."


def mode_sentence(measured: Mapping[str, Floats]) -> str | None:
    """The change of mode entropy and of the number of modes over the generations; None if it was not measured."""
    entropy, modes = measured.get("mode_entropy"), measured.get("modes")
    change = None if entropy is None else mean_interval(entropy[:, -1] - entropy[:, 0])
    if entropy is None or change is None or change.estimate is None:
        return None
    first, last = (format_number(float(values.mean())) for values in (entropy[:, 0], entropy[:, -1]))
    sentence = (
        f"mode entropy {first} at generation 1, {last} at generation {entropy.shape[1]}, a change of {format_interval(change)}"
    )
    if modes is not None:
        sentence += f"; modes {format_number(float(modes[:, 0].mean()))} → {format_number(float(modes[:, -1].mean()))}"
    return f"{sentence}."


def order_sentence(order: Sequence[str], comparisons: Sequence[Comparison], risk: str) -> str:
    """Whether a claimed order of policies holds from the first compared generation on, with the differences that decide.

    `comparisons`: among them those of neighbors in the order.
    """
    by_pair = {(each.higher, each.lower): each for each in comparisons if not each.declared}
    pairs = [by_pair[pair] for pair in pairwise(order)]
    answers = {pair.answer for pair in pairs}
    answer = "violated" if "violated" in answers else "holds" if answers == {"holds"} else "undecided"
    return (
        f"{' > '.join(order)} at every t ≥ {FIRST_COMPARED}: {answer}. "
        f"Smallest paired differences in {risk}: {'; '.join(map(_smallest_difference, pairs))}."
    )


def control_sentences(result: Result, *, brief: bool = False) -> Iterator[str]:
    """The difference of every policy from its control in the main metric: the effect of synthetic rows alone.

    `brief`: of a sweep the smallest and the largest one.
    """
    metric, level, gaps = result.spec.metrics[0].name, f"{100 * answer_level():.4g} %", dict[str, list[tuple[str, Interval]]]()
    for point in result.points:
        curves = {label: measured.get(metric) for label, measured in result.curves(point.coordinates).items()}
        for control, of in point.spec.controls().items():
            policy, real = curves[of], curves[control]
            if policy is not None and real is not None:
                place = describe_coordinates(point.coordinates)
                gaps.setdefault(f"{of} − {control}", []).append((place, paired_difference(policy, real)[-1]))
    for pair, known in gaps.items():
        begin, n = f"Effect of synthetic rows: {pair} in {metric}", sum(_is_undecided(gap) for _, gap in known)
        if brief and len(known) > 1:
            known.sort(key=lambda gap_at: gap_at[1].estimate or 0.0)
            ends = " to ".join(f"{format_interval(gap)} ({level}, {at})" for at, gap in (known[0], known[-1]))
            yield f"{begin} is {ends} at the last generation{f'; undecided at {n} of {len(known)} points' * bool(n)}."
            continue
        for at, gap in known:
            undecided = " (undecided)" * _is_undecided(gap)
            yield f"{begin}{at and f', {at}'} is {format_interval(gap)} ({level}) at the last generation{undecided}."


def _is_undecided(gap: Interval) -> bool:
    return gap.low is None or gap.high is None or gap.low <= 0 <= gap.high


def _smallest_difference(pair: Comparison) -> str:
    names, tightest = f"{pair.higher} − {pair.lower}", pair.tightest()
    reason = f" ({pair.reason})" if pair.reason and tightest else ""
    return f"{names} has none" if tightest is None else f"{names} {format_interval(tightest[1])} at t = {tightest[0]}{reason}"


def risk_forecasts(result: Result, point: Point) -> list[PolicyForecast]:
    """The forecast of the risk for every policy of a point; empty for partial runs and those without a risk or too short."""
    risk, generations = point.spec.risk_metric(), point.spec.generations
    if risk is None or result.progress or generations < MIN_GENERATIONS:
        return []
    return list(forecast_policies(point, result.curves(point.coordinates), risk, generations // 2))


def forecast_sentences(result: Result) -> Iterator[str]:
    """One sentence per policy at every point, or per reason why there is no forecast; none for very many policies."""
    forecasts = [(point, each) for point in result.points for each in risk_forecasts(result, point)]
    if len(forecasts) > MAX_FORECAST_SENTENCES:
        return
    for point, forecast in forecasts:
        at = "".join(f", {key} = {value}" for key, value in point.coordinates)
        yield f"Forecast{at}: {forecast_sentence(forecast, point.spec.risk_metric() or '', point.spec.generations)}."


def forecast_sentence(forecast: PolicyForecast, metric: str, last: int) -> str:
    """The forecast of a policy at its last generation, with its limits, and the exact law; or the reason for none."""
    policy, (mean, low, high, reason), law = forecast.policy, forecast.forecast, forecast.law
    if reason:
        return f"none of {metric} for {policy}: {reason}"
    value = format_interval(Interval(float(mean[-1]), float(low[-1]), float(high[-1]), 0))
    exact = "" if law is None else f", exact law {format_number(float(law[-1]))}"
    return f"{policy} has {metric} {value} at generation {last + len(mean)} ({100 * LEVEL_OF_FORECAST:g} % limits{exact})"
