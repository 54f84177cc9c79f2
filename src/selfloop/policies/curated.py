"""A policy whose rows are judged by curators: the arithmetic is that of the policy itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, MinLen

from selfloop.component import Policy
from selfloop.curator import Curator
from selfloop.errors import SettingError
from selfloop.policies.builtin import Replace
from selfloop.policies.control import Control
from selfloop.types import Plan


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
