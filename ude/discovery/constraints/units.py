"""Dimensional consistency of formulas whose constants may carry units of their own.

A formula is consistent when units can be given to its constants so that what is added agrees, arguments of functions
and exponents have none, and the whole has those of the term. For every base dimension that is a linear system in the
constants' exponents; it has a solution or it has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sympy as sp
from sympy.physics import units as sympy_units
from sympy.physics.units.systems.si import SI, dimsys_SI

from ude.discovery.evaluation import Array
from ude.errors import InputError, ModelError
from ude.models.equations.parser import parse_expression

Dimension = dict[str, float]
"""Base dimension -> exponent."""


@dataclass(frozen=True)
class Units:
    """Dimensions of a term's arguments and of the term; scale factors (min, h) play no part."""

    inputs: dict[str, Dimension]
    output: Dimension
    text: tuple[dict[str, str], str]

    @staticmethod
    def read(text: str) -> Units:
        """From "x: mol/L, y: K -> mol/L/s". Raises InputError for what is not of this form."""
        return _read(text)

    def consistent(self, expression: sp.Expr, free: Sequence[str] = ()) -> bool:
        """Whether the formula can have the term's units; `free`: constants that may have any units."""
        bases = sorted({base for each in (*self.inputs.values(), self.output) for base in each})
        rows: list[Array] = []
        whole = self._walk(expression, bases, list(free), rows)
        rows.append(whole - _constant(self.output, bases, len(free)))
        for index in range(len(bases)):
            system = np.stack([row[index] for row in rows])
            known, unknown = -system[:, 0], system[:, 1:]
            solution = np.linalg.lstsq(unknown, known, rcond=None)[0] if len(free) else np.empty(0)
            if np.max(np.abs(unknown @ solution - known)) > 1e-9:
                return False
        return True

    def _walk(self, node: sp.Expr, bases: Sequence[str], free: Sequence[str], rows: list[Array]) -> Array:
        """Dimension of a node, (base, 1 + constants): a known part and multiples of the constants' exponents.

        Appends to `rows` what has to be zero.
        """
        none = np.zeros((len(bases), 1 + len(free)))
        if isinstance(node, sp.Symbol):
            if str(node) in free:
                none[:, 1 + list(free).index(str(node))] = 1.0
                return none
            return _constant(self.inputs.get(str(node), {}), bases, len(free))
        parts = [self._walk(part, bases, free, rows) for part in node.args]
        if isinstance(node, sp.Add):
            rows += [part - parts[0] for part in parts[1:]]
            return parts[0]
        if isinstance(node, sp.Mul):
            result: Array = np.sum(parts, axis=0)
            return result
        if isinstance(node, sp.Pow) and node.exp.is_number and node.base != sp.E:
            return float(node.exp) * parts[0]
        if isinstance(node, sp.Abs):
            return parts[0]
        rows += parts
        return none


def _constant(dimension: Dimension, bases: Sequence[str], free: int) -> Array:
    column = np.array([[dimension.get(base, 0.0)] for base in bases]).reshape(len(bases), 1)
    return np.concatenate([column, np.zeros((len(bases), free))], axis=1)


@lru_cache(maxsize=64)
def _read(text: str) -> Units:
    left, arrow, right = text.partition("->")
    pairs = [part.partition(":") for part in left.split(",")]
    if not arrow or not right.strip() or not all(colon and name.strip() for name, colon, _ in pairs):
        raise InputError("units", expected='"x: mol/L, y: K -> mol/L/s"', got=repr(text))
    texts = {name.strip(): unit.strip() for name, _, unit in pairs}
    dimensions = {name: dimension_of(unit) for name, unit in texts.items()}
    return Units(dimensions, dimension_of(right), (texts, right.strip()))


def dimension_of(text: str) -> Dimension:
    """Exponents of the base dimensions of "kg*m/s^2"; "1" or nothing has none. Raises InputError."""
    if not text.strip():
        return {}
    try:
        expression = parse_expression(text)
    except ModelError as error:
        raise InputError(f"unit {text.strip()!r}", expected='a product of units, "kg*m/s^2"', got=error.what) from error
    found: Dimension = {}
    for base, power in expression.as_powers_dict().items():
        if base.is_number:
            continue
        if not base.is_Symbol or not power.is_number:
            raise InputError(f"unit {text.strip()!r}", expected='a product of units, "kg*m/s^2"', got=str(base))
        for name, exponent in _of_unit(str(base)).items():
            found[name] = found.get(name, 0.0) + float(power) * exponent
    return {name: exponent for name, exponent in found.items() if exponent != 0.0}


def _of_unit(name: str) -> Dimension:
    """A unit in base dimensions; one that SymPy does not know is its own."""
    known = getattr(sympy_units, name, None) if re.fullmatch(r"\w+", name) else None
    if not isinstance(known, sympy_units.Quantity):
        return {name: 1.0}
    dimension = dimsys_SI.get_dimensional_dependencies(SI.get_quantity_dimension(known))
    return {str(base.name): float(power) for base, power in dimension.items()}
