"""Backward differentiation formulas of variable order and step: the algorithm object and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from ude.errors import InputError
from ude.methods.explicit.explicit_rk import Algorithm

#: Orders above 5 are not stable enough for stiff problems (order 6 keeps 17 degrees, 7 none).
HIGHEST_ORDER = 5


def leading_coefficient(order: int) -> Fraction:
    """``alpha_k = 1 + 1/2 + ... + 1/k``: what multiplies ``u_{n+1}`` in the formula of order k with even steps.

    >>> leading_coefficient(2)
    Fraction(3, 2)
    """
    return sum((Fraction(1, j) for j in range(1, order + 1)), start=Fraction(0))


@dataclass(frozen=True)
class FBDF(Algorithm):
    """Backward differentiation with a fixed leading coefficient, orders 1 to 5; L-stable up to order 2.

    For large stiff problems at moderate tolerances: one implicit equation a step, where an ESDIRK method solves three
    to seven. With ``p`` the polynomial of degree k through ``u_n, u_{n-1}, ..., u_{n-k}`` a step of order k solves ::

        alpha_k (u_{n+1} - p(t_{n+1})) + dt p'(t_{n+1}) = dt f(u_{n+1}, t_{n+1}),    alpha_k = 1 + 1/2 + ... + 1/k,

    which is the classical formula where steps are even. Its matrix ``I - dt/alpha_k J`` changes with dt and k only, and
    its factors are kept as long as these and Newton's rate of convergence allow. Every trajectory has its own order and
    step. A solve, and a leg after an event, starts at order 1 with a small step. Order and step are chosen together,
    from estimates of the error at orders k - 1, k and k + 1, and kept for k + 1 steps after a change; the `controller`
    of `solve` is not asked. The dense output is the polynomial through the new state and the k before it.

    With a mass matrix M, singular or not, dt f stands against M times the left side; the algebraic equations of a DAE
    then hold at every step.

    With ``adaptive=False`` the order rises by one a step, so that the steps at the start limit the error to ``dt^2``.

    Args:
        max_order: The highest order, 1 to 5. Above 2 the formulas are stable in a wedge only (86, 73, 51 degrees about
            the negative real axis): 2 is the choice where slightly damped oscillations are stiff.
        newton_tolerance: Newton's iteration ends when its error is below this part of the tolerance.
        newton_maxiters: Most iterations of a step; a trajectory that needs more tries a smaller step.

    Source: K. R. Jackson & R. Sacks-Davis, ACM TOMS 6 (1980) 295; L. F. Shampine, SIAM J. Sci. Comput. 24 (2002) 1; the
    choice of order follows L. F. Shampine & M. W. Reichelt, SIAM J. Sci. Comput. 18 (1997) 1.

    >>> FBDF(max_order=2).name
    'FBDF'
    """

    takes_mass_matrix: ClassVar[bool] = True
    solves_daes: ClassVar[bool] = True

    max_order: int = HIGHEST_ORDER
    newton_tolerance: float = 0.03
    newton_maxiters: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.max_order, bool) or self.max_order not in range(1, HIGHEST_ORDER + 1):
            raise InputError(
                "max_order is no order of FBDF", expected=f"1 to {HIGHEST_ORDER}", got=repr(self.max_order)
            )
        if not 0 < self.newton_tolerance < 1:
            raise InputError(
                "newton_tolerance is a part of the tolerance",
                expected="a number between 0 and 1",
                got=repr(self.newton_tolerance),
            )
        if self.newton_maxiters < 2:
            raise InputError(
                "newton_maxiters allows no estimate of the rate of convergence",
                expected="at least 2",
                got=repr(self.newton_maxiters),
            )
