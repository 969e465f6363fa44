"""One-step methods: reading, repeating and reversing their recorded steps, given what a family knows of one step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import LeafCotangents, StepRecord
from ude.engines.initialization import tracked_derivative
from ude.engines.torch.checkpoints import Start, Starts
from ude.engines.torch.dense import StagesOf
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.scheme import Cotangents, Scheme
from ude.engines.torch.stages import extend, interpolation_weights

#: What a step starts from: u (B, n), the derivative carried over, t (B,) and dt (B,).
StepStart = tuple[Tensor, Tensor | None, Tensor, Tensor]
#: A step taken with a graph: stages for the dense output (None where it is not read), the new state, and the
#: derivative carried on.
TrackedStep = tuple[Float[Tensor, "stages B n"] | None, Float[Tensor, "B n"], Tensor | None]

# Newton's iteration with a constant matrix, started at the solution, gains one order of derivatives a step.
_ORDERS_OF_DERIVATIVES = 2


class RowScheme(Scheme):
    """A method whose recorded steps are read, repeated and reversed row by row."""

    @abstractmethod
    def advance_row(self, record: StepRecord, row: int, start: Start) -> Start:
        """Take a recorded step again: the new state, and the derivative that is carried on."""

    @abstractmethod
    def stages_of_row(self, record: StepRecord, row: int, start: Start) -> Float[Tensor, "stages B n"]:
        """Compute the stages of a recorded step again, all that the dense output needs."""

    @abstractmethod
    def replay_row(self, record: StepRecord, row: int, start: Start, *, dense: bool) -> TrackedStep:
        """Take a recorded step again with a graph; `dense` says whether the stages are read."""

    def starts(self, record: StepRecord) -> Starts:
        return Starts(record, lambda row, start: self.advance_row(record, row, start))

    def stages_of(self, record: StepRecord, starts: Starts) -> StagesOf:
        return lambda row: self.stages_of_row(record, row, starts(row))

    def pull(
        self,
        record: StepRecord,
        reads: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]],
        leaves: LeafCotangents,
        carried: Float[Tensor, "B n"] | None = None,
        *,
        first: bool = True,
    ) -> Cotangents:
        times, grad = reads
        zeros = torch.zeros_like(record.u[0])
        carried = zeros if carried is None else carried
        if not record.dt.shape[0]:
            return Cotangents(grad.sum(1), carried)
        read = DenseReads(self.spec, record, times, grad)
        at = self.starts(record), read
        end = self.pull_rows(record, range(record.dt.shape[0]), at, Cotangents(zeros, carried), leaves)
        return self.pull_beginning(record, end, leaves) if first else end

    @abstractmethod
    def pull_rows(
        self,
        record: StepRecord,
        rows: range,
        at: tuple[Starts, DenseReads],
        end: Cotangents,
        leaves: LeafCotangents,
    ) -> Cotangents:
        """Pull the cotangents of what is read in these rows, and of their end, back to their start."""

    def pull_beginning(self, record: StepRecord, start: Cotangents, leaves: LeafCotangents) -> Cotangents:
        """Pull the cotangent of the derivative that the first step started with back to the state and the leaves."""
        if not self.carries_derivative:
            return start
        of_u = self.pull_derivative(record.u[0], record.t[0], start.k1, leaves)
        return Cotangents(start.u + of_u, start.k1)

    def pull_derivative(self, u: Tensor, t: Tensor, cotangent: Tensor, leaves: LeafCotangents) -> Float[Tensor, "B n"]:
        """Pull the cotangent of u' at (u, t), which without a mass matrix is f there, back to u and the leaves."""
        of_u, parts = pull_through(
            lambda x: tracked_derivative(self.spec, x, t, leaves.live), u, cotangent, leaves.inputs
        )
        leaves.add(parts)
        return of_u

    def replay(self, record: StepRecord, u0: Float[Tensor, "B n"], times: Float[Tensor, "B T"]) -> Tensor:
        rows = record.dt.shape[0]
        if not rows:
            return u0.unsqueeze(1).expand(-1, times.shape[1], -1)
        reads = DenseReads(self.spec, record, times, u0.new_zeros(*times.shape, u0.shape[1]))
        # the Jacobian of f is part of an implicit step, so its state must be differentiable
        u = u0 if u0.requires_grad else u0.detach().requires_grad_()
        _, outputs = self.replay_rows(record, range(rows), (u, self.replay_beginning(record, u)), reads)
        return torch.cat(outputs)[reads.order.argsort()].view(*times.shape, u0.shape[1])

    def replay_beginning(self, record: StepRecord, u: Float[Tensor, "B n"]) -> Tensor | None:
        """The derivative that the first step starts with, with a graph."""
        return tracked_derivative(self.spec, u, record.t[0], self.work.p) if self.carries_derivative else None

    def replay_rows(
        self, record: StepRecord, rows: range, start: Start, reads: DenseReads
    ) -> tuple[Float[Tensor, "B n"], list[Tensor]]:
        """Take some recorded steps again with a graph; return the state at their end, and what is read of them."""
        outputs: list[Tensor] = []
        for row in rows:
            read = reads.of(row)
            where, at_end = read or (slice(0), True)
            k, end, carried = self.replay_row(record, row, start, dense=not at_end)
            lane = reads.lane[where]
            if not at_end and k is not None:
                u, theta = start[0], reads.theta[where]
                inner = extend(self.interpolant, u[lane], record.dt[row, lane], theta, k[:, lane].transpose(0, 1))
                outputs.append(torch.where((theta == 1.0).unsqueeze(-1), end[lane], inner))
            elif read is not None:
                outputs.append(end[lane])
            start = end, carried
        return start[0], outputs


class OneStepScheme(RowScheme):
    """A method whose step is made of its start alone."""

    @abstractmethod
    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        """Compute the stages of a recorded step again, all that the dense output needs."""

    @abstractmethod
    def advance(self, start: StepStart) -> Start:
        """Take a recorded step again: the new state, and the derivative that is carried on."""

    @abstractmethod
    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        """Take a recorded step again with a graph; `dense` says whether the stages are read."""

    def pull_step(
        self, start: StepStart, end: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Pull cotangents of a step's end back to its start, and to the leaves `inputs`.

        Here through the graph of `replay_step`; methods that carry a derivative over, or that know the derivative of
        their stages' equations, do better.
        """
        u, k1, t, dt = start
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            k, new, _ = self.replay_step((u, k1, t, dt), dense=end.stages is not None)
        outputs, grads = [new], [end.u]
        if k is not None and end.stages is not None:
            outputs.append(k)
            grads.append(dt.unsqueeze(-1) * end.stages)
        of_u, *parts = torch.autograd.grad(outputs, (u, *inputs), grads, allow_unused=True)
        u_bar = torch.where((dt != 0).unsqueeze(-1), of_u, end.u)
        return Cotangents(u_bar if end.start is None else u_bar + end.start, end.k1), parts

    def advance_row(self, record: StepRecord, row: int, start: Start) -> Start:
        return self.advance(step_start(record, row, start))

    def stages_of_row(self, record: StepRecord, row: int, start: Start) -> Float[Tensor, "stages B n"]:
        return self.stages(step_start(record, row, start))

    def replay_row(self, record: StepRecord, row: int, start: Start, *, dense: bool) -> TrackedStep:
        return self.replay_step(step_start(record, row, start), dense=dense)

    def pull_rows(
        self, record: StepRecord, rows: range, at: tuple[Starts, DenseReads], end: Cotangents, leaves: LeafCotangents
    ) -> Cotangents:
        starts, reads = at
        for row in reversed(rows):
            start = step_start(record, row, starts(row))
            end, parts = self.pull_step(start, _with_reads(self.interpolant, reads, row, end), leaves.inputs)
            leaves.add(parts)
        return end


def step_start(record: StepRecord, row: int, start: Start) -> StepStart:
    return *start, record.t[row], record.dt[row]


def _with_reads(
    interpolant: Float[Tensor, "stages powers"], reads: DenseReads, row: int, end: Cotangents
) -> Cotangents:
    """Add what was read of the dense output inside this step to the cotangents of its end."""
    read = reads.of(row)
    if read is None:
        return end
    where, _ = read
    lane, theta, grad = reads.lane[where], reads.theta[where], reads.grad[where]
    at_end = (theta == 1.0).unsqueeze(-1)
    u = end.u.index_add(0, lane, torch.where(at_end, grad, 0.0))
    inside = torch.where(at_end, 0.0, grad)
    weights = interpolation_weights(interpolant, theta)
    parts = weights.T.unsqueeze(-1) * inside
    stages = end.u.new_zeros(parts.shape[0], *end.u.shape).index_add(1, lane, parts)
    return Cotangents(u, end.k1, torch.zeros_like(u).index_add(0, lane, inside), stages)


def pull_through(
    f: Callable[[Tensor], Tensor],
    argument: Tensor,
    cotangent: Tensor | Callable[[Tensor, Tensor], Tensor],
    inputs: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Pull a cotangent of ``f(argument)`` back to the argument and to the leaves `inputs`.

    A cotangent that depends on derivatives of f is given as a function of ``f(argument)``, with its graph, and of the
    argument.
    """
    x = argument.detach().requires_grad_()
    with torch.enable_grad():
        value = f(x)
    if not value.requires_grad:
        return torch.zeros_like(x), [None] * len(inputs)
    if callable(cotangent) and not isinstance(cotangent, Tensor):
        cotangent = cotangent(value, x)
    of_x, *parts = torch.autograd.grad(value, (x, *inputs), cotangent, allow_unused=True)
    return (torch.zeros_like(x) if of_x is None else of_x), parts


def solve_with_graph(solution: Tensor, correction: Callable[[Tensor], Tensor]) -> Tensor:
    """Give the known solution of an equation its derivatives, by Newton steps ``x - correction(x)`` with a graph.

    `correction` solves with a constant matrix, that of Newton's iteration at the solution.
    """
    found = solution.detach()
    for _ in range(_ORDERS_OF_DERIVATIVES):
        found = found - correction(found)
    return found
