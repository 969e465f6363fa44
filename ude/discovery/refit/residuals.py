"""Whether the residuals of a fit look like errors of measurement, or like something that the equations do not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ude.discovery.refit.closed_system import Array, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit

DEPENDENT = 3.5  # standard deviations; independent residuals reach them once in some four thousand times


@dataclass(frozen=True)
class Dependence:
    """How alike neighboring residuals of a column are: their correlation, and that in its standard deviations."""

    correlation: float
    deviations: float


def dependence(trajectories: Sequence[ObservedTrajectory], fit: EmbeddedFit, least: float) -> dict[str, Dependence]:
    """column -> how alike its neighboring residuals are, for columns whose residuals are above `least`.

    Where the residuals e_i are independent errors of whatever sizes, ``sum e_i e_{i+1} / sqrt(sum e_i^2 e_{i+1}^2)`` is
    about standard normal (autocorrelation robust against unequal variances, as in Lo & MacKinlay, Review of Financial
    Studies 1 (1988) 41). A formula that is wrong in kind leaves residuals that swing slowly, however small they are.

    trajectories: those of the fit. least: root mean square, in scaled units, of residuals that need no explanation.
    """
    tables = residual_tables(trajectories, fit)
    found = {}
    for index, column in enumerate(fit.sse_per_state if tables else ()):
        runs = [own[:, index][np.isfinite(own[:, index])] for own in tables]
        products = np.concatenate([run[1:] * run[:-1] for run in runs])
        squares, size = np.concatenate(runs) ** 2, float(np.linalg.norm(products))
        if size > 0.0 and squares.mean() > least**2:
            total = float(products.sum())
            found[column] = Dependence(total / float(squares.sum()), total / size)
    return found


def residual_tables(trajectories: Sequence[ObservedTrajectory], fit: EmbeddedFit) -> list[Array]:
    """The scaled residuals of each trajectory (T, column), NaN where nothing was observed; empty without a solution."""
    if fit.residuals is None:
        return []
    tables, begin = [], 0
    for own in trajectories:
        seen = np.isfinite(own.u)
        table = np.full(own.u.shape, np.nan)
        table[seen] = fit.residuals[begin : begin + int(seen.sum())]
        begin += int(seen.sum())
        tables.append(table)
    return tables
