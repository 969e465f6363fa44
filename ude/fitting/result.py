"""A trained model with what it was trained on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import read_data
from ude.fitting.data.trajectory import Array, root_mean_square
from ude.fitting.objective.measurement import Measurement
from ude.fitting.objective.noise import Gaussian, NoiseModel, log_likelihood
from ude.fitting.options import FitOptions
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.trajectory_inputs import PerTrajectory, restored
from ude.fitting.storage.fit_files import write_fit
from ude.models import Model
from ude.models.export.equation_set import EquationSet
from ude.problems.ode import ODEProblem
from ude.solving.solve import solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model with what it was trained on.

    model:   the trained copy; the model given to `fit` is left as it was
    data, train, held_out: all data, the part trained on, its tail (None when nothing was held out)
    measurement: what the columns of the data are of the states
    u0:      (trajectory, state), initial states at each trajectory's first time, fitted or given
    history: columns stage, iteration, loss, validation, rate (of Adam), evaluations (of the loss, in the stage),
             steps (of the solver, all trajectories, since the start), seconds since the start
    interrupted: True when Ctrl-C ended the training; the fit is the best up to there
    positive, state_scale: (state,) integrated in log u; the unit in which the others are
    scale, noise: (column,) what misfits were divided by; estimated measurement noise
    per_trajectory: name -> (trajectory,), parameters that were fitted for each trajectory
    holdout: what of each trajectory was held out, as it was asked for
    notes: what was done otherwise than usual, such as stages that were left out
    noise_models: observable -> noise model with its fitted scales; empty for a fit by least squares
    fitted_numbers: how many numbers were fitted: weights, parameters, initial states, scales of the noise
    validation: the data that decided when to stop, which lie between train and held_out
    known_u0: (state,) whether the initial values of a state were given, and kept; empty where nobody recorded it

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> fit.predict()[0].shape, fit.rmse()["x"] < 1e-6
    ((9, 1), True)
    >>> fit.history.columns[0]
    'stage'
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
    noise_models: Mapping[str, NoiseModel] = field(default_factory=dict)
    fitted_numbers: int = 0
    validation: Dataset | None = None
    known_u0: tuple[bool, ...] = ()

    @property
    def log_likelihood(self) -> float:
        """Σ log p of the training data. After a fit by least squares, of Gaussian noise with each state's own scale at
        its best, which is the root mean square of its residuals. -inf where the simulation breaks down."""
        predicted = np.concatenate([self._reached(i, tr.t) for i, tr in enumerate(self.train.trajectories)])
        observed = self.train.values()
        models = dict(self.noise_models)
        measured = np.isfinite(observed)
        if not models:
            for index, state in enumerate(self.train.states):
                wrong = (predicted - observed)[measured[:, index], index]
                size = float(np.sqrt(np.mean(wrong**2)))
                models[state] = Gaussian(max(size, 1e-300) if np.isfinite(size) else 1.0)
        return log_likelihood(models, *(torch.as_tensor(array) for array in (predicted, observed, measured)))

    @property
    def observations(self) -> int:
        """How many numbers were fitted to."""
        return sum(self.train.counts().values())

    @property
    def _free(self) -> int:
        return self.fitted_numbers + (0 if self.noise_models else len(self.train.states))

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2k - 2 log likelihood`` with k fitted numbers (scales of the noise among them)."""
        return 2.0 * self._free - 2.0 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``k log N - 2 log likelihood``, N the numbers measured. Of little meaning with networks,
        whose weights are many and tied by their prior."""
        return self._free * float(np.log(self.observations)) - 2.0 * self.log_likelihood

    def predict(self, t: npt.ArrayLike | None = None, *, reltol: float = 1e-6) -> list[Array]:
        """Simulated states (T, state) of each trajectory from its fitted initial state.

        t: increasing times (T,), not before the start of any trajectory; None: the times of all its data.

        Raises InputError for times that do not increase, SolveFailed when a simulation breaks down.
        """
        if t is None:
            return [self._simulated(i, tr.t, reltol, partial=False) for i, tr in enumerate(self.data.trajectories)]
        times = np.asarray(t, dtype=np.float64)
        if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise InputError("t of predict must be increasing times of shape (T,)", got=repr(t))
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
        data = self.train if data is None else read_data(data).select(self.measurement.names)
        if len(data) != len(self.train):
            raise DataError(
                "the data have other trajectories than the fit", expected=str(len(self.train)), got=str(len(data))
            )
        runs = [(i, trajectory) for i, trajectory in enumerate(data.trajectories) if len(trajectory)]
        if not runs:
            raise DataError("there are no points to compare with", got="empty trajectories")
        predicted = np.concatenate([self._reached(i, tr.t) for i, tr in runs])
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
                # the one that looks out for stiffness: what was simulated by a stiff method has to be here too
                saveat=torch.as_tensor(times),
                abstol=reltol,
                reltol=reltol,
                maxiters=10_000 + 100 * len(times),
            )
            z = solution.partial if partial else solution.u
            return coordinates.natural(z if lanes is None else z[0]).numpy()

    def _reached(self, trajectory: int, times: Array) -> Array:
        """The columns (T, column) as far as the simulation gets; NaN from where it breaks down."""
        return self._observed(trajectory, self._simulated(trajectory, times, 1e-6, partial=True), times)

    def _observed(self, trajectory: int, u: Array, times: Array) -> Array:
        with torch.no_grad():
            t, lanes = torch.as_tensor(times), self._lanes(trajectory)
            own = None if lanes is None else {name: value[0] for name, value in lanes.along(t.unsqueeze(0)).items()}
            return self.measurement(torch.as_tensor(u), t, self.model.parameter_tensors(own)).numpy()

    def _lanes(self, trajectory: int) -> PerTrajectory | None:
        return restored(self.model, self.data, self.per_trajectory).lanes(torch.tensor([trajectory]))

    def equation_set(self) -> EquationSet:
        """The equations with their numbers and the start of the first trajectory, for `ude.export`."""
        return replace(self.model.equation_set(), u0=dict(zip(self.model.states, self.u0[0].tolist(), strict=True)))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Data as points and what the simulations say as lines, one panel a column; also written to `path`."""
        from ude.reporting import plots

        model, data = [], []
        for trajectory, (t, u) in zip(self.data.trajectories, self.curves(), strict=True):
            model.append(plots.Series(t, u))
            data.append(plots.Series(trajectory.t, trajectory.u))
        tails = None
        if self.held_out is not None:
            tails = [float(tr.t[0]) if len(tr) else float("inf") for tr in self.held_out.trajectories]
        labels = plots.Labels(self.measurement.names, self.data.time_name)
        figure = plots.data_and_model(data, model, labels, held_out_from=tails)
        if path is not None:
            figure.savefig(path)
        return figure

    def curves(self, points: int = 400) -> list[tuple[Array, Array]]:
        """Times (T,) and columns (T, column) of each trajectory for drawing, through the times of all its data;
        NaN from where the simulation breaks down."""
        times = [np.union1d(np.linspace(tr.t[0], tr.t[-1], points), tr.t) for tr in self.data.trajectories]
        return [(t, self._reached(i, t)) for i, t in enumerate(times)]

    def save(self, directory: str | Path) -> Path:
        """Write weights, data and settings into a folder from which `load_fit` restores the fit. Returns the folder.

        Raises:
            InputError: The folder cannot be written.
        """
        return write_fit(directory, self._description(), self._tensors(), self.history)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"model.{name}": value.detach().clone().contiguous() for name, value in self.model.state_dict().items()
        }
        tensors["u0"] = torch.as_tensor(self.u0)
        tensors["scale"], tensors["noise"] = torch.as_tensor(self.scale), torch.as_tensor(self.noise)
        tensors["state_scale"] = torch.as_tensor(self.state_scale)
        for i, trajectory in enumerate(self.data.trajectories):
            tensors[f"data.{i}.t"], tensors[f"data.{i}.u"] = torch.tensor(trajectory.t), torch.tensor(trajectory.u)
            for name, (times, values) in trajectory.covariates.items():
                tensors[f"covariate.{i}.{name}"] = torch.tensor(np.stack([times, values]))
        for name, numbers in self.per_trajectory.items():
            tensors[f"per_trajectory.{name}"] = torch.as_tensor(numbers)
        return tensors

    def _description(self) -> dict[str, Any]:
        """All else in plain data."""
        return {
            "model": self.model.to_dict(),
            "data": {
                "states": list(self.data.states),
                "time_name": self.data.time_name,
                "notes": list(self.data.notes),
                "names": [trajectory.name for trajectory in self.data.trajectories],
                "trained_on": [len(trajectory) for trajectory in self.train.trajectories],
                "validated_on": [] if self.validation is None else [len(tr) for tr in self.validation.trajectories],
                "digest": self.data.digest,
                "holdout": self.holdout,
                "conditions": [dict(trajectory.conditions) for trajectory in self.data.trajectories],
                "units": dict(self.data.units),
                "covariate_kind": self.data.covariate_kind,
            },
            "noise_models": {
                name: {"kind": type(model).__name__, **asdict(model)} for name, model in self.noise_models.items()
            },
            "fitted_numbers": self.fitted_numbers,
            "known_u0": list(self.known_u0),
            "seed": self.seed,
            "interrupted": self.interrupted,
            "positive": [bool(flag) for flag in self.positive],
            "observe": self.measurement.formulas,
            "notes": list(self.notes),
            "options": _plain_options(self.options),
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in ("ude", "torch", "numpy")},
            },
        }


def _plain_options(options: FitOptions) -> dict[str, Any]:
    plain = asdict(options)
    plain["solver"]["algorithm"] = _plain_algorithm(options.solver.algorithm)
    return plain


def _plain_algorithm(value: Any) -> Any:
    """A method of integration, and the parts that it is made of, by their names."""
    if not is_dataclass(value):
        return value
    return {"kind": type(value).__name__} | {f.name: _plain_algorithm(getattr(value, f.name)) for f in fields(value)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # running from a source tree
        return "unknown"
