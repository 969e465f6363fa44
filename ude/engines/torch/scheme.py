"""What a family of methods hands the stepper: how to try one step of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.jacobian import FreeJacobian, Jacobian
from ude.engines.work import Work


@dataclass(frozen=True, eq=False)
class Trial:
    """A step tried from u of size dt; nothing has moved yet.

    Args:
        u: The new state.
        k: The stages that the dense output is made of: ``u(t + theta dt) = u + dt sum_i b_i(theta) k_i``.
        error: Its estimated error, not yet scaled by the tolerance; None when the method estimates none.
        converged: Which trajectories could solve their stages; None when there is nothing to solve.
        shrink: By how much a trajectory that did not converge changes its step; 1 means that it tries again with a
            new Jacobian.
        error_low: A second, cruder estimate; with both the error is ``e^2 / sqrt(e^2 + 0.01 e_low^2)`` in scaled norms.
        parts: Of a method that switches, the steps of each of its methods, whose stages stand there instead of in k.
    """

    u: Float[Tensor, "B n"]
    k: Float[Tensor, "stages B n"]
    error: Float[Tensor, "B n"] | None
    converged: Bool[Tensor, "B"] | None = None
    shrink: Float[Tensor, "B"] | None = None
    error_low: Float[Tensor, "B n"] | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, eq=False)
class Part:
    """The share of a trial that one method has.

    Args:
        scheme: The method, which reads the stages k.
        lanes: The trajectories that use it; None means all.
        implicit: Whether it is the implicit method.
    """

    scheme: Scheme
    k: Float[Tensor, "stages B n"]
    lanes: Bool[Tensor, "B"] | None
    implicit: bool


def renewed(work: Work, old: Jacobian | None, which: Bool[Tensor, "B"], u: Tensor, t: Tensor) -> Jacobian:
    """df/du with those of some trajectories taken again at (u, t); all of them where there is no old one."""
    if isinstance(old, FreeJacobian):
        return old.moved(which, u, t)
    new = work.df_du(u, t)
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.where(which.view(-1, 1, 1), new, old)
    return new


def gathered(work: Work, old: Jacobian | None, index: Int[Tensor, "k"]) -> Jacobian | None:
    """df/du of some trajectories, which `work` is of."""
    return old.gather(work, index) if isinstance(old, FreeJacobian) else None if old is None else old[index]


class Scheme(Protocol):
    """A method bound to one solve."""

    #: The estimated error behaves like dt to this power.
    error_order: int
    #: Whether the derivative at the start of a step is carried over from the step before and cannot be computed from
    #: the state alone; it is then recorded with the state.
    carries_derivative: bool
    #: Coefficients of the dense output (stages, powers).
    interpolant: Tensor
    work: Work

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        """Try a step of signed size dt (B,) from u (B, n) at t (B,); a trajectory with dt = 0 stands still."""

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        """Return the derivative that the next step starts with."""

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Learn which trajectories accepted the trial."""


@runtime_checkable
class LazyScheme(Protocol):
    """A scheme whose dense output needs further stages, evaluated only in steps inside which something is read."""

    #: How many; none at all for some methods.
    extra_stages: int
    #: Weights of the stages in the new state (stages, 1).
    step_weights: Tensor

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        """Add the further stages to the stages k of the step of size dt (B,) from u (B, n) at t (B,)."""


@runtime_checkable
class ChangesMethods(Protocol):
    """A scheme that changes the method of a trajectory between two steps."""

    #: Which trajectories use the implicit method, one a lane (see `lanes`), and how often each changed.
    stiff: Any
    switches: Any

    def switch(self, u: Tensor, k1: Tensor, t: Tensor) -> tuple[Tensor, Any] | None:
        """After `settle`: the derivatives that the next step starts with and the factors of the step sizes, of a step
        after which some trajectory changes its method; else None."""


@runtime_checkable
class SelfControlled(Protocol):
    """A scheme that chooses its steps itself, with an order of each trajectory, and starts every solve afresh.

    A step is accepted when its scaled error is at most 1.
    """

    def factor(self, accept: Any, error: Any) -> Any:
        """Return the next step in units of the one tried, of those that accepted it and of those that did not.

        An infinite error gives the smallest factor there is.
        """


@runtime_checkable
class GatheringScheme(Protocol):
    """A scheme that can go on with some of its trajectories alone; others keep their batch to the end."""

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Scheme:
        """Return the scheme of these trajectories, which remembers of them what this one does."""


class ReversibleScheme(Scheme, Protocol):
    """A scheme that pulls cotangents back through a recorded step."""

    def stages(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> Float[Tensor, "stages B n"]:
        """Compute the stages of a recorded step again."""

    def advance(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take a recorded step again: the new state, and the derivative that is carried on."""

    def pull_step(
        self, start: tuple[Tensor, Tensor | None, Tensor, Tensor], cotangents: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Pull cotangents of a step's end back to its start (u, k1, t, dt), and to the leaves `inputs`."""


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Cotangents at one end of a step.

    Args:
        u, k1: Of the state and of the derivative carried along with it.
        start: At the end of a step only: of the state at its start, by reads of the dense output.
        stages: At the end of a step only: of ``dt k_i``, by reads of the dense output.
    """

    u: Float[Tensor, "B n"]
    k1: Float[Tensor, "B n"]
    start: Float[Tensor, "B n"] | None = None
    stages: Float[Tensor, "stages B n"] | None = None
