"""The options of a solve and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ude.events.callbacks import Callback
from ude.methods import Controller, InitializationAlgorithm
from ude.sensitivity import DiscreteAdjoint, SensitivityAlgorithm


@dataclass(frozen=True, eq=False)
class SolveOptions:
    """How to solve, apart from the problem and the algorithm. `solve` explains every option.

    The defaults of `solve` are the class attributes, so that they are written here only. Functions that solve on
    the user's behalf (`check_gradient`, `ude.fused.source`, `default_algorithm`) take the options as one object.

    >>> options = SolveOptions(reltol=1e-8)
    >>> options.reltol, options.abstol, SolveOptions.maxiters
    (1e-08, 1e-06, 100000)
    """

    saveat: Any = None
    abstol: Any = 1e-6
    reltol: Any = 1e-3
    dt: float | None = None
    adaptive: bool = True
    dtmin: float = 0.0
    dtmax: float = float("inf")
    maxiters: int = 100_000
    force_dtmin: bool = False
    controller: Controller | None = None
    isoutofdomain: Callable[..., Any] | None = None
    unstable_check: Callable[..., Any] | None = None
    internalnorm: Callable[..., Any] | None = None
    sensealg: SensitivityAlgorithm | None = None
    engine: str = "auto"
    callback: Callback | Sequence[Callback] | None = None
    tstops: Any = None
    max_events: int = 10_000
    initializealg: InitializationAlgorithm | None = None
    shared_steps: bool = False

    @property
    def sensitivity(self) -> SensitivityAlgorithm:
        """The sensitivity algorithm of a solve in time."""
        return _DISCRETE if self.sensealg is None else self.sensealg


_DISCRETE = DiscreteAdjoint()

#: Every option at its default.
DEFAULTS = SolveOptions()
