"""Claims of papers that a run can test: a statistic over seeds, the region in which the paper expects it, and the answer.

A claim holds if the 99 % interval of its statistic lies inside the region at every generation it names, and does not hold if
it lies outside at one of them; the interval has Bonferroni's correction over these generations. Otherwise it is undecided.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SettingError, SpecError
from selfloop.formulas import evaluate
from selfloop.settings import PositiveFloat, Settings
from selfloop.spec.parse import parse_toml, read_spec_text
from selfloop.stats.intervals import Interval, difference, mean_interval, paired_difference, ratio_interval

LEVEL = 0.99  # of a claim: among a hundred right claims, about one interval misses its true value
Statistic = Literal["value", "multiplier", "difference", "ratio", "order", "slope", "share", "argmin", "argmax"]
ClaimAnswer = Literal["holds", "does not hold", "undecided"]
EVENTS: dict[str, Callable[[Floats, float], Any]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt
}  # fmt: skip
EVENT_PATTERN = re.compile(r"(>=|<=|>|<)\s*(-?[\d.]+(?:e-?\d+)?)")
NOTES = ("explanation", "minutes", "sentence", "cite", "published", "derived")  # words, which change no answer
Number = float | str  # a number, or a formula of t and n


@dataclass(frozen=True, kw_only=True)
class Claim(Settings):
    """One claim of a paper: the scenario, the statistic, the expected region, and changes with which it must not hold."""

    paper: str
    name: str
    sentence: str
    cite: str  # where it stands in the paper
    preset: str
    statistic: Statistic
    metric: str
    generations: tuple[int, ...] | str  # "3..": every generation from 3 to the last
    wrong: dict[str, Any]  # changes of the planted wrong run, after `changes`
    minutes: PositiveFloat  # on two cores, rounded up
    changes: dict[str, Any] = field(default_factory=dict)  # dotted keys of the spec
    data: dict[str, str] = field(default_factory=dict)  # dotted key -> path in the folder of data sets
    policy: str = ""
    policies: tuple[str, ...] = ()  # of an order, the highest first
    against: str = ""  # the other policy of a difference or ratio
    at: dict[str, Any] = field(default_factory=dict)  # the point of a sweep
    against_at: dict[str, Any] | None = None  # another point
    over: str = "t"  # of a slope or an argmin: "t", "log t", or a key of the sweep
    log: bool = False  # of a slope: that of the log of the metric
    event: str = ""  # of a share of seeds: "> 0.5"
    near: Number | tuple[Number, ...] | None = None
    within: float | None = None  # tolerance, as a share of `near`
    margin: float | None = None  # tolerance, in the unit of the metric
    below: Number | None = None
    above: Number | None = None
    between: tuple[Number, ...] | None = None
    derived: bool = False  # the statement was derived, not read at its source
    published: float | str | None = None  # what the paper printed, if it is not the region
    explanation: str = ""  # why it does not hold, with numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        for words in ("sentence", "cite", "explanation"):  # in one line, however a file breaks them
            object.__setattr__(self, words, " ".join(getattr(self, words).split()))
        bounds = self.above is not None or self.below is not None
        expectations = [self.near is not None, self.between is not None, bounds, self.statistic == "order"]
        if sum(expectations) != 1:
            raise SettingError("statistic", "expected one of near, between, above or below, and none for an order. Keep one.")
        if (self.near is None) != (self.within is None and self.margin is None):
            raise SettingError("near", "goes with a tolerance, within (a share) or margin. Set both or none.")
        if self.statistic == "share" and not EVENT_PATTERN.fullmatch(self.event):
            raise SettingError("event", f'got {self.event!r}; expected a comparison with a number, such as "> 0.5".')
        if isinstance(self.generations, str) and not re.fullmatch(r"\d+\.\.", self.generations):
            raise SettingError("generations", f'got {self.generations!r}; expected a list, or a first generation as in "3..".')

    def key(self) -> str:
        """`paper/name`."""
        return f"{self.paper}/{self.name}"

    def digest(self) -> str:
        """A digest of the claim without its words and of the content of its preset: an answer is of one definition."""
        definition = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOTES}
        definition["preset"] = parse_toml(read_spec_text(self.preset), self.preset)
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ClaimPoint:
    """The curves of one point of a sweep: policy -> metric -> (seeds, generations), with the rows n of real(1)."""

    coordinates: Mapping[str, Any]
    n: int
    curves: Mapping[str, Mapping[str, Floats]]


@dataclass(frozen=True, slots=True)
class Judgment:
    """The answer to a claim, with the interval and the region [low, high] where they are closest to another answer."""

    answer: ClaimAnswer
    measured: Interval
    region: tuple[float, float]
    generation: int
    reason: str = ""


def judge(claim: Claim, points: Sequence[ClaimPoint]) -> Judgment:
    """The answer to a claim by the measurements of its scenario."""
    checks = [_judge_region(interval, region, t) for t, interval, region in _intervals(claim, points)]
    answers = [check.answer for check in checks]
    answer: ClaimAnswer = "does not hold" if "does not hold" in answers else "undecided" if "undecided" in answers else "holds"
    return min((check for check in checks if check.answer == answer), key=_slack)


def _intervals(claim: Claim, points: Sequence[ClaimPoint]) -> Iterator[tuple[int, Interval, tuple[float, float]]]:
    """Generation, interval and expected region of every check of a claim."""
    point = _point(points, claim.at)
    generations = _generations(claim, point)
    if claim.statistic in ("slope", "argmin", "argmax"):
        t = generations[-1]
        yield t, _of_several_values(claim, points, generations), region_at(claim, 0, t, point.n)
        return
    pairs = list(zip(claim.policies, claim.policies[1:], strict=False)) if claim.statistic == "order" else [(claim.policy, "")]
    level = 1 - (1 - LEVEL) / (len(generations) * len(pairs))
    for i, t in enumerate(generations):
        for higher, lower in pairs:
            region = (0.0, math.inf) if claim.statistic == "order" else region_at(claim, i, t, point.n)
            values = _curve(claim, point, higher)[:, [t - 1]]
            against = values[:, :0] if lower == "" else _curve(claim, point, lower)[:, [t - 1]]
            if claim.statistic in ("difference", "ratio"):
                other = point if claim.against_at is None else _point(points, claim.against_at)
                against = _curve(claim, other, claim.against or claim.policy)[:, [t - 1]]
            elif claim.statistic == "multiplier":
                against = _curve(claim, point, higher)[:, [0]]
            yield t, _interval(claim, values, against, level), region


def _interval(claim: Claim, values: Floats, against: Floats, level: float) -> Interval:
    """The interval of a statistic of (seeds, 1) values, and of those they are compared with."""
    if claim.statistic == "share":
        return _share_interval(claim.event, values[:, 0], level)
    if claim.statistic in ("multiplier", "ratio"):
        return _of_equal_seeds(ratio_interval(values[:, 0], against[:, 0], level), values, against)
    if claim.statistic == "value":
        return _of_equal_seeds(mean_interval(values[:, 0], level), values)
    return _of_equal_seeds(paired_difference(values, against, level)[0], difference(values, against))


def _of_equal_seeds(interval: Interval, *values: Floats) -> Interval:
    """The interval; where all seeds have one value, that value has no spread and is both limits."""
    if interval.low is None and interval.n > 1 and all(np.ptp(each) <= 1e-12 * np.abs(each).max() for each in values):
        return replace(interval, low=interval.estimate, high=interval.estimate)
    return interval


def _share_interval(event: str, values: Floats, level: float) -> Interval:
    """The share of seeds with an event, with limits of Clopper and Pearson (1934); a chain that has ended has none."""
    from scipy.special import betaincinv

    sign, number = EVENT_PATTERN.fullmatch(event).groups()  # type: ignore[union-attr]  # checked by the claim
    n, tail = len(values), (1 - level) / 2
    k = int(np.sum(EVENTS[sign](values, float(number)) & np.isfinite(values)))
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high, n)


def _of_several_values(claim: Claim, points: Sequence[ClaimPoint], generations: Sequence[int]) -> Interval:
    """The slope over generations or coordinates, or the one with the lowest or highest mean."""
    if claim.over in ("t", "log t"):
        x = np.array(generations, np.float64)
        y = _curve(claim, _point(points, claim.at), claim.policy)[:, [t - 1 for t in generations]]
        x = np.log(x) if claim.over == "log t" else x
    else:
        along = [p for p in points if all(p.coordinates.get(key) == value for key, value in claim.at.items())]
        x = np.array([float(p.coordinates[claim.over]) for p in along])
        y = np.column_stack([_curve(claim, p, claim.policy)[:, generations[-1] - 1] for p in along])
    if claim.statistic == "slope":
        centered = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = (np.log(y) if claim.log else y) @ centered
        return _of_equal_seeds(mean_interval(slopes, LEVEL), slopes)
    return _best(x, y if claim.statistic == "argmin" else -y)


def _best(x: Floats, y: Floats) -> Interval:
    """The x whose column of y has the lowest mean; the limits enclose every x that is not significantly above it."""
    best = int(y.mean(axis=0).argmin())
    if np.isnan(y).any():
        return Interval(None, None, None, len(y))
    above = paired_difference(y, np.broadcast_to(y[:, [best]], y.shape), 1 - (1 - LEVEL) / max(len(x) - 1, 1))
    possible = [value for value, d in zip(x, above, strict=True) if not (d.low or 0) > 0]
    return Interval(float(x[best]), float(min(possible)), float(max(possible)), len(y))


def region_at(claim: Claim, i: int, t: int, n: int) -> tuple[float, float]:
    """The region in which the i-th value of a claim, at generation t, is expected."""

    def number(value: Number) -> float:
        return evaluate(claim.key(), value, t=t, n=n, pi=math.pi)

    if claim.near is not None:
        center = number(claim.near[i] if isinstance(claim.near, tuple) else claim.near)
        tolerance = abs(center) * claim.within if claim.within is not None else claim.margin or 0.0
        return center - tolerance, center + tolerance
    if claim.between is not None:
        return number(claim.between[0]), number(claim.between[1])
    low = -math.inf if claim.above is None else number(claim.above)
    return low, math.inf if claim.below is None else number(claim.below)


def _judge_region(interval: Interval, region: tuple[float, float], t: int) -> Judgment:
    low, high = region
    if interval.low is None or interval.high is None:
        reason = "some chains have no value" if interval.estimate is None else "the seeds give no interval"
        return Judgment("undecided", interval, region, t, reason)
    inside, outside = low <= interval.low and interval.high <= high, interval.high < low or interval.low > high
    if math.isinf(high) or math.isinf(low):  # a bound itself is no side of it
        inside = (interval.low > low) and (interval.high < high)
        outside = interval.high <= low or interval.low >= high
    return Judgment("holds" if inside else "does not hold" if outside else "undecided", interval, region, t)


def _slack(check: Judgment) -> float:
    """The distance of an interval from leaving its region, in units of its own width; negative outside."""
    (low, high), measured = check.region, check.measured
    if measured.low is None or measured.high is None:
        return -math.inf
    return min(measured.low - low, high - measured.high) / max(measured.high - measured.low, 1e-300)


def _point(points: Sequence[ClaimPoint], at: Mapping[str, Any]) -> ClaimPoint:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in at.items()}
    return next(p for p in points if values.items() <= dict(p.coordinates).items())


def _curve(claim: Claim, point: ClaimPoint, policy: str) -> Floats:
    """The (seeds, generations) values of the claim's metric under a policy."""
    if policy not in point.curves or claim.metric not in point.curves[policy]:
        raise SpecError(f"claim {claim.key()}: {claim.metric} of policy {policy!r} is not measured by preset {claim.preset}.")
    return point.curves[policy][claim.metric]


def _generations(claim: Claim, point: ClaimPoint) -> list[int]:
    last = next(iter(next(iter(point.curves.values())).values())).shape[1]
    if isinstance(claim.generations, str):
        return list(range(int(claim.generations.removesuffix("..")), last + 1))
    spans = claim.statistic in ("slope", "argmin", "argmax") and claim.over in ("t", "log t")
    return list(range(claim.generations[0], claim.generations[-1] + 1)) if spans else list(claim.generations)
