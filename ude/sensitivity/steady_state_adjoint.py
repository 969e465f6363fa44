"""The gradient of a steady state by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.base import SolveSpec, as_batch
from ude.engines.work import Work
from ude.errors import InputError

# Newton's iteration with a constant matrix, started at the solution, gains one order of derivatives a step.
_ORDERS_OF_DERIVATIVES = 2
# A Jacobian whose singular values differ by more than this part of rounding has no inverse worth the name.
_SINGULAR = 1e-2


@dataclass(frozen=True)
class SteadyStateAdjoint:
    """``du/dp = -(df/du)^-1 df/dp`` at a state with f(u, p) = 0: one linear solve, whatever way led there.

    First and second derivatives; third and higher ones are not right. The default of a `SteadyStateProblem`.

    Source: S. G. Krantz, H. R. Parks, The Implicit Function Theorem, 2003.

    >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.SteadyStateProblem(lambda u, p, t: 3.0 - p.rate * u, [0.0], dict(rate=rate))
    >>> (slope,) = torch.autograd.grad(ude.solve(prob, sensealg=ude.sensitivity.SteadyStateAdjoint())[-1].sum(), rate)
    >>> round(float(slope), 6)  # of 3/rate
    -0.75
    """

    @property
    def name(self) -> str:
        return "SteadyStateAdjoint"

    def attach(
        self, solved: object, times: Tensor, values: Tensor, u0: Tensor, p: Sequence[Tensor]
    ) -> Float[Tensor, "B T n"]:
        """Refuse solves in time.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "SteadyStateAdjoint differentiates steady states, and this is a solve in time",
            fix="Use DiscreteAdjoint(), or solve a SteadyStateProblem.",
        )

    def attach_steady(
        self, spec: SolveSpec, u: Float[Tensor, "B n"], arrived: Bool[Tensor, "B"], p: Sequence[Tensor]
    ) -> Float[Tensor, "B n"]:
        """Return the steady states u connected to the graph of the leaves p; those that did not arrive are constant.

        Raises:
            InputError: A steady state is not isolated, so that its derivative by p is not defined.
        """
        t, column = torch.zeros_like(spec.t0), arrived.unsqueeze(-1)
        at = torch.where(column, u, 0.0).detach()
        with torch.no_grad():
            _, jacobian, _ = Work(spec, tuple(leaf.detach() for leaf in p)).linearize(at, t)
            unit = torch.eye(at.shape[1], dtype=at.dtype, device=at.device)
            jacobian = torch.where(column.unsqueeze(-1), jacobian, unit)
            self._require_isolated(jacobian)
            factors = torch.linalg.lu_factor(jacobian)
        live = at
        for _ in range(_ORDERS_OF_DERIVATIVES):
            du = as_batch(spec, live, t, p)
            live = live - torch.linalg.lu_solve(*factors, torch.where(column, du, 0.0).unsqueeze(-1)).squeeze(-1)
        return torch.where(column, at + (live - live.detach()), u)

    def _require_isolated(self, jacobian: Float[Tensor, "B n n"]) -> None:
        values = torch.linalg.svdvals(jacobian)
        rounding = torch.finfo(jacobian.dtype).eps * jacobian.shape[-1]
        singular = values[:, -1] <= values[:, 0] * rounding / _SINGULAR
        if bool(singular.any()):
            raise InputError(
                "the steady state has no derivative by p, since df/du is singular there",
                got=f"trajectory {int(singular.nonzero()[0])}",
                fix="With a conserved quantity the state depends on u0: use it to eliminate a state, "
                "or differentiate the way there: ODEProblem with callback=TerminateSteadyState().",
            )
