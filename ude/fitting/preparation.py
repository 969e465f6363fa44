"""What a fit does before its first stage: smooth the data, place points and starts, scale networks, choose a method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ude.fitting import starting_values as initialize
from ude.fitting.data.dataset import Dataset
from ude.fitting.objective.losses import Prior, network_weights
from ude.fitting.objective.noise import Likelihood
from ude.fitting.objective.penalties import Scene, bind_all
from ude.fitting.posterior.function_prior import FunctionPrior, FunctionPriors, function_priors
from ude.fitting.posterior.posterior import Scales, network_tensors
from ude.fitting.simulation.coordinates import Coordinates
from ude.fitting.simulation.hidden_states import HiddenStateMatching
from ude.fitting.simulation.initial_states import starting_values
from ude.fitting.simulation.shooting import Shooting, cut
from ude.fitting.simulation.stiffness import algorithm_for
from ude.fitting.smoothing.smooth import interpolate_rare, rarely_seen, smooth
from ude.fitting.smoothing.smooth_points import SmoothPoints
from ude.fitting.state import FitState, shooting_of
from ude.methods import Tsit5

# Weight of slopes that are hardly known.
_GUESS = 0.1

# How many times the residuals of a smooth the noise is at most: where fewer are left, the smooth went through the data.
_STRETCHED = 3.0


def prepare(state: FitState) -> None:
    setup, options = state.setup, state.options
    state.smoothing = smooth(state.train, state.positive_columns())
    if network_weights(state.model):
        state.smoothing = interpolate_rare(state.smoothing, state.train)
    state.noise = state.smoothing.noise
    first = np.stack([state.smoothing(i, tr.t[:1])[0][0] for i, tr in enumerate(state.train.trajectories)])
    starts = starting_values(setup.initial, state.spread_out(first))
    state.starts = state.field.coordinates.inner(state.initial.inside(torch.as_tensor(starts)))
    initialize.redraw_networks(state.model, setup.seed)
    points = SmoothPoints.along(state.train, state.smoothing)
    # columns and their rates, in logarithms where they are positive
    columns = Coordinates(state.positive_columns(), state.scale.numpy())
    unset = initialize.unset_parameters(state.model)
    rate = initialize.rate_of(columns.inner(points.u), columns.inner_rate(points.u, points.du))
    state.model.set_values(initialize.start_values(unset, rate))
    state.inputs.begin(state.model.values())
    if state.hidden:
        state.driven = HiddenStateMatching.along(
            state.field, state.hidden, state.train, state.smoothing, state.spread_out
        )
        rows = torch.arange(len(state.train)).repeat_interleave(state.driven.states.t.shape[1])
        points = SmoothPoints(*state.driven.points(state.starts, options.solver), rows)
    else:
        points = points.of(state.columns)
    state.points = points
    state.slope_weights = _slope_weights(state)
    if options.rescale:
        initialize.set_network_scales(state.model, points.u, points.du, points.t, state.overrides(points)())
    _choose_algorithm(state)
    relative = max(float(np.sqrt(np.mean((state.noise / state.scale.numpy()) ** 2))), 1e-3)
    observations = sum(state.train.counts().values())
    # N observations of noise ν: -log p of the data is N r²/2ν², which in the mean square r² is 2ν²/N a unit.
    unit = 2.0 * relative**2 / observations
    state.unit, state.nats = unit, unit * observations
    state.prior = Prior.of(state.model, relative, observations, options.weight_prior)
    state.functions = FunctionPriors(_function_priors(state))
    state.scales = Scales.of(
        network_tensors(state.model), state.noise, state.scale.numpy(), options.weight_prior, state.functions
    )
    state.known = bind_all(Scene(state.model, points.u, points.t, unit), setup.priors, setup.penalties)
    if setup.noise is not None:
        observed = torch.as_tensor(state.train.values())
        state.likelihood = Likelihood(setup.noise, observed, torch.isfinite(observed), state.noise.tolist())
        state.likelihood.estimate(_as_smoothed(state, observed), observed)
    if setup.whole is not None:
        state.validation = _validation_case(state, setup.whole)


def _as_smoothed(state: FitState, observed: Float[Tensor, "*trajectory point column"]) -> Tensor:
    """The smooth where there are data, as far from them as the noise is: a smooth follows it to some degree."""
    shown = np.concatenate([state.smoothing(i, tr.t)[0] for i, tr in enumerate(state.train.trajectories)])
    wrong = observed.numpy() - shown
    size = np.sqrt(np.nansum(wrong**2, axis=0) / np.maximum(np.isfinite(wrong).sum(axis=0), 1))
    stretch = np.clip(state.noise / np.maximum(size, 1e-300), 1.0, _STRETCHED)
    return torch.as_tensor(observed.numpy() - stretch * wrong)


def _function_priors(state: FitState) -> tuple[FunctionPrior, ...]:
    if state.options.prior != "functions" or not state.options.weight_prior:
        return ()
    points = state.points
    return function_priors(state.model, points.u, state.overrides(points)(), points.t)


def _slope_weights(state: FitState) -> Float[Tensor, " state"]:
    """How far the slopes of the smooth are to be matched: those of states that were seen much more rarely than
    others only as a first guess, as a smooth of a few points says little."""
    # A few parameters are held together by all equations; left out, those of one would move anywhere.
    often = ~rarely_seen(state.train) | (not network_weights(state.model))
    column_of = state.setup.measurement.column_of
    flags = [state not in column_of or bool(often[column_of[state]]) for state in state.model.states]
    return torch.where(torch.tensor(flags), 1.0, _GUESS).double()


def _choose_algorithm(state: FitState) -> None:
    """A method for all simulations of this fit, by the equations along the smoothed data."""
    if state.options.solver.algorithm is not None:
        return
    points = state.points
    longest = max(len(trajectory) for trajectory in state.train.trajectories)
    z = state.field.coordinates.inner(points.u)
    known = torch.isfinite(z).all(-1)
    algorithm = algorithm_for(state.field, z[known], points.t[known], points.trajectory[known], longest)
    if not isinstance(algorithm, Tsit5):
        state.notes.append(f"simulated by {algorithm.name}: the equations are stiff along the data")
    state.options = replace(state.options, solver=replace(state.options.solver, algorithm=algorithm))


def _validation_case(state: FitState, whole: Dataset) -> Shooting:
    windows = cut(whole)
    mask = windows.mask.clone()
    for row, trajectory in enumerate(state.train.trajectories):
        mask[row, : len(trajectory)] = False
    return replace(shooting_of(state, replace(windows, mask=mask)), likelihood=None)
