"""Exact theory: the world of expectations (`moments`) and the published laws (`laws`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from selfloop.component import Policy

if TYPE_CHECKING:
    from selfloop.theory.moments import PolicyPrediction


def predict(policy: Policy | str | Mapping[str, Any], n: int = 1000, generations: int = 10) -> PolicyPrediction:
    """Expected error and variance of a mean and a variance under a policy (a name, a table with a name, or an object)."""
    from selfloop.spec.components import make_component
    from selfloop.theory import moments

    return moments.predict(make_component("policy", policy, "policy"), n, generations)
