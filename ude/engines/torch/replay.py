"""Recorded steps taken again as ordinary torch operations, so that autograd differentiates them as often as asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, StepRecord, as_batch
from ude.engines.initialization import tracked_derivative
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.families.imex import ImexScheme, replay_imex_step
from ude.engines.torch.families.rosenbrock import RosenbrockScheme
from ude.engines.torch.families.symplectic import SymplecticScheme
from ude.engines.torch.pullback import segment
from ude.engines.torch.stages import combine, extend, tableau_tensors
from ude.methods import ExplicitTableau

#: Stages k (for the dense output), the new state, and the derivative carried on.
_Step = tuple[Float[Tensor, "stages B n"], Float[Tensor, "B n"], Tensor | None]

# Newton's iteration with a constant matrix, started at the solution, gains one order of derivatives a step.
_ORDERS_OF_DERIVATIVES = 2


def replay_explicit(
    spec: SolveSpec, tableau: ExplicitTableau, record: StepRecord, u0: Tensor, p: Sequence[Tensor], times: Tensor
) -> Float[Tensor, "B T n"]:
    """Take the steps of an explicit method again with a graph, and read them at `times`."""
    rows = record.dt.shape[0]
    if not rows:
        return u0.unsqueeze(1).expand(-1, times.shape[1], -1)
    reads = _reads(spec, record, u0, times)
    numbers = tableau_tensors(tableau, record.u.dtype, record.u.device)
    outputs, _ = segment(spec, numbers, record, range(rows), u0, p, reads)
    return in_order(outputs[1:], reads, u0, times)


def replay_implicit(
    spec: SolveSpec,
    scheme: EsdirkScheme | ImexScheme | RosenbrockScheme | SymplecticScheme,
    record: StepRecord,
    u0: Tensor,
    times: Tensor,
) -> Float[Tensor, "B T n"]:
    """Take the steps of an implicit method again with a graph, and read them at `times`."""
    rows = record.dt.shape[0]
    if not rows:
        return u0.unsqueeze(1).expand(-1, times.shape[1], -1)
    reads = _reads(spec, record, u0, times)
    # the Jacobian of f is part of a step, so its state must be differentiable
    u = u0 if u0.requires_grad else u0.detach().requires_grad_()
    carried = tracked_derivative(spec, u, record.t[0], scheme.work.p) if isinstance(scheme, EsdirkScheme) else None
    outputs: list[Tensor] = []
    for row in range(rows):
        t, dt = record.t[row], record.dt[row]
        if isinstance(scheme, EsdirkScheme):
            k, end, carried = esdirk_step(scheme, u, carried, t, dt)
        elif isinstance(scheme, ImexScheme):
            k, end, carried = replay_imex_step(scheme, u, t, dt)
        elif isinstance(scheme, RosenbrockScheme):
            k, end, carried = rosenbrock_step(scheme, u, t, dt)
        else:
            k = scheme.stages(u, None, t, dt)
            # the first stage of a symplectic step is its mean slope
            end = torch.addcmul(u, dt.unsqueeze(-1), k[0])
        outputs += read_step(reads, row, scheme.interpolant, (u, dt), k, end)
        u = end
    return in_order(outputs, reads, u0, times)


def _reads(spec: SolveSpec, record: StepRecord, u0: Tensor, times: Tensor) -> DenseReads:
    return DenseReads(spec, record, times, u0.new_zeros(*times.shape, u0.shape[1]))


def read_step(
    reads: DenseReads,
    row: int,
    interpolant: Float[Tensor, "stages powers"],
    start: tuple[Tensor, Tensor],
    k: Float[Tensor, "stages B n"],
    end: Tensor,
) -> list[Tensor]:
    """What is read of a step from (u, dt) = `start` to `end` with stages k, if anything."""
    read = reads.of(row)
    if read is None:
        return []
    (where, _), (u, dt) = read, start
    lane, theta = reads.lane[where], reads.theta[where]
    inner = extend(interpolant, u[lane], dt[lane], theta, k[:, lane].transpose(0, 1))
    return [torch.where((theta == 1.0).unsqueeze(-1), end[lane], inner)]


def in_order(outputs: Sequence[Tensor], reads: DenseReads, u0: Tensor, times: Tensor) -> Float[Tensor, "B T n"]:
    """What was read step by step, in the order of the times asked."""
    return torch.cat(list(outputs))[reads.order.argsort()].view(*times.shape, u0.shape[1])


def esdirk_step(scheme: EsdirkScheme, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> _Step:
    """The stages' equations ``M k = f(x + gamma dt k)`` are solved without a graph; Newton steps then have one."""
    if k1 is None:
        raise TypeError("an ESDIRK step starts with a derivative")
    spec, numbers, work = scheme.spec, scheme.numbers, scheme.work
    solved, arguments = scheme.converged_stages(u.detach(), k1.detach(), t, dt)
    column = dt.unsqueeze(-1)
    step = numbers.gamma * dt
    k = [k1]
    end = u
    for i in range(1, len(numbers.a)):
        if not numbers.needed[i]:
            k.append(torch.zeros_like(u))
            continue
        base = torch.addcmul(u, column, combine(numbers.a[i], torch.stack(k)))
        time = t + numbers.c[i] * dt
        with torch.no_grad():
            factors = work.factor(work.df_du(arguments[i], time), step, tight=True)
        stage = solved[i]
        for _ in range(_ORDERS_OF_DERIVATIVES):
            stage = stage - factors.solve(
                work.times_mass(stage) - as_batch(spec, torch.addcmul(base, step.unsqueeze(-1), stage), time, work.p)
            )
        k.append(stage)
        if i == numbers.end:
            end = torch.addcmul(base, step.unsqueeze(-1), stage)
    moved = column != 0
    return torch.stack(k), torch.where(moved, end, u), torch.where(moved, k[numbers.end], k1)


def rosenbrock_step(scheme: RosenbrockScheme, u: Tensor, t: Tensor, dt: Tensor) -> _Step:
    """The step with its Jacobian, factorization and solves in the graph; the matrix is formed even for GMRES."""
    spec, numbers, p = scheme.spec, scheme.numbers, scheme.work.p
    time = t.detach().requires_grad_()
    du = as_batch(spec, u, time, p)
    jacobian, of_t = _linearize(du, u, time)
    step = (numbers.gamma * dt).unsqueeze(-1)
    unit = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    mass = unit if spec.mass is None else spec.mass.matrix
    # a trajectory that stands still solves with the identity, since M may be singular
    matrix = torch.where(step.unsqueeze(-1) == 0, unit, mass - step.unsqueeze(-1) * jacobian)
    lu, pivots = torch.linalg.lu_factor(matrix)
    stages: list[Tensor] = []
    for i in range(len(numbers.a)):
        argument = u + combine(numbers.a[i], torch.stack(stages)) if numbers.used[i] else u
        right = step * as_batch(spec, argument, t + numbers.alpha[i] * dt, p)
        right = right + numbers.d[i] * step * dt.unsqueeze(-1) * of_t
        if i:
            right = right + numbers.gamma * scheme.work.times_mass(combine(numbers.c[i], torch.stack(stages)))
        stages.append(torch.linalg.lu_solve(lu, pivots, right.unsqueeze(-1)).squeeze(-1))
    together = torch.stack(stages)
    column = dt.unsqueeze(-1)
    end = torch.where(column != 0, u + combine(numbers.b, together), u)
    return together / torch.where(column == 0, 1.0, column), end, None


def _linearize(du: Tensor, u: Tensor, t: Tensor) -> tuple[Float[Tensor, "B n n"], Float[Tensor, "B n"]]:
    """df/du and df/dt with a graph, one component of f after another."""
    rows, slopes = [], []
    for i in range(du.shape[1]):
        of_u: Tensor | None = None
        of_t: Tensor | None = None
        if du.requires_grad:
            of_u, of_t = torch.autograd.grad(du[:, i].sum(), (u, t), create_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(u) if of_u is None else of_u)
        slopes.append(torch.zeros_like(t) if of_t is None else of_t)
    return torch.stack(rows, 1), torch.stack(slopes, 1)
