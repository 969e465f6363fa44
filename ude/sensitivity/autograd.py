"""Plain reverse mode through the recorded steps, as often as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ude.sensitivity.base import Solved
from ude.sensitivity.reading import with_zero_gradients


@dataclass(frozen=True)
class Autograd:
    """Take the recorded steps again with an autograd graph, step sizes held constant.

    The gradient is that of `DiscreteAdjoint`, and it has a second derivative:
    ``torch.autograd.grad(..., create_graph=True)``
    and Hessian-vector products work, except through the times of continuous events. Memory is the graph of every step,
    so it is the choice for second derivatives and small problems. With ESDIRK methods derivatives beyond the second
    are not right.

    Source: "discretize, then optimize"; A. Griewank, A. Walther, Evaluating Derivatives, 2nd ed.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.sensitivity.Autograd(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> (first,) = torch.autograd.grad(end, k, create_graph=True)
    >>> (second,) = torch.autograd.grad(first, k)
    >>> round(float(second), 6)  # exp(-2)
    0.135335
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
        return with_zero_gradients(values + (again - again.detach()), (u0, *p))
