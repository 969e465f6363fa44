"""The discrete adjoint of explicit Runge-Kutta steps: the exact derivative of what the stepper did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.engine import SolveSpec, StepRecord, add, as_batch, differentiable, live_leaves
from ude.engines.torch_engine.checkpoints import Starts
from ude.engines.torch_engine.explicit import ExplicitScheme
from ude.engines.torch_engine.parallel_pullback import pays, pullback_parallel
from ude.engines.torch_engine.stages import (
    TableauTensors,
    combine,
    extend,
    locate,
    tableau_tensors,
)
from ude.engines.torch_engine.tape import TapedStep, pull_taped
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


class Reads:
    """Reads of the dense output, sorted by the step that they fall into."""

    def __init__(self, spec: SolveSpec, record: StepRecord, times: Tensor, grad: Tensor) -> None:
        rows = record.dt.shape[0]
        row, theta = locate(record.t, record.dt, times, spec.sign)
        flat = row.clamp(max=rows - 1).reshape(-1)
        order = flat.argsort(stable=True)
        self.bounds = torch.searchsorted(flat[order], torch.arange(rows + 1, device=order.device)).tolist()
        self.lane = order // times.shape[1]
        self.order = order
        self.theta = theta.reshape(-1)[order]
        self.grad = grad.reshape(-1, grad.shape[-1])[order]
        # reads at the very end of a step, as of every saved step, are the new state and need no further stage
        self.at_end = (self.theta == 1.0).tolist()

    def of(self, row: int) -> tuple[slice, bool] | None:
        """Return where a step's reads lie and whether all are of its end; None when it has none."""
        low, high = self.bounds[row], self.bounds[row + 1]
        return (slice(low, high), all(self.at_end[low:high])) if low < high else None


def pullback(
    spec: SolveSpec,
    tableau: ExplicitTableau,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull the cotangents of u(times) back through every recorded step.

    Steps whose graph was kept are pulled back through it (see `tape`). Of the others, from the last segment of steps to
    the first: the segment is computed again from its recorded first state, this
    time with an autograd graph, and the cotangents of its end and of what was read inside it are pulled back to its
    first state and to the leaves. One graph for a few steps is faster than one for each stage by a factor of two, and
    never larger than `_ROWS_IN_ONE_GRAPH` steps.
    """
    rows = record.dt.shape[0]
    if rows == 0:
        return grad.sum(1), tuple(None for _ in p)
    numbers = tableau_tensors(tableau, record.u.dtype, record.u.device)
    starts = Starts(record, ExplicitScheme(spec, tableau, [leaf.detach() for leaf in p]).advance)
    reads = Reads(spec, record, times, grad)
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    # with checkpoints the states of all steps are not there at once
    if record.kept is None and pays(spec, numbers, record, leaves):
        adjoint, totals = pullback_parallel(spec, numbers, record, leaves, inputs, reads)
        found = iter(totals)
        return adjoint, tuple(next(found) if need else None for need in wanted)
    sweep = _Sweep(spec, numbers, record, leaves, inputs, reads, starts)
    row = rows
    while row > 0:
        step = None if record.tape is None else record.tape.take(row - 1, reads)
        if step is not None:
            row -= 1
            sweep.pull_graph(row, step)
            continue
        last, row = row, max(0, row - _ROWS_IN_ONE_GRAPH)
        while record.tape is not None and any(i in record.tape.steps for i in range(row, last)):
            row += 1
        sweep.compute_again(range(row, last))
    sweep.settle_derivative(0)
    found = iter(sweep.totals)
    return sweep.adjoint, tuple(next(found) if need else None for need in wanted)


class _Sweep:
    """The way back through the steps: cotangents of the state, of the derivative carried along, and of the leaves."""

    def __init__(
        self,
        spec: SolveSpec,
        numbers: TableauTensors,
        record: StepRecord,
        leaves: Sequence[Tensor],
        inputs: Sequence[Tensor],
        reads: Reads,
        starts: Starts,
    ) -> None:
        self._spec, self._numbers, self._record = spec, numbers, record
        self._leaves, self._inputs, self._reads, self._starts = leaves, inputs, reads, starts
        self.adjoint = torch.zeros_like(record.u[0])
        self.totals: list[Tensor | None] = [None] * len(inputs)
        self._of_derivative: Tensor | None = None

    def pull_graph(self, row: int, step: TapedStep) -> None:
        """Pull back through a step whose graph was kept."""
        self.adjoint, self._of_derivative, parts = pull_taped(
            self._numbers,
            step,
            self._record.dt[row],
            (self.adjoint, self._of_derivative),
            self._record.tape.inputs,
            (self._reads, row),
        )
        self._add(parts)

    def compute_again(self, rows: range) -> None:
        """Pull back through steps whose states alone were recorded."""
        self.settle_derivative(rows.stop)
        with torch.no_grad():
            u = self._starts(rows.start)[0].detach().requires_grad_()
        with torch.enable_grad():
            outputs, cotangents = segment(self._spec, self._numbers, self._record, rows, u, self._leaves, self._reads)
        self.adjoint, *parts = torch.autograd.grad(
            outputs, (u, *self._inputs), [self.adjoint, *cotangents], allow_unused=True, materialize_grads=False
        )
        self._add(parts)

    def settle_derivative(self, row: int) -> None:
        """Pull the cotangent of the derivative that a kept step started with back to its state."""
        bar, self._of_derivative = self._of_derivative, None
        if bar is None:
            return
        u = self._record.u[row].detach().requires_grad_()
        with torch.enable_grad():
            du = as_batch(self._spec, u, self._record.t[row], self._leaves)
        if du.requires_grad:
            of_u, *parts = torch.autograd.grad(du, (u, *self._inputs), bar, allow_unused=True)
            self.adjoint = self.adjoint if of_u is None else self.adjoint + of_u
            self._add(parts)

    def _add(self, parts: Sequence[Tensor | None]) -> None:
        self.totals = [add(total, part) for total, part in zip(self.totals, parts, strict=True)]


def segment(
    spec: SolveSpec,
    numbers: TableauTensors,
    record: StepRecord,
    rows: range,
    u: Tensor,
    leaves: Sequence[Tensor],
    reads: Reads,
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
