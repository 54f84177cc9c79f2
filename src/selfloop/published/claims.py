"""Claims of papers that a run can test: orders of policies by risk."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

from selfloop.published.papers import papers
from selfloop.settings import has_default_settings
from selfloop.spec.spec import Spec


def unmodified_policies(spec: Spec) -> list[str]:
    """Labels of the policies with default settings, which are those that papers ran."""
    labels = zip(spec.policy_labels(), spec.policies, strict=True)
    return [label for label, policy in labels if has_default_settings(policy)]


def claimed_orders(labels: Collection[str]) -> list[tuple[str, ...]]:
    """The claimed orders of these policies, the highest risk first, without those that are part of a longer one."""
    claims = [claim.order for paper in papers().values() for claim in paper.claims]
    orders = sorted({tuple(label for label in order if label in labels) for order in claims})
    return [order for order in orders if len(order) > 1 and not any(set(order) < set(other) for other in orders)]


def claimed_pairs(labels: Collection[str]) -> set[tuple[str, str]]:
    """Every pair (higher, lower) of the claimed orders of these policies."""
    return {pair for order in claimed_orders(labels) for pair in combinations(order, 2)}
