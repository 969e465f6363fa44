"""What the discovered system does when it is let run: whether it stays bounded, and where it rests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from time import thread_time

import numpy as np
import sympy as sp
from scipy.optimize import fsolve

from ude.discovery.refit.closed_system import Array, ClosedSystem, Forcing, ObservedTrajectory
from ude.discovery.refit.integration import BudgetSpent, Integrator, without_distributions

_FAR = 100.0  # times the range of the data beyond which a solution counts as unbounded
_STARTS = 40  # of the search for equilibria


@dataclass(frozen=True)
class Equilibrium:
    """A state of rest, its eigenvalues and kind; visited: within the box of the data, a tenth wider."""

    state: dict[str, float]
    eigenvalues: tuple[complex, ...]
    kind: str
    visited: bool


@dataclass(frozen=True)
class Stability:
    """bounded: every trajectory, let run to `horizon` times its data's span, stays within 100 times their range.

    reached: share of that time that each trajectory came to before it blew up or the budget was spent; checked: False
    where the budget ended it, so that "bounded" says nothing. equilibria: those found, only of systems without time.
    """

    bounded: bool
    checked: bool
    horizon: float
    reached: tuple[float, ...]
    equilibria: tuple[Equilibrium, ...]
    sentence: str


def screen(
    system: ClosedSystem,
    values: Mapping[str, float],
    u0: Array,
    trajectories: Sequence[ObservedTrajectory],
    scale: Array,
    horizon: float = 10.0,
) -> Stability:
    """Simulate on to `horizon` times the span of each trajectory, and look for equilibria near the data.

    Conditions and forcing are those of each trajectory, held at its end. Equilibria are looked for with the inputs of
    the first, and not at all where an equation holds the time or a forcing.
    """
    integrator = Integrator(system, rtol=1e-6)
    visited = _visited(integrator, values, u0, trajectories, scale)
    size = np.maximum(np.ptp(visited, axis=0), np.abs(visited).max(axis=0)) + scale
    reached, checked = [], True
    for index, own in enumerate(trajectories):
        share, finished = _reach(integrator, {**values, **own.inputs}, u0[index], own.t, size, horizon)
        reached.append(share)
        checked &= finished
    bounded = all(share >= 1.0 for share in reached)
    free = {str(symbol) for rate in system.equations.values() for symbol in rate.free_symbols}
    forced = {name for own in trajectories for name, value in own.inputs.items() if isinstance(value, Forcing)}
    found = () if free & {system.time, *forced} else equilibria(system, {**values, **trajectories[0].inputs}, visited)
    return Stability(bounded, checked, horizon, tuple(reached), found, _sentence(bounded, checked, horizon, reached))


def _visited(
    integrator: Integrator,
    values: Mapping[str, float],
    u0: Array,
    trajectories: Sequence[ObservedTrajectory],
    scale: Array,
) -> Array:
    parts = [u0]
    integrator.max_calls = 100_000
    for index, own in enumerate(trajectories):
        try:
            run = integrator.solve(own.t, u0[index], {**values, **own.inputs}, scale)
        except BudgetSpent:
            run = None
        if run is not None:
            parts.append(run)
    return np.concatenate(parts)


def _reach(
    integrator: Integrator, values: Mapping[str, float | Forcing], u0: Array, t: Array, size: Array, horizon: float
) -> tuple[float, bool]:
    """The share of the long run that stays bounded, and whether the budget sufficed to tell."""
    times = t[0] + np.linspace(0.0, horizon, 201) * (t[-1] - t[0])
    integrator.calls, integrator.max_calls, integrator.deadline = 0, 100_000, thread_time() + 1.0
    state, segments = u0, 20
    for segment in range(segments):  # in segments, so that it is known how far a run came
        own = times[10 * segment : 10 * segment + 11]
        try:
            run = integrator.solve(own, state, values, size)
        except BudgetSpent:
            return segment / segments, False
        if run is None or np.any(np.abs(run) > _FAR * size):
            return segment / segments, True
        state = run[-1]
    return 1.0, True


def _sentence(bounded: bool, checked: bool, horizon: float, reached: Sequence[float]) -> str:
    if bounded:
        return f"The equations stay bounded over {horizon:g} times the span of the data."
    if not checked:
        return (
            f"Whether the equations stay bounded over {horizon:g} times the span of the data was not settled in time."
        )
    shortest = min(reached) * horizon
    return f"The equations blow up within about {shortest + 0.5:.2g} times the span of the data."


def equilibria(system: ClosedSystem, values: Mapping[str, float | Forcing], visited: Array) -> tuple[Equilibrium, ...]:
    """States of rest that MINPACK's hybrd finds from visited states and the corners of their box."""
    symbols = [sp.Symbol(name) for name in system.states]
    numbers = {sp.Symbol(name): value for name, value in values.items() if not isinstance(value, Forcing)}
    rates = [system.equations[name].xreplace(numbers) for name in system.states]
    function = sp.lambdify(symbols, rates, modules="numpy", docstring_limit=0)
    slopes = sp.Matrix(rates).jacobian(symbols).applyfunc(without_distributions)
    jacobian = sp.lambdify(symbols, slopes, modules="numpy", docstring_limit=0)
    low, high = visited.min(axis=0), visited.max(axis=0)
    width = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0))
    picks = visited[np.linspace(0, len(visited) - 1, min(_STARTS, len(visited))).astype(int)]
    corners = [np.array(corner) for corner in list(product(*zip(low, high, strict=True)))[:16]]
    speed = np.abs(np.array([_rates(function, u) for u in picks]))
    size = np.where(speed < 1e299, speed, 0.0).max(axis=0, initial=0.0)
    unit = np.where(size > 0, size, 1.0)
    found: list[Equilibrium] = []
    kept: list[Array] = []
    for start in [*picks, *corners, np.zeros(len(symbols))]:
        with np.errstate(all="ignore"):
            found_at = fsolve(lambda u: _rates(function, u) / unit, start, full_output=True)  # type: ignore[call-overload]
            x = np.asarray(found_at[0])
            rest = np.abs(_rates(function, x)) <= 1e-8 * unit
        if not rest.all() or not np.all((x >= low - 2.0 * width) & (x <= high + 2.0 * width)):
            continue
        if any(np.all(np.abs(x - other) <= 1e-5 * width) for other in kept):
            continue
        if any(
            state in system.positive and value < -1e-9 * w
            for state, value, w in zip(system.states, x, width, strict=True)
        ):
            continue
        with np.errstate(all="ignore"):
            matrix = np.array(jacobian(*x), dtype=np.float64)
        if not np.isfinite(matrix).all():
            continue
        kept.append(x)
        eigenvalues = tuple(complex(value) for value in np.linalg.eigvals(matrix))
        inside = bool(np.all((x >= low - 0.1 * width) & (x <= high + 0.1 * width)))
        state = dict(zip(system.states, (np.where(np.abs(x) < 1e-9 * width, 0.0, x)).tolist(), strict=True))
        found.append(Equilibrium(state, eigenvalues, _kind(eigenvalues), inside))
    return tuple(sorted(found, key=lambda e: (not e.visited, list(e.state.values()))))


def _rates(function: object, u: Array) -> Array:
    try:
        values = np.array(function(*u), dtype=np.complex128)  # type: ignore[operator]
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        return np.full(len(u), 1e300)
    real = np.where(values.imag == 0, values.real, 1e300)
    return np.where(np.isfinite(real), real, 1e300)


def _kind(eigenvalues: Sequence[complex]) -> str:
    real = np.array([value.real for value in eigenvalues])
    size = max(float(np.abs(np.array(eigenvalues)).max()), 1e-300)
    turning = any(abs(value.imag) > 1e-6 * size for value in eigenvalues)
    if np.all(np.abs(real) <= 1e-6 * size):
        return "center" if turning else "degenerate"
    if np.any(np.abs(real) <= 1e-6 * size):
        return "degenerate"
    if np.all(real < 0):
        return "stable focus" if turning else "stable node"
    if np.all(real > 0):
        return "unstable focus" if turning else "unstable node"
    return "saddle"
