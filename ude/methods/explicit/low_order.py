"""Euler's method, the methods of order 2, and the classical method of order 4."""

from __future__ import annotations

from fractions import Fraction

from ude.methods.explicit.explicit_rk import ExplicitRungeKutta
from ude.methods.tableau import ExplicitTableau, Number, fractions, numbers, table


def hermite(b: tuple[Number, ...]) -> tuple[tuple[Number, ...], ...]:
    """Weights of the cubic Hermite interpolant of a step of weights b, by stage and power of theta.

    ``u + (3 theta^2 - 2 theta^3) (u_next - u) + dt (theta - 2 theta^2 + theta^3) f + dt (theta^3 - theta^2) f_next``
    with f the first stage and f_next one extra stage at the new state.
    """
    zero = Fraction(0)
    first = (zero + 1, 3 * b[0] - 2, 1 - 2 * b[0])
    return (first, *((zero, 3 * weight, -2 * weight) for weight in b[1:]), fractions(0, -1, 1))


def _second_order(name: str, c: str, b: str, b_error: str) -> ExplicitTableau:
    """A method of two stages with Euler's method embedded."""
    weights = numbers(b)
    return ExplicitTableau(
        name=name,
        order=2,
        embedded_order=1,
        interpolant_order=2,
        c=numbers(f"0 {c}"),
        a=((), numbers(c)),
        b=weights,
        b_error=numbers(b_error),
        interpolant=hermite(weights),
        extra_c=fractions(1),
        extra_a=(weights,),
    )


class Euler(ExplicitRungeKutta):
    """Euler's method, order 1; fixed steps only (``adaptive=False, dt=...``). Its dense output is linear.

    Source: L. Euler, Institutionum calculi integralis (1768), I, sect. II, cap. VII.

    >>> Euler().tableau.order
    1
    """

    tableau = ExplicitTableau(
        name="Euler",
        order=1,
        embedded_order=0,
        interpolant_order=1,
        c=fractions(0),
        a=((),),
        b=fractions(1),
        b_error=(),
        interpolant=(fractions(1),),
    )


class Midpoint(ExplicitRungeKutta):
    """The explicit midpoint rule, order 2, with Euler's method embedded.

    Source: C. Runge, Math. Ann. 46 (1895) 167.

    >>> Midpoint().tableau.c[1]
    Fraction(1, 2)
    """

    tableau = _second_order("Midpoint", c="1/2", b="0 1", b_error="-1 1")


class Heun(ExplicitRungeKutta):
    """Heun's method, the explicit trapezoidal rule, order 2, with Euler's method embedded.

    Source: K. Heun, Z. Math. Phys. 45 (1900) 23.

    >>> Heun().tableau.c[1]
    Fraction(1, 1)
    """

    tableau = _second_order("Heun", c="1", b="1/2 1/2", b_error="-1/2 1/2")


class Ralston(ExplicitRungeKutta):
    """Ralston's method, order 2 with the least bound of its error, with Euler's method embedded.

    Source: A. Ralston, Math. Comp. 16 (1962) 431.

    >>> Ralston().tableau.c[1]
    Fraction(2, 3)
    """

    tableau = _second_order("Ralston", c="2/3", b="1/4 3/4", b_error="-3/4 3/4")


_RK4_B = numbers("1/6 1/3 1/3 1/6")


class RK4(ExplicitRungeKutta):
    """The classical method, order 4; fixed steps only (``adaptive=False, dt=...``).

    Source: W. Kutta, Z. Math. Phys. 46 (1901) 435.

    >>> RK4().tableau.stages
    4
    """

    tableau = ExplicitTableau(
        name="RK4",
        order=4,
        embedded_order=0,
        interpolant_order=3,
        c=numbers("0 1/2 1/2 1"),
        a=((), *table("1/2; 0 1/2; 0 0 1;")),
        b=_RK4_B,
        b_error=(),
        interpolant=hermite(_RK4_B),
        extra_c=fractions(1),
        extra_a=(_RK4_B,),
    )
