"""Verner's efficient pairs of orders 6, 7 and 9, with interpolants from extra stages."""

from __future__ import annotations

from ude.methods.explicit import verner_coefficients as coefficients
from ude.methods.explicit.explicit_rk import ExplicitRungeKutta
from ude.methods.tableau import ExplicitTableau, Number, lower_triangle, padded

_Row = tuple[Number, ...]
_Table = tuple[_Row, ...]


def assemble(
    name: str,
    orders: tuple[int, int, int],
    *,
    c: _Row,
    a: _Table,
    weights: tuple[_Row, ...],
    extra_a: _Table,
    interpolant: _Table,
) -> ExplicitTableau:
    """Build a tableau from rows without their trailing zeros.

    Args:
        orders: Of the step, the embedded solution and the interpolant.
        weights: Of the step, of the embedded solution and, where there is one, of a second embedded solution.
    """
    stages = len(a) + 1
    b, embedded, *others = (padded(row, stages) for row in weights)
    low = others[0] if others else ()
    powers = max(len(row) for row in interpolant)
    return ExplicitTableau(
        name=name,
        order=orders[0],
        embedded_order=orders[1],
        interpolant_order=orders[2],
        c=c[:stages],
        a=((), *lower_triangle(a, 1)),
        b=b,
        b_error=tuple(x - y for x, y in zip(b, embedded, strict=True)),
        interpolant=tuple(padded(row, powers) for row in interpolant),
        b_error_low=tuple(x - y for x, y in zip(b, low, strict=True)) if low else (),
        extra_c=c[stages:],
        extra_a=lower_triangle(extra_a, stages),
    )


_VERN6 = assemble(
    "Vern6",
    (6, 5, 6),
    c=coefficients.VERN6_C,
    a=coefficients.VERN6_A,
    weights=(coefficients.VERN6_B, coefficients.VERN6_EMBEDDED),
    extra_a=coefficients.VERN6_EXTRA_A,
    interpolant=coefficients.VERN6_INTERPOLANT,
)
_VERN7 = assemble(
    "Vern7",
    (7, 6, 6),
    c=coefficients.VERN7_C,
    a=coefficients.VERN7_A,
    weights=(coefficients.VERN7_B, coefficients.VERN7_EMBEDDED),
    extra_a=coefficients.VERN7_EXTRA_A,
    interpolant=coefficients.VERN7_INTERPOLANT,
)
_VERN9 = assemble(
    "Vern9",
    (9, 8, 9),
    c=coefficients.VERN9_C,
    a=coefficients.VERN9_A,
    weights=(coefficients.VERN9_B, coefficients.VERN9_EMBEDDED),
    extra_a=coefficients.VERN9_EXTRA_A,
    interpolant=coefficients.VERN9_INTERPOLANT,
)


class Vern6(ExplicitRungeKutta):
    """Verner's efficient 6(5) pair: 9 stages, the last one the first of the next step; for tolerances below 1e-6.

    Its interpolant of order 6 takes 3 extra stages in steps inside which something is read. Coefficients up to 200 that
    nearly cancel keep its errors in double precision above about 1e-11 of the solution; Vern7 and Vern9 go lower.

    Source: J. H. Verner, Numer. Algorithms 53 (2010) 383.

    >>> Vern6().tableau.first_same_as_last
    True
    """

    tableau = _VERN6


class Vern7(ExplicitRungeKutta):
    """Verner's efficient 7(6) pair of 10 stages; for tolerances from about 1e-8 to 1e-12.

    Its interpolant takes 5 extra stages, beside f at the new state, in steps inside which something is read. It is
    published as one of order 7; it has order 6: of the 48 order conditions of seventh order, 12 hold to 1e-4 only.

    Source: J. H. Verner, Numer. Algorithms 53 (2010) 383.

    >>> Vern7().tableau.order
    7
    """

    tableau = _VERN7


class Vern9(ExplicitRungeKutta):
    """Verner's efficient 9(8) pair of 16 stages; for tolerances below about 1e-10.

    Its interpolant of order 9 takes 9 extra stages, beside f at the new state, in steps inside which something is read.

    Source: J. H. Verner, Numer. Algorithms 53 (2010) 383.

    >>> Vern9().tableau.stages
    16
    """

    tableau = _VERN9
