"""One entry for every language that equations can be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ude.errors import InputError
from ude.models.equations.names import did_you_mean
from ude.models.equations.system import EquationsLike, read_system
from ude.models.export.equation_set import EquationSet
from ude.models.export.julia import write_julia
from ude.models.export.latex import write_latex
from ude.models.export.mathml import write_mathml
from ude.models.export.python import write_python
from ude.models.export.sbml import write_sbml
from ude.models.export.text import write_text, write_ude
from ude.models.export.torch_module import write_torch_module


@runtime_checkable
class HasEquations(Protocol):
    """What can be exported: models, fits and discoveries."""

    def equation_set(self) -> EquationSet: ...


@dataclass(frozen=True)
class _Language:
    write: Callable[..., str]
    option: str | None = None  # the one option that this language has beside `digits`
    needs_values: bool = True


LANGUAGES: dict[str, _Language] = {
    "text": _Language(write_text, "values", needs_values=False),
    "latex": _Language(write_latex, "values", needs_values=False),
    "mathml": _Language(write_mathml, "values", needs_values=False),
    "python": _Language(write_python),
    "torch": _Language(write_torch_module),
    "julia": _Language(write_julia),
    "sbml": _Language(write_sbml, "u0"),
    "ude": _Language(write_ude),
}


def export(
    source: HasEquations | EquationSet | EquationsLike,
    to: str = "text",
    *,
    digits: int | None = None,
    values: bool | None = None,
    u0: Mapping[str, float] | None = None,
) -> str:
    """Write equations in another language.

    ========  =====================================================================================
    `to`      result
    ========  =====================================================================================
    "text"    lines ``dx/dt = ...``, which `ude.UDE` reads again
    "latex"   an ``aligned`` block
    "mathml"  a ``<math>`` block, which browsers typeset
    "python"  a function ``rhs(t, u, ...)`` for `scipy.integrate.solve_ivp`; needs NumPy only
    "torch"   a module ``RightHandSide`` with ``forward(t, u)``; needs torch only
    "julia"   ``f!(du, u, p, t)`` and ``p`` for OrdinaryDiffEq.jl
    "sbml"    SBML Level 3 Version 2 (needs python-libsbml)
    "ude"     Python source that builds the model with `ude.UDE`
    ========  =====================================================================================

    Networks become functions that the reader has to supply; SBML has no place for them. Rounding never drops a term.

    Args:
        source: A model, a fit, a discovery, or equations: text, or a dict state -> right-hand side.
        to: The language.
        digits: Significant digits of numbers; None: all.
        values: Write numbers in place of the parameters (the default), or their names; for text, LaTeX and MathML.
            Elsewhere parameters keep their names and are given their values apart.
        u0: Initial value of some states, for SBML. Default: those of the first trajectory of a fit or a discovery;
            zero where nothing is known.

    Raises:
        InputError: An unknown language, an option that the language does not have, or a source without equations.
        ModelError: A function that is no formula, a parameter without a value, an unknown function in SBML.
        BackendMissing: SBML without python-libsbml.

    Example:
        >>> model = ude.UDE("dx/dt = -k*x", parameters={"k": 0.8})
        >>> ude.export(model), ude.export(model, to="latex", values=False)
        ('dx/dt = -0.8*x', '\\\\begin{aligned}\\n  \\\\frac{d x}{d t} &= - k \\\\, x\\n\\\\end{aligned}')
    """
    language = LANGUAGES.get(to) if isinstance(to, str) else None
    if language is None:
        raise InputError(
            f"there is no export to {to!r}",
            expected=f"one of {', '.join(LANGUAGES)}",
            fix=did_you_mean(to, LANGUAGES) if isinstance(to, str) else "",
        )
    if digits is not None and (not isinstance(digits, int) or isinstance(digits, bool) or digits < 1):
        raise InputError("digits must be a positive integer or None", got=repr(digits))
    options: dict[str, Any] = {name: given for name, given in (("values", values), ("u0", u0)) if given is not None}
    for name in options:
        if name != language.option:
            having = ", ".join(other for other, entry in LANGUAGES.items() if entry.option == name)
            raise InputError(f"the export to {to} has no option {name}", expected=f"{name} with {having} only")
    equations = _equation_set(source)
    if language.needs_values:
        equations.check_values()
    return language.write(equations, digits, **options)


def _equation_set(source: Any) -> EquationSet:
    if isinstance(source, EquationSet):
        return source
    if isinstance(source, HasEquations):
        return source.equation_set()
    try:
        return EquationSet(read_system(source, None, ()).equations)
    except InputError as error:
        if type(error) is not InputError:  # a ModelError, which marks the place
            raise
        raise InputError(
            "there are no equations to export",
            expected="a model, a fit, a discovery, or equations as text or as a dict state -> right-hand side",
            got=repr(source)[:60],
        ) from None
