"""Equations as LaTeX."""

from __future__ import annotations

import sympy
from sympy.printing.latex import LatexPrinter

from ude.models.equations.functions import where
from ude.models.equations.names import symbol
from ude.models.equations.printer import positive_first
from ude.models.export.equation_set import EquationSet


class _LatexPrinter(LatexPrinter):  # type: ignore[misc]
    def __init__(self, digits: int | None) -> None:
        super().__init__({"ln_notation": False, "mul_symbol": r" \, "})
        self.digits = digits

    def _as_ordered_terms(self, expr: sympy.Add, order: str | None = None) -> list[sympy.Expr]:
        return positive_first(super()._as_ordered_terms(expr, order))

    def _print_Float(self, expr: sympy.Float) -> str:
        value = float(expr)
        text = repr(value) if self.digits is None else f"{value:.{self.digits}g}"
        mantissa, _, exponent = text.partition("e")
        return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa

    def _print_Pow(self, expr: sympy.Pow) -> str:
        if expr.base.is_Float and r"\cdot" in self._print(expr.base):
            return rf"\left({self._print(expr.base)}\right)^{{{self._print(expr.exp)}}}"
        return str(super()._print_Pow(expr))

    def _print_where(self, expr: where, exp: str | None = None) -> str:
        text = self._print(expr.rewrite(sympy.Piecewise))
        return rf"\left({text}\right)^{{{exp}}}" if exp else str(text)

    def _needs_mul_brackets(self, expr: sympy.Expr, first: bool = False, last: bool = False) -> bool:
        return isinstance(expr, where) or bool(super()._needs_mul_brackets(expr, first, last))

    def _print_ITE(self, expr: sympy.ITE) -> str:
        return str(self._print(expr.to_nnf()))

    def _print_sigmoid(self, expr: sympy.Expr, exp: str | None = None) -> str:
        power = f"^{{{exp}}}" if exp else ""
        return rf"\sigma{power}\left({self._print(expr.args[0])}\right)"

    def _print_Symbol(self, expr: sympy.Symbol, style: str = "plain") -> str:
        # hare and lynx are words, not products of letters; U1_c0 must not end in an index of an index.
        text = str(super()._print_Symbol(expr, style))
        letters = expr.name.replace("_", "")
        plain = text.startswith("\\") or len(letters.rstrip("0123456789")) <= 1
        return text if plain else rf"\mathrm{{{expr.name.replace('_', chr(92) + '_')}}}"


def write_latex(source: EquationSet, digits: int | None, values: bool = True) -> str:
    r"""An ``aligned`` block with one line ``\frac{d x}{d t} &= ...`` an equation."""
    printer = _LatexPrinter(digits)
    equations = source.with_numbers() if values else source.equations
    lines = [
        rf"  \frac{{d {printer.doprint(symbol(state))}}}{{d t}} &= {printer.doprint(rhs)}"
        for state, rhs in equations.items()
    ]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"
