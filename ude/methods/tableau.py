"""Butcher tableaus: the numbers of a Runge-Kutta method, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = Fraction | float


# eq=False: a tableau is hashed at every solve (its tensors are cached), and hashing some hundred fractions takes longer
# than a step; every method owns one tableau object.
@dataclass(frozen=True, eq=False)
class ExplicitTableau:
    """An explicit Runge-Kutta method with an embedded error estimate and a continuous extension.

    One step from ``u`` at ``t``::

        k_i    = f(u + dt * sum_{j<i} a[i][j] k_j,  p,  t + c[i] dt)
        u_next = u + dt * sum_i b[i] k_i
        error  = dt * sum_i b_error[i] k_i                      (u_next minus the embedded solution)
        u(t + theta dt) = u + dt * sum_i k_i * sum_m interpolant[i][m] theta^(m+1)

    The sum of the last line also runs over the extra stages, which serve the continuous extension alone: they are
    evaluated only in steps inside which something is read.

    Entries are `Fraction` where the method is rational or known to many digits, else the nearest double.

    Args:
        name: The method's usual name.
        order: Order of ``u_next``.
        embedded_order: Order of the embedded solution; 0 when there is none.
        interpolant_order: Order of the continuous extension over the whole step.
        a: Strictly lower triangular rows, row i of length i.
        b_error: Empty when there is no embedded solution (the method then runs with fixed steps only).
        b_error_low: Weights of a second, cruder error estimate, or empty. With e and e_low the scaled norms of both,
            the error of a step is ``e^2 / sqrt(e^2 + 0.01 e_low^2)``: much closer to the error of a high order
            than e itself (E. Hairer's DOP853; Solving ODEs I, II.10).
        extra_c, extra_a: Nodes and rows of the extra stages; row i has one entry for every stage before it.
    """

    name: str
    order: int
    embedded_order: int
    interpolant_order: int
    c: tuple[Number, ...]
    a: tuple[tuple[Number, ...], ...]
    b: tuple[Number, ...]
    b_error: tuple[Number, ...]
    interpolant: tuple[tuple[Number, ...], ...]
    b_error_low: tuple[Number, ...] = ()
    extra_c: tuple[Number, ...] = ()
    extra_a: tuple[tuple[Number, ...], ...] = ()

    def __post_init__(self) -> None:
        stages, extra = len(self.b), len(self.extra_a)
        shapes = (len(self.c), len(self.a), len(self.interpolant) - extra)
        if shapes != (stages,) * 3 or any(len(row) != i for i, row in enumerate(self.all_a)):
            raise ValueError(f"tableau {self.name} is not square and explicit: {stages} stages, got {shapes}")
        if len(self.extra_c) != extra:
            raise ValueError(f"tableau {self.name}: {len(self.extra_c)} nodes for {extra} extra stages")
        for name, weights in (("b_error", self.b_error), ("b_error_low", self.b_error_low)):
            if weights and len(weights) != stages:
                raise ValueError(f"tableau {self.name}: {name} has {len(weights)} entries for {stages} stages")

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def all_c(self) -> tuple[Number, ...]:
        """Nodes of the stages and the extra stages."""
        return self.c + self.extra_c

    @property
    def all_a(self) -> tuple[tuple[Number, ...], ...]:
        """Rows of the stages and the extra stages."""
        return self.a + self.extra_a

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is f at the new state, so that it serves as the next step's first stage."""
        return self.c[-1] == 1 and tuple(self.a[-1]) == tuple(self.b[:-1]) and self.b[-1] == 0

    @property
    def first_extra_is_next(self) -> bool:
        """Whether the first extra stage is f at the new state, which the next step evaluates anyway."""
        return bool(self.extra_a) and self.extra_c[0] == 1 and tuple(self.extra_a[0]) == tuple(self.b)


def fractions(*entries: str | int) -> tuple[Fraction, ...]:
    """Read exact entries: ``fractions(0, "1/2", "-3/4")``."""
    return tuple(Fraction(entry) for entry in entries)


def numbers(text: str) -> tuple[Fraction, ...]:
    """Read numbers apart by white space, fractions or decimals of any length: ``numbers("1/3 0.25")``."""
    return tuple(Fraction(word) for word in text.split())


def table(text: str) -> tuple[tuple[Fraction, ...], ...]:
    """Read rows of numbers, each ended by a semicolon."""
    return tuple(numbers(row) for row in text.split(";")[:-1])


def lower_triangle(rows: Sequence[Sequence[Number]], first: int) -> tuple[tuple[Number, ...], ...]:
    """Fill rows with zeros up to the diagonal: the row of stage i (counted from `first`) gets i entries."""
    return tuple((*row, *(Fraction(0),) * (first + i - len(row))) for i, row in enumerate(rows))


def padded(row: Sequence[Number], length: int) -> tuple[Number, ...]:
    """Fill a row with zeros."""
    return (*row, *(Fraction(0),) * (length - len(row)))


def polynomial(scale: float, *factors: Sequence[float]) -> tuple[float, ...]:
    """Expand ``scale * theta * prod(factors)`` to the coefficients of theta^1, theta^2, ...

    Each factor lists its coefficients from the constant term up.
    """
    product = [scale]
    for factor in factors:
        expanded = [0.0] * (len(product) + len(factor) - 1)
        for i, left in enumerate(product):
            for j, right in enumerate(factor):
                expanded[i + j] += left * right
        product = expanded
    return tuple(product)
