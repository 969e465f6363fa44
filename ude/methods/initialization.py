"""What is done about an initial state that does not satisfy the algebraic equations of a DAE: options."""

from __future__ import annotations

from dataclasses import dataclass

from ude.errors import InputError


@dataclass(frozen=True)
class InitializationAlgorithm:
    """Makes the start of a DAE ``M u' = f(u, p, t)`` consistent, or does not."""


@dataclass(frozen=True)
class BrownFullBasicInit(InitializationAlgorithm):
    """Keep the differential variables of u0 and solve the algebraic ones from the algebraic equations.

    The differential variables are the part of u that M sees; the others are the directions of its null space, which
    need not be single components. The gradient of the solve passes through the solution (implicit function theorem).

    Args:
        abstol: Newton's iteration ends when it changes no state by more than this, relative to the larger of the
            largest state and 1.
        maxiters: Most iterations; a trajectory that needs more ends with `ReturnCode.InitialFailure`.

    Source: P. N. Brown, A. C. Hindmarsh, L. R. Petzold, SIAM J. Sci. Comput. 19 (1998) 1495.

    >>> constraint = lambda u, p, t: torch.stack([-u[..., 0], u[..., 0] - u[..., 1]], -1)
    >>> f = ude.ODEFunction(constraint, mass_matrix=[[1.0, 0.0], [0.0, 0.0]])
    >>> prob = ude.ODEProblem(f, [1.0, 5.0], (0.0, 1.0))
    >>> ude.solve(prob, ude.Rodas5P(), initializealg=ude.methods.BrownFullBasicInit()).u[0].tolist()
    [1.0, 1.0]
    """

    abstol: float = 1e-10
    maxiters: int = 50

    def __post_init__(self) -> None:
        _check(self.abstol)
        if self.maxiters < 1:
            raise InputError("maxiters allows no iteration", expected="at least 1", got=repr(self.maxiters))


@dataclass(frozen=True)
class CheckInit(InitializationAlgorithm):
    """Change nothing: a trajectory whose u0 is further than abstol from a consistent one fails.

    Args:
        abstol: The distance by which one step of Newton's iteration would move the algebraic variables, relative to
            the larger of the largest state and 1.

    >>> constraint = lambda u, p, t: torch.stack([-u[..., 0], u[..., 0] - u[..., 1]], -1)
    >>> f = ude.ODEFunction(constraint, mass_matrix=[[1.0, 0.0], [0.0, 0.0]])
    >>> prob = ude.ODEProblem(f, [1.0, 5.0], (0.0, 1.0))
    >>> ude.solve(prob, ude.Rodas5P(), initializealg=ude.methods.CheckInit()).retcode.name
    'InitialFailure'
    """

    abstol: float = 1e-6

    def __post_init__(self) -> None:
        _check(self.abstol)


@dataclass(frozen=True)
class NoInit(InitializationAlgorithm):
    """Take u0 as it is. An inconsistent one makes the first steps wrong or lets them fail.

    >>> constraint = lambda u, p, t: torch.stack([-u[..., 0], u[..., 0] - u[..., 1]], -1)
    >>> f = ude.ODEFunction(constraint, mass_matrix=[[1.0, 0.0], [0.0, 0.0]])
    >>> ude.solve(ude.ODEProblem(f, [1.0, 1.0], (0.0, 1.0)), ude.Rodas5P(), initializealg=ude.methods.NoInit()).success
    tensor(True)
    """


def _check(abstol: float) -> None:
    if not 0 < abstol < float("inf"):
        raise InputError("abstol of the initialization must be a positive number", got=repr(abstol))
