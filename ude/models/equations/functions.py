"""The functions that formulas may use, and which SymPy objects have a meaning in a model."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from ude.errors import ModelError
from ude.models.equations.names import symbol


class sigmoid(sympy.Function):  # type: ignore[misc]
    """``1/(1 + exp(-x))``; a function of its own because the quotient's derivative is inf/inf for large ``-x``.

    Lower case, because SymPy prints a function under the name of its class.
    """

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return self * (1 - self)


@dataclass(frozen=True)
class KnownFunction:
    """A function that formulas may use: its SymPy form and how many arguments it takes (None: one or more)."""

    build: Callable[..., sympy.Expr]
    arguments: int | None = 1


KNOWN_FUNCTIONS: dict[str, KnownFunction] = {
    "exp": KnownFunction(sympy.exp),
    "log": KnownFunction(sympy.log),
    "ln": KnownFunction(sympy.log),
    "log10": KnownFunction(lambda x: sympy.log(x, 10)),
    "log2": KnownFunction(lambda x: sympy.log(x, 2)),
    "sqrt": KnownFunction(sympy.sqrt),
    "sin": KnownFunction(sympy.sin),
    "cos": KnownFunction(sympy.cos),
    "tan": KnownFunction(sympy.tan),
    "asin": KnownFunction(sympy.asin),
    "acos": KnownFunction(sympy.acos),
    "atan": KnownFunction(sympy.atan),
    "sinh": KnownFunction(sympy.sinh),
    "cosh": KnownFunction(sympy.cosh),
    "tanh": KnownFunction(sympy.tanh),
    "abs": KnownFunction(sympy.Abs),
    "sign": KnownFunction(sympy.sign),
    "sigmoid": KnownFunction(sigmoid),
    "heaviside": KnownFunction(sympy.Heaviside),
    "min": KnownFunction(sympy.Min, None),
    "max": KnownFunction(sympy.Max, None),
}
ALIASES = {"Abs": "abs", "Min": "min", "Max": "max", "Heaviside": "heaviside", "arcsin": "asin"}
ALIASES |= {"arccos": "acos", "arctan": "atan"}
# SymPy class name -> our name; what `check_supported` admits and every printer can print.
PRINTED_FUNCTIONS: dict[str, str] = {
    name: name
    for name in ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "sign", "sigmoid")
} | {"Abs": "abs", "Heaviside": "heaviside", "Min": "min", "Max": "max"}


def as_expression(value: Any) -> sympy.Expr:
    """A SymPy expression as it is, a number as SymPy's; nothing else, and least of all text, which would be evaluated.

    Raises:
        ModelError: The value is neither.
    """
    if isinstance(value, sympy.Expr):
        return value
    if isinstance(value, numbers.Integral):
        return sympy.Integer(int(value))
    if isinstance(value, numbers.Real):
        return sympy.Float(float(value))
    raise ModelError(
        "a formula must be a SymPy expression or a number",
        expected="sympy.Expr, int or float",
        got=repr(value)[:60],
        fix="Read text with ude.models.parse_expression." if isinstance(value, str) else "",
    )


def check_supported(expression: sympy.Expr) -> None:
    """Raise ModelError unless every part of a SymPy expression has a meaning here: an explicit list of heads."""
    for node in sympy.preorder_traversal(expression):
        head = type(node).__name__
        if isinstance(node, sympy.Symbol | AppliedUndef | sympy.Add | sympy.Mul | sympy.Pow):
            continue
        if node in (sympy.pi, sympy.E) or head in PRINTED_FUNCTIONS:
            continue
        if isinstance(node, sympy.Number) and node.is_finite:
            continue
        raise ModelError(
            f"{node} ({head}) has no meaning in a model",
            expected="sums, products, powers, numbers, symbols and " + ", ".join(sorted(KNOWN_FUNCTIONS)),
        )


def to_real_symbols(expression: Any) -> sympy.Expr:
    """Replace every symbol by the one of the same name without assumptions (`Symbol("x", positive=True)` -> x)."""
    expression = as_expression(expression)
    return expression.xreplace({old: symbol(old.name) for old in expression.free_symbols})
