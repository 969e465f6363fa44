"""Step-size control, written once for every engine.

A controller only combines numbers. Its arithmetic goes through `Arithmetic`, so the same text serves
Python floats (one trajectory), torch tensors (one number a trajectory) and generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Arithmetic(Protocol):
    """The operations a controller needs of its numbers beside ``* / < >``."""

    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def where(self, condition: Any, x: Any, y: Any) -> Any: ...
    def round(self, x: Any) -> Any: ...


class FloatArithmetic:
    """`Arithmetic` of Python floats."""

    def minimum(self, x: float, y: float) -> float:
        return min(x, y)

    def maximum(self, x: float, y: float) -> float:
        return max(x, y)

    def power(self, x: float, exponent: float) -> float:
        return x**exponent

    def where(self, condition: bool, x: float, y: float) -> float:
        return x if condition else y

    def round(self, x: float) -> float:
        return float(round(x))


# An error below this counts as this: far below it the step grows by qmax anyway, and 0**-beta is no number.
SMALLEST_ERROR = 1e-30
# What the first accepted step compares with, and the floor of the remembered error (OrdinaryDiffEq's qoldinit).
INITIAL_ERROR = 1e-4


# Factors are rounded to multiples of this. The error estimate is a difference of nearly equal numbers, so the order of
# a sum changes its eighth digit; rounded factors keep that out of the step sizes, and the same problem takes the same
# steps alone, in any batch, in any engine.
FACTOR_GRID = 2.0**-10


@dataclass(frozen=True)
class PIController:
    """Proportional-integral control of the step size, in the form and with the names of OrdinaryDiffEq.jl::

        q        = error^beta1 / previous_error^beta2 / gamma
        dt_next  = dt / clamp(q, 1/qmax, 1/qmin)         after an accepted step (error <= 1)
        dt_next  = dt / min(error^beta1 / gamma, 1/qmin) after a rejected one

    The factor dt_next/dt is rounded to a multiple of `FACTOR_GRID`, so that rounding errors do not change steps.

    Args:
        beta1: Exponent of the current error; None means 7/(10 order).
        beta2: Exponent of the previous error; None means 2/(5 order); 0 gives the elementary I controller. The defaults
            are Julia's. Hairer's (0.17, 0.04 for order 5) take up to a quarter fewer calls at the same tolerance, but
            none at the same error: steps then settle at half of the tolerance instead of a sixth, reject more, and
            let errors grow further beyond it.
        gamma: Safety factor.
        qmin: The smallest factor by which a step may change.
        qmax: The largest factor.

    Source: K. Gustafsson, ACM TOMS 17 (1991) 533; E. Hairer & G. Wanner, Solving ODEs II, IV.2.
    """

    beta1: float | None = None
    beta2: float | None = None
    gamma: float = 0.9
    qmin: float = 0.2
    qmax: float = 10.0

    def factor(self, ops: Arithmetic, error: Any, previous_error: Any, accepted: Any, order: int) -> Any:
        """Return dt_next/dt for the scaled `error` (accepted means error <= 1)."""
        beta1 = 0.7 / order if self.beta1 is None else self.beta1
        beta2 = 0.4 / order if self.beta2 is None else self.beta2
        proportional = ops.power(ops.maximum(error, SMALLEST_ERROR), beta1)
        after_rejection = self.gamma / proportional
        after_acceptance = after_rejection * ops.power(previous_error, beta2)
        limited = ops.minimum(ops.maximum(after_acceptance, self.qmin), self.qmax)
        factor = ops.where(accepted, limited, ops.maximum(after_rejection, self.qmin))
        return ops.round(factor / FACTOR_GRID) * FACTOR_GRID

    def remember(self, ops: Arithmetic, error: Any) -> Any:
        """Return what the next step is told of an accepted step's error."""
        return ops.maximum(error, INITIAL_ERROR)
