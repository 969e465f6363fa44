"""Problems: right-hand side, initial state, time span, parameters, and measured inputs.

>>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, u0=[1.0], tspan=(0.0, 1.0), p=dict(k=2.0))
>>> float(ude.remake(prob, p=dict(k=3.0)).p.k)
3.0
"""

from ude.problems.dynamical import DynamicalODEProblem, SecondOrderODEProblem
from ude.problems.ensemble import EnsembleProblem
from ude.problems.function import ODEFunction
from ude.problems.interpolation import Interpolation
from ude.problems.ode import ODEProblem, Parameters, remake
from ude.problems.split import SplitODEProblem
from ude.problems.steady_state import SteadyStateProblem

__all__ = [
    "DynamicalODEProblem",
    "EnsembleProblem",
    "Interpolation",
    "ODEFunction",
    "ODEProblem",
    "Parameters",
    "SecondOrderODEProblem",
    "SplitODEProblem",
    "SteadyStateProblem",
    "remake",
]
