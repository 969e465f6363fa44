"""What a family of methods hands the stepper: how to try one step of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.engine import SolveSpec, as_batch


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
    """

    u: Float[Tensor, "B n"]
    k: Float[Tensor, "stages B n"]
    error: Float[Tensor, "B n"] | None
    converged: Bool[Tensor, "B"] | None = None
    shrink: Float[Tensor, "B"] | None = None
    error_low: Float[Tensor, "B n"] | None = None


class Work:
    """f over the batch, its Jacobian and factorisations, counting each.

    Args of calls: u (B, n), t (B,).
    """

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        self.spec, self.p = spec, p
        self.calls = self.jacobians = self.factorisations = 0
        self._batched = True

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return as_batch(self.spec, u, t, self.p)

    def linearise(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f (B, n), df/du (B, n, n) and df/dt (B, n)."""
        u, t = u.detach().requires_grad_(), t.detach().requires_grad_()
        with torch.enable_grad():
            du = self(u, t)
        of_u, of_t = self.rows(du, (u, t))
        return du.detach(), of_u, of_t

    def rows(self, du: Tensor, inputs: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
        """Derivatives of du (B, n) by tensors with one row a trajectory; each (B, n, ...).

        A trajectory depends on its own row only, so one vector-Jacobian product gives a row of every trajectory's
        Jacobian. That holds for parameters of any shape, where torch.func.vmap over trajectories would not.
        """
        self.jacobians += 1
        if not du.requires_grad:
            return [x.new_zeros(du.shape[0], du.shape[1], *x.shape[1:]) for x in inputs]
        count = du.shape[1]
        unit = torch.eye(count, dtype=du.dtype, device=du.device).unsqueeze(1).expand(-1, du.shape[0], -1)
        parts: Sequence[Tensor | None] | None = None
        if self._batched:
            try:
                parts = _pull(du, inputs, unit, keep=True, batched=True)
            except RuntimeError:
                # an operation of f has no batching rule for its derivative: one product at a time does
                self._batched = False
        if parts is None:
            single = [_pull(du, inputs, unit[i], keep=keep or i < count - 1, batched=False) for i in range(count)]
            parts = [None if rows[0] is None else torch.stack(rows) for rows in zip(*single, strict=True)]
        return [
            x.new_zeros(du.shape[0], count, *x.shape[1:]) if part is None else part.transpose(0, 1)
            for part, x in zip(parts, inputs, strict=True)
        ]

    def factor(self, jacobian: Float[Tensor, "B n n"], step: Float[Tensor, "B"]) -> Factors:
        """Factorise ``I - step J``."""
        self.factorisations += 1
        matrix = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        matrix = torch.addcmul(matrix, step.view(-1, 1, 1), jacobian, value=-1.0)
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return Factors(lu, pivots)


@dataclass(frozen=True, eq=False)
class Factors:
    """LU factors of one matrix a trajectory."""

    lu: Float[Tensor, "B n n"]
    pivots: Tensor

    def solve(self, right: Float[Tensor, "B n"], *, transposed: bool = False) -> Float[Tensor, "B n"]:
        solved: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, right.unsqueeze(-1), adjoint=transposed)
        return solved.squeeze(-1)


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
class SelfControlled(Protocol):
    """A scheme that chooses its steps itself, with an order of each trajectory."""

    def factor(self, accept: Any) -> Any:
        """Return the next step in units of the one tried, of those that accepted it and of those that did not."""


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


def _pull(du: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, *, keep: bool, batched: bool) -> Any:
    return torch.autograd.grad(
        du, tuple(inputs), cotangent, retain_graph=keep, allow_unused=True, is_grads_batched=batched
    )
