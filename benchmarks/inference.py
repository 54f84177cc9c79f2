"""Error rates of verdicts, comparisons, intervals and inflection points on simulated curves whose truth is known.

    python benchmarks/inference.py [--runs 400] [--seeds 3 5 10] [--generations 5 10 20] [--only divergence]

Every line is one statement about curves of known means, in percent of the runs: made although it is false ("false", with its
nominal level), or not made although it is true ("missed", without a level: the power is 100 less it). Nominal levels: 2.5 % for
a verdict (one side of a 95 % interval) and for each direction of a claimed order, 5 % for intervals and for everything that is
chosen among several. `!` marks rates above the nominal level by more than two standard errors of the simulation. A run of
selfloop is stricter: at its first look it rests on intervals of 96 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np

from selfloop.columns import Floats
from selfloop.criteria.definitions import (
    AnyIncrease,
    CatastrophicIncrease,
    CollapsingVariance,
    Divergence,
    Hallucination,
    TailLoss,
)
from selfloop.criteria.judging import CurveCriterion, Reference
from selfloop.stats.comparison import compare_all, compare_declared
from selfloop.stats.intervals import Interval, at_look, mean_interval, ratio_interval
from selfloop.stats.trend import inflection_point, rise_after_minimum

ONE_SIDED, TWO_SIDED = 0.025, 0.05
SPREAD = 0.1  # standard deviation over seeds at generation 1, as a share of the mean
WALK = 0.05  # standard deviation of the change per generation of a random walk
SKEW = 1.0  # standard deviation of the logarithm

Rng = np.random.Generator
Shape = Callable[[Floats], Floats]  # mean at generations 1, 2, ...


def independent(mean: Floats, seeds: int, rng: Rng) -> Floats:
    """Curves (seeds, generations) that deviate from the mean independently at every generation."""
    return mean + SPREAD * rng.standard_normal((seeds, len(mean)))


def random_walk(mean: Floats, seeds: int, rng: Rng) -> Floats:
    """Curves whose deviations from the mean add up, as those of chains do."""
    steps = np.append(SPREAD, np.full(len(mean) - 1, WALK)) * rng.standard_normal((seeds, len(mean)))
    return mean + np.cumsum(steps, axis=1)


def skewed(mean: Floats, seeds: int, rng: Rng) -> Floats:
    """Positive curves with a lognormal factor of mean 1 at every generation."""
    return np.asarray(mean * np.exp(SKEW * rng.standard_normal((seeds, len(mean))) - SKEW**2 / 2))


NOISE: Mapping[str, Callable[[Floats, int, Rng], Floats]] = {
    "independent": independent, "random walk": random_walk, "skewed": skewed,
}  # fmt: skip

SHAPES: Mapping[str, Shape] = {
    "constant": lambda t: np.ones_like(t),
    "constant + 0.3": lambda t: np.full_like(t, 1.3),
    "constant + 0.6": lambda t: np.full_like(t, 1.6),
    "sum of 1/t^2": lambda t: np.cumsum(t**-2.0),
    "1 - 0.5^t": lambda t: 1 + (1 - 0.5**t),
    "1 - 0.95^t": lambda t: 1 + (1 - 0.95**t),
    "log log t": lambda t: 1 + np.log1p(np.log(t)),
    "root of log t": lambda t: 1 + np.sqrt(np.log(t)),
    "sum of 1/t": lambda t: np.cumsum(1 / t),
    "linear": lambda t: 1 + (t - 1) / 2,
    "falls, 0.97^t": lambda t: 0.97 ** (t - 1),
    "falls, 0.7^t": lambda t: 0.7 ** (t - 1),
    "last = 30 x first": lambda t: 1 + 29 * (t - 1) / (t[-1] - 1),
    "last = 10 x first": lambda t: 1 + 9 * (t - 1) / (t[-1] - 1),
    "last = 0.9 x first": lambda t: 1 - 0.1 * (t - 1) / (t[-1] - 1),
    "last = 0.5 x first": lambda t: 1 - 0.5 * (t - 1) / (t[-1] - 1),
    "last = first + 0.5": lambda t: 0.1 + 0.5 * (t - 1) / (t[-1] - 1),
    "last = first + 0.1": lambda t: 0.1 + 0.1 * (t - 1) / (t[-1] - 1),
    "falls to the end": lambda t: 1 + 1 / t,
    "lowest in the middle": lambda t: 1 + 0.5 * np.abs(t - (t[-1] + 1) / 2) / (t[-1] - 1),
}


Judge = Callable[[Sequence[Floats]], Set[str]]  # curves of every policy -> the statements made about them


@dataclass(frozen=True)
class Check:
    """Statements about curves of the given shapes, one per policy: the false ones with their nominal level, and a true one."""

    name: str
    shapes: tuple[str, ...]
    judge: Judge
    false: Mapping[str, float] = field(default_factory=dict)
    true: str = ""
    noise: tuple[str, ...] = ("independent", "random walk", "skewed")


def verdict(criterion: CurveCriterion, metric: str = "risk", trivial: float | None = None) -> Judge:
    """The answer of a criterion; risks have a natural zero, unless the value of a trivial model is given."""

    def judge(curves: Sequence[Floats]) -> Set[str]:
        if trivial is not None:
            return {criterion.judge({metric: curves[0], f"{metric}_trivial": np.full_like(curves[0], trivial)}).answer}
        return {criterion.judge({metric: curves[0]}, {}, {metric: Reference(has_zero=True)}).answer}

    return judge


def adding_seeds(curves: Sequence[Floats]) -> Set[str]:
    """The first answer of `any_increase` when seeds are added one at a time, from three on, until there is one."""
    for look, n in enumerate(range(3, len(curves[0]) + 1), 1):
        with at_look(look):
            answer = AnyIncrease().judge({"risk": curves[0][:n]}).answer
        if answer != "undecided":
            return {answer}
    return {"undecided"}


def pairs(margin: float = 0.0) -> Judge:
    """The answers about all pairs of policies."""

    def judge(curves: Sequence[Floats]) -> Set[str]:
        policies = {f"p{i}": values for i, values in enumerate(curves)}
        return {each.answer for each in compare_all(policies, margin=margin)}

    return judge


def order(curves: Sequence[Floats]) -> Set[str]:
    """The answer about the claimed order of all policies, the highest first."""
    policies = {f"p{i}": values for i, values in enumerate(curves)}
    answers = {each.answer for each in compare_all(policies, set(combinations(policies, 2)))}
    return {"violated"} if "violated" in answers else answers if answers == {"holds"} else set()


def primary(curves: Sequence[Floats]) -> Set[str]:
    """The answer to a comparison at the last generation that is declared."""
    policies = {"p0": curves[0], "p1": curves[1]}
    return {compare_declared(policies, "p0", "p1", curves[0].shape[1]).answer}


def minimum(curves: Sequence[Floats]) -> Set[str]:
    """Whether there is an inflection point, and whether its interval lacks the middle generation."""
    point, middle = inflection_point(curves[0]), (curves[0].shape[1] + 1) / 2
    if point is None or point.low is None or point.high is None:
        return set()
    return {"found"} | (set() if point.low - 0.5 <= middle <= point.high + 0.5 else {"elsewhere"})


def covers(interval: Callable[[Floats], Interval]) -> Judge:
    """Whether an interval lacks the true value, 1, or another one, 1.5."""

    def judge(curves: Sequence[Floats]) -> Set[str]:
        limits = interval(curves[0])
        low, high = limits.low or 0.0, np.inf if limits.high is None else limits.high
        return {f"is not {value}" for value in (1, 1.5) if not low <= value <= high}

    return judge


def checks() -> list[Check]:
    """Every check, in the order of the table."""
    bounded, unbounded = (
        ("constant", "sum of 1/t^2", "1 - 0.5^t", "1 - 0.95^t"),
        ("log log t", "root of log t", "sum of 1/t", "linear"),
    )
    plain, yes, no = ("independent", "random walk"), {"yes": ONE_SIDED}, {"no": ONE_SIDED}
    any_increase, catastrophe, divergence = verdict(AnyIncrease()), verdict(CatastrophicIncrease()), verdict(Divergence())
    trivial = verdict(CatastrophicIncrease(), trivial=10.0)
    variance, recall = verdict(CollapsingVariance(), "variance_ratio"), verdict(TailLoss(), "recall")
    outside, both = verdict(Hallucination(), "outside_support"), {"holds": ONE_SIDED, "violated": ONE_SIDED}
    mean, ratio = covers(lambda c: mean_interval(c[:, -1], positive=True)), covers(lambda c: ratio_interval(c[:, -1], c[:, 0]))
    any_pair = {"holds": TWO_SIDED, "violated": TWO_SIDED}
    return [
        Check("any_increase", ("constant",), any_increase, yes),
        Check("any_increase", ("linear",), any_increase, no, "yes"),
        Check("any_increase", ("falls, 0.7^t",), any_increase, yes, "no"),
        Check("any_increase, adding seeds", ("constant",), adding_seeds, yes),
        Check("any_increase, adding seeds", ("linear",), adding_seeds, no, "yes"),
        Check("catastrophic_increase", ("last = 10 x first",), catastrophe, yes | no),
        Check("catastrophic_increase", ("last = 30 x first",), catastrophe, no, "yes"),
        Check("catastrophic_increase", ("sum of 1/t",), catastrophe, yes, "no"),
        # Of a risk without a natural zero, whose values are no multiples: skewed noise is one of positive values.
        Check("catastrophic_increase, trivial", ("last = 10 x first",), trivial, yes | no, noise=plain),
        *(Check("divergence", (shape,), divergence, yes, "no") for shape in bounded),
        *(Check("divergence", (shape,), divergence, no, "yes") for shape in unbounded),
        Check("collapsing_variance", ("constant",), variance, yes, "no"),
        Check("collapsing_variance", ("falls, 0.97^t",), variance, no),
        Check("collapsing_variance", ("falls, 0.7^t",), variance, no, "yes"),
        Check("tail_loss", ("last = 0.9 x first",), recall, yes | no),
        Check("tail_loss", ("last = 0.5 x first",), recall, no, "yes"),
        Check("hallucination", ("last = first + 0.1",), outside, yes, noise=plain),
        Check("hallucination", ("last = first + 0.5",), outside, no, "yes", noise=plain),
        Check("any of six policies", ("constant",) * 6, pairs(), any_pair),
        Check("any of six policies", ("constant + 0.3", *("constant",) * 5), pairs(), {"violated": TWO_SIDED}, "holds"),
        Check("two policies, margin 0.3", ("constant + 0.3", "constant"), pairs(0.3), {"equivalent": TWO_SIDED}),
        Check("two policies, margin 0.3", ("constant",) * 2, pairs(0.3), any_pair, "equivalent"),
        Check("claimed order of three", ("constant",) * 3, order, both),
        Check(
            "claimed order of three", ("constant + 0.6", "constant + 0.3", "constant"), order, {"violated": ONE_SIDED}, "holds"
        ),
        Check(
            "claimed order of three", ("constant", "constant + 0.3", "constant + 0.6"), order, {"holds": ONE_SIDED}, "violated"
        ),
        Check("primary comparison", ("constant",) * 2, primary, both),
        Check("primary comparison", ("constant + 0.3", "constant"), primary, {"violated": ONE_SIDED}, "holds"),
        *(Check("inflection point", (shape,), minimum, {"found": TWO_SIDED}) for shape in ("constant", "falls to the end")),
        Check("inflection point", ("lowest in the middle",), minimum, {"elsewhere": TWO_SIDED}, "found"),
        Check("rise after the minimum", ("falls to the end",), rise, {"rises": TWO_SIDED}),
        Check("rise after the minimum", ("lowest in the middle",), rise, {}, "rises"),
        Check("interval of a positive mean", ("constant",), mean, {"is not 1": TWO_SIDED}, "is not 1.5"),
        Check("interval of a multiplier", ("constant",), ratio, {"is not 1": TWO_SIDED}, "is not 1.5"),
    ]


def rise(curves: Sequence[Floats]) -> Set[str]:
    """Whether the mean rises after its lowest generation."""
    return {"rises"} if (rise_after_minimum(curves[0]).low or 0) > 0 else set()


def rates(task: tuple[int, str, tuple[int, int], int]) -> dict[str, float]:
    """Share of simulated runs in which each statement of a check is made."""
    index, noise, (seeds, generations), runs = task
    check, t = checks()[index], np.arange(1.0, generations + 1)
    rng = np.random.default_rng([index, seeds, generations, list(NOISE).index(noise)])
    made = [check.judge([NOISE[noise](SHAPES[shape](t), seeds, rng) for shape in check.shapes]) for _ in range(runs)]
    return {statement: sum(statement in each for each in made) / runs for statement in (*check.false, check.true)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--generations", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--only", default="", help="part of a check's name")
    arguments = parser.parse_args()
    sizes = list(product(arguments.seeds, arguments.generations))
    print(f"{'statement':44} {'truth':36} {'noise':12}         nominal " + " ".join(f"{s:>3}x{t:<3}" for s, t in sizes))
    chosen = [(i, noise) for i, check in enumerate(checks()) if arguments.only in check.name for noise in check.noise]
    with ProcessPoolExecutor() as pool:
        results = pool.map(rates, [(*each, size, arguments.runs) for each in chosen for size in sizes])
        for index, noise in chosen:
            check, found = checks()[index], [next(results) for _ in sizes]
            truth = ", ".join(dict.fromkeys(check.shapes))
            for statement, nominal in check.false.items():
                limit = nominal + 2 * (nominal * (1 - nominal) / arguments.runs) ** 0.5
                cells = " ".join(f"{100 * f[statement]:5.1f}{'!' if f[statement] > limit else ' '} " for f in found)
                level = f"false  {100 * nominal:5.1f} %"
                print(f"{check.name + ': ' + statement:44} {truth:36} {noise:12} {level} {cells}", flush=True)
            if check.true:
                cells = " ".join(f"{100 * (1 - f[check.true]):5.1f}  " for f in found)
                print(f"{check.name + ': ' + check.true:44} {truth:36} {noise:12} missed         {cells}", flush=True)


if __name__ == "__main__":
    main()
