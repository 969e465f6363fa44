"""Trajectories that run together, in smaller batches as others end, and what is handed out at their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ude.engines.base import ForwardResult, SolveSpec, StepControl, StepRecord
from ude.engines.return_code import ReturnCode
from ude.engines.torch.checkpoints import Keeper
from ude.engines.torch.compaction import (
    SMALLEST_BATCH,
    CompactRecord,
    RecordPart,
    gather_leaves,
    gather_spec,
    may_compact,
    rows_of_leaves,
    same_alone,
)
from ude.engines.torch.lanes import BatchArithmetic, lanes_for
from ude.engines.torch.scheme import Scheme
from ude.engines.torch.step_rows import StepRows, every_step
from ude.engines.torch.step_size import start_memory, start_step


@dataclass
class State:
    """Where every trajectory stands; per-trajectory numbers are floats or (B,) tensors (see `lanes`)."""

    t: Any
    dt: Any
    u: Tensor
    k1: Tensor
    memory: tuple[Any, ...]
    active: Any
    stopped: Any


@dataclass
class Batch:
    """Trajectories that run together: all at first, later those that the others have left behind.

    Args:
        start: Their states at the start of the solve.
        index: Which of the whole batch they are.
        before: Steps that each had accepted when this batch began.
        narrow_at: When at most so many still run, they go on alone.
    """

    spec: SolveSpec
    scheme: Scheme
    lanes: BatchArithmetic
    rows: StepRows
    state: State
    start: Tensor
    index: Tensor
    accepted: Any
    rejected: Any
    codes: Any
    before: Any
    narrow_at: int


def whole_batch(spec: SolveSpec, scheme: Scheme, u0: Tensor) -> Batch:
    lanes = lanes_for(u0, u0.shape[0])
    sign = spec.sign
    values = None if spec.saveat is None else u0.new_full((*spec.saveat.shape, u0.shape[1]), float("nan"))
    keeper = Keeper("all" if spec.saveat is None else spec.checkpoints)
    zeros = lanes.read(torch.zeros_like(spec.t0))
    return Batch(
        spec=spec,
        scheme=scheme,
        lanes=lanes,
        rows=StepRows(scheme, keeper, sign, spec.saveat, values, [spec.t0]),
        state=State(
            t=lanes.read(spec.t0),
            dt=lanes.read(start_step(spec, scheme.work, scheme.error_order, u0, sign)),
            u=u0,
            k1=spec.first_du,
            memory=tuple(lanes.read(item) for item in start_memory(spec)),
            active=lanes.read(spec.t0 != spec.t1 if spec.failed is None else (spec.t0 != spec.t1) & ~spec.failed),
            stopped=lanes.read(torch.zeros_like(spec.t0, dtype=torch.bool)),
        ),
        start=u0,
        index=torch.arange(len(u0), device=u0.device),
        accepted=zeros,
        rejected=zeros,
        codes=zeros if spec.failed is None else lanes.read(spec.failed * float(ReturnCode.InitialFailure)),
        before=zeros,
        narrow_at=len(u0) // 2 if may_compact(spec) else 0,
    )


def narrower_batch(
    batch: Batch, per_trajectory: tuple[bool, ...] | None
) -> tuple[Batch | None, tuple[bool, ...] | None]:
    """The trajectories that still run as a batch of their own, where f bears it; and which leaves were gathered."""
    spec, scheme, state, p = batch.spec, batch.scheme, batch.state, batch.scheme.work.p
    index = state.active.nonzero().squeeze(-1)
    # with a mass matrix the derivative at the start is not f there
    known = spec.first_du if spec.mass is None else None
    points = ((batch.start, spec.t0, known), (state.u, state.t, None), (state.u, spec.t1, None))
    guesses = rows_of_leaves(spec, p) if per_trajectory is None else [per_trajectory]
    for guess in guesses:
        # the calls of f that the trial costs
        scheme.work.calls += len(points)
        if same_alone(spec, p, index, guess, points):
            break
    else:
        return None, per_trajectory
    part, leaves = gather_spec(spec, index), gather_leaves(p, guess, index)
    taken = scheme.gather(index, part, leaves)
    rows = batch.rows
    rows.flush()
    implicit = rows.ended_implicit()
    values = None if rows.values is None else rows.values[index]
    narrow = StepRows(taken, Keeper("all"), part.sign, part.saveat, values, [state.t[index]])
    narrow.goes_on = None if implicit is None else implicit[index]
    moved = State(
        t=state.t[index],
        dt=state.dt[index],
        u=state.u[index],
        k1=state.k1[index],
        memory=tuple(item[index] for item in state.memory),
        active=state.active[index],
        stopped=state.stopped[index],
    )
    return Batch(
        spec=part,
        scheme=taken,
        lanes=batch.lanes,
        rows=narrow,
        state=moved,
        start=batch.start[index],
        index=batch.index[index],
        accepted=batch.accepted[index],
        rejected=batch.rejected[index],
        codes=batch.codes[index],
        before=batch.accepted[index],
        narrow_at=len(index) // 2 if len(index) >= SMALLEST_BATCH else 0,
    ), guess


def result_of(batches: Sequence[Batch], per_trajectory: tuple[bool, ...]) -> ForwardResult:
    whole, spec = batches[0], batches[0].spec
    records = [batch.rows.record(batch.state.u) for batch in batches]
    record: StepRecord | CompactRecord = records[0]
    if len(batches) > 1:
        segments = tuple(RecordPart(batch.index, part) for batch, part in zip(batches, records, strict=True))
        record = CompactRecord(segments, _gathered(batches, [batch.state.u for batch in batches]), per_trajectory)
    t_end = _gathered(batches, [batch.state.t for batch in batches])
    times, values = _saved(batches, records, t_end)
    work = batches[-1].scheme.work
    switches = stiff = None
    if whole.scheme.stiff is not None:
        switches = _gathered(batches, [batch.scheme.switches for batch in batches]).to(torch.int64)
        stiff = _gathered(batches, [batch.scheme.stiff for batch in batches]).to(torch.bool)
    return ForwardResult(
        times=times,
        values=values,
        record=record,
        retcode=_gathered(batches, [batch.codes for batch in batches]).to(torch.int64),
        t_end=t_end,
        accepted_steps=_gathered(batches, [batch.accepted for batch in batches]).to(torch.int64),
        rejected_steps=_gathered(batches, [batch.rejected for batch in batches]).to(torch.int64),
        nf=work.calls,
        njacs=work.jacobians,
        nw=work.factorizations,
        switches=switches,
        stiff=stiff,
        nproducts=work.products,
        # a long step at the end says nothing to a scheme that starts again at its lowest order
        control=None
        if whole.scheme.chooses_steps
        else StepControl(
            dt=_gathered(batches, [batch.state.dt for batch in batches]),
            jumped=torch.zeros_like(spec.t0, dtype=torch.bool),
            memory=tuple(
                _gathered(batches, [batch.state.memory[place] for batch in batches])
                for place in range(len(whole.state.memory))
            ),
        ),
    )


def _gathered(batches: Sequence[Batch], items: Sequence[Any]) -> Tensor:
    """A number or row a trajectory, of each batch, as the last batch that it ran in left it."""
    total = batches[0].lanes.tensor(items[0]) if not isinstance(items[0], Tensor) else items[0]
    for batch, item in zip(batches[1:], items[1:], strict=True):
        total = total.index_copy(0, batch.index, item)
    return total


def _saved(batches: Sequence[Batch], records: Sequence[StepRecord], t_end: Tensor) -> tuple[Tensor, Tensor]:
    """The times and values that the solve hands out."""
    whole, spec = batches[0], batches[0].spec
    if spec.saveat is None or whole.rows.values is None:
        # what had been counted when the next batch took some away stayed with this one
        counts = [batch.lanes.tensor(batch.accepted - batch.before).to(torch.int64) for batch in batches]
        return _joined(batches, records, counts, t_end)
    # a span of length zero takes no step, and every save of it is the initial state
    still = (spec.t0 == spec.t1).view(-1, 1, 1)
    saved = _gathered(batches, [batch.rows.values for batch in batches if batch.rows.values is not None])
    return spec.saveat, torch.where(still, whole.start.unsqueeze(1), saved)


def _joined(
    batches: Sequence[Batch], records: Sequence[StepRecord], counts: Sequence[Tensor], t_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Every trajectory's own accepted points, from one batch after another; shorter ones repeat their end."""
    if len(batches) == 1:
        return every_step(records[0], counts[0])
    total = torch.zeros_like(counts[0])
    for batch, count in zip(batches, counts, strict=True):
        total.index_add_(0, batch.index, count)
    length = int(total.max()) + 1
    u_end = _gathered(batches, [batch.state.u for batch in batches])
    times = t_end.unsqueeze(-1).repeat(1, length)
    values = u_end.unsqueeze(1).repeat(1, length, 1)
    offset = torch.zeros_like(total)
    for batch, record, count in zip(batches, records, counts, strict=True):
        own_times, own_values = every_step(record, count)
        lane, place = (torch.arange(own_times.shape[1], device=count.device) <= count.unsqueeze(-1)).nonzero(
            as_tuple=True
        )
        to = batch.index[lane]
        times[to, offset[to] + place] = own_times[lane, place]
        values[to, offset[to] + place] = own_values[lane, place]
        offset.index_add_(0, batch.index, count)
    return times, values
