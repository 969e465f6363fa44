"""The recorded steps of a solve that switched: reading them, and their exact derivative.

Every row of the record is a step of one method, in which the trajectories of the other stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.base import SolveSpec, StepRecord, add, as_batch, differentiable, live_leaves
from ude.engines.torch.checkpoints import Start, Starts
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.families.switching import SwitchingScheme
from ude.engines.torch.implicit_pullback import pull_first, recorded, with_reads
from ude.engines.torch.pullback import segment, sweep
from ude.engines.torch.replay import esdirk_step, in_order, read_step, rosenbrock_step
from ude.engines.torch.scheme import Cotangents
from ude.engines.torch.stages import tableau_tensors
from ude.methods import AutoSwitch


def of_one_method(spec: SolveSpec, record: StepRecord) -> tuple[SolveSpec, StepRecord]:
    """A solve with a method that switches, of which only one of its methods took steps, is a solve with that one."""
    algorithm = spec.algorithm
    if not isinstance(algorithm, AutoSwitch):
        return spec, record
    if record.implicit is None:
        return replace(spec, algorithm=algorithm.nonstiff), replace(record, k1=None)
    return (replace(spec, algorithm=algorithm.stiff) if all(record.implicit) else spec), record


class SwitchedStarts(Starts):
    """What every recorded step started from, when steps are of two methods."""

    def __init__(self, record: StepRecord, scheme: SwitchingScheme) -> None:
        super().__init__(record, scheme.implicit.advance)
        self._scheme = scheme

    def _take(self, row: int, start: Start) -> Start:
        if _methods(self._record)[row]:
            return super()._take(row, start)
        # what an ESDIRK method carries over stays with the trajectories that stand still here
        (u, k1), dt = start, self._record.dt[row]
        end, after = self._scheme.explicit.advance(u, None, self._record.t[row], dt)
        return end, None if k1 is None else torch.where((dt != 0).unsqueeze(-1), after, k1)


class SwitchedSteps:
    """The steps computed again; those of both methods are read as polynomials in theta, whose coefficients stand for
    stages."""

    def __init__(self, spec: SolveSpec, record: StepRecord, scheme: SwitchingScheme) -> None:
        self._record, self._scheme = record, scheme
        self.starts = SwitchedStarts(record, scheme)
        powers = max(scheme.explicit.interpolant.shape[1], scheme.implicit.interpolant.shape[1])
        self.interpolant = torch.eye(powers, dtype=spec.t0.dtype, device=spec.t0.device)
        self.order = max(scheme.explicit.error_order, scheme.implicit.error_order)

    def stages(self, row: int) -> Float[Tensor, "powers B n"]:
        start = recorded(self.starts, self._record, row)
        if _methods(self._record)[row]:
            k, interpolant = self._scheme.implicit.stages(*start), self._scheme.implicit.interpolant
        else:
            u, _, t, dt = start
            k, interpolant = self._scheme.explicit.stages(u, t, dt), self._scheme.explicit.interpolant
        coefficients = torch.einsum("sp,sbn->pbn", interpolant, k)
        return torch.cat([coefficients, k.new_zeros(len(self.interpolant) - len(coefficients), *k.shape[1:])])


def pull_switched_segment(
    spec: SolveSpec,
    algorithm: AutoSwitch,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Float[Tensor, "B T n"],
    of_carried: Float[Tensor, "B n"] | None = None,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull the cotangents of u(times) back through the recorded steps, through those of each method as it does.

    Where a trajectory changes to an ESDIRK method, the derivative that its first step starts with is f(u): its
    cotangent goes on to u and the leaves there.

    Args:
        of_carried: Cotangent of the derivative carried over at the end, of a record that another follows.

    Returns:
        Cotangents of the first state, of the derivative carried over there, and of the leaves.
    """
    reads = DenseReads(spec, record, times, grad)
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    scheme = SwitchingScheme(spec, algorithm, leaves)
    starts, fresh = SwitchedStarts(record, scheme), _begins(record)
    zeros = torch.zeros_like(record.u[0])
    now = Cotangents(zeros, zeros if of_carried is None else of_carried)
    totals: list[Tensor | None] = [None] * len(inputs)
    for implicit, rows in reversed(_stretches(record)):
        if not implicit:
            numbers = tableau_tensors(algorithm.nonstiff.tableau, record.u.dtype, record.u.device)
            adjoint, found_here = sweep(spec, numbers, record, rows, (leaves, inputs), (reads, now.u), starts)
            now = Cotangents(adjoint, now.k1)
            totals = [add(total, part) for total, part in zip(totals, found_here, strict=True)]
            continue
        for row in reversed(rows):
            start = recorded(starts, record, row)
            end = with_reads(scheme.implicit, reads, row, now)
            now, parts = scheme.implicit.pull_step(start, end, inputs)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
            if scheme.carries_derivative and bool(fresh[row].any()):
                begins = fresh[row].unsqueeze(-1)
                at = start[0], start[2]
                of_u, parts = pull_first(spec, at, leaves, inputs, torch.where(begins, now.k1, 0.0))
                now = Cotangents(now.u + of_u, torch.where(begins, 0.0, now.k1))
                totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    found = iter(totals)
    return now.u, now.k1, tuple(next(found) if need else None for need in wanted)


def replay_switched(
    spec: SolveSpec,
    scheme: SwitchingScheme,
    record: StepRecord,
    u0: Float[Tensor, "B n"],
    times: Float[Tensor, "B T"],
) -> Float[Tensor, "B T n"]:
    """Take the recorded steps again with a graph, and read them at `times`."""
    reads = DenseReads(spec, record, times, u0.new_zeros(*times.shape, u0.shape[1]))
    numbers = tableau_tensors(scheme.algorithm.nonstiff.tableau, record.u.dtype, record.u.device)
    leaves, fresh = scheme.work.p, _begins(record)
    # the Jacobian of f is part of an implicit step, so its state must be differentiable
    u = u0 if u0.requires_grad else u0.detach().requires_grad_()
    carried: Tensor | None = None
    outputs: list[Tensor] = []
    for row, implicit in enumerate(_methods(record)):
        t, dt = record.t[row], record.dt[row]
        if not implicit:
            (end, *values), _ = segment(spec, numbers, record, range(row, row + 1), u, leaves, reads)
            outputs += values
            u = end
            continue
        if isinstance(scheme.implicit, EsdirkScheme):
            if carried is None or bool(fresh[row].any()):
                du = as_batch(spec, u, t, leaves)
                carried = du if carried is None else torch.where(fresh[row].unsqueeze(-1), du, carried)
            k, end, carried = esdirk_step(scheme.implicit, u, carried, t, dt)
        else:
            k, end, _ = rosenbrock_step(scheme.implicit, u, t, dt)
        outputs += read_step(reads, row, scheme.implicit.interpolant, (u, dt), k, end)
        u = end
    return in_order(outputs, reads, u0, times)


def _methods(record: StepRecord) -> tuple[bool, ...]:
    """Which rows are steps of the implicit method."""
    return (False,) * record.dt.shape[0] if record.implicit is None else record.implicit


def _stretches(record: StepRecord) -> list[tuple[bool, range]]:
    """Rows of one method one after another, in order."""
    found, first = [], 0
    for implicit, rows in groupby(_methods(record)):
        count = len(list(rows))
        found.append((implicit, range(first, first + count)))
        first += count
    return found


def _begins(record: StepRecord) -> Bool[Tensor, "rows B"]:
    """Where a trajectory takes the first of some implicit steps: none before, or an explicit one."""
    moved = record.dt != 0
    begins = torch.zeros_like(moved)
    continues = torch.zeros_like(moved[0]) if record.goes_on is None else record.goes_on
    for row, implicit in enumerate(_methods(record)):
        if implicit:
            begins[row] = moved[row] & ~continues
        continues = torch.where(moved[row], implicit, continues)
    return begins
