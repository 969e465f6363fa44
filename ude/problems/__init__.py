"""What is to be solved: right-hand side, initial state, time span, parameters, measured inputs."""

from ude.problems.dynamical import DynamicalODEProblem, SecondOrderODEProblem
from ude.problems.function import ODEFunction
from ude.problems.interpolation import Interpolation
from ude.problems.ode import ODEProblem, Parameters, remake
from ude.problems.split import SplitODEProblem

__all__ = [
    "DynamicalODEProblem",
    "Interpolation",
    "ODEFunction",
    "ODEProblem",
    "Parameters",
    "SecondOrderODEProblem",
    "SplitODEProblem",
    "remake",
]
