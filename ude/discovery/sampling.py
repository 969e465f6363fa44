"""What each network did along the fitted trajectories, as samples for a search; and the system that it stands in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import sympy as sp
import torch
from sympy.core.function import AppliedUndef

from ude.discovery.embedding import Constant, Trajectory
from ude.discovery.regressor import Array, Samples, evaluate
from ude.discovery.selection import OpenSystem
from ude.errors import ModelError
from ude.models import UDE
from ude.models.expression import TIME
from ude.training.data import Dataset
from ude.training.inputs import restored
from ude.training.result import Fit


def sample_terms(fit: Fit, total: int = 300) -> dict[str, Samples]:
    """Samples of every unknown function that is still a network, in natural units, along the fitted trajectories.

    fit: a fit of a `UDE`. total: about how many samples of each function.

    Every interval between two training observations gets the same number of samples, so that samples are dense where
    data are. A function that is called with several lists of arguments is sampled at all of them, and then has no
    nuisance columns (see `gauge_directions`). Raises ModelError for a model without equations or without networks.
    """
    model = equations_of(fit)
    u, t = trajectory_points(fit, total)
    with torch.no_grad():
        calls = model.record_calls(torch.as_tensor(u), None, torch.as_tensor(t))
    where: dict[str, Array | float] = {**model.values(), TIME: t}
    where.update({state: u[:, index] for index, state in enumerate(model.states)})
    samples = {}
    for name in model.unknown_outputs:
        inputs = {
            key: np.concatenate([np.broadcast_to(call.inputs[key].numpy(), t.shape) for call in calls[name]])
            for key in calls[name][0].inputs
        }
        output = np.concatenate([np.broadcast_to(call.output.numpy(), t.shape) for call in calls[name]])
        columns = []
        if len(calls[name]) == 1:
            # A direction through another unknown function cannot be evaluated, and is no free one either.
            known = [d for d in gauge_directions(model, name) if not d.atoms(AppliedUndef)]
            columns = [np.broadcast_to(evaluate(direction, where), t.shape) for direction in known]
        usable = [column for column in columns if np.all(np.isfinite(column))]
        samples[name] = Samples(inputs, output, name, np.stack(usable, axis=1) if usable else np.empty((0, 0)))
    return samples


def gauge_directions(model: UDE, name: str) -> list[sp.Expr]:
    """What free parameters can add to an unknown function without any trace in the right-hand side.

    With the call ``U = name(...)`` standing in the equations with coefficients ``A_s = d f_s/d U`` and a fitted
    parameter theta with ``G_s = d f_s/d theta``, a change of theta is undone by a change of U where
    ``A_s dU + G_s dtheta = 0`` for every state s: so ``G_s/A_s`` must be the same for all s, and G_s zero where A_s is.
    Only parameters that stand linearly count, as only then the direction holds for changes of any size.
    """
    equations = model.explicit(values=False)
    [call, *others] = {
        node for rate in equations.values() for node in rate.atoms(AppliedUndef) if str(node.func) == name
    }
    if others:
        return []
    stand_in = sp.Dummy("U")
    rates = [rate.xreplace({call: stand_in}) for rate in equations.values()]
    coefficients = [sp.diff(rate, stand_in) for rate in rates]
    if any(coefficient.has(stand_in) for coefficient in coefficients):
        return []
    directions = []
    for parameter, entry in model.parameters_table.items():
        slopes = [sp.diff(rate, sp.Symbol(parameter)) for rate in rates]
        linear = not any(slope.has(sp.Symbol(parameter)) or slope.has(stand_in) for slope in slopes)
        if not entry.fitted or not linear or all(slope == 0 for slope in slopes):
            continue
        ratios = [sp.simplify(g / c) for g, c in zip(slopes, coefficients, strict=True) if c != 0]
        alone = any(g != 0 and c == 0 for g, c in zip(slopes, coefficients, strict=True))
        if not alone and all(sp.simplify(ratio - ratios[0]) == 0 for ratio in ratios):
            directions.append(ratios[0])
    return directions


def trajectory_points(fit: Fit, total: int) -> tuple[Array, Array]:
    """States (N, state) and times (N,) along the simulated training trajectories, equally many in every interval."""
    intervals = sum(len(trajectory) - 1 for trajectory in fit.train.trajectories)
    each = max(2, int(np.ceil(total / max(intervals, 1))))
    states, times = [], []
    for index, trajectory in enumerate(fit.train.trajectories):
        steps = np.diff(trajectory.t)[:, None] * np.arange(each) / each
        t = np.append((trajectory.t[:-1, None] + steps).ravel(), trajectory.t[-1])
        only = replace(fit.train, trajectories=(trajectory,))
        alone = replace(fit, data=only, train=only, held_out=None, u0=fit.u0[index : index + 1])
        states.append(alone.predict(t)[0])
        times.append(t)
    return np.concatenate(states), np.concatenate(times)


def open_system(fit: Fit) -> OpenSystem:
    """The fit's equations with its networks still unknown, and its parameters as they were fitted.

    Raises ModelError for a model without equations or without networks.
    """
    model = equations_of(fit)
    equations = model.explicit(values=False)
    parameters = {}
    values = model.values()
    for name, entry in model.parameters_table.items():
        low = -np.inf if entry.lower is None else entry.lower
        high = np.inf if entry.upper is None else entry.upper
        parameters[name] = Constant(values[name], low, high, entry.fitted)
    calls = {name: model.provider(name).inputs for name in model.unknown_outputs}
    positive = tuple(state for state, flag in zip(model.states, fit.positive, strict=True) if flag)
    return OpenSystem(model.states, equations, calls, parameters, TIME, positive)


def observed(fit: Fit, data: Dataset) -> list[Trajectory]:
    """The trajectories of a data set as plain arrays, a column for each state; NaN where a state was not measured."""
    own = data.select(fit.measurement.names)
    places = [fit.measurement.column_of.get(state, -1) for state in fit.model.states]
    return [Trajectory(tr.t, np.where(np.array(places) < 0, np.nan, tr.u[:, places])) for tr in own.trajectories]


def equations_of(fit: Fit) -> UDE:
    """The fitted model where it can be searched. Raises ModelError where it has no equations, or no networks."""
    model = fit.model
    if not isinstance(model, UDE):
        raise ModelError(
            "discover needs a model with equations",
            expected="ude.UDE or ude.NeuralODE",
            got=type(model).__name__,
            fix="Write the known part as equations: ude.UDE('dx/dt = a*x - U1(x, y)', ...).",
        )
    own = restored(model, fit.data, fit.per_trajectory).names
    if own:
        raise ModelError(
            "discover needs one set of parameters for all trajectories",
            got=f"{', '.join(own)} different in each",
            fix="Leave conditions, covariates and per_trajectory out.",
        )
    if fit.measurement.formulas:
        raise ModelError(
            "discover needs states that were measured themselves",
            expected="columns that are states, or states that nobody measured",
            got=f"formulas for {', '.join(fit.measurement.formulas)}",
        )
    if not model.unknown_outputs:
        raise ModelError("the model has no network left to replace", fix="Fit a model with an unknown function.")
    return model
