"""Policies made of other policies: the control of a policy, a policy with curators, a switch from one policy to another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MinLen

from selfloop.component import Policy
from selfloop.curator import Curator
from selfloop.errors import SettingError
from selfloop.policies.builtin import Replace
from selfloop.policies.schedule import rows_of_batch
from selfloop.types import Batch, Plan, Take, real


@dataclass(frozen=True, kw_only=True)
class Control(Policy):
    """The training sets of another policy with real rows in place of synthetic ones: the same rows, weights and budget.

    What remains between the two is the effect of synthetic data alone. By default the rows are fresh: those in place of
    synthetic(k) are new rows of real(k + 1), and text is cut to as many tokens as synthetic(k) has, so that both train on as
    many tokens in as many steps. A source with too few rows can repeat the initial rows (`rows = "initial"`), uncut.
    """

    name: ClassVar[str] = "control"
    of: Annotated[Policy, "policy whose training sets it copies"] = field(default_factory=Replace)
    rows: Annotated[
        Literal["fresh", "initial"], "rows in place of synthetic ones: new real rows, or the initial rows again"
    ] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.of, Control):
            raise SettingError("of", "got a control; expected the policy that it is a control of. Name that policy.")

    def n_real(self, t: int, n: int) -> int:
        return self.of.n_real(t, n) + (self.of.n_synthetic(t - 1, n) if self.rows == "fresh" else 0)

    def n_synthetic(self, t: int, n: int) -> int:
        return self.of.n_synthetic(t, n)

    def n_external(self, t: int, n: int) -> int:
        return self.of.n_external(t, n)

    def plan(self, t: int, n: int) -> Plan:
        other = self.of.plan(t, n)
        if self.rows == "initial":
            return Plan(tuple(part for take in other.takes for part in self._repeat_initial(take, n)), other.budget)
        if any(take.start for take in other.takes):
            return Plan(tuple(self._move(take, n) for take in other.takes), other.budget)
        rows, masses = dict[Batch, int](), dict[Batch, float]()
        for take in other.takes:  # one take per batch: real(t) has the rows in place of synthetic(t - 1) and fresh rows
            if not take.weight:
                continue
            batch = real(take.batch.first_use) if take.batch.kind == "synthetic" else take.batch
            count = self._count(take, n)
            rows[batch] = rows.get(batch, 0) + count
            masses[batch] = masses.get(batch, 0.0) + count * take.weight
        return Plan(tuple(Take(batch, k, masses[batch] / k) for batch, k in rows.items() if k), other.budget)

    def _count(self, take: Take[Batch], n: int) -> int:
        return rows_of_batch(self.of, take.batch, n) - take.start if take.rows is None else take.rows

    def _move(self, take: Take[Batch], n: int) -> Take[Batch]:
        """The same interval of the rows in place of synthetic ones, which come first, or of the fresh rows after them."""
        kind, born = take.batch
        if kind == "external":
            return take
        n_first = self.of.n_synthetic(born - 1, n) if kind == "real" and born > 1 else 0
        return Take(real(take.batch.first_use), self._count(take, n), take.weight, n_first + take.start)

    def _repeat_initial(self, take: Take[Batch], n: int) -> list[Take[Batch]]:
        if take.batch.kind != "synthetic":
            return [take]
        takes, start, rest = [], take.start % n, self._count(take, n)
        while rest:
            takes.append(Take(real(1), min(n - start, rest), take.weight, start))
            start, rest = 0, max(rest - n + start, 0)
        return takes


@dataclass(frozen=True, kw_only=True)
class Curated(Policy):
    """Another policy with curators, which keep, edit or weight its rows: `{ name = "replace", curators = [...] }`.

    New rows are sampled in rounds until as many are kept as the policy asks for; a row that answers an input (a prompt, the
    regressors of a row) is sampled at most 16 times, and inputs without a kept answer are left out. With `max_rounds`, the rows
    kept by then are used, fewer than the policy counts.
    """

    name: ClassVar[str] = "curated"
    of: Annotated[Policy, "policy whose rows are curated"] = field(default_factory=Replace)
    curators: Annotated[tuple[Curator, ...], MinLen(1), "curators, in the order in which they judge"]
    max_rounds: Annotated[int | None, Ge(1), "rounds of sampling at most; the rows kept by then are used"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.of, Curated | Control):
            advice = "Put all curators in one list" if isinstance(self.of, Curated) else "Give them to the policy it controls"
            raise SettingError("of", f"got a {self.of.name} policy; expected one without curators. {advice}.")
        for curator in self.curators:
            if curator.applies_to == "training_rows" and curator.n_candidates() > 1:
                problem = f"{curator.name} chooses among candidates for a new row; expected applies_to = 'new_rows'."
                raise SettingError("curators", f"{problem} Remove the setting.")

    def unused_settings(self) -> dict[str, str]:
        judges_new = any(curator.applies_to == "new_rows" for curator in self.curators)
        return {} if judges_new else {"max_rounds": "no curator judges new rows"}

    def n_real(self, t: int, n: int) -> int:
        return self.of.n_real(t, n)

    def n_synthetic(self, t: int, n: int) -> int:
        return self.of.n_synthetic(t, n)

    def n_external(self, t: int, n: int) -> int:
        return self.of.n_external(t, n)

    def plan(self, t: int, n: int) -> Plan:
        return self.of.plan(t, n)


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
