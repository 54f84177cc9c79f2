"""Exact theory: the world of expectations (`moments`) and the published laws (`laws`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from selfloop.component import Policy

if TYPE_CHECKING:
    from selfloop.theory.moments import PolicyPrediction


def predict(policy: Policy | str | Mapping[str, Any], n: int = 1000, generations: int = 10) -> PolicyPrediction:
    """What a policy (a name, a table with a name, or an object) does to a mean and a variance, generation by generation."""
    from selfloop.spec.spec import component
    from selfloop.theory.moments import predict as exact

    return exact(component("policy", policy, "policy"), n, generations)
