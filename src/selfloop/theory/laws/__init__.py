"""Every law, and what they say of one setting."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.component import Scenario
from selfloop.theory.law import Kind, Law
from selfloop.theory.laws import discrete, gaussian, glm, kde, linear
from selfloop.types import Floats

LAWS: tuple[Law, ...] = (*gaussian.LAWS, *discrete.LAWS, *linear.LAWS, *kde.LAWS, *glm.LAWS)


@dataclass(frozen=True)
class Prediction:
    """What a law that applies says of one metric, generation by generation."""

    law: str
    metric: str
    kind: Kind
    source: str
    conditions: str
    values: Floats  # index 0 is generation 1


def predictions(scenario: Scenario) -> list[Prediction]:
    """The curves of all laws whose conditions a setting meets; none where there is no theory."""
    return [
        Prediction(law.name, law.metric, law.kind, law.source, law.conditions, law.values(scenario))
        for law in LAWS
        if law.applies(scenario)
    ]
