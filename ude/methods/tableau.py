"""Butcher tableaus: the numbers of a Runge-Kutta method, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = Fraction | float


@dataclass(frozen=True)
class ExplicitTableau:
    """An explicit Runge-Kutta method with an embedded error estimate and a continuous extension.

    One step from ``u`` at ``t``::

        k_i    = f(u + dt * sum_{j<i} a[i][j] k_j,  p,  t + c[i] dt)
        u_next = u + dt * sum_i b[i] k_i
        error  = dt * sum_i b_error[i] k_i                      (u_next minus the embedded solution)
        u(t + theta dt) = u + dt * sum_i k_i * sum_m interpolant[i][m] theta^(m+1)

    Entries are `Fraction` where the method is rational, else the nearest double.

    Args:
        name: The method's usual name.
        order: Order of ``u_next``.
        embedded_order: Order of the embedded solution; 0 when there is none.
        interpolant_order: Order of the continuous extension over the whole step.
        a: Strictly lower triangular rows, row i of length i.
        b_error: Empty when there is no embedded solution (the method then runs with fixed steps only).
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

    def __post_init__(self) -> None:
        stages = len(self.b)
        shapes = (len(self.c), len(self.a), len(self.interpolant))
        if shapes != (stages,) * 3 or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"tableau {self.name} is not square and explicit: {stages} stages, got {shapes}")
        if self.b_error and len(self.b_error) != stages:
            raise ValueError(f"tableau {self.name}: b_error has {len(self.b_error)} entries for {stages} stages")

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is f at the new state, so that it serves as the next step's first stage."""
        return self.c[-1] == 1 and tuple(self.a[-1]) == tuple(self.b[:-1]) and self.b[-1] == 0


def fractions(*entries: str | int) -> tuple[Fraction, ...]:
    """Read exact entries: ``fractions(0, "1/2", "-3/4")``."""
    return tuple(Fraction(entry) for entry in entries)


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
