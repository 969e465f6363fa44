"""Step-size control, written once for every engine.

A controller only combines numbers. Its arithmetic goes through `Arithmetic`, so the same text serves
Python floats (one trajectory), torch tensors (one number a trajectory) and generated code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ude.errors import InputError


class Arithmetic(Protocol):
    """The operations a controller needs of its numbers beside ``+ - * / < <= > >=``."""

    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def arctan(self, x: Any) -> Any: ...
    def where(self, condition: Any, x: Any, y: Any) -> Any: ...
    def round(self, x: Any) -> Any: ...


class FloatArithmetic:
    """`Arithmetic` of Python floats."""

    def minimum(self, x: float, y: float) -> float:
        return min(x, y)

    def maximum(self, x: float, y: float) -> float:
        return max(x, y)

    def power(self, x: float, exponent: float) -> float:
        result: float = x**exponent
        return result

    def arctan(self, x: float) -> float:
        return math.atan(x)

    def where(self, condition: bool, x: float, y: float) -> float:
        return x if condition else y

    def round(self, x: float) -> float:
        return float(round(x))


# An error below this counts as this: far below it the step grows by qmax anyway, and 0**-beta is no number.
SMALLEST_ERROR = 1e-30
# What the first accepted step compares with, and the floor of the remembered error (OrdinaryDiffEq's qoldinit).
INITIAL_ERROR = 1e-4
# The same for controllers that take powers of several errors, whose product must stay finite (eps, as Julia has it).
SMALLEST_FILTERED_ERROR = 2.0**-52


# Factors are rounded to multiples of this. The error estimate is a difference of nearly equal numbers, so the order of
# a sum changes its eighth digit; rounded factors keep that out of the step sizes, and the same problem takes the same
# steps alone, in any batch, in any engine.
FACTOR_GRID = 2.0**-10
# Factors above this are rounded to halves. They belong to errors far below the tolerance, of which most digits can be
# rounding (1e-9 of a tolerance of 1e-3 has four left): the fine grid would flip between neighbors there, and how
# exactly a step triples matters to nobody.
LARGE_FACTOR, LARGE_FACTOR_GRID = 2.0, 0.5


class Controller(Protocol):
    """Decides whether a step is accepted and how long the next one is.

    It has no state: what it remembers of earlier steps, its `memory`, is a tuple of numbers that the engine keeps for
    every trajectory and hands back. Its methods are pure arithmetic through `ops`, so one text serves floats, tensors
    and generated code. `order` is the power of dt to which the estimated error behaves.
    """

    def start(self) -> tuple[float, ...]:
        """The memory before the first step; as many numbers as `remember` returns."""

    def accepts(self, ops: Arithmetic, error: Any, memory: Sequence[Any], order: int) -> Any:
        """Whether a step with this scaled error is accepted."""

    def factor(self, ops: Arithmetic, error: Any, memory: Sequence[Any], accepted: Any, order: int) -> Any:
        """Return dt_next/dt, a multiple of `FACTOR_GRID`, and above `LARGE_FACTOR` of `LARGE_FACTOR_GRID`.

        An infinite error gives the smallest factor there is.
        """

    def remember(self, ops: Arithmetic, error: Any, memory: Sequence[Any]) -> tuple[Any, ...]:
        """Return the memory after an accepted step with a finite error."""


def _on_grid(ops: Arithmetic, factor: Any) -> Any:
    fine = ops.round(factor / FACTOR_GRID) * FACTOR_GRID
    coarse = ops.round(factor / LARGE_FACTOR_GRID) * LARGE_FACTOR_GRID
    return ops.where(factor > LARGE_FACTOR, coarse, fine)


def _held_steady(ops: Arithmetic, factor: Any, qsteady_min: float, qsteady_max: float) -> Any:
    """1 where ``qsteady_min <= 1/factor <= qsteady_max``, else the factor."""
    if qsteady_min == qsteady_max == 1.0:
        return factor
    low, high = 1.0 / qsteady_max, 1.0 / qsteady_min
    return ops.where(factor < low, factor, ops.where(factor > high, factor, factor * 0.0 + 1.0))


def _check_limits(name: str, gamma: float, qmin: float, qmax: float) -> None:
    if not 0 < gamma <= 1:
        raise InputError(f"gamma of {name} is no safety factor", expected="more than 0, at most 1", got=repr(gamma))
    if not FACTOR_GRID <= qmin < 1:
        raise InputError(f"qmin of {name} does not shrink a step", expected="1/1024 <= qmin < 1", got=repr(qmin))
    if not 1 < qmax < math.inf:
        raise InputError(f"qmax of {name} does not let a step grow", expected="more than 1, finite", got=repr(qmax))


def _check_steady(name: str, qsteady_min: float, qsteady_max: float) -> None:
    if not 0 < qsteady_min <= 1 <= qsteady_max < math.inf:
        raise InputError(
            f"qsteady_min and qsteady_max of {name} must enclose 1",
            expected="0 < qsteady_min <= 1 <= qsteady_max",
            got=f"{qsteady_min!r}, {qsteady_max!r}",
        )


@dataclass(frozen=True)
class IController:
    """Integral control, the textbook's step-size control, with the names of OrdinaryDiffEq.jl::

        q       = error^(1/order) / gamma
        dt_next = dt / clamp(q, 1/qmax, 1/qmin)

    and dt_next = dt after an accepted step with ``qsteady_min <= q <= qsteady_max``.

    Args:
        gamma: Safety factor.
        qmin, qmax: The smallest and the largest factor by which a step may change.
        qsteady_min, qsteady_max: Between these an accepted step's size is kept: implicit methods save a factorization.

    Raises:
        InputError: A number is out of its range.

    Source: E. Hairer, S. P. Norsett & G. Wanner, Solving ODEs I, II.4.

    >>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 5.0))
    >>> ude.solve(prob, ude.KenCarp4(), controller=ude.methods.IController(qsteady_max=1.2)).success
    tensor(True)
    """

    gamma: float = 0.9
    qmin: float = 0.2
    qmax: float = 10.0
    qsteady_min: float = 1.0
    qsteady_max: float = 1.0

    def __post_init__(self) -> None:
        _check_limits("IController", self.gamma, self.qmin, self.qmax)
        _check_steady("IController", self.qsteady_min, self.qsteady_max)

    def start(self) -> tuple[float, ...]:
        return ()

    def accepts(self, ops: Arithmetic, error: Any, memory: Sequence[Any], order: int) -> Any:
        return error <= 1.0

    def factor(self, ops: Arithmetic, error: Any, memory: Sequence[Any], accepted: Any, order: int) -> Any:
        """Return dt_next/dt for the scaled `error`."""
        raw = self.gamma / ops.power(ops.maximum(error, SMALLEST_ERROR), 1.0 / order)
        limited = ops.minimum(ops.maximum(raw, self.qmin), self.qmax)
        steady = _held_steady(ops, limited, self.qsteady_min, self.qsteady_max)
        return ops.minimum(_on_grid(ops, ops.where(accepted, steady, limited)), self.qmax)

    def remember(self, ops: Arithmetic, error: Any, memory: Sequence[Any]) -> tuple[Any, ...]:
        return ()


@dataclass(frozen=True)
class PIController:
    """Proportional-integral control of the step size, in the form and with the names of OrdinaryDiffEq.jl::

        q        = error^beta1 / previous_error^beta2 / gamma
        dt_next  = dt / clamp(q, 1/qmax, 1/qmin)         after an accepted step (error <= 1)
        dt_next  = dt / min(error^beta1 / gamma, 1/qmin) after a rejected one

    The factor dt_next/dt is rounded to a multiple of `FACTOR_GRID`, or of `LARGE_FACTOR_GRID` where it is above
    `LARGE_FACTOR`, so that rounding errors do not change steps.

    Args:
        beta1: Exponent of the current error; None means 7/(10 order).
        beta2: Exponent of the previous error; None means 2/(5 order); 0 gives the elementary I controller. The defaults
            are Julia's. Hairer's (0.17, 0.04 for order 5) take up to a quarter fewer calls at the same tolerance, but
            none at the same error: steps then settle at half of the tolerance instead of a sixth, reject more, and
            let errors grow further beyond it.
        gamma: Safety factor.
        qmin: The smallest factor by which a step may change.
        qmax: The largest factor.
        qsteady_min, qsteady_max: An accepted step with q between these keeps its size; 1, 1 never does.
        qoldinit: What the first accepted step compares with, and the floor of the remembered error.

    Raises:
        InputError: A number is out of its range.

    Source: K. Gustafsson, ACM TOMS 17 (1991) 533; E. Hairer & G. Wanner, Solving ODEs II, IV.2.

    >>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 5.0))
    >>> careful = ude.methods.PIController(qmax=1.5)  # steps grow by half at most
    >>> more = ude.solve(prob, ude.Tsit5(), controller=careful).stats.accepted_steps
    >>> bool(more >= ude.solve(prob, ude.Tsit5()).stats.accepted_steps)
    True
    """

    beta1: float | None = None
    beta2: float | None = None
    gamma: float = 0.9
    qmin: float = 0.2
    qmax: float = 10.0
    qsteady_min: float = 1.0
    qsteady_max: float = 1.0
    qoldinit: float = INITIAL_ERROR

    def __post_init__(self) -> None:
        _check_limits("PIController", self.gamma, self.qmin, self.qmax)
        _check_steady("PIController", self.qsteady_min, self.qsteady_max)
        if self.beta1 is not None and not self.beta1 > 0:
            raise InputError("beta1 of PIController must be positive", got=repr(self.beta1))
        if self.beta2 is not None and not self.beta2 >= 0:
            raise InputError("beta2 of PIController must be zero or more", got=repr(self.beta2))
        if not self.qoldinit > 0:
            raise InputError("qoldinit of PIController must be positive", got=repr(self.qoldinit))

    def start(self) -> tuple[float, ...]:
        return (self.qoldinit,)

    def accepts(self, ops: Arithmetic, error: Any, memory: Sequence[Any], order: int) -> Any:
        return error <= 1.0

    def factor(self, ops: Arithmetic, error: Any, memory: Sequence[Any], accepted: Any, order: int) -> Any:
        """Return dt_next/dt for the scaled `error`."""
        beta1 = 0.7 / order if self.beta1 is None else self.beta1
        beta2 = 0.4 / order if self.beta2 is None else self.beta2
        proportional = ops.power(ops.maximum(error, SMALLEST_ERROR), beta1)
        after_rejection = self.gamma / proportional
        after_acceptance = after_rejection * ops.power(memory[0], beta2)
        limited = ops.minimum(ops.maximum(after_acceptance, self.qmin), self.qmax)
        steady = _held_steady(ops, limited, self.qsteady_min, self.qsteady_max)
        rounded = _on_grid(ops, ops.where(accepted, steady, ops.maximum(after_rejection, self.qmin)))
        return ops.minimum(rounded, self.qmax)

    def remember(self, ops: Arithmetic, error: Any, memory: Sequence[Any]) -> tuple[Any, ...]:
        return (ops.maximum(error, self.qoldinit),)


def smooth_limiter(ops: Arithmetic, factor: Any) -> Any:
    """``1 + atan(factor - 1)``: near 1 the factor itself, never below 0.21 nor above 2.57."""
    return 1.0 + ops.arctan(factor - 1.0)


@dataclass(frozen=True)
class PIDController:
    """Proportional-integral-derivative control by a digital filter, in the form of OrdinaryDiffEq.jl::

        factor  = limiter((1/error)^(beta1/k) (1/error_1)^(beta2/k) (1/error_2)^(beta3/k))
        dt_next = factor dt

    with error_1, error_2 of the two accepted steps before (1 where there are none yet) and k the order of the error. A
    step is accepted when its factor is at least `accept_safety`, whatever its error: with beta1 = 0.7 and k = 5 errors
    up to 4 times the tolerance pass, with the small gains of smooth filters (1/6) up to 600 times.

    Args:
        beta1, beta2, beta3: Gains, not divided by the order. Published choices: ``PIDController(0.7, -0.4)`` (PI34),
            ``PIDController(0.6, -0.2)`` (PI42), ``PIDController(0.58, -0.21, 0.1)`` (Kennedy and Carpenter); for smooth
            step sizes ``PIDController(1/6, 1/6)`` (H211PI) and ``PIDController(1/18, 1/9, 1/18)`` (H312PID).
        limiter: A function ``(ops, factor) -> factor`` written with `Arithmetic` alone, so that engines that generate
            code can write it out; `smooth_limiter` unless given.
        accept_safety: The smallest factor with which a step is accepted.
        qsteady_min, qsteady_max: An accepted step with ``qsteady_min <= 1/factor <= qsteady_max`` keeps its size.

    Raises:
        InputError: A number is out of its range.

    Sources: G. Soderlind, ACM TOMS 29 (2003) 1; G. Soderlind & L. Wang, J. Comput. Appl. Math. 185 (2006) 225;
    C. A. Kennedy & M. H. Carpenter, Appl. Numer. Math. 44 (2003) 139.

    >>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 5.0))
    >>> ude.solve(prob, ude.Tsit5(), controller=ude.methods.PIDController(0.7, -0.4)).success
    tensor(True)
    """

    beta1: float
    beta2: float
    beta3: float = 0.0
    limiter: Callable[[Arithmetic, Any], Any] = smooth_limiter
    accept_safety: float = 0.81
    qsteady_min: float = 1.0
    qsteady_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta1 < math.inf:
            raise InputError("beta1 of PIDController must be positive", got=repr(self.beta1))
        if not (math.isfinite(self.beta2) and math.isfinite(self.beta3)):
            raise InputError("beta2 and beta3 of PIDController must be finite", got=f"{self.beta2!r}, {self.beta3!r}")
        if not 0 < self.accept_safety < 1:
            raise InputError(
                "accept_safety of PIDController is no factor", expected="between 0 and 1", got=repr(self.accept_safety)
            )
        _check_steady("PIDController", self.qsteady_min, self.qsteady_max)

    def start(self) -> tuple[float, ...]:
        return (1.0, 1.0)

    def accepts(self, ops: Arithmetic, error: Any, memory: Sequence[Any], order: int) -> Any:
        return self._filtered(ops, error, memory, order) >= self.accept_safety

    def factor(self, ops: Arithmetic, error: Any, memory: Sequence[Any], accepted: Any, order: int) -> Any:
        """Return dt_next/dt for the scaled `error`."""
        raw = self._filtered(ops, error, memory, order)
        steady = _held_steady(ops, raw, self.qsteady_min, self.qsteady_max)
        # a rejected step shrinks even when its error alone does not ask for it (an implicit solve that failed)
        return _on_grid(ops, ops.where(accepted, steady, ops.minimum(raw, self.accept_safety)))

    def remember(self, ops: Arithmetic, error: Any, memory: Sequence[Any]) -> tuple[Any, ...]:
        return (ops.maximum(error, SMALLEST_FILTERED_ERROR), memory[0])

    def _filtered(self, ops: Arithmetic, error: Any, memory: Sequence[Any], order: int) -> Any:
        factor = ops.power(ops.maximum(error, SMALLEST_FILTERED_ERROR), -self.beta1 / order)
        factor = factor * ops.power(memory[0], -self.beta2 / order)
        if self.beta3:
            factor = factor * ops.power(memory[1], -self.beta3 / order)
        return self.limiter(ops, factor)
