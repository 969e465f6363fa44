"""Where a DAE ``M u' = f(u, p, t)`` of index 1 may start, and with which derivative.

With Q the projection on the algebraic equations, ``Q f(u, p, t) = 0`` holds along a solution. Its derivative in time
completes ``M u' = f`` to a system with the regular matrix ``M + Q df/du``::

    (M + Q df/du) u' = (I - Q) f - Q df/dt

Source: P. N. Brown, A. C. Hindmarsh, L. R. Petzold, SIAM J. Sci. Comput. 19 (1998) 1495; E. Hairer, G. Wanner, Solving
Ordinary Differential Equations II, VI.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.base import SolveSpec, as_batch
from ude.engines.jacobian import Jacobians
from ude.engines.mass_matrix import MassMatrix
from ude.methods import BrownFullBasicInit, CheckInit, NoInit

# With a constant matrix, one step from the solution has right first derivatives, a second one second derivatives.
_ORDERS_OF_DERIVATIVES = 2
# Halvings of a step of Newton's iteration that makes things worse.
_HALVINGS = 20
# A matrix with this condition, its rows scaled to one, is singular.
_SINGULAR = 1e14


def derivative(
    spec: SolveSpec, u: Float[Tensor, "B n"], t: Float[Tensor, "B"], p: Sequence[Tensor], work: Jacobians | None = None
) -> Float[Tensor, "B n"]:
    """Return u' at a consistent state, without a graph; f itself where there is no mass matrix."""
    work = Jacobians(spec, p) if work is None else work
    with torch.no_grad():
        if spec.mass is None:
            return work(u, t)
        if not spec.mass.singular:
            result: Tensor = torch.linalg.solve_ex(spec.mass.matrix, work(u, t).unsqueeze(-1))[0].squeeze(-1)
            return result
        du, jacobian, of_t = work.linearize(u, t)
        right = du - spec.mass.algebraic(du + of_t)
        return _solved(_matrix(spec, spec.mass, jacobian), right)


def tracked_derivative(
    spec: SolveSpec, u: Float[Tensor, "B n"], t: Float[Tensor, "B"], p: Sequence[Tensor]
) -> Float[Tensor, "B n"]:
    """`derivative` with a graph from u and p, good for two derivatives."""
    if spec.mass is None:
        return as_batch(spec, u, t, p)
    if not spec.mass.singular:
        result: Tensor = as_batch(spec, u, t, p) @ torch.linalg.inv(spec.mass.matrix).T
        return result
    du = derivative(spec, u.detach(), t.detach(), p)
    with torch.no_grad():
        matrix = _matrix(spec, spec.mass, Jacobians(spec, p).jacobian(u, t))
    for _ in range(_ORDERS_OF_DERIVATIVES):
        du = du - _solved(matrix, _residual(spec, u, t, p, du))
    return du


def consistent(
    spec: SolveSpec, u: Float[Tensor, "B n"], p: Sequence[Tensor]
) -> tuple[Float[Tensor, "B n"], Bool[Tensor, "B"]]:
    """Make the states at `spec.t0` consistent as `spec.initializealg` says.

    Returns:
        The states, differentiable with respect to u and p (twice), and which trajectories have none.
    """
    mass, options = spec.mass, spec.initializealg
    found = torch.zeros_like(spec.t0, dtype=torch.bool)
    if mass is None or not mass.singular or isinstance(options, NoInit):
        return u, found
    with torch.no_grad():
        start = u.detach()
        if isinstance(options, CheckInit):
            step, _, singular = _newton_step(Jacobians(spec, p), mass, start, spec.t0)
            return u, singular | ~(_size(step, start) <= options.abstol)
        if not isinstance(options, BrownFullBasicInit):
            raise TypeError(f"{options!r} is no initialization of ude's")
        solution, failed = _solve(spec, mass, start, p, options)
    if not (torch.is_grad_enabled() and (u.requires_grad or any(leaf.requires_grad for leaf in p))):
        return solution, failed
    moved = mass.variables @ mass.variables.T
    live = u + (solution - start) - (u - start) @ moved
    with torch.no_grad():
        inverse = _algebraic_inverse(mass, Jacobians(spec, p).jacobian(solution, spec.t0))[0]
        inverse = torch.where(failed.view(-1, 1, 1), 0.0, inverse)
    for _ in range(_ORDERS_OF_DERIVATIVES):
        residual = as_batch(spec, live, spec.t0, p) @ mass.equations
        live = live - torch.einsum("bij,bj->bi", inverse, residual) @ mass.variables.T
    return torch.where(failed.unsqueeze(-1), u, live), failed


def _solve(
    spec: SolveSpec, mass: MassMatrix, u: Tensor, p: Sequence[Tensor], options: BrownFullBasicInit
) -> tuple[Float[Tensor, "B n"], Bool[Tensor, "B"]]:
    """Newton's iteration for the algebraic variables, its steps halved until they bring the solution nearer."""
    work, t = Jacobians(spec, p), spec.t0
    failed = torch.zeros_like(t, dtype=torch.bool)
    open_ = torch.ones_like(failed)
    for _ in range(options.maxiters):
        step, inverse, singular = _newton_step(work, mass, u, t)
        failed = failed | (open_ & (singular | ~torch.isfinite(step).all(-1)))
        open_ = open_ & ~failed
        length = torch.ones_like(t)
        last = _size(step, u) <= options.abstol
        taken = torch.zeros_like(open_)
        for _ in range(_HALVINGS):
            trial = u - length.unsqueeze(-1) * step
            # measured by the same inverse, so that no unit of an equation matters (P. Deuflhard's natural test)
            after = _step_with(inverse, mass, work(trial, t))
            nearer = torch.linalg.vector_norm(after, dim=-1) < torch.linalg.vector_norm(step, dim=-1)
            move = open_ & ~taken & (nearer | last)
            u = torch.where(move.unsqueeze(-1), trial, u)
            taken = taken | move
            if not bool((open_ & ~taken).any()):
                break
            length = torch.where(taken, length, length / 2)
        failed = failed | (open_ & ~taken)
        open_ = open_ & taken & ~last
        if not bool(open_.any()):
            break
    return u, failed | open_


def _newton_step(
    work: Jacobians, mass: MassMatrix, u: Tensor, t: Tensor
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B k k"], Bool[Tensor, "B"]]:
    inverse, singular = _algebraic_inverse(mass, work.jacobian(u, t))
    return _step_with(inverse, mass, work(u, t)), inverse, singular


def _step_with(inverse: Tensor, mass: MassMatrix, du: Tensor) -> Float[Tensor, "B n"]:
    return torch.einsum("bij,bj->bi", inverse, du @ mass.equations) @ mass.variables.T


def _size(step: Float[Tensor, "B n"], u: Float[Tensor, "B n"]) -> Float[Tensor, "B"]:
    return step.abs().amax(-1) / u.abs().amax(-1).clamp(min=1.0)


def _algebraic_inverse(
    mass: MassMatrix, jacobian: Float[Tensor, "B n n"]
) -> tuple[Float[Tensor, "B k k"], Bool[Tensor, "B"]]:
    """Inverse of the derivative of the algebraic equations by the algebraic variables, and where it has none."""
    matrix = mass.equations.T @ jacobian @ mass.variables
    row = matrix.abs().amax(-1, keepdim=True)
    scaled = matrix / torch.where(row == 0, 1.0, row)
    inverse, info = torch.linalg.inv_ex(scaled)
    condition = scaled.abs().sum(-1).amax(-1) * inverse.abs().sum(-1).amax(-1)
    singular = (info != 0) | ~(condition < _SINGULAR)
    return inverse / torch.where(row == 0, 1.0, row).transpose(-1, -2), singular


def algebraic_inverse(mass: MassMatrix, jacobian: Float[Tensor, "B n n"]) -> Float[Tensor, "B k k"]:
    """Inverse of the derivative of the algebraic equations by the algebraic variables, ``(U^T J V)^-1``."""
    return _algebraic_inverse(mass, jacobian)[0]


def _matrix(spec: SolveSpec, mass: MassMatrix, jacobian: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
    matrix = mass.matrix + mass.equations @ (mass.equations.T @ jacobian)
    if spec.failed is None:
        return matrix
    # a trajectory without a start may have a singular one, and must not spoil the gradient of the others
    return torch.where(spec.failed.view(-1, 1, 1), torch.eye(len(mass.matrix), dtype=matrix.dtype).to(matrix), matrix)


def _solved(matrix: Float[Tensor, "B n n"], right: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    # rows of the two kinds may differ by many orders of magnitude
    row = matrix.abs().amax(-1, keepdim=True)
    row = torch.where(row == 0, 1.0, row)
    result: Tensor = torch.linalg.solve_ex(matrix / row, right.unsqueeze(-1) / row)[0].squeeze(-1)
    return result


def _residual(spec: SolveSpec, u: Tensor, t: Tensor, p: Sequence[Tensor], du: Tensor) -> Float[Tensor, "B n"]:
    """``M du - f + Q (f + df/du du + df/dt)`` with a graph."""
    if spec.mass is None:
        raise TypeError("there is no mass matrix")
    x = u if u.requires_grad else u.detach().requires_grad_()
    time = t.detach().requires_grad_()
    value = as_batch(spec, x, time, p)
    slope = torch.zeros_like(value)
    if value.requires_grad:
        vector = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, (x, time), vector, create_graph=True, allow_unused=True)
        pairs = [
            (row, tangent)
            for row, tangent in zip(pulled, (du, torch.ones_like(t)), strict=True)
            if row is not None and row.requires_grad
        ]
        if pairs:
            rows, tangents = zip(*pairs, strict=True)
            (found,) = torch.autograd.grad(rows, vector, tangents, create_graph=True, allow_unused=True)
            slope = slope if found is None else found
    return spec.mass.times(du) - value + spec.mass.algebraic(value + slope)
