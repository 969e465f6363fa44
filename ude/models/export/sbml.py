"""Equations as SBML Level 3 Version 2 (Hucka et al. 2019, doi:10.1515/jib-2019-0021), through python-libsbml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from ude.errors import BackendMissing, InputError, ModelError
from ude.models.equations.functions import where
from ude.models.equations.printer import FormulaPrinter
from ude.models.export.equation_set import EquationSet

# Words that the formula language of Level 3 keeps for itself (libSBML, L3 parser); it does not mind upper case.
_WORDS = """
    abs acos arccos acosh arccosh acot acoth acsc acsch asec asech asin arcsin asinh atan arctan atanh avogadro ceil
    ceiling cos cosh cot coth csc csch delay exp exponentiale false factorial floor inf infinity lambda ln log log10
    max min modulo nan notanumber and or not xor pi piecewise plus times minus divide pow power quotient rateof rem
    root sec sech sin sinh sqr sqrt tan tanh true time geq gt leq lt neq eq implies
"""
_RESERVED = frozenset(_WORDS.split())


class _SbmlPrinter(FormulaPrinter):
    """The infix language of libSBML's Level 3 parser."""

    power = "^"
    largest_integer = 2**31

    def function(self, name: str, arguments: list[str]) -> str:
        [first, *_] = arguments
        if name == "log":
            return f"ln({first})"
        if name == "sigmoid":
            return f"(1/(1 + exp(-({first}))))"
        if name == "heaviside":
            return f"piecewise(1, {first} > 0, 0.5, {first} == 0, 0)"
        if name == "sign":
            return f"piecewise(1, {first} > 0, -1, {first} < 0, 0)"
        return f"{name}({', '.join(arguments)})"

    def logic(self, operator: str, arguments: list[str]) -> str:
        return f"{operator}({', '.join(arguments)})"

    def _print_where(self, expr: where) -> str:
        *pairs, (last, _) = expr.pairs
        parts = [f"{self._print(value)}, {self._print(condition)}" for value, condition in pairs]
        return f"piecewise({', '.join([*parts, self._print(last)])})"

    def _print_Rational(self, expr: sympy.Rational) -> str:
        # libSBML reads (1/3) as one number and then misses the parentheses of cos(1/3).
        return f"{expr.p}.0/{expr.q}"

    def _print_Symbol(self, expr: sympy.Symbol) -> str:
        return "time" if expr.name == "t" else str(expr.name)


def write_sbml(source: EquationSet, digits: int | None, u0: Mapping[str, float] | None = None) -> str:
    """An SBML document: every state a parameter with a rate rule, every parameter constant, t SBML's own time.

    States are parameters rather than species because an amount would need a compartment that the equations do not
    know of; the rates are the same. States without an initial value start at zero.

    Raises ModelError where a function is still unknown, InputError for an initial state that is none, BackendMissing
    without python-libsbml.
    """
    libsbml = _libsbml()
    if source.functions:
        raise ModelError(
            "SBML has no place for unknown functions",
            got=", ".join(source.functions),
            fix="Export the equations that discover found, or replace the functions by formulas.",
        )
    start = dict(source.u0 if u0 is None else u0)
    for state in start:
        if state not in source.equations:
            raise InputError(f"u0 names {state!r}", expected=f"some of {', '.join(source.equations)}")
    printer = _SbmlPrinter(digits)
    # the parser does not tell upper from lower case in its own words
    given = (*source.equations, *source.values)
    names, rates = source.renamed({*_RESERVED, *(word for word in given if word.lower() in _RESERVED)})
    document = libsbml.SBMLDocument(3, 2)
    model = document.createModel()
    _done(model.setId("model"), "the name of the model")
    for state in source.equations:
        _parameter(model, names[state], float(printer.number(start.get(state, 0.0))), constant=False)
    for parameter, value in source.values.items():
        _parameter(model, names[parameter], float(printer.number(value)), constant=True)
    for state, rate in zip(source.equations, rates, strict=True):
        text = printer.doprint(rate)
        math = libsbml.parseL3Formula(text)
        if math is None:
            raise ModelError(f"the rate of {state} cannot be written as SBML", got=libsbml.getLastParseL3Error())
        rule = model.createRateRule()
        _done(rule.setVariable(names[state]), state)
        _done(rule.setMath(math), text)
    return str(libsbml.writeSBMLToString(document))


def _parameter(model: Any, identifier: str, value: float, *, constant: bool) -> None:
    made = model.createParameter()
    _done(made.setId(identifier), f"the name {identifier!r}")
    made.setValue(value)
    made.setConstant(constant)


def _done(status: int, what: str) -> None:
    if status != 0:  # libSBML's LIBSBML_OPERATION_SUCCESS
        raise ModelError(f"SBML refuses {what}", expected="letters, digits and _", fix="Rename it in the equations.")


def _libsbml() -> Any:
    try:
        import libsbml
    except ImportError as error:
        raise BackendMissing(
            "SBML needs python-libsbml", got="no module libsbml", fix="Install it: python -m pip install 'ude[sbml]'."
        ) from error
    return libsbml
