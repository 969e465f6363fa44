"""How well the constants of the discovered system are known: from the curvature of the misfit, and from its profile.

Wald: constants and initial states have the covariance ``(J'J)^-1 J' V J (J'J)^-1`` with V the variance of the noise of
each column, estimated from its residuals (Seber & Wild, Nonlinear Regression (1989), ch. 2 and 5). Profile: the values
of one constant for which the misfit, all others refitted, rises by no more than chance explains (Bates & Watts,
Nonlinear Regression Analysis (1988), ch. 6), which is slower, and right for constants
that the misfit hardly determines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import f as fisher_f
from scipy.stats import t as student_t

from ude.discovery.refit.closed_system import Array, ClosedSystem, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, fit_closed_form
from ude.errors import InputError

_FARTHEST = 30.0  # standard errors, or factors of 2 where there is none, to which a profile is followed


def covariance(fit: EmbeddedFit, columns: Array) -> Array | None:
    """Of the unknowns in the fit's own coordinates (logarithms or units); None where they are not determined.

    columns: the column of each observed number (N,).
    """
    residual, jacobian = fit.residuals, fit.jacobian
    if residual is None or jacobian is None:
        return None
    n, k = jacobian.shape
    if n <= k:
        return None
    sizes = np.linalg.norm(jacobian, axis=0)
    if np.any(sizes == 0):
        return None
    _, values, right = np.linalg.svd(jacobian / sizes, full_matrices=False)
    if values[-1] <= 1e-10 * values[0]:
        return None
    counts = np.bincount(columns)
    variances = np.bincount(columns, weights=residual**2) / np.maximum(counts, 1) * n / (n - k)
    inverse = (right.T / values**2) @ right / sizes[:, None] / sizes[None, :]
    meat = (jacobian * variances[columns][:, None]).T @ jacobian
    return np.asarray(inverse @ meat @ inverse)


def observed_columns(trajectories: Sequence[ObservedTrajectory]) -> Array:
    """The column of each observed number, in the order of the residuals of a fit."""
    return np.concatenate([np.nonzero(np.isfinite(own.u))[1] for own in trajectories])


def wald_intervals(
    system: ClosedSystem, fit: EmbeddedFit, trajectories: Sequence[ObservedTrajectory], level: float = 0.95
) -> pd.DataFrame:
    """One row a fitted constant: constant, value, lower, upper. Infinite where the data do not determine it.

    Constants that are positive by their bounds have intervals of their logarithm.
    """
    if not 0.0 < level < 1.0:
        raise InputError("level must be a number between 0 and 1", got=repr(level))
    names = system.fitted
    matrix = covariance(fit, observed_columns(trajectories))
    rows = []
    for index, name in enumerate(names):
        value, half = fit.values[name], np.inf
        logarithmic = fit.logarithmic is not None and bool(fit.logarithmic[index])
        if matrix is not None and fit.jacobian is not None:
            quantile = student_t.ppf(0.5 + level / 2, fit.jacobian.shape[0] - fit.jacobian.shape[1])
            half = float(quantile * np.sqrt(max(matrix[index, index], 0.0)))
        with np.errstate(over="ignore"):
            if logarithmic:
                low, high = value * float(np.exp(-half)), value * float(np.exp(half))
            else:
                slope = 1.0 if fit.slopes is None else abs(float(fit.slopes[index]))
                low, high = value - half * slope, value + half * slope
        rows.append({"constant": name, "value": value, "lower": low, "upper": high})
    return pd.DataFrame(rows, columns=["constant", "value", "lower", "upper"])


def profile_interval(
    system: ClosedSystem,
    fit: EmbeddedFit,
    trajectories: Sequence[ObservedTrajectory],
    name: str,
    options: RefitOptions,
    level: float = 0.95,
    scale: Array | None = None,
) -> tuple[float, float]:
    """(lower, upper) of one constant by its profile; infinite on a side on which the misfit never rises enough.

    Each point of the profile is a fit of all other constants and of the initial states: some ten fits a side.

    Raises InputError for a name that is not a fitted constant.
    """
    if name not in system.fitted:
        raise InputError(f"{name} is not a fitted constant", expected=f"one of {', '.join(system.fitted)}")
    unknowns = len(system.fitted) + len(options.free(len(system.states))) * len(fit.u0)
    freedom = max(fit.n_observations - unknowns, 1)
    allowed = fit.sse * (1.0 + float(fisher_f.ppf(level, 1, freedom)) / freedom)
    table = wald_intervals(system, fit, trajectories, level)
    row = list(table["constant"]).index(name)
    lower, upper = (float(table[side].to_numpy()[row]) for side in ("lower", "upper"))
    best = fit.values[name]
    half = (upper - lower) / 2
    step = half if np.isfinite(half) and half > 0 else abs(best) or 1.0
    constant = system.parameters[name]

    def excess(value: float) -> float:
        started = {other: replace(c, start=fit.values[other]) for other, c in system.parameters.items()}
        started[name] = replace(constant, start=value, fitted=False)
        refitted = fit_closed_form(
            replace(system, parameters=started), trajectories, fit.u0, scale, replace(options, starts=1, horizons=())
        )
        return min(refitted.sse, 1e6 * allowed) - allowed

    ends = []
    for side, bound in ((-1.0, constant.lower), (1.0, constant.upper)):
        inside, width, end = best, step, side * np.inf
        while width <= _FARTHEST * step:
            outer = best + side * width
            if side * outer >= side * bound:
                end = bound
                break
            if excess(outer) > 0:
                low, high = sorted((inside, outer))
                end = float(brentq(excess, low, high, xtol=1e-3 * step, maxiter=30))
                break
            inside, width = outer, 1.7 * width
        ends.append(end)
    return ends[0], ends[1]
