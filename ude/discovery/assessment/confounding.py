"""How far an unknown function and the free parameters beside it can stand in for each other.

In ``dx/dt = a*x - U(x, y)`` any multiple of x may go from one to the other: what is then found is the sum, and how it
is split is a convention (the formula gets the smallest part). In ``dx/dt = a*x - U(y)`` they can do so only as far as x
is a function of y along the trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import sympy as sp

from ude.discovery.evaluation import evaluate
from ude.discovery.refit.closed_system import Array, ClosedSystem
from ude.discovery.samples import Samples

COLUMNS = ["term", "parameter", "share", "correlation"]


def confounding_table(
    equations: Mapping[str, sp.Expr],
    fitted: tuple[str, ...],
    samples: Mapping[str, Samples],
    along: Mapping[str, Array | float],
    scale: Array,
    correlations: pd.DataFrame,
) -> pd.DataFrame:
    """One row a term and fitted parameter of the model that share an equation.

    equations: state -> right-hand side with the unknown functions. along: values of states, parameters and time at the
    samples (N,). scale: of the states' rates.

    share: the part of the parameter's effect on the right-hand sides that some function of the term's inputs can take
    up along the trajectories (1: they cannot be told apart by any data of this kind). correlation: the largest absolute
    correlation of the parameter's estimate with one of the constants of the formula that was found.
    """
    rows = []
    for term, own in samples.items():
        calls = {
            node
            for rate in equations.values()
            for node in rate.atoms(sp.core.function.AppliedUndef)
            if str(node.func) == term
        }
        for parameter in fitted:
            share = _share(equations, sp.Symbol(parameter), calls, own, along, scale)
            if share is None:
                continue
            constants = [name for name in correlations.columns if name.startswith(f"{term}_")]
            known = parameter in correlations.index and constants
            largest = float(np.abs(correlations.loc[[parameter], constants].to_numpy()).max()) if known else np.nan
            rows.append({"term": term, "parameter": parameter, "share": share, "correlation": largest})
    return pd.DataFrame(rows, columns=COLUMNS)


def _share(
    equations: Mapping[str, sp.Expr],
    parameter: sp.Symbol,
    calls: set[sp.Expr],
    samples: Samples,
    along: Mapping[str, Array | float],
    scale: Array,
) -> float | None:
    if len(calls) != 1:
        return None
    [call] = calls
    stand_in = sp.Dummy("U")
    rates = [rate.xreplace({call: stand_in}) for rate in equations.values()]
    pairs = [(sp.diff(rate, stand_in), sp.diff(rate, parameter)) for rate in rates]
    if not any(a != 0 and g != 0 for a, g in pairs):
        return None
    if any(part.has(stand_in) or part.atoms(sp.core.function.AppliedUndef) for pair in pairs for part in pair):
        return None
    size = len(samples.output)
    if any(np.size(value) not in (1, size) for value in along.values()):
        return None  # samples that were pooled or left out do not stand beside the points any more
    coefficient, effect = (
        np.stack([np.broadcast_to(evaluate(pair[i], along), size) for pair in pairs], axis=1) / scale for i in (0, 1)
    )
    squares = (coefficient**2).sum(axis=1)
    if not (np.isfinite(coefficient).all() and np.isfinite(effect).all()) or not squares.any():
        return None
    # what the term would have to be at each sample to take the parameter's effect up, as a function of its inputs
    wanted = (coefficient * effect).sum(axis=1) / np.maximum(squares, 1e-300)
    features = _features(samples)
    root = np.sqrt(squares)[:, None]
    weights, *_ = np.linalg.lstsq(features * root, wanted * root[:, 0], rcond=1e-10)
    left = effect - coefficient * (features @ weights)[:, None]
    whole = float((effect**2).sum())
    return float(np.clip(1.0 - (left**2).sum() / whole, 0.0, 1.0)) if whole > 0 else None


def _features(samples: Samples, degree: int = 4) -> Array:
    """Polynomials of the standardized inputs; fewer degrees where there are few samples or many inputs."""
    inputs = np.stack(list(samples.inputs.values()), axis=1)
    spread = inputs.std(axis=0)
    z = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    columns = [np.ones(len(z))]
    for d in range(1, degree + 1):
        own = [np.prod(z[:, list(parts)], axis=1) for parts in combinations_with_replacement(range(z.shape[1]), d)]
        if d > 1 and len(columns) + len(own) > len(z) // 5:
            break
        columns += own
    return np.stack(columns, axis=1)


def correlation_table(system: ClosedSystem, matrix: Array | None) -> pd.DataFrame:
    """Correlations of the estimates of the fitted constants; empty where they are not determined."""
    names = list(system.fitted)
    if matrix is None:
        return pd.DataFrame(index=pd.Index([], dtype=object))
    own = matrix[: len(names), : len(names)]
    sizes = np.sqrt(np.diag(own))
    return pd.DataFrame(own / np.maximum(np.outer(sizes, sizes), 1e-300), index=names, columns=names)
