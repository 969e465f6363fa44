"""What the author of f said about it, as a solve needs it: mass matrix, Jacobian, sparsity; and a consistent start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.initialization import consistent, derivative
from ude.engines.mass_matrix import MassMatrix
from ude.errors import InputError
from ude.methods import Algorithm, Coloring
from ude.problems.function import ExplicitForm, ODEFunction
from ude.problems.ode import FlatRightHandSide, ODEProblem

#: Methods for singular mass matrices, as errors name them.
_FOR_DAES = "Rodas5P(), Rodas4(), KenCarp4(), KenCarp5(), Kvaerno5(), TRBDF2() or FBDF()"


@dataclass(frozen=True, eq=False)
class Structure:
    """Args:
    f: The right-hand side to solve instead of the problem's; None is the problem's own.
    mass, coloring: As of `SolveSpec`.
    jac: As of `ODEFunction`.
    """

    f: ExplicitForm | None = None
    mass: MassMatrix | None = None
    jac: Callable[..., Tensor] | None = None
    coloring: Coloring | None = None

    def bound_jac(self, f: FlatRightHandSide) -> Callable[[Tensor, Sequence[Tensor], Tensor], Tensor] | None:
        """The user's Jacobian as a function of the leaves."""
        jac = self.jac
        return None if jac is None else lambda u, leaves, t: jac(u, f.parameters(leaves), t)


def structure_of(prob: ODEProblem, alg: Algorithm) -> Structure:
    """Read the problem's `ODEFunction`, if it is one.

    A regular mass matrix is divided out for methods that take none.

    Raises:
        InputError: The mass matrix is singular and the method cannot solve that.
    """
    f = prob.f
    if not isinstance(f, ODEFunction):
        return Structure()
    if f.mass_matrix is None:
        return Structure(jac=f.jac, coloring=f.coloring)
    mass = MassMatrix.of(f.mass_matrix.to(prob.u0))
    if mass.singular and not alg.solves_daes:
        raise InputError(
            f"{alg.name} cannot solve a system whose mass matrix is singular",
            expected="a stiffly accurate implicit method",
            got=f"rank {len(mass.matrix) - mass.equations.shape[1]} of {len(mass.matrix)}",
            fix=f"Use {_FOR_DAES}.",
        )
    if not alg.takes_mass_matrix:
        return Structure(f=ExplicitForm(f.f, mass.matrix))
    return Structure(mass=mass, jac=f.jac, coloring=f.coloring)


def started(spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> tuple[Float[Tensor, "B n"], SolveSpec]:
    """Make a start consistent: the states, differentiable, and the solve with the derivative there."""
    u0, failed = consistent(spec, u0, p)
    spec = replace(spec, failed=failed if bool(failed.any()) else None)
    first: Any = derivative(spec, u0.detach(), spec.t0, [leaf.detach() for leaf in p])
    return u0, replace(spec, first_du=torch.as_tensor(first))
