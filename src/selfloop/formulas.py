"""Formulas of specs and claims: numbers, names, + - * / // % **, comparisons, `a if b else c`, and a few functions.

They are parsed, never executed. `harmonic(t, p)` is the sum of i^-p over i = 1 .. t.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

from selfloop.errors import SettingError, shown

MAX_EXPONENT, MAX_BITS, MAX_LENGTH, MAX_TERMS = 64, 256, 1000, 100_000  # a typo must not start the computation of a huge number
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.UAdd: operator.pos, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt, "log": math.log,
    "exp": math.exp, "round": lambda value, digits=None: round(value, digits and max(digits, -MAX_EXPONENT)),
    "harmonic": lambda t, power=1: math.fsum(i**-power for i in range(1, min(int(t), MAX_TERMS) + 1)),
}  # fmt: skip


def evaluate(setting: str, expression: object, **names: float) -> float:
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


def _evaluate_node(node: ast.expr, names: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](_evaluate_node(node.operand, names))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate_node(node.left, names), _evaluate_node(node.right, names)
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and abs(right) > MAX_EXPONENT:
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
