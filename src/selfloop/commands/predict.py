"""Exact theory for `selfloop predict`: of policies, or of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfloop.report.theme import describe_coordinates
from selfloop.spec.spec import Spec
from selfloop.theory.moments import NoiseLedger


def spec_laws(spec: Spec) -> list[dict[str, Any]]:
    """Policy, coordinates and laws that apply of every policy at every point, given the rows of the run if they need them."""
    from selfloop.theory.laws.design import point_laws

    return [
        {"policy": label, "coordinates": point.coordinates, "laws": point_laws(point, policy)}
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
