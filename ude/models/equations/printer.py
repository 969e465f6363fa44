"""Formulas as text: what `parser` reads, and the base of every other language that formulas are printed in."""

from __future__ import annotations

import functools
import math

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from ude.models.equations.functions import PRINTED_FUNCTIONS, as_expression, check_supported, where


def positive_first(terms: list[sympy.Expr]) -> list[sympy.Expr]:
    """SymPy's order of terms with the negative ones last: ``a*x - b*x*y``, not ``-b*x*y + a*x``."""
    return sorted(terms, key=lambda term: bool(term.as_coeff_Mul()[0].is_negative))


class FormulaPrinter(StrPrinter):  # type: ignore[misc]
    """SymPy's text printer with doubles written in full (or to `digits`) and our function names.

    Subclasses are dialects: they set `power` and override `function` for their language.
    """

    power = "**"
    largest_integer: float = math.inf
    """Beyond it an integer is written as a float, in languages whose integers overflow."""

    def __init__(self, digits: int | None = None) -> None:
        super().__init__()
        self.digits = digits

    def function(self, name: str, arguments: list[str]) -> str:
        """How this dialect writes the known function `name`."""
        return f"{name}({', '.join(arguments)})"

    def unknown(self, name: str, arguments: list[str]) -> str:
        """How this dialect writes an unknown function."""
        return f"{name}({', '.join(arguments)})"

    def number(self, value: float) -> str:
        """A double; rounding never makes a number vanish because the digits are significant digits."""
        return repr(value) if self.digits is None else f"{value:.{self.digits}g}"

    def double(self, value: float) -> str:
        """As `number`, and no integer even where the language tells ``2`` from ``2.0``."""
        text = self.number(value)
        return text if any(mark in text for mark in ".en") else f"{text}.0"

    def _as_ordered_terms(self, expr: sympy.Add, order: str | None = None) -> list[sympy.Expr]:
        return positive_first(super()._as_ordered_terms(expr, order))

    def _print_Float(self, expr: sympy.Float) -> str:
        return self.number(float(expr))

    def _print_Integer(self, expr: sympy.Integer) -> str:
        return str(int(expr)) if abs(int(expr)) < self.largest_integer else repr(float(expr))

    def _print_Exp1(self, expr: sympy.Expr) -> str:
        return self.function("exp", ["1"])

    def _print_Pi(self, expr: sympy.Expr) -> str:
        return "pi"

    def _print_Function(self, expr: sympy.Function) -> str:
        arguments = [self._print(argument) for argument in expr.args]
        if isinstance(expr, AppliedUndef):
            return self.unknown(expr.func.__name__, arguments)
        name = PRINTED_FUNCTIONS[type(expr).__name__]
        # SymPy's Heaviside carries its value at zero as a second argument.
        return self.function(name, arguments[:1] if name == "heaviside" else arguments)

    def _print_Min(self, expr: sympy.Expr) -> str:
        return self._minmax("min", expr)

    def _print_Max(self, expr: sympy.Expr) -> str:
        return self._minmax("max", expr)

    def _minmax(self, name: str, expr: sympy.Expr) -> str:
        # Min and Max keep their arguments in a set; sorted, so that the printed text is the same on every run.
        ordered = sorted(expr.args, key=sympy.default_sort_key)
        return self.function(name, [self._print(argument) for argument in ordered])

    def choice(self, condition: str, value: str, other: str) -> str:
        """How this dialect writes one value or the other."""
        return self.function("where", [condition, value, other])

    def logic(self, operator: str, arguments: list[str]) -> str:
        """How this dialect writes "and", "or" (two arguments or more) and "not"."""
        return f"not ({arguments[0]})" if operator == "not" else f" {operator} ".join(f"({a})" for a in arguments)

    def _print_where(self, expr: where) -> str:
        *pairs, (last, _) = expr.pairs
        text = self.last_value(last)
        for value, condition in reversed(pairs):
            text = self.choice(self._print(condition), self._print(value), text)
        return text

    def last_value(self, value: sympy.Expr) -> str:
        """How this dialect writes the value where no condition holds."""
        return str(self._print(value))

    def _print_Piecewise(self, expr: sympy.Piecewise) -> str:
        return str(self._print(where.of(expr)))

    def _print_Relational(self, expr: Relational) -> str:
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"

    def _print_And(self, expr: sympy.And) -> str:
        return self.logic("and", [self._print(part) for part in sorted(expr.args, key=sympy.default_sort_key)])

    def _print_Or(self, expr: sympy.Or) -> str:
        return self.logic("or", [self._print(part) for part in sorted(expr.args, key=sympy.default_sort_key)])

    def _print_Not(self, expr: sympy.Not) -> str:
        return self.logic("not", [self._print(expr.args[0])])

    def _print_ITE(self, expr: sympy.ITE) -> str:
        return str(self._print(expr.to_nnf()))

    def _print_Abs(self, expr: sympy.Expr) -> str:
        return self.function("abs", [self._print(expr.args[0])])

    def _print_Heaviside(self, expr: sympy.Expr) -> str:
        return self.function("heaviside", [self._print(expr.args[0])])

    def _print_Pow(self, expr: sympy.Pow, rational: bool = False) -> str:
        base, exponent = expr.base, expr.exp
        if exponent == sympy.S.Half:
            return self.function("sqrt", [self._print(base)])
        if exponent == -sympy.S.Half:
            return f"1/{self.function('sqrt', [self._print(base)])}"
        if exponent == -1:
            return f"1/{self.parenthesize(base, PRECEDENCE['Pow'])}"
        left = self.parenthesize(base, PRECEDENCE["Pow"])
        return f"{left}{self.power}{self.parenthesize(exponent, PRECEDENCE['Pow'])}"


class ArrayPrinter(FormulaPrinter):
    """The base of NumPy's and torch's dialects, in which conditions, minima and maxima are functions of arrays."""

    largest_integer = 2**53
    """Both refuse integers beyond 64 bits, and doubles hold them exactly up to here."""
    library: str

    def function(self, name: str, arguments: list[str]) -> str:
        if name in ("min", "max"):  # of two arrays only
            return functools.reduce(lambda one, two: f"{self.library}.{name}imum({one}, {two})", arguments)
        return f"{self.library}.{name}({', '.join(arguments)})"

    def choice(self, condition: str, value: str, other: str) -> str:
        return f"{self.library}.where({condition}, {value}, {other})"

    def logic(self, operator: str, arguments: list[str]) -> str:
        if operator == "not":
            return f"{self.library}.logical_not({arguments[0]})"
        return functools.reduce(lambda one, two: f"{self.library}.logical_{operator}({one}, {two})", arguments)


class _TextPrinter(FormulaPrinter):
    def _print_where(self, expr: where) -> str:
        if len(expr.args) == 3:
            return super()._print_where(expr)
        # Long tables would nest too deep.
        pairs = [f"({self._print(value)}, {self._print(condition)})" for value, condition in expr.pairs]
        return f"Piecewise({', '.join(pairs)})"


def to_text(expression: sympy.Expr, digits: int | None = None) -> str:
    """The formula in the language that `parse` reads; doubles in full, or rounded to `digits` significant digits.

    Rounding never drops a term. Without `digits`, `parse_expression(to_text(e)) == e`.
    Raises ModelError for SymPy objects that have no meaning in a model.
    """
    expression = as_expression(expression)
    check_supported(expression)
    return str(_TextPrinter(digits).doprint(expression))
