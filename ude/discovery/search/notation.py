"""Formulas as search engines write them (``x0 * inv(x1 ^ 2)``), read into SymPy without evaluating foreign text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy as sp

from ude.errors import InputError, ModelError
from ude.models.equations.parser import parse

BINARY = ("+", "-", "*", "/", "^")
_OWN: dict[str, Callable[[sp.Expr], sp.Expr]] = {
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "inv": lambda x: 1 / x,
    "neg": lambda x: -x,
}
FUNCTIONS = ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "abs", *_OWN)
"""The functions of one argument that a search may be given."""


def parse_equation(text: str, inputs: Sequence[str], engine: str = "PySR") -> sp.Expr:
    """An equation in x0, x1, ... as an expression in the inputs' own names.

    Raises:
        InputError: The text is no such equation, or a part of it is not a finite real number.
    """
    places = [f"x{index}" for index in range(len(inputs))]
    try:
        parsed = parse(text, symbols=places)
        parsed.refuse_other_names(places, "in an equation")
        for call in parsed.calls:
            if call.name not in _OWN or len(call.arguments) != 1:
                parsed.refuse_calls("in an equation")
    except ModelError as error:
        raise InputError(f"equation {text[:200]!r}", expected=f"{engine}'s notation", got=error.what) from error
    expression = parsed.expression
    for name, meaning in _OWN.items():
        expression = expression.replace(sp.Function(name), meaning)
    return expression.xreplace({sp.Symbol(place): sp.Symbol(name) for place, name in zip(places, inputs, strict=True)})
