"""Compile SymPy expressions to one torch function.

`sympy.lambdify` would do, but writes `x**2` as a general power, calls `torch.sin(2)` on plain numbers and knows no
`Min` of a tensor and a number. The source compiled here is printed from the SymPy tree over generated names; no text
of the user reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.printing.precedence import PRECEDENCE
from torch import Tensor

from ude.errors import ModelError
from ude.models.equations.functions import as_expression, check_supported, guard_branches
from ude.models.equations.names import symbol
from ude.models.equations.printer import ArrayPrinter

_MOST_FACTORS = 4
"""Up to this integer power of a variable is written as a product: exact, and cheap to differentiate and to lower."""


class _TorchPrinter(ArrayPrinter):
    library = "torch"

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "heaviside":
            return f"(0.5*(torch.sign({arguments[0]}) + 1.0))"
        return super().function(name, arguments)

    def _print(self, expr: sympy.Basic, **kwargs: object) -> str:
        # sin(2), 2**(1/3), pi: torch functions take tensors only, so numbers are computed here, in double precision.
        if isinstance(expr, sympy.Expr) and expr.is_number and not isinstance(expr, sympy.Rational | sympy.Float):
            value = repr(float(expr.evalf(20)))
            return f"({value})" if value.startswith("-") else value
        return str(super()._print(expr, **kwargs))

    def _print_Rational(self, expr: sympy.Rational) -> str:
        return f"({int(expr.p)}/{int(expr.q)})" if expr.q != 1 else self._print_Integer(expr)

    def _print_Pow(self, expr: sympy.Pow, rational: bool = False) -> str:
        base, exponent = expr.base, expr.exp
        power = float(exponent) if exponent.is_number else math.nan
        if power in (0.5, -0.5):
            root = f"torch.sqrt({self._print(base)})"
            return root if power > 0 else f"(1.0/{root})"
        left = self._print(base) if base.is_Symbol else f"({self._print(base)})"
        if power.is_integer():
            size = int(abs(power))
            product = "*".join([left] * size) if base.is_Symbol and size <= _MOST_FACTORS else f"{left}**{size}"
            return f"({product})" if power > 0 else f"(1.0/({product}))"
        return f"({left}**{self.parenthesize(exponent, PRECEDENCE['Atom'])})"

    def last_value(self, value: sympy.Expr) -> str:
        # Of two plain numbers torch would make a tensor of its default type, which is single precision.
        return f"torch.full_like(s0, {self._print(value)})" if value.is_number else self._print(value)

    def _minmax(self, name: str, expr: sympy.Expr) -> str:
        numbers = [argument for argument in expr.args if argument.is_number]
        others = sorted((argument for argument in expr.args if not argument.is_number), key=sympy.default_sort_key)
        text = self.function(name, [self._print(other) for other in others])
        for number in numbers:
            # max(x, 0) clamps from below; clamp takes plain numbers, torch.maximum does not.
            text = f"torch.clamp({text}, {'min' if name == 'max' else 'max'}={self._print(number)})"
        return text


def to_torch(expressions: Sequence[sympy.Expr], symbols: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
    """One function of tensors, in the order of `symbols`, that returns the value of every expression.

    Arguments broadcast against each other; an expression that is a plain number has the shape of the first argument.
    Common subexpressions are computed once. Differentiable, and traceable by `torch.func` and `make_fx`: no branch
    looks at a value. ``f.__source__`` holds the generated code.

    Raises ModelError when an expression uses a symbol that is not listed or that has no meaning in a model.
    """
    expressions = [as_expression(expression) for expression in expressions]
    for expression in expressions:
        check_supported(expression)
        unknown = sorted(str(call.func) for call in expression.atoms(AppliedUndef))
        if unknown:  # its name would stand in the generated source
            raise ModelError(f"the formula {expression} calls {unknown[0]}", expected="known functions only")
        missing = sorted(str(free) for free in expression.free_symbols if str(free) not in symbols)
        if missing:
            raise ModelError(f"the formula {expression} uses {missing[0]}", expected=f"only {', '.join(symbols)}")
    names = {symbol(name): sympy.Symbol(f"s{index}") for index, name in enumerate(symbols)}
    renamed = [guard_branches(expression).xreplace(names) for expression in expressions]
    steps, results = _shared_parts(renamed)
    printer = _TorchPrinter()
    lines = [f"def compiled({', '.join(str(name) for name in names.values())}):"]
    lines += [f"    {name} = {printer.doprint(step)}" for name, step in steps]
    texts = [
        printer.doprint(result) if result.free_symbols else f"torch.full_like(s0, {float(result.evalf(20))!r})"
        for result in results
    ]
    lines.append(f"    return ({''.join(f'{text}, ' for text in texts)})")
    source = "\n".join(lines)
    namespace: dict[str, object] = {"torch": torch}
    exec(compile(source, "<formula>", "exec"), namespace)  # generated above, over generated names
    function = namespace["compiled"]
    function.__source__ = source  # type: ignore[attr-defined]
    return function  # type: ignore[return-value]


def _shared_parts(
    expressions: Sequence[sympy.Expr],
) -> tuple[list[tuple[sympy.Symbol, sympy.Expr]], list[sympy.Expr]]:
    """Common subexpressions by name, and the expressions in these names; plain numbers stay where they are.

    The printer has to see that an argument is a number, because most torch functions take tensors only.
    """
    steps, results = sympy.cse(expressions, symbols=sympy.numbered_symbols("c"), order="canonical")
    numbers: dict[sympy.Symbol, sympy.Expr] = {}
    kept = []
    for name, step in steps:
        known = step.xreplace(numbers)
        if known.is_number:
            numbers[name] = known
        else:
            kept.append((name, known))
    return kept, [result.xreplace(numbers) for result in results]


def expand_together(values: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """`values` broadcast to one shape, at least that of `like`; nothing is added to a trace when they agree already."""
    if all(value.shape == like.shape for value in values):
        return tuple(values)
    return tuple(torch.broadcast_tensors(*values, like)[:-1])
