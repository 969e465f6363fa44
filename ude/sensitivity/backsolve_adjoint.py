"""The continuous adjoint, solved backwards in time together with the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, as_batch
from ude.sensitivity.base import Solved
from ude.sensitivity.continuous import Span, Totals, nothing, parameter_integral, pull, solve_back, sweep
from ude.sensitivity.reading import Gradient, connect


@dataclass(frozen=True, eq=False)
class _Augmented:
    """``d(u, lambda)/dt = (f, -(df/du)^T lambda)`` as a right-hand side over the leaves of f.

    Implicit methods ask for its Jacobian, and so for second derivatives of f: then the graph of z is kept.
    """

    spec: SolveSpec

    def __call__(self, z: Tensor, p: Sequence[Tensor], t: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1])
        u, adjoint = flat.chunk(2, dim=-1)
        twice = torch.is_grad_enabled() and z.requires_grad
        if not twice:
            u = u.detach().requires_grad_()
        with torch.enable_grad():
            du = as_batch(self.spec, u, t.reshape(-1), p)
            pulled = pull(du, u, adjoint, twice=twice)
        return torch.cat([du if twice else du.detach(), -pulled], dim=-1).view(z.shape)


@dataclass(frozen=True)
class BacksolveAdjoint:
    """Solve the adjoint equation ``dlambda/dt = -(df/du)^T lambda`` backwards, the state along with it.

    Memory does not grow with the number of steps. The state is recomputed backwards, which is unstable for
    dissipative and chaotic systems: the gradient is then wrong however tight the tolerance, and `DiscreteAdjoint`
    is the choice. Its error is of the order of the tolerance. First derivatives only.

    Args:
        abstol, reltol: Tolerances of the backward solve; None takes those of the forward solve.

    Source: L. S. Pontryagin et al. (1962); R. T. Q. Chen et al., Neural Ordinary Differential Equations (2018).

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.BacksolveAdjoint(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """

    abstol: float | None = None
    reltol: float | None = None

    @property
    def name(self) -> str:
        return "BacksolveAdjoint"

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        return connect(self.name, self._pull, solved, (times, values), (u0, p))

    def _pull(self, solved: Solved, p: Sequence[Tensor], times: Tensor, grad: Tensor) -> Gradient:
        own = solved.engine.backsolve(solved.spec, solved.record, p, times, grad)
        if own is not None:
            return own
        augmented = _Augmented(solved.spec)

        def piece(span: Span, z: Tensor) -> tuple[Tensor, Totals]:
            backward = solve_back(solved, augmented, span, z, p, (self.abstol, self.reltol))
            if backward is None:
                return nothing(z, p)
            # the rule is that of the steps, so it has their order
            own_nodes = solved.engine.quadrature_nodes(backward.spec, backward.record, p)
            halves = ((state.chunk(2, dim=-1), t, weight) for state, t, weight in own_nodes)
            nodes = ((u, adjoint, t, weight) for (u, adjoint), t, weight in halves)
            return backward.end, parameter_integral(solved, nodes, p)

        start = torch.cat([solved.end, torch.zeros_like(solved.end)], dim=-1)
        states = solved.end.shape[1]
        return sweep(solved, p, (times, grad), start, piece, lambda t, z: z[:, :states])
