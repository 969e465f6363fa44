"""States at which a right-hand side vanishes, ``0 = f(u, p)``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ude.problems.ode import ODEProblem
from ude.vocabulary import OF_PROBLEMS, named_arguments


@named_arguments(OF_PROBLEMS)
@dataclass(frozen=True, eq=False)
class SteadyStateProblem(ODEProblem):
    """Find u with ``f(u, p, t) = 0``, starting from u0.

    The solution has one saved time, ``t = inf``: ``sol[-1]`` is the state ``(*batch, state)``. Its gradient with
    respect to p follows from the implicit function theorem (`SteadyStateAdjoint`); with respect to u0 it is zero.

    Args:
        f: As for `ODEProblem`. It must not depend on t; methods that do not integrate call it at t = 0.
        u0: Where the search starts ``(*batch, state)``.
        p, names: As for `ODEProblem`.

    Raises:
        InputError: f, u0, p or names are invalid.

    >>> decay = SteadyStateProblem(lambda u, p, t: p.supply - p.rate * u, [0.0], dict(supply=3.0, rate=2.0))
    >>> from ude.solving import solve
    >>> round(float(solve(decay)[-1]), 6)
    1.5
    """

    tspan: tuple[Any, Any] = field(init=False, default=(0.0, 1.0))
