"""Formulas from a search that is not ours, made comparable: constants named, refitted in float64, counted our way."""

from __future__ import annotations

import numpy as np
import sympy as sp
from scipy.optimize import least_squares

from ude.discovery.candidate import Candidate, rename_constants
from ude.discovery.complexity import complexity
from ude.discovery.evaluation import Array, evaluate, is_regular
from ude.discovery.samples import Samples, normalized_error, project_out


def candidate_from(expression: sp.Expr, samples: Samples, source: str) -> Candidate | None:
    """The expression as a candidate with its constants refitted; None where it is not finite and real on the samples.

    Every floating-point number becomes a constant to fit, except one within 1e-6 of an integer that stands as an
    exponent. Least squares runs beside the nuisance directions, with weights, from the numbers that were found.
    """
    bare, values = _name_numbers(expression)
    bare, constants = rename_constants(bare, values, tuple(samples.inputs))
    if bare.free_symbols - {sp.Symbol(name) for name in (*samples.inputs, *constants)} or bare.has(
        sp.nan, sp.zoo, sp.oo
    ):
        return None
    if constants:
        constants = _least_squares(bare, constants, samples)
    if not is_regular(bare, samples.inputs, constants):
        return None
    error = normalized_error(samples, evaluate(bare, {**samples.inputs, **constants}))
    if not np.isfinite(error):
        return None
    return Candidate(bare, constants, complexity(bare, constants), error, source)


def _name_numbers(expression: sp.Expr) -> tuple[sp.Expr, dict[sp.Symbol, float]]:
    values: dict[sp.Symbol, float] = {}

    def walk(part: sp.Expr) -> sp.Expr:
        if isinstance(part, sp.Float):
            symbol = sp.Symbol(f"_number{len(values)}")
            values[symbol] = float(part)
            return symbol
        if isinstance(part, sp.Pow) and isinstance(part.exp, sp.Float) and abs(part.exp - round(part.exp)) < 1e-6:
            return walk(part.base) ** sp.Integer(round(part.exp))
        return part.func(*(walk(inner) for inner in part.args)) if part.args else part

    return walk(expression), values


def _least_squares(bare: sp.Expr, constants: dict[str, float], samples: Samples) -> dict[str, float]:
    names = list(constants)
    start = np.array(list(constants.values()))
    unit = np.where(start != 0, np.abs(start), 1.0)
    size = max(float(np.linalg.norm(np.sqrt(samples.weights) * samples.output)), 1e-300)

    def residual(theta: Array) -> Array:
        values = evaluate(bare, {**samples.inputs, **dict(zip(names, theta * unit, strict=True))})
        wrong = project_out(samples, (samples.output - values)[:, None])[:, 0] / size
        return np.where(np.isfinite(wrong), wrong, np.inf)

    if not np.all(np.isfinite(residual(start / unit))):
        return constants
    with np.errstate(all="ignore"):
        result = least_squares(residual, start / unit, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=100)
    return {name: float(value) for name, value in zip(names, result.x * unit, strict=True)}
