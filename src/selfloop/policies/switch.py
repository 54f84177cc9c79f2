"""A policy that becomes another one, for example to heal a chain that has degraded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Ge

from selfloop.component import Policy
from selfloop.errors import SettingError
from selfloop.policies.builtin import Replace
from selfloop.policies.control import Control
from selfloop.policies.curated import Curated
from selfloop.policies.schedule import rows_of_batch
from selfloop.types import Batch, Plan, Take


@dataclass(frozen=True, kw_only=True)
class Switch(Policy):
    """Policy `of` before generation `at`; from it on the training sets of `to`, and the new rows that they are made of.

    So model `at` - 1 samples as many rows as `to` trains on at generation `at`. Earlier batches are those of `of`: one that it
    never drew (fresh real rows, if `of` is `replace`) is left out of the training sets of `to`; of one that has fewer rows than
    `to` takes, all are taken; a take of a whole batch takes all its rows, however many there are.
    """

    name: ClassVar[str] = "switch"
    of: Annotated[Policy, "policy before generation `at`"] = field(default_factory=Replace)
    to: Annotated[Policy, "policy from generation `at` on"]
    at: Annotated[int, Ge(2), "first generation of `to`"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, policy in (("of", self.of), ("to", self.to)):
            if isinstance(policy, Control | Curated):
                problem = f"got {policy.name}; expected a policy that only counts its own rows"
                raise SettingError(name, f"{problem}. Set `of` of {policy.name} to this switch instead.")

    def n_real(self, t: int, n: int) -> int:
        return self._policy_at(t).n_real(t, n)

    def n_synthetic(self, t: int, n: int) -> int:
        return self._policy_at(t + 1).n_synthetic(t, n)  # rows for the next generation

    def n_external(self, t: int, n: int) -> int:
        return self._policy_at(t).n_external(t, n)

    def plan(self, t: int, n: int) -> Plan:
        plan = self._policy_at(t).plan(t, n)
        if t < self.at:
            return plan
        return Plan(tuple(take for asked in plan.takes if (take := self._limit(asked, n))), plan.budget)

    def _policy_at(self, t: int) -> Policy:
        return self.of if t < self.at else self.to

    def _limit(self, take: Take[Batch], n: int) -> Take[Batch] | None:
        """The take of `to` with the rows that exist; None without any. One that `to` alone could not have is left to fail."""
        if take.batch.first_use >= self.at:
            return take
        drawn, counted = (rows_of_batch(policy, take.batch, n) for policy in (self.of, self.to))
        stop = take.start + (take.rows or 1)
        if stop <= drawn or stop > counted:  # the rows exist, or `to` alone could not take them either
            return take
        rows = drawn - take.start
        return replace(take, rows=rows) if rows > 0 else None
