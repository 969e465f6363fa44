"""What each unknown function did along the trajectories, as samples for a search; and the system that it stands in.

There are two sources. The networks, along the trajectories of the fit: what they learned went through the equations, so
they make the most of few and noisy data. The smoothed data: where an unknown function stands alone in an equation,
``dx/dt = known + coefficient * U``, its values are ``(dx_smooth/dt - known) / coefficient``, without any training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import sympy as sp
import torch
from sympy.core.function import AppliedUndef

from ude.discovery.evaluation import Array, evaluate
from ude.discovery.refit.closed_system import Constant, Forcing, ObservedTrajectory
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.samples import Samples
from ude.errors import ModelError
from ude.fitting.data.dataset import Dataset
from ude.fitting.objective.noise import Gaussian, NoiseModel, StudentT
from ude.fitting.result import Fit
from ude.fitting.simulation.trajectory_inputs import restored
from ude.fitting.smoothing.smooth import smooth
from ude.models import UDE, Observation
from ude.models.equations.names import TIME
from ude.problems.interpolation import Interpolation, Kind


def sample_terms(fit: Fit, points: TrajectoryPoints) -> dict[str, Samples]:
    """Samples of every unknown function that is still a network, in natural units, along the fitted trajectories.

    fit: a fit of a `UDE`. points: along its trajectories.

    A function that is called with several lists of arguments is sampled at all of them, and then has no
    nuisance columns (see `gauge_directions`). Raises ModelError for a model without equations or without networks.
    """
    model = equations_of(fit)
    u, t = points.u, points.t
    own = {name: torch.as_tensor(values) for name, values in points.inputs.items()}
    with torch.no_grad():
        calls = model.record_calls(torch.as_tensor(u), own or None, torch.as_tensor(t))
    where = points.values(model)
    samples = {}
    for name in model.unknown_outputs:
        inputs = {
            key: np.concatenate([np.broadcast_to(call.inputs[key].numpy(), t.shape) for call in calls[name]])
            for key in calls[name][0].inputs
        }
        output = np.concatenate([np.broadcast_to(call.output.numpy(), t.shape) for call in calls[name]])
        columns = _nuisance(model, name, where, len(t)) if len(calls[name]) == 1 else np.empty((0, 0))
        samples[name] = Samples(inputs, output, name, columns)
    return samples


def _nuisance(model: UDE, name: str, where: Mapping[str, Array | float], size: int) -> Array:
    """What free parameters can take up of an unknown function (N, k), see `gauge_directions`."""
    # A direction through another unknown function cannot be evaluated, and is no free one either.
    known = [d for d in gauge_directions(model, name) if not d.atoms(AppliedUndef)]
    columns = [np.broadcast_to(evaluate(direction, where), size) for direction in known]
    usable = [column for column in columns if np.all(np.isfinite(column))]
    return np.stack(usable, axis=1) if usable else np.empty((0, 0))


def sample_smooth(fit: Fit, total: int = 300) -> tuple[dict[str, Samples], TrajectoryPoints] | None:
    """Samples of the unknown functions from the smoothed training data, and where; None where these do not give them.

    That needs every state measured, and every unknown function once in the equations, alone in its own and linear. The
    first and the last twentieth of each trajectory is left out, since derivatives are least certain there.
    """
    model = equations_of(fit)
    rates = _solved_for_unknowns(model)
    if rates is None or fit.measurement.unmeasured:
        return None
    own = fit.train.select([fit.measurement.names[fit.measurement.column_of[state]] for state in model.states])
    smoothing = smooth(own, fit.positive)
    states, slopes, times, owners = [], [], [], []
    for index, trajectory in enumerate(own.trajectories):
        span = trajectory.t[-1] - trajectory.t[0]
        t = _spread(trajectory.t, max(2, int(np.ceil(total / sum(len(tr) - 1 for tr in own.trajectories)))))
        t = t[(t >= trajectory.t[0] + 0.05 * span) & (t <= trajectory.t[-1] - 0.05 * span)]
        u, du = smoothing(index, t)
        states.append(u)
        slopes.append(du)
        times.append(t)
        owners.append(np.full(len(t), index))
    points = _points(fit, np.concatenate(states), np.concatenate(times), np.concatenate(owners))
    where, du = points.values(model), np.concatenate(slopes)
    where |= {f"d{state}": du[:, i] for i, state in enumerate(model.states)}
    samples = {}
    for name, (value, arguments) in rates.items():
        inputs = dict(zip(model.provider(name).inputs, arguments, strict=True))
        columns = {key: np.array(np.broadcast_to(evaluate(e, where), len(du))) for key, e in inputs.items()}
        output = np.array(np.broadcast_to(evaluate(value, where), len(du)))
        fine = np.isfinite(output) & np.all([np.isfinite(column) for column in columns.values()], axis=0)
        if fine.sum() < 10:
            return None
        nuisance = _nuisance(model, name, where, len(du))
        samples[name] = Samples(
            {key: column[fine] for key, column in columns.items()},
            output[fine],
            name,
            nuisance[fine] if nuisance.size else nuisance,
        )
    return samples, points


def _solved_for_unknowns(model: UDE) -> dict[str, tuple[sp.Expr, tuple[sp.Expr, ...]]] | None:
    """unknown function -> its value by states, parameters and rates ``dx``, and its arguments; or None."""
    found: dict[str, tuple[sp.Expr, tuple[sp.Expr, ...]]] = {}
    for state, rate in model.explicit(values=False).items():
        calls = rate.atoms(AppliedUndef)
        if not calls:
            continue
        if len(calls) > 1:
            return None
        [call] = calls
        coefficient = sp.diff(rate.xreplace({call: sp.Symbol("_U")}), sp.Symbol("_U"))
        if str(call.func) in found or coefficient.has(sp.Symbol("_U")):
            return None
        rest = rate.xreplace({call: sp.S.Zero})
        found[str(call.func)] = ((sp.Symbol(f"d{state}") - rest) / coefficient, call.args)
    return found if set(found) == set(model.unknown_outputs) else None


def was_simulated(fit: Fit) -> bool:
    """Whether some stage of the fit simulated the model."""
    return any("shooting" in str(stage) for stage in fit.history.get("stage", ()))


def expected_residuals(fit: Fit) -> dict[str, float]:
    """column -> the residuals that a good formula may have: the larger of the noise that smoothing estimates and those
    of the networks; units of the data, or, where a noise model was given, of its standard deviation."""
    networks = fit.rmse(fit.train)
    if len(fit.history) and not was_simulated(fit):
        networks = dict.fromkeys(networks, 0.0)  # what matched derivatives alone may go anywhere when it is simulated
    uneven = _uneven(fit)
    return {
        name: max(noise, 1.0 if name in uneven else np.nan_to_num(networks[name], nan=0.0, posinf=0.0))
        for name, noise in smooth_errors(fit).items()
    }


def smooth_errors(fit: Fit) -> dict[str, float]:
    """column -> the noise that smoothing estimates; units as those of `expected_residuals`."""
    names = fit.measurement.names
    found = dict(zip(names, np.broadcast_to(fit.noise, len(names)).tolist(), strict=True))
    for name, model in _uneven(fit).items():
        values = fit.train.select([name]).values()[:, 0]
        deviation = 1.0 / model.stabilized(values[np.isfinite(values)])[1]
        found[name] /= float(np.sqrt(np.mean(deviation**2)))
    return found


def _uneven(fit: Fit) -> dict[str, NoiseModel]:
    """column -> its noise model, where its noise depends on its size."""
    return {name: noise for name, noise in fit.noise_models.items() if not isinstance(noise, Gaussian | StudentT)}


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


@dataclass(frozen=True)
class TrajectoryPoints:
    """States u (N, state), times t (N,), and parameters (N,) that differ along or between trajectories."""

    u: Array
    t: Array
    inputs: dict[str, Array]

    def values(self, model: UDE) -> dict[str, Array | float]:
        """States, parameters and time by name, for evaluating expressions."""
        where: dict[str, Array | float] = {**model.values(), TIME: self.t, **self.inputs}
        where.update({state: self.u[:, index] for index, state in enumerate(model.states)})
        return where


def trajectory_points(fit: Fit, total: int) -> TrajectoryPoints:
    """TrajectoryPoints along the simulated training trajectories, equally many in every interval."""
    intervals = sum(len(trajectory) - 1 for trajectory in fit.train.trajectories)
    each = max(2, int(np.ceil(total / max(intervals, 1))))
    states, times, owners = [], [], []
    for index, trajectory in enumerate(fit.train.trajectories):
        t = _spread(trajectory.t, each)
        only = replace(fit.train, trajectories=(trajectory,))
        alone = replace(fit, data=only, train=only, held_out=None, u0=fit.u0[index : index + 1])
        states.append(alone.predict(t)[0])
        times.append(t)
        owners.append(np.full(len(t), index))
    return _points(fit, np.concatenate(states), np.concatenate(times), np.concatenate(owners))


def _spread(t: Array, each: int) -> Array:
    """`each` times from every interval between the times t, and the last."""
    steps = np.diff(t)[:, None] * np.arange(each) / each
    return np.append((t[:-1, None] + steps).ravel(), t[-1])


def _points(fit: Fit, states: Array, times: Array, owners: Array) -> TrajectoryPoints:
    """With the conditions and the forcing at those points; owners (N,): the trajectory of each."""
    when, owner = torch.as_tensor(times), torch.as_tensor(owners)
    inputs = restored(fit.model, fit.data, fit.per_trajectory)
    with torch.no_grad():
        own = inputs.numbers(owner) | inputs.forcing_at(owner, when)
    return TrajectoryPoints(states, times, {name: values.numpy() for name, values in own.items()})


def open_system(fit: Fit) -> PartialSystem:
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
    measurement = fit.measurement
    if measurement.names == model.states and not measurement.formulas:
        return PartialSystem(
            model.states, equations, calls, parameters, TIME, positive, noise=_uneven(fit), errors=smooth_errors(fit)
        )
    parsed = Observation(measurement.formulas).parsed if measurement.formulas else {}
    columns = {name: parsed[name].expression if name in parsed else sp.Symbol(name) for name in measurement.names}
    sizes = tuple(float(size) for size in fit.state_scale)
    return PartialSystem(
        model.states, equations, calls, parameters, TIME, positive, columns, sizes, _uneven(fit), smooth_errors(fit)
    )


def observed(fit: Fit, data: Dataset) -> list[ObservedTrajectory]:
    """The trajectories of a data set as plain arrays, a column for each that was measured, with their own inputs.

    data: some part of the data of the fit, with as many trajectories.
    """
    own = data.select(fit.measurement.names)
    inputs = restored(fit.model, fit.data, fit.per_trajectory)
    courses: list[dict[str, float | Forcing]] = [{} for _ in own.trajectories]
    for name, numbers in inputs.conditions.items():
        for course, number in zip(courses, numbers.tolist(), strict=True):
            course[name] = float(number)
    for name, runs in inputs.forcing.items():
        for course, (times, values) in zip(courses, runs, strict=True):
            course[name] = forcing(times, values, inputs.kind)
    return [ObservedTrajectory(tr.t, tr.u, course) for tr, course in zip(own.trajectories, courses, strict=True)]


def forcing(times: Array, values: Array, kind: Kind) -> Forcing:
    """The course of a covariate as `ude.Interpolation` has it, for integrators that call it with one time."""
    knots, heights = tuple(times.tolist()), tuple(values.tolist())
    if kind in ("constant", "linear"):
        return Forcing(knots, heights, None, kind == "constant")
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    [slopes] = torch.autograd.grad(Interpolation(times, values, kind)(t).sum(), t)
    return Forcing(knots, heights, tuple(slopes.tolist()))


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
    own = tuple(fit.per_trajectory)
    if own:
        raise ModelError(
            "discover needs one set of fitted parameters for all trajectories",
            got=f"{', '.join(own)} fitted for each",
            fix="Leave per_trajectory out, or hold the numbers and fit again: "
            "data.with_conditions(fit.per_trajectory), with a model in which "
            f"{', '.join(own)} {'is a fixed parameter' if len(own) == 1 else 'are fixed parameters'}.",
        )
    if not model.unknown_outputs:
        raise ModelError("the model has no network left to replace", fix="Fit a model with an unknown function.")
    return model
