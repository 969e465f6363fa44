"""How a fit is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ude.errors import InputError
from ude.fitting.simulation.shooting import SolverOptions


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
        _require(self.prior in ("functions", "weights"), "prior", "'functions' or 'weights'", self.prior)
        for name in ("weight_prior", "stall"):
            _require(0 <= getattr(self, name) < float("inf"), name, "zero or a positive number", getattr(self, name))
        for name in ("derivative_iterations", "single_iterations"):
            pair = getattr(self, name)
            _require(len(pair) == 2 and min(pair) >= 0, name, "two counts, of Adam and of L-BFGS", pair)
        for name in ("validation_every", "validation_patience"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.checkpoint_seconds >= 0, "checkpoint_seconds", "zero or more", self.checkpoint_seconds)
        _require(self.multiple_iterations >= 0, "multiple_iterations", "zero or more", self.multiple_iterations)
        _require(self.window_steps is None or self.window_steps >= 1, "window_steps", "at least 1", self.window_steps)
        _require(all(c > 0 for c in self.continuity), "continuity", "positive penalties", self.continuity)
        for state, value in self.scale.items():
            _require(0 < value < float("inf"), f"scale of {state!r}", "a positive number", value)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"{name} of FitOptions is not usable", expected=expected, got=repr(got))
