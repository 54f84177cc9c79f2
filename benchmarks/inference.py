"""Error rates of verdicts, comparisons, trends, intervals and inflection points on simulated curves whose truth is known.

    python benchmarks/inference.py [--runs 400] [--seeds 3 5 10] [--generations 5 10 20] [--only divergence]

Every line is one statement that is false by construction, and the share of runs in which it is made anyway. Nominal levels:
2.5 % for a verdict (one side of a 95 % interval), 5 % for intervals and for everything that is chosen among several. `!` marks
rates above the nominal level by more than two standard errors of the simulation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from selfloop.columns import Floats
from selfloop.criteria.diversity import CollapsingVariance, Hallucination, TailLoss
from selfloop.criteria.judging import CurveCriterion, Reference
from selfloop.criteria.risk import AnyIncrease, CatastrophicIncrease, Divergence
from selfloop.stats.comparison import compare_all
from selfloop.stats.intervals import mean_interval, ratio_interval
from selfloop.stats.trend import fit_trend, inflection_point, rise_after_minimum

ONE_SIDED, TWO_SIDED = 0.025, 0.05
POLICIES = 6
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
    "sum of 1/t^2": lambda t: np.cumsum(t**-2.0),
    "1 - 0.5^t": lambda t: 1 + (1 - 0.5**t),
    "1 - 0.95^t": lambda t: 1 + (1 - 0.95**t),
    "log log t": lambda t: 1 + np.log1p(np.log(t)),
    "root of log t": lambda t: 1 + np.sqrt(np.log(t)),
    "sum of 1/t": lambda t: np.cumsum(1 / t),
    "linear": lambda t: 1 + (t - 1) / 2,
    "falls, 0.97^t": lambda t: 0.97 ** (t - 1),
    "last = 10 x first": lambda t: 1 + 9 * (t - 1) / (t[-1] - 1),
    "last = 0.9 x first": lambda t: 1 - 0.1 * (t - 1) / (t[-1] - 1),
    "last = first + 0.1": lambda t: 0.1 + 0.1 * (t - 1) / (t[-1] - 1),
    "falls to the end": lambda t: 1 + 1 / t,
    "lowest in the middle": lambda t: 1 + 0.5 * np.abs(t - (t[-1] + 1) / 2) / (t[-1] - 1),
}


@dataclass(frozen=True)
class Check:
    """A false statement about curves of a shape, and how it is noticed that it is made."""

    statement: str
    shape: str
    made: Callable[[Floats, Rng], bool]
    nominal: float
    noise: tuple[str, ...] = ("independent", "random walk", "skewed")
    copies: int = 1  # groups of curves of the same shape


def answers(criterion: CurveCriterion, metric: str, answer: str) -> Callable[[Floats, Rng], bool]:
    """True if a criterion gives the answer; risks have a natural zero."""
    return lambda curves, rng: criterion.judge({metric: curves}, {}, {metric: Reference(has_zero=True)}).answer == answer


def reaches_trivial(answer: str) -> Callable[[Floats, Rng], bool]:
    """True if a risk without a natural zero, whose trivial model has the risk 10, gets the answer of a catastrophe."""
    return lambda curves, rng: (
        CatastrophicIncrease().judge({"risk": curves, "risk_trivial": np.full_like(curves, 10.0)}).answer == answer
    )


def has_trend(*kinds: str) -> Callable[[Floats, Rng], bool]:
    """True if the trend is decided and of one of the kinds."""
    return lambda curves, rng: fit_trend(curves, 0.02 * float(curves[:, 0].mean())).kind in kinds


def any_comparison(answer: str, claims: int = 0) -> Callable[[Floats, Rng], bool]:
    """True if any pair of equal policies gets the answer; the first `claims` policies have a claimed order."""

    def made(curves: Floats, rng: Rng) -> bool:
        policies = {f"p{i}": part for i, part in enumerate(np.split(curves, POLICIES))}
        claimed = {(f"p{i}", f"p{j}") for i in range(claims) for j in range(i + 1, claims)}
        compared = [each for each in compare_all(policies, claimed) if each.claimed or not claims]
        return any(each.answer == answer for each in compared)

    return made


def adding_seeds(curves: Floats, rng: Rng) -> bool:
    """True if an increase is found when seeds are added one at a time, from three on, until there is an answer."""
    verdicts = (AnyIncrease().judge({"risk": curves[:n]}) for n in range(3, len(curves) + 1))
    return next((v.answer for v in verdicts if v.answer != "undecided"), "undecided") == "yes"


def misses_last_mean(curves: Floats, rng: Rng) -> bool:
    """True if the interval of the last generation does not contain 1."""
    interval = mean_interval(curves[:, -1])
    return interval.low is None or interval.high is None or not interval.low <= 1 <= interval.high


def misses_multiplier(curves: Floats, rng: Rng) -> bool:
    """True if the interval of the last over the first mean does not contain 1."""
    interval = ratio_interval(curves[:, -1], curves[:, 0])
    return interval.low is None or interval.high is None or not interval.low <= 1 <= interval.high


def misses_minimum(curves: Floats, rng: Rng) -> bool:
    """True if an inflection point is found whose interval does not contain the middle generation."""
    point, middle = inflection_point(curves), (curves.shape[1] + 1) / 2
    if point is None or point.low is None or point.high is None:
        return False
    return not point.low - 0.5 <= middle <= point.high + 0.5


def checks() -> list[Check]:
    """Every check, in the order of the table."""
    bounded, unbounded = (
        ("constant", "sum of 1/t^2", "1 - 0.5^t", "1 - 0.95^t"),
        ("log log t", "root of log t", "sum of 1/t", "linear"),
    )
    plain = ("independent", "random walk")
    return [
        Check("any_increase: yes", "constant", answers(AnyIncrease(), "risk", "yes"), ONE_SIDED),
        Check("any_increase: no", "linear", answers(AnyIncrease(), "risk", "no"), ONE_SIDED),
        Check("any_increase: yes, adding seeds", "constant", adding_seeds, ONE_SIDED),
        Check("catastrophic_increase: yes", "last = 10 x first", answers(CatastrophicIncrease(), "risk", "yes"), ONE_SIDED),
        Check("catastrophic_increase: no", "last = 10 x first", answers(CatastrophicIncrease(), "risk", "no"), ONE_SIDED),
        Check("catastrophic_increase: yes, trivial", "last = 10 x first", reaches_trivial("yes"), ONE_SIDED),
        Check("catastrophic_increase: no, trivial", "last = 10 x first", reaches_trivial("no"), ONE_SIDED),
        *(Check("divergence: yes", shape, answers(Divergence(), "risk", "yes"), ONE_SIDED) for shape in bounded),
        *(Check("divergence: no", shape, answers(Divergence(), "risk", "no"), ONE_SIDED) for shape in unbounded),
        Check("collapsing_variance: yes", "constant", answers(CollapsingVariance(), "variance_ratio", "yes"), ONE_SIDED),
        Check("collapsing_variance: no", "falls, 0.97^t", answers(CollapsingVariance(), "variance_ratio", "no"), ONE_SIDED),
        *(Check("trend: not bounded", shape, has_trend("log", "linear", "exponential"), TWO_SIDED) for shape in bounded),
        *(Check("trend: bounded", shape, has_trend("constant", "saturating"), TWO_SIDED) for shape in ("sum of 1/t", "linear")),
        Check("tail_loss: yes", "last = 0.9 x first", answers(TailLoss(), "recall", "yes"), ONE_SIDED),
        Check("tail_loss: no", "last = 0.9 x first", answers(TailLoss(), "recall", "no"), ONE_SIDED),
        Check("hallucination: yes", "last = first + 0.1", answers(Hallucination(), "outside_support", "yes"), ONE_SIDED, plain),
        Check("six equal policies: some order holds", "constant", any_comparison("holds"), TWO_SIDED, copies=POLICIES),
        Check("six equal policies: some order violated", "constant", any_comparison("violated"), TWO_SIDED, copies=POLICIES),
        Check("order of three, equal: violated", "constant", any_comparison("violated", 3), TWO_SIDED, copies=POLICIES),
        Check("inflection point", "constant", lambda c, rng: inflection_point(c) is not None, TWO_SIDED),
        Check("inflection point", "falls to the end", lambda c, rng: inflection_point(c) is not None, TWO_SIDED),
        Check("inflection point elsewhere", "lowest in the middle", misses_minimum, TWO_SIDED),
        Check("rise after the minimum", "falls to the end", lambda c, rng: (rise_after_minimum(c).low or 0) > 0, TWO_SIDED),
        Check("interval of the mean misses", "constant", misses_last_mean, TWO_SIDED),
        Check("interval of the multiplier misses", "constant", misses_multiplier, TWO_SIDED),
    ]


def rate(check: Check, noise: str, seeds: int, generations: int, runs: int) -> float:
    """Share of simulated runs in which the false statement is made."""
    rng = np.random.default_rng([seeds, generations, list(NOISE).index(noise)])
    mean = SHAPES[check.shape](np.arange(1.0, generations + 1))
    made = (check.made(NOISE[noise](mean, seeds * check.copies, rng), rng) for _ in range(runs))
    return sum(made) / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--generations", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--only", default="", help="part of a statement")
    arguments = parser.parse_args()
    sizes = list(product(arguments.seeds, arguments.generations))
    print(f"{'false statement':40} {'truth':20} {'noise':12} nominal " + " ".join(f"{s:>3}x{t:<3}" for s, t in sizes))
    for check in checks():
        if arguments.only not in check.statement:
            continue
        limit = check.nominal + 2 * (check.nominal * (1 - check.nominal) / arguments.runs) ** 0.5
        for noise in check.noise:
            rates = [rate(check, noise, *size, arguments.runs) for size in sizes]
            cells = " ".join(f"{100 * each:5.1f}{'!' if each > limit else ' '} " for each in rates)
            print(f"{check.statement:40} {check.shape:20} {noise:12} {100 * check.nominal:5.1f} % {cells}", flush=True)


if __name__ == "__main__":
    main()
