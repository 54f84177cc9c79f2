"""All laws, and their curves for one scenario."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np

from selfloop.columns import Floats
from selfloop.errors import SpecError
from selfloop.protocols import ControlsPolicy
from selfloop.snapshots import Scenario
from selfloop.store.identity import package_of
from selfloop.theory.law import Kind, Law, UnmetConditionError, require, schedule_entries, true_params
from selfloop.theory.laws import curation, discrete, gaussian, linear
from selfloop.theory.moments import NoiseLedger, noise_ledger
from selfloop.types import Limit

MAX_TAKES = 50_000  # of all generations: the time of moments is quadratic in batches; `accumulate` reaches it at t = 315
LAWS: dict[tuple[str, str], tuple[Law, ...]] = {
    ("gaussian", "gaussian"): gaussian.LAWS,
    ("discrete", "zipf"): discrete.LAWS,
    ("linear", "linear"): linear.LAWS,
    ("kde", "gaussian"): gaussian.KERNEL_LAWS,
    ("glm", "logistic"): linear.GLM_LAWS,
    ("glm", "imbalanced"): linear.FEEDBACK_LAWS,
}  # by family and source


@dataclass(frozen=True)
class LawCurve:
    """The values of one law for a scenario."""

    law: str
    metric: str
    kind: Kind
    source: str
    conditions: str
    values: Floats  # index 0 is generation 1
    limit: Limit | None = None  # as generations go on; None if it is not known


@dataclass(frozen=True)
class SurvivalLaw:
    """The chance of every true symbol to be in the model, by its true probability."""

    kind: Kind  # a bound is a lower one
    shares: Floats  # (symbols,)
    alive: Floats  # (generations, symbols)


def law_curves(scenario: Scenario) -> list[LawCurve]:
    """The curves of all laws whose conditions a scenario meets; empty if no law applies.

    An asymptotic law is left out where an exact law of its metric, which is before it in its table, applies. No law applies to
    models that start from another model, to external rows or to components that are not built in; to curated rows only the
    laws of one curator, to merged models only the law of their variance.
    """
    laws = _laws(scenario)
    components = (scenario.family, scenario.source, *scenario.curators)
    built_in = all(package_of(type(component)) == "selfloop" for component in components)
    if not built_in or not laws or scenario.init_from != "scratch":
        return []
    takes = [take for entry in schedule_entries(scenario) for take in entry.plan.takes]
    if len(takes) > MAX_TAKES or any(take.batch.kind == "external" for take in takes):
        return []
    is_control = isinstance(scenario.policy, ControlsPolicy) and all(take.batch.kind == "real" for take in takes)
    prefix, curves = f"Family {scenario.family.name} on source {scenario.source.name}, fitted from scratch: ", list[LawCurve]()
    for law in laws:
        if law.kind != "asymptotic" or (law.metric, "exact") not in {(curve.metric, curve.kind) for curve in curves}:
            with suppress(UnmetConditionError, SpecError), np.errstate(over="ignore", invalid="ignore"):
                values, limit = law.values(scenario), "finite" if is_control else law.limit(scenario)  # control: real rows
                require(bool(np.isfinite(values).all()))  # too large for a number
                curves.append(LawCurve(law.name, law.metric, law.kind, law.source, prefix + law.conditions, values, limit))
    return curves


def _laws(scenario: Scenario) -> tuple[Law, ...]:
    pair = scenario.family.name, scenario.source.name
    if scenario.merge is not None:
        return gaussian.MERGE_LAWS if pair == ("gaussian", "gaussian") and not scenario.curators else ()
    if not scenario.curators:
        return LAWS.get(pair, ())
    is_one = len(scenario.curators) == 1 and scenario.curators[0].applies_to == "new_rows" and scenario.max_rounds is None
    return curation.LAWS.get(pair, ()) if is_one else ()


def law_of_survival(scenario: Scenario) -> SurvivalLaw | None:
    """The chances behind the laws of the number of symbols; None if no such law applies."""
    kinds = {curve.kind for curve in law_curves(scenario) if curve.metric == "support_size"}
    for kind, chances in (("exact", discrete.alive), ("bound", discrete.alive_at_least)):
        if kind in kinds:
            return SurvivalLaw(kind, cast(Floats, true_params(scenario)["probabilities"]), chances(scenario))
    return None


def law_ledger(scenario: Scenario) -> NoiseLedger | None:
    """The noise ledger behind the laws of a scenario; None if they do not follow from moments."""
    names = {curve.law for curve in law_curves(scenario)}
    for law in _laws(scenario):
        if law.estimator and law.name in names:
            return noise_ledger(scenario.policy, scenario.n, scenario.generations, law.estimator(scenario))
    return None
