"""Plain reverse mode through the recorded steps, as often as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ude.sensitivity.sensitivity import Solved


@dataclass(frozen=True)
class Autograd:
    """Take the recorded steps again with an autograd graph, step sizes held constant.

    The gradient is that of `DiscreteAdjoint`, and it has a second derivative:
    ``torch.autograd.grad(..., create_graph=True)``
    and Hessian-vector products work, except through the times of continuous events. Memory is the graph of every step,
    so it is the choice for second derivatives and small problems. With ESDIRK methods derivatives beyond the second
    are not right.

    Source: "discretise, then optimise"; A. Griewank, A. Walther, Evaluating Derivatives, 2nd ed.
    """

    @property
    def name(self) -> str:
        return "Autograd"

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        again = solved.engine.replay(solved.spec, solved.record, u0, p, times)
        # the numbers that the solve returned, with the derivatives of the steps
        return values + (again - again.detach())
