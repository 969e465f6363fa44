"""The continuous adjoint, solved backwards in time together with the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ude.engines.engine import SolveSpec, as_batch, differentiable, live_leaves
from ude.sensitivity.sensitivity import Solved


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
            pulled = (
                torch.autograd.grad(du, u, adjoint, allow_unused=True, create_graph=twice)[0]
                if du.requires_grad
                else None
            )
        pulled = torch.zeros_like(u) if pulled is None else pulled
        return torch.cat([du if twice else du.detach(), -pulled], dim=-1).view(z.shape)


class _Read(torch.autograd.Function):
    """Values of a solved problem at given times; backward solves the adjoint equation from the end to the start."""

    @staticmethod
    def forward(
        ctx: Any, algorithm: BacksolveAdjoint, solved: Solved, times: Tensor, values: Tensor, u0: Tensor, *p: Tensor
    ) -> Tensor:
        ctx.algorithm, ctx.solved = algorithm, solved
        ctx.save_for_backward(times, *p)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        times, *p = ctx.saved_tensors
        own: Callable[..., Any] | None = getattr(ctx.solved.engine, "backsolve", None)
        if own is not None:
            of_u0, of_p = own(ctx.solved.spec, ctx.solved.record, p, times, grad)
        else:
            of_u0, of_p = _backsolve(ctx.algorithm, ctx.solved, p, times, grad)
        return (None, None, None, None, of_u0, *of_p)


def _backsolve(
    algorithm: BacksolveAdjoint, solved: Solved, p: Sequence[Tensor], times: Tensor, grad: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    spec = solved.spec
    wanted = differentiable(p)
    totals: list[Tensor | None] = [None] * len(p)
    u, adjoint = solved.end, torch.zeros_like(solved.end)
    now = spec.t1
    sign = torch.where(spec.t1 >= spec.t0, 1.0, -1.0).to(times.dtype)
    order = (times * sign.unsqueeze(-1)).argsort(dim=1, stable=True)
    for column in reversed(range(times.shape[1])):
        save = order[:, column : column + 1]
        when = times.gather(1, save).squeeze(1)
        if bool((when != now).any()):
            u, adjoint, of_p = _piece(algorithm, solved, p, (now, when), torch.cat([u, adjoint], dim=-1))
            totals = [_add(total, part) for total, part in zip(totals, of_p, strict=True)]
            now = when
        adjoint = adjoint + grad.gather(1, save.unsqueeze(-1).expand(-1, -1, grad.shape[-1])).squeeze(1)
    if bool((now != spec.t0).any()):
        u, adjoint, of_p = _piece(algorithm, solved, p, (now, spec.t0), torch.cat([u, adjoint], dim=-1))
        totals = [_add(total, part) for total, part in zip(totals, of_p, strict=True)]
    return adjoint, tuple(total if need else None for total, need in zip(totals, wanted, strict=True))


def _piece(
    algorithm: BacksolveAdjoint, solved: Solved, p: Sequence[Tensor], span: tuple[Tensor, Tensor], z: Tensor
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Solve (u, lambda) from one save to the one before it, and add up the leaves' gradient on the way."""
    spec = solved.spec
    reltol = spec.reltol if algorithm.reltol is None else torch.as_tensor(algorithm.reltol).to(spec.reltol)
    abstol = spec.abstol if algorithm.abstol is None else torch.as_tensor(algorithm.abstol).to(spec.abstol)
    if reltol.ndim or abstol.ndim:
        # lambda has other units than u: without numbers of its own it gets the same ones as its state
        count = z.shape[-1] // 2
        reltol, abstol = reltol.expand(count).repeat(2), abstol.expand(count).repeat(2)
    augmented = _Augmented(spec)
    backward = replace(
        spec,
        f=augmented,  # called like a FlatRightHandSide
        t0=span[0],
        t1=span[1],
        saveat=None,
        abstol=abstol,
        reltol=reltol,
        first_du=augmented(z, p, span[0]),
    )
    result = solved.engine.forward(backward, z, p)
    if bool(result.retcode.any()):
        # a backward solve that did not arrive has no gradient to give; NaN says so and never looks like one
        nothing = torch.full_like(solved.end, float("nan"))
        return nothing, nothing, [torch.full_like(leaf, float("nan")) for leaf in p]
    u, adjoint = result.record.u[-1].chunk(2, dim=-1)
    return u, adjoint, _parameter_integral(solved, backward, result.record, p)


def _parameter_integral(solved: Solved, backward: SolveSpec, record: Any, p: Sequence[Tensor]) -> list[Tensor | None]:
    """``pbar = -int (df/dp)^T lambda dt`` over the backward steps, with the weights of the method itself.

    The integral feeds nothing back, so it stays out of the step control (P. Kidger, R. T. Q. Chen, T. Lyons,
    "Hey, that's not an ODE", ICML 2021); its rule is that of the steps, so it has their order.
    """
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    if not inputs:
        return [None] * len(p)
    totals: list[Tensor | None] = [None] * len(inputs)
    for z, t, weight in solved.engine.quadrature_nodes(backward, record, p):
        stage_u, stage_adjoint = z.chunk(2, dim=-1)
        with torch.enable_grad():
            du = as_batch(solved.spec, stage_u, t, leaves)
        if not du.requires_grad:
            continue
        parts = torch.autograd.grad(du, inputs, -weight.unsqueeze(-1) * stage_adjoint, allow_unused=True)
        totals = [_add(total, part) for total, part in zip(totals, parts, strict=True)]
    found = iter(totals)
    return [next(found) if need else None for need in wanted]


def _add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if part is None or total is None:
        return total if part is None else part
    return total + part


@dataclass(frozen=True)
class BacksolveAdjoint:
    """Solve the adjoint equation ``dlambda/dt = -(df/du)^T lambda`` backwards, the state along with it.

    Memory does not grow with the number of steps. The state is recomputed backwards, which is unstable for
    dissipative and chaotic systems: the gradient is then wrong however tight the tolerance, and `DiscreteAdjoint`
    is the choice. Its error is of the order of the tolerance. First derivatives only.

    Args:
        abstol, reltol: Tolerances of the backward solve; None takes those of the forward solve.

    Source: L. S. Pontryagin et al. (1962); R. T. Q. Chen et al., Neural Ordinary Differential Equations (2018).
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
        connected: Tensor = _Read.apply(self, solved, times, values, u0, *p)
        return connected
