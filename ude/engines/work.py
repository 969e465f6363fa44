"""Calls of f over a batch, its Jacobians and the linear systems of a step, each counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.initialization import derivative
from ude.engines.jacobian import FreeJacobian, Jacobian, Jacobians, Pusher
from ude.engines.linear import DenseFactors, Factors, Krylov, factor_dense
from ude.methods import GMRES


class Work(Jacobians):
    """f over the batch, its Jacobian and the solvers of a step's linear systems, counting each.

    Args of calls: u (B, n), t (B,).
    """

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        self.factorizations = 0

    def derivative(self, u: Tensor, t: Tensor) -> Float[Tensor, "B n"]:
        """u' at a state: f itself, or with a mass matrix what it and the algebraic equations determine."""
        return self(u, t) if self.spec.mass is None else derivative(self.spec, u, t, self.p, self)

    def times_mass(self, x: Float[Tensor, "*lanes n"], *, transposed: bool = False) -> Float[Tensor, "*lanes n"]:
        """``M x``, or ``M^T x``."""
        return x if self.spec.mass is None else self.spec.mass.times(x, transposed=transposed)

    def go_on(self, before: Work) -> None:
        """Count on from what was counted before the batch became smaller."""
        self.calls, self.jacobians, self.products = before.calls, before.jacobians, before.products
        self.factorizations = before.factorizations

    def renew(self, old: Jacobian | None, which: Bool[Tensor, "B"], u: Tensor, t: Tensor) -> Jacobian:
        """df/du with those of some trajectories taken again at (u, t); all of them where there is no old one."""
        if isinstance(old, FreeJacobian):
            return old.moved(which, u, t)
        new = self.df_du(u, t)
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            return torch.where(which.view(-1, 1, 1), new, old)
        return new

    def gather(self, old: Jacobian | None, index: Int[Tensor, "k"]) -> Jacobian | None:
        """A df/du of the whole batch for the trajectories in `index`, which this work is of."""
        return old.gather(self, index) if isinstance(old, FreeJacobian) else None if old is None else old[index]

    def df_du(self, u: Tensor, t: Tensor) -> Jacobian:
        """df/du in the form that the linear solver of the method takes."""
        return FreeJacobian(self, u, t) if isinstance(_solver(self.spec), GMRES) else self.jacobian(u, t)

    def with_time(self, u: Tensor, t: Tensor) -> tuple[Tensor, Jacobian, Tensor]:
        """Return f (B, n), df/du in the form that the linear solver takes, and df/dt (B, n)."""
        if not isinstance(_solver(self.spec), GMRES):
            return self.linearize(u, t)
        t = t.detach().requires_grad_()
        with torch.enable_grad():
            du = self(u.detach(), t)
        return du.detach(), FreeJacobian(self, u, t), Pusher(self, du, (t,))(torch.ones_like(t))

    def factor(self, jacobian: Jacobian, step: Float[Tensor, "B"], *, tight: bool = False) -> Factors:
        """Prepare to solve with ``M - step J``; where the step is zero, with the identity.

        Args:
            tight: Whether an iterative solver shall go to rounding, as derivatives of the steps need it.
        """
        if not isinstance(jacobian, FreeJacobian):
            return self.factor_dense(jacobian, step)
        self.factorizations += 1
        return Krylov(jacobian, self.spec.mass, step, _solver(self.spec), tight=tight)

    def factor_dense(self, jacobian: Float[Tensor, "k n n"], step: Float[Tensor, "k"]) -> DenseFactors:
        """The same of matrices, be it those of some trajectories only."""
        self.factorizations += 1
        return factor_dense(jacobian, self.spec.mass, step)


def _solver(spec: SolveSpec) -> Any:
    return getattr(spec.algorithm, "linsolve", None)
