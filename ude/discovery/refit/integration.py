"""Closed-form systems integrated with their forward sensitivities, within a budget.

For the handful of states of such a system, dispatching tensors would cost a hundred times the arithmetic; so the
right-hand side and its forward sensitivities

    du/dt = f(u, p, t),   dS/dt = (df/du) S + df/dp,   S = du/d(p, u0)

are integrated together: where there is a C compiler by the program of `native`, which is five to nine times as fast;
where there is none, for what that does not know (measured inputs, rare functions), and for stiff solutions by LSODA
(Petzold 1983), from plain Python functions derived by SymPy, whose common subexpressions are shared.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sympy as sp
from scipy.integrate import ODEintWarning, odeint

from ude.discovery.refit.c_integrator import CRAWL, DONE, SPENT, STIFF, FormulaProgram
from ude.discovery.refit.closed_system import Array, ClosedSystem, Forcing, ObservedTrajectory
from ude.errors import EngineRefused


class Stop(Exception):
    """Raised inside the integrator's callback: this trajectory, or this fit's budget, is over."""


class BudgetSpent(Stop):
    """The budget of right-hand-side calls, or of seconds, is spent."""


class Integrator:
    """A closed-form system compiled for integration, with or without forward sensitivities.

    Counts right-hand-side calls in ``calls``; raises `BudgetSpent` inside once ``max_calls`` or ``deadline`` is over.
    Deadlines are readings of `time.thread_time`: seconds of the processor, so that an answer does not depend on what
    else the machine is doing.
    """

    def __init__(self, system: ClosedSystem, rtol: float = 1e-8, free: Sequence[int] | None = None) -> None:
        self.system, self.rtol, self.calls = system, rtol, 0
        # the states by whose start the solution is differentiated
        self.free = list(range(len(system.states))) if free is None else list(free)
        self.max_calls, self.deadline = 10**9, np.inf
        self._functions: dict[bool, Callable[..., list[float]]] = {}
        self._native: dict[bool, FormulaProgram | None] = {}

    def solve(self, t: Array, u0: Array, values: Mapping[str, float | Forcing], scale: Array) -> Array | None:
        """States (T, state) at times t, starting from u0 at t[0]; None where the solution does not exist."""
        return self._integrate(False, t, u0, values, 1e-2 * self.rtol * scale)

    def sensitivities(
        self, t: Array, u0: Array, values: Mapping[str, float | Forcing], scale: Array, units: Array
    ) -> tuple[Array, Array] | None:
        """States (T, state) and their derivatives (T, state, fitted constants + free) by constants and starts.

        units: the size of a change of each constant and u0 that matters; sets the sensitivities' tolerance.
        """
        n, k = len(u0), len(self.system.fitted)
        start = np.concatenate([u0, np.concatenate([np.zeros((n, k)), np.eye(n)[:, self.free]], axis=1).ravel()])
        atol = 1e-2 * self.rtol * np.concatenate([scale, (scale[:, None] / units[None, :]).ravel()])
        solution = self._integrate(True, t, start, values, atol)
        if solution is None:
            return None
        return solution[:, :n], solution[:, n:].reshape(len(t), n, k + len(self.free))

    def _integrate(
        self, sensitive: bool, t: Array, start: Array, values: Mapping[str, float | Forcing], atol: Array
    ) -> Array | None:
        given = [values[name] for name in self.system.parameters]
        forced = [(i, value) for i, value in enumerate(given) if isinstance(value, Forcing)]
        constants = [0.0 if isinstance(value, Forcing) else float(value) for value in given]
        if not np.all(np.isfinite(start)) or not np.all(np.isfinite(constants)):
            return None
        if len(t) == 1:
            return start[None, :]
        atol = np.maximum(atol, 1e-300)
        program = None if forced else self._program(sensitive)
        if program is not None:
            if time.thread_time() > self.deadline:
                raise BudgetSpent
            left = self.max_calls - self.calls
            outcome, found, calls = program.run(t, start, constants, self.rtol, atol, left)
            self.calls += min(calls, left)  # it ends with the step that goes beyond
            if outcome == SPENT:
                raise BudgetSpent
            if outcome != STIFF:
                return found if outcome == DONE and np.all(np.isfinite(found)) else None
        return self._by_lsoda(self._function(sensitive), t, start, (constants, forced), atol)

    def _program(self, sensitive: bool) -> FormulaProgram | None:
        """The system for the C program; None where that does not work."""
        if sensitive not in self._native:
            try:
                self._native[sensitive] = FormulaProgram(self.system, self.free if sensitive else None)
            except (NotImplementedError, EngineRefused, TypeError):  # TypeError: a number that is not real
                self._native[sensitive] = None
        return self._native[sensitive]

    def _function(self, sensitive: bool) -> Callable[..., list[float]]:
        if sensitive not in self._functions:
            self._functions[sensitive] = _compile(self.system, len(self.free) if sensitive else None)
        return self._functions[sensitive]

    def _by_lsoda(
        self,
        function: Callable[..., list[float]],
        t: Array,
        start: Array,
        inputs: tuple[list[float], list[tuple[int, Forcing]]],
        atol: Array,
    ) -> Array | None:
        """inputs: the constants, and which of them follow a forcing."""
        constants, forced = inputs

        def rhs(y: Array, now: float) -> list[float]:
            self.calls += 1
            if self.calls >= self.max_calls or (self.calls % 64 == 0 and time.thread_time() > self.deadline):
                raise BudgetSpent
            for place, course in forced:
                constants[place] = course(now)
            try:
                return function(now, y.tolist(), constants)
            except (OverflowError, ZeroDivisionError, ValueError, TypeError) as error:
                raise Stop from error  # TypeError: a negative number to a fractional power is complex

        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", ODEintWarning)
                # mxstep bounds the steps between two observations: a solution that creeps towards a pole gives up.
                solution, info = odeint(  # type: ignore[call-overload]  # the stubs forget arrays as atol
                    rhs,
                    start,
                    t,
                    rtol=self.rtol,
                    atol=atol,
                    mxstep=CRAWL,
                    tcrit=_corners(t, [course for _, course in forced]),
                    full_output=True,
                )
        except BudgetSpent:
            raise
        except Stop:
            return None
        except TypeError as error:
            # a negative number to a fractional power, where nothing in the right-hand side stumbles over it
            if "complex" in str(error):
                return None
            raise
        if info["message"] != "Integration successful." or not np.all(np.isfinite(solution)):
            return None
        return np.asarray(solution)


# Corners of forcing beyond this many are left to the error control.
_MOST_CORNERS = 200


def _corners(t: Array, courses: Sequence[Forcing]) -> Array | None:
    """Times inside the span at which forcing has a corner or a jump: no step goes across."""
    kinked = [course.knots for course in courses if course.slopes is None]
    inside = np.unique(np.concatenate(kinked)) if kinked else np.empty(0)
    inside = inside[(inside > t[0]) & (inside < t[-1])]
    return inside if 0 < len(inside) <= _MOST_CORNERS else None


class ColumnFunctions:
    """The columns of the data as functions of states, constants and time, with derivatives; see `ClosedSystem`."""

    def __init__(self, system: ClosedSystem) -> None:
        self.system = system
        if not system.observables:
            return
        states, fitted = map(sp.Symbol, system.states), map(sp.Symbol, system.fitted)
        columns = sp.Matrix(list(system.observables.values()))
        results = [*columns, *map(without_distributions, columns.jacobian([*states, *fitted]))]
        names = [system.time, *system.states, *system.parameters]
        self._function = sp.lambdify(
            list(map(sp.Symbol, names)), results, modules=["numpy"], cse=True, docstring_limit=0
        )

    def __call__(
        self, t: Array, u: Array, values: Mapping[str, float | Forcing], sensitivity: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Columns (T, column), and their derivatives (T, column, fitted + free) from those of the states."""
        if not self.system.observables:
            return u, sensitivity
        constants = [along(values[name], t) for name in self.system.parameters]
        with np.errstate(all="ignore"):
            found = self._function(t, *u.T, *constants)
        parts = np.stack([np.broadcast_to(np.asarray(part, dtype=np.float64), t.shape) for part in found], axis=1)
        n, states, fitted = len(self.system.observables), len(self.system.states), len(self.system.fitted)
        columns, slopes = parts[:, :n], parts[:, n:].reshape(len(t), n, states + fitted)
        if sensitivity is None:
            return columns, None
        total = slopes[..., :states] @ sensitivity
        total[..., :fitted] += slopes[..., states:]
        return columns, total


def along(value: float | Forcing, t: Array) -> float | Array:
    """A number as it is; a forcing at the times t (T,)."""
    return np.array([value(now) for now in t.tolist()]) if isinstance(value, Forcing) else value


def _compile(system: ClosedSystem, starts: int | None = None) -> Callable[..., list[float]]:
    """One plain Python function (t, states [+ sensitivities], constants) -> derivatives, on Python floats."""
    states = [sp.Symbol(name) for name in system.states]
    constants = [sp.Symbol(name) for name in system.parameters]
    rates = sp.Matrix([system.equations[name] for name in system.states])
    arguments, results = list(states), list(rates)
    if starts is not None:
        fitted = [sp.Symbol(name) for name in system.fitted]
        width = len(fitted) + starts
        s = sp.Matrix(len(states), width, lambda i, j: sp.Symbol(f"_S{i}_{j}"))
        forcing = rates.jacobian(fitted) if fitted else sp.zeros(len(states), 0)
        forcing = forcing.row_join(sp.zeros(len(states), starts))
        jacobian = rates.jacobian(states)
        # The entries of the Jacobian are computed once each; products with S are left for cse to leave alone.
        results += list(jacobian * s + forcing)
        arguments += list(s)
    results = [without_distributions(result) for result in results]
    modules = [_EXTRA, "math"]
    # Without the docstring, whose text of all expressions would take half the time.
    signature = [sp.Symbol(system.time), arguments, constants]
    result: Callable[..., list[float]] = sp.lambdify(signature, results, modules=modules, cse=True, docstring_limit=0)
    return result


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


# Functions that models may use and that the module `math` lacks.
_EXTRA: dict[str, Callable[..., float]] = {
    "sigmoid": _sigmoid,
    "Heaviside": lambda x, at_zero=0.5: at_zero if x == 0 else float(x > 0),
    "sign": lambda x: float((x > 0) - (x < 0)),
    "Min": min,
    "Max": max,
}


def without_distributions(expression: sp.Expr) -> sp.Expr:
    """Derivatives of |x|, sign(x) and steps leave delta terms, which are zero almost everywhere."""
    if not expression.has(sp.Abs, sp.sign, sp.Heaviside, sp.Min, sp.Max, sp.Derivative, sp.DiracDelta):
        return expression
    real = {symbol: sp.Dummy(symbol.name, real=True) for symbol in expression.free_symbols}
    simple = expression.xreplace(real).doit().replace(sp.DiracDelta, lambda *_: sp.S.Zero)
    return simple.xreplace({dummy: symbol for symbol, dummy in real.items()})


def simulate(
    integrator: Integrator,
    trajectories: Sequence[ObservedTrajectory],
    u0: Array,
    values: Mapping[str, float],
    scale: Array,
) -> list[Array | None]:
    """The system's states at the times of each trajectory, from u0 (trajectory, state); None where it blows up."""
    found: list[Array | None] = []
    for index, trajectory in enumerate(trajectories):
        try:
            found.append(integrator.solve(trajectory.t, u0[index], {**values, **trajectory.inputs}, scale))
        except BudgetSpent:
            found.append(None)
    return found
