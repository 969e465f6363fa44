"""The method that `solve` uses when none is given, and why."""

from __future__ import annotations

from typing import Any

import torch

from ude.errors import InputError
from ude.methods import Algorithm, AutoTsit5, AutoVern7, KenCarp4, Rodas5P, Tsit5, Vern7
from ude.problems.dynamical import DynamicalODEFunction
from ude.problems.function import ODEFunction
from ude.problems.ode import ODEProblem
from ude.problems.split import SplitFunction
from ude.problems.steady_state import SteadyStateProblem
from ude.solving.options import DEFAULTS, SolveOptions
from ude.solving.steady_state import FEW_STATES, DynamicSS

# Below this relative tolerance the higher order pays off (OrdinaryDiffEq.jl changes to Vern7 at 1e-6 too).
TIGHT = 1e-6


def default_algorithm(prob: ODEProblem, options: SolveOptions = DEFAULTS) -> tuple[Algorithm, str]:
    """Choose a method for a problem.

    The methods that switch take the steps of `Tsit5` or `Vern7` until a trajectory is found to be stiff, so that a
    problem that is not stiff costs the same as with those.

    Args:
        prob: The problem.
        options: As for `solve`, of which reltol and adaptive count.

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
    tight = _smallest(options.reltol, prob) < TIGHT
    if not options.adaptive:
        return (Vern7() if tight else Tsit5()), "Steps are fixed, so that stiffness cannot be detected."
    explicit = "Vern7" if tight else "Tsit5"
    choice = f"reltol {'is below' if tight else 'is not below'} {TIGHT:g}, so {explicit}"
    if isinstance(prob.f, DynamicalODEFunction):
        # symplectic methods need a step size that only the user can choose
        return (Vern7() if tight else Tsit5()), f"The problem is partitioned and {choice} takes it as a whole."
    states = prob.state_axes(shared_steps=options.shared_steps).size
    small = states <= FEW_STATES
    stiff = Rodas5P() if small else KenCarp4()
    count = f"{states} state{'' if states == 1 else 's'}"
    why = f"{choice} while a trajectory is not stiff; for {count} {stiff.name} where one is."
    return (AutoVern7(stiff) if tight else AutoTsit5(stiff)), why[0].upper() + why[1:]


def _smallest(tolerance: Any, prob: ODEProblem) -> float:
    try:
        return float(torch.as_tensor(tolerance, dtype=prob.u0.dtype).min())
    except (TypeError, ValueError, RuntimeError):
        raise InputError("reltol must be one number or one number for each state", got=repr(tolerance)) from None
