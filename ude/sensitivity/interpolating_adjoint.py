"""Continuous adjoints that read the state from the recorded solve, and two that sum the integral of the leaves over
lambda's steps: by the method's rule or by Gauss's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ude.sensitivity.base import Solved
from ude.sensitivity.continuous import (
    Backward,
    Costate,
    Path,
    Span,
    Totals,
    nothing,
    parameter_integral,
    require_steps,
    solve_back,
    sweep,
)
from ude.sensitivity.reading import Gradient, connect


class ReadingAdjoint(ABC):
    """Solves the adjoint equation backwards between the saves, with the state read from the recorded steps."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        require_steps(self.name, solved)
        return connect(self.name, self._pull, solved, (times, values), (u0, p))

    def _pull(self, solved: Solved, p: Sequence[Tensor], times: Tensor, grad: Tensor) -> Gradient:
        path = solved.engine.dense(solved.spec, solved.record, p)
        costate = Costate(solved.spec, path)

        def piece(span: Span, z: Tensor) -> tuple[Tensor, Totals]:
            if not bool((z != 0).any()):  # after the last save that the loss reads
                return z, [None] * len(p)
            backward = solve_back(solved, costate, span, z, p, self._tolerances)
            totals = None if backward is None else self._integral(solved, backward, span, path, p)
            return nothing(z, p) if backward is None or totals is None else (backward.end, totals)

        start = torch.zeros_like(solved.end)
        return sweep(solved, p, (times, grad), start, piece, lambda t, z: path(t))

    @property
    def _tolerances(self) -> tuple[float | None, float | None]:
        """abstol and reltol of the backward solve; None takes those of the forward solve."""
        return None, None

    @abstractmethod
    def _integral(
        self, solved: Solved, backward: Backward, span: Span, path: Path, p: Sequence[Tensor]
    ) -> Totals | None:
        """``int (df/dp)^T lambda dt`` over a span of each trajectory, a sum for each leaf; None where it fails."""


@dataclass(frozen=True)
class _SummedAdjoint(ReadingAdjoint):
    abstol: float | None = None
    reltol: float | None = None

    @property
    def _rule(self) -> Literal["own", "gauss"]:
        return "own"

    @property
    def _tolerances(self) -> tuple[float | None, float | None]:
        return self.abstol, self.reltol

    def _integral(
        self, solved: Solved, backward: Backward, span: Span, path: Path, p: Sequence[Tensor]
    ) -> Totals | None:
        found = solved.engine.quadrature_nodes(backward.spec, backward.record, p, self._rule)
        nodes = ((path(t), adjoint, t, weight) for adjoint, t, weight in found)
        return parameter_integral(solved, nodes, p)


@dataclass(frozen=True)
class InterpolatingAdjoint(_SummedAdjoint):
    """Solve ``dlambda/dt = -(df/du)^T lambda`` backwards with the state read from the recorded steps.

    The state is never integrated backwards, so dissipative systems are no danger, unlike with `BacksolveAdjoint`.
    The gradient's error is of the order of the tolerances and of the error of the method's dense output. Memory is a
    state a step, and on the way back the polynomials of all steps. The leaves' integral
    ``pbar = int (df/dp)^T lambda dt`` is summed over lambda's steps by the weights of the method, whose error nothing
    controls: where df/dp varies faster than lambda, as in a boundary layer, take `QuadratureAdjoint`. First
    derivatives only.

    Args:
        abstol, reltol: Tolerances of the backward solve; None takes those of the forward solve.

    Source: C. Rackauckas et al., arXiv:1812.01892; SciMLSensitivity.jl's algorithm of that name.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.InterpolatingAdjoint(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """


@dataclass(frozen=True)
class GaussAdjoint(_SummedAdjoint):
    """`InterpolatingAdjoint` with the leaves' integral by Gauss's nodes on the dense output of each of lambda's steps.

    Fewer evaluations of ``(df/dp)^T lambda`` than the method's own stages need: 3 a step for an order of 4 or 5, where
    Tsit5 takes 6. First derivatives only.

    Args:
        abstol, reltol: Tolerances of the backward solve; None takes those of the forward solve.

    Source: A. C. Norcliffe, M. P. Deisenroth, Faster training of neural ODEs using Gauss-Legendre quadrature,
    TMLR 2023.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.GaussAdjoint(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """

    @property
    def _rule(self) -> Literal["own", "gauss"]:
        return "gauss"
