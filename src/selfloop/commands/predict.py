"""Exact theory for `selfloop predict`: of policies, or of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfloop.report.theme import describe_coordinates
from selfloop.spec.spec import Spec
from selfloop.theory.laws import LawCurve
from selfloop.theory.moments import NoiseLedger
from selfloop.types import Coordinates


@dataclass(frozen=True)
class PolicyLaws:
    """The laws that apply to a policy at a point."""

    policy: str
    coordinates: Coordinates
    laws: list[LawCurve]


def spec_laws(spec: Spec) -> list[PolicyLaws]:
    """The laws that apply to every policy at every point, given the rows of the run if they need them."""
    from selfloop.theory.laws.design import point_laws

    return [
        PolicyLaws(label, point.coordinates, point_laws(point, policy))
        for point in spec.points()
        for label, policy in zip(point.spec.policy_labels(), point.spec.policies, strict=True)
    ]


def spec_ledgers(spec: Spec) -> Mapping[str, NoiseLedger]:
    """The noise ledgers of all policies whose laws follow from moments, by policy and point."""
    from selfloop.report.build import point_ledgers

    return {
        f"{label}; {describe_coordinates(point.coordinates)}" if point.coordinates else label: ledger
        for point in spec.points()
        for label, ledger in point_ledgers(point).items()
    }
