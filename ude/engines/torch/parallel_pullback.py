"""The discrete adjoint of explicit steps with all steps at once, for systems of few states.

Pulling a cotangent back step by step costs a dozen small torch operations a stage, each mostly dispatch. But the
recorded states are all known, so the stages of all steps can be computed together, and so can the Jacobians
``J_i = df/du(Y_i)`` of all of them. With these a step is an affine map of the cotangent::

    kbar_i = dt (b_i lambda + sum_{l>i} a_li Ybar_l) + reads_i,     Ybar_i = J_i^T kbar_i
    lambda_before = lambda + sum_i Ybar_i + reads = A lambda + c

whose A and c are found for all steps together. Only the products ``A_r lambda + c_r`` run one after another. The
parameters' gradient is one vector-Jacobian product with the cotangents of all stages of all steps.

It needs f to take a further leading axis, which is tried on recorded states first, and pays while n is small: the
Jacobians cost n vector-Jacobian products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import LeafCotangents, SolveSpec, StepRecord, as_batch
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.stages import TableauTensors

# Above this many states their vector-Jacobian products cost more than the dispatch that they spare.
MOST_STATES = 8
# Evaluations of f (stages x steps x trajectories) in one graph: more of them leave the cache.
MOST_POINTS = 2**12
# With more evaluations than this in a single step, time goes into arithmetic, of which the sweep by steps does less.
# Measured with benchmarks/gradient_speed.py: 3 times faster for 1 trajectory, 1.5 for 64, even for 256.
MOST_IN_A_STEP = 2**10


def pays(spec: SolveSpec, numbers: TableauTensors, record: StepRecord, rows: range, p: Sequence[Tensor]) -> bool:
    """Whether the system is small, and f treats a further leading axis as one more axis of the batch."""
    batch, states = record.u.shape[1:]
    if states > MOST_STATES or len(numbers.a) * batch > MOST_IN_A_STEP or len(rows) < 2:
        return False
    # the state after the last of the rows too
    picked = torch.tensor([rows.start, (rows.start + rows.stop + 1) // 2, rows.stop], device=record.u.device)
    u, t = record.u[picked], record.t[picked]
    apart = torch.stack([as_batch(spec, u[i], t[i], p) for i in range(3)])
    try:
        together = _stacked(spec, u, t, p)
    except Exception:  # whatever an f that was not written for it raises, the other sweep serves it
        return False
    tolerance = 1e3 * torch.finfo(u.dtype).eps
    # a trajectory that began with NaN has none but NaN to compare
    scale = float(apart.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return together.shape == apart.shape and torch.allclose(
        together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )


def _stacked(spec: SolveSpec, u: Float[Tensor, "m B n"], t: Float[Tensor, "m B"], p: Sequence[Tensor]) -> Tensor:
    """f over m states of every trajectory."""
    du = spec.f(u.reshape(len(u), *spec.batch, u.shape[-1]), p, t.reshape(len(t), *spec.batch))
    return du.reshape(u.shape)


@dataclass(frozen=True, eq=False)
class _Steps:
    """Some recorded steps: states (R, B, n), times and sizes (R, B)."""

    u: Float[Tensor, "R B n"]
    t: Float[Tensor, "R B"]
    dt: Float[Tensor, "R B"]


def pullback_parallel(
    spec: SolveSpec,
    numbers: TableauTensors,
    record: StepRecord,
    rows: range,
    leaves: LeafCotangents,
    cotangents: tuple[DenseReads, Float[Tensor, "B n"]],
) -> Float[Tensor, "B n"]:
    """Pull the cotangents of what is read in these rows, and of their end, back to their start."""
    reads, adjoint = cotangents
    chunk = max(1, MOST_POINTS // (len(numbers.a) * record.dt.shape[1]))
    for low in reversed(range(rows.start, rows.stop, chunk)):
        high = min(rows.stop, low + chunk)
        steps = _Steps(record.u[low:high], record.t[low:high], record.dt[low:high])
        read = _reads(numbers, steps, reads, low, high)
        adjoint, parts = _pull(spec, numbers, steps, (leaves.live, leaves.inputs), adjoint, read)
        leaves.add(parts)
    return adjoint


def _reads(
    numbers: TableauTensors, steps: _Steps, reads: DenseReads, low: int, high: int
) -> tuple[Float[Tensor, "R B n"], Float[Tensor, "stages R B n"], bool]:
    """Cotangents that reads add to each step's first state and to its stages, and whether some lie inside a step."""
    stages = len(numbers.interpolant)
    count, batch, states = steps.u.shape
    of_state = steps.u.new_zeros(count * batch, states)
    of_stages = steps.u.new_zeros(stages, count * batch, states)
    first, last = reads.bounds[low], reads.bounds[high]
    if first == last:
        return of_state.view(steps.u.shape), of_stages.view(stages, *steps.u.shape), False
    edges = torch.tensor(reads.bounds[low : high + 1], device=steps.u.device)
    row = torch.repeat_interleave(torch.arange(count, device=steps.u.device), edges[1:] - edges[:-1])
    lane, theta, grad = reads.lane[first:last], reads.theta[first:last], reads.grad[first:last]
    powers = torch.arange(1, numbers.interpolant.shape[1] + 1, dtype=theta.dtype, device=theta.device)
    weights = theta.unsqueeze(-1) ** powers @ numbers.interpolant.T
    # a read at the end of a step is the new state itself, which needs no stage of the dense output
    at_end = theta == 1.0
    of_end = torch.nn.functional.pad(numbers.b, (0, stages - len(numbers.b)))
    weights = torch.where(at_end.unsqueeze(-1), of_end, weights)
    place = row * batch + lane
    of_state.index_add_(0, place, grad)
    spread = (weights * steps.dt.reshape(-1)[place].unsqueeze(-1)).T.unsqueeze(-1) * grad
    of_stages.index_add_(1, place, spread)
    return of_state.view(steps.u.shape), of_stages.view(stages, *steps.u.shape), not bool(at_end.all())


def _pull(
    spec: SolveSpec,
    numbers: TableauTensors,
    steps: _Steps,
    variables: tuple[Sequence[Tensor], Sequence[Tensor]],
    adjoint: Float[Tensor, "B n"],
    read: tuple[Tensor, Tensor, bool],
) -> tuple[Float[Tensor, "B n"], Sequence[Tensor | None]]:
    leaves, inputs = variables
    of_state, of_stages, inside = read
    rows = (*numbers.a, *numbers.extra_a)
    used = [i for i in range(len(rows)) if i < numbers.end_count or (inside and numbers.read[i])]
    arguments, output = _all_stages(spec, numbers, steps, leaves, used)
    count, batch, states = steps.u.shape
    jacobian = _jacobians(output, arguments, states).view(len(used), count, batch, states, states)
    column = steps.dt.view(count, batch, 1, 1)
    # the cotangents as affine functions of the one at the step's end: n columns for its parts, one for the reads
    end = torch.eye(states, states + 1, dtype=steps.u.dtype, device=steps.u.device).expand(count, batch, -1, -1)
    cotangents: dict[int, Tensor] = {}
    pulled: dict[int, Tensor] = {}
    for place in reversed(range(len(used))):
        i = used[place]
        weight = numbers.weights[i] if i < len(numbers.weights) else 0.0
        total = weight * end
        for later in used[place + 1 :]:
            entry = numbers.floats[later][i]
            if entry:
                total = total + entry * pulled[later]
        total = column * total
        total = torch.cat([total[..., :states], total[..., states:] + of_stages[i].unsqueeze(-1)], -1)
        cotangents[i] = total
        pulled[i] = jacobian[place].transpose(-1, -2) @ total
    before = end + torch.stack(list(pulled.values())).sum(0)
    before = torch.cat([before[..., :states], before[..., states:] + of_state.unsqueeze(-1)], -1)
    # only this runs step by step
    at_end = []
    current = adjoint.unsqueeze(-1)
    matrices, offsets = before[..., :states], before[..., states:]
    for row in reversed(range(count)):
        at_end.append(current)
        current = torch.baddbmm(offsets[row], matrices[row], current)
    if not inputs or not output.requires_grad:
        return current.squeeze(-1), [None] * len(inputs)
    known = torch.stack(at_end[::-1])
    stacked = torch.stack([cotangents[i] for i in used])
    whole = (stacked[..., :states] @ known + stacked[..., states:]).squeeze(-1)
    parts = torch.autograd.grad(output, inputs, whole.reshape(output.shape), allow_unused=True)
    return current.squeeze(-1), parts


def _all_stages(
    spec: SolveSpec, numbers: TableauTensors, steps: _Steps, leaves: Sequence[Tensor], used: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Arguments of the used stages of all steps (stages R, B, n), and f of them, graphed to arguments and leaves."""
    nodes = (*numbers.c, *numbers.extra_c)
    k: dict[int, Tensor] = {}
    arguments, times = [], []
    column = steps.dt.unsqueeze(-1)
    with torch.no_grad():
        for place, i in enumerate(used):
            argument = steps.u
            for j in used[:place]:
                entry = numbers.floats[i][j]
                if entry:
                    argument = torch.addcmul(argument, column, k[j], value=entry)
            arguments.append(argument)
            times.append(steps.t + nodes[i] * steps.dt)
            if place + 1 < len(used):
                k[i] = _stacked(spec, argument, times[-1], leaves)
    together = torch.cat(arguments).requires_grad_()
    with torch.enable_grad():
        output = _stacked(spec, together, torch.cat(times), leaves)
    return together, output


def _jacobians(output: Tensor, arguments: Tensor, states: int) -> Float[Tensor, "stages R B n n"]:
    """df_i/du_j of every stage of every step and trajectory, by one vector-Jacobian product a state."""
    rows = []
    for i in range(states):
        unit = torch.zeros_like(output)
        unit[..., i] = 1.0
        row = None
        if output.requires_grad:
            (row,) = torch.autograd.grad(output, arguments, unit, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(arguments) if row is None else row)
    return torch.stack(rows, -2)
