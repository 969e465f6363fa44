"""Gauss-Newton steps on networks and parameters together, while the data choose the noise and the prior's strength."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ude.errors import InputError
from ude.training.optimisers import Objective, OnIteration, Optimiser, lbfgs
from ude.training.posterior import Posterior, Quadratic, energy, precision, renewed

Array = npt.NDArray[np.float64]

_FIRST_DAMPING, _LEAST_DAMPING = 1e-2, 1e-8
_TRIALS = 12
_RESCUE = 60  # L-BFGS iterations
# The scales are renewed once E falls by less than this part of it in a step.
_SETTLED = 0.2
# What counts as no change of E, in nats and relative, and of γ.
_NO_STEP, _NO_FALL, _NO_CHANGE = 0.02, 1e-3, 0.02


@dataclass(frozen=True)
class GaussNewton(Optimiser):
    """Levenberg and Marquardt's steps on the posterior of a shooting stage (`ude.training.posterior`): tens of steps
    where L-BFGS takes hundreds, and the smoothness of the networks is estimated along with them.

    adapt: False keeps the noise and the strength of the prior as they are

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> stages = [ude.SingleShooting((ude.GaussNewton(iterations=20),))]
    >>> fit = ude.fit(model, data, stages=stages, holdout=0, progress=False)
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    iterations: int = 40
    adapt: bool = True

    def minimise(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        posterior = objective.posterior
        if posterior is None:
            raise InputError("GaussNewton needs a shooting stage", fix="Use LBFGS() or Adam() for this one.")
        adapt = self.adapt and not posterior.scales.fixed
        try:
            if not _run(objective, posterior, self.iterations, adapt, on_iteration):
                # no step can be taken from where a simulation breaks down: first to where none does
                lbfgs(objective, _RESCUE, stall=stall, on_iteration=on_iteration)
                _run(objective, posterior, self.iterations, adapt, on_iteration)
        finally:
            objective.assign(objective.best_point)
        return objective.best


def _run(objective: Objective, posterior: Posterior, iterations: int, adapt: bool, on_iteration: OnIteration) -> bool:
    """Whether any iteration could be made."""
    state = _State.start(objective.best_point, posterior)
    for made in range(iterations):

        def compute(state: _State = state) -> Array:
            return _iterate(objective, posterior, state, adapt).packed()

        state = _State.unpacked(objective.record(compute), posterior)
        objective.evaluations += int(state.trials)
        if not np.isfinite(state.energy):
            return made > 0
        posterior.scales.assign(state.scales)
        objective.best, objective.best_point = state.loss, state.x.copy()
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


def _iterate(objective: Objective, posterior: Posterior, state: _State, adapt: bool) -> _State:
    """One step from state.x, with new scales first where the last step changed little."""
    scales, x = posterior.scales, state.x
    objective.assign(x)
    lin = posterior.linearised()
    if lin is None:
        return _State(np.nan, np.nan, state.damping, 0.0, 1.0, 1.0, 0.0, state.scales, x)
    gamma = state.gamma
    if adapt and state.settled:
        gamma = renewed(posterior, lin, x)
    whitener = posterior.functions.whitener(scales.functions)
    quadratic = Quadratic.of(lin, posterior, whitener)
    now = energy(quadratic.r, x, quadratic.precision)
    damping, trials = state.damping, 1
    for _ in range(_TRIALS):
        trials += 1
        step = quadratic.step(x, damping)
        value, loss = _value(objective, posterior, whitener, x + step)
        if value < now:
            break
        damping *= 4.0
    else:
        _, loss = _value(objective, posterior, whitener, x)
        # nothing better is near: the end, unless the scales have still to be chosen
        stuck = 1.0 if state.settled or not adapt else 0.0
        return _State(now, loss, _FIRST_DAMPING, gamma, trials, stuck, 1.0, scales.numbers(), x)
    small = now - value < _NO_STEP + _NO_FALL * value
    same = not adapt or (bool(state.settled) and abs(gamma - state.gamma) < _NO_CHANGE * gamma)
    settled = 1.0 if state.settled or now - value < _SETTLED * now else 0.0
    done = 1.0 if small and same else 0.0
    if trials == 2:  # else a smaller one has just failed
        damping = max(damping / 4.0, _LEAST_DAMPING)
    return _State(value, loss, damping, gamma, trials, done, settled, scales.numbers(), x + step)


def _value(objective: Objective, posterior: Posterior, whitener: Array, x: Array) -> tuple[float, float]:
    """E at x and the mean square over the scales of the data; infinite where a simulation breaks down."""
    objective.assign(x)
    found = posterior.residuals()
    if found is None:
        return np.inf, np.inf
    scales, other = posterior.scales, found.other
    scaled = found.data / posterior.shooting.scale.numpy()[found.column]
    loss = float(np.mean(scaled**2)) + 0.5 * posterior.unit * float(other @ other)
    return energy(found.whitened(scales, whitener), x, precision(scales, posterior.group_of())), loss
