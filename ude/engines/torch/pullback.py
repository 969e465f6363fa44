"""The discrete adjoint of explicit Runge-Kutta steps: the exact derivative of what the stepper did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, StepRecord, add, as_batch, differentiable, live_leaves
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.families.explicit import ExplicitScheme
from ude.engines.torch.parallel_pullback import pays, pullback_parallel
from ude.engines.torch.stages import TableauTensors, combine, extend, locate, tableau_tensors
from ude.methods import ExplicitTableau

# Steps whose graph is held at once in the reverse sweep: more save calls, and cost memory.
_ROWS_IN_ONE_GRAPH = 4


def interpolate(
    spec: SolveSpec,
    record: StepRecord,
    times: Float[Tensor, "B T"],
    interpolant: Float[Tensor, "stages powers"],
    starts: Starts,
    stages: Callable[[int], Float[Tensor, "stages B n"]],
) -> Float[Tensor, "B T n"]:
    """Evaluate the continuous extension at `times`; `stages(row)` computes those of a recorded step again."""
    rows, (batch, states) = record.dt.shape[0], record.u.shape[1:]
    if rows == 0:
        return record.u[0].unsqueeze(1).expand(batch, times.shape[1], states).clone()
    row, theta = locate(record.t, record.dt, times, spec.sign)
    row = row.clamp(max=rows - 1)
    # reads at the ends of a step are its states, and need no stage
    nearest = row + (theta == 1.0)
    if record.kept is None:
        values = record.u.transpose(0, 1).gather(1, nearest.unsqueeze(-1).expand(-1, -1, states))
    else:
        values = record.u.new_empty(batch, times.shape[1], states)
        for i in nearest.unique().tolist():
            lane, save = (nearest == i).nonzero(as_tuple=True)
            values[lane, save] = starts(i)[0][lane]
    inside = (theta != 0.0) & (theta != 1.0)
    for i in row[inside].unique().tolist():
        lane, save = (inside & (row == i)).nonzero(as_tuple=True)
        k = stages(i)[:, lane].transpose(0, 1)
        values[lane, save] = extend(interpolant, starts(i)[0][lane], record.dt[i, lane], theta[lane, save], k)
    return values


def pullback(
    spec: SolveSpec,
    tableau: ExplicitTableau,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull the cotangents of u(times) back through every recorded step.

    From the last segment of steps to the first: the segment is computed again from its recorded first state, this
    time with an autograd graph, and the cotangents of its end and of what was read inside it are pulled back to its
    first state and to the leaves. One graph for a few steps is faster than one for each stage by a factor of two, and
    never larger than `_ROWS_IN_ONE_GRAPH` steps.
    """
    rows = record.dt.shape[0]
    if rows == 0:
        return grad.sum(1), tuple(None for _ in p)
    numbers = tableau_tensors(tableau, record.u.dtype, record.u.device)
    starts = Starts(record, ExplicitScheme(spec, tableau, [leaf.detach() for leaf in p]).advance)
    reads = DenseReads(spec, record, times, grad)
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    adjoint = torch.zeros_like(record.u[0])
    adjoint, totals = sweep(spec, numbers, record, range(rows), (leaves, inputs), (reads, adjoint), starts)
    found = iter(totals)
    return adjoint, tuple(next(found) if need else None for need in wanted)


def sweep(
    spec: SolveSpec,
    numbers: TableauTensors,
    record: StepRecord,
    rows: range,
    variables: tuple[Sequence[Tensor], Sequence[Tensor]],
    cotangents: tuple[DenseReads, Float[Tensor, "B n"]],
    starts: Starts,
) -> tuple[Float[Tensor, "B n"], list[Tensor | None]]:
    """Pull the cotangents of what is read in these rows, and of their end, back to their start.

    Args:
        variables: All leaves, and those of them that a gradient is wanted for.
    """
    (leaves, inputs), (reads, adjoint) = variables, cotangents
    # with checkpoints the states of all steps are not there at once
    if record.kept is None and pays(spec, numbers, record, rows, leaves):
        return pullback_parallel(spec, numbers, record, rows, variables, cotangents)
    totals: list[Tensor | None] = [None] * len(inputs)
    for start in reversed(range(rows.start, rows.stop, _ROWS_IN_ONE_GRAPH)):
        with torch.no_grad():
            u = starts(start)[0].detach().requires_grad_()
        with torch.enable_grad():
            outputs, of_reads = segment(
                spec, numbers, record, range(start, min(rows.stop, start + _ROWS_IN_ONE_GRAPH)), u, leaves, reads
            )
        adjoint, *parts = torch.autograd.grad(
            outputs, (u, *inputs), [adjoint, *of_reads], allow_unused=True, materialize_grads=False
        )
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    return adjoint, totals


def segment(
    spec: SolveSpec,
    numbers: TableauTensors,
    record: StepRecord,
    rows: range,
    u: Tensor,
    leaves: Sequence[Tensor],
    reads: DenseReads,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute steps again with a graph; returns the end state and what was read, and the cotangents of the reads."""
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []
    for row in rows:
        t, dt = record.t[row], record.dt[row]
        column = dt.unsqueeze(-1)
        read = reads.of(row)
        k = [as_batch(spec, u, t, leaves)]
        for i in range(1, numbers.end_count):
            argument = torch.addcmul(u, column, combine(numbers.a[i], torch.stack(k)))
            k.append(as_batch(spec, argument, t + numbers.c[i] * dt, leaves))
        end = torch.addcmul(u, column, combine(numbers.b[: len(k)], torch.stack(k)))
        if read is not None:
            where, at_end = read
            lane = reads.lane[where]
            if at_end:
                outputs.append(end[lane])
            else:
                taken = _stages_read(spec, numbers, (u, t, dt), k, leaves)[:, lane].transpose(0, 1)
                outputs.append(extend(numbers.interpolant, u[lane], dt[lane], reads.theta[where], taken))
            cotangents.append(reads.grad[where])
        u = end
    return [u, *outputs], cotangents


def _stages_read(
    spec: SolveSpec,
    numbers: TableauTensors,
    start: tuple[Tensor, Tensor, Tensor],
    k: Sequence[Tensor],
    leaves: Sequence[Tensor],
) -> Float[Tensor, "all_stages B n"]:
    """Add to the stages k of the new state those that the dense output needs beside; zeros for the others."""
    u, t, dt = start
    nodes, rows = (*numbers.c, *numbers.extra_c), (*numbers.a, *numbers.extra_a)
    every = list(k)
    for i in range(len(every), len(rows)):
        if numbers.read[i]:
            argument = torch.addcmul(u, dt.unsqueeze(-1), combine(rows[i], torch.stack(every)))
            every.append(as_batch(spec, argument, t + nodes[i] * dt, leaves))
        else:
            every.append(torch.zeros_like(u))
    return torch.stack(every)
