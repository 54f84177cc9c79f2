"""Claims of papers judged by runs, with the answers recorded for this version; the values that papers print, measured again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfloop.columns import Floats
from selfloop.component import Metric
from selfloop.engine.executors import Notify
from selfloop.errors import DataError, MissingExtraError, SpecError, unknown_name
from selfloop.plugins import component_class
from selfloop.protocols import SupportsStepCount
from selfloop.published.claims import Claim, ClaimPoint, Judgment, judge
from selfloop.published.papers import Paper, PublishedTable, PublishedValue, find_paper, papers
from selfloop.result import PolicyCurves, Result, run
from selfloop.spec.parse import read_changed_spec, spec_from_table
from selfloop.spec.spec import Spec
from selfloop.stats.intervals import Interval, mean_interval, tail_variance
from selfloop.store.store import Store
from selfloop.types import Coordinates

RECORDED = "answers.jsonl"  # in the folder of the papers: one line per claim, as `reproduce --json` writes it
UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0}  # of a budget, in minutes
NOT_RUN = "not run"
Progress = Callable[[int, int], None]
SEEDS = {"paper": 100, "small": 20}  # by scale; for "paper" only if the paper does not print its number of seeds
MAX_SPREAD_OF_ONE_CHAIN = 0.5  # share of the sum of squares; above it z is not reliable
MIN_SEEDS = 10  # with fewer, one chain often carries that much, and the standard errors are themselves uncertain
Measure = Callable[[PublishedTable, int, Progress], Mapping[str, Floats]]  # -> policy -> (seeds, generations)


@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim with its answer; without a judgment, `reason` is why it was not run."""

    claim: Claim
    judgment: Judgment | None
    seconds: float  # of computing, now or when its steps were stored
    reason: str = ""
    expected: str = ""  # the region of the judgment in words

    @property
    def answer(self) -> str:
        """holds, does not hold, undecided, or not run."""
        return NOT_RUN if self.judgment is None else self.judgment.answer

    def to_json(self) -> dict[str, Any]:
        """One object with the claim, its answer and its numbers; null without a number."""
        measured = self.judgment and self.judgment.measured
        return {
            "paper": self.claim.paper, "claim": self.claim.name, "answer": self.answer,
            "published": self.expected if self.claim.published is None and not self.claim.derived else self.claim.published,
            "measured": measured and measured.estimate, "low": measured and measured.low, "high": measured and measured.high,
            "seconds": round(self.seconds, 1), "preset": self.claim.preset, "statistic": self.claim.describe_statistic(),
            "expected": self.expected, "generation": self.judgment and self.judgment.generation,
            "seeds": measured and measured.n, "reason": self.reason, "digest": self.claim.digest(),
        }  # fmt: skip


def select_claims(paper: str | None, only: Sequence[str] = (), budget: str | None = None) -> list[Claim]:
    """The claims of a paper, or of all; `only` names some of them. With a budget such as "15m", the shortest that fit into it.

    The minutes that claims state are added up, so that the choice is the same on every machine. SpecError for an unknown name.
    """
    if paper and not paper.endswith(".toml") and "/" in paper:  # as answers name a claim
        paper, _, name = paper.partition("/")
        only = [*only, name]
    claims = [claim for each in ([find_paper(paper)] if paper else papers().values()) for claim in each.claims]
    if not claims:
        raise SpecError(f"reproduce: {paper} has no [[claim]]. Add one, or name a paper of `selfloop reproduce --list`.")
    for name in only:
        if name not in (names := [claim.name for claim in claims]):
            raise SpecError(unknown_name("only", name, names, "claim"))
    selected = [claim for claim in claims if not only or claim.name in only]
    if budget is None:
        return selected
    shortest = sorted(selected, key=lambda claim: claim.minutes)
    totals, minutes = accumulate(claim.minutes for claim in shortest), _parse_budget(budget)
    fits = {claim.key() for claim, total in zip(shortest, totals, strict=True) if total <= minutes + 1e-9}
    if not fits:
        raise SpecError(f"--budget: no claim fits into {budget}; the shortest takes {shortest[0].minutes:g} minutes. Raise it.")
    return [claim for claim in selected if claim.key() in fits]


def _parse_budget(text: str) -> float:
    """Minutes of a text such as "15m"."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or not (minutes := float(parts[1]) * UNITS[parts[2]]):
        raise SpecError(f"--budget: got {text!r}; expected a time above 0, such as 15m, 90s or 2h.")
    return minutes


def claim_spec(claim: Claim, data: Path = Path(), *, wrong: bool = False) -> Spec:
    """The spec of a claim, or that of its planted wrong run. `data` is the folder of data sets that a claim may need."""
    paths = {key: str(data / path) for key, path in claim.data.items()}
    return read_changed_spec(claim.preset, {**claim.changes, **paths, **(claim.wrong if wrong else {})})


def trains_network(spec: Spec) -> bool:
    """True if the family trains a network: such a claim takes minutes."""
    return isinstance(spec.family, SupportsStepCount)


def judge_claims(
    claims: Iterable[Claim],
    *,
    store: Path | None = None,
    data: Path = Path(),
    wrong: bool = False,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Iterator[JudgedClaim]:
    """Run and judge claims one after the other. A claim whose data or library is missing is not run, with the reason.

    Runs are stored, so that a second call continues. `wrong`: the planted wrong runs, in which every claim must fail.
    """
    claims = list(claims)
    for claim in claims:
        if claim.paper not in papers() or claim not in papers()[claim.paper].claims:  # those of papers have tests
            check_claim(claim, data, wrong=wrong)
    progress, notify = progress or (lambda done, total: None), notify or (lambda note: None)
    for i, claim in enumerate(claims):
        progress(i, len(claims))
        notify(claim.key())
        yield judge_claim(claim, store, data, wrong=wrong)
    progress(len(claims), len(claims))


def judge_claim(claim: Claim, store: Path | None = None, data: Path = Path(), *, wrong: bool = False) -> JudgedClaim:
    if missing := _missing_data(claim, data):
        return JudgedClaim(claim, None, 0.0, f"{missing[0]} is not in the folder of data sets (--data)")
    try:
        spec = claim_spec(claim, data, wrong=wrong)
        result = run(spec, store, workers=None if trains_network(spec) else 1)
    except (MissingExtraError, DataError, SpecError) as problem:
        return JudgedClaim(claim, None, 0.0, str(problem))
    judgment = judge(claim, _claim_points(claim, data, result.spec, result.curves))
    return JudgedClaim(claim, judgment, _count_seconds(result), judgment.reason, describe_region(claim, judgment.region))


def check_claim(claim: Claim, data: Path = Path(), *, wrong: bool = False) -> None:
    """Raise SpecError, before any work, for a claim that no run of its scenario can answer."""
    if _missing_data(claim, data):
        return
    with suppress(MissingExtraError, DataError):
        spec = claim_spec(claim, data, wrong=wrong)
        names = {name for m in spec.metrics for name in (*m.directions(), *m.secondary_titles, *m.secondary_units)}
        names |= {claim.metric for metric in spec.metrics if claim.metric.startswith(f"{metric.name}_")}
        curves = dict.fromkeys(names, np.ones((len(spec.seeds), spec.generations)))
        judge(claim, _claim_points(claim, data, spec, lambda at: dict.fromkeys(spec.policy_labels(), curves)))


def _missing_data(claim: Claim, data: Path) -> list[str]:
    return [path for path in claim.data.values() if not (data / path).exists()]


def _claim_points(claim: Claim, data: Path, spec: Spec, curves_at: Callable[[Coordinates], PolicyCurves]) -> list[ClaimPoint]:
    """The points of a run. A planted wrong run may change a policy, and so its label: policies keep their positions."""
    labels = list(zip(spec.policy_labels(), claim_spec(claim, data).policy_labels(), strict=False))
    points = [(point, curves_at(point.coordinates)) for point in spec.points()]
    return [ClaimPoint(dict(p.coordinates), p.n, {label: curves[own] for own, label in labels}) for p, curves in points]


def _count_seconds(result: Result) -> float:
    """Seconds that the stored steps of a run took when they were computed, each counted once."""
    keys, files = result.shared.keys.union(*(usage.keys for usage in result.usage.values())), Store(result.store).files
    return float(sum(body["provenance"]["seconds"] for key in keys if (body := files.read_record(key))))


def describe_region(claim: Claim, region: tuple[float, float]) -> str:
    """The expected region in words: "0.366 ± 3 %", "below 1.645", "replace > accumulate"."""
    low, high = region
    if claim.statistic == "order":
        return " > ".join(claim.policies)
    if claim.near is not None:
        tolerance = f"{claim.within * 100:g} %" if claim.within is not None else f"{claim.margin or 0:g}"
        return f"{(low + high) / 2:.4g} ± {tolerance}"
    if claim.between is not None:
        return f"{low:.4g} to {high:.4g}"
    return f"below {high:.4g}" if claim.below is not None else f"above {low:.4g}"


@cache
def recorded_answers() -> Mapping[str, Mapping[str, Any]]:
    """The answers recorded for this version, by paper/claim; see docs/reproduction.md."""
    file = files("selfloop.published") / RECORDED
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {f"{answer['paper']}/{answer['claim']}": answer for answer in map(json.loads, lines)}


def lost_claims(judged: Iterable[JudgedClaim], *, wrong: bool = False) -> list[str]:
    """The claims that hold in the recorded answers, were run and do not hold now; of wrong runs, those that do not fail."""
    if wrong:
        return [each.claim.key() for each in judged if each.answer not in ("does not hold", NOT_RUN)]
    holding = {key for key, recorded in recorded_answers().items() if recorded["answer"] == "holds"}
    return [key for each in judged if (key := each.claim.key()) in holding and each.answer not in ("holds", NOT_RUN)]


@dataclass(frozen=True, slots=True)
class ReproducedValue:
    """A published value beside the measured mean over seeds; without a mean and z if chains have ended, without z of one seed.

    z is their difference over its standard error: of both means (the paper's from its number of seeds and the spread
    measured here), of rounding, and of reading the value. Of a metric whose lowest value is 0, both are on the log scale, and
    a variance for the tail is added: a mean without the rare large values of a heavy tail has a spread that is too small.
    """

    group: str
    scenario: str
    policy: str
    generation: int
    metric: str
    published: float
    measured: Interval
    z: float | None
    note: str = ""


def reproducible_groups(paper: Paper) -> list[str]:
    """Groups of values of a paper that can be run here."""
    return list(dict.fromkeys(table.group for table in paper.tables if table.source))


def reproduce_values(
    paper: str,
    only: Sequence[str] | None = None,
    *,
    scale: str = "paper",
    store: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
) -> list[ReproducedValue]:
    """Every value of a paper that can be run here, group by group; `only` names groups.

    `scale`: "paper" for the paper's number of seeds, "small" for 20, or a number of seeds. Raises SpecError for an unknown
    paper, group or scale.
    """
    groups = reproducible_groups(find_paper(paper))
    for name in only or ():
        if name not in groups:
            raise SpecError(unknown_name("only", name, groups))
    seeds = int(scale) if scale.isdecimal() and int(scale) > 0 else SEEDS.get(scale)
    if seeds is None:
        raise SpecError(f"scale: got {scale!r}; expected paper, small, or a number of seeds of at least 1.")
    tables = [table for table in find_paper(paper).tables if table.source and table.group in (only or groups)]
    steps = [table.generations * len(table.curves) for table in tables]
    values = []
    for i, table in enumerate(tables):
        table_seeds = table.seeds if scale == "paper" and table.seeds else seeds
        report = partial(_report, progress, sum(steps[:i]), steps[i], sum(steps))
        curves = (measure or partial(simulate, store=store))(table, table_seeds, report)
        for policy, published in table.curves.items():
            values += [_reproduced_value(table, policy, value, curves[policy]) for value in published]
    return values


def simulate(table: PublishedTable, seeds: int, progress: Progress, *, store: Path | None = None) -> dict[str, Floats]:
    """Policy -> (seeds, generations) curves of the scenario of a table."""
    spec = spec_from_table({
        "source": table.source, "family": table.family, "n": table.n, "generations": table.generations, "seeds": seeds,
        "policies": list(table.curves), "metrics": [table.metric],
    })  # fmt: skip
    return {policy: curves[table.metric] for policy, curves in run(spec, store, progress=progress).curves().items()}


def _report(progress: Progress | None, before: int, steps: int, all_steps: int, done: int, total: int) -> None:
    if progress:
        progress(before + steps * done // total, all_steps)


def _reproduced_value(table: PublishedTable, policy: str, value: PublishedValue, curves: Floats) -> ReproducedValue:
    measured = curves[:, value.generation - 1] / table.unit
    positive = cast(type[Metric], component_class("metric", table.metric, "metric")).has_zero and value.value > 0
    interval = mean_interval(measured, positive=positive)
    z, note = None, ""
    if len(measured) > 1 and interval.estimate is not None and (interval.estimate > 0 or not positive):
        tail, variance = float(tail_variance(measured)) if positive else 0.0, float(np.var(measured, ddof=1))
        error = _standard_error(table, value, len(measured), variance + tail)
        mean = interval.estimate
        z = math.log(mean / value.value) * mean / error if positive else (mean - value.value) / error
        squares = (measured - mean) ** 2
        if len(measured) >= MIN_SEEDS and squares.max() > MAX_SPREAD_OF_ONE_CHAIN * squares.sum() > 0:
            note = f"heavy tail: one chain carries {squares.max() / squares.sum():.0%} of the spread"
        elif len(measured) >= MIN_SEEDS and tail > variance:
            note = f"heavy tail: z has {math.sqrt(1 + tail / variance):.1f} times the measured spread"
    return ReproducedValue(
        table.group, _describe_scenario(table), policy, value.generation, table.metric, value.value, interval, z, note
    )  # fmt: skip


def _describe_scenario(table: PublishedTable) -> str:
    settings = {key: value for each in (table.source, table.family) for key, value in each.items() if key != "name"}
    return ", ".join([str(table.source["name"]), *(f"{key} {value}" for key, value in settings.items()), f"n {table.n}"])


def _standard_error(table: PublishedTable, value: PublishedValue, seeds: int, variance: float) -> float:
    of_means = variance / seeds + (variance / table.seeds if table.seeds else 0.0)
    of_rounding_and_reading = (value.digit**2 + (2 * table.reading_error * value.value) ** 2) / 12
    return float(np.sqrt(of_means + of_rounding_and_reading))
