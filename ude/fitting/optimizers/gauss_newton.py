"""Gauss-Newton steps on networks and parameters together, while the data choose the noise and the prior's strength."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ude.errors import InputError
from ude.fitting.optimizers.optimizers import Objective, OnIteration, Optimizer, lbfgs
from ude.fitting.posterior.posterior import Linearized, Posterior, Quadratic, Residuals, energy, renewed
from ude.vocabulary import OF_OPTIMIZER, named_arguments

Array = npt.NDArray[np.float64]

_FIRST_DAMPING, _SMALL_DAMPING, _LEAST_DAMPING = 1e-2, 1e-5, 1e-8
_TRIALS = 12
# How far ahead a step is looked along, and how much it may bend, of its length.
_AHEAD, _MOST_TURN = 0.1, 0.75
_RESCUE = 60  # L-BFGS iterations
# The scales are renewed once E falls by less than this part of it in a step.
_SETTLED = 0.05
# What counts as no change of E, in nats and relative, and of γ.
_NO_STEP, _NO_FALL, _NO_CHANGE = 0.02, 1e-3, 0.02


@named_arguments(OF_OPTIMIZER)
@dataclass(frozen=True)
class GaussNewton(Optimizer):
    """Levenberg and Marquardt's steps on the posterior of a shooting stage (`ude.fitting.posterior`): tens of steps
    where L-BFGS takes hundreds, and the smoothness of the networks is estimated along with them.

    adapt: False keeps the noise and the strength of the prior as they are

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> stages = [ude.stages.SingleShooting((ude.optimizers.GaussNewton(iterations=20),))]
    >>> fit = ude.fit(model, data, stages=stages, holdout=0, progress=False)
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    iterations: int = 40
    adapt: bool = True

    def minimize(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        posterior = objective.posterior
        if posterior is None:
            raise InputError("GaussNewton needs a shooting stage", fix="Use LBFGS() or Adam() for this one.")
        adapt = self.adapt and not posterior.scales.fixed and posterior.slack <= 1.0
        try:
            if not _run(objective, posterior, self.iterations, adapt, on_iteration):
                # no step can be taken from where a simulation breaks down: first to where none does
                lbfgs(objective, _RESCUE, stall=stall, on_iteration=on_iteration)
                _run(objective, posterior, self.iterations, adapt, on_iteration)
        finally:
            objective.assign(objective.best_point)
            objective.damping = math.nan
        return objective.best


def _run(objective: Objective, posterior: Posterior, iterations: int, adapt: bool, on_iteration: OnIteration) -> bool:
    """Whether any iteration could be made."""
    state, known = _State.start(objective.best_point, posterior), _Known(objective, posterior)
    for made in range(iterations):

        def compute(state: _State = state) -> Array:
            return _iterate(known, state, adapt).packed()

        state = _State.unpacked(objective.record(compute), posterior)
        objective.evaluations += int(state.trials)
        if not np.isfinite(state.energy):
            return made > 0
        posterior.scales.assign(state.scales)
        objective.best, objective.best_point = state.loss, state.x.copy()
        objective.damping = state.damping
        on_iteration(state.loss)
        if state.done:
            break
    return True


@dataclass(frozen=True, eq=False)
class _State:
    """Where the iteration stands: all of it is recorded, so that a fit that goes on takes the same way."""

    energy: float
    loss: float
    damping: float
    gamma: float
    trials: float
    done: float
    settled: float
    scales: Array
    x: Array

    @classmethod
    def start(cls, x: Array, posterior: Posterior) -> _State:
        return cls(np.inf, np.inf, _FIRST_DAMPING, 0.0, 0.0, 0.0, 0.0, posterior.scales.numbers(), x)

    def packed(self) -> Array:
        head = [self.energy, self.loss, self.damping, self.gamma, self.trials, self.done, self.settled]
        return np.concatenate([head, self.scales, self.x])

    @classmethod
    def unpacked(cls, packed: Array, posterior: Posterior) -> _State:
        number = len(posterior.scales.numbers())
        energy, loss, damping, gamma, trials, done, settled = map(float, packed[:7])
        scales, x = packed[7 : 7 + number].copy(), packed[7 + number :].copy()
        return cls(energy, loss, damping, gamma, trials, done, settled, scales, x)


@dataclass(eq=False)
class _Known:
    """The residuals, of which those of the last point are remembered: where a step ends, the next one begins.

    What is remembered counts as work all the same, so that a fit that goes on, and remembers nothing, counts as much.
    """

    objective: Objective
    posterior: Posterior
    x: Array | None = None
    found: Residuals | None = None
    work: tuple[int, ...] = ()

    def residuals(self, x: Array) -> Residuals | None:
        """At x, at which the tensors are left; None where a simulation broke down."""
        meter = self.posterior.shooting.meter
        self.objective.assign(x)
        if self.x is not None and np.array_equal(x, self.x):
            if meter is not None:
                meter.count(*self.work)
            return self.found
        before = meter.counts if meter is not None else ()
        self.found = self.posterior.residuals()
        after = meter.counts if meter is not None else ()
        self.x, self.work = x.copy(), tuple(b - a for a, b in zip(before, after, strict=True))
        return self.found


def _iterate(known: _Known, state: _State, adapt: bool) -> _State:
    """One step from state.x, with new scales first where the last step changed little."""
    posterior, x = known.posterior, state.x
    scales, residuals = posterior.scales, known.residuals(x)
    lin = None if residuals is None else posterior.linearized(residuals)
    if lin is None:
        return _State(np.nan, np.nan, state.damping, 0.0, 1.0, 1.0, 0.0, state.scales, x)
    gamma = state.gamma
    if adapt and state.settled:
        gamma = renewed(posterior, lin, x)
    here = _Here.of(known, lin, x)
    damping, trials = state.damping, 1
    for _ in range(_TRIALS):
        step, solves = here.step(damping)
        value, loss = here.value(x + step)
        trials += solves + 1
        if value < here.energy:
            break
        damping *= 4.0
    else:
        _, loss = here.value(x)
        # nothing better is near: the end, unless the scales have still to be chosen
        stuck = 1.0 if state.settled or not adapt else 0.0
        return _State(here.energy, loss, _FIRST_DAMPING, gamma, trials, stuck, 1.0, scales.numbers(), x)
    fall = here.energy - value
    noise = scales.sigma / state.scales[len(scales.alphas) :][: len(scales.sigma)]
    unchanged = abs(gamma - state.gamma) < _NO_CHANGE * gamma and bool((np.abs(np.log(noise)) < _NO_CHANGE).all())
    same = not adapt or (bool(state.settled) and unchanged)
    settled = 1.0 if fall < _SETTLED * here.energy else 0.0
    # a step that damping keeps short falls little, wherever it is
    longest = damping > state.damping or damping <= _SMALL_DAMPING
    done = 1.0 if fall < _NO_STEP + _NO_FALL * value and same and longest else 0.0
    if damping == state.damping:  # else a smaller one has just failed
        damping = max(damping / 8.0, _LEAST_DAMPING)
    return _State(value, loss, damping, gamma, trials, done, settled, scales.numbers(), x + step)


@dataclass(frozen=True, eq=False)
class _Here:
    """E around x, with the scales as they are."""

    known: _Known
    whitener: Array
    quadratic: Quadratic
    x: Array
    energy: float

    @classmethod
    def of(cls, known: _Known, lin: Linearized, x: Array) -> _Here:
        whitener = known.posterior.whitener()
        quadratic = Quadratic.of(lin, known.posterior, whitener)
        return cls(known, whitener, quadratic, x, energy(quadratic.r, x, quadratic.precision))

    def step(self, damping: float) -> tuple[Array, int]:
        """Levenberg's and Marquardt's, bent as the residuals are along it; and how many simulations that took.

        Functions are held to their prior much more tightly than weights are: valleys of E are narrow and curved, and
        straight steps along them short. Geodesic acceleration: Transtrum & Sethna, arXiv:1201.5885.
        """
        q = self.quadratic
        solve = q.solver(damping)
        step = solve(q.jacobian.T @ q.r + q.precision * self.x)
        ahead = self._residuals(self.x + _AHEAD * step)
        if ahead is None:
            return step, 1
        bend = 2.0 / _AHEAD * ((ahead[0] - q.r) / _AHEAD - q.jacobian @ step)
        turn = 0.5 * solve(q.jacobian.T @ bend)
        size, most = q.length(turn), _MOST_TURN * q.length(step)
        return step + turn * min(1.0, most / max(size, 1e-300)), 1

    def value(self, x: Array) -> tuple[float, float]:
        """E at x and the mean square over the scales of the data; infinite where a simulation breaks down."""
        found = self._residuals(x)
        if found is None:
            return np.inf, np.inf
        return energy(found[0], x, self.quadratic.precision), found[1]

    def _residuals(self, x: Array) -> tuple[Array, float] | None:
        """r of E, and the loss."""
        found, posterior = self.known.residuals(x), self.known.posterior
        if found is None:
            return None
        scaled = found.data / posterior.shooting.scale.numpy()[found.column]
        loss = float(np.mean(scaled**2)) + 0.5 * posterior.unit * float(found.other @ found.other)
        return found.whitened(posterior.scales, self.whitener), loss
