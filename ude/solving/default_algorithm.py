"""Which method `solve` takes when it is told none, and why."""

from __future__ import annotations

from typing import Any

import torch

from ude.errors import InputError
from ude.methods import Algorithm, AutoTsit5, AutoVern7, KenCarp4, Rodas5P, Tsit5, Vern7
from ude.problems.dynamical import DynamicalODEFunction
from ude.problems.function import ODEFunction
from ude.problems.ode import ODEProblem
from ude.problems.split import SplitFunction
from ude.solving.steady_state import DynamicSS, SteadyStateProblem

# Below this relative tolerance the higher order pays (OrdinaryDiffEq.jl changes to Vern7 at 1e-6 too).
TIGHT = 1e-6
# Up to this many states a dense Jacobian a step costs less than the further stages of a method that keeps Jacobians.
SMALL = 50


def default_algorithm(
    prob: ODEProblem, *, reltol: Any = 1e-3, abstol: Any = 1e-6, adaptive: bool = True
) -> tuple[Algorithm, str]:
    """Choose a method for a problem.

    The methods that switch take the steps of `Tsit5` or `Vern7` until a trajectory is found stiff, so that a problem
    that is not costs what it would with those.

    Args:
        prob: The problem.
        reltol, abstol, adaptive: As for `solve`.

    Returns:
        The algorithm, and one sentence that says why.

    Source: the scheme is that of OrdinaryDiffEq.jl's DefaultODEAlgorithm.

    >>> default_algorithm(ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0)))[0].name
    'AutoTsit5(Rodas5P)'
    """
    if isinstance(prob, SteadyStateProblem):
        return DynamicSS(), "Integration finds the stable state that u0 leads to; Newton's iteration may find others."
    if isinstance(prob.f, SplitFunction):
        return KenCarp4(), "The problem is split, so its stiff part is taken implicitly and the other explicitly."
    if isinstance(prob.f, ODEFunction) and prob.f.mass_matrix is not None:
        return Rodas5P(), "The problem has a mass matrix, which Rosenbrock methods take as it is."
    tight = _smallest(reltol, prob) < TIGHT
    if not adaptive:
        return (Vern7() if tight else Tsit5()), "Steps are fixed, by which stiffness cannot be told."
    explicit = "Vern7" if tight else "Tsit5"
    wish = f"reltol {'is below' if tight else 'is not below'} {TIGHT:g}, so {explicit}"
    if isinstance(prob.f, DynamicalODEFunction):
        # symplectic methods need a step that only the user can know
        return (Vern7() if tight else Tsit5()), f"The problem is partitioned and {wish} takes it as a whole."
    states = prob.u0.shape[-1]
    small = states <= SMALL
    stiff = Rodas5P() if small else KenCarp4()
    count = f"{states} state{'' if states == 1 else 's'}"
    why = f"{wish} while a trajectory is not stiff; for {count} {stiff.name} where one is."
    return (AutoVern7(stiff) if tight else AutoTsit5(stiff)), why[0].upper() + why[1:]


def _smallest(tolerance: Any, prob: ODEProblem) -> float:
    try:
        return float(torch.as_tensor(tolerance, dtype=prob.u0.dtype).min())
    except (TypeError, ValueError, RuntimeError):
        raise InputError("reltol must be a number or one number a state", got=repr(tolerance)) from None
