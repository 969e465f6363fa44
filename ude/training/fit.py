"""fit: smooth -> derivative matching -> multiple shooting -> single shooting, and the result."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ude.errors import DataError, InputError
from ude.methods import Tsit5
from ude.models import Model
from ude.problems import ODEProblem
from ude.progress import ProgressBar
from ude.progress import Stage as ProgressStage
from ude.solve import solve
from ude.training import initialise
from ude.training.collocation import Smoothing, smooth
from ude.training.coordinates import Coordinates, InnerField, Positive, positive_states
from ude.training.data import Array, Dataset, root_mean_square
from ude.training.initial_states import InitialStates, InitialValue, U0Like, read_u0, starting_values
from ude.training.inputs import Inputs, Lanes, restored
from ude.training.latent import DrivenMatch
from ude.training.losses import Prior
from ude.training.observables import Measurement, ObserveLike
from ude.training.optimisers import Objective, adam, lbfgs
from ude.training.shooting import Shooting, SolverOptions, Windows, cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DERIVATIVES, MULTIPLE, SINGLE = "derivatives", "multiple shooting", "single shooting"
STAGES = (DERIVATIVES, MULTIPLE, SINGLE)
_MOST_DRIVEN_ITERATIONS = 200


@dataclass(frozen=True)
class FitOptions:
    """How a fit is carried out; the defaults need no tuning for tens to hundreds of points.

    solver:       tolerance of the solves in training (the result is simulated more tightly) and their most steps
    scale:        state -> what a misfit of that state is divided by; the standard deviation of its data when left out
    weight_prior: 1/variance of the Gaussian prior on network weights; 0 for none
    rescale:      set the input and output scales of networks that have none
    derivative_iterations: of Adam, then of L-BFGS, matching derivatives
    window_steps: intervals of data in a window of multiple shooting; None: a quarter of the longest trajectory, 3 to 20
    continuity:   the penalties of multiple shooting, one after another
    multiple_iterations: L-BFGS iterations with each penalty
    single_iterations: of Adam, then of L-BFGS, in single shooting
    stall:        a stage ends when its last iterations lowered the loss by less than this fraction
    """

    solver: SolverOptions = SolverOptions()
    scale: Mapping[str, float] = field(default_factory=dict)
    weight_prior: float = 0.3
    rescale: bool = True
    derivative_iterations: tuple[int, int] = (500, 1500)
    window_steps: int | None = None
    continuity: tuple[float, ...] = (1.0, 10.0, 100.0)
    multiple_iterations: int = 30
    single_iterations: tuple[int, int] = (0, 120)
    stall: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("weight_prior", "stall"):
            _require(0 <= getattr(self, name) < float("inf"), name, "zero or a positive number", getattr(self, name))
        for name in ("derivative_iterations", "single_iterations"):
            pair = getattr(self, name)
            _require(len(pair) == 2 and min(pair) >= 0, name, "two counts, of Adam and of L-BFGS", pair)
        _require(self.multiple_iterations >= 0, "multiple_iterations", "zero or more", self.multiple_iterations)
        _require(self.window_steps is None or self.window_steps >= 1, "window_steps", "at least 1", self.window_steps)
        _require(all(c > 0 for c in self.continuity), "continuity", "positive penalties", self.continuity)
        for state, value in self.scale.items():
            _require(0 < value < float("inf"), f"scale of {state!r}", "a positive number", value)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"{name} of FitOptions is not usable", expected=expected, got=repr(got))


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model with what it was trained on.

    model:   the trained copy; the model given to `fit` is left as it was
    data, train, held_out: all data, the part trained on, its tail (None when nothing was held out)
    measurement: what the columns of the data are of the states
    u0:      (trajectory, state), initial states at each trajectory's first time, fitted or given
    history: columns stage, iteration, loss, seconds since the start
    interrupted: True when Ctrl-C ended the training; the fit is the best up to there
    positive, state_scale: (state,) integrated in log u; the unit in which the others are
    scale, noise: (column,) what misfits were divided by; estimated measurement noise
    per_trajectory: name -> (trajectory,), parameters that were fitted for each trajectory
    holdout: what of each trajectory was held out, as it was asked for
    notes: what was done otherwise than usual, such as stages that were left out
    """

    model: Model
    data: Dataset
    train: Dataset
    held_out: Dataset | None
    u0: Array
    history: pd.DataFrame
    interrupted: bool
    seed: int
    options: FitOptions
    positive: npt.NDArray[np.bool_]
    scale: Array
    noise: Array
    measurement: Measurement
    state_scale: Array
    notes: tuple[str, ...] = ()
    per_trajectory: Mapping[str, Array] = field(default_factory=dict)
    holdout: float | int | str = 0

    def predict(self, t: npt.ArrayLike | None = None, *, reltol: float = 1e-6) -> list[Array]:
        """Simulated states (T, state) of each trajectory from its fitted initial state.

        t: increasing times (T,), not before the start of any trajectory; None: the times of all its data.

        Raises InputError for times that are not usable, SolveFailed when a simulation breaks down.
        """
        if t is None:
            return [self._simulated(i, tr.t, reltol, partial=False) for i, tr in enumerate(self.data.trajectories)]
        times = np.asarray(t, dtype=np.float64)
        if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise InputError("t of predict is not usable", expected="increasing times of shape (T,)", got=repr(t))
        return [self._simulated(i, times, reltol, partial=False) for i in range(len(self.data))]

    def observe(self, t: npt.ArrayLike | None = None, *, reltol: float = 1e-6) -> list[Array]:
        """What the columns of the data would be, (T, column), along `predict(t)`; raises as `predict`."""
        times = [tr.t if t is None else np.asarray(t, dtype=np.float64) for tr in self.data.trajectories]
        return [self._observed(i, u, times[i]) for i, u in enumerate(self.predict(t, reltol=reltol))]

    def rmse(self, data: Dataset | None = None) -> dict[str, float]:
        """Root mean square of prediction minus data for each column, in its units; None: the training data.

        Simulated from the fitted initial states through the times of `data`, so `rmse(fit.held_out)` is the error of a
        forecast. Infinite where the simulation breaks down; NaN for a column of which `data` have no value.

        Raises DataError for other columns, another number of trajectories, times before the start, no points.
        """
        data = self.train if data is None else data.select(self.measurement.names)
        if len(data) != len(self.train):
            raise DataError(
                "the data have other trajectories than the fit", expected=str(len(self.train)), got=str(len(data))
            )
        runs = [(i, trajectory) for i, trajectory in enumerate(data.trajectories) if len(trajectory)]
        if not runs:
            raise DataError("there are no points to compare with", got="empty trajectories")
        predicted = np.concatenate(
            [self._observed(i, self._simulated(i, tr.t, 1e-6, partial=True), tr.t) for i, tr in runs]
        )
        values = root_mean_square(predicted, np.concatenate([tr.u for _, tr in runs]))
        return dict(zip(self.measurement.names, values.tolist(), strict=True))

    def _simulated(self, trajectory: int, times: Array, reltol: float, *, partial: bool) -> Array:
        start = float(self.train.trajectories[trajectory].t[0])
        if times[0] < start:
            raise InputError(
                "t lies before the start of a trajectory", expected=f"times from {start:g} on", got=f"{times[0]:g}"
            )
        coordinates = Coordinates(self.positive, self.state_scale)
        z0 = coordinates.inner(torch.as_tensor(self.u0[trajectory]))
        lanes = self._lanes(trajectory)
        if times[-1] == start:
            return np.repeat(self.u0[trajectory][None], len(times), axis=0)
        # parameters of the trajectory's own need a batch to be lanes of
        problem = ODEProblem(
            InnerField(self.model, coordinates, lanes),
            z0 if lanes is None else z0.unsqueeze(0),
            (start, float(times[-1])),
            names=self.model.states,
        )
        with torch.no_grad():
            solution = solve(
                problem,
                Tsit5(),
                saveat=torch.as_tensor(times),
                abstol=reltol,
                reltol=reltol,
                maxiters=10_000 + 100 * len(times),
            )
            z = solution.partial if partial else solution.u
            return coordinates.natural(z if lanes is None else z[0]).numpy()

    def _observed(self, trajectory: int, u: Array, times: Array) -> Array:
        with torch.no_grad():
            t, lanes = torch.as_tensor(times), self._lanes(trajectory)
            own = None if lanes is None else {name: value[0] for name, value in lanes.along(t.unsqueeze(0)).items()}
            return self.measurement(torch.as_tensor(u), t, self.model.parameter_tensors(own)).numpy()

    def _lanes(self, trajectory: int) -> Lanes | None:
        return restored(self.model, self.data, self.per_trajectory).lanes(torch.tensor([trajectory]))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Data as points and what the simulations say as lines, one panel a column; also written to `path`."""
        from ude.reporting import plots

        model, data = [], []
        for i, trajectory in enumerate(self.data.trajectories):
            dense = np.union1d(np.linspace(trajectory.t[0], trajectory.t[-1], 400), trajectory.t)
            model.append(plots.Series(dense, self._observed(i, self._simulated(i, dense, 1e-6, partial=True), dense)))
            data.append(plots.Series(trajectory.t, trajectory.u))
        tails = None
        if self.held_out is not None:
            tails = [float(tr.t[0]) if len(tr) else float("inf") for tr in self.held_out.trajectories]
        labels = plots.Labels(self.measurement.names, self.data.time_name)
        figure = plots.data_and_model(data, model, labels, held_out_from=tails)
        if path is not None:
            figure.savefig(path)
        return figure

    def save(self, directory: str | Path) -> Path:
        """Write weights, data and settings into a folder from which `load_fit` restores the fit. Returns the folder."""
        from ude.training.checkpoints import save_fit

        return save_fit(self, directory)


def fit(
    model: Model,
    data: Dataset,
    *,
    holdout: float | int | str = 0.25,
    stages: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    u0: U0Like | None = None,
    positive: Positive = "auto",
    observe: ObserveLike | None = None,
    per_trajectory: str | Sequence[str] | None = None,
    options: FitOptions = FitOptions(),
) -> Fit:
    """Train networks and fitted parameters of a model on trajectories.

    The data are smoothed; networks get scales from them; then (1) ``f(u_smooth, t)`` is fitted to ``du_smooth/dt``, (2)
    short windows are simulated from free initial states and tied together ever tighter, (3) whole trajectories are
    simulated from fitted initial states. Each stage starts from the one before. The loss of the simulations is
    the mean of ``((u - data)/scale)²`` plus the prior on the weights (see `losses.Prior`).

    model:    a `Model` (`UDE`, `NeuralODE`, `FunctionModel`); it is copied, not changed
    holdout:  the tail kept out of training, as in `Dataset.split`: 0.25, 5, "after 1915" or 0
    stages:   some of "derivatives", "multiple shooting", "single shooting", in this order; None: all
    seed:     draws the weights of networks that nothing has trained yet; the same seed gives the same fit
    u0:       known initial states (trajectory, state), kept as they are; None: fitted; or a mapping from some states
              to a number, numbers, "fit", "shared" (one for all trajectories), a `Parameter` or an `InitialValue`. A
              state of which there are no data must be named here (or occur in an observable)
    positive: "auto" (states whose data are all positive), True, False or names: integrated in log u, never below zero
    observe:  what columns of the data are, where these are not states: "y = scale*(x1 + x2)" (see `Observation`);
              None: the model's own `observables`. Columns are matched with observables, then with states
    per_trajectory: names of fitted parameters of which each trajectory has its own number; the model gets their mean

    A condition or covariate of the data stands in the place of the model's fixed parameter of that name.

    Ctrl-C ends the training and returns the best fit so far, with ``interrupted=True``.

    Raises InputError or DataError, before any training, for arguments that are not usable, a state of the model
    without data, and a model with nothing to fit.
    """
    chosen = _checked_stages(stages)
    if not isinstance(model, Model):
        raise InputError("fit needs a model", expected="a ude.Model such as ude.UDE(...)", got=type(model).__name__)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("seed is not usable", expected="an integer, zero or more", got=repr(seed))
    initial = read_u0(u0, model.states, len(data))
    named = u0 if isinstance(u0, Mapping) else () if u0 is None else model.states
    measurement = Measurement.of(model, data, observe, named)
    data = data.select(measurement.names)
    train, held_out = data.split(holdout)
    scalable = dict.fromkeys((*data.states, *measurement.unmeasured))
    for state in options.scale:
        if state not in scalable:
            raise InputError(f"scale names {state!r}", expected=f"some of {', '.join(scalable)}")
    columns = {state: measurement.column_of.get(state) for state in model.states}
    flags = positive_states(train, positive, columns)
    inputs = Inputs(model, train, per_trajectory)
    training = _Training(copy.deepcopy(model), train, measurement, inputs, flags, options, initial)
    interrupted = False
    try:
        with ProgressBar(progress) as bar:
            training.run(chosen, seed, bar)
    except KeyboardInterrupt:
        interrupted = True
    own = training.inputs.fitted()
    training.model.set_values({name: float(np.mean(numbers)) for name, numbers in own.items()})
    return Fit(
        model=training.model,
        data=data,
        train=train,
        held_out=held_out,
        u0=training.initial_states(),
        history=training.history.frame(),
        interrupted=interrupted,
        seed=seed,
        options=options,
        positive=training.positive,
        scale=training.scale.numpy(),
        noise=training.noise,
        measurement=measurement,
        state_scale=training.field.coordinates.scale.numpy(),
        notes=tuple(training.notes),
        per_trajectory=own,
        holdout=holdout,
    )


def _checked_stages(stages: Sequence[str] | None) -> tuple[str, ...]:
    if stages is None:
        return STAGES
    chosen = (stages,) if isinstance(stages, str) else tuple(stages)
    if not set(chosen) <= set(STAGES) or sorted(chosen, key=STAGES.index) != list(dict.fromkeys(chosen)):
        raise InputError(
            "stages are not usable", expected=f"some of {', '.join(map(repr, STAGES))}, in this order", got=repr(stages)
        )
    return chosen


class _History:
    """Rows of (stage, iteration, loss, seconds)."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.rows: list[tuple[str, int, float, float]] = []

    def add(self, stage: str, iteration: int, loss: float) -> None:
        self.rows.append((stage, iteration, loss, time.perf_counter() - self.start))

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["stage", "iteration", "loss", "seconds"])


class _Training:
    """The state of one fit while it runs. At every moment `model` and `starts` are usable."""

    def __init__(
        self,
        model: Model,
        train: Dataset,
        measurement: Measurement,
        inputs: Inputs,
        positive: npt.NDArray[np.bool_],
        options: FitOptions,
        initial: Sequence[InitialValue],
    ) -> None:
        self.model, self.train, self.positive, self.options = model, train, positive, options
        self.measurement, self.inputs = measurement, inputs
        self.history = _History()
        self.notes: list[str] = []
        values = train.values()
        deviation = np.nanstd(values, axis=0)
        # A constant column has no spread of its own: measure it by its size.
        deviation = np.where(deviation > 1e-12, deviation, np.maximum(np.nanmax(np.abs(values), axis=0), 1.0))
        scale = [options.scale.get(column, float(deviation[i])) for i, column in enumerate(train.states)]
        self.scale = torch.tensor(scale, dtype=torch.float64)
        self.noise = np.zeros(len(train.states))
        self.driven: DrivenMatch | None = None
        self.hidden = [model.states.index(state) for state in measurement.unmeasured]
        self.columns = [measurement.column_of[s] for s in model.states if s in measurement.column_of]
        self.u0_values = initial
        starts = starting_values(initial, self.spread_out(train.first_values()))
        _check_starts(starts, positive, initial)
        state_scale = self.spread_out(self.scale.numpy())
        for i in self.hidden:
            own = options.scale.get(model.states[i], float(np.abs(starts[:, i]).max()))
            state_scale[i] = own if own > 0 else 1.0
        self.field = InnerField(model, Coordinates(positive, state_scale), inputs.lanes(torch.arange(len(train))))
        self.initial = InitialStates.of(initial, self.field.coordinates, len(train))
        self.starts = self.field.coordinates.inner(self.initial.inside(torch.as_tensor(starts)))
        inner = self.field.coordinates.inner(torch.as_tensor(self.spread_out(values, fill=1.0))).numpy()
        self.spread = torch.as_tensor(np.nanstd(inner, axis=0)).clamp(min=1e-6)
        self.spread[self.hidden] = 1.0
        self.trainable = [p for p in (*model.parameters(), *inputs.parameters()) if p.requires_grad]
        if not self.trainable and not bool(self.initial.free.any()):
            raise InputError(
                "there is nothing to fit",
                expected="a network, a fitted parameter or a free u0",
                fix="Name parameters to fit (fit=...), or leave u0 out.",
            )

    def spread_out(self, columns: Array, fill: float = np.nan) -> Array:
        """What is known of columns (..., column) as states (..., state), `fill` for those that no column measures."""
        seen = [i for i in range(len(self.model.states)) if i not in self.hidden]
        states = np.full((*columns.shape[:-1], len(self.model.states)), fill)
        states[..., seen] = columns[..., self.columns]
        return states

    def initial_states(self) -> Array:
        return self.field.coordinates.natural(self.starts.detach()).numpy()

    def run(self, stages: Sequence[str], seed: int, bar: ProgressBar) -> None:
        smoothing = smooth(self.train, self.positive_columns())
        self.noise = smoothing.noise
        first = np.stack([smoothing(i, tr.t[:1])[0][0] for i, tr in enumerate(self.train.trajectories)])
        starts = starting_values(self.u0_values, self.spread_out(first))
        self.starts = self.field.coordinates.inner(self.initial.inside(torch.as_tensor(starts)))
        initialise.redraw_networks(self.model, seed)
        points = _Points.along(self.train, smoothing)
        unset = initialise.unset_parameters(self.model)
        rate = initialise.rate_of(*self.inner_columns(points))
        self.model.set_values(initialise.start_values(unset, rate))
        self.inputs.begin(self.model.values())
        if self.hidden:
            self.driven = DrivenMatch.along(self.field, self.hidden, self.train, smoothing, self.spread_out)
            rows = torch.arange(len(self.train)).repeat_interleave(self.driven.states.t.shape[1])
            points = _Points(*self.driven.points(self.starts, self.options.solver), rows)
        else:
            points = replace(points, u=points.u[:, self.columns], du=points.du[:, self.columns])
        if self.options.rescale:
            initialise.set_network_scales(self.model, points.u, points.du, points.t, self.overrides(points)())
        relative = float(np.sqrt(np.mean((self.noise / self.scale.numpy()) ** 2)))
        observations = sum(self.train.counts().values())
        self.prior = Prior.of(self.model, max(relative, 1e-3), observations, self.options.weight_prior)
        if DERIVATIVES in stages and self.trainable:
            if self.driven is None:
                self.match_derivatives(points, bar)
            elif bool(self.driven.use.any()):
                self.match_driven(self.driven, bar)
            else:
                self.notes.append(f"{DERIVATIVES} left out: no column measures just one state")
        if MULTIPLE in stages:
            self.shoot_windows(smoothing, bar)
        if SINGLE in stages:
            self.shoot_whole(bar)

    def positive_columns(self) -> npt.NDArray[np.bool_]:
        """(column,): those of positive states; of formulas, those whose data all are."""
        state_of = {column: state for state, column in self.measurement.column_of.items()}
        least = np.nanmin(self.train.values(), axis=0)
        flags = dict(zip(self.model.states, self.positive, strict=True))
        return np.array([flags[state_of[i]] if i in state_of else least[i] > 0 for i in range(len(least))])

    def inner_columns(self, points: _Points) -> tuple[Tensor, Tensor]:
        """Columns and their rates, in logarithms where they are positive."""
        coordinates = Coordinates(self.positive_columns(), self.scale.numpy())
        return coordinates.inner(points.u), coordinates.inner_rate(points.u, points.du)

    def overrides(self, points: _Points) -> Callable[[], dict[str, Tensor] | None]:
        """What stands in the place of the model's parameters at single points, as the parameters are now."""
        if not self.inputs.names:
            return lambda: None
        forcing = self.inputs.forcing_at(points.trajectory, points.t)
        return lambda: {**self.inputs.numbers(points.trajectory), **forcing}

    def match_driven(self, driven: DrivenMatch, bar: ProgressBar) -> None:
        """Match the rates of the measured states, the others being simulated along. Every evaluation is a solve, so
        Adam's many cheap steps are left out."""
        offset = torch.zeros_like(self.starts, requires_grad=True)

        def now() -> Tensor:
            return self.initial.place(self.starts, offset, self.spread)

        def loss() -> Tensor:
            return driven(now(), self.options.solver) + self.prior()

        iterations = min(self.options.derivative_iterations[1], _MOST_DRIVEN_ITERATIONS)
        try:
            with self.stage(bar, DERIVATIVES, iterations) as on_iteration:
                objective = Objective(loss, [*self.trainable, offset])
                lbfgs(objective, iterations, stall=self.options.stall, on_iteration=on_iteration)
        finally:
            self.starts = now().detach().clone()

    def match_derivatives(self, points: _Points, bar: ProgressBar) -> None:
        size = points.du.square().mean(0).sqrt().clamp(min=1e-12)
        overrides = self.overrides(points)

        def loss() -> Tensor:
            rates = self.model(points.u, overrides(), points.t)
            return (((rates - points.du) / size) ** 2).mean() + self.prior()

        first, second = self.options.derivative_iterations
        with self.stage(bar, DERIVATIVES, first + second) as on_iteration:
            objective = Objective(loss, self.trainable)
            adam(objective, first, stall=self.options.stall, on_iteration=on_iteration)
            lbfgs(objective, second, stall=self.options.stall, on_iteration=on_iteration)

    def shoot_windows(self, smoothing: Smoothing, bar: ProgressBar) -> None:
        longest = max(len(trajectory) for trajectory in self.train.trajectories) - 1
        steps = self.options.window_steps or min(max(round(longest / 4), 3), 20)
        windows = cut(self.train, steps)
        if not len(windows.linked):
            return
        smooth_starts = [
            smoothing(int(i), windows.t[row, :1].numpy())[0][0] for row, i in enumerate(windows.trajectory)
        ]
        free = self.field.coordinates.inner(torch.as_tensor(self.spread_out(np.stack(smooth_starts))))
        if self.driven is not None:
            free = self.driven.at(self.starts, windows.trajectory, windows.t[:, 0], self.options.solver)
        shooting = self.shooting(windows)
        heads = torch.tensor([row for row in range(len(windows)) if row - 1 not in set(windows.linked.tolist())])
        self.shoot(
            shooting,
            free,
            heads,
            [(c, (0, self.options.multiple_iterations)) for c in self.options.continuity],
            MULTIPLE,
            bar,
        )

    def shooting(self, windows: Windows) -> Shooting:
        field = InnerField(self.model, self.field.coordinates, self.inputs.lanes(windows.trajectory))
        return Shooting(field, windows, self.scale, self.spread, self.options.solver, self.measurement)

    def shoot_whole(self, bar: ProgressBar) -> None:
        shooting = self.shooting(cut(self.train))
        heads = torch.arange(len(self.train))
        self.shoot(shooting, self.starts, heads, [(0.0, self.options.single_iterations)], SINGLE, bar)

    def shoot(
        self,
        shooting: Shooting,
        starts: Tensor,
        heads: Tensor,
        rounds: Sequence[tuple[float, tuple[int, int]]],
        name: str,
        bar: ProgressBar,
    ) -> None:
        """Optimise model and window starts with one continuity penalty after another; `heads`: each trajectory's first
        window, whose start is the trajectory's."""
        # Offsets in units of the spread: numbers near one, as the weights are.
        offset = torch.zeros_like(starts, requires_grad=True)
        # What is known of the first states stays, and so does what an earlier stage found of the hidden ones.
        kept = ~self.initial.free
        kept[:, self.hidden] = True
        begin = self.initial.inside(self.field.coordinates.natural(torch.where(kept, self.starts, starts[heads])))
        starts = starts.index_copy(0, heads, self.field.coordinates.inner(begin))

        def now() -> Tensor:
            moved = starts + offset * self.spread
            return moved.index_copy(0, heads, self.initial.place(starts[heads], offset[heads], self.spread))

        try:
            with self.stage(bar, name, sum(a + b for _, (a, b) in rounds)) as on_iteration:
                shooting = shooting.limited(now().detach())
                for continuity, (first, second) in rounds:

                    def loss(weight: float = continuity) -> Tensor:
                        return shooting(now(), weight) + self.prior()

                    objective = Objective(loss, [*self.trainable, offset])
                    adam(objective, first, stall=self.options.stall, on_iteration=on_iteration)
                    lbfgs(objective, second, stall=self.options.stall, on_iteration=on_iteration)
        finally:
            self.starts = now().detach()[heads].clone()

    def stage(self, bar: ProgressBar, name: str, total: int) -> _StageLog:
        return _StageLog(self.history, bar.stage(name, total), name)


class _StageLog(AbstractContextManager["_StageLog"]):
    """Called with the loss of every iteration: into the history and onto the bar."""

    def __init__(self, history: _History, shown: ProgressStage, name: str) -> None:
        self.history, self.shown, self.name, self.count = history, shown, name, 0

    def __enter__(self) -> _StageLog:
        self.shown.__enter__()
        return self

    def __call__(self, loss: float) -> None:
        self.count += 1
        self.history.add(self.name, self.count, loss)
        self.shown.advance(loss)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shown.__exit__(kind, error, tb)


@dataclass(frozen=True, eq=False)
class _Points:
    """Dense points along the smoothed trajectories: u and du (point, state), t (point,), and whose they are."""

    u: Tensor
    du: Tensor
    t: Tensor
    trajectory: Tensor

    @classmethod
    def along(cls, data: Dataset, smoothing: Smoothing, total: int = 200) -> _Points:
        """About `total` points over all trajectories, at least two an interval of data, at most 4000.

        Points outside of the times at which every state was measured are left out where there are others.
        """
        number = max(total // len(data), 4)
        most = max(4000 // len(data), 4)
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        inside = []
        for i, trajectory in enumerate(data.trajectories):
            t = np.linspace(trajectory.t[0], trajectory.t[-1], min(max(number, 2 * len(trajectory)), most))
            inside.append(smoothing.inside(i, t).all(axis=1))
            parts.append((*smoothing(i, t), t, np.full(len(t), i)))
        known = np.concatenate(inside)
        known |= known.sum() < 2
        u, du, times, rows = (torch.as_tensor(np.concatenate(part)[known]) for part in zip(*parts, strict=True))
        return cls(u, du, times, rows)


def _check_starts(starts: Array, positive: npt.NDArray[np.bool_], initial: Sequence[InitialValue]) -> None:
    """Raise InputError for a start that was given and is not positive where the state is."""
    given = np.array([value.value is not None for value in initial])
    if (starts[:, positive & given] <= 0).any():
        raise InputError(
            "u0 is not positive for a state that is",
            expected="numbers above zero",
            got=f"{starts.tolist()}",
            fix="Give positive=False, or the states that are.",
        )
