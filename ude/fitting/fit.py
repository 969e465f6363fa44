"""fit: smooth, then one stage after another, and the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ude.errors import InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import read_data
from ude.fitting.iteration import Callback
from ude.fitting.objective.measurement import Measurement, ObserveLike
from ude.fitting.objective.noise import Noise, noise_models
from ude.fitting.objective.penalties import ParameterPrior, Penalty, check_known
from ude.fitting.options import FitOptions
from ude.fitting.result import Fit
from ude.fitting.simulation.coordinates import Positive, positive_states
from ude.fitting.simulation.initial_states import U0Like, read_u0
from ude.fitting.simulation.trajectory_inputs import Inputs
from ude.fitting.stages.base import Stage
from ude.fitting.stages.run import run_stages
from ude.fitting.stages.stages import checked_stages
from ude.fitting.state import FitState, Setup
from ude.fitting.storage.fit_folder import FitFolder, model_identity
from ude.models import Model
from ude.problems.function import require_callable, require_evaluation_mode
from ude.progress import ProgressBar
from ude.threads import threads_for
from ude.vocabulary import OF_FIT, named_arguments


@named_arguments(OF_FIT)
def fit(
    model: Model,
    data: Any,
    *,
    holdout: float | int | str = 0.25,
    validation: float | int | str = 0,
    stages: Sequence[str | Stage] | str | Stage | None = None,
    seed: int = 0,
    progress: bool = True,
    u0: U0Like | None = None,
    positive: Positive = "auto",
    observe: ObserveLike | None = None,
    per_trajectory: str | Sequence[str] | None = None,
    noise: Noise | None = None,
    priors: Mapping[str, ParameterPrior] | None = None,
    penalties: Sequence[Penalty] = (),
    callback: Callback | None = None,
    out: str | Path | None = None,
    options: FitOptions = FitOptions(),  # noqa: B008  (frozen)
) -> Fit:
    """Train networks and fitted parameters of a model on trajectories.

    The data are smoothed; networks get scales from them; then (1) ``f(u_smooth, t)`` is fitted to ``du_smooth/dt``, (2)
    short windows are simulated from free initial states and tied together ever tighter, (3) whole trajectories are
    simulated from fitted initial states. Each stage starts from the one before. The loss of the simulations is
    the mean of ``((u - data)/scale)²``, or with `noise` the -log likelihood in units that make it as large, plus the
    prior on the weights (see `losses.Prior`), the priors and the penalties.

    model:    a `Model` (`UDE`, `NeuralODE`, `FunctionModel`); it is copied, not changed
    data:     a `Dataset`, or what `read_data` makes one of: a path, a DataFrame, a dict of columns, an xarray object;
              or a pair (t, u) of arrays, u with the model's states
    holdout:  the tail kept out of training, as in `Dataset.split`: 0.25, 5, "after 1915" or 0
    validation: the tail of what is left, likewise; it is not trained on, and a stage of simulations ends, with the
              weights that predicted it best, once it is predicted worse and worse
    stages:   some of "derivatives", "multiple shooting", "single shooting", in this order, or objects such as
              `MultipleShooting(window_steps=5)` in any; None: all three
    seed:     draws the weights of networks that nothing has trained yet; the same seed gives the same fit
    u0:       known initial states (trajectory, state), kept as they are; None: fitted; or a mapping from some states
              to a number, numbers, "fit", "shared" (one for all trajectories), a `Parameter` or an `InitialValue`. A
              state of which there are no data must be named here (or occur in an observable)
    positive: "auto" (states whose data are all positive), True, False or names: integrated in log u, never below zero
    observe:  what columns of the data are, where these are not states: "y = scale*(x1 + x2)" (see `Observation`);
              None: the model's own `observables`. Columns are matched with observables, then with states
    per_trajectory: names of fitted parameters of which each trajectory has its own number; the model gets their mean
    noise:    a noise model such as `Gaussian()` for all columns, or a dict column -> noise model, whose scales are
              estimated with the rest; None: least squares
    priors:   parameter -> `NormalPrior` or `LogNormalPrior`
    penalties: `ResidualPenalty`s and `MagnitudePenalty`
    callback: called with an `Iteration` after each; True ends the stage
    out:      a folder that keeps every evaluation, and the best fit so far at intervals. The same call after a crash, a
              kill or Ctrl-C goes on where it was, and is bit-identical to a run without interruption.

    A condition or covariate of the data stands in the place of the model's fixed parameter of that name.

    Ctrl-C ends the training and returns the best fit so far, with ``interrupted=True``. If more than a
    quarter of the simulations break down on the way, one warning at the end says how many.

    Raises InputError or DataError, before any training, for arguments that break a rule, a state of the model
    without data, a model with nothing to fit, and a folder `out` that holds another fit.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> round(fit.model.values()["k"], 3)
    1.5
    """
    _check_kinds(model, (holdout, validation), options)
    _check_calls(callback, out, seed)
    chosen = checked_stages(stages)
    require_evaluation_mode([model])
    data = read_data(data, states=model.states if isinstance(data, tuple) else None)
    initial = read_u0(u0, model.states, len(data))
    named = u0 if isinstance(u0, Mapping) else () if u0 is None else model.states
    measurement = Measurement.of(model, data, observe, named)
    parts = _Parts.of(data.select(measurement.names), holdout, validation)
    _check_scale(options, [*parts.data.states, *measurement.unmeasured])
    check_known(model, {} if priors is None else priors, penalties)
    setup = Setup(
        model=copy.deepcopy(model),
        train=parts.train,
        measurement=measurement,
        inputs=Inputs(model, parts.train, per_trajectory),
        initial=initial,
        positive=positive_states(parts.train, positive, {s: measurement.column_of.get(s) for s in model.states}),
        options=options,
        seed=seed,
        whole=None if parts.validation is None else parts.whole,
        noise=None if noise is None else noise_models(noise, parts.data.states),
        priors=dict(priors or {}),
        penalties=tuple(penalties),
        callback=callback,
    )
    folder = None if out is None else FitFolder(out, _identity(setup, chosen, parts.data))
    found = _run(setup, chosen, folder, progress, partial(_result, setup, parts))
    if out is not None:
        found.save(out)
    return found


@dataclass(frozen=True)
class _Parts:
    """The observed columns of the data, and how they are divided."""

    data: Dataset
    holdout: float | int | str
    whole: Dataset  # without what is held out
    held_out: Dataset | None
    train: Dataset
    validation: Dataset | None

    @classmethod
    def of(cls, data: Dataset, holdout: float | int | str, validation: float | int | str) -> _Parts:
        whole, held_out = data.split(holdout)
        train, validated = whole.split(validation)
        return cls(data, holdout, whole, held_out, train, validated)


def _check_kinds(model: object, shares: Sequence[object], options: object) -> None:
    """Refuse a model, shares of the data and options of another kind."""
    if not isinstance(model, Model):
        fix = ""
        if isinstance(model, Dataset):
            fix = "The model comes first: ude.fit(model, data)."
        elif isinstance(model, nn.Module):
            fix = "A network becomes a model by ude.NeuralODE."
        elif callable(model):
            fix = "A function becomes a model by ude.FunctionModel."
        raise InputError(
            "fit needs a model", expected="a ude.models.Model such as ude.UDE(...)", got=type(model).__name__, fix=fix
        )
    for name, share in zip(("holdout", "validation"), shares, strict=True):
        if isinstance(share, bool) or not isinstance(share, int | float | str):
            raise InputError(f'{name} must be a fraction, a number of points or "after TIME"', got=repr(share))
    if not isinstance(options, FitOptions):
        raise InputError(
            "options must be ude.FitOptions(...)",
            got=f"the class {options.__name__}" if isinstance(options, type) else repr(options),
        )


def _check_calls(callback: object, out: object, seed: object) -> None:
    """Refuse a callback, a folder and a seed of another kind."""
    require_seed(seed)
    if callback is not None:
        require_callable(callback, "callback", "iteration")
    if out is not None and not isinstance(out, str | Path):
        raise InputError("out must be the path of a folder", got=repr(out))


def require_seed(seed: object) -> None:
    """Check a seed of random numbers. Raises InputError where it is no integer, or negative."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("seed must be an integer, zero or more", got=repr(seed))


def _check_scale(options: FitOptions, states: Sequence[str]) -> None:
    for state in options.scale:
        if state not in states:
            raise InputError(f"scale names {state!r}", expected=f"some of {', '.join(dict.fromkeys(states))}")


def _result(setup: Setup, parts: _Parts, state: FitState, interrupted: bool) -> Fit:
    """What a fit is where its state stands now."""
    own = state.inputs.fitted()
    mean = copy.deepcopy(state.model) if own and interrupted else state.model
    mean.set_values({name: float(np.mean(numbers)) for name, numbers in own.items()})
    return Fit(
        model=mean,
        data=parts.data,
        train=parts.train,
        held_out=parts.held_out,
        u0=state.initial_states(),
        history=state.history(),
        interrupted=interrupted,
        seed=setup.seed,
        options=setup.options,
        positive=setup.positive,
        scale=state.scale.numpy(),
        noise=state.noise,
        measurement=setup.measurement,
        state_scale=state.field.coordinates.scale.numpy(),
        notes=tuple(state.notes),
        per_trajectory=own,
        holdout=parts.holdout,
        noise_models={} if state.likelihood is None else state.likelihood.fitted(),
        fitted_numbers=state.fitted_numbers(),
        validation=parts.validation,
        known_u0=tuple(not value.fitted for value in setup.initial),
    )


def _run(
    setup: Setup,
    stages: Sequence[Stage],
    folder: FitFolder | None,
    progress: bool,
    result: Callable[[FitState, bool], Fit],
) -> Fit:
    """Train, and save the best so far into the folder now and then; Ctrl-C ends it early."""
    interrupted = False
    # residuals by their derivatives
    size = sum(setup.train.counts().values()) * sum(p.numel() for p in setup.model.parameters())
    with ProgressBar(progress) as bar, threads_for(size):
        state = FitState(setup, bar)

        def checkpoint() -> None:
            if folder is not None:
                result(state, True).save(folder.path)

        try:
            run_stages(state, stages, folder, checkpoint)
        except KeyboardInterrupt:
            interrupted = True
    state.warn()
    return result(state, interrupted)


def _identity(setup: Setup, stages: Sequence[Stage], data: Dataset) -> dict[str, object]:
    """All that decides what a fit becomes, in plain data."""
    return {
        "model": model_identity(setup.model),
        "data": data.digest,
        "points": [len(trajectory) for trajectory in setup.train.trajectories],
        "validation": setup.whole is not None and [len(trajectory) for trajectory in setup.whole.trajectories],
        "stages": [repr(stage) for stage in stages],
        "seed": setup.seed,
        "u0": [repr(value) for value in setup.initial],
        "per_trajectory": list(setup.inputs.fitted()),
        "columns": list(setup.measurement.names),
        "observe": setup.measurement.formulas,
        "positive": [bool(flag) for flag in setup.positive],
        "noise": None if setup.noise is None else {name: repr(model) for name, model in setup.noise.items()},
        "priors": {name: repr(prior) for name, prior in setup.priors.items()},
        "penalties": [repr(penalty) for penalty in setup.penalties],
        "options": repr(replace(setup.options, checkpoint_seconds=0.0)),
    }
