"""Equations in other languages: LaTeX, Python, Julia, and `ude` itself.

Every exporter takes ``equations`` (state -> SymPy right-hand side) and, where the language has parameters,
``values`` (name -> number). Unknown functions that are still networks become functions that the reader must supply.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping

import sympy
from sympy.core.function import AppliedUndef
from sympy.printing.latex import LatexPrinter

from ude.models.equations.functions import check_supported
from ude.models.equations.names import symbol
from ude.models.equations.printer import FormulaPrinter, positive_first, to_text

_JULIA_TEXT = """
    baremodule begin break catch const continue do else elseif end export false finally for function global if import
    let local macro module quote return struct true try using while abstract mutable primitive type where in isa im pi
"""
_JULIA_WORDS = frozenset(_JULIA_TEXT.split())


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

    def _print_sigmoid(self, expr: sympy.Expr, exp: str | None = None) -> str:
        power = f"^{{{exp}}}" if exp else ""
        return rf"\sigma{power}\left({self._print(expr.args[0])}\right)"

    def _print_Symbol(self, expr: sympy.Symbol, style: str = "plain") -> str:
        # hare and lynx are words, not products of letters; U1_c0 must not end in an index of an index.
        text = str(super()._print_Symbol(expr, style))
        letters = expr.name.replace("_", "")
        plain = text.startswith("\\") or len(letters.rstrip("0123456789")) <= 1
        return text if plain else rf"\mathrm{{{expr.name.replace('_', chr(92) + '_')}}}"


class _PythonPrinter(FormulaPrinter):
    names = {"abs": "np.abs", "sign": "np.sign", "asin": "np.arcsin", "acos": "np.arccos", "atan": "np.arctan"}

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "sigmoid":
            return f"(1.0/(1.0 + np.exp(-({arguments[0]}))))"
        if name == "heaviside":
            return f"np.heaviside({arguments[0]}, 0.5)"
        if name in ("min", "max"):
            text = arguments[0]
            for argument in arguments[1:]:
                text = f"np.{name}imum({text}, {argument})"
            return text
        return f"{self.names.get(name, f'np.{name}')}({', '.join(arguments)})"

    def _print_Pi(self, expr: sympy.Expr) -> str:
        return "np.pi"


class _JuliaPrinter(FormulaPrinter):
    power = "^"

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "sigmoid":
            return f"(1/(1 + exp(-({arguments[0]}))))"
        if name == "heaviside":
            return f"((1 + sign({arguments[0]}))/2)"
        return f"{name}({', '.join(arguments)})"


def to_latex(equations: Mapping[str, sympy.Expr], digits: int | None = None) -> str:
    r"""An ``aligned`` block with one line ``\frac{d x}{d t} &= ...`` an equation."""
    printer = _LatexPrinter(digits)
    lines = []
    for state, rhs in equations.items():
        check_supported(rhs)
        lines.append(rf"  \frac{{d {printer.doprint(symbol(state))}}}{{d t}} &= {printer.doprint(rhs)}")
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def to_python(equations: Mapping[str, sympy.Expr], values: Mapping[str, float], digits: int | None = None) -> str:
    """A module with ``rhs(t, u, alpha=1.3, ...)``, the form that `scipy.integrate.solve_ivp` takes; needs NumPy only.

    ``u`` is (state,) or (state, *batch). Unknown functions are arguments after ``u``. Names that Python keeps for
    itself get a trailing underscore.
    """
    printer = _PythonPrinter(digits)
    functions = functions_in(equations)
    names = free_names((*equations, *values, *functions), {"np", "rhs", "u", "t", "du", *keyword.kwlist})
    numbers = [f"{names[name]}={printer.number(value)}" for name, value in values.items()]
    signature = ", ".join(["t", "u", *(names[name] for name in functions), *numbers])
    unpack = ", ".join(names[state] for state in equations) + ("," if len(equations) == 1 else "")
    lines = ["import numpy as np", "", "", f"def rhs({signature}):"]
    lines.append(
        f'    """Right-hand side of d({", ".join(equations)})/dt; u and the result: (state,) or (state, *batch).'
    )
    given = [f"    {names[name]} is an unknown function and must be given." for name in functions]
    lines += ["", *given] if given else []
    lines += ['    """', f"    {unpack} = u", "    du = np.empty(np.shape(u))"]
    for index, rhs in enumerate(equations.values()):
        lines.append(f"    du[{index}] = {printer.doprint(renamed(rhs, names))}")
    return "\n".join([*lines, "    return du", ""])


def to_julia(equations: Mapping[str, sympy.Expr], values: Mapping[str, float], digits: int | None = None) -> str:
    """A complete ``function f!(du, u, p, t)`` for OrdinaryDiffEq.jl, with the parameters as the tuple ``p``.

    Unknown functions must be defined by the reader, which a comment says. Names that Julia keeps for itself get a
    trailing underscore.
    """
    printer = _JuliaPrinter(digits)
    functions = functions_in(equations)
    names = free_names((*equations, *values, *functions), {"du", "u", "p", "t", "f!", *_JULIA_WORDS})
    lines = [f"# {names[name]} is an unknown function: define {names[name]}(...) before use" for name in functions]
    if values:
        numbers = ", ".join(f"{names[name]} = {_julia_number(printer, value)}" for name, value in values.items())
        lines += [f"p = ({numbers}{',' if len(values) == 1 else ''})", ""]
    lines.append("function f!(du, u, p, t)")
    lines += [f"    {names[state]} = u[{index}]" for index, state in enumerate(equations, start=1)]
    lines += [f"    {names[name]} = p[{index}]" for index, name in enumerate(values, start=1)]
    for index, rhs in enumerate(equations.values(), start=1):
        lines.append(f"    du[{index}] = {printer.doprint(renamed(rhs, names))}")
    return "\n".join([*lines, "    return nothing", "end", ""])


def to_ude(
    equations: Mapping[str, sympy.Expr],
    values: Mapping[str, float],
    digits: int | None = None,
    observables: Mapping[str, str] | None = None,
) -> str:
    """Python source of ``model = ude.UDE(...)`` with the equations, observables and parameters as they are."""
    lines = [f"    d{state}/dt = {to_text(rhs, digits)}" for state, rhs in equations.items()]
    printer = FormulaPrinter(digits)
    numbers = ", ".join(f'"{name}": {printer.number(value)}' for name, value in values.items())
    observe = f", observe={dict(observables)!r}" if observables else ""
    return "\n".join(["import ude", "", 'model = ude.UDE("""', *lines, f'""", parameters={{{numbers}}}{observe})', ""])


def functions_in(equations: Mapping[str, sympy.Expr]) -> list[str]:
    applied = {node.func.__name__ for rhs in equations.values() for node in rhs.atoms(AppliedUndef)}
    return sorted(applied)


def free_names(names: Iterable[str], reserved: Iterable[str]) -> dict[str, str]:
    """Names for a language that keeps `reserved` for itself: those get underscores until they are free."""
    names, reserved = list(names), set(reserved)
    taken = reserved | set(names)
    result = {}
    for name in names:
        new = name
        while new in reserved or (new != name and new in taken):
            new += "_"
        result[name] = new
        taken.add(new)
    return result


def renamed(rhs: sympy.Expr, names: Mapping[str, str]) -> sympy.Expr:
    check_supported(rhs)
    functions = {node: sympy.Function(names[node.func.__name__])(*node.args) for node in rhs.atoms(AppliedUndef)}
    rhs = rhs.xreplace(functions)
    return rhs.xreplace({symbol(old): symbol(new) for old, new in names.items() if old != new})


def _julia_number(printer: FormulaPrinter, value: float) -> str:
    # 2 would be an Int in Julia, and a tuple of mixed types slows the solver.
    text = printer.number(value)
    return text if any(mark in text for mark in ".e") else f"{text}.0"
