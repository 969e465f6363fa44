"""To how many digits the constants of a system must be written for the written system to be the system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import sympy as sp

from ude.discovery.refit.closed_system import Array, ClosedSystem, ObservedTrajectory
from ude.discovery.refit.integration import ColumnFunctions, Integrator, simulate
from ude.models.equations.parser import parse_expression
from ude.models.equations.printer import to_text

FEWEST, MOST = 4, 17  # 17 significant digits are every double
POINTS = 200  # of each trajectory, beside those of the data: an error of phase shows anywhere


def digits_needed(
    system: ClosedSystem,
    values: Mapping[str, float],
    u0: Array,
    trajectories: Sequence[ObservedTrajectory],
    scale: Array,
    noise: Mapping[str, float],
) -> int:
    """The fewest significant digits, four or more, with which the equations as printed follow the full ones.

    The printed text is read back and simulated. No column may depart anywhere along the data by more than a tenth of
    its noise, or by 1e-3 of its range where that is more.

    Args:
        values: Every constant of the system.
        u0: Initial states (trajectory, state).
        trajectories: Their times and inputs are those of the comparison.
        scale: Size of each state (state,).
        noise: column -> standard deviation of its noise, in its own units; 0 where it is not known.
    """
    dense = [_dense(own, len(system.columns)) for own in trajectories]
    given = {name for own in trajectories for name in own.inputs}  # printed by their names
    values = {name: value for name, value in values.items() if name not in given}
    full = _columns(system, dense, u0, values, scale)
    if full is None:
        return MOST  # what breaks down has nothing that it could be compared with
    size = [max(0.1 * noise.get(name, 0.0), 1e-3 * float(np.ptp(full[:, i]))) for i, name in enumerate(system.columns)]
    tolerance = np.array(size) + 1e-9 * np.abs(full).max(axis=0)  # a column that rests: the solver's own error
    for digits in range(FEWEST, MOST):
        printed = _columns(as_printed(system, values, digits), dense, u0, values, scale)
        if printed is not None and np.all(np.abs(printed - full).max(axis=0) <= tolerance):
            return digits
    return MOST


def as_printed(system: ClosedSystem, values: Mapping[str, float], digits: int) -> ClosedSystem:
    """The system that is read from the printed equations; constants without a value, inputs, keep their names."""
    numbers = {sp.Symbol(name): sp.Float(value) for name, value in values.items()}
    equations = {
        state: parse_expression(to_text(rate.xreplace(numbers), digits)) for state, rate in system.equations.items()
    }
    return replace(system, equations=equations)


def _dense(own: ObservedTrajectory, columns: int) -> ObservedTrajectory:
    t = np.union1d(own.t, np.linspace(own.t[0], own.t[-1], POINTS)) if len(own.t) > 1 else own.t
    return ObservedTrajectory(t, np.zeros((len(t), columns)), own.inputs)


def _columns(
    system: ClosedSystem, dense: Sequence[ObservedTrajectory], u0: Array, values: Mapping[str, float], scale: Array
) -> Array | None:
    """The columns along all trajectories, one below the other; None where one breaks down."""
    runs = simulate(Integrator(system), dense, u0, values, scale)
    function, tables = ColumnFunctions(system), []
    for own, states in zip(dense, runs, strict=True):
        if states is None or not np.isfinite(states).all():
            return None
        tables.append(function(own.t, states, {**values, **own.inputs})[0])
    return np.concatenate(tables)
