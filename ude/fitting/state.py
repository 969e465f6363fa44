"""The state of one fit while it runs, and what its stages have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ude.errors import InputError
from ude.fitting import starting_values as initialize
from ude.fitting.coordinates import Coordinates, InnerField
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.fitting.initial_states import InitialStates, InitialValue, starting_values
from ude.fitting.losses import Prior, network_weights
from ude.fitting.measurement import Measurement
from ude.fitting.noise import Likelihood, NoiseModel
from ude.fitting.optimizers.gauss_newton import GaussNewton
from ude.fitting.optimizers.optimizers import LBFGS, Adam, LevenbergMarquardt, Objective, Optimizer
from ude.fitting.options import FitOptions
from ude.fitting.penalties import ParameterPrior, Penalty, Scene, bind_all
from ude.fitting.posterior.function_prior import FunctionPrior, FunctionPriors, function_priors
from ude.fitting.posterior.posterior import Posterior, Scales, WindowStarts, network_tensors
from ude.fitting.shooting import Shooting, Windows, cut
from ude.fitting.smooth_points import SmoothPoints
from ude.fitting.smoothing import interpolate_rare, rarely_seen, smooth
from ude.fitting.stages.hidden_states import HiddenStateMatching
from ude.fitting.stages.stage_log import StageLog
from ude.fitting.stages.stages import Callback, Stage
from ude.fitting.stiffness import algorithm_for
from ude.fitting.storage.evaluation_log import EvaluationLog, Meter
from ude.fitting.storage.fit_folder import FitFolder
from ude.fitting.trajectory_inputs import Inputs
from ude.methods import Tsit5
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


class Training:
    """At every moment `model` and `initial_states()` are usable."""

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
        self._starts_now: Callable[[], Tensor] | None = None
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
        inputs = self.inputs.batch(torch.arange(len(self.train)))
        self.field = InnerField(self.model, Coordinates(setup.positive, state_scale), inputs)
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

    # -- the whole ------------------------------------------------------------------------------------------------

    def run(self, stages: Sequence[Stage], folder: FitFolder | None, checkpoint: Callable[[], None]) -> None:
        """Prepare, then one stage after another; those that the folder holds are read from it."""
        self.checkpoint = checkpoint
        self._prepare()
        for index, stage in enumerate(stages):
            done = folder.finished(index) if folder is not None else None
            if done is not None:
                self._restore(*done)
                continue
            path = folder.log_path(index) if folder is not None else None
            with EvaluationLog(self.meter, path) as self.log:
                stage.run(self)
            if folder is not None:
                folder.finish(index, self._tensors(), {"rows": self.rows, "meter": self.meter.state()})

    def _prepare(self) -> None:
        setup, options = self.setup, self.options
        self.smoothing = smooth(self.train, self.positive_columns())
        if network_weights(self.model):
            self.smoothing = interpolate_rare(self.smoothing, self.train)
        self.noise = self.smoothing.noise
        first = np.stack([self.smoothing(i, tr.t[:1])[0][0] for i, tr in enumerate(self.train.trajectories)])
        starts = starting_values(setup.initial, self.spread_out(first))
        self.starts = self.field.coordinates.inner(self.initial.inside(torch.as_tensor(starts)))
        initialize.redraw_networks(self.model, setup.seed)
        points = SmoothPoints.along(self.train, self.smoothing)
        # columns and their rates, in logarithms where they are positive
        columns = Coordinates(self.positive_columns(), self.scale.numpy())
        unset = initialize.unset_parameters(self.model)
        rate = initialize.rate_of(columns.inner(points.u), columns.inner_rate(points.u, points.du))
        self.model.set_values(initialize.start_values(unset, rate))
        self.inputs.begin(self.model.values())
        if self.hidden:
            self.driven = HiddenStateMatching.along(
                self.field, self.hidden, self.train, self.smoothing, self.spread_out
            )
            rows = torch.arange(len(self.train)).repeat_interleave(self.driven.states.t.shape[1])
            points = SmoothPoints(*self.driven.points(self.starts, options.solver), rows)
        else:
            points = points.of(self.columns)
        self.points = points
        self.belief = self._belief()
        if options.rescale:
            initialize.set_network_scales(self.model, points.u, points.du, points.t, self.overrides(points)())
        self._choose_algorithm()
        relative = max(float(np.sqrt(np.mean((self.noise / self.scale.numpy()) ** 2))), 1e-3)
        observations = sum(self.train.counts().values())
        # N observations of noise ν: -log p of the data is N r²/2ν², which in the mean square r² is 2ν²/N a unit.
        unit = 2.0 * relative**2 / observations
        self.unit, self.nats = unit, unit * observations
        self.prior = Prior.of(self.model, relative, observations, options.weight_prior)
        self.functions = FunctionPriors(self._function_priors())
        self.scales = Scales.of(
            network_tensors(self.model), self.noise, self.scale.numpy(), options.weight_prior, self.functions
        )
        self.known = bind_all(Scene(self.model, points.u, points.t, unit), setup.priors, setup.penalties)
        if setup.noise is not None:
            observed = torch.as_tensor(self.train.values())
            self.likelihood = Likelihood(setup.noise, observed, torch.isfinite(observed), self.noise.tolist())
            self.likelihood.estimate(self._as_smoothed(observed), observed)
        if setup.whole is not None:
            self.validation = self._validation(setup.whole)

    def _as_smoothed(self, observed: Float[Tensor, "*trajectory point column"]) -> Tensor:
        """The smooth where there are data, as far from them as the noise is: a smooth follows it to some degree."""
        shown = np.concatenate([self.smoothing(i, tr.t)[0] for i, tr in enumerate(self.train.trajectories)])
        wrong = observed.numpy() - shown
        size = np.sqrt(np.nansum(wrong**2, axis=0) / np.maximum(np.isfinite(wrong).sum(axis=0), 1))
        stretch = np.clip(self.noise / np.maximum(size, 1e-300), 1.0, _STRETCHED)
        return torch.as_tensor(observed.numpy() - stretch * wrong)

    def _function_priors(self) -> tuple[FunctionPrior, ...]:
        if self.options.prior != "functions" or not self.options.weight_prior:
            return ()
        points = self.points
        return function_priors(self.model, points.u, self.overrides(points)(), points.t)

    def _belief(self) -> Float[Tensor, " state"]:
        """How far the slopes of the smooth are to be matched: those of states that were seen much more rarely than
        others only as a first guess, as a smooth of a few points says little."""
        # A few parameters are held together by all equations; left out, those of one would move anywhere.
        often = ~rarely_seen(self.train) | (not network_weights(self.model))
        column_of = self.setup.measurement.column_of
        flags = [state not in column_of or bool(often[column_of[state]]) for state in self.model.states]
        return torch.where(torch.tensor(flags), 1.0, _GUESS).double()

    def _choose_algorithm(self) -> None:
        """A method for all simulations of this fit, by the equations along the smoothed data."""
        if self.options.solver.algorithm is not None:
            return
        points = self.points
        longest = max(len(trajectory) for trajectory in self.train.trajectories)
        z = self.field.coordinates.inner(points.u)
        known = torch.isfinite(z).all(-1)
        algorithm = algorithm_for(self.field, z[known], points.t[known], points.trajectory[known], longest)
        if not isinstance(algorithm, Tsit5):
            self.notes.append(f"simulated by {algorithm.name}: the equations are stiff along the data")
        self.options = replace(self.options, solver=replace(self.options.solver, algorithm=algorithm))

    def overrides(self, points: SmoothPoints) -> Callable[[], dict[str, Tensor] | None]:
        """What stands in the place of the model's parameters at single points, as the parameters are now."""
        if not self.inputs.names:
            return lambda: None
        forcing = self.inputs.forcing_at(points.trajectory, points.t)
        return lambda: {**self.inputs.numbers(points.trajectory), **forcing}

    def initial_states(self) -> Array:
        starts = self.starts if self._starts_now is None else self._starts_now()
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

    # -- what a stage leaves behind -------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"inputs.{i}": value for i, value in enumerate(self.inputs.parameters())}
        tensors["starts"] = self.starts
        tensors["scales"] = torch.as_tensor(self.scales.numbers())
        if self.likelihood is not None:
            tensors["noise"] = self.likelihood.logs
        return {name: value.detach().clone().contiguous() for name, value in tensors.items()}

    def _restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        self.model.load_state_dict({name[6:]: v for name, v in tensors.items() if name.startswith("model.")})
        with torch.no_grad():
            for i, value in enumerate(self.inputs.parameters()):
                value.copy_(tensors[f"inputs.{i}"])
        self.starts = tensors["starts"]
        if not np.array_equal(self.scales.numbers(), tensors["scales"].numpy()):
            self.scales.assign(tensors["scales"].numpy())
            self._keep_prior()
        if self.likelihood is not None:
            with torch.no_grad():
                self.likelihood.logs.copy_(tensors["noise"])
        self.rows = [tuple(row) for row in notes["rows"]]
        self.meter.restore(notes["meter"])

    # -- for stages -----------------------------------------------------------------------------------------------

    def default_optimizers(self, first: int, second: int, residuals: int) -> tuple[Optimizer, ...]:
        """Gauss-Newton steps with networks; least squares where there are few parameters and few squares; else Adam,
        then L-BFGS."""
        if residuals and network_weights(self.model) and self.likelihood is None:
            return (GaussNewton(self.options.gauss_newton_iterations),)
        if not network_weights(self.model) and self.likelihood is None and residuals <= _FEW_RESIDUALS:
            return (LevenbergMarquardt(first + second),)
        return (Adam(first), LBFGS(second))

    def known_residuals(self) -> Tensor:
        """What is known beside the data; the sum of squares adds to the loss."""
        return torch.cat([self.prior.residuals(), self.known()])

    def objective(
        self,
        loss: Callable[[], Tensor],
        more: Sequence[Tensor],
        *,
        residuals: Callable[[], Tensor] | None,
        batched: bool = False,
        posterior: Posterior | None = None,
    ) -> Objective:
        return Objective(
            loss,
            [*self.trainable, *more],
            residuals=residuals,
            record=self.log,
            decays=network_weights(self.model),
            floor=0.0 if self.likelihood is None else self.nats,
            batched=batched,
            posterior=posterior,
        )

    def stage(self, stage: Stage, optimizers: Sequence[Optimizer], rounds: int = 1) -> StageLog:
        total = rounds * sum(optimizer.iterations for optimizer in optimizers)
        return StageLog(self, stage, self.bar.stage(stage.name, total))

    def smooth_starts(self, windows: Windows) -> Tensor:
        """The smoothed data at the start of each window, in inner coordinates."""
        if self.driven is not None:
            return self.driven.at(self.starts, windows.trajectory, windows.t[:, 0], self.options.solver)
        starts = [self.smoothing(int(i), windows.t[row, :1].numpy())[0][0] for row, i in enumerate(windows.trajectory)]
        return self.field.coordinates.inner(torch.as_tensor(self.spread_out(np.stack(starts))))

    def shooting(self, windows: Windows) -> Shooting:
        field = InnerField(self.model, self.field.coordinates, self.inputs.batch(windows.trajectory))
        return Shooting(
            field,
            windows,
            self.scale,
            self.spread,
            self.options.solver,
            self.setup.measurement,
            self.meter,
            self.likelihood,
            self.nats,
        )

    def _limited(self, shooting: Shooting, starts: Tensor) -> Shooting:
        (most,) = self.log(lambda: np.array([float(shooting.most_steps(starts))]))
        return replace(shooting, options=replace(shooting.options, maxiters=int(most)))

    def match_driven(self, stage: Stage, driven: HiddenStateMatching, optimizers: Sequence[Optimizer]) -> None:
        """Match the rates of the measured states, the others being simulated along."""
        offset = torch.zeros_like(self.starts, requires_grad=True)
        starts = self.starts

        def now() -> Tensor:
            return self.initial.place(starts, offset, self.spread)

        def loss() -> Tensor:
            return driven(now(), self.options.solver) + (self.known_residuals() ** 2).sum()

        self._starts_now = lambda: now().detach()
        try:
            with self.stage(stage, optimizers) as log:
                log.minimize(self.objective(loss, [offset], residuals=None), optimizers)
        finally:
            self._starts_now = None
            self.starts = now().detach().clone()

    def shoot(
        self,
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
        kept = ~self.initial.free
        kept[:, self.hidden] = True
        begin = self.initial.inside(self.field.coordinates.natural(torch.where(kept, self.starts, starts[heads])))
        starts = starts.index_copy(0, heads, self.field.coordinates.inner(begin))
        place = WindowStarts(starts, heads, self.initial, self.spread)

        def now() -> Tensor:
            return place(offset)

        more = [offset] if self.free_starts or len(heads) < len(starts) else []
        posteriors = [
            self._posterior(case, place, offset, bool(more), weight, slack)
            for (case, weight), slack in zip(rounds, _slacks(len(rounds)), strict=True)
        ]
        optimizers = self._usable(stage, optimizers, posteriors)
        if any(isinstance(optimizer, LevenbergMarquardt | GaussNewton) for optimizer in optimizers):
            self.meter.hurry()  # a Jacobian takes many sweeps
        if self.likelihood is not None and self.likelihood.logs.numel():
            more.append(self.likelihood.logs)
        self._starts_now = lambda: now().detach()[heads]
        try:
            with self.stage(stage, optimizers, len(rounds)) as log:
                last: Shooting | None = None
                for (shooting, continuity), posterior in zip(rounds, posteriors, strict=True):
                    if shooting is not last:
                        last, limited = shooting, self._limited(shooting, now().detach())

                    def residuals(case: Shooting = limited, weight: float = continuity) -> Tensor:
                        return torch.cat([case.residuals(now(), weight), self.known_residuals()])

                    def loss(case: Shooting = limited, weight: float = continuity) -> Tensor:
                        return case(now(), weight) + (self.known_residuals() ** 2).sum()

                    squares = residuals if self.likelihood is None else None
                    objective = self.objective(loss, more, residuals=squares, posterior=posterior)
                    log.minimize(objective, optimizers)
        finally:
            self._starts_now = None
            self.starts = now().detach()[heads].clone()
            if any(isinstance(optimizer, GaussNewton) for optimizer in optimizers):
                self._keep_prior()

    def _posterior(
        self, shooting: Shooting, place: WindowStarts, offset: Tensor, free: bool, continuity: float, slack: float
    ) -> Posterior:
        options = shooting.options
        if options.tolerance is None:
            options = replace(options, tolerance=_SHARP)
        return Posterior(
            shooting=replace(shooting, options=options),
            starts=place,
            offset=offset,
            free_starts=free,
            parameters=self.trainable,
            groups=network_tensors(self.model),
            known=self.known,
            continuity=continuity,
            unit=self.unit,
            scales=self.scales,
            functions=self.functions,
            slack=slack,
        )

    def _usable(
        self, stage: Stage, optimizers: Sequence[Optimizer], posteriors: Sequence[Posterior]
    ) -> Sequence[Optimizer]:
        """The optimizers, or those that serve where Gauss-Newton steps cannot be taken."""
        if not any(isinstance(optimizer, GaussNewton) for optimizer in optimizers):
            return optimizers
        reasons = [posterior.why_not() for posterior in posteriors]
        if self.likelihood is not None:
            reasons.insert(0, "noise models are given, whose scales it does not estimate")
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            return optimizers
        if stage.optimizers is not None:
            raise InputError(f"GaussNewton cannot be used: {reason}", fix="Use Adam() and LBFGS().")
        self.notes.append(f"{stage.name} by L-BFGS: {reason}")
        return (LBFGS(self.options.single_iterations[1]),)

    def _keep_prior(self) -> None:
        """Have later stages, whatever their optimizers, keep the prior that the data chose."""
        weights, scales = network_tensors(self.model), self.scales
        factor = (self.unit / 2.0) ** 0.5  # a nat in the loss
        whitener = factor * torch.as_tensor(self.functions.whitener(scales.functions))
        self.prior = Prior(
            tuple(weights),
            tuple(float(a) * factor**2 for a in scales.alphas),
            (lambda: whitener @ self.functions.values()) if len(self.functions) else None,
        )

    # -- validation -----------------------------------------------------------------------------------------------

    def _validation(self, whole: Dataset) -> Shooting:
        windows = cut(whole)
        mask = windows.mask.clone()
        for row, trajectory in enumerate(self.train.trajectories):
            mask[row, : len(trajectory)] = False
        return replace(self.shooting(replace(windows, mask=mask)), likelihood=None)

    def validate(self) -> float:
        """Mean square, in scales, of the prediction of the validation data from the starts as they are."""
        if self.validation is None or self._starts_now is None:
            return float("nan")
        case, starts = self.validation, self._starts_now()

        def compute() -> Array:
            with torch.no_grad():
                return np.array([float((case.residuals(starts) ** 2).sum())])

        return float(self.log(compute)[0])


def _slacks(rounds: int) -> list[float]:
    """How loosely networks are held to their prior in one round after another: in the end, as tightly as usual."""
    return [_FIRST_SLACK ** ((rounds - 1 - i) / max(rounds - 1, 1)) for i in range(rounds)]


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
