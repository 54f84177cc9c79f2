"""How much higher the risk of a policy is than its control's, in the scale of the bound, and which bounds have a meaning.

Of a risk whose lowest value is 0 the scale is the log of the ratio. A log density has no zero, and its value depends on the
unit of the rows: its excess is a share of the control's distance from the family's trivial model, but of at least 1 nat per
row, and of 1 nat without a trivial model. 5 % of 1 nat: the model finds held-out rows 5 % less probable, whatever their unit.
A bound can also be absolute, in the metric's unit. In what else they differ: every measured metric whose best value is known,
corrected for their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from selfloop.audit.answer import Aspect, Detail
from selfloop.columns import Floats
from selfloop.component import Family, Metric
from selfloop.criteria.judging import COLLAPSES
from selfloop.engine.curves import TRIVIAL
from selfloop.errors import SpecError, shown
from selfloop.protocols import SupportsTrivialModel
from selfloop.result import Result
from selfloop.stats.comparison import as_risk, signs_of_moments
from selfloop.stats.intervals import Interval, at_look, mean_interval, seed_moments

MAX_RELATIVE_BOUND = 10.0  # ten times the control's risk
_BOUND = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*")
ABSOLUTE = "abs"  # unit of an absolute bound of a metric without a unit
Scale = Literal["ratio", "share", "absolute"]
MIN_DISTANCE = 1.0  # nats per row
ASPECTS: Mapping[Aspect, tuple[str, ...]] = {
    "diversity": (
        "pixel_std", "feature_entropy", "feature_diversity", "distinct", "self_bleu", "variance_ratio", "log_variance_ratio",
        "sd_ratio", "heterozygosity", "coverage", "conformer_diversity", "vocabulary",
    ),
    "tails": (
        "tail_mass", "support_size", "unseen_mass", "complete_support", "symbol_survival", "token_survival", "lost_categories",
        "second_moment",
    ),
    "duplicates": ("duplicate_rate", "memorization", "repetition", "training_distance", "record_distance", "contamination"),
    "classes": ("predicted_share", "attributes", "modes", "accuracy"),
    "loss": (
        "nll", "log_loss", "cross_entropy", "negative_elbo", "denoising_loss", "log_likelihood", "squared_error", "excess_risk",
        "mean_error", "parameter_error", "evaluation", "kl_divergence", "wasserstein",
    ),
    "quality": (
        "pixel_frechet", "feature_frechet", "kernel_distance", "precision", "conformer_coverage", "bond_length_distance",
        "clash_rate", "strain_energy", "correct_rate", "mauve", "text_frechet", "downstream", "marginal_distance",
        "correlation_distance", "detectability", "self_cross_entropy", "perplexity",
    ),
    "length": ("text_length", "long_documents"),
}  # fmt: skip


class NotAuditableError(Exception):
    """Chains of which no answer can be given, with the reason in a sentence."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of the excess: relative (0.05 for 5 %), or absolute in the metric's unit."""

    value: float
    is_absolute: bool = False

    def __str__(self) -> str:
        return f"{self.value:g}" if self.is_absolute else f"{100 * self.value:g} %"


def parse_bound(text: str, metric: Metric) -> Bound:
    """The bound in a text such as "5%" or "0.05nats" (the first word of the metric's unit, or "abs"); SpecError otherwise."""
    match, unit = _BOUND.fullmatch(text), metric.unit.split()[0] if metric.unit else ABSOLUTE
    number, suffix = (float(match[1]), match[2]) if match else (0.0, "")
    if suffix == "%" and 0 < number <= 100 * MAX_RELATIVE_BOUND:
        return Bound(number / 100)
    if suffix in (unit, ABSOLUTE) and 0 < number < math.inf:
        return Bound(number, is_absolute=True)
    allowed = f"a share of {metric.name} such as 5%, or an absolute increase such as 0.05{unit}"
    raise SpecError(f"--bound: got {shown(text)}; expected {allowed}. Correct it.")


@dataclass(frozen=True, slots=True)
class ExcessCurves:
    """The excess of each seed and generation, (seeds, generations), in a scale in which means over seeds are taken.

    inf: the policy's chain has collapsed and the control's has not; -inf: the other way round.
    """

    values: Floats
    scale: Scale
    of: str  # what the excess is a share of

    def threshold(self, bound: Bound) -> float:
        """The bound in the scale of the values."""
        return math.log1p(bound.value) if self.scale == "ratio" else bound.value

    def to_fractions(self, interval: Interval, generations: int = 1) -> Interval:
        """An interval of the values as the bound is written (0.05 for 5 %), per generation of a number of them."""
        estimate, low, high = (self._fraction(x, generations) for x in (interval.estimate, interval.low, interval.high))
        return Interval(estimate, low, high, interval.n)

    def _fraction(self, value: float | None, generations: int) -> float | None:
        if value is None:
            return None
        return math.expm1(min(value / generations, 700.0)) if self.scale == "ratio" else value / generations


def read_excess(result: Result, policy: str, control: str, metric: Metric, bound: Bound) -> ExcessCurves:
    """The excess of a policy over its control; NotAuditableError if chains, or their risks, cannot be compared."""
    name, curves = metric.name, result.curves()
    for label in (policy, control):
        if others := result.ends(label, name, began=False) - COLLAPSES.keys():
            raise NotAuditableError(f"chains of {label} ended for another reason than collapse ({', '.join(sorted(others))})")
    risks, controls = (curves[label].get(name, np.array([[np.nan]])) for label in (policy, control))
    scale, of, sizes = _scale(result.spec.family, metric, bound, controls, curves[policy].get(name + TRIVIAL))
    if scale == "ratio":
        if (risks <= 0).any() or (controls <= 0).any():
            raise NotAuditableError(f"{name} is 0 for some seeds, so that ratios have no meaning; use an absolute bound")
        values = np.log(risks / controls)
    else:
        values = (risks - controls) / sizes
    values[np.isnan(risks) & ~np.isnan(controls)] = np.inf
    values[~np.isnan(risks) & np.isnan(controls)] = -np.inf
    comparable = ~np.isnan(values[:, -1])
    if not comparable.any():
        raise NotAuditableError("every chain of the policy and of its control ended")
    return ExcessCurves(values[comparable], scale, of)


def _scale(
    family: Family, metric: Metric, bound: Bound, controls: Floats, trivial: Floats | None
) -> tuple[Scale, str, Floats | float]:
    """The scale, what the excess is a share of, and the sizes that differences of risks are divided by."""
    if bound.is_absolute:
        return "absolute", metric.unit, 1.0
    if metric.has_zero:
        return "ratio", metric.title or metric.name, 1.0
    if trivial is None or not isinstance(family, SupportsTrivialModel):
        if is_log_density(metric):
            return "absolute", metric.unit, MIN_DISTANCE
        raise NotAuditableError(f"{metric.name} has no natural zero, so shares of it have no meaning; use an absolute bound")
    distance = trivial - controls
    of, floor = f"gain over {family.trivial_model}", MIN_DISTANCE if is_log_density(metric) else 0.0
    if not floor and (distance <= 0).any():
        raise NotAuditableError(f"the control is no better than {family.trivial_model}; use an absolute bound")
    if (distance < floor).any():
        of += f" ({floor:g} nat per row at least)"
    return "share", of, np.maximum(distance, floor)


def is_log_density(metric: Metric) -> bool:
    """True for a metric in nats, which is minus the log of a density or probability."""
    return metric.unit.split(" ")[0] == "nats"


def check_metric(name: str | None, metrics: Collection[Metric]) -> Metric:
    """The metric of that name, or the first of which lower is better; SpecError if there is none."""
    lower = {metric.name: metric for metric in metrics if metric.better == "lower"}
    if name is None and lower:
        return next(iter(lower.values()))
    if name not in lower:
        got = "no metric of which lower is better" if name is None else f"{name!r}"
        raise SpecError(f"metrics: got {got}; expected a risk to audit: {', '.join(lower) or 'such as nll'}. Add one.")
    return lower[name]


def aspect_of(metric: str) -> Aspect:
    """What a metric or its secondary value is about: that of the longest metric name that it begins with."""
    names = {name: aspect for aspect, metrics in ASPECTS.items() for name in metrics if metric.startswith(name)}
    return names[max(names, key=len)] if names else "other"


def read_details(result: Result, policy: str, control: str, bound: float, look: int) -> tuple[Detail, ...]:
    """Every metric of known direction at the last generation; `look` (from 1) spends the false answers over the looks.

    "same": both limits of the difference are within the bound, a share of the control's mean, of a metric with a natural zero.
    """
    spec, curves = result.spec, result.curves()
    directions = spec.directions()
    names = [name for name in directions if name in curves[policy].keys() & curves[control].keys()]
    own = [(m, name, title) for m in spec.metrics for name, title in {**m.secondary_titles, m.name: m.title}.items()]
    titles = {name: (title, m.secondary_units.get(name, m.unit)) for m, name, title in own}
    last = {name: [curves[label][name][:, -1:] for label in (policy, control)] for name in names}
    last = {name: pair for name, pair in last.items() if not np.isnan(np.hstack(pair)).any()}
    rises = [
        np.subtract(*(as_risk(curves[label], name, directions[name])[:, -1:] for label in (policy, control))) for name in last
    ]
    with at_look(look):
        worse = [float(sign[0]) for sign in signs_of_moments([seed_moments(rise) for rise in rises])] if rises else []
    details = []
    for (name, pair), sign in zip(last.items(), worse, strict=True):
        title, unit = titles.get(name, ("", ""))
        difference = mean_interval((pair[0] - pair[1])[:, 0])
        margin = bound * abs(float(pair[1].mean())) if name in spec.positive_metrics() else 0.0
        is_same = difference.low is not None and difference.high is not None and max(-difference.low, difference.high) < margin
        is_same = is_same or bool((pair[0] == pair[1]).all())
        details.append(
            Detail(
                metric=name, title=title or name.replace("_", " "), unit=unit, aspect=aspect_of(name),
                policy=float(pair[0].mean()), control=float(pair[1].mean()), difference=difference,
                answer="worse" if sign > 0 else "better" if sign < 0 else "same" if is_same else "undecided",
            )
        )  # fmt: skip
    return tuple(sorted(details, key=lambda detail: get_args(Aspect).index(detail.aspect)))
