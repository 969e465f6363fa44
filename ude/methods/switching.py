"""Methods that switch between an explicit and an implicit one, each trajectory by its own stiffness."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from ude.errors import InputError
from ude.methods.esdirk import DiagonallyImplicitRungeKutta
from ude.methods.explicit.explicit_rk import Algorithm, ExplicitRungeKutta, Tsit5
from ude.methods.explicit.verner import Vern7
from ude.methods.linear_solvers import GMRES
from ude.methods.rosenbrock import RosenbrockMethod
from ude.methods.tableau import ExplicitTableau

# The end of the interval of stability is looked for in steps of this size.
_SCAN = 0.01


@dataclass(frozen=True)
class AutoSwitch(Algorithm):
    """Start with an explicit method and change to an implicit one where the problem is stiff, and back.

    Every trajectory switches by itself. A step of the explicit method counts as stiff when ``dt rho > nonstifftol S``:
    S is how far the method is stable on the negative real axis (`stability_size`), and rho an estimate of the largest
    eigenvalue, from two stages g, h at one time: ``|f(g) - f(h)| / |g - h|``. A step of the implicit method counts as
    stiff when ``dt |J| > stifftol S`` with the smaller of the Jacobian's row sum and column sum norms, which bound rho.

    Args:
        nonstiff: An adaptive explicit method with two stages at one time: `Tsit5()`, `DP5()` or one of Verner's.
        stiff: An adaptive ESDIRK or Rosenbrock method.
        maxstiffstep: More stiff steps than this in a row change to the implicit method.
        maxnonstiffstep: More steps in a row that are not stiff change back.
        nonstifftol, stifftol: Parts of S, as above.
        dtfac: The step grows by this factor on the change to the implicit method and shrinks by it on the way back.
        stiffalgfirst: Start with the implicit method.
        switch_max: A trajectory that has gone to and fro so many times, each stay no longer than the rules above
            force it to be, stays with the implicit method.

    Raises:
        InputError: The methods are not of these kinds, or a number is out of range.

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, IV.2; names and defaults are those of
    OrdinaryDiffEq.jl, whose switch_max postpones its check for instability instead.

    >>> ude.AutoTsit5(ude.Rodas5P()).name
    'AutoTsit5(Rodas5P)'
    """

    nonstiff: ExplicitRungeKutta
    stiff: DiagonallyImplicitRungeKutta | RosenbrockMethod
    maxstiffstep: int = 10
    maxnonstiffstep: int = 3
    nonstifftol: float = 0.9
    stifftol: float = 0.9
    dtfac: float = 2.0
    stiffalgfirst: bool = False
    switch_max: int = 5

    def __post_init__(self) -> None:
        _check_methods(self.nonstiff, self.stiff)
        for name in ("maxstiffstep", "maxnonstiffstep", "switch_max"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} counts steps", expected="0 or more", got=repr(getattr(self, name)))
        for name in ("nonstifftol", "stifftol", "dtfac"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is out of range", expected="a positive number", got=repr(getattr(self, name)))

    @property
    def name(self) -> str:
        return f"Auto{self.nonstiff.name}({self.stiff.name})"


def _check_methods(nonstiff: Algorithm, stiff: Algorithm) -> None:
    if (
        not isinstance(nonstiff, ExplicitRungeKutta)
        or not nonstiff.tableau.b_error
        or not twin_stages(nonstiff.tableau)
    ):
        raise InputError(
            "this method cannot tell a stiff problem",
            expected="an adaptive explicit method with two stages at one time, e.g. Tsit5()",
            got=getattr(nonstiff, "name", repr(nonstiff)),
        )
    implicit = isinstance(stiff, (DiagonallyImplicitRungeKutta, RosenbrockMethod))
    if not implicit or not stiff.tableau.b_error:  # type: ignore[attr-defined]
        raise InputError(
            "this is no method for the stiff part",
            expected="an adaptive ESDIRK or Rosenbrock method, e.g. Rodas5P()",
            got=getattr(stiff, "name", repr(stiff)),
        )
    if isinstance(stiff.linsolve, GMRES):  # type: ignore[attr-defined]
        raise InputError(
            "a method that switches needs the Jacobian of its stiff part as a matrix, whose norm says when to go back",
            expected="linsolve=LU()",
            got="linsolve=GMRES()",
            fix=f"Use {stiff.name} alone, or leave linsolve out.",
        )


@dataclass(frozen=True)
class AutoTsit5(AutoSwitch):
    """`Tsit5`, and where the problem is stiff the method given: ``AutoTsit5(Rodas5P())``. Options: `AutoSwitch`'s.

    >>> prob = ude.ODEProblem(lambda u, p, t: -1e4 * (u - 1.0), [0.0], (0.0, 10.0))
    >>> sol = ude.solve(prob, ude.AutoTsit5(ude.Rodas5P()))
    >>> int(sol.stats.switches)
    1
    """

    nonstiff: ExplicitRungeKutta = field(init=False, default=Tsit5())


@dataclass(frozen=True)
class AutoVern7(AutoSwitch):
    """`Vern7` for tight tolerances, and where the problem is stiff the method given: ``AutoVern7(Rodas5P())``.
    Options: `AutoSwitch`'s.

    >>> ude.methods.AutoVern7(ude.Rodas5P()).name
    'AutoVern7(Rodas5P)'
    """

    nonstiff: ExplicitRungeKutta = field(init=False, default=Vern7())


def twin_stages(tableau: ExplicitTableau) -> bool:
    """Whether the last two stages lie at one time, so that the difference of f between them is due to u alone."""
    return tableau.stages > 1 and tableau.c[-1] == tableau.c[-2]


@lru_cache(maxsize=64)
def stability_size(tableau: ExplicitTableau) -> float:
    """How far the method is stable on the negative real axis: the largest S with ``|R(-x)| <= 1`` on [0, S].

    ``R(z) = 1 + sum_k z^(k+1) b^T A^k 1`` is what a step multiplies u by where ``u' = lambda u``, ``z = dt lambda``.
    """
    rows = [[float(x) for x in row] for row in tableau.a]
    powers = [1.0] * len(rows)
    coefficients = [1.0]
    for _ in rows:
        coefficients.append(sum(float(b) * x for b, x in zip(tableau.b, powers, strict=True)))
        powers = [sum(a * x for a, x in zip(row, powers, strict=False)) for row in rows]

    def stable(x: float) -> bool:
        value = 0.0
        for coefficient in reversed(coefficients):
            value = value * -x + coefficient
        return abs(value) <= 1.0

    low = _SCAN
    while stable(low + _SCAN):
        low += _SCAN
    high = low + _SCAN
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low
