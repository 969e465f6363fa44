"""How values read from a solve enter the autograd graph, and how a second derivative of them is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.errors import InputError
from ude.sensitivity.base import Solved

#: Gradient of u0 and of the leaves.
Gradient = tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]
#: Pulls the cotangents of u(times) back: (solved, p, times, cotangents) -> gradient.
PullBack = Callable[[Solved, Sequence[Tensor], Tensor, Tensor], Gradient]


#: What `first_derivative_only` calls the time of an event.
EVENT_TIME = "the time of an event"


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, how: tuple[str, PullBack, Solved, Callable[[], Tensor]], times: Tensor, u0: Tensor, *p: Tensor
    ) -> Tensor:
        ctx.name, ctx.pull, ctx.solved, values = how
        ctx.save_for_backward(times, u0, *p)
        return values()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        times, u0, *p = ctx.saved_tensors
        of_values = grad if grad.ndim == 3 else grad.reshape(*times.shape, -1)
        with torch.no_grad():
            of_u0, of_p = ctx.pull(ctx.solved, p, times, of_values)
        # what the solution does not depend on has a gradient of zero, whichever engine found it
        asked = ctx.needs_input_grad[3:]
        of_p = [
            torch.zeros_like(leaf) if part is None and need else part
            for leaf, part, need in zip(p, of_p, asked, strict=True)
        ]
        found = [_once(ctx.name, part, (grad, u0, *p)) for part in (of_u0, *of_p)]
        return (None, None, *found)


class _Refuse(torch.autograd.Function):
    """The identity; its own backward raises."""

    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise InputError(
            f"{ctx.name} has a first derivative only, and a second one was asked for",
            fix="Leave out the event, or differentiate the first derivative by differences."
            if ctx.name == EVENT_TIME
            else "Use sensealg=Autograd() for second derivatives.",
        )


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        ctx.save_for_backward(*sources)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.saved_tensors
        return (None, _once(ctx.name, grad, (grad, *sources)), *(None for _ in sources))


def _once(name: str, value: Tensor | None, sources: Sequence[Tensor]) -> Tensor | None:
    if value is None or not torch.is_grad_enabled():
        return value
    refused: Tensor = _Refuse.apply(name, value, *sources)  # type: ignore[no-untyped-call]
    return refused


def first_derivative_only(name: str, value: Tensor, *sources: Tensor) -> Tensor:
    """Return `value`, whose first derivative is right and whose second one, by any of the sources, is refused."""
    passed: Tensor = _Identity.apply(name, value, *sources)  # type: ignore[no-untyped-call]
    return passed


class _Zero(torch.autograd.Function):
    """The identity, with a gradient of zero for everything else that it is given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.save_for_backward(*sources)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return (grad, *(torch.zeros_like(source) if need else None for source, need in found))


def with_zero_gradients(value: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return `value`, which has a gradient (of zero at least) with respect to all of the sources."""
    passed: Tensor = _Zero.apply(value, *sources)  # type: ignore[no-untyped-call]
    return passed


def connect(
    name: str,
    pull: PullBack,
    solved: Solved,
    read: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]],
    inputs: tuple[Float[Tensor, "B n"], Sequence[Tensor]],
) -> Float[Tensor, "B T n"]:
    """Connect what was read, (times, values), to the inputs (u0, p) by a function that pulls cotangents back.

    The axes of the batch may be spread out in the values already, which spares the graph a node.
    """
    (times, values), (u0, p) = read, inputs
    # copied where somebody else may hold them: what is given out may be written into. Not an argument of the function,
    # which would have to copy it in any case.
    # `data` is no view as far as autograd knows, which forbids to write into views that a function returns.
    own = (lambda: values.data) if solved.fresh else values.clone
    connected: Tensor = _Read.apply((name, pull, solved, own), times, u0, *p)  # type: ignore[no-untyped-call]
    return connected
