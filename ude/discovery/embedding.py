"""Closed-form systems fitted to observed trajectories: the step that decides between candidate formulas.

A candidate is put back into its differential equation, and its constants, the model's free parameters and the initial
states are refitted by least squares on what was observed. For the handful of states of such a system, dispatching
tensors would cost a hundred times the arithmetic; so the right-hand side and its forward sensitivities

    du/dt = f(u, p, t),   dS/dt = (df/du) S + df/dp,   S = du/d(p, u0)

are derived by SymPy, compiled with their common subexpressions shared into one plain Python function, and integrated
together by LSODA (Petzold 1983), which follows stiff and non-stiff stretches alike. A formula that blows up is an
expected visitor here: every fit has a budget of right-hand-side calls and of seconds, and a trajectory that overflows
or leaves the domain of a function has an infinite cost instead of an exception.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from scipy.integrate import ODEintWarning, odeint
from scipy.optimize import least_squares

from ude.errors import DataError, InputError, ModelError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """A constant of a closed-form system: start value, bounds, and whether the fit may move it."""

    start: float
    lower: float = -np.inf
    upper: float = np.inf
    fitted: bool = True


@dataclass(frozen=True)
class Trajectory:
    """Observations ``u`` (T, state) at increasing times ``t`` (T,); NaN where a state was not observed."""

    t: Array
    u: Array

    def __post_init__(self) -> None:
        t, u = np.asarray(self.t, dtype=np.float64), np.asarray(self.u, dtype=np.float64)
        if t.ndim != 1 or u.ndim != 2 or len(t) != len(u):
            raise DataError("trajectory", expected="t (T,) and u (T, state)", got=f"t {t.shape}, u {u.shape}")
        if not np.all(np.isfinite(t)) or np.any(np.diff(t) <= 0):
            raise DataError("times of a trajectory must increase", fix="Sort the rows by time and merge duplicates.")
        object.__setattr__(self, "t", t)
        object.__setattr__(self, "u", u)


@dataclass(frozen=True)
class ClosedForm:
    """``du/dt = f(u, p, t)`` with every right-hand side a SymPy expression.

    states: names, in the order of the columns of the data.
    equations: state -> expression in the states, the constants and ``time``.
    parameters: constant -> `Constant`.
    positive: states that are positive by nature; a solution in which one reaches zero counts as none.

    Raises ModelError for a symbol that is none of these, or a state without an equation.
    """

    states: tuple[str, ...]
    equations: dict[str, sp.Expr]
    parameters: dict[str, Constant] = field(default_factory=dict)
    time: str = "t"
    positive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [state for state in self.states if state not in self.equations]
        if missing:
            raise ModelError(f"no equation for {', '.join(missing)}", expected=f"one for each of {list(self.states)}")
        known = {*self.states, *self.parameters, self.time}
        for state, expression in self.equations.items():
            unknown = sorted(str(symbol) for symbol in expression.free_symbols if str(symbol) not in known)
            if unknown:
                raise ModelError(
                    f"unknown symbol in d{state}/dt = {expression}",
                    expected=f"one of {sorted(known)}",
                    got=", ".join(unknown),
                )
            calls = expression.atoms(sp.core.function.AppliedUndef)
            if calls:
                raise ModelError(f"d{state}/dt still holds an unknown function", got=", ".join(map(str, calls)))

    @property
    def fitted(self) -> tuple[str, ...]:
        return tuple(name for name, constant in self.parameters.items() if constant.fitted)


@dataclass(frozen=True)
class EmbeddedFit:
    """Least squares of a closed-form system on observed trajectories.

    values: every constant. u0: (trajectory, state), at each trajectory's first time.
    sse: sum over observed numbers of ((model - data) / scale of the state)^2; infinite where no solution was found.
    n_observations: how many numbers were observed. sse_per_state: the same sum state by state.
    success: whether the optimiser met a tolerance within its budget. rhs_calls: right-hand sides spent.
    """

    values: dict[str, float]
    u0: Array
    sse: float
    n_observations: int
    sse_per_state: dict[str, float]
    success: bool
    rhs_calls: int
    message: str


@dataclass(frozen=True)
class FitOptions:
    """How long and how finely `fit_closed_form` tries.

    max_rhs_calls, max_seconds: budget of one fit, all its starts together. max_iterations: per start.
    rtol: relative tolerance of the integration; the absolute one is rtol/100 of each state's scale.
    fit_u0: whether initial states are fitted too. starts: how many starts; those after the first have their constants
    multiplied by exp(spread * N(0, 1)), drawn from ``seed``. horizons: shares of each trajectory, increasing, on which
    the fit is repeated one after the other when fitting the whole from the start values went badly; () for never.
    """

    max_rhs_calls: int = 200_000
    max_seconds: float = 10.0
    max_iterations: int = 60
    rtol: float = 1e-8
    fit_u0: bool = True
    starts: int = 1
    spread: float = 0.3
    seed: int = 0
    horizons: tuple[float, ...] = (0.2, 0.4, 0.7)


# Mean square error in scaled units (1 is the variance of the data) above which a fit is tried again from short to long.
_POOR = 0.1

# Scaled residuals or sensitivities above which a solution counts as blown up.
_OFF = 1e9


class _Stop(Exception):
    """Raised inside the integrator's callback: this trajectory, or this fit's budget, is over."""


class _BudgetSpent(_Stop):
    pass


class Integrator:
    """A closed-form system compiled for integration, with or without forward sensitivities.

    Counts right-hand-side calls in ``calls``; raises `_BudgetSpent` inside once ``max_calls`` or ``deadline`` is over.
    """

    def __init__(self, system: ClosedForm, rtol: float = 1e-8) -> None:
        self.system, self.rtol, self.calls = system, rtol, 0
        self.max_calls, self.deadline = 10**9, np.inf
        self._plain: Callable[..., list[float]] | None = None
        self._augmented: Callable[..., list[float]] | None = None

    def solve(self, t: Array, u0: Array, values: Mapping[str, float], scale: Array) -> Array | None:
        """States (T, state) at times t, starting from u0 at t[0]; None where the solution does not exist."""
        if self._plain is None:
            self._plain = _compile(self.system, sensitivities=False)
        return self._integrate(self._plain, t, u0, values, 1e-2 * self.rtol * scale)

    def sensitivities(
        self, t: Array, u0: Array, values: Mapping[str, float], scale: Array, units: Array
    ) -> tuple[Array, Array] | None:
        """States (T, state) and their derivatives (T, state, fitted constants + state) by constants and by u0.

        units: the size of a change of each constant and u0 that matters; sets the sensitivities' tolerance.
        """
        if self._augmented is None:
            self._augmented = _compile(self.system, sensitivities=True)
        n, k = len(u0), len(self.system.fitted)
        start = np.concatenate([u0, np.concatenate([np.zeros((n, k)), np.eye(n)], axis=1).ravel()])
        atol = 1e-2 * self.rtol * np.concatenate([scale, (scale[:, None] / units[None, :]).ravel()])
        solution = self._integrate(self._augmented, t, start, values, atol)
        if solution is None:
            return None
        return solution[:, :n], solution[:, n:].reshape(len(t), n, k + n)

    def _integrate(
        self, function: Callable[..., list[float]], t: Array, start: Array, values: Mapping[str, float], atol: Array
    ) -> Array | None:
        constants = [float(values[name]) for name in self.system.parameters]
        if not np.all(np.isfinite(start)) or not np.all(np.isfinite(constants)):
            return None
        if len(t) == 1:
            return start[None, :]

        def rhs(y: Array, now: float) -> list[float]:
            self.calls += 1
            if self.calls >= self.max_calls or (self.calls % 64 == 0 and time.perf_counter() > self.deadline):
                raise _BudgetSpent
            try:
                return function(now, y.tolist(), constants)
            except (OverflowError, ZeroDivisionError, ValueError, TypeError) as error:
                raise _Stop from error  # TypeError: a negative number to a fractional power is complex

        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", ODEintWarning)
                # mxstep bounds the steps between two observations: a solution that creeps towards a pole gives up.
                solution, info = odeint(  # type: ignore[call-overload]  # the stubs forget arrays as atol
                    rhs,
                    start,
                    t,
                    rtol=self.rtol,
                    atol=np.maximum(atol, 1e-300),
                    mxstep=5000,
                    full_output=True,
                )
        except _BudgetSpent:
            raise
        except _Stop:
            return None
        if info["message"] != "Integration successful." or not np.all(np.isfinite(solution)):
            return None
        return np.asarray(solution)


def _compile(system: ClosedForm, *, sensitivities: bool) -> Callable[..., list[float]]:
    """One plain Python function (t, states [+ sensitivities], constants) -> derivatives, on Python floats."""
    states = [sp.Symbol(name) for name in system.states]
    constants = [sp.Symbol(name) for name in system.parameters]
    rates = sp.Matrix([system.equations[name] for name in system.states])
    arguments, results = list(states), list(rates)
    if sensitivities:
        fitted = [sp.Symbol(name) for name in system.fitted]
        width = len(fitted) + len(states)
        s = sp.Matrix(len(states), width, lambda i, j: sp.Symbol(f"_S{i}_{j}"))
        forcing = rates.jacobian(fitted) if fitted else sp.zeros(len(states), 0)
        forcing = forcing.row_join(sp.zeros(len(states), len(states)))
        jacobian = rates.jacobian(states)
        # The entries of the Jacobian are computed once each; products with S are left for cse to leave alone.
        results += list(jacobian * s + forcing)
        arguments += list(s)
    results = [_without_distributions(result) for result in results]
    modules = [_EXTRA, "math"]
    return sp.lambdify([sp.Symbol(system.time), arguments, constants], results, modules=modules, cse=True)


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


def _without_distributions(expression: sp.Expr) -> sp.Expr:
    """Derivatives of |x|, sign(x) and steps leave delta terms, which are zero almost everywhere."""
    if not expression.has(sp.Abs, sp.sign, sp.Heaviside, sp.Min, sp.Max, sp.Derivative, sp.DiracDelta):
        return expression
    real = {symbol: sp.Dummy(symbol.name, real=True) for symbol in expression.free_symbols}
    simple = expression.xreplace(real).doit().replace(sp.DiracDelta, lambda *_: sp.S.Zero)
    return simple.xreplace({dummy: symbol for symbol, dummy in real.items()})


def fit_closed_form(
    system: ClosedForm,
    trajectories: Sequence[Trajectory],
    u0: Array | None = None,
    scale: Array | None = None,
    options: FitOptions = FitOptions(),
) -> EmbeddedFit:
    """Least squares of constants and initial states on observed trajectories (trust-region Levenberg-Marquardt).

    u0: starting initial states (trajectory, state); the first observations where not given.
    scale: the size of an error that counts as one, per state; the standard deviation of its data where not given.

    Constants that are bounded to be positive move as logarithms, the others in units of their start value.
    Raises DataError where there is nothing to fit, InputError where a start value lies outside its bounds.
    """
    integrator = Integrator(system, options.rtol)
    integrator.max_calls, integrator.deadline = options.max_rhs_calls, time.perf_counter() + options.max_seconds
    problem = _Problem(system, trajectories, u0, scale, options, integrator)
    success, message = _minimise(problem, problem.starting_point())
    random = np.random.default_rng(options.seed)
    for _ in range(1, options.starts):
        before = problem.best_cost
        outcome = _minimise(problem, problem.starting_point(random))
        success, message = outcome if problem.best_cost < before else (success, message)
    if options.horizons and problem.best_cost > _POOR * max(problem.n_observations, 1) and not problem.spent():
        before = problem.best_cost
        outcome = _minimise(problem, _grown(problem))
        success, message = outcome if problem.best_cost < before else (success, message)
    return problem.result(success and bool(np.isfinite(problem.best_cost)), message)


def _minimise(problem: _Problem, start: Array) -> tuple[bool, str]:
    problem.reached = False
    try:
        result = least_squares(
            problem.residual,
            start,
            jac=problem.jacobian,
            bounds=problem.bounds,
            ftol=1e-10,
            xtol=1e-10,
            gtol=1e-12,
            max_nfev=problem.options.max_iterations,
        )
    except _BudgetSpent:
        return False, f"stopped after {problem.integrator.calls} right-hand-side calls: budget spent"
    except _Nowhere:
        return False, "the solution from the start values does not exist over the observed times"
    return bool(result.status > 0), str(result.message)


def _grown(problem: _Problem) -> Array:
    """A start found on growing stretches of the data: over a short one, few formulas blow up or lose the phase."""
    values, u0 = problem.all_values(problem.start), problem.u0
    for share in problem.options.horizons:
        short = [
            Trajectory(
                own.t[: max(3, int(np.ceil(share * len(own.t))))], own.u[: max(3, int(np.ceil(share * len(own.t))))]
            )
            for own in problem.trajectories
        ]
        started = {name: replace(constant, start=values[name]) for name, constant in problem.system.parameters.items()}
        stage = _Problem(
            replace(problem.system, parameters=started), short, u0, problem.scale, problem.options, problem.integrator
        )
        _minimise(stage, stage.starting_point())
        if np.isfinite(stage.best_cost):
            fitted, _, u0 = stage.decode(stage.best_theta)
            values = stage.all_values(fitted)
    return problem.inside(problem.encode(np.array([values[name] for name in problem.names]), u0))


class _Nowhere(Exception):
    """The start values have no solution, so least squares has nowhere to begin."""


class _Problem:
    """Residuals and Jacobian of one fit in its scaled unknowns; remembers the best point seen."""

    def __init__(
        self,
        system: ClosedForm,
        trajectories: Sequence[Trajectory],
        u0: Array | None,
        scale: Array | None,
        options: FitOptions,
        integrator: Integrator,
    ) -> None:
        self.integrator = integrator
        self.positive = np.array([state in system.positive for state in system.states])
        self.system, self.trajectories, self.options = system, list(trajectories), options
        _check(system, self.trajectories)
        self.masks = [np.isfinite(trajectory.u) for trajectory in self.trajectories]
        self.n_observations = int(sum(mask.sum() for mask in self.masks))
        self.scale = state_scale(self.trajectories) if scale is None else np.asarray(scale, dtype=np.float64)
        first = np.stack([_first_observed(trajectory, self.scale) for trajectory in self.trajectories])
        self.u0 = first if u0 is None else np.array(u0, dtype=np.float64).reshape(first.shape)
        self.names = system.fitted
        self._prepare_constants()
        self.best_cost, self.best_theta, self.reached = np.inf, self.encode(self.start, self.u0), False
        self.best_residual: Array | None = None
        self._cached: tuple[Array, Array, Array] | None = None

    def _prepare_constants(self) -> None:
        constants = [self.system.parameters[name] for name in self.names]
        self.start = np.array([constant.start for constant in constants], dtype=np.float64)
        lower, upper = (
            np.array([getattr(c, side) for c in constants], dtype=np.float64) for side in ("lower", "upper")
        )
        for name, value, low, high in zip(self.names, self.start, lower, upper, strict=True):
            if not low <= value <= high or not np.isfinite(value):
                raise InputError(f"start value of {name}", expected=f"within {low:g} to {high:g}", got=f"{value:g}")
        self.logarithmic = (lower >= 0) & (self.start > 0)
        self.unit = np.where(self.start != 0, np.abs(self.start), 1.0)
        with np.errstate(divide="ignore"):
            low = np.where(self.logarithmic, np.log(np.maximum(lower, 0.0) / self.unit), lower / self.unit)
            high = np.where(self.logarithmic, np.log(np.maximum(upper, 0.0) / self.unit), upper / self.unit)
        least = np.where(self.positive, 0.0, -np.inf)
        start_low = np.tile(least, len(self.u0)) if self.options.fit_u0 else np.empty(0)
        self.bounds = (np.append(low, start_low), np.append(high, np.full(len(start_low), np.inf)))

    def encode(self, values: Array, u0: Array) -> Array:
        with np.errstate(all="ignore"):
            theta = np.where(self.logarithmic, np.log(values / self.unit), values / self.unit)
        return np.append(theta, (u0 / self.scale).ravel()) if self.options.fit_u0 else theta

    def decode(self, theta: Array) -> tuple[Array, Array, Array]:
        """Constants, their derivative by theta, and initial states."""
        own = theta[: len(self.names)]
        with np.errstate(over="ignore"):
            grown = self.unit * np.exp(np.where(self.logarithmic, own, 0.0))
        values = np.where(self.logarithmic, grown, self.unit * own)
        slope = np.where(self.logarithmic, values, self.unit)
        u0 = theta[len(self.names) :].reshape(self.u0.shape) * self.scale if self.options.fit_u0 else self.u0
        return values, slope, u0

    def starting_point(self, random: np.random.Generator | None = None) -> Array:
        """The given start, or one whose constants have been multiplied by random factors."""
        if random is None:
            return self.inside(self.encode(self.start, self.u0))
        moved = self.start * np.exp(self.options.spread * random.standard_normal(len(self.start)))
        low = np.array([self.system.parameters[name].lower for name in self.names])
        high = np.array([self.system.parameters[name].upper for name in self.names])
        return self.inside(self.encode(np.clip(moved, low, high), self.u0))

    def inside(self, theta: Array) -> Array:
        """trf needs a start strictly inside finite bounds."""
        return np.clip(theta, self.bounds[0] + 1e-9, self.bounds[1] - 1e-9)

    def all_values(self, fitted: Array) -> dict[str, float]:
        values = {name: constant.start for name, constant in self.system.parameters.items()}
        values.update({name: float(value) for name, value in zip(self.names, fitted, strict=True)})
        return values

    def spent(self) -> bool:
        return self.integrator.calls >= self.options.max_rhs_calls or time.perf_counter() > self.integrator.deadline

    def residual(self, theta: Array) -> Array:
        self.evaluate(theta)
        cached = self._cached
        if cached is None or not np.array_equal(cached[0], theta):
            if not self.reached:
                raise _Nowhere
            return np.full(self.n_observations, np.inf)  # trf shrinks its step on a residual that is not finite
        return cached[1]

    def jacobian(self, theta: Array) -> Array:
        self.evaluate(theta)
        if self._cached is None:
            raise _Nowhere
        return self._cached[2]

    def evaluate(self, theta: Array) -> None:
        """Residuals and Jacobian at theta, kept until the next theta that has them."""
        if self._cached is not None and np.array_equal(self._cached[0], theta):
            return
        if self.spent():
            raise _BudgetSpent
        values, slope, u0 = self.decode(theta)
        named, states, fitted = self.all_values(values), len(self.system.states), len(self.names)
        units = np.concatenate([np.maximum(np.abs(slope), 1e-300), self.scale])
        residuals, rows = [], []
        for index, (trajectory, mask) in enumerate(zip(self.trajectories, self.masks, strict=True)):
            found = self.integrator.sensitivities(trajectory.t, u0[index], named, self.scale, units)
            if found is None:
                return
            if np.any(found[0][:, self.positive] <= 0.0):
                return
            residuals.append(((found[0] - trajectory.u) / self.scale)[mask])
            jacobian = np.zeros((*found[0].shape, len(theta)))
            jacobian[..., :fitted] = found[1][..., :fitted] * slope / self.scale[:, None]
            if self.options.fit_u0:
                place = fitted + index * states
                jacobian[..., place : place + states] = found[1][..., fitted:] * self.scale / self.scale[:, None]
            rows.append(jacobian[mask])
        residual, jacobian = np.concatenate(residuals), np.concatenate(rows)
        # A solution a million deviations off is as good as none, and its square would overflow in the optimiser.
        if max(np.abs(residual).max(initial=0.0), np.abs(jacobian).max(initial=0.0)) < _OFF:
            cost = float(residual @ residual)
        else:
            return
        self.reached, self._cached = True, (np.array(theta), residual, jacobian)
        if cost < self.best_cost:
            self.best_cost, self.best_theta, self.best_residual = cost, np.array(theta), residual

    def result(self, success: bool, message: str) -> EmbeddedFit:
        values, _, u0 = self.decode(self.best_theta)
        named = self.all_values(values)
        per_state = dict.fromkeys(self.system.states, float("inf"))
        if self.best_residual is not None:
            owner = np.concatenate([np.nonzero(mask)[1] for mask in self.masks])  # the state of each residual
            total = np.bincount(owner, weights=self.best_residual**2, minlength=len(per_state))
            per_state = {state: float(value) for state, value in zip(self.system.states, total, strict=True)}
        return EmbeddedFit(
            named, u0, self.best_cost, self.n_observations, per_state, success, self.integrator.calls, message
        )


def simulate(
    integrator: Integrator, trajectories: Sequence[Trajectory], u0: Array, values: Mapping[str, float], scale: Array
) -> list[Array | None]:
    """The system's states at the times of each trajectory, from u0 (trajectory, state); None where it blows up."""
    found: list[Array | None] = []
    for index, trajectory in enumerate(trajectories):
        try:
            found.append(integrator.solve(trajectory.t, u0[index], values, scale))
        except _BudgetSpent:
            found.append(None)
    return found


def state_scale(trajectories: Sequence[Trajectory]) -> Array:
    """Standard deviation of each state's data over all trajectories; its size, or 1, where it does not vary."""
    data = np.concatenate([trajectory.u for trajectory in trajectories])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a state that was never observed
        deviation, size = np.nanstd(data, axis=0), np.nanmax(np.abs(data), axis=0)
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    return np.where(np.isfinite(deviation) & (deviation > 1e-12 * size), deviation, size)


def _first_observed(trajectory: Trajectory, scale: Array) -> Array:
    first = []
    for index in range(trajectory.u.shape[1]):
        seen = trajectory.u[np.isfinite(trajectory.u[:, index]), index]
        first.append(seen[0] if len(seen) else scale[index])
    return np.array(first)


def _check(system: ClosedForm, trajectories: Sequence[Trajectory]) -> None:
    if not trajectories:
        raise DataError("no trajectories to fit", expected="at least one")
    for index, trajectory in enumerate(trajectories):
        if not len(trajectory.t):
            raise DataError(f"trajectory {index} is empty", fix="Leave it out.")
        if trajectory.u.shape[1] != len(system.states):
            raise DataError(
                f"trajectory {index}",
                expected=f"{len(system.states)} columns ({', '.join(system.states)})",
                got=str(trajectory.u.shape[1]),
            )
    if not any(np.any(np.isfinite(trajectory.u)) for trajectory in trajectories):
        raise DataError("nothing was observed", expected="at least one finite number in the trajectories")
