"""Graphs of explicit steps, kept while a solve runs, so that the way back need not compute the steps again.

Where a step is much arithmetic (many trajectories, many states), computing its stages a second time costs a third of
the whole gradient. Steps that every moving trajectory accepted therefore keep the autograd graph of their stages, as
long as that takes no more than `MOST_BYTES`; all others are computed again from their recorded first state. A step's
graph ends at its own first state and first derivative, so that each is pulled back by itself and then let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.torch_engine.stages import Derivative, TableauTensors, combine, interpolation_weights

if TYPE_CHECKING:
    from ude.engines.torch_engine.pullback import Reads

#: What the graphs of one solve may hold of states and intermediate results. Half of this is 100 steps of a small
#: network for a thousand trajectories.
MOST_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class TapedStep:
    """One step as a graph from `u` and `k1`, which are its leaves, and the parameters.

    Args:
        stages: All stages, the first being k1.
        end: The new state.
        after: The derivative that the next step starts with.
    """

    u: Float[Tensor, "B n"]
    k1: Float[Tensor, "B n"]
    stages: tuple[Tensor, ...]
    end: Float[Tensor, "B n"]
    after: Float[Tensor, "B n"]


class Tape:
    """Takes steps with a graph and keeps those that were accepted.

    Args:
        f: The right-hand side, with leaves that require gradients where they are wanted.
        numbers: The tableau.
        inputs: Those leaves.

    Attributes:
        steps: The steps kept, by their row in the record.
    """

    def __init__(
        self, f: Derivative, numbers: TableauTensors, inputs: Sequence[Tensor], *, first_same_as_last: bool
    ) -> None:
        self.inputs = tuple(inputs)
        self.steps: dict[int, TapedStep] = {}
        self._f, self._numbers, self._reuse_last = f, numbers, first_same_as_last
        self._row = 0
        self._room: int | None = None
        self._stages: list[Tensor] = []
        self._tried: TapedStep | None = None
        self._moving: Tensor | None = None

    @property
    def open(self) -> bool:
        """Whether there is room for one more step."""
        return self._room is None or len(self.steps) < self._room

    def stages(
        self, u: Tensor, t: Tensor, dt: Tensor, k1: Tensor
    ) -> tuple[Float[Tensor, "stages B n"], Float[Tensor, "B n"]]:
        """Evaluate a step; returns its stages and the new state, which equal those without a graph to the last bit."""
        numbers = self._numbers
        start, first = u.detach().requires_grad_(), k1.detach().requires_grad_()
        column = dt.unsqueeze(-1)
        k, argument = [first], start
        with torch.enable_grad():
            for i in range(1, len(numbers.a)):
                argument = torch.addcmul(start, column, combine(numbers.a[i], torch.stack(k)))
                k.append(self._evaluate(argument, t + numbers.c[i] * dt))
            end = argument if self._reuse_last else torch.addcmul(start, column, combine(numbers.b, torch.stack(k)))
        self._tried = TapedStep(start, first, tuple(k), end, k[-1])
        self._moving = dt != 0
        every = u.new_empty(len(k) + numbers.next_is_extra, *u.shape)
        torch.stack([stage.detach() for stage in k], out=every[: len(k)])
        return every, end.detach()

    def derivative_after(self, t: Tensor) -> Tensor | None:
        """f at the new state of the step just tried, for methods whose last stage it is not; None without one."""
        step = self._tried
        if step is None:
            return None
        with torch.enable_grad():
            after = self._evaluate(step.end, t)
        self._tried = TapedStep(step.u, step.k1, step.stages, step.end, after)
        return after.detach()

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Keep the step just tried if nobody rejected it: with another size for some its graph is another one."""
        # that there is room for none at all is known after the first step
        whole = self._moving is not None and torch.equal(accepted, self._moving)
        if self._tried is not None and whole and self.open:
            self.steps[self._row] = self._tried
        self._tried = None
        self._row += 1

    def _evaluate(self, u: Tensor, t: Tensor) -> Tensor:
        if self._room is not None:
            return self._f(u, t)
        held: dict[int, int] = {}

        def count(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return x.detach()

        def restore(x: Tensor) -> Tensor:
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, restore):
            du = self._f(u, t)
        for leaf in self.inputs:
            held.pop(leaf.untyped_storage().data_ptr(), None)
        # beside what f saves, a stage holds itself, its argument, and its share of the combinations of earlier ones
        own = (3 + len(self._numbers.a)) * u.numel() * u.element_size()
        self._room = MOST_BYTES // max(1, len(self._numbers.a) * (sum(held.values()) + own))
        return du

    def take(self, row: int, reads: Reads) -> TapedStep | None:
        """Hand out the graph of a step, once; None when it is not held, or its reads need more than its stages."""
        step = self.steps.pop(row, None)
        read = reads.of(row)
        if step is None or (read is not None and not read[1] and bool(self._numbers.extra_a)):
            return None
        return step


def pull_taped(
    numbers: TableauTensors,
    step: TapedStep,
    dt: Float[Tensor, "B"],
    cotangents: tuple[Tensor, Tensor | None],
    inputs: Sequence[Tensor],
    reads: tuple[Reads, int],
) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    """Pull the cotangents of a step's end and of the derivative after it, and what was read inside it, back.

    Returns:
        Cotangents of its first state and of its first derivative, and of the inputs.
    """
    of_end, of_after = cotangents
    of_start = torch.zeros_like(of_end)
    of_stages: list[Tensor | None] = [None] * len(step.stages)
    read, row = reads
    found = read.of(row)
    if found is not None:
        where, at_end = found
        lane, theta, grad = read.lane[where], read.theta[where], read.grad[where]
        if at_end:
            of_end = of_end.index_add(0, lane, grad)
        else:
            of_start.index_add_(0, lane, grad)
            weights = interpolation_weights(numbers.interpolant, theta) * dt[lane].unsqueeze(-1)
            spread = weights.T.unsqueeze(-1) * grad
            every = of_end.new_zeros(len(spread), *of_end.shape).index_add_(1, lane, spread)
            of_stages = list(every)
    pairs: list[tuple[Tensor, Any]] = [(step.end, of_end), (step.after, of_after)]
    pairs += list(zip(step.stages[1:], of_stages[1:], strict=True))
    pairs = [(value, bar) for value, bar in pairs if bar is not None and value.requires_grad]
    of_u, of_k1, *parts = torch.autograd.grad(
        [value for value, _ in pairs], (step.u, step.k1, *inputs), [bar for _, bar in pairs], allow_unused=True
    )
    of_u = of_start if of_u is None else of_start + of_u
    of_k1 = torch.zeros_like(of_u) if of_k1 is None else of_k1
    return of_u, of_k1 if of_stages[0] is None else of_k1 + of_stages[0], parts
