"""Split problems, u' = f1(u, p, t) + f2(u, p, t): a stiff part that is solved implicitly, and one that is not stiff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ude.problems.function import require_callable
from ude.problems.ode import ODEProblem, RightHandSide, same_shape
from ude.vocabulary import OF_PROBLEMS, named_arguments


class SplitFunction(nn.Module):
    """Both parts of a split problem as one right-hand side.

    Called as ``f(u, p, t)`` it returns ``f1 + f2``; as ``f(u, p, t, 0)`` only f1, as ``f(u, p, t, 1)`` only f2, for
    methods that treat them differently. It is a module, so that parts that are modules own their parameters.
    """

    def __init__(self, f1: RightHandSide, f2: RightHandSide) -> None:
        super().__init__()
        self.f1, self.f2 = f1, f2

    def forward(self, u: Tensor, p: Any, t: Tensor, part: int | None = None) -> Tensor:
        if part is not None:
            return same_shape((self.f1, self.f2)[part](u, p, t), u, f"f{part + 1}(u, p, t)", "u")
        first = same_shape(self.f1(u, p, t), u, "f1(u, p, t)", "u")
        return first + same_shape(self.f2(u, p, t), u, "f2(u, p, t)", "u")


@named_arguments(OF_PROBLEMS)
def SplitODEProblem(
    f1: RightHandSide,
    f2: RightHandSide,
    u0: Any,
    tspan: tuple[Any, Any],
    p: Any = None,
    names: Sequence[str] | str | None = None,
) -> ODEProblem:
    """Return the initial value problem ``du/dt = f1(u, p, t) + f2(u, p, t)`` with f1 stiff and f2 not.

    It is an `ODEProblem`. `KenCarp3`, `KenCarp4` and `KenCarp5` solve f1 implicitly and f2 explicitly: Newton's
    iteration uses f1 and its Jacobian alone, and f2 is evaluated once in each stage. ``sol.stats.nf`` then counts the
    calls of f1. Every other method solves ``f1 + f2``, and so do the sensitivities other than `DiscreteAdjoint` and
    `Autograd`, which solve larger systems.

    Args:
        f1, f2: Functions or modules called as ``f(u, p, t)`` with u of shape ``(*batch, state)``.
        u0, tspan, p, names: As of `ODEProblem`.

    Raises:
        InputError: f1 or f2 cannot be called, or another argument is invalid.

    Source: C. A. Kennedy & M. H. Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction equations,
    Appl. Numer. Math. 44 (2003) 139; the name is Julia's.

    >>> driven = lambda u, p, t: t.cos()[..., None] + 0.0 * u
    >>> prob = ude.SplitODEProblem(lambda u, p, t: -1000.0 * u, driven, [0.0], (0.0, 1.0))
    >>> ude.solve(prob, ude.KenCarp4()).success
    tensor(True)
    """
    require_callable(f1, "f1")
    require_callable(f2, "f2")
    return ODEProblem(SplitFunction(f1, f2), u0, tspan, p, names)
