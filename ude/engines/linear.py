"""The linear systems of implicit steps, ``(M - s J) x = r`` for every trajectory: by LU factors, or by GMRES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.jacobian import FreeJacobian
from ude.engines.mass_matrix import MassMatrix
from ude.methods import GMRES

# For derivatives of the steps the residual shall be rounding; what cannot be reached is not waited for.
_TIGHT = 1e-13


class Factors(Protocol):
    """Solves with one matrix a trajectory."""

    @property
    def failed(self) -> Bool[Tensor, "B"] | None:
        """Which trajectories the last solve failed for; None when a solve cannot fail."""

    def solve(self, right: Float[Tensor, "B n"], *, transposed: bool = False) -> Float[Tensor, "B n"]:
        """Return x with ``W x = right``, or ``W^T x = right``; differentiable with respect to `right`."""


@dataclass(frozen=True, eq=False)
class DenseFactors:
    """LU factors of one matrix a trajectory."""

    lu: Float[Tensor, "B n n"]
    pivots: Tensor
    failed: None = None

    def solve(self, right: Float[Tensor, "B n"], *, transposed: bool = False) -> Float[Tensor, "B n"]:
        solved: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, right.unsqueeze(-1), adjoint=transposed)
        return solved.squeeze(-1)


def factor_dense(jacobian: Float[Tensor, "B n n"], mass: MassMatrix | None, step: Float[Tensor, "B"]) -> DenseFactors:
    """Factorize ``M - step J``; where the step is zero, the identity, since M may be singular."""
    unit = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    column = step.view(-1, 1, 1)
    matrix = torch.addcmul(unit if mass is None else mass.matrix, column, jacobian, value=-1.0)
    if mass is not None:
        matrix = torch.where(column == 0, unit, matrix)
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return DenseFactors(lu, pivots)


class Krylov:
    """``M - step J`` as its products with vectors, solved by GMRES."""

    def __init__(
        self,
        jacobian: FreeJacobian,
        mass: MassMatrix | None,
        step: Float[Tensor, "B"],
        options: GMRES,
        *,
        tight: bool,
    ) -> None:
        self._jacobian, self._mass, self._step, self._options = jacobian, mass, step.unsqueeze(-1), options
        self._reltol = _TIGHT if tight else options.reltol
        self.failed = torch.zeros_like(step, dtype=torch.bool)

    def solve(self, right: Float[Tensor, "B n"], *, transposed: bool = False) -> Float[Tensor, "B n"]:
        solved: Tensor = _Solve.apply(self, right, transposed)  # type: ignore[no-untyped-call]
        return solved

    def times(self, x: Float[Tensor, "B n"], *, transposed: bool) -> Float[Tensor, "B n"]:
        of_mass = x if self._mass is None else self._mass.times(x, transposed=transposed)
        product = of_mass - self._step * self._jacobian.times(x, transposed=transposed)
        return torch.where(self._step == 0, x, product)

    def iterate(self, right: Float[Tensor, "B n"], *, transposed: bool) -> Float[Tensor, "B n"]:
        x = torch.zeros_like(right)
        goal = self._reltol * torch.linalg.vector_norm(right, dim=-1)
        residual, done, spent = right, torch.zeros_like(goal, dtype=torch.bool), 0
        before = torch.full_like(goal, float("inf"))
        while spent < self._options.maxiters:
            size = torch.linalg.vector_norm(residual, dim=-1)
            # a residual that a whole cycle hardly changed is rounding, or hopeless
            done = (size <= goal) | ~torch.isfinite(size) | (size > 0.9 * before)
            if bool(done.all()):
                break
            before = size
            length = min(self._options.restart, self._options.maxiters - spent, right.shape[-1])
            update, taken = _cycle(lambda v: self.times(v, transposed=transposed), residual, (goal, ~done), length)
            x, spent = x + update, spent + taken
            residual = right - self.times(x, transposed=transposed)
        size = torch.linalg.vector_norm(residual, dim=-1)
        # a tight solve ends where rounding stops it
        close = goal if self._reltol > _TIGHT else goal * (self._options.reltol / _TIGHT)
        self.failed = ~(size <= close)
        return x


class _Solve(torch.autograd.Function):
    """The solve as a linear map: its derivative is the solve with the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, krylov: Krylov, right: Tensor, transposed: bool) -> Tensor:
        ctx.krylov, ctx.transposed = krylov, transposed
        return krylov.iterate(right, transposed=transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        return None, _Solve.apply(ctx.krylov, grad, not ctx.transposed), None  # type: ignore[no-untyped-call]


def _cycle(
    times: Any, residual: Float[Tensor, "B n"], wanted: tuple[Float[Tensor, "B"], Bool[Tensor, "B"]], length: int
) -> tuple[Float[Tensor, "B n"], int]:
    """One cycle of GMRES of at most `length` products: the update, and how many it took.

    A trajectory that is done gets a column of the unit matrix and a zero on the right, so that its part of the least
    squares problem stays solvable and its solution as it is.
    """
    goal, live = wanted
    lanes = len(goal)
    size = torch.linalg.vector_norm(residual, dim=-1)
    basis = [residual / _nonzero(size).unsqueeze(-1)]
    upper = residual.new_zeros(lanes, length, length)
    right = residual.new_zeros(lanes, length + 1)
    right[:, 0] = torch.where(live, size, 0.0)
    rotations: list[tuple[Tensor, Tensor]] = []
    for k in range(length):
        v = times(basis[k])

        # twice, or rounding makes the basis lose its orthogonality
        together = torch.stack(basis, 1)
        first = torch.einsum("bkn,bn->bk", together, v)
        v = v - torch.einsum("bkn,bk->bn", together, first)
        second = torch.einsum("bkn,bn->bk", together, v)
        v = v - torch.einsum("bkn,bk->bn", together, second)
        column = list((first + second).unbind(-1))
        below = torch.linalg.vector_norm(v, dim=-1)
        basis.append(v / _nonzero(below).unsqueeze(-1))
        for i, (cos, sin) in enumerate(rotations):
            column[i], column[i + 1] = cos * column[i] + sin * column[i + 1], cos * column[i + 1] - sin * column[i]
        radius = torch.hypot(column[k], below)
        cos, sin = column[k] / _nonzero(radius), below / _nonzero(radius)
        rotations.append((cos, sin))
        column[k] = radius
        usable = live & (radius > 0) & torch.isfinite(radius)
        for i, entry in enumerate(column):
            unit = 1.0 if i == k else 0.0
            upper[:, i, k] = torch.where(usable, entry, unit)
        right[:, k + 1] = torch.where(usable, -sin * right[:, k], 0.0)
        right[:, k] = torch.where(usable, cos * right[:, k], 0.0)
        live = usable & (right[:, k + 1].abs() > goal) & (below > 0)
        if not bool(live.any()):
            break
    taken = k + 1
    weights = torch.linalg.solve_triangular(upper[:, :taken, :taken], right[:, :taken].unsqueeze(-1), upper=True)
    return torch.einsum("bkn,bk->bn", torch.stack(basis[:taken], 1), weights.squeeze(-1)), taken


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)
