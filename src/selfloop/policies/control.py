"""The control of another policy: the same training sets with real rows in place of synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from selfloop.component import Policy
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
        """Rows of a take of the other policy."""
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
