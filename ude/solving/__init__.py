"""`solve`: validate the arguments, choose an engine, attach the sensitivity, return a `Solution`.

>>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0))
>>> round(float(ude.solving.solve(prob, reltol=1e-8, abstol=1e-8).u[-1, 0]), 6)
0.367879
"""

from ude.engines.return_code import ReturnCode
from ude.solving import fused, steady_state
from ude.solving.default_algorithm import default_algorithm
from ude.solving.ensemble import EnsembleSolution
from ude.solving.gradient_check import GradientCheck, check_gradient
from ude.solving.options import SolveOptions
from ude.solving.solution import Solution
from ude.solving.solve import solve
from ude.solving.statistics import Statistics

__all__ = [
    "EnsembleSolution",
    "GradientCheck",
    "ReturnCode",
    "Solution",
    "SolveOptions",
    "Statistics",
    "check_gradient",
    "default_algorithm",
    "fused",
    "solve",
    "steady_state",
]
