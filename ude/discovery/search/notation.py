"""Formulas as search engines write them (``x0 * inv(x1 ^ 2)``), read into SymPy without evaluating foreign text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp
from sympy.parsing.sympy_parser import parse_expr

from ude.errors import InputError

BINARY = ("+", "-", "*", "/", "^")
FUNCTIONS: dict[str, Any] = {
    "sin": sp.sin,
    "cos": sp.cos,
    "tan": sp.tan,
    "tanh": sp.tanh,
    "exp": sp.exp,
    "log": sp.log,
    "sqrt": sp.sqrt,
    "abs": sp.Abs,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "inv": lambda x: 1 / x,
    "neg": lambda x: -x,
}


def parse_equation(text: str, inputs: Sequence[str], engine: str = "PySR") -> sp.Expr:
    """An equation in x0, x1, ... as an expression in the inputs' own names.

    Raises InputError for text that is not such an equation.
    """
    stand_ins = {f"x{index}": sp.Symbol(f"_x{index}") for index in range(len(inputs))}
    names: Mapping[str, Any] = {**FUNCTIONS, **stand_ins}
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\d\.?\d*[eE][+-]?\d+", "0", text)))
    unknown = sorted(words - set(names))
    if unknown or not re.fullmatch(r"[\w\s.+\-*/^(),]*", text):
        wrong = ", ".join(unknown) or "other characters"
        raise InputError(f"equation {text!r}", expected=f"{engine}'s notation", got=wrong)
    # The text holds only numbers, operators and the names above, so evaluating it can reach nothing else.
    builtins = {"Integer": sp.Integer, "Float": sp.Float, "Symbol": sp.Symbol, "Rational": sp.Rational}
    try:
        expression = parse_expr(text.replace("^", "**"), local_dict=dict(names), global_dict=dict(builtins))
    except (SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"equation {text!r}", expected=f"{engine}'s notation", got=str(error)) from error
    return expression.xreplace({stand_ins[f"x{index}"]: sp.Symbol(name) for index, name in enumerate(inputs)})
