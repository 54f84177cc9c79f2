"""All laws, and their curves for one scenario."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.columns import Floats
from selfloop.protocols import ControlsPolicy
from selfloop.snapshots import Scenario
from selfloop.store.identity import package_of
from selfloop.theory.law import Kind, Law, schedule_entries
from selfloop.theory.laws import discrete, gaussian, linear, mixing
from selfloop.theory.moments import NoiseLedger, noise_ledger
from selfloop.types import Limit

MAX_TAKES = 50_000  # of all generations: the time of moments is quadratic in batches; `accumulate` reaches it at t = 315
LAWS: dict[tuple[str, str], tuple[Law, ...]] = {
    ("gaussian", "gaussian"): gaussian.LAWS,
    ("discrete", "zipf"): discrete.LAWS,
    ("linear", "linear"): linear.LAWS,
    ("kde", "gaussian"): gaussian.KERNEL_LAWS,
    ("glm", "logistic"): linear.GLM_LAWS,
    ("glm", "imbalanced"): mixing.LAWS,
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


def law_curves(scenario: Scenario) -> list[LawCurve]:
    """The curves of all laws whose conditions a scenario meets; empty if no law applies.

    No law applies to curated rows, to models that start from another model, or to components that are not built in.
    """
    laws = LAWS.get((scenario.family.name, scenario.source.name), ())
    built_in = all(package_of(type(component)) == "selfloop" for component in (scenario.family, scenario.source))
    if not built_in or not laws or scenario.curators or scenario.init_from != "scratch":
        return []
    takes = [take for entry in schedule_entries(scenario) for take in entry.plan.takes]
    if len(takes) > MAX_TAKES:
        return []
    is_control = isinstance(scenario.policy, ControlsPolicy) and all(take.batch.kind == "real" for take in takes)
    return [
        LawCurve(
            law.name, law.metric, law.kind, law.source, law.conditions, values,
            "finite" if is_control else law.limit(scenario),  # its models see real rows alone
        )
        for law in laws
        if (values := law.values(scenario)) is not None
    ]  # fmt: skip


def law_ledger(scenario: Scenario) -> NoiseLedger | None:
    """The noise ledger behind the laws of a scenario; None if they do not follow from moments."""
    names = {curve.law for curve in law_curves(scenario)}
    for law in LAWS.get((scenario.family.name, scenario.source.name), ()):
        if law.estimator and law.name in names:
            return noise_ledger(scenario.policy, scenario.n, scenario.generations, law.estimator(scenario))
    return None
