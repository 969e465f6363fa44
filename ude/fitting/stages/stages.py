"""The stages of a fit, each an object: what it simulates, how its loss is minimized, who is told of every iteration."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ude.errors import InputError, unusable
from ude.fitting.data.dataset import Dataset
from ude.fitting.losses import network_weights
from ude.fitting.optimizers.optimizers import LBFGS, Optimizer
from ude.fitting.shooting import cut
from ude.models import Model

if TYPE_CHECKING:
    from ude.fitting.state import Training


@dataclass(frozen=True, eq=False)
class Iteration:
    """What a callback is told: the loss is the best so far, and `model` is at that point.

    iteration, evaluations: of this stage. validation: NaN where it was not looked at. rate: of Adam, else NaN.
    steps: of the solver since the start. total: iterations of the whole fit.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> seen = []
    >>> def stop(iteration):
    ...     seen.append(iteration)
    ...     return iteration.loss < 1e-3  # True ends the stage
    >>> fit = ude.fit(model, data, stages="single shooting", callback=stop, holdout=0, progress=False)
    >>> len(seen) > 0 and seen[0].stage
    'single shooting'
    """

    stage: str
    iteration: int
    loss: float
    validation: float
    model: Model
    rate: float = math.nan
    evaluations: int = 0
    steps: int = 0
    total: int = 0


_MOST_DRIVEN_ITERATIONS = 200

Callback = Callable[[Iteration], bool | None]


@dataclass(frozen=True)
class Stage(ABC):
    """One stage of a fit.

    optimizers: one after another, such as ``(ude.optimizers.Adam(500), ude.optimizers.LBFGS(200))``; left out:
                `LevenbergMarquardt` where a model has no networks and the loss is a sum of few squares,
                else Adam and L-BFGS as in `FitOptions`
    callback:   called with an `Iteration` after every iteration; True ends the stage
    """

    optimizers: tuple[Optimizer, ...] | None = None
    callback: Callback | None = field(default=None, compare=False, repr=False)

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        given = self.optimizers
        if given is not None and not (isinstance(given, tuple) and all(isinstance(o, Optimizer) for o in given)):
            raise InputError(
                f"optimizers of {type(self).__name__} are not usable",
                expected="a tuple such as (ude.optimizers.Adam(500), ude.optimizers.LBFGS(200))",
                got=repr(given),
            )

    @abstractmethod
    def run(self, training: Training) -> None:
        """Move the model, and the starts of its trajectories, to where the loss of this stage is small."""


@dataclass(frozen=True)
class DerivativeMatching(Stage):
    """Fit ``f(u_smooth, t)`` to ``du_smooth/dt`` along the smoothed data: no simulation, nothing to break down.

    The smooth is a Gaussian process, or a smoothing spline of long data, whose noise level is estimated. Source: J. M.
    Varah, SIAM J. Sci. Stat. Comput. 3 (1982) 28.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages=ude.stages.DerivativeMatching(), holdout=0, progress=False)
    >>> abs(fit.model.values()["k"] - 1.5) < 0.1  # as good as the slopes of a smooth through nine points
    True
    """

    name: ClassVar[str] = "derivatives"

    def run(self, training: Training) -> None:
        if not training.trainable:
            return
        if training.driven is not None:
            if not bool(training.driven.use.any()):
                training.notes.append(f"{self.name} left out: no column measures just one state")
                return
            # Every evaluation is a solve, so Adam's many cheap steps are left out.
            few = min(training.options.derivative_iterations[1], _MOST_DRIVEN_ITERATIONS)
            training.match_driven(self, training.driven, self.optimizers or (LBFGS(few),))
            return
        points = training.points
        overrides = training.overrides(points)
        size = points.du.square().mean(0).sqrt().clamp(min=1e-12)

        def residuals() -> Tensor:
            wrong = (training.model(points.u, overrides(), points.t) - points.du) / size * training.belief
            return torch.cat([wrong.reshape(-1) / wrong.numel() ** 0.5, training.known_residuals()])

        optimizers = self.optimizers or training.default_optimizers(*training.options.derivative_iterations, 0)
        with training.stage(self, optimizers) as log:
            objective = training.objective(lambda: (residuals() ** 2).sum(), [], residuals=residuals, batched=True)
            if points.variance is not None and network_weights(training.model):
                # Morozov's principle: what comes closer than the truth would follows the errors of the smooth
                unsure = float((points.variance / size**2 * training.belief**2).mean())
                if math.isfinite(unsure):
                    objective.enough = unsure
            log.minimize(objective, optimizers)


@dataclass(frozen=True)
class MultipleShooting(Stage):
    """Simulate short windows from free initial states, tied together by a growing penalty (`shooting`).

    window_steps: intervals of data in a window; None: a quarter of the longest trajectory, 3 to 20
    continuity:   the penalties, one after another; None: those of `FitOptions`

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.MultipleShooting(window_steps=4, continuity=(1.0, 10.0))],
    ... )
    >>> abs(fit.model.values()["k"] - 1.5) < 0.01
    True
    """

    window_steps: int | None = None
    continuity: tuple[float, ...] | None = None

    name: ClassVar[str] = "multiple shooting"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_steps is not None and self.window_steps < 1:
            raise unusable(self, "window_steps", "at least 1")
        if self.continuity is not None and not all(c > 0 for c in self.continuity):
            raise unusable(self, "continuity", "positive penalties")

    def run(self, training: Training) -> None:
        options = training.options
        longest = max(len(trajectory) for trajectory in training.train.trajectories) - 1
        steps = self.window_steps or options.window_steps or min(max(round(longest / 4), 3), 20)
        windows = cut(training.train, steps)
        if not len(windows.linked):
            return
        free = training.smooth_starts(windows)
        followers = {row + 1 for row in windows.linked.tolist()}
        heads = torch.tensor([row for row in range(len(windows)) if row not in followers])
        number = int(windows.mask.sum()) + len(windows.linked) * len(training.train.states)
        optimizers = self.optimizers or training.default_optimizers(0, options.multiple_iterations, number)
        shooting = training.shooting(windows)
        rounds = [(shooting, continuity) for continuity in self.continuity or options.continuity]
        training.shoot(self, rounds, free, heads, optimizers)


@dataclass(frozen=True)
class GrowingHorizon(Stage):
    """Simulate from the start of every trajectory, first only as far as a fraction of its points, then ever further.

    fractions: increasing, the last one 1

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.GrowingHorizon(fractions=(0.5, 1.0))],
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)

    name: ClassVar[str] = "growing horizon"

    def __post_init__(self) -> None:
        super().__post_init__()
        increasing = all(0 < a < b for a, b in zip(self.fractions[:-1], self.fractions[1:], strict=True))
        if not self.fractions or not increasing or not 0 < self.fractions[-1] == 1:
            raise unusable(self, "fractions", "increasing numbers above 0, the last one 1")

    def run(self, training: Training) -> None:
        number = sum(training.train.counts().values())
        optimizers = self.optimizers or training.default_optimizers(0, training.options.multiple_iterations, number)
        rounds = [(training.shooting(cut(_beginning(training.train, f))), 0.0) for f in self.fractions]
        training.shoot(self, rounds, training.starts, torch.arange(len(training.train)), optimizers)


@dataclass(frozen=True)
class SingleShooting(Stage):
    """Simulate whole trajectories from their initial states: the likelihood of the data itself.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.SingleShooting((ude.optimizers.LevenbergMarquardt(20),))],
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    name: ClassVar[str] = "single shooting"

    def run(self, training: Training) -> None:
        number = sum(training.train.counts().values())
        optimizers = self.optimizers or training.default_optimizers(*training.options.single_iterations, number)
        shooting = training.shooting(cut(training.train))
        training.shoot(self, [(shooting, 0.0)], training.starts, torch.arange(len(training.train)), optimizers)


STAGES = (DerivativeMatching.name, MultipleShooting.name, SingleShooting.name)


def checked_stages(stages: Sequence[str | Stage] | str | Stage | None) -> tuple[Stage, ...]:
    """The stages as objects; None: the default recipe. Raises InputError for what is no stage, and for names that are
    unknown or not in the order of the recipe."""
    if stages is None:
        stages = STAGES
    chosen = (stages,) if isinstance(stages, str | Stage) else tuple(stages)
    if all(isinstance(stage, Stage) for stage in chosen):
        return tuple(stage for stage in chosen if isinstance(stage, Stage))
    names = [stage.name if isinstance(stage, Stage) else stage for stage in chosen]
    ordered = [name for name in names if name in STAGES]
    known = all(isinstance(stage, Stage) or stage in STAGES for stage in chosen)
    if not known or sorted(ordered, key=STAGES.index) != list(dict.fromkeys(ordered)):
        raise InputError(
            "stages are not usable",
            expected=f"some of {', '.join(map(repr, STAGES))}, in this order, or objects of ude.stages",
            got=repr(stages),
        )
    kinds: dict[str, type[Stage]] = {kind.name: kind for kind in (DerivativeMatching, MultipleShooting, SingleShooting)}
    return tuple(stage if isinstance(stage, Stage) else kinds[stage]() for stage in chosen)


def _beginning(data: Dataset, fraction: float) -> Dataset:
    trajectories = []
    for trajectory in data.trajectories:
        points = min(max(round(fraction * len(trajectory)), 2), len(trajectory))
        trajectories.append(trajectory.part(slice(points)))
    return replace(data, trajectories=tuple(trajectories))
