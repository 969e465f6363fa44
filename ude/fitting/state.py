"""The state of one fit while it runs, and what its stages have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ude.errors import InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.fitting.evaluation_log import EvaluationLog, Meter
from ude.fitting.iteration import Callback
from ude.fitting.objective.losses import Prior
from ude.fitting.objective.measurement import Measurement
from ude.fitting.objective.noise import Likelihood, NoiseModel
from ude.fitting.objective.penalties import ParameterPrior, Penalty
from ude.fitting.options import FitOptions
from ude.fitting.posterior.function_prior import FunctionPriors
from ude.fitting.posterior.posterior import Scales, network_tensors
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.hidden_states import HiddenStateMatching
from ude.fitting.simulation.initial_states import InitialStates, InitialValue, starting_values
from ude.fitting.simulation.shooting import Shooting, Windows
from ude.fitting.simulation.trajectory_inputs import Inputs
from ude.fitting.smoothing.smooth import Smoothing
from ude.fitting.smoothing.smooth_points import SmoothPoints
from ude.models import Model
from ude.progress import ProgressBar

COLUMNS = ("stage", "iteration", "loss", "validation", "rate", "evaluations", "steps", "seconds")

# A Jacobian takes a reverse sweep through all simulations for each residual. 20 runs with 1000 numbers took minutes.
_FEW_RESIDUALS = 300

# Tolerance of Gauss-Newton's solves, which compare values of a function that should not be rough.
_SHARP = 1e-6

# Weight of slopes that are hardly known.
_GUESS = 0.1

# A network that has far to go gets there faster if it is held loosely at first.
_FIRST_SLACK = 10.0

# How many times the residuals of a smooth the noise is at most: where fewer are left, the smooth went through the data.
_STRETCHED = 3.0

# Simulations that break down now and then belong to any line search; more than so many, which are more than this
# fraction, are worth a word.
_MANY, _LARGE_PART = 20, 0.25


@dataclass(frozen=True, eq=False)
class Setup:
    """What a fit is asked to do, checked. `whole` is training and validation data together."""

    model: Model
    train: Dataset
    measurement: Measurement
    inputs: Inputs
    initial: Sequence[InitialValue]
    positive: npt.NDArray[np.bool_]
    options: FitOptions
    seed: int = 0
    whole: Dataset | None = None
    noise: Mapping[str, NoiseModel] | None = None
    priors: Mapping[str, ParameterPrior] = field(default_factory=dict)
    penalties: Sequence[Penalty] = ()
    callback: Callback | None = None


class FitState:
    """At every moment `model` and `initial_states()` are usable."""

    #: What `preparation.prepare` sets: the smoothed data and points along it, how far its slopes are to be matched
    #: (state,), the unit of the loss and that of a nat, the priors, and what is known beside the data.
    smoothing: Smoothing
    points: SmoothPoints
    slope_weights: Tensor
    unit: float
    nats: float
    prior: Prior
    functions: FunctionPriors
    scales: Scales
    known: Callable[[], Tensor]
    #: Saves the best so far; called now and then.
    checkpoint: Callable[[], None]

    def __init__(self, setup: Setup, bar: ProgressBar) -> None:
        self.setup, self.bar = setup, bar
        self.model, self.train, self.options = setup.model, setup.train, setup.options
        self.inputs = setup.inputs
        self.meter = Meter()
        self.log = EvaluationLog(self.meter)
        self.rows: list[tuple[object, ...]] = []
        values = self.train.values()
        deviation = np.nanstd(values, axis=0)
        # A constant column has no spread of its own: measure it by its size.
        deviation = np.where(deviation > 1e-12, deviation, np.maximum(np.nanmax(np.abs(values), axis=0), 1.0))
        scale = [self.options.scale.get(name, float(deviation[i])) for i, name in enumerate(self.train.states)]
        self.scale = torch.tensor(scale, dtype=torch.float64)
        self.noise = np.zeros(len(self.train.states))
        self.notes: list[str] = []
        self._place_states(values)
        self.starts_now: Callable[[], Tensor] | None = None
        self.trainable = [p for p in (*self.model.parameters(), *self.inputs.parameters()) if p.requires_grad]
        self.likelihood: Likelihood | None = None
        self.validation: Shooting | None = None
        if not self.trainable and not self.free_starts:
            raise InputError(
                "there is nothing to fit",
                expected="a network, a fitted parameter or a free u0",
                fix="Name parameters to fit (fit=...), or leave u0 out.",
            )

    def _place_states(self, values: Array) -> None:
        """Which states are seen and which hidden, the coordinates of all, and where they start."""
        setup, measurement, states = self.setup, self.setup.measurement, self.model.states
        self.driven: HiddenStateMatching | None = None
        self.hidden = [states.index(state) for state in measurement.unmeasured]
        self.columns = [measurement.column_of[s] for s in states if s in measurement.column_of]
        starts = starting_values(setup.initial, self.spread_out(self.train.first_values()))
        _check_starts(starts, setup.positive, setup.initial)
        state_scale = self.spread_out(self.scale.numpy())
        for i in self.hidden:
            own = self.options.scale.get(states[i], float(np.abs(starts[:, i]).max()))
            state_scale[i] = own if own > 0 else 1.0
        lanes = self.inputs.lanes(torch.arange(len(self.train)))
        self.field = InnerField(self.model, Coordinates(setup.positive, state_scale), lanes)
        self.initial = InitialStates.of(setup.initial, self.field.coordinates, len(self.train))
        self.free_starts = bool(self.initial.free.any())
        self.starts = self.field.coordinates.inner(self.initial.inside(torch.as_tensor(starts)))
        inner = self.field.coordinates.inner(torch.as_tensor(self.spread_out(values, fill=1.0))).numpy()
        self.spread = torch.as_tensor(np.nanstd(inner, axis=0)).clamp(min=1e-6)
        self.spread[self.hidden] = 1.0

    def spread_out(self, columns: Array, fill: float = np.nan) -> Array:
        """What is known of columns (..., column) as states (..., state), `fill` for those that no column measures."""
        seen = [i for i in range(len(self.model.states)) if i not in self.hidden]
        states = np.full((*columns.shape[:-1], len(self.model.states)), fill)
        states[..., seen] = columns[..., self.columns]
        return states

    def positive_columns(self) -> npt.NDArray[np.bool_]:
        """(column,): those of positive states; of formulas, those whose data all are."""
        state_of = {column: state for state, column in self.setup.measurement.column_of.items()}
        least = np.nanmin(self.train.values(), axis=0)
        flags = dict(zip(self.model.states, self.setup.positive, strict=True))
        return np.array([flags[state_of[i]] if i in state_of else least[i] > 0 for i in range(len(least))])

    def overrides(self, points: SmoothPoints) -> Callable[[], dict[str, Tensor] | None]:
        """What stands in the place of the model's parameters at single points, as the parameters are now."""
        if not self.inputs.names:
            return lambda: None
        forcing = self.inputs.forcing_at(points.trajectory, points.t)
        return lambda: {**self.inputs.numbers(points.trajectory), **forcing}

    def initial_states(self) -> Array:
        starts = self.starts if self.starts_now is None else self.starts_now()
        return self.field.coordinates.natural(starts.detach()).numpy()

    def history(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def fitted_numbers(self) -> int:
        scales = 0 if self.likelihood is None else self.likelihood.logs.numel()
        return sum(p.numel() for p in self.trainable) + scales + self._free_starts()

    def _free_starts(self) -> int:
        """How many numbers the starts are: a shared one counts once."""
        own = self.initial.rows == torch.arange(len(self.train)).unsqueeze(-1)
        return int((self.initial.free & own).sum())

    def warn(self) -> None:
        """One warning for all simulations that broke down, if they were many."""
        if self.meter.failed > max(_MANY, _LARGE_PART * self.meter.solves):
            warnings.warn(
                f"{self.meter.failed} of {self.meter.solves} simulations of a window broke down during the fit, and "
                "their missing points cost a penalty. Begin with ude.stages.DerivativeMatching() or shorter windows "
                "(ude.stages.MultipleShooting(window_steps=...)), or bound the parameters.",
                RuntimeWarning,
                stacklevel=3,
            )

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"inputs.{i}": value for i, value in enumerate(self.inputs.parameters())}
        tensors["starts"] = self.starts
        tensors["scales"] = torch.as_tensor(self.scales.numbers())
        if self.likelihood is not None:
            tensors["noise"] = self.likelihood.logs
        return {name: value.detach().clone().contiguous() for name, value in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        self.model.load_state_dict({name[6:]: v for name, v in tensors.items() if name.startswith("model.")})
        with torch.no_grad():
            for i, value in enumerate(self.inputs.parameters()):
                value.copy_(tensors[f"inputs.{i}"])
        self.starts = tensors["starts"]
        if not np.array_equal(self.scales.numbers(), tensors["scales"].numpy()):
            self.scales.assign(tensors["scales"].numpy())
            self.keep_prior()
        if self.likelihood is not None:
            with torch.no_grad():
                self.likelihood.logs.copy_(tensors["noise"])
        self.rows = [tuple(row) for row in notes["rows"]]
        self.meter.restore(notes["meter"])

    def known_residuals(self) -> Tensor:
        """What is known beside the data; the sum of squares adds to the loss."""
        return torch.cat([self.prior.residuals(), self.known()])

    def keep_prior(self) -> None:
        """Have later stages, whatever their optimizers, keep the prior that the data chose."""
        weights, scales = network_tensors(self.model), self.scales
        factor = (self.unit / 2.0) ** 0.5  # a nat in the loss
        whitener = factor * torch.as_tensor(self.functions.whitener(scales.functions))
        self.prior = Prior(
            tuple(weights),
            tuple(float(a) * factor**2 for a in scales.alphas),
            (lambda: whitener @ self.functions.values()) if len(self.functions) else None,
        )

    def validate(self) -> float:
        """Mean square, in scales, of the prediction of the validation data from the starts as they are."""
        if self.validation is None or self.starts_now is None:
            return float("nan")
        case, starts = self.validation, self.starts_now()

        def compute() -> Array:
            with torch.no_grad():
                return np.array([float((case.residuals(starts) ** 2).sum())])

        return float(self.log(compute)[0])


def shooting_of(state: FitState, windows: Windows) -> Shooting:
    field = InnerField(state.model, state.field.coordinates, state.inputs.lanes(windows.trajectory))
    return Shooting(
        field,
        windows,
        state.scale,
        state.spread,
        state.options.solver,
        state.setup.measurement,
        state.meter,
        state.likelihood,
        state.nats,
    )


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
