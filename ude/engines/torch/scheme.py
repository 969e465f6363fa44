"""What a family of methods implements: trying a step, and reading, repeating and reversing recorded steps.

A new family is one file in `families/` with a subclass of `Scheme`, usually of `OneStepScheme` (see `one_step`), listed
in `engine.FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import ForwardResult, LeafCotangents, SolveSpec, StepRecord
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.dense import StagesOf, gauss_nodes
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


class Scheme(ABC):
    """A method bound to one solve: all that the torch engine knows of it."""

    #: Whether the derivative at the start of a step is carried over from the step before and cannot be computed from
    #: the state alone; it is then recorded with the state.
    carries_derivative: bool = False
    #: Stages of the dense output that are evaluated only in steps inside which something is read (`complete`).
    extra_stages: int = 0
    #: Whether the method chooses its steps itself (`factor`), with an order of each trajectory.
    chooses_steps: ClassVar[bool] = False
    #: Of a method that changes its method between two steps: which trajectories use the implicit one and how often
    #: each changed, one a lane (see `lanes`); None of all others.
    stiff: Any = None
    switches: Any = None

    #: The estimated error behaves like dt to this power; a method that switches has one of each trajectory.
    error_order: Any
    #: The order of the dense output's end, for quadratures along the solution.
    order: int
    #: Coefficients of the dense output (stages, powers), and weights of the stages in the new state (stages, 1).
    interpolant: Tensor
    step_weights: Tensor

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        """Bind the algorithm of a solve to it and to the leaves p.

        Raises:
            EngineRefused: The method cannot run this system.
        """
        self.spec, self.work = spec, self._work(spec, p)

    def _work(self, spec: SolveSpec, p: Sequence[Tensor]) -> Work:
        return Work(spec, p)

    # which solves

    @classmethod
    @abstractmethod
    def serves(cls, spec: SolveSpec) -> bool:
        """Whether the algorithm of a solve is of this family."""

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        """Return one sentence that says why a solve with a method of this family cannot run, or None when it can."""
        return None

    # the steps of a solve

    def check_start(self, u0: Float[Tensor, "B n"]) -> None:
        """Refuse, before the first step, a system for which the method would be wrong."""
        return None

    @abstractmethod
    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        """Try a step of signed size dt (B,) from u (B, n) at t (B,); a trajectory with dt = 0 stands still."""

    @abstractmethod
    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        """Return the derivative that the next step starts with."""

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Learn which trajectories accepted the trial."""
        return None

    def factor(self, accept: Any, error: Any) -> Any:
        """With `chooses_steps`: the next step in units of the one tried, one a lane; an infinite error gives the
        smallest factor there is. A step is then accepted when its scaled error is at most 1."""
        raise NotImplementedError

    def switch(self, u: Tensor, k1: Tensor, t: Tensor) -> tuple[Tensor, Any] | None:
        """After `settle`: the derivatives that the next step starts with and the factors of the step sizes, of a step
        after which some trajectory changes its method; else None."""
        return None

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        """Add the `extra_stages` to the stages k of the step of size dt (B,) from u (B, n) at t (B,)."""
        return k

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Self:
        """Return the scheme of some trajectories alone, which remembers of them what this one does."""
        taken = type(self)(spec, p)
        taken.work.go_on(self.work)
        return taken

    # the steps of a record

    def complete_record(self, result: ForwardResult) -> ForwardResult:
        """Add to the record of a solve what the method alone knows of its steps."""
        return result

    def of_record(self, record: StepRecord) -> tuple[Scheme, StepRecord]:
        """Return the method that took all steps of a record, and the record as it reads it."""
        return self, record

    @abstractmethod
    def starts(self, record: StepRecord) -> Starts:
        """Return what every recorded step started from."""

    @abstractmethod
    def stages_of(self, record: StepRecord, starts: Starts) -> StagesOf:
        """Return the function that computes the stages of a recorded step again, as `interpolant` reads them."""

    @abstractmethod
    def pull(
        self,
        record: StepRecord,
        reads: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]],
        leaves: LeafCotangents,
        carried: Float[Tensor, "B n"] | None = None,
        *,
        first: bool = True,
    ) -> Cotangents:
        """Pull cotangents back through every recorded step, from the last to the first.

        The result is the exact derivative of the steps taken, their sizes held constant. The scheme is bound to
        ``leaves.live``.

        Args:
            reads: Times at which the dense output was read, and the cotangents of what was read.
            leaves: Receives the cotangents of the leaves.
            carried: Cotangent of the derivative carried over at the end, of a record that another follows.
            first: Whether the first step started with f(u0) itself; otherwise the cotangent of what it started with is
                handed on.

        Returns:
            Those of the first state and of the derivative carried over there.
        """

    @abstractmethod
    def replay(self, record: StepRecord, u0: Float[Tensor, "B n"], times: Float[Tensor, "B T"]) -> Tensor:
        """Take the recorded steps again with an autograd graph, and read them at `times`: (B, T, n)."""

    def quadrature_nodes(
        self, record: StepRecord, rule: Literal["own", "gauss"]
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        """Yield (state, time, weight) of a quadrature along the solution, of the order of the method.

        The stages of implicit methods are no quadrature of their order (those of a Rosenbrock method are not values of
        the solution at all), so both rules are Gauss's unless a family knows better.
        """
        stages = self.stages_of(record, self.starts(record))
        yield from gauss_nodes(record, self.interpolant, stages, self.order // 2 + 1)


def why_not_adaptive(spec: SolveSpec, *, estimates_error: bool) -> str | None:
    """Say why a method without an error estimate cannot run an adaptive solve."""
    if estimates_error or not spec.adaptive:
        return None
    return f"{spec.algorithm.name} estimates no error, so it needs adaptive=False and dt"
