"""Equations as presentation MathML, which browsers typeset without any script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.printing.mathml import MathMLPresentationPrinter
from sympy.printing.precedence import PRECEDENCE

from ude.models.equations.functions import PRINTED_FUNCTIONS, check_supported, where
from ude.models.equations.names import symbol
from ude.models.equations.printer import positive_first
from ude.models.export.equation_set import EquationSet

_MINUS, _TIMES = "\u2212", "\u2009"  # a thin space between factors, as in print


class _Printer(MathMLPresentationPrinter):  # type: ignore[misc]
    def __init__(self, digits: int | None) -> None:
        super().__init__({"ln_notation": False})
        self.digits = digits

    def element(self, tag: str, *children: Any) -> Any:
        made = self.dom.createElement(tag)
        for child in children:
            made.appendChild(self.dom.createTextNode(child) if isinstance(child, str) else child)
        return made

    def mathml_tag(self, e: Any) -> str:
        # SymPy writes an invisible times: `a hare lynx` would run together into one word
        tag: str = super().mathml_tag(e)
        return {"&InvisibleTimes;": _TIMES, "<": "&lt;", ">": "&gt;"}.get(tag, tag)

    def parenthesize(self, item: sympy.Expr, level: int, strict: bool = False) -> Any:
        made = super().parenthesize(item, level, strict)
        written_as_product = item.is_Float and item > 0 and made.tagName == "mrow"  # 1e-7
        as_base = level >= PRECEDENCE["Pow"] and (written_as_product or isinstance(item, sympy.exp))
        if as_base or isinstance(item, where):
            return self.element("mrow", self._l_paren(), made, self._r_paren())
        return made

    def _print_Integer(self, e: sympy.Integer) -> Any:
        number = self.element("mn", str(abs(int(e))))
        return number if e >= 0 else self.element("mrow", self.element("mo", _MINUS), number)

    def _print_ITE(self, expr: sympy.ITE) -> Any:
        return self._print(expr.to_nnf())

    def _as_ordered_terms(self, expr: sympy.Add, order: str | None = None) -> list[sympy.Expr]:
        return positive_first(super()._as_ordered_terms(expr, order))

    def _print_Float(self, expr: sympy.Float) -> Any:
        value = float(expr)
        text = repr(abs(value)) if self.digits is None else f"{abs(value):.{self.digits}g}"
        mantissa, _, exponent = text.partition("e")
        number = self.element("mn", mantissa)
        parts = [self.element("mo", _MINUS)] if value < 0 else []
        parts.append(number)
        if exponent:
            raised = self.element("mrow", self.element("mn", str(int(exponent)).replace("-", _MINUS)))
            parts += [self.element("mo", "\u00b7"), self.element("msup", self.element("mn", "10"), raised)]
        return number if parts == [number] else self.element("mrow", *parts)

    def _print_Symbol(self, sym: sympy.Symbol, style: str = "plain") -> Any:
        head, _, index = sym.name.partition("_")
        letters = head.rstrip("0123456789")
        if not index and 0 < len(letters) < len(head) and letters.isalpha():
            head, index = letters, head[len(letters) :]
        name = super()._print_Symbol(sympy.Symbol(head), style) if head else self.element("mi", sym.name)
        return self.element("msub", name, self.element("mi", index)) if head and index else name

    def _print_Function(self, e: sympy.Function) -> Any:
        unknown = isinstance(e, AppliedUndef)
        known = PRINTED_FUNCTIONS.get(type(e).__name__, type(e).__name__)
        name = self._print_Symbol(sympy.Symbol(e.func.__name__)) if unknown else self.element("mi", known)
        arguments = e.args[:1] if known == "heaviside" else e.args
        return self.element("mrow", name, self._paren_comma_separated(*arguments))

    def _print_Piecewise(self, expr: sympy.Piecewise) -> Any:
        return self._print(where.of(expr))

    def _print_where(self, expr: where) -> Any:
        rows = []
        for value, condition in expr.pairs:
            told = [self.element("mtext", "otherwise")]
            if condition != sympy.true:
                told = [self.element("mtext", "if\u00a0"), self._print(condition)]
            rows.append(self.element("mtr", self.element("mtd", self._print(value)), self.element("mtd", *told)))
        return self.element("mrow", self.element("mo", "{"), self.element("mtable", *rows))

    _print_sigmoid = _print_Heaviside = _print_Min = _print_Max = _print_sign = _print_Function


def write_mathml(source: EquationSet, digits: int | None, values: bool = True) -> str:
    """One ``<math>`` block with a line ``dx/dt = ...`` for each equation, aligned at the equals signs."""
    printer = _Printer(digits)
    rows = []
    for state, rhs in (source.with_numbers() if values else source.equations).items():
        name = printer.doprint(symbol(state))
        rows.append(
            f"<mtr><mtd><mfrac><mrow><mi>d</mi>{name}</mrow><mrow><mi>d</mi><mi>t</mi></mrow></mfrac></mtd>"
            f"<mtd><mo>=</mo></mtd><mtd>{_body(printer, rhs)}</mtd></mtr>"
        )
    return f'<math display="block"><mtable displaystyle="true">{"".join(rows)}</mtable></math>'


def named_mathml(name: str, inputs: Sequence[str], expression: sympy.Expr, digits: int | None = 4) -> str:
    """``name(inputs) = formula`` as an inline ``<math>`` element; without inputs just the name."""
    printer = _Printer(digits)
    left = sympy.Function(name)(*(symbol(own) for own in inputs)) if inputs else symbol(name)
    return f"<math>{printer.doprint(left)}<mo>=</mo>{_body(printer, expression)}</math>"


def _body(printer: _Printer, expression: sympy.Expr) -> str:
    check_supported(expression)
    text: str = printer.doprint(expression)
    # as an operator a space would get the room of an operator on both sides
    text = text.replace("<mo>&#8201;</mo>", '<mspace width="0.17em"/>')
    return text.replace("<mo>-</mo>", f"<mo>{_MINUS}</mo>")
