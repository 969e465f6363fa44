"""The exact derivative of the accepted steps, one state of memory a step or less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ude.engines.base import Checkpoints
from ude.errors import InputError
from ude.sensitivity.base import Solved
from ude.sensitivity.reading import Gradient, connect


@dataclass(frozen=True)
class DiscreteAdjoint:
    """Differentiate the discretization itself: reverse through the accepted steps, step sizes held constant.

    The gradient is exact for the numbers that the solve returned, whatever the tolerance. Memory is one state a
    step; the stages of a step are recomputed when its turn comes. First derivatives only.

    With checkpoints fewer states are held, from the forward solve on, and the steps in between are taken again with
    the recorded step sizes, which gives the same gradient (with ESDIRK methods, to the tolerance of their Newton
    iteration). Times and step sizes, two numbers a step and trajectory, are always held. Without `saveat` every state
    is saved anyway, and all are held.

    Args:
        checkpoints: "all"; "logarithmic", for about log2(steps) states and log2(steps) / 2 further forward solves; or
            a number k >= 2, for at most k states and k more for each of log_k(steps / k) levels between them, each
            level one further forward solve.

    Raises:
        InputError: checkpoints is none of these.

    Source: "discretize, then optimize"; E. Hairer et al., Solving ODEs I, II.6, transposed; A. Griewank, A. Walther,
    Evaluating Derivatives, 2nd ed., chapter 12.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> few = ude.DiscreteAdjoint(checkpoints="logarithmic")
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=few, saveat=1.0, reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """

    checkpoints: Checkpoints = "all"

    def __post_init__(self) -> None:
        number = isinstance(self.checkpoints, int) and not isinstance(self.checkpoints, bool) and self.checkpoints >= 2
        if not number and self.checkpoints not in ("all", "logarithmic"):
            raise InputError(
                "checkpoints must be 'all', 'logarithmic' or a whole number, at least 2", got=repr(self.checkpoints)
            )

    @property
    def name(self) -> str:
        return "DiscreteAdjoint" if self.checkpoints == "all" else f"DiscreteAdjoint({self.checkpoints})"

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        return connect(self.name, _pull, solved, (times, values), (u0, p))


def _pull(solved: Solved, p: Sequence[Tensor], times: Tensor, grad: Tensor) -> Gradient:
    return solved.engine.pullback(solved.spec, solved.record, p, times, grad)
