"""Dormand & Prince's method of order 8 as implemented by Hairer."""

from __future__ import annotations

from ude.methods.explicit import dop853_coefficients as coefficients
from ude.methods.explicit.explicit_rk import ExplicitRungeKutta
from ude.methods.explicit.verner import assemble
from ude.methods.tableau import numbers

_DP8 = assemble(
    "DP8",
    (8, 5, 7),
    c=coefficients.DOP853_C,
    a=coefficients.DOP853_A,
    weights=(
        coefficients.DOP853_B,
        coefficients.DOP853_EMBEDDED,
        numbers("31/127 0 0 0 0 0 0 0 12675/17272 0 0 3/136"),
    ),
    # the quadrature of order 3 on the nodes 0, c_9 and 1
    extra_a=coefficients.DOP853_EXTRA_A,
    interpolant=coefficients.DOP853_INTERPOLANT,
)


class DP8(ExplicitRungeKutta):
    """Dormand & Prince's method of order 8 with Hairer's error estimate of orders 5 and 3 (DOP853).

    12 stages; its interpolant of order 7 takes 3 extra stages, beside f at the new state, in steps inside which
    something is read.

    Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.5 and II.10.

    >>> DP8().tableau.order, DP8().tableau.stages
    (8, 12)
    """

    tableau = _DP8
