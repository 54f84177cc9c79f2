"""Arithmetic of t and n for the `custom` policy: numbers, + - * / // % **, comparisons, and a few functions."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from selfloop.errors import SpecError
from selfloop.types import Batch, real, synthetic

_OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.UAdd: operator.pos, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "round": round, "abs": abs, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt,
    "log": math.log, "exp": math.exp,
}  # fmt: skip
_BATCHES = re.compile(r"\s*(real|synthetic)\s*\((.+)\)\s*")


def evaluate(where: str, expression: object, **names: int) -> float:
    """Value of an expression of the given names; numbers stand for themselves."""
    try:
        value = (
            expression if isinstance(expression, int | float) else _value(ast.parse(str(expression), mode="eval").body, names)
        )
        if not math.isfinite(value):
            raise OverflowError
        return value
    except (ArithmeticError, SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as problem:
        raise SpecError(
            f"{where}: cannot evaluate {expression!r} at {names}. Allowed: numbers, {', '.join(names)}, + - * / // % **, "
            f"comparisons, 'a if b else c', and {', '.join(_FUNCTIONS)}."
        ) from problem


def _value(node: ast.expr, names: dict[str, int]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, names))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, names), _value(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:  # a typo must not hang the program in a huge power
            raise ValueError
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _OPERATORS[type(node.ops[0])](_value(node.left, names), _value(node.comparators[0], names))
    if isinstance(node, ast.IfExp):
        return _value(node.body if _value(node.test, names) else node.orelse, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _FUNCTIONS[node.func.id](*(_value(argument, names) for argument in node.args))
    raise SyntaxError


def expand_batches(text: str, **names: int) -> list[Batch]:
    """Batches named by "real(1)", "synthetic(t-1)" or a range such as "synthetic(1..t-1)" (empty when it ends early)."""
    match = _BATCHES.fullmatch(text)
    if not match:
        raise SpecError(f"policy.takes.batch: got {text!r}; expected 'real(1)', 'synthetic(t-1)' or 'synthetic(1..t-1)'.")
    kind, inside = match.groups()
    ends = [round(evaluate("policy.takes.batch", part, **names)) for part in inside.split("..", 1)]
    make = real if kind == "real" else synthetic
    last = min(ends[-1], ends[0] + names["t"])  # so many never exist: the schedule refuses them, however far the range goes
    return [make(born) for born in range(ends[0], last + 1)]
