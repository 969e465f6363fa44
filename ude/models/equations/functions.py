"""The functions that formulas may use, and which SymPy objects have a meaning in a model."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.functions.elementary.piecewise import ExprCondPair

from ude.errors import ModelError
from ude.models.equations.names import symbol


class sigmoid(sympy.Function):  # type: ignore[misc]
    """``1/(1 + exp(-x))``; a function of its own because the quotient's derivative is inf/inf for large ``-x``.

    Lower case, because SymPy prints a function under the name of its class.
    """

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return self * (1 - self)


class where(sympy.Function):  # type: ignore[misc]
    """``where(c1, a1, c2, a2, ..., other)``: the value behind the first condition that holds.

    Not SymPy's Piecewise, which rewrites its conditions: for some it never comes to an end (SymPy 1.14).
    """

    @classmethod
    def eval(cls, *args: sympy.Basic) -> sympy.Expr | None:
        kept: list[sympy.Basic] = []
        other = args[-1]
        for condition, value in zip(args[:-1:2], args[1:-1:2], strict=True):
            if condition == sympy.true:
                other = value
                break
            if condition != sympy.false:
                kept += [condition, value]
        if not kept:
            return other
        return None if len(kept) + 1 == len(args) else cls(*kept, other)

    @classmethod
    def of(cls, value: sympy.Piecewise) -> sympy.Expr:
        """SymPy's Piecewise, whose last condition is True, as a `where`."""
        *pairs, last = value.args
        return cls(*(part for pair in pairs for part in (pair.cond, pair.expr)), last.expr)

    @property
    def pairs(self) -> list[tuple[sympy.Expr, sympy.Basic]]:
        """(value, condition), the last with the condition True."""
        return [*zip(self.args[1:-1:2], self.args[:-1:2], strict=True), (self.args[-1], sympy.true)]

    def _eval_derivative(self, s: sympy.Symbol) -> sympy.Expr:
        return where(*(part.diff(s) if isinstance(part, sympy.Expr) else part for part in self.args))

    def _eval_is_commutative(self) -> bool:
        return True  # SymPy asks the arguments, of which conditions have no answer

    def _eval_rewrite_as_Piecewise(self, *args: sympy.Basic, **hints: object) -> sympy.Expr:
        return sympy.Piecewise(*self.pairs, evaluate=False)

    def _pythoncode(self, printer: Any) -> str:
        return str(printer.doprint(self.rewrite(sympy.Piecewise)))

    _numpycode = _pythoncode


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
    "where": KnownFunction(where, 3),
}
ALIASES = {"Abs": "abs", "Min": "min", "Max": "max", "Heaviside": "heaviside", "arcsin": "asin"}
ALIASES |= {"arccos": "acos", "arctan": "atan", "ifelse": "where"}
INCOMPLETE = "a Piecewise must have a value where none of its conditions holds"
COMPLETE = "End it with (value, True): Piecewise((1, x < 2), (0, True))."

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
        if isinstance(node, sympy.Heaviside) and node.args[1:] != (sympy.S.Half,):
            raise ModelError(
                f"{node} has a value of its own at zero",
                expected="Heaviside(x), which is 1/2 at zero",
                fix="Write Piecewise((0, x < 0), (1, True)).",
            )
        if node in (sympy.pi, sympy.E, sympy.true) or head in PRINTED_FUNCTIONS:
            continue
        if isinstance(node, sympy.Piecewise):
            if node.args[-1].cond != sympy.true:
                raise ModelError(INCOMPLETE, fix=COMPLETE)
            continue
        if isinstance(node, where | ExprCondPair | Relational | sympy.And | sympy.Or | sympy.Not | sympy.ITE):
            continue
        if isinstance(node, sympy.Number) and node.is_finite:
            continue
        raise ModelError(
            f"{node} ({head}) has no meaning in a model",
            expected="sums, products, powers, numbers, symbols and " + ", ".join(sorted(KNOWN_FUNCTIONS)),
        )


def guard_branches(expression: sympy.Expr) -> sympy.Expr:
    """The expression for languages that compute every value of a `where` and take one.

    A value that is not taken must not spoil the result: in torch the derivative of ``where(x > 0, sqrt(x), 0)`` at
    x < 0 would be 0 times that of sqrt(x), which is NaN. So what is undefined or overflows outside its own condition
    is given a harmless argument there.
    """
    if not expression.has(where, sympy.Piecewise):
        return expression
    if isinstance(expression, sympy.Piecewise):
        expression = where.of(expression)
    inner = [guard_branches(part) for part in expression.args]
    if not isinstance(expression, where):
        return expression.func(*inner)
    own, earlier = [], sympy.true
    for condition, value in zip(inner[:-1:2], inner[1:-1:2], strict=True):
        own += [condition, _harmless(value, sympy.And(earlier, condition))]
        earlier = sympy.And(earlier, sympy.Not(condition))
    return where(*own, _harmless(inner[-1], earlier))


def _harmless(value: sympy.Expr, condition: sympy.Basic) -> sympy.Expr:
    """`value` where `condition` holds, and finite with finite derivatives elsewhere."""
    if not value.args:
        return value
    parts = [_harmless(part, condition) if isinstance(part, sympy.Expr) else part for part in value.args]
    inside = parts[0]
    if isinstance(value, sympy.Pow) and not (value.exp.is_Integer and value.exp > 0) and value.base.free_symbols:
        return sympy.Pow(where(condition, inside, sympy.S.One), parts[1])
    if isinstance(value, sympy.log) and inside.free_symbols:
        return sympy.log(where(condition, inside, sympy.S.One))
    if isinstance(value, sympy.exp | sympy.sinh | sympy.cosh | sympy.asin | sympy.acos) and inside.free_symbols:
        return value.func(where(condition, inside, sympy.S.Zero))
    return value.func(*parts)


def to_real_symbols(expression: Any) -> sympy.Expr:
    """Replace every symbol by the one of the same name without assumptions (`Symbol("x", positive=True)` -> x)."""
    expression = as_expression(expression)
    return expression.xreplace({old: symbol(old.name) for old in expression.free_symbols})
