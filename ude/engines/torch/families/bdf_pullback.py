"""The exact derivative of multistep steps, by a reverse sweep or as ordinary torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import LeafCotangents, SolveSpec, StepRecord, as_batch
from ude.engines.torch.families.bdf_history import History, base_weights, lagrange_weights, leading
from ude.engines.torch.one_step import solve_with_graph
from ude.engines.torch.stages import locate
from ude.engines.work import Work


class _Reads:
    """Reads of the dense output as combinations of recorded states: `weights` of the rows `index`, one column a read.

    A read at theta of a step is ``sum_j weights_j u[index_j]`` over its new state and the states before it.
    """

    def __init__(self, spec: SolveSpec, history: History, times: Float[Tensor, "B T"]) -> None:
        record = history.record
        row, theta = locate(record.t, record.dt, times, spec.sign)
        row = row.clamp(max=record.dt.shape[0] - 1).reshape(-1)
        theta = theta.reshape(-1)
        self.lane = torch.arange(len(times), device=row.device).repeat_interleave(times.shape[1])
        before, r = history.at(row, self.lane)
        # at the end of a step stands its state, and at the start of a trajectory that waits its first one
        stands = record.dt[row, self.lane] == 0
        order = torch.where(stands, 0, history.order[row, self.lane])
        points = torch.arange(len(r) + 1, device=row.device).unsqueeze(-1)
        nodes = torch.cat([torch.ones_like(theta).unsqueeze(0), -r])
        used = (points <= order) & (theta != 1.0) & ~stands
        used[0] |= theta == 1.0
        used[1] |= stands
        self.weights = lagrange_weights(nodes, used, theta)
        self.index = torch.cat([(row + 1).unsqueeze(0), before])

    def pull(self, bar: Float[Tensor, "rows_and_end B n"], grad: Float[Tensor, "B T n"]) -> None:
        """Add the cotangents of the reads to those of the states."""
        flat = grad.reshape(-1, grad.shape[-1])
        for weight, index in zip(self.weights, self.index, strict=True):
            bar.index_put_((index, self.lane), weight.unsqueeze(-1) * flat, accumulate=True)

    def read(self, states: Float[Tensor, "rows_and_end B n"]) -> Float[Tensor, "reads n"]:
        return (self.weights.unsqueeze(-1) * states[self.index, self.lane]).sum(0)


def pullback_bdf(
    work: Work,
    record: StepRecord,
    reads: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]],
    leaves: LeafCotangents,
) -> Float[Tensor, "B n"]:
    """Pull the cotangents of u(times) back through every recorded step, orders and step sizes held constant.

    A step solves ``M u = M sum_j beta_j u_{n-j} + (dt/alpha) f(u, p, t)``. With ``w = (M - dt/alpha J)^-T ubar`` and J
    at the new state, ``ubar_{n-j} += beta_j M^T w`` and ``pbar += (dt/alpha) (df/dp)^T w``. The cotangents of all
    states are held, as many numbers as the record.
    """
    rows, (times, grad) = record.dt.shape[0], reads
    if rows == 0:
        return grad.sum(1)
    history = History(record)
    bar = torch.zeros_like(record.u)
    _Reads(work.spec, history, times).pull(bar, grad)
    alpha = leading(record.dt)
    lane = torch.arange(record.dt.shape[1], device=record.dt.device)
    for row in reversed(range(rows)):
        dt, order = record.dt[row], history.order[row]
        moved = (dt != 0).unsqueeze(-1)
        step = torch.where(dt == 0, 0.0, dt / alpha[order.clamp(min=1)])
        ends = record.t[row] + dt
        of_base, parts = _pull_equation(
            work, (record.u[row + 1], ends, step), torch.where(moved, bar[row + 1], 0.0), leaves.inputs
        )
        leaves.add(parts)
        bar[row] += torch.where(moved, 0.0, bar[row + 1])
        index, r = history.step(row)
        weights = base_weights(r, order)
        for weight, before in zip(weights, index, strict=True):
            share = torch.where(moved, weight.unsqueeze(-1) * of_base, 0.0)
            bar.index_put_((before, lane), share, accumulate=True)
    return bar[0]


def _pull_equation(
    work: Work, at: tuple[Tensor, Tensor, Tensor], u_bar: Tensor, inputs: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Cotangents of `base` and of the leaves from that of the solution of ``M u = M base + step f(u, t)``."""
    state, t, step = at
    x = state.detach().requires_grad_()
    with torch.enable_grad():
        du = as_batch(work.spec, x, t, work.p)
    if not du.requires_grad:
        return u_bar, [None] * len(inputs)
    jacobian = work.of_state(du, x, t, keep=True)
    w = work.factor_dense(jacobian, step).solve(u_bar, transposed=True)
    # a trajectory that stands still has no cotangent here, whatever f is worth at its state
    w = torch.where((step != 0).unsqueeze(-1), w, 0.0)
    of_base = work.times_mass(w, transposed=True)
    if not inputs:
        return of_base, []
    return of_base, torch.autograd.grad(du, tuple(inputs), step.unsqueeze(-1) * w, allow_unused=True)


def replay_bdf(
    work: Work, record: StepRecord, u0: Float[Tensor, "B n"], times: Float[Tensor, "B T"]
) -> Float[Tensor, "B T n"]:
    """Take the recorded steps again with a graph, and read them at `times`.

    The equation of a step is already solved by the recorded state; Newton steps from there have the graph.
    """
    rows = record.dt.shape[0]
    if not rows:
        return u0.unsqueeze(1).expand(-1, times.shape[1], -1)
    history = History(record)
    alpha = leading(record.dt)
    states = [u0]
    for row in range(rows):
        dt, order = record.dt[row], history.order[row]
        step = torch.where(dt == 0, 0.0, dt / alpha[order.clamp(min=1)])
        index, r = history.step(row)
        weights = base_weights(r, order)
        gather = partial(_gather, states, index)
        base = sum((weight.unsqueeze(-1) * gather(j) for j, weight in enumerate(weights)), start=torch.zeros_like(u0))
        new = _solve_again(work, base, record.t[row] + dt, step, record.u[row + 1])
        states.append(torch.where((dt != 0).unsqueeze(-1), new, states[row]))
    return _Reads(work.spec, history, times).read(torch.stack(states)).view(*times.shape, u0.shape[1])


def _gather(states: Sequence[Tensor], index: Tensor, j: int) -> Float[Tensor, "B n"]:
    """The j-th state before the new one of every trajectory; neighbors may have it in other rows."""
    rows = index[j]
    found = states[int(rows[0])]
    for row in rows.unique().tolist():
        found = torch.where((rows == row).unsqueeze(-1), states[row], found)
    return found


def _solve_again(work: Work, base: Tensor, t: Tensor, step: Tensor, solution: Tensor) -> Tensor:
    with torch.no_grad():
        factors = work.factor_dense(work.jacobian(solution, t), step)
    column = step.unsqueeze(-1)
    return solve_with_graph(
        solution, lambda u: factors.solve(work.times_mass(u - base) - column * as_batch(work.spec, u, t, work.p))
    )
