"""A stage of a fit: what it simulates, how its loss is minimized, who is told of every iteration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ude.errors import InputError
from ude.fitting.iteration import Callback
from ude.fitting.optimizers.optimizers import Optimizer
from ude.fitting.state import FitState
from ude.problems.function import require_callable


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
                f"optimizers of {type(self).__name__} must be a tuple of optimizers",
                expected="one such as (ude.optimizers.Adam(500), ude.optimizers.LBFGS(200))",
                got=repr(given),
            )

        if self.callback is not None:
            require_callable(self.callback, "callback", "iteration")

    @abstractmethod
    def run(self, state: FitState) -> None:
        """Move the model, and the starts of its trajectories, to where the loss of this stage is small."""
