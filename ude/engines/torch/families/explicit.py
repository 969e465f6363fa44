"""Explicit Runge-Kutta methods: their steps, and the exact derivative of several steps at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import LeafCotangents, SolveSpec, StepRecord, as_batch
from ude.engines.torch.checkpoints import Start, Starts
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.one_step import OneStepScheme, StepStart, TrackedStep
from ude.engines.torch.parallel_pullback import pays, pullback_parallel
from ude.engines.torch.scheme import Cotangents, Trial, why_not_adaptive
from ude.engines.torch.stages import combine, complete_stages, compute_stages, stage_arguments, tableau_tensors
from ude.methods import ExplicitRungeKutta

# Steps whose graph is held at once in the reverse sweep: more save calls, and cost memory.
_ROWS_IN_ONE_GRAPH = 4


class ExplicitScheme(OneStepScheme):
    """An explicit Runge-Kutta method bound to a solve."""

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        tableau = cast(ExplicitRungeKutta, spec.algorithm).tableau
        self.numbers = tableau_tensors(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = self.numbers.interpolant
        self.error_order = self.order = tableau.order
        self.extra_stages = len(self.numbers.extra_a)
        self.step_weights = self.numbers.b.unsqueeze(-1)
        self._count = tableau.stages
        self._reuse_last = tableau.first_same_as_last

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, ExplicitRungeKutta)

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        tableau = cast(ExplicitRungeKutta, spec.algorithm).tableau
        return why_not_adaptive(spec, estimates_error=bool(tableau.b_error))

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        numbers = self.numbers
        k, argument = compute_stages(self.work, numbers, u, t, dt, k1)
        own = k[: self._count]
        column = dt.unsqueeze(-1)
        new = argument if self._reuse_last else torch.addcmul(u, column, combine(numbers.b, own))
        if not self.spec.adaptive or numbers.b_error is None:
            return Trial(new, k, None)
        error = combine(numbers.b_error, own) * column
        low = None if numbers.b_error_low is None else combine(numbers.b_error_low, own) * column
        return Trial(new, k, error, error_low=low)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        if self._reuse_last:
            return trial.k[self._count - 1]
        after = self.work(trial.u, t)
        if self.numbers.next_is_extra:
            trial.k[self._count] = after
        return after

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        return complete_stages(self.work, self.numbers, u, t, dt, k)

    def advance(self, start: StepStart) -> Start:
        # with the operations of the first time
        u, k1, t, dt = start
        with torch.no_grad():
            k1 = self.work(u, t) if k1 is None else k1
            trial = self.attempt(u, k1, t, dt)
            moved = (dt != 0).unsqueeze(-1)
            return torch.where(moved, trial.u, u), torch.where(moved, self.derivative_after(trial, t + dt), k1)

    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        u, _, t, dt = start
        k, _ = compute_stages(self.work, self.numbers, u, t, dt, self.work(u, t))
        return self.complete(u, t, dt, k[: self._count])

    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        numbers, (u, _, t, dt) = self.numbers, start
        column = dt.unsqueeze(-1)
        nodes, rows = (*numbers.c, *numbers.extra_c), (*numbers.a, *numbers.extra_a)
        k: list[Tensor] = []
        for i in range(len(rows) if dense else numbers.end_count):
            if i >= numbers.end_count and not numbers.read[i]:
                k.append(torch.zeros_like(u))
                continue
            argument = torch.addcmul(u, column, combine(rows[i], torch.stack(k))) if i else u
            k.append(as_batch(self.spec, argument, t + nodes[i] * dt, self.work.p))
        count = numbers.end_count
        end = torch.addcmul(u, column, combine(numbers.b[:count], torch.stack(k[:count])))
        return torch.stack(k) if dense else None, end, None

    def pull_rows(
        self, record: StepRecord, rows: range, at: tuple[Starts, DenseReads], end: Cotangents, leaves: LeafCotangents
    ) -> Cotangents:
        """Pull cotangents back through all steps at once where that pays, else through a few steps at a time.

        These are computed again from their recorded start with an autograd graph. One graph for a few steps is faster
        than one for each by a factor of two.
        """
        starts, reads = at
        # with checkpoints the states of all steps are not there at once
        if record.kept is None and pays(self.spec, self.numbers, record, rows, leaves.live):
            return Cotangents(pullback_parallel(self.spec, self.numbers, record, rows, leaves, (reads, end.u)), end.k1)
        adjoint = end.u
        for first in reversed(range(rows.start, rows.stop, _ROWS_IN_ONE_GRAPH)):
            few = range(first, min(rows.stop, first + _ROWS_IN_ONE_GRAPH))
            u = starts(first)[0].detach().requires_grad_()
            with torch.enable_grad():
                new, outputs = self.replay_rows(record, few, (u, None), reads)
            grads = [reads.grad[read[0]] for read in map(reads.of, few) if read is not None]
            adjoint, *parts = torch.autograd.grad(
                [new, *outputs], (u, *leaves.inputs), [adjoint, *grads], allow_unused=True
            )
            leaves.add(parts)
        return Cotangents(adjoint, end.k1)

    def quadrature_nodes(
        self, record: StepRecord, rule: Literal["own", "gauss"]
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        if rule == "gauss":
            yield from super().quadrature_nodes(record, rule)
            return
        f = lambda u, t: as_batch(self.spec, u, t, self.work.p)  # noqa: E731
        for row in range(record.dt.shape[0]):
            u, t, dt = record.u[row], record.t[row], record.dt[row]
            for i, state, time in stage_arguments(f, self.numbers, u, t, dt):
                yield state, time, self.numbers.weights[i] * dt
