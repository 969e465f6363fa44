"""Symplectic methods for partitioned problems ``v' = f1(u, t), u' = f2(v, t)``: compositions of drifts and kicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import ClassVar

from ude.methods.explicit.explicit_rk import Algorithm
from ude.methods.tableau import Number, numbers


@dataclass(frozen=True, eq=False)
class SymplecticTableau:
    """A composition of exact flows of the two halves. One step from (v, u) at t, for i = 1 ... s::

        u <- u + b[i] dt f2(v, t + (a[1] + ... + a[i-1]) dt)          (drift)
        v <- v + a[i] dt f1(u, t + (b[1] + ... + b[i]) dt)            (kick)

    Time runs along with the half that f1 and f2 do not depend on, which keeps the order where they depend on t.

    Args:
        name: The method's usual name.
        order: Its order.
        needs_second_order: Whether it keeps this order only where the kinetic energy is quadratic, as for u' = v.
    """

    name: str
    order: int
    a: tuple[Number, ...]
    b: tuple[Number, ...]
    needs_second_order: bool = False

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b):
            raise ValueError(f"tableau {self.name} has {len(self.a)} kicks and {len(self.b)} drifts")

    @property
    def ends_with_first_kick(self) -> bool:
        """Whether a step ends with the force that the next step begins with."""
        return self.b[0] == 0 and self.a[-1] != 0

    @property
    def stages(self) -> int:
        """Evaluations of f1 that a step needs, besides one that it takes over from the step before."""
        return sum(1 for weight in self.a if weight) - self.ends_with_first_kick


@dataclass(frozen=True)
class SymplecticMethod(Algorithm):
    """Family of the symplectic methods; every member is one `SymplecticTableau`.

    Fixed steps only (``adaptive=False, dt=...``): changing steps would give up what they are for, an energy error that
    stays bounded. Dense output is the cubic Hermite interpolant of a step, of order 3 whatever the method's order;
    where more is wanted, save at multiples of dt. The discrete adjoint is the exact derivative of the steps.
    """

    tableau: ClassVar[SymplecticTableau]


def _symmetric(half: Sequence[Number]) -> tuple[Number, ...]:
    """Mirror weights about the last one."""
    return (*half, *reversed(half[:-1]))


def _between(weights: Sequence[Number]) -> tuple[Number, ...]:
    """What Verlet steps of these sizes leave at their seams: half of each neighbor."""
    padded = (Fraction(0), *weights, Fraction(0))
    return tuple((left + right) / 2 for left, right in zip(padded[:-1], padded[1:], strict=True))


def _drift_first(name: str, order: int, weights: Sequence[Number]) -> SymplecticTableau:
    """Compose Verlet steps drift-kick-drift."""
    return SymplecticTableau(name, order, a=(*weights, Fraction(0)), b=_between(weights))


def _kick_first(name: str, order: int, weights: Sequence[Number]) -> SymplecticTableau:
    """Compose Verlet steps kick-drift-kick."""
    return SymplecticTableau(name, order, a=_between(weights), b=(Fraction(0), *weights))


class VelocityVerlet(SymplecticMethod):
    """Kick, drift, kick: order 2, one evaluation of the force a step.

    Source: L. Verlet, Phys. Rev. 159 (1967) 98; W. C. Swope et al., J. Chem. Phys. 76 (1982) 637.

    >>> VelocityVerlet().tableau.stages
    1
    """

    tableau = _kick_first("VelocityVerlet", 2, numbers("1"))


class PseudoVerletLeapfrog(SymplecticMethod):
    """Drift, kick, drift: order 2, one evaluation of the force a step.

    Source: L. Verlet, Phys. Rev. 159 (1967) 98.

    >>> PseudoVerletLeapfrog().tableau.b
    (Fraction(1, 2), Fraction(1, 2))
    """

    tableau = _drift_first("PseudoVerletLeapfrog", 2, numbers("1"))


class McLachlan4(SymplecticMethod):
    """McLachlan & Atela's method of order 4 with four stages, for u' = v only (their coefficients are `McAte4`'s too).

    Its error constant is about a tenth of `CandyRoz4`'s.

    Source: R. I. McLachlan & P. Atela, Nonlinearity 5 (1992) 541.

    >>> McLachlan4().tableau.stages
    4
    """

    tableau = SymplecticTableau(
        "McLachlan4",
        4,
        # the paper kicks first; drifts and kicks exchanged, it would want a quadratic potential instead
        a=numbers("0.134496199277431089 -0.224819803079420806 0.756320000515668291 0.334003603286321425 0"),
        b=numbers("0 0.515352837431122936 -0.085782019412973646 0.441583023616466524 0.128846158365384185"),
        needs_second_order=True,
    )


_PRECISE = Context(prec=50)
# 2^(1/3) to 50 digits
_CUBE_ROOT = _PRECISE.power(Decimal(2), _PRECISE.divide(Decimal(1), Decimal(3)))
_OUTER = Fraction(_PRECISE.divide(Decimal(1), _PRECISE.subtract(Decimal(2), _CUBE_ROOT)))


class CandyRoz4(SymplecticMethod):
    """Candy & Rozmus' method of order 4: three Verlet steps, the middle one backwards.

    Source: J. Candy & W. Rozmus, J. Comput. Phys. 92 (1991) 230; E. Forest & R. D. Ruth, Physica D 43 (1990) 105.

    >>> CandyRoz4().tableau.stages
    3
    """

    tableau = _kick_first("CandyRoz4", 4, _symmetric((_OUTER, 1 - 2 * _OUTER)))


class KahanLi6(SymplecticMethod):
    """Kahan & Li's method of order 6: nine Verlet steps.

    Source: W. Kahan & R.-C. Li, Math. Comp. 66 (1997) 1089, method s9odr6a.

    >>> KahanLi6().tableau.stages
    9
    """

    tableau = _drift_first(
        "KahanLi6",
        6,
        _symmetric(
            numbers(
                "0.39216144400731413927925056 0.33259913678935943859974864 -0.70624617255763935980996482"
                " 0.08221359629355080023149045 0.79854399093482996339895035"
            )
        ),
    )


class KahanLi8(SymplecticMethod):
    """Kahan & Li's method of order 8: seventeen Verlet steps; the choice for very small energy errors.

    Source: W. Kahan & R.-C. Li, Math. Comp. 66 (1997) 1089, method s17odr8a.

    >>> KahanLi8().tableau.stages
    17
    """

    tableau = _drift_first(
        "KahanLi8",
        8,
        _symmetric(
            numbers(
                "0.13020248308889008087881763 0.56116298177510838456196441 -0.38947496264484728640807860"
                " 0.15884190655515560089621075 -0.39590389413323757733623154 0.18453964097831570709183254"
                " 0.25837438768632204729397911 0.29501172360931029887096624 -0.60550853383003451169892108"
            )
        ),
    )
