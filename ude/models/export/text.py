"""Equations in the language that `ude` reads, alone or as the Python source of a model."""

from __future__ import annotations

from ude.models.equations.printer import FormulaPrinter, to_text
from ude.models.export.equation_set import EquationSet


def write_text(source: EquationSet, digits: int | None, values: bool = True) -> str:
    """Lines ``dx/dt = ...``; no term is ever dropped."""
    equations = source.with_numbers() if values else source.equations
    return "\n".join(f"d{state}/dt = {to_text(rhs, digits)}" for state, rhs in equations.items())


def write_ude(source: EquationSet, digits: int | None) -> str:
    """Python source of ``model = ude.UDE(...)`` with the equations, observables and parameters as they are."""
    lines = [f"    {line}" for line in write_text(source, digits, values=False).splitlines()]
    printer = FormulaPrinter(digits)
    numbers = ", ".join(f'"{name}": {printer.number(value)}' for name, value in source.values.items())
    observe = f", observe={dict(source.observables)!r}" if source.observables else ""
    return "\n".join(["import ude", "", 'model = ude.UDE("""', *lines, f'""", parameters={{{numbers}}}{observe})', ""])
