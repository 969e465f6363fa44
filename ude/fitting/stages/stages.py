"""The stages of a fit, each an object: what it simulates, how its loss is minimized, who is told of every iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ude.errors import InputError, invalid_field
from ude.fitting.data.dataset import Dataset
from ude.fitting.objective.losses import network_weights
from ude.fitting.optimizers.optimizers import LBFGS
from ude.fitting.options import are_penalties, is_count, is_number
from ude.fitting.simulation.shooting import cut
from ude.fitting.stages.base import Stage
from ude.fitting.stages.minimization import (
    default_optimizers,
    match_hidden,
    objective_of,
    open_log,
    shoot,
    smooth_starts,
)
from ude.fitting.state import FitState, shooting_of
from ude.vocabulary import OF_STAGE, named_arguments

_MOST_DRIVEN_ITERATIONS = 200


@named_arguments(OF_STAGE)
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

    def run(self, state: FitState) -> None:
        if not state.trainable:
            return
        if state.driven is not None:
            if not bool(state.driven.use.any()):
                state.notes.append(f"{self.name} left out: no column measures just one state")
                return
            # Every evaluation is a solve, so Adam's many cheap steps are left out.
            few = min(state.options.derivative_iterations[1], _MOST_DRIVEN_ITERATIONS)
            match_hidden(state, self, state.driven, self.optimizers or (LBFGS(few),))
            return
        points = state.points
        overrides = state.overrides(points)
        size = points.du.square().mean(0).sqrt().clamp(min=1e-12)

        def residuals() -> Tensor:
            wrong = (state.model(points.u, overrides(), points.t) - points.du) / size * state.slope_weights
            return torch.cat([wrong.reshape(-1) / wrong.numel() ** 0.5, state.known_residuals()])

        optimizers = self.optimizers or default_optimizers(state, *state.options.derivative_iterations, 0)
        with open_log(state, self, optimizers) as log:
            objective = objective_of(state, lambda: (residuals() ** 2).sum(), [], residuals=residuals, batched=True)
            if points.variance is not None and network_weights(state.model):
                # Morozov's principle: what comes closer than the truth would follows the errors of the smooth
                unsure = float((points.variance / size**2 * state.slope_weights**2).mean())
                if math.isfinite(unsure):
                    objective.enough = unsure
            log.minimize(objective, optimizers)


@named_arguments(OF_STAGE)
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
        if self.window_steps is not None and not is_count(self.window_steps, 1):
            raise invalid_field(self, "window_steps", "a whole number, at least 1")
        if self.continuity is not None and not are_penalties(self.continuity):
            raise invalid_field(self, "continuity", "positive penalties: (1.0, 10.0)")

    def run(self, state: FitState) -> None:
        options = state.options
        longest = max(len(trajectory) for trajectory in state.train.trajectories) - 1
        steps = self.window_steps or options.window_steps or min(max(round(longest / 4), 3), 20)
        windows = cut(state.train, steps)
        if not len(windows.linked):
            return
        free = smooth_starts(state, windows)
        followers = {row + 1 for row in windows.linked.tolist()}
        heads = torch.tensor([row for row in range(len(windows)) if row not in followers])
        number = int(windows.mask.sum()) + len(windows.linked) * len(state.train.states)
        optimizers = self.optimizers or default_optimizers(state, 0, options.multiple_iterations, number)
        shooting = shooting_of(state, windows)
        rounds = [(shooting, continuity) for continuity in self.continuity or options.continuity]
        shoot(state, self, rounds, free, heads, optimizers)


@named_arguments(OF_STAGE)
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
        rule = "increasing numbers above 0, the last one 1"
        if not isinstance(self.fractions, Sequence) or not all(is_number(value) for value in self.fractions):
            raise invalid_field(self, "fractions", rule)
        increasing = all(0 < a < b for a, b in zip(self.fractions[:-1], self.fractions[1:], strict=True))
        if not self.fractions or not increasing or not 0 < self.fractions[-1] == 1:
            raise invalid_field(self, "fractions", rule)

    def run(self, state: FitState) -> None:
        number = sum(state.train.counts().values())
        optimizers = self.optimizers or default_optimizers(state, 0, state.options.multiple_iterations, number)
        rounds = [(shooting_of(state, cut(_beginning(state.train, f))), 0.0) for f in self.fractions]
        shoot(state, self, rounds, state.starts, torch.arange(len(state.train)), optimizers)


@named_arguments(OF_STAGE)
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

    def run(self, state: FitState) -> None:
        number = sum(state.train.counts().values())
        optimizers = self.optimizers or default_optimizers(state, *state.options.single_iterations, number)
        shooting = shooting_of(state, cut(state.train))
        shoot(state, self, [(shooting, 0.0)], state.starts, torch.arange(len(state.train)), optimizers)


STAGES = (DerivativeMatching.name, MultipleShooting.name, SingleShooting.name)


def checked_stages(stages: Sequence[str | Stage] | str | Stage | None) -> tuple[Stage, ...]:
    """The stages as objects; None: the default recipe. Raises InputError for what is no stage, and for names that are
    unknown or not in the order of the recipe."""
    if stages is None:
        stages = STAGES
    if not isinstance(stages, str | Stage | Iterable) or isinstance(stages, type):
        raise InputError("stages must be names or objects of ude.stages", got=repr(stages))
    chosen = (stages,) if isinstance(stages, str | Stage) else tuple(stages)
    if all(isinstance(stage, Stage) for stage in chosen):
        return tuple(stage for stage in chosen if isinstance(stage, Stage))
    names = [stage.name if isinstance(stage, Stage) else stage for stage in chosen]
    ordered = [name for name in names if name in STAGES]
    known = all(isinstance(stage, Stage) or stage in STAGES for stage in chosen)
    if not known or sorted(ordered, key=STAGES.index) != list(dict.fromkeys(ordered)):
        raise InputError(
            f"stages must be some of {', '.join(map(repr, STAGES))}, in this order, or objects of ude.stages",
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
