"""Equations as Python source for SciPy."""

from __future__ import annotations

import keyword

import sympy

from ude.models.equations.functions import guard_branches
from ude.models.equations.printer import ArrayPrinter
from ude.models.export.equation_set import EquationSet

_RESERVED = frozenset({"np", "rhs", "u", "t", "du", *keyword.kwlist})


class _PythonPrinter(ArrayPrinter):
    library = "np"
    names = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "sigmoid":
            return f"(1.0/(1.0 + np.exp(-({arguments[0]}))))"
        if name == "heaviside":
            return f"np.heaviside({arguments[0]}, 0.5)"
        return super().function(self.names.get(name, name), arguments)

    def _print_Pi(self, expr: sympy.Expr) -> str:
        return "np.pi"


def write_python(source: EquationSet, digits: int | None) -> str:
    """A module with ``rhs(t, u, alpha=1.3, ...)``, the form that `scipy.integrate.solve_ivp` takes; needs NumPy only.

    ``u`` is (state,) or (state, *batch). Unknown functions are arguments after ``u``. Names that Python keeps for
    itself get a trailing underscore.
    """
    printer = _PythonPrinter(digits)
    names, rates = source.renamed(_RESERVED)
    states, values, functions = source.equations, source.values, source.functions
    numbers = [f"{names[name]}={printer.number(value)}" for name, value in values.items()]
    signature = ", ".join(["t", "u", *(names[name] for name in functions), *numbers])
    unpack = ", ".join(names[state] for state in states) + ("," if len(states) == 1 else "")
    lines = ["import numpy as np", "", "", f"def rhs({signature}):"]
    lines.append(f'    """Right-hand side of d({", ".join(states)})/dt; u and the result: (state,) or (state, *batch).')
    given = [f"    {names[name]} is an unknown function and must be given." for name in functions]
    lines += ["", *given] if given else []
    lines += ['    """', f"    {unpack} = np.asarray(u, dtype=float)", "    du = np.empty(np.shape(u))"]
    # Python's own numbers would raise at 1/0 and be complex at (-1)**0.5, even in a branch that is not taken.
    given = [name for name in ("t", *values) if name in source.used]
    lines += [f"    {names.get(name, name)} = np.asarray({names.get(name, name)}, dtype=float)" for name in given]
    lines += [f"    du[{index}] = {printer.doprint(guard_branches(rate))}" for index, rate in enumerate(rates)]
    return "\n".join([*lines, "    return du", ""])
