"""Trajectories that have finished leave the batch, so that a few long ones do not cost what all would.

When at most half of a batch still runs, its rows are gathered into a smaller batch: state, times, saves, what the
controller and the scheme remember, and of the leaves of p those that hold one row a trajectory. f is any function of
the user's, so that is done only where f is seen to give the same on the gathered rows. The record of such a solve is
a list of segments, each of the trajectories that ran in it; reading and pulling back go through them one by one.

A trajectory's steps are the same with and without: rounding that depends on the size of a batch (in matrix products)
reaches its values in the last digits, and the step sizes not at all (see FACTOR_GRID).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import NO_CHECKS, SolveSpec, StepRecord, add, as_batch, differentiable
from ude.engines.jacobian import Jacobians
from ude.problems.ode import FlatRightHandSide

# Smaller batches cost what the calls of torch cost, however many rows they have.
SMALLEST_BATCH = 64


@dataclass(frozen=True, eq=False)
class RecordPart:
    """Steps that some trajectories took together.

    Args:
        index: Which of the whole batch they are (k,).
        record: Their steps.
    """

    index: Int[Tensor, "k"]
    record: StepRecord


@dataclass(frozen=True, eq=False)
class CompactRecord:
    """The record of a solve whose batch was made smaller on the way; each segment goes on where the one before ended,
    with some of its trajectories."""

    segments: tuple[RecordPart, ...]
    u_end: Float[Tensor, "B n"]
    per_trajectory: tuple[bool, ...]


def in_one_piece(record: CompactRecord) -> StepRecord:
    """The same steps as one record of the whole batch, for methods whose steps are made of many states before them."""
    first = record.segments[0].record
    t_end, u_end = first.t[-1], first.u[-1]
    t, dt, u = [], [], []
    for segment in record.segments:
        part, index = segment.record, segment.index
        rows = part.dt.shape[0]
        # a trajectory that has left stays where it ended
        t.append(t_end.repeat(rows, 1).index_copy(1, index, part.t[:-1]))
        dt.append(torch.zeros_like(t[-1]).index_copy(1, index, part.dt))
        u.append(u_end.repeat(rows, 1, 1).index_copy(1, index, part.u[:-1]))
        t_end, u_end = t_end.index_copy(0, index, part.t[-1]), u_end.index_copy(0, index, part.u[-1])
    return StepRecord(torch.cat([*t, t_end.unsqueeze(0)]), torch.cat(dt), torch.cat([*u, u_end.unsqueeze(0)]))


def may_compact(spec: SolveSpec) -> bool:
    """Whether nothing but f stands in the way: callbacks and conditions of the user's may look at whole batches."""
    return (
        spec.compact
        and spec.adaptive
        and len(spec.batch) == 1
        and len(spec.t0) >= SMALLEST_BATCH
        and spec.watch is None
        and spec.checks is NO_CHECKS
        and spec.checkpoints == "all"
        and isinstance(spec.f, FlatRightHandSide)
    )


def gather_spec(spec: SolveSpec, index: Int[Tensor, "k"]) -> SolveSpec:
    """The same solve for some of its trajectories."""
    return replace(
        spec,
        batch=(len(index),),
        t0=spec.t0[index],
        t1=spec.t1[index],
        saveat=None if spec.saveat is None else spec.saveat[index],
        first_du=spec.first_du[index],
        stiff=None if spec.stiff is None else spec.stiff[index],
        failed=None if spec.failed is None else spec.failed[index],
        resume=None,
    )


def gather_leaves(p: Sequence[Tensor], per_trajectory: Sequence[bool], index: Int[Tensor, "k"]) -> tuple[Tensor, ...]:
    """The leaves that some trajectories need; cut from their history where they are gathered."""
    return tuple(
        leaf.detach()[index].requires_grad_(leaf.requires_grad) if gathered else leaf
        for leaf, gathered in zip(p, per_trajectory, strict=True)
    )


def rows_of_leaves(spec: SolveSpec, p: Sequence[Tensor]) -> list[tuple[bool, ...]]:
    """Guesses which leaves hold one row a trajectory: all tensors of p of that length, or none.

    A module's own parameters never do.
    """
    if not isinstance(spec.f, FlatRightHandSide):
        return []
    count = len(spec.t0)
    long = [leaf.ndim > 0 and leaf.shape[0] == count for leaf in p]
    guess = tuple(fits and plain for fits, plain in zip(long, spec.f.plain_leaves(), strict=True))
    nothing = (False,) * len(p)
    return [guess, nothing] if any(guess) else [nothing]


def same_alone(
    spec: SolveSpec, p: Sequence[Tensor], index: Int[Tensor, "k"], per_trajectory: Sequence[bool], points: Points
) -> bool:
    """Whether f, and a Jacobian of its author's, give the same for gathered rows as for the whole batch.

    It is tried at three times, so that a dependence on a trajectory's place in the batch (a closure over one number a
    trajectory, a mean over the batch, a forcing with its own grids) shows itself as an error, another shape or other
    numbers.
    """
    part, leaves = gather_spec(spec, index), gather_leaves(p, per_trajectory, index)
    for u, t, known in points:
        whole = (as_batch(spec, u, t, p) if known is None else known)[index]
        try:
            alone = as_batch(part, u[index], t[index], leaves)
            same = _near(alone, whole) and (
                spec.jac is None
                or _near(Jacobians(part, leaves).jacobian(u[index], t[index]), Jacobians(spec, p).jacobian(u, t)[index])
            )
        except Exception:  # whatever an f that needs the whole batch raises
            return False
        if not same:
            return False
    return True


def _near(alone: Tensor, whole: Tensor) -> bool:
    if alone.shape != whole.shape:
        return False
    scale = whole.abs().amax(-1, keepdim=True)
    close = (alone - whole).abs() <= 1e3 * torch.finfo(whole.dtype).eps * scale
    # infinities and NaN are the same where they are the same
    return bool((close | (alone == whole) | (alone.isnan() & whole.isnan())).all())


#: States (B, n), times (B,), and f there where it is known.
Points = Sequence[tuple[Tensor, Tensor, Tensor | None]]


def _share(
    segment: RecordPart, rest: Bool[Tensor, "B"], first: bool, times: Float[Tensor, "B T"], sign: Float[Tensor, "B"]
) -> tuple[Float[Tensor, "k T"], Bool[Tensor, "k T"]]:
    """Which times fall into a segment (`rest`: who goes on after it), and the times, the end in place of others."""
    index, record = segment.index, segment.record
    start, end = record.t[0].unsqueeze(-1), record.t[-1].unsqueeze(-1)
    own, direction = times[index], sign[index].unsqueeze(-1)
    mine = (own * direction <= end * direction) | ~rest[index].unsqueeze(-1)
    if not first:
        mine = mine & (own * direction > start * direction)
    return torch.where(mine, own, end), mine


def _who_goes_on(record: CompactRecord, position: int) -> Bool[Tensor, "B"]:
    goes_on = torch.zeros(len(record.u_end), dtype=torch.bool, device=record.u_end.device)
    if position + 1 < len(record.segments):
        goes_on[record.segments[position + 1].index] = True
    return goes_on


#: Reads one segment: (spec, record, leaves, times) -> values.
Read = Callable[[SolveSpec, StepRecord, Sequence[Tensor], Tensor], Tensor]
#: Pulls back through one segment: (spec, record, leaves, times, cotangents, cotangent of the derivative carried at its
#: end, whether it is the first) -> (of the state, of the derivative carried at its start, of the leaves).
Pull = Callable[
    [SolveSpec, StepRecord, Sequence[Tensor], Tensor, Tensor, Tensor, bool],
    tuple[Tensor, Tensor, Sequence[Tensor | None]],
]


def read_compact(
    spec: SolveSpec, record: CompactRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"], read: Read
) -> Float[Tensor, "B T n"]:
    """Evaluate the dense output, each time in the segment into which it falls."""
    values = record.u_end.new_empty(*times.shape, record.u_end.shape[1])
    for position, segment in enumerate(record.segments):
        index = segment.index
        asked, mine = _share(segment, _who_goes_on(record, position), position == 0, times, spec.sign)
        part = read(gather_spec(spec, index), segment.record, gather_leaves(p, record.per_trajectory, index), asked)
        values[index] = torch.where(mine.unsqueeze(-1), part, values[index])
    return values


def pull_compact(
    spec: SolveSpec,
    record: CompactRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
    pull: Pull,
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull cotangents back from the last segment to the first; a segment's start is one more read of the one before."""
    adjoint, carried = torch.zeros_like(record.u_end), torch.zeros_like(record.u_end)
    totals: list[Tensor | None] = [None] * len(p)
    for position in reversed(range(len(record.segments))):
        segment = record.segments[position]
        index = segment.index
        asked, mine = _share(segment, _who_goes_on(record, position), position == 0, times, spec.sign)
        own = torch.where(mine.unsqueeze(-1), grad[index], 0.0)
        asked = torch.cat([asked, segment.record.t[-1].unsqueeze(-1)], 1)
        own = torch.cat([own, adjoint[index].unsqueeze(1)], 1)
        leaves = gather_leaves(p, record.per_trajectory, index)
        of_u, of_k1, parts = pull(
            gather_spec(spec, index), segment.record, leaves, asked, own, carried[index], position == 0
        )
        adjoint, carried = adjoint.index_copy(0, index, of_u), carried.index_copy(0, index, of_k1)
        for i, (part, gathered) in enumerate(zip(parts, record.per_trajectory, strict=True)):
            if part is not None and gathered:
                part = torch.zeros_like(p[i]).index_add_(0, index, part)
            totals[i] = add(totals[i], part)
    return adjoint, tuple(total if need else None for total, need in zip(totals, differentiable(p), strict=True))
