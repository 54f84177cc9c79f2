"""The `custom` policy: takes and row counts as expressions of t and n."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from selfloop.component import Policy
from selfloop.errors import SettingError, shown
from selfloop.formulas import evaluate
from selfloop.settings import UNLESS_DEFAULT
from selfloop.types import Batch, Plan, Take, external, real, synthetic

PROBE_ROWS = 1_000_000  # n of the first evaluation of every expression, before any work
BATCH_PATTERN = re.compile(r"\s*(real|synthetic|external)\s*\((.+)\)\s*")
TakeTable = tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Custom(Policy):
    """Takes and row counts as expressions of t and n, for all generations or for each of them.

    A take is `{ batch = "synthetic(t-1)", rows = "n // 2", weight = 1 }`; `"synthetic(1..t-1)"` is a range of batches, and
    `start = "n // 4"` skips that many rows of each.
    """

    name: ClassVar[str] = "custom"
    takes: Annotated[TakeTable, "takes of every generation"] = ()
    generations: Annotated[tuple[TakeTable, ...], "takes of generation 2, 3, ...; the last list holds for all later ones"] = ()
    real_rows: Annotated[int | str, "fresh real rows of generation t, from t = 2 on"] = 0
    synthetic_rows: Annotated[int | str, "rows sampled from the model of generation t"] = "n"
    budget: Annotated[int | str | None, "training rows drawn from the rows of all takes; by default all are used"] = None
    external_rows: Annotated[int | str, "rows of the spec's source `external` drawn for generation t, from t = 1 on"] = field(
        default=0, metadata=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.takes) == bool(self.generations):
            raise SettingError("takes", "expected one of `takes` (of every generation) and `generations`. Set one of the two.")
        for take in (*self.takes, *(take for table in self.generations for take in table)):
            if not {"batch"} <= set(take) <= {"batch", "start", "rows", "weight"}:
                raise SettingError(
                    "takes", f"got {shown(take)}; expected `batch` and optionally `start`, `rows` and `weight`. Fix that take."
                )
        self.new_rows(2, PROBE_ROWS)
        self.plan(2, PROBE_ROWS)  # raises for a wrong expression

    def n_real(self, t: int, n: int) -> int:
        return evaluate_rows("real_rows", self.real_rows, t=t, n=n)

    def n_synthetic(self, t: int, n: int) -> int:
        return evaluate_rows("synthetic_rows", self.synthetic_rows, t=t, n=n)

    def n_external(self, t: int, n: int) -> int:
        return evaluate_rows("external_rows", self.external_rows, t=t, n=n)

    def plan(self, t: int, n: int) -> Plan:
        takes = []
        for take in self.takes or self.generations[min(t - 2, len(self.generations) - 1)]:
            rows = None if take.get("rows") is None else evaluate_rows("takes.rows", take["rows"], t=t, n=n)
            weight = evaluate("takes.weight", take.get("weight", 1.0), t=t, n=n)
            start = evaluate_rows("takes.start", take.get("start", 0), t=t, n=n)
            takes += [Take(batch, rows, float(weight), start) for batch in expand_batches(str(take["batch"]), t=t, n=n)]
        return Plan(tuple(takes), None if self.budget is None else evaluate_rows("budget", self.budget, t=t, n=n))


def evaluate_rows(setting: str, expression: object, **names: int) -> int:
    """Value of an expression as a number of rows."""
    rows = round(evaluate(setting, expression, **names))
    if rows < 0:
        at = ", ".join(f"{name} = {value}" for name, value in names.items())
        raise SettingError(
            setting, f"got {shown(expression)}, which is {rows} at {at}; expected 0 rows or more. Fix the expression."
        )
    return rows


def expand_batches(text: str, **names: int) -> list[Batch]:
    """Batches named by "real(1)", "synthetic(t-1)" or a range such as "synthetic(1..t-1)", which may be empty."""
    match = BATCH_PATTERN.fullmatch(text)
    if not match:
        problem = f"got {shown(text)}; expected real(1), synthetic(t-1) or a range such as synthetic(1..t-1). Fix the batch."
        raise SettingError("takes.batch", problem)
    kind, inside = match.groups()
    ends = [round(evaluate("takes.batch", end, **names)) for end in inside.split("..", 1)]
    last = min(ends[-1], ends[0] + names["t"])  # the range then has a batch that does not exist, which the schedule refuses
    return [{"real": real, "synthetic": synthetic, "external": external}[kind](born) for born in range(ends[0], last + 1)]


@dataclass(frozen=True, kw_only=True)
class FixedCounts(Policy):
    """Fixed numbers of initial and of synthetic rows: a cell of a grid (Kazdan et al. 2025, section 4.5).

    Cells with equal `sampled_rows` share the rows sampled at generation 1 and train on the first `synthetic_rows` of them.
    """

    name: ClassVar[str] = "fixed_counts"
    real_rows: Annotated[int, Ge(0), "initial rows used, at most n"]
    synthetic_rows: Annotated[int, Ge(0), "rows of the newest model used"]
    sampled_rows: Annotated[int | None, Ge(0), "rows sampled from each model; default synthetic_rows"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.real_rows + self.synthetic_rows == 0:
            raise SettingError("real_rows", "got 0, with synthetic_rows = 0; expected a row to train on. Raise one of the two.")
        if self.n_synthetic(1, 0) < self.synthetic_rows:
            raise SettingError("sampled_rows", f"got {self.sampled_rows}; expected synthetic_rows or more. Raise it.")

    def n_synthetic(self, t: int, n: int) -> int:
        return self.synthetic_rows if self.sampled_rows is None else self.sampled_rows

    def plan(self, t: int, n: int) -> Plan:
        takes = Take(real(1), self.real_rows), Take(synthetic(t - 1), self.synthetic_rows)
        return Plan(tuple(take for take in takes if take.rows))
