"""A differential equation in closed form, and the trajectories that it is compared with, as plain arrays."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ude.errors import DataError, ModelError
from ude.fitting.objective.noise import NoiseModel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """A constant of a closed-form system: start value, bounds, and whether the fit may move it."""

    start: float
    lower: float = -np.inf
    upper: float = np.inf
    fitted: bool = True


@dataclass(frozen=True)
class Forcing:
    """A measured input as a function of time, on Python floats: piecewise cubic, held at its ends.

    knots, values (K,). slopes (K,): derivatives at the knots; None for straight lines; steps: the last value holds.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]
    slopes: tuple[float, ...] | None = None
    steps: bool = False

    def __call__(self, t: float) -> float:
        if t <= self.knots[0]:
            return self.values[0]
        if t >= self.knots[-1]:
            return self.values[-1]
        i = bisect_right(self.knots, t) - 1
        low, high = self.values[i], self.values[i + 1]
        if self.steps:
            return low
        width = self.knots[i + 1] - self.knots[i]
        s = (t - self.knots[i]) / width
        if self.slopes is None:
            return low + s * (high - low)
        first, last, rise = width * self.slopes[i], width * self.slopes[i + 1], high - low
        return low + s * (first + s * (3 * rise - 2 * first - last + s * (first + last - 2 * rise)))


@dataclass(frozen=True)
class ObservedTrajectory:
    """Observations ``u`` (T, column) at increasing times ``t`` (T,); NaN where a column was not observed.

    inputs: constants of the system that have another value, or a course, in this trajectory: conditions and forcing.
    """

    t: Array
    u: Array
    inputs: Mapping[str, float | Forcing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t, u = np.asarray(self.t, dtype=np.float64), np.asarray(self.u, dtype=np.float64)
        if t.ndim != 1 or u.ndim != 2 or len(t) != len(u):
            raise DataError("trajectory", expected="t (T,) and u (T, state)", got=f"t {t.shape}, u {u.shape}")
        if not np.all(np.isfinite(t)) or np.any(np.diff(t) <= 0):
            raise DataError("times of a trajectory must increase", fix="Sort the rows by time and merge duplicates.")
        object.__setattr__(self, "t", t)
        object.__setattr__(self, "u", u)


@dataclass(frozen=True)
class ClosedSystem:
    """``du/dt = f(u, p, t)`` with every right-hand side a SymPy expression.

    states: names, in the order of the columns of the data.
    equations: state -> expression in the states, the constants and ``time``.
    parameters: constant -> `Constant`.
    positive: states that are positive by nature; a solution in which one reaches zero counts as none.
    observables: column of the data -> expression in the same symbols; empty where the columns are the states.
    noise: column -> its noise, where that is not of one size; see `stabilized`.

    Raises ModelError for a symbol that is none of these, or a state without an equation.
    """

    states: tuple[str, ...]
    equations: dict[str, sp.Expr]
    parameters: dict[str, Constant] = field(default_factory=dict)
    time: str = "t"
    positive: tuple[str, ...] = ()
    observables: dict[str, sp.Expr] = field(default_factory=dict)
    noise: Mapping[str, NoiseModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [state for state in self.states if state not in self.equations]
        if missing:
            raise ModelError(f"no equation for {', '.join(missing)}", expected=f"one for each of {list(self.states)}")
        known = {*self.states, *self.parameters, self.time}
        written = {f"d{state}/dt": rate for state, rate in self.equations.items()} | self.observables
        for left, expression in written.items():
            unknown = sorted(str(symbol) for symbol in expression.free_symbols if str(symbol) not in known)
            if unknown:
                raise ModelError(
                    f"unknown symbol in {left} = {expression}",
                    expected=f"one of {sorted(known)}",
                    got=", ".join(unknown),
                )
            calls = expression.atoms(sp.core.function.AppliedUndef)
            if calls:
                raise ModelError(f"{left} still holds an unknown function", got=", ".join(map(str, calls)))

    @property
    def fitted(self) -> tuple[str, ...]:
        return tuple(name for name, constant in self.parameters.items() if constant.fitted)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the data hold: the observables, or else the states."""
        return tuple(self.observables) or self.states


def state_scale(trajectories: Sequence[ObservedTrajectory]) -> Array:
    """Standard deviation of each state's data over all trajectories; its size, or 1, where it does not vary."""
    data = np.concatenate([trajectory.u for trajectory in trajectories])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a state that was never observed
        deviation, size = np.nanstd(data, axis=0), np.nanmax(np.abs(data), axis=0)
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    return np.where(np.isfinite(deviation) & (deviation > 1e-12 * size), deviation, size)
