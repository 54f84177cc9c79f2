"""What a report says in words: growth laws, turning points, and the published orders of policies, with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from selfloop.published.claims import claimed_orders, unmodified_policies
from selfloop.report.theme import show, show_interval
from selfloop.stats.comparison import FIRST_COMPARED, Comparison, compare
from selfloop.stats.intervals import Interval, mean_interval
from selfloop.stats.trend import MIN_GENERATIONS, fit_trend, inflection_point, rise_after_minimum
from selfloop.types import Floats

if TYPE_CHECKING:
    from selfloop.result import Result


def findings(result: Result) -> Iterator[str]:
    """One sentence each, on the risk at every point of the sweep, and on what became of the modes."""
    for coordinates, point in result.points.items():
        main = point.risk_metric() or ""
        where = "".join(f", {key} = {value}" for key, value in coordinates)
        curves = {label: measured[main] for label, measured in result.curves(coordinates).items() if main in measured}
        if point.generations < 3:
            continue
        for order in claimed_orders(unmodified_policies(point)):
            if set(order) <= set(curves):
                yield _order_sentence(order, curves, f"{main}{where}")
        for label, values in curves.items():
            if point.generations >= MIN_GENERATIONS:
                growth = fit_trend(values)
                law = f"follows a {growth.kind} law" if growth.kind else f"growth law undecided ({growth.reason})"
                yield f"{label}{where}: {main} {law}."
            if turn := turning_sentence(values, main):
                yield f"{label}{where}: {turn}"
        for label, measured in result.curves(coordinates).items():
            if modes := mode_sentence(measured):
                yield f"{label}{where}: {modes}"


def turning_sentence(curves: Floats, metric: str) -> str | None:
    """Where a curve that first falls is lowest, and what it does after; None for one that rises from the start."""
    mean, generations = curves.mean(axis=0), curves.shape[1]
    if not mean.min() < mean[0]:  # a chain without a value is no fall
        return None
    lowest = int(mean.argmin()) + 1
    if lowest == generations:
        return f"{metric} is lowest at the last generation, {lowest}: no inflection point so far."
    rise = f"it rises by {_interval(rise_after_minimum(curves))} from there to generation {generations}"
    turn = inflection_point(curves)
    if turn is None:
        return f"{metric} is lowest at generation {lowest}; {rise}, which is not enough to call it an inflection point."
    limits = f" [{turn.low:.0f}, {turn.high:.0f}]" if turn.low is not None and turn.high is not None else ""
    known = "" if limits else " One seed gives the inflection point no interval."
    return f"{metric} has its inflection point at generation {lowest}{limits}, where it is lowest; {rise}.{known}"


def mode_sentence(measured: Mapping[str, Floats]) -> str | None:
    """How mode entropy, and with it the number of modes, changed from the first to the last generation; None if unknown."""
    entropy, modes = measured.get("mode_entropy"), measured.get("modes")
    change = None if entropy is None else mean_interval(entropy[:, -1] - entropy[:, 0])
    if entropy is None or change is None or change.estimate is None:
        return None
    first, last = (show(float(side.mean())) for side in (entropy[:, 0], entropy[:, -1]))
    told = f"mode entropy {first} at generation 1, {last} at generation {entropy.shape[1]}: "
    if change.low is None or change.high is None:
        told += f"a change of {show(change.estimate)}, to which these seeds give no interval"
    elif change.low <= 0 <= change.high:
        told += f"the change, {_interval(change)}, may be none"
    else:
        told += f"it {'fell' if change.high < 0 else 'rose'}, a change of {_interval(change)}"
    if modes is not None:
        told += f"; modes {show(float(modes[:, 0].mean()))} → {show(float(modes[:, -1].mean()))}"
    return f"{told}."


def _order_sentence(order: Sequence[str], curves: Mapping[str, Floats], what: str) -> str:
    """Does a published order hold from generation 3 on? With the difference that decides each of its links."""
    links = [compare(curves, higher, lower, claimed=True) for higher, lower in pairwise(order)]
    answers = {link.answer for link in links}
    answer = "violated" if "violated" in answers else "holds" if answers == {"holds"} else "undecided"
    numbers = "; ".join(filter(None, map(_link, links)))
    return f"{' > '.join(order)} at every t ≥ {FIRST_COMPARED}: {answer}. Smallest paired differences in {what}: {numbers or 'none'}."


def _link(link: Comparison) -> str:
    tightest = link.tightest()
    if tightest is None:
        return f"{link.higher} − {link.lower} has none"
    t, difference = tightest
    return f"{link.higher} − {link.lower} {_interval(difference)} at t = {t}"


def _interval(each: Interval) -> str:
    return show_interval(each.estimate, each.low, each.high)
