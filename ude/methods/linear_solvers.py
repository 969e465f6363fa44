"""How implicit methods solve the linear systems of a step: options, executed by engines."""

from __future__ import annotations

from dataclasses import dataclass

from ude.errors import InputError


@dataclass(frozen=True)
class LinearSolver:
    """Solves ``(M - gamma dt J) x = r`` for every trajectory."""


@dataclass(frozen=True)
class LU(LinearSolver):
    """Form the matrix and factorize it once a step: the choice up to some hundred states.

    >>> ude.KenCarp4().linsolve == ude.methods.LU()
    True
    """


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Restarted GMRES with Jacobian-vector products alone: no matrix is formed, so memory grows like n, not n^2.

    Every trajectory iterates until its own residual is small enough. There is no preconditioner: where
    ``gamma dt J`` is far from the identity in many directions at once (fine grids with large steps), it takes many
    products, and a `jac_prototype` with `LU()` may be cheaper.

    Args:
        reltol: The residual that ends the iteration, relative to the right-hand side. Newton's iteration mends what is
            left of it; Rosenbrock methods do not, so with them it must lie below the tolerance of the solve.
        restart: After so many vectors the iteration begins again from where it is; each is held in memory.
        maxiters: Most products for one system; a trajectory that needs more tries a smaller step.

    Raises:
        InputError: An option is out of range.

    Source: Y. Saad, M. H. Schultz, SIAM J. Sci. Stat. Comput. 7 (1986) 856.

    >>> prob = ude.ODEProblem(lambda u, p, t: -100.0 * u, torch.ones(4).double(), (0.0, 1.0))
    >>> ude.solve(prob, ude.KenCarp4(linsolve=ude.methods.GMRES())).success
    tensor(True)
    """

    reltol: float = 1e-8
    restart: int = 50
    maxiters: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.reltol < 1:
            raise InputError("reltol of GMRES must be a number between 0 and 1", got=repr(self.reltol))
        for name in ("restart", "maxiters"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} of GMRES allows no iteration", expected="at least 1", got=repr(getattr(self, name))
                )
