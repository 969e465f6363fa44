"""Closed-form systems fitted to observed trajectories: the step that decides between candidate formulas.

A candidate is put back into its differential equation, and its constants, the model's free parameters and the initial
states are refitted by least squares on what was observed (see `integration` for the solutions and their derivatives).
A formula that blows up is an expected visitor here: every fit has a budget of right-hand-side calls and of seconds, and
a trajectory that overflows or leaves the domain of a function has an infinite cost instead of an exception.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ude.discovery.refit.closed_system import Array, ClosedSystem, ObservedTrajectory, state_scale
from ude.discovery.refit.integration import BudgetSpent, ColumnFunctions, Integrator
from ude.discovery.refit.stabilized import residual_scale, stabilized, stabilized_data
from ude.errors import DataError, InputError


@dataclass(frozen=True)
class EmbeddedFit:
    """Least squares of a closed-form system on observed trajectories.

    values: every constant. u0: (trajectory, state), at each trajectory's first time.
    sse: sum over observed numbers of ((model - data) / scale of the column)^2, both `stabilized` where the system has a
        noise model; infinite where no solution was found.
    n_observations: how many numbers were observed. sse_per_state: the same sum column by column.
    success: whether the optimizer met a tolerance within its budget. rhs_calls: right-hand sides spent.
    residuals: (model - data) / scale (N,), with their derivatives ``jacobian`` (N, unknowns) by the unknowns of
        the fit: fitted constants, then initial states; both None where no solution was found.
    slopes: derivative of each fitted constant (natural units) by the fit's own coordinate; logarithmic: which of them
        move as logarithms.
    """

    values: dict[str, float]
    u0: Array
    sse: float
    n_observations: int
    sse_per_state: dict[str, float]
    success: bool
    rhs_calls: int
    message: str
    residuals: Array | None = None
    jacobian: Array | None = None
    slopes: Array | None = None
    logarithmic: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class RefitOptions:
    """How long and how finely `fit_closed_form` tries.

    max_rhs_calls, max_seconds (of the processor): budget of one fit, all its starts together.
    max_iterations: per start.
    rtol: relative tolerance of the integration; the absolute one is rtol/100 of each state's scale.
    fit_u0: whether initial states are fitted too, of all states or one answer a state.
    starts: how many starts; those after the first have their constants multiplied by exp(spread * N(0, 1)), drawn from
    ``seed``. horizons: shares of each trajectory, increasing, on which the fit is repeated one after the other when
    fitting the whole from the start values went badly; () for never.
    """

    max_rhs_calls: int = 200_000
    max_seconds: float = 10.0
    max_iterations: int = 60
    rtol: float = 1e-8
    fit_u0: bool | tuple[bool, ...] = True
    starts: int = 1
    spread: float = 0.3
    seed: int = 0
    horizons: tuple[float, ...] = (0.2, 0.4, 0.7)

    def free(self, states: int) -> list[int]:
        """The states whose start is fitted."""
        flags = [self.fit_u0] * states if isinstance(self.fit_u0, bool) else self.fit_u0
        return [i for i, flag in enumerate(flags) if flag]


# Mean square error in scaled units (1 is the variance of the data) above which a fit is tried again from short to long.
_POOR = 0.1

# Scaled residuals or sensitivities above which a solution counts as blown up.
_OFF = 1e9


def fit_closed_form(
    system: ClosedSystem,
    trajectories: Sequence[ObservedTrajectory],
    u0: Array | None = None,
    scale: Array | None = None,
    options: RefitOptions = RefitOptions(),
    state_scale: Array | None = None,
) -> EmbeddedFit:
    """Least squares of constants and initial states on observed trajectories (trust-region Levenberg-Marquardt).

    u0: starting initial states (trajectory, state); the first observations where not given.
    scale: the size of an error that counts as one, per column; `residual_scale` where not given.
    state_scale: the size of each state, for tolerances; that of its column where not given.

    Constants that are bounded to be positive move as logarithms, the others in units of their start value.
    Raises DataError where there is nothing to fit, InputError where a start value lies outside its bounds.
    """
    integrator = _within_budget(system, options)
    problem = _Problem(system, trajectories, u0, scale, options, integrator, state_scale)
    success, message = _minimize(problem, problem.starting_point())
    random = np.random.default_rng(options.seed)
    for _ in range(1, options.starts):
        before = problem.best_cost
        outcome = _minimize(problem, problem.starting_point(random))
        success, message = outcome if problem.best_cost < before else (success, message)
    if options.horizons and problem.best_cost > _POOR * max(problem.n_observations, 1) and not problem.spent():
        before = problem.best_cost
        outcome = _minimize(problem, _grown(problem))
        success, message = outcome if problem.best_cost < before else (success, message)
    return problem.result(success and bool(np.isfinite(problem.best_cost)), message)


def evaluate_closed_form(
    system: ClosedSystem,
    trajectories: Sequence[ObservedTrajectory],
    u0: Array,
    scale: Array,
    options: RefitOptions,
    state_scale: Array,
) -> EmbeddedFit:
    """Residuals and Jacobian of `fit_closed_form` at the start values, which stay as they are."""
    problem = _Problem(system, trajectories, u0, scale, options, _within_budget(system, options), state_scale)
    # without a budget the result says that nothing was found
    with suppress(BudgetSpent):
        problem.evaluate(problem.encode(problem.start, problem.u0))
    return problem.result(False, "evaluated where it was, not fitted")


def linearized(
    system: ClosedSystem,
    trajectories: Sequence[ObservedTrajectory],
    u0: Array,
    scale: Array,
    state_scale: Array,
    options: RefitOptions = RefitOptions(),
) -> Array | None:
    """Derivatives (N, fitted constants) of the residuals of `EmbeddedFit` by constants at their start values.

    u0: initial states (trajectory, state). scale, state_scale: as in `fit_closed_form`. None where there is no
    solution, or it takes more than the budget.
    """
    held = replace(options, fit_u0=False)
    problem = _Problem(system, trajectories, u0, scale, held, _within_budget(system, held), state_scale)
    try:
        problem.evaluate(problem.encode(problem.start, problem.u0))
    except BudgetSpent:
        return None
    return problem.best_jacobian


def _within_budget(system: ClosedSystem, options: RefitOptions) -> Integrator:
    integrator = Integrator(system, options.rtol, options.free(len(system.states)))
    integrator.max_calls, integrator.deadline = options.max_rhs_calls, time.thread_time() + options.max_seconds
    return integrator


def _minimize(problem: _Problem, start: Array) -> tuple[bool, str]:
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
    except BudgetSpent:
        return False, f"stopped after {problem.integrator.calls} right-hand-side calls: budget spent"
    except _Nowhere:
        return False, "the solution from the start values does not exist over the observed times"
    return bool(result.status > 0), str(result.message)


def _grown(problem: _Problem) -> Array:
    """A start found on growing stretches of the data: over a short one, few formulas blow up or lose the phase."""
    values, u0 = problem.all_values(problem.start), problem.u0
    for share in problem.options.horizons:
        short = [
            ObservedTrajectory(own.t[:kept], own.u[:kept], own.inputs)
            for own in problem.trajectories
            for kept in [max(3, int(np.ceil(share * len(own.t))))]
        ]
        started = {name: replace(constant, start=values[name]) for name, constant in problem.system.parameters.items()}
        stage = _Problem(
            replace(problem.system, parameters=started),
            short,
            u0,
            problem.scale,
            problem.options,
            problem.integrator,
            problem.state_scale,
        )
        _minimize(stage, stage.starting_point())
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
        system: ClosedSystem,
        trajectories: Sequence[ObservedTrajectory],
        u0: Array | None,
        scale: Array | None,
        options: RefitOptions,
        integrator: Integrator,
        state_size: Array | None = None,
    ) -> None:
        self.integrator, self.observer = integrator, ColumnFunctions(system)
        self.positive = np.array([state in system.positive for state in system.states])
        self.system, self.trajectories, self.options = system, list(trajectories), options
        _check(system, self.trajectories)
        self.masks = [np.isfinite(trajectory.u) for trajectory in self.trajectories]
        self.n_observations = int(sum(mask.sum() for mask in self.masks))
        natural = state_scale(self.trajectories)
        if scale is None:
            scale = residual_scale(system.noise, system.columns, self.trajectories)
        self.scale = np.asarray(scale, dtype=np.float64)
        self.targets = stabilized_data(system.noise, system.columns, self.trajectories)
        self.u0 = _starts(system, self.trajectories, u0, natural)
        if state_size is None:
            state_size = np.maximum(np.abs(self.u0).max(axis=0), 1e-300) if system.observables else natural
        self.state_scale = np.asarray(state_size, dtype=np.float64)
        self.names = system.fitted
        self.free = options.free(len(system.states))
        self._prepare_constants()
        self.best_cost, self.best_theta, self.reached = np.inf, self.encode(self.start, self.u0), False
        self.best_residual: Array | None = None
        self.best_jacobian: Array | None = None
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
        start_low = np.tile(least[self.free], len(self.u0))
        self.bounds = (np.append(low, start_low), np.append(high, np.full(len(start_low), np.inf)))

    def encode(self, values: Array, u0: Array) -> Array:
        with np.errstate(all="ignore"):
            theta = np.where(self.logarithmic, np.log(values / self.unit), values / self.unit)
        return np.append(theta, (u0 / self.state_scale)[:, self.free].ravel())

    def decode(self, theta: Array) -> tuple[Array, Array, Array]:
        """Constants, their derivative by theta, and initial states."""
        own = theta[: len(self.names)]
        with np.errstate(over="ignore"):
            grown = self.unit * np.exp(np.where(self.logarithmic, own, 0.0))
        values = np.where(self.logarithmic, grown, self.unit * own)
        slope = np.where(self.logarithmic, values, self.unit)
        u0 = self.u0.copy()
        u0[:, self.free] = theta[len(self.names) :].reshape(len(u0), len(self.free)) * self.state_scale[self.free]
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
        return self.integrator.calls >= self.options.max_rhs_calls or time.thread_time() > self.integrator.deadline

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
            raise BudgetSpent
        values, slope, u0 = self.decode(theta)
        named, free, fitted = self.all_values(values), len(self.free), len(self.names)
        sizes = self.state_scale[self.free]
        units = np.concatenate([np.maximum(np.abs(slope), 1e-300), sizes])
        residuals, rows = [], []
        for index, (trajectory, mask) in enumerate(zip(self.trajectories, self.masks, strict=True)):
            own = {**named, **trajectory.inputs}
            found = self.integrator.sensitivities(trajectory.t, u0[index], own, self.state_scale, units)
            if found is None or np.any(found[0][:, self.positive] <= 0.0):
                return
            columns, slopes = self.observer(trajectory.t, found[0], own, found[1])
            columns, steep = stabilized(self.system.noise, self.system.columns, columns)
            if slopes is None or not all(np.isfinite(part[mask]).all() for part in (columns, steep, slopes)):
                return
            residuals.append(((columns - self.targets[index].u) / self.scale)[mask])
            by_scale = (steep / self.scale)[..., None]
            jacobian = np.zeros((*columns.shape, len(theta)))
            jacobian[..., :fitted] = slopes[..., :fitted] * slope * by_scale
            place = fitted + index * free
            jacobian[..., place : place + free] = slopes[..., fitted:] * sizes * by_scale
            rows.append(jacobian[mask])
        residual, jacobian = np.concatenate(residuals), np.concatenate(rows)
        # A solution a million deviations off is as good as none, and its square would overflow in the optimizer.
        if max(np.abs(residual).max(initial=0.0), np.abs(jacobian).max(initial=0.0)) < _OFF:
            cost = float(residual @ residual)
        else:
            return
        self.reached, self._cached = True, (np.array(theta), residual, jacobian)
        if cost < self.best_cost:
            self.best_cost, self.best_theta = cost, np.array(theta)
            self.best_residual, self.best_jacobian = residual, jacobian

    def result(self, success: bool, message: str) -> EmbeddedFit:
        values, slopes, u0 = self.decode(self.best_theta)
        named = self.all_values(values)
        per_state = dict.fromkeys(self.system.columns, float("inf"))
        if self.best_residual is not None:
            owner = np.concatenate([np.nonzero(mask)[1] for mask in self.masks])  # the state of each residual
            total = np.bincount(owner, weights=self.best_residual**2, minlength=len(per_state))
            per_state = {state: float(value) for state, value in zip(self.system.columns, total, strict=True)}
        return EmbeddedFit(
            named,
            u0,
            self.best_cost,
            self.n_observations,
            per_state,
            success,
            self.integrator.calls,
            message,
            self.best_residual,
            self.best_jacobian,
            slopes,
            self.logarithmic,
        )


def _starts(system: ClosedSystem, trajectories: Sequence[ObservedTrajectory], u0: Array | None, scale: Array) -> Array:
    shape = len(trajectories), len(system.states)
    if u0 is not None:
        return np.array(u0, dtype=np.float64).reshape(shape)
    if system.observables:
        raise DataError("starts of the states are missing", expected=f"u0 of shape {shape}", got="observables alone")
    return np.stack([_first_observed(trajectory, scale) for trajectory in trajectories])


def _first_observed(trajectory: ObservedTrajectory, scale: Array) -> Array:
    first = []
    for index in range(trajectory.u.shape[1]):
        seen = trajectory.u[np.isfinite(trajectory.u[:, index]), index]
        first.append(seen[0] if len(seen) else scale[index])
    return np.array(first)


def _check(system: ClosedSystem, trajectories: Sequence[ObservedTrajectory]) -> None:
    if not trajectories:
        raise DataError("no trajectories to fit", expected="at least one")
    for index, trajectory in enumerate(trajectories):
        if not len(trajectory.t):
            raise DataError(f"trajectory {index} is empty", fix="Leave it out.")
        if trajectory.u.shape[1] != len(system.columns):
            raise DataError(
                f"trajectory {index}",
                expected=f"{len(system.columns)} columns ({', '.join(system.columns)})",
                got=str(trajectory.u.shape[1]),
            )
    if not any(np.any(np.isfinite(trajectory.u)) for trajectory in trajectories):
        raise DataError("nothing was observed", expected="at least one finite number in the trajectories")
