"""The values of a formula on arrays, and whether it is defined between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ude.errors import InputError

Array = NDArray[np.float64]


def evaluate(expression: sp.Expr, values: Mapping[str, Array | float]) -> Array:
    """The expression's values at arrays (N,) and numbers; NaN or infinite where it is not defined.

    Raises InputError where a symbol has no value.
    """
    names = sorted(str(symbol) for symbol in expression.free_symbols)
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(
            f"cannot evaluate {expression}", expected=f"values for {', '.join(missing)}", got=", ".join(values)
        )
    function = _compiled(expression, tuple(names))
    with np.errstate(all="ignore"):
        result = function(*(np.asarray(values[name], dtype=np.float64) for name in names))
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values())) if values else ()
    return np.array(np.broadcast_to(np.asarray(result, dtype=np.float64), shape))


@lru_cache(maxsize=16384)
def as_text(expression: sp.Expr) -> str:
    """The expression as SymPy prints it, to sort and to tell apart by; printing is slow, and the same ones recur."""
    return str(expression)


@lru_cache(maxsize=4096)
def _compiled(expression: sp.Expr, names: tuple[str, ...]) -> Callable[..., Array]:
    function: Callable[..., Array] = sp.lambdify([sp.Symbol(name) for name in names], expression, modules="numpy")
    return function


def is_regular(
    expression: sp.Expr, inputs: Mapping[str, Array], constants: Mapping[str, float], points: int = 65
) -> bool:
    """Whether a formula stays finite, and real, everywhere in the box that the inputs span.

    A pole between two samples is invisible at the samples, so the sign of every denominator, logarithm and root is
    followed over a grid of the box and along the path through the samples; a denominator that comes within 1e-6 of
    its largest size counts as a pole.
    """
    values = {name: probe(inputs, name, points) for name in inputs}
    where: dict[str, Array | float] = {**values, **constants}
    for part, kind in _delicate_parts(expression):
        found = evaluate(part, where)
        if not np.all(np.isfinite(found)):
            return False
        if kind == "not negative" and np.any(found < 0):
            return False
        if kind == "positive" and np.any(found <= 0):
            return False
        if kind == "not zero":
            largest = float(np.max(np.abs(found)))
            if np.any(np.abs(found) <= 1e-6 * largest) or (np.any(found > 0) and np.any(found < 0)):
                return False
    return bool(np.all(np.isfinite(evaluate(expression, where))))


def _delicate_parts(expression: sp.Expr) -> list[tuple[sp.Expr, str]]:
    parts: list[tuple[sp.Expr, str]] = []
    for part in sp.preorder_traversal(expression):
        if isinstance(part, sp.Pow) and part.base != sp.E:
            if not part.exp.is_integer:
                parts.append((part.base, "not negative"))
            if part.exp.is_negative or not part.exp.is_number:
                parts.append((part.base, "not zero"))
        elif isinstance(part, sp.log):
            parts.append((part.args[0], "positive"))
        elif isinstance(part, sp.tan):
            parts.append((sp.cos(part.args[0]), "not zero"))
    return parts


def probe(inputs: Mapping[str, Array], name: str, points: int) -> Array:
    """Points of one input: the samples, half-way between them, and a grid of the whole box (a Halton set above 2)."""
    path = np.asarray(inputs[name], dtype=np.float64)
    low, high = float(path.min()), float(path.max())
    index, size = list(inputs).index(name), len(inputs)
    if size <= 2:
        axis = np.linspace(0.0, 1.0, points)
        grid = axis if size == 1 else np.stack(np.meshgrid(axis, axis, indexing="ij"))[index].ravel()
    else:
        corners = np.array(np.meshgrid(*[[0.0, 1.0]] * min(size, 10), indexing="ij")).reshape(min(size, 10), -1)
        corner = corners[index] if index < 10 else np.resize([0.0, 1.0], corners.shape[1])
        grid = np.concatenate([_halton(2000, index), corner])
    return np.concatenate([path, 0.5 * (path[1:] + path[:-1]), low + (high - low) * grid])


def _halton(size: int, index: int) -> Array:
    """The radical inverse of 1..size in the base of the index-th prime (Halton 1960)."""
    base = int(sp.prime(index + 1))
    numbers, result, weight = np.arange(1, size + 1), np.zeros(size), 1.0 / base
    while np.any(numbers > 0):
        result += weight * (numbers % base)
        numbers, weight = numbers // base, weight / base
    return result
