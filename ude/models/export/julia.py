"""Equations as Julia source for OrdinaryDiffEq.jl."""

from __future__ import annotations

from ude.models.equations.printer import FormulaPrinter
from ude.models.export.equation_set import EquationSet

_WORDS = """
    baremodule begin break catch const continue do else elseif end export false finally for function global if import
    let local macro module quote return struct true try using while abstract mutable primitive type where in isa im pi
    du u p t f!
"""
_RESERVED = frozenset(_WORDS.split())


class _JuliaPrinter(FormulaPrinter):
    power = "^"
    largest_integer = 2**53

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "sigmoid":
            return f"(1/(1 + exp(-({arguments[0]}))))"
        if name == "heaviside":
            return f"((1 + sign({arguments[0]}))/2)"
        return f"{name}({', '.join(arguments)})"

    def choice(self, condition: str, value: str, other: str) -> str:
        # Not ifelse, which computes both: sqrt of a negative number is an error in Julia.
        return f"({condition} ? {value} : {other})"

    def logic(self, operator: str, arguments: list[str]) -> str:
        if operator == "not":
            return f"!({arguments[0]})"
        return {"and": " && ", "or": " || "}[operator].join(f"({argument})" for argument in arguments)


def write_julia(source: EquationSet, digits: int | None) -> str:
    """A complete ``function f!(du, u, p, t)`` for OrdinaryDiffEq.jl, with the parameters as the tuple ``p``.

    Unknown functions must be defined by the reader, which a comment says. Names that Julia keeps for itself get a
    trailing underscore.
    """
    printer = _JuliaPrinter(digits)
    names, rates = source.renamed(_RESERVED)
    values, functions = source.values, [names[name] for name in source.functions]
    lines = [f"# {name} is an unknown function: define {name}(...) before use" for name in functions]
    if values:
        # 2 would be an Int in Julia, and a tuple of mixed types slows the solver.
        numbers = ", ".join(f"{names[name]} = {printer.double(value)}" for name, value in values.items())
        lines += [f"p = ({numbers}{',' if len(values) == 1 else ''})", ""]
    lines.append("function f!(du, u, p, t)")
    lines += [f"    {names[state]} = u[{index}]" for index, state in enumerate(source.equations, start=1)]
    lines += [f"    {names[name]} = p[{index}]" for index, name in enumerate(values, start=1)]
    lines += [f"    du[{index}] = {printer.doprint(rate)}" for index, rate in enumerate(rates, start=1)]
    return "\n".join([*lines, "    return nothing", "end", ""])
