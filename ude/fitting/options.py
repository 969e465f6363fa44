"""How a fit is carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Real
from typing import Any, Literal

import numpy as np

from ude.errors import InputError
from ude.fitting.simulation.shooting import SolverOptions
from ude.vocabulary import OF_FIT, named_arguments


@named_arguments(OF_FIT)
@dataclass(frozen=True)
class FitOptions:
    """How a fit is carried out; the defaults need no tuning for tens to hundreds of points.

    solver:       tolerance of the solves in training (the result is simulated more tightly) and their most steps
    scale:        state -> what a misfit of that state is divided by; the standard deviation of its data when left out
    weight_prior: 1/variance of the Gaussian prior on network weights; 0 for none
    prior:        on what networks compute where the data are ("functions"), or on the size of their "weights" alone
    rescale:      set the input and output scales of networks that have none
    derivative_iterations: of Adam, then of L-BFGS, matching derivatives; their sum is for least squares. A network is
        not trained further than the slopes of the smoothed data are known
    window_steps: intervals of data in a window of multiple shooting; None: a quarter of the longest trajectory, 3 to 20
    continuity:   the penalties of multiple shooting, one after another
    multiple_iterations: L-BFGS iterations with each penalty
    single_iterations: of Adam, then of L-BFGS, in single shooting
    gauss_newton_iterations: with each penalty, and in single shooting, where a model has networks
    stall:        a stage ends when its last iterations lowered the loss by less than this fraction

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages="single shooting",
    ...     options=ude.FitOptions(single_iterations=(0, 20)),
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    solver: SolverOptions = SolverOptions()
    scale: Mapping[str, float] = field(default_factory=dict)
    weight_prior: float = 0.3
    prior: Literal["functions", "weights"] = "functions"
    rescale: bool = True
    derivative_iterations: tuple[int, int] = (0, 300)
    window_steps: int | None = None
    continuity: tuple[float, ...] = (1.0, 10.0, 100.0)
    multiple_iterations: int = 30
    single_iterations: tuple[int, int] = (0, 120)
    gauss_newton_iterations: int = 80
    stall: float = 1e-3
    validation_every: int = 5
    validation_patience: int = 20
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        _require(isinstance(self.solver, SolverOptions), "solver", "ude.fitting.SolverOptions(...)", self.solver)
        _require(self.prior in ("functions", "weights"), "prior", "'functions' or 'weights'", self.prior)
        _require(isinstance(self.rescale, bool), "rescale", "True or False", self.rescale)
        for name in ("weight_prior", "stall", "checkpoint_seconds"):
            value = getattr(self, name)
            _require(is_number(value) and 0 <= value < inf, name, "zero or a positive number", value)
        for name in ("derivative_iterations", "single_iterations"):
            pair = getattr(self, name)
            counts = isinstance(pair, Sequence) and len(pair) == 2 and all(is_count(count, 0) for count in pair)
            _require(counts, name, "two counts, of Adam and of L-BFGS: (0, 300)", pair)
        for name in ("validation_every", "validation_patience"):
            _require(is_count(getattr(self, name), 1), name, "a whole number, at least 1", getattr(self, name))
        for name in ("multiple_iterations", "gauss_newton_iterations"):
            _require(is_count(getattr(self, name), 0), name, "a whole number, zero or more", getattr(self, name))
        steps = self.window_steps
        _require(steps is None or is_count(steps, 1), "window_steps", "a whole number, at least 1", steps)
        _require(are_penalties(self.continuity), "continuity", "positive penalties: (1.0, 10.0)", self.continuity)
        _require(isinstance(self.scale, Mapping), "scale", "a dict from states to numbers", self.scale)
        for state, value in self.scale.items():
            _require(is_number(value) and 0 < value < inf, f"scale of {state!r}", "a positive number", value)


def are_penalties(given: object) -> bool:
    """Whether these are penalties of jumps, one after another."""
    return isinstance(given, Sequence) and bool(given) and all(is_number(value) and value > 0 for value in given)


def is_number(value: Any) -> bool:
    """Whether this is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: Any, least: int) -> bool:
    """Whether this is a whole number, at least `least`."""
    return not isinstance(value, bool) and isinstance(value, int | np.integer) and int(value) >= least


def _require(holds: bool, name: str, rule: str, got: object) -> None:
    if not holds:
        raise InputError(f"{name} of FitOptions must be {rule}", got=repr(got))
