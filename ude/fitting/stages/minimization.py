"""What the stages of a fit share: shooting with window starts, hidden states, which optimizers serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ude.errors import InputError
from ude.fitting.objective.losses import network_weights
from ude.fitting.optimizers.gauss_newton import GaussNewton
from ude.fitting.optimizers.optimizers import LBFGS, Adam, LevenbergMarquardt, Objective, Optimizer
from ude.fitting.posterior.posterior import Posterior, WindowStarts, network_tensors
from ude.fitting.simulation.hidden_states import HiddenStateMatching
from ude.fitting.simulation.shooting import Shooting, Windows
from ude.fitting.stages.base import Stage
from ude.fitting.stages.stage_log import StageLog
from ude.fitting.state import FitState

# A Jacobian takes a reverse sweep through all simulations for each residual. 20 runs with 1000 numbers took minutes.
_FEW_RESIDUALS = 300

# Tolerance of Gauss-Newton's solves, which compare values of a function that should not be rough.
_SHARP = 1e-6

# A network that has far to go gets there faster if it is held loosely at first.
_FIRST_SLACK = 10.0


def default_optimizers(state: FitState, first: int, second: int, residuals: int) -> tuple[Optimizer, ...]:
    """Gauss-Newton steps with networks; least squares where there are few parameters and few squares; else Adam,
    then L-BFGS."""
    if residuals and network_weights(state.model) and state.likelihood is None:
        return (GaussNewton(state.options.gauss_newton_iterations),)
    if not network_weights(state.model) and state.likelihood is None and residuals <= _FEW_RESIDUALS:
        return (LevenbergMarquardt(first + second),)
    return (Adam(first), LBFGS(second))


def objective_of(
    state: FitState,
    loss: Callable[[], Tensor],
    more: Sequence[Tensor],
    *,
    residuals: Callable[[], Tensor] | None,
    batched: bool = False,
    posterior: Posterior | None = None,
) -> Objective:
    return Objective(
        loss,
        [*state.trainable, *more],
        residuals=residuals,
        record=state.log,
        decays=network_weights(state.model),
        floor=0.0 if state.likelihood is None else state.nats,
        batched=batched,
        posterior=posterior,
    )


def open_log(state: FitState, stage: Stage, optimizers: Sequence[Optimizer], rounds: int = 1) -> StageLog:
    total = rounds * sum(optimizer.iterations for optimizer in optimizers)
    return StageLog(state, stage, state.bar.stage(stage.name, total))


def smooth_starts(state: FitState, windows: Windows) -> Tensor:
    """The smoothed data at the start of each window, in inner coordinates."""
    if state.driven is not None:
        return state.driven.at(state.starts, windows.trajectory, windows.t[:, 0], state.options.solver)
    starts = [state.smoothing(int(i), windows.t[row, :1].numpy())[0][0] for row, i in enumerate(windows.trajectory)]
    return state.field.coordinates.inner(torch.as_tensor(state.spread_out(np.stack(starts))))


def _limited(state: FitState, shooting: Shooting, starts: Tensor) -> Shooting:
    (most,) = state.log(lambda: np.array([float(shooting.most_steps(starts))]))
    return replace(shooting, options=replace(shooting.options, maxiters=int(most)))


def match_hidden(state: FitState, stage: Stage, driven: HiddenStateMatching, optimizers: Sequence[Optimizer]) -> None:
    """Match the rates of the measured states, the others being simulated along."""
    offset = torch.zeros_like(state.starts, requires_grad=True)
    starts = state.starts

    def now() -> Tensor:
        return state.initial.place(starts, offset, state.spread)

    def loss() -> Tensor:
        return driven(now(), state.options.solver) + (state.known_residuals() ** 2).sum()

    state.starts_now = lambda: now().detach()
    try:
        with open_log(state, stage, optimizers) as log:
            log.minimize(objective_of(state, loss, [offset], residuals=None), optimizers)
    finally:
        state.starts_now = None
        state.starts = now().detach().clone()


def shoot(
    state: FitState,
    stage: Stage,
    rounds: Sequence[tuple[Shooting, float]],
    starts: Tensor,
    heads: Tensor,
    optimizers: Sequence[Optimizer],
) -> None:
    """Optimize model and window starts with one loss and continuity penalty after another; `heads`: each
    trajectory's first window, whose start is the trajectory's."""
    # Offsets in units of the spread: numbers near one, as the weights are.
    offset = torch.zeros_like(starts, requires_grad=True)
    # What is known of the first states stays, and so does what an earlier stage found of the hidden ones.
    kept = ~state.initial.free
    kept[:, state.hidden] = True
    begin = state.initial.inside(state.field.coordinates.natural(torch.where(kept, state.starts, starts[heads])))
    starts = starts.index_copy(0, heads, state.field.coordinates.inner(begin))
    place = WindowStarts(starts, heads, state.initial, state.spread)

    def now() -> Tensor:
        return place(offset)

    more = [offset] if state.free_starts or len(heads) < len(starts) else []
    posteriors = [
        _posterior(state, case, place, offset, bool(more), weight, slack)
        for (case, weight), slack in zip(rounds, _slacks(len(rounds)), strict=True)
    ]
    optimizers = _usable(state, stage, optimizers, posteriors)
    if any(isinstance(optimizer, LevenbergMarquardt | GaussNewton) for optimizer in optimizers):
        state.meter.hurry()  # a Jacobian takes many sweeps
    if state.likelihood is not None and state.likelihood.logs.numel():
        more.append(state.likelihood.logs)
    state.starts_now = lambda: now().detach()[heads]
    try:
        with open_log(state, stage, optimizers, len(rounds)) as log:
            last: Shooting | None = None
            for (shooting, continuity), posterior in zip(rounds, posteriors, strict=True):
                if shooting is not last:
                    last, limited = shooting, _limited(state, shooting, now().detach())

                def residuals(case: Shooting = limited, weight: float = continuity) -> Tensor:
                    return torch.cat([case.residuals(now(), weight), state.known_residuals()])

                def loss(case: Shooting = limited, weight: float = continuity) -> Tensor:
                    return case(now(), weight) + (state.known_residuals() ** 2).sum()

                squares = residuals if state.likelihood is None else None
                objective = objective_of(state, loss, more, residuals=squares, posterior=posterior)
                log.minimize(objective, optimizers)
    finally:
        state.starts_now = None
        state.starts = now().detach()[heads].clone()
        if any(isinstance(optimizer, GaussNewton) for optimizer in optimizers):
            state.keep_prior()


def _posterior(
    state: FitState,
    shooting: Shooting,
    place: WindowStarts,
    offset: Tensor,
    free: bool,
    continuity: float,
    slack: float,
) -> Posterior:
    options = shooting.options
    if options.tolerance is None:
        options = replace(options, tolerance=_SHARP)
    return Posterior(
        shooting=replace(shooting, options=options),
        starts=place,
        offset=offset,
        free_starts=free,
        parameters=state.trainable,
        groups=network_tensors(state.model),
        known=state.known,
        continuity=continuity,
        unit=state.unit,
        scales=state.scales,
        functions=state.functions,
        slack=slack,
    )


def _usable(
    state: FitState, stage: Stage, optimizers: Sequence[Optimizer], posteriors: Sequence[Posterior]
) -> Sequence[Optimizer]:
    """The optimizers, or those that serve where Gauss-Newton steps cannot be taken."""
    if not any(isinstance(optimizer, GaussNewton) for optimizer in optimizers):
        return optimizers
    reasons = [posterior.why_not() for posterior in posteriors]
    if state.likelihood is not None:
        reasons.insert(0, "noise models are given, whose scales it does not estimate")
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is None:
        return optimizers
    if stage.optimizers is not None:
        raise InputError(f"GaussNewton cannot be used: {reason}", fix="Use Adam() and LBFGS().")
    state.notes.append(f"{stage.name} by L-BFGS: {reason}")
    return (LBFGS(state.options.single_iterations[1]),)


def _slacks(rounds: int) -> list[float]:
    """How loosely networks are held to their prior in one round after another: in the end, as tightly as usual."""
    return [_FIRST_SLACK ** ((rounds - 1 - i) / max(rounds - 1, 1)) for i in range(rounds)]
