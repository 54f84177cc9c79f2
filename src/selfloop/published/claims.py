"""Claims of papers that a run can test: a statistic over seeds, the region in which the paper expects it, and the answer.

A claim holds if the 99 % interval of its statistic lies inside the region at every generation it names, and does not hold if
it lies outside at one of them; the interval has Bonferroni's correction over these generations. Otherwise it is undecided.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SettingError, SpecError, shown
from selfloop.formulas import evaluate
from selfloop.settings import PositiveFloat, Settings
from selfloop.spec.parse import parse_toml, read_spec_text
from selfloop.stats.intervals import Interval, difference, mean_interval, paired_difference, ratio_interval

LEVEL = 0.99  # of a claim: among a hundred right claims, about one interval misses its true value
Statistic = Literal["value", "multiplier", "difference", "ratio", "order", "slope", "share", "argmin", "argmax"]
ClaimAnswer = Literal["holds", "does not hold", "undecided"]
EVENTS = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}
EVENT_PATTERN = re.compile(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
NOTES = ("explanation", "minutes", "sentence", "cite", "published", "derived")  # words, which change no answer
Number = float | str  # a number, or a formula of t and n
PAIRED, OF_SEVERAL, TIMES = ("difference", "ratio"), ("slope", "argmin", "argmax"), ("t", "log t")
USED_BY = {
    "against": PAIRED, "against_at": PAIRED, "over": OF_SEVERAL, "log": ("slope",), "event": ("share",), "policies": ("order",)
}  # fmt: skip


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
    between: tuple[Number, Number] | None = None
    derived: bool = False  # the statement was derived, not read at its source
    published: float | str | None = None  # what the paper printed, if it is not the region
    explanation: str = ""  # why it does not hold, with numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        for words in ("sentence", "cite", "explanation"):  # in one line, however a file breaks them
            object.__setattr__(self, words, " ".join(getattr(self, words).split()))
        n_regions = 4 - [self.near, self.between, self.above, self.below].count(None)
        n_tolerances, is_order = 2 - [self.within, self.margin].count(None), self.statistic == "order"
        listed = () if isinstance(self.generations, str) else self.generations
        is_span = self.statistic in OF_SEVERAL and self.over in TIMES
        n_near = len(listed) if listed and self.statistic not in OF_SEVERAL else 1
        is_from, is_event = re.fullmatch(r"\d+\.\.", str(self.generations)), EVENT_PATTERN.fullmatch(self.event)
        changed = {f.name for f in fields(self) if f.default != getattr(self, f.name)}
        is_alone = self.statistic in PAIRED and changed.isdisjoint({"against", "against_at"})
        unused = [name for name in USED_BY.keys() & changed if self.statistic not in USED_BY[name]]
        for setting, is_wrong, problem in (
            ("statistic", n_regions + is_order != 1, "expected one of near, between, above or below, and none for an order"),
            ("near", n_tolerances != (self.near is not None), "goes with a tolerance, within (a share) or margin"),
            ("near", isinstance(self.near, tuple) and len(self.near) != n_near, "expected a value for each listed generation"),
            ("event", not (is_event or self.statistic != "share"), 'expected a comparison with a number, such as "> 0.5"'),
            ("generations", not (is_from or len({*listed}) > is_span), 'expected a list, or a first generation as in "3.."'),
            ("against", is_alone, "missing, as is against_at: a difference or ratio needs another policy or point"),
            ("policies", is_order and len(self.policies) < 2, "expected two or more, the highest first"),
            *((name, True, f"is of {' and '.join(USED_BY[name])} only") for name in unused),
        ):
            if is_wrong:
                raise SettingError(setting, f"{problem}. Correct the claim.")

    def key(self) -> str:
        """`paper/name`."""
        return f"{self.paper}/{self.name}"

    def describe_statistic(self) -> str:
        """The measured quantity: "multiplier of excess_risk, replace"."""
        compared = self.against or (str(self.against_at) if self.against_at else "")
        policies = " > ".join(self.policies) or self.policy + (f" against {compared}" if compared else "")
        over = f" over {self.over}" if self.statistic in OF_SEVERAL else ""
        return f"{self.statistic} of {'log ' * self.log}{self.metric}{over}, {policies}"

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
    checks = [_judge_region(claim, *check) for check in _intervals(claim, points)]
    answers = [check.answer for check in checks]
    answer: ClaimAnswer = "does not hold" if "does not hold" in answers else "undecided" if "undecided" in answers else "holds"
    return min((check for check in checks if check.answer == answer), key=_slack)


def _intervals(claim: Claim, points: Sequence[ClaimPoint]) -> Iterator[tuple[int, Interval, tuple[float, float]]]:
    """Generation, interval and expected region of every check of a claim."""
    along = _points_at(claim, points, claim.at)
    point, generations = along[0], _generations(claim, along[0])
    if claim.statistic in OF_SEVERAL:
        t = generations[-1]
        yield t, _of_several_values(claim, along, generations), region_at(claim, 0, t, point.n)
        return
    pairs = list(pairwise(claim.policies)) or [(claim.policy, claim.against or claim.policy)]
    other = point if claim.against_at is None else _points_at(claim, points, claim.against_at)[0]
    level = 1 - (1 - LEVEL) / (len(generations) * len(pairs))
    for i, t in enumerate(generations):
        for policy, against in pairs:
            region = (0.0, math.inf) if claim.statistic == "order" else region_at(claim, i, t, point.n)
            base = _values(claim, other, against, [1 if claim.statistic == "multiplier" else t])
            yield t, _interval(claim, _values(claim, point, policy, [t]), base, level), region


def _interval(claim: Claim, values: Floats, against: Floats, level: float) -> Interval:
    """The interval of a statistic of (seeds, 1) values, and of those they are compared with."""
    if claim.statistic == "share":
        return _share_interval(claim.event, values[:, 0], level)
    if claim.statistic in ("multiplier", "ratio"):
        with np.errstate(divide="ignore", invalid="ignore"):
            return _of_equal_seeds(ratio_interval(values[:, 0], against[:, 0], level), values / against)
    if claim.statistic == "value":
        return _of_equal_seeds(mean_interval(values[:, 0], level), values)
    return _of_equal_seeds(paired_difference(values, against, level)[0], difference(values, against))


def _of_equal_seeds(interval: Interval, values: Floats) -> Interval:
    """The interval; where all seeds have one value, that value has no spread and is both limits."""
    if interval.low is None and interval.n > 1 and np.ptp(values) <= 1e-12 * np.abs(values).max():
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


def _of_several_values(claim: Claim, along: Sequence[ClaimPoint], generations: Sequence[int]) -> Interval:
    """The slope over generations or coordinates, or the one with the lowest or highest mean."""
    if claim.over in TIMES:
        x = np.log(generations) if claim.over == "log t" else np.array(generations, np.float64)
        y = _values(claim, along[0], claim.policy, generations)
    else:
        x = np.array([float(p.coordinates[claim.over]) for p in along])
        y = np.hstack([_values(claim, p, claim.policy, generations[-1:]) for p in along])
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
    lows = [_of_equal_seeds(d, column - y[:, best]).low for d, column in zip(above, y.T, strict=True)]
    possible = [value for value, low in zip(x, lows, strict=True) if not (low or 0) > 0]
    return Interval(float(x[best]), float(min(possible)), float(max(possible)), len(y))


def region_at(claim: Claim, i: int, t: int, n: int) -> tuple[float, float]:
    """The region in which the i-th value of a claim, at generation t, is expected."""

    def number(value: Number) -> float:
        return evaluate(claim.key(), value, t=t, n=n, pi=math.pi)

    if claim.near is not None:
        center = number(claim.near[i] if isinstance(claim.near, tuple) else claim.near)
        tolerance = abs(center) * claim.within if claim.within is not None else claim.margin or 0.0
        low, high = center - tolerance, center + tolerance
    elif claim.between is not None:
        low, high = number(claim.between[0]), number(claim.between[1])
    else:
        low = -math.inf if claim.above is None else number(claim.above)
        high = math.inf if claim.below is None else number(claim.below)
    if low > high:
        raise SpecError(f"claim {claim.key()}: nothing lies from {low:g} to {high:g}. Correct the region.")
    return low, high


def _judge_region(claim: Claim, t: int, interval: Interval, region: tuple[float, float]) -> Judgment:
    low, high = region
    if interval.low is None or interval.high is None:
        none = "some chains have no value" + ", or a mean is not above 0" * (claim.statistic in ("multiplier", "ratio"))
        return Judgment("undecided", interval, region, t, none if interval.estimate is None else "the seeds give no interval")
    inside, outside = low <= interval.low and interval.high <= high, interval.high < low or interval.low > high
    if math.isinf(high) or math.isinf(low):  # a bound itself is no side of it
        inside, outside = low < interval.low and interval.high < high, interval.high <= low or interval.low >= high
    return Judgment("holds" if inside else "does not hold" if outside else "undecided", interval, region, t)


def _slack(check: Judgment) -> float:
    """The distance of an interval from leaving its region, in units of its own width; negative outside."""
    (low, high), measured = check.region, check.measured
    if measured.low is None or measured.high is None:
        return -math.inf
    return min(measured.low - low, high - measured.high) / max(measured.high - measured.low, 1e-300)


def _points_at(claim: Claim, points: Sequence[ClaimPoint], at: Mapping[str, Any]) -> list[ClaimPoint]:
    """The points with these coordinates: one, or those along the key that a claim is over."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in at.items()}
    matching = [p for p in points if values.items() <= dict(p.coordinates).items()]
    along = {x for p in matching if isinstance(x := p.coordinates.get(claim.over), int | float)}
    if len(matching) != 1 if claim.over in TIMES else not 1 < len(matching) == len(along):
        expected = "one" if claim.over in TIMES else f"some that differ in {claim.over}, a number"
        count = f"{len(matching)} points of {claim.preset} are at {shown(dict(at))}"
        raise SpecError(f"claim {claim.key()}: {count}; expected {expected}.")
    return matching


def _values(claim: Claim, point: ClaimPoint, policy: str, generations: Sequence[int]) -> Floats:
    """The (seeds, generations) values of the claim's metric under a policy."""
    curve = point.curves.get(policy, {}).get(claim.metric, np.empty((0, 0)))
    if not 1 <= min(generations) <= max(generations) <= curve.shape[1]:
        at = f" at generation {max(generations)}" if curve.size else ""
        raise SpecError(f"claim {claim.key()}: {claim.metric} of policy {policy!r}{at} is not measured by {claim.preset}.")
    return curve[:, [t - 1 for t in generations]]


def _generations(claim: Claim, point: ClaimPoint) -> list[int]:
    if isinstance(claim.generations, str):
        first, curves = int(claim.generations.removesuffix("..")), next(iter(point.curves.values()))
        return list(range(first, max([first, *(curve.shape[1] for curve in curves.values())]) + 1))
    spans = claim.statistic in OF_SEVERAL and claim.over in TIMES
    return list(range(min(claim.generations), max(claim.generations) + 1)) if spans else list(claim.generations)
