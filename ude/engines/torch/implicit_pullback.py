"""The discrete adjoint of implicit steps: step by step from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, StepRecord, add, differentiable, live_leaves
from ude.engines.initialization import tracked_derivative
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.scheme import Cotangents, ReversibleScheme
from ude.engines.torch.stages import interpolation_weights

#: Binds a method to a solve with given leaves.
SchemeOf = Callable[[Sequence[Tensor]], ReversibleScheme]


def recorded(starts: Starts, record: StepRecord, row: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """What a step started from: (u, k1, t, dt)."""
    return *starts(row), record.t[row], record.dt[row]


def pullback_implicit(
    spec: SolveSpec,
    scheme_of: SchemeOf,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull the cotangents of u(times) back through every recorded step, holding the graph of one stage at a time."""
    of_u, _, parts = pull_segment(spec, scheme_of, record, p, times, grad)
    return of_u, parts


def pull_segment(
    spec: SolveSpec,
    scheme_of: SchemeOf,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
    carried: tuple[Float[Tensor, "B n"] | None, bool] = (None, True),
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull cotangents back through the steps of a record that another may follow or precede.

    Args:
        carried: Cotangent of the derivative carried over at the end, and whether the first step started with f(u0)
            itself; otherwise the cotangent of what it started with is handed on.

    Returns:
        Cotangents of the first state, of the derivative carried over there, and of the leaves.
    """
    rows, (of_carried, first) = record.dt.shape[0], carried
    of_carried = torch.zeros_like(record.u[0]) if of_carried is None else of_carried
    if rows == 0:
        return grad.sum(1), of_carried, tuple(None for _ in p)
    reads = DenseReads(spec, record, times, grad)
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    scheme = scheme_of(leaves)
    starts = Starts(record, scheme.advance)
    totals: list[Tensor | None] = [None] * len(inputs)
    now = Cotangents(torch.zeros_like(record.u[0]), of_carried)
    for row in reversed(range(rows)):
        now, parts = scheme.pull_step(recorded(starts, record, row), with_reads(scheme, reads, row, now), inputs)
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    adjoint = now.u
    if scheme.carries_derivative and first:
        # the first step started with u'(t0), which is f(u0) itself without a mass matrix
        of_u, parts = pull_first(spec, (record.u[0], record.t[0]), leaves, inputs, now.k1)
        adjoint = adjoint + of_u
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    found = iter(totals)
    return adjoint, now.k1, tuple(next(found) if need else None for need in wanted)


def with_reads(scheme: ReversibleScheme, reads: DenseReads, row: int, end: Cotangents) -> Cotangents:
    """Add what was read of the dense output inside this step to the cotangents of its end."""
    read = reads.of(row)
    if read is None:
        return end
    where, _ = read
    lane, theta, grad = reads.lane[where], reads.theta[where], reads.grad[where]
    at_end = (theta == 1.0).unsqueeze(-1)
    u = end.u.index_add(0, lane, torch.where(at_end, grad, 0.0))
    inside = torch.where(at_end, 0.0, grad)
    weights = interpolation_weights(scheme.interpolant, theta)
    parts = weights.T.unsqueeze(-1) * inside
    stages = end.u.new_zeros(parts.shape[0], *end.u.shape).index_add(1, lane, parts)
    return Cotangents(u, end.k1, torch.zeros_like(u).index_add(0, lane, inside), stages)


def pull_first(
    spec: SolveSpec,
    start: tuple[Tensor, Tensor],
    leaves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    of_k1: Tensor,
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Pull the cotangent of the derivative f(u, t) that a first step starts with back to u and the leaves."""
    u = start[0].detach().requires_grad_()
    with torch.enable_grad():
        du = tracked_derivative(spec, u, start[1], leaves)
    if not du.requires_grad:
        return torch.zeros_like(u), [None] * len(inputs)
    of_u, *parts = torch.autograd.grad(du, (u, *inputs), of_k1, allow_unused=True)
    return (torch.zeros_like(u) if of_u is None else of_u), parts
