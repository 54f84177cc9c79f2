"""All laws, and their curves for one scenario."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.columns import Floats
from selfloop.snapshots import Scenario
from selfloop.theory.law import Kind, Law
from selfloop.theory.laws import discrete, gaussian, glm, kde, linear

LAWS: tuple[Law, ...] = (*gaussian.LAWS, *discrete.LAWS, *linear.LAWS, *kde.LAWS, *glm.LAWS)


@dataclass(frozen=True)
class LawCurve:
    """The values of one law for a scenario."""

    law: str
    metric: str
    kind: Kind
    source: str
    conditions: str
    values: Floats  # index 0 is generation 1


def law_curves(scenario: Scenario) -> list[LawCurve]:
    """The curves of all laws whose conditions a scenario meets; empty if no law applies."""
    return [
        LawCurve(law.name, law.metric, law.kind, law.source, law.conditions, law.values(scenario))
        for law in LAWS
        if law.applies(scenario)
    ]
