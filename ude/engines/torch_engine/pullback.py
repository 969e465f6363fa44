"""The discrete adjoint of explicit Runge-Kutta steps: the exact derivative of what the stepper did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.engine import SolveSpec, StepRecord, as_batch, differentiable, live_leaves
from ude.engines.torch_engine.stages import (
    TableauTensors,
    combine,
    compute_stages,
    extend,
    interpolation_weights,
    locate,
    tableau_tensors,
)
from ude.methods import ExplicitTableau


def direction(spec: SolveSpec) -> Float[Tensor, "B"]:
    return torch.where(spec.t1 >= spec.t0, 1.0, -1.0).to(spec.t0.dtype)


def interpolate(
    spec: SolveSpec, tableau: ExplicitTableau, record: StepRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"]
) -> Float[Tensor, "B T n"]:
    """Evaluate the continuous extension at `times`, recomputing the stages of the steps that hold them."""
    rows, batch, states = record.u.shape
    if rows == 1:
        return record.u[0].unsqueeze(1).expand(batch, times.shape[1], states).clone()
    numbers = tableau_tensors(tableau, record.u.dtype, record.u.device)
    row, theta = locate(record.t, record.dt, times, direction(spec))
    row = row.clamp(max=rows - 2)
    values = record.u.new_empty(batch, times.shape[1], states)
    for i in row.unique().tolist():
        lane, save = (row == i).nonzero(as_tuple=True)
        u, t, dt = record.u[i], record.t[i], record.dt[i]
        k, _ = compute_stages(lambda u, t: as_batch(spec, u, t, p), numbers, u, t, dt, as_batch(spec, u, t, p))
        values[lane, save] = extend(numbers, u[lane], dt[lane], theta[lane, save], k[:, lane].transpose(0, 1))
    return values


class _Reads:
    """Cotangents of the dense output, sorted by the step that they fall into."""

    def __init__(
        self, spec: SolveSpec, numbers: TableauTensors, record: StepRecord, times: Tensor, grad: Tensor
    ) -> None:
        rows = record.t.shape[0]
        row, theta = locate(record.t, record.dt, times, direction(spec))
        order = row.clamp(max=rows - 1).reshape(-1).argsort(stable=True)
        self.bounds = torch.searchsorted(
            row.clamp(max=rows - 1).reshape(-1)[order].contiguous(), torch.arange(rows + 1, device=order.device)
        ).tolist()
        self.lane = order // times.shape[1]
        self.weights = interpolation_weights(numbers, theta.reshape(-1)[order])
        self.grad = grad.reshape(-1, grad.shape[-1])[order]

    def of(self, row: int, dt: Tensor, like: Tensor, stages: int) -> tuple[Tensor, Tensor] | None:
        """Return the cotangents (B, n) of the step's first state and (stages, B, n) of its stages; None without any."""
        low, high = self.bounds[row], self.bounds[row + 1]
        if low == high:
            return None
        lane, grad = self.lane[low:high], self.grad[low:high]
        of_state = torch.zeros_like(like).index_add_(0, lane, grad)
        spread = (self.weights[low:high] * dt[lane].unsqueeze(-1)).T.unsqueeze(-1) * grad
        of_stages = like.new_zeros(stages, *like.shape).index_add_(1, lane, spread)
        return of_state, of_stages


def pullback(
    spec: SolveSpec,
    tableau: ExplicitTableau,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull the cotangents of u(times) back through every recorded step.

    One step ``u_next = u + dt sum_i b_i k_i``, ``k_i = f(Y_i)``, ``Y_i = u + dt sum_{j<i} a_ij k_j`` pulls the
    cotangent lambda of u_next back by (Hairer, Norsett & Wanner, Solving ODEs I, II.6, transposed)::

        kbar_i = dt (b_i lambda + sum_{l>i} a_li Ybar_l) + (what reads of the dense output add)
        Ybar_i = (df/du)^T kbar_i,      pbar += (df/dp)^T kbar_i
        lambda = lambda + sum_i Ybar_i + (what reads add)

    The stages are recomputed from the recorded state of the step, so memory is one state a step.
    """
    rows = record.t.shape[0]
    if rows == 0:
        return grad.sum(1), tuple(None for _ in p)
    numbers = tableau_tensors(tableau, record.u.dtype, record.u.device)
    reads = _Reads(spec, numbers, record, times, grad)
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    totals: list[Tensor | None] = [None] * len(inputs)
    adjoint = torch.zeros_like(record.u[0])
    for row in reversed(range(rows)):
        step = (record.u[row], record.t[row], record.dt[row])
        read = reads.of(row, record.dt[row], adjoint, tableau.stages)
        adjoint, partial = _pull_step(spec, numbers, step, leaves, inputs, adjoint, read)
        for i, part in enumerate(partial):
            if part is not None:
                old = totals[i]
                totals[i] = part if old is None else old + part
    found = iter(totals)
    return adjoint, tuple(next(found) if need else None for need in wanted)


def _pull_step(
    spec: SolveSpec,
    numbers: TableauTensors,
    step: tuple[Tensor, Tensor, Tensor],
    leaves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    adjoint: Tensor,
    read: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Pull lambda (B, n) back through one step; returns the new lambda and the step's share of the leaves' gradient."""
    u, t, dt = step
    column = dt.unsqueeze(-1)
    arguments, outputs = _graphed_stages(spec, numbers, u, t, dt, leaves, last=read is not None)
    totals: list[Tensor | None] = [None] * len(inputs)
    scaled = column * adjoint
    pulled = torch.zeros(len(outputs), *u.shape, dtype=u.dtype, device=u.device)
    weights_below = _columns(numbers)
    for i in reversed(range(len(outputs))):
        cotangent = numbers.b[i] * scaled
        if i + 1 < len(outputs):
            cotangent = torch.addcmul(
                cotangent, column, combine(weights_below[i][: len(outputs) - i - 1], pulled[i + 1 :])
            )
        if read is not None:
            cotangent = cotangent + read[1][i]
        if not outputs[i].requires_grad:
            continue
        of_argument, *of_leaves = torch.autograd.grad(
            outputs[i], (arguments[i], *inputs), cotangent, allow_unused=True, materialize_grads=False
        )
        if of_argument is not None:
            pulled[i] = of_argument
        for j, part in enumerate(of_leaves):
            if part is not None:
                old = totals[j]
                totals[j] = part if old is None else old + part
    adjoint = adjoint + pulled.sum(0)
    return (adjoint if read is None else adjoint + read[0]), totals


def _graphed_stages(
    spec: SolveSpec,
    numbers: TableauTensors,
    u: Tensor,
    t: Tensor,
    dt: Tensor,
    leaves: Sequence[Tensor],
    *,
    last: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Recompute the stages, each with a graph back to its own argument and to the leaves only.

    The last stage of a first-same-as-last method has weight zero in the step and serves the dense output alone.
    """
    count = len(numbers.a) - (0 if last or numbers.weights[-1] else 1)
    k = u.new_empty(count, *u.shape)
    arguments, outputs = [], []
    column = dt.unsqueeze(-1)
    for i in range(count):
        argument = u if i == 0 else torch.addcmul(u, column, combine(numbers.a[i], k[:i]))
        argument = argument.detach().requires_grad_()
        with torch.enable_grad():
            output = as_batch(spec, argument, t + numbers.c[i] * dt, leaves)
        k[i] = output.detach()
        arguments.append(argument)
        outputs.append(output)
    return arguments, outputs


def _columns(numbers: TableauTensors) -> list[Tensor]:
    """For every stage i the entries ``a_li`` of the later stages l = i+1, i+2, ..."""
    stages = len(numbers.a)
    return [
        torch.stack([numbers.a[later][i] for later in range(i + 1, stages)]) if i + 1 < stages else numbers.b[:0]
        for i in range(stages)
    ]
