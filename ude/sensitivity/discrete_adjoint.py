"""The exact derivative of the accepted steps, one state of memory a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ude.sensitivity.sensitivity import Solved


class _Read(torch.autograd.Function):
    """Values of a solved problem at given times; backward is the engine's pullback."""

    @staticmethod
    def forward(ctx: Any, solved: Solved, times: Tensor, values: Tensor, u0: Tensor, *p: Tensor) -> Tensor:
        ctx.solved = solved
        ctx.save_for_backward(times, *p)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        times, *p = ctx.saved_tensors
        solved: Solved = ctx.solved
        of_u0, of_p = solved.engine.pullback(solved.spec, solved.record, p, times, grad)
        return (None, None, None, of_u0, *of_p)


@dataclass(frozen=True)
class DiscreteAdjoint:
    """Differentiate the discretisation itself: reverse through the accepted steps, step sizes held constant.

    The gradient is exact for the numbers that the solve returned, whatever the tolerance. Memory is one state a
    step; the stages of a step are recomputed when its turn comes. First derivatives only.

    Source: "discretise, then optimise"; E. Hairer et al., Solving ODEs I, II.6, transposed.
    """

    @property
    def name(self) -> str:
        return "DiscreteAdjoint"

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        connected: Tensor = _Read.apply(solved, times, values, u0, *p)
        return connected
