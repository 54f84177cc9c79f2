"""The `custom` policy: takes and row counts as expressions of t and n.

Expressions have numbers, + - * / // % **, comparisons, `a if b else c`, and a few functions. They are parsed, never executed.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from selfloop.component import Policy
from selfloop.errors import SettingError, shown
from selfloop.settings import UNLESS_DEFAULT
from selfloop.types import Batch, Plan, Take, external, real, synthetic

PROBE_ROWS = 1_000_000  # n of the first evaluation of every expression, before any work
MAX_EXPONENT, MAX_BITS, MAX_LENGTH = 64, 256, 1000  # a typo must not start the computation of a huge number
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.UAdd: operator.pos, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt, "log": math.log,
    "exp": math.exp, "round": lambda value, digits=None: round(value, digits and max(digits, -MAX_EXPONENT)),
}  # fmt: skip
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


def evaluate(setting: str, expression: object, **names: int) -> float:
    """Value of an expression of the given names; the value of a number is the number."""
    try:
        if isinstance(expression, int | float):
            value: float = expression
        else:
            if len(str(expression)) > MAX_LENGTH:
                raise SyntaxError
            value = _evaluate_node(ast.parse(str(expression), mode="eval").body, names)
        if not math.isfinite(value):
            raise OverflowError
        return value
    except (ArithmeticError, SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as problem:
        at = ", ".join(f"{name} = {value}" for name, value in names.items())
        raise SettingError(
            setting,
            f"got {shown(expression)}, which has no value at {at}; expected numbers, {', '.join(names)}, + - * / // % **, "
            f"comparisons, 'a if b else c', and {', '.join(FUNCTIONS)}. Fix the expression.",
        ) from problem


def evaluate_rows(setting: str, expression: object, **names: int) -> int:
    """Value of an expression as a number of rows."""
    rows = round(evaluate(setting, expression, **names))
    if rows < 0:
        at = ", ".join(f"{name} = {value}" for name, value in names.items())
        raise SettingError(
            setting, f"got {shown(expression)}, which is {rows} at {at}; expected 0 rows or more. Fix the expression."
        )
    return rows


def _evaluate_node(node: ast.expr, names: dict[str, int]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](_evaluate_node(node.operand, names))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate_node(node.left, names), _evaluate_node(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > MAX_EXPONENT:
            raise ValueError
        value = OPERATORS[type(node.op)](left, right)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise OverflowError
        return value
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return OPERATORS[type(node.ops[0])](_evaluate_node(node.left, names), _evaluate_node(node.comparators[0], names))
    if isinstance(node, ast.IfExp):
        return _evaluate_node(node.body if _evaluate_node(node.test, names) else node.orelse, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return FUNCTIONS[node.func.id](*(_evaluate_node(argument, names) for argument in node.args))
    raise SyntaxError


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
