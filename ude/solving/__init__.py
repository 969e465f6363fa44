"""`solve`: validate the request, choose an engine, attach the sensitivity, return a `Solution`."""

from ude.engines.return_code import ReturnCode
from ude.solving.default_algorithm import default_algorithm
from ude.solving.ensemble import EnsembleProblem, EnsembleSolution
from ude.solving.gradient_check import GradientCheck, check_gradient
from ude.solving.solution import Solution, Statistics
from ude.solving.solve import solve
from ude.solving.steady_state import DynamicSS, SSRootfind, SteadyStateProblem, TerminateSteadyState

__all__ = [
    "DynamicSS",
    "EnsembleProblem",
    "EnsembleSolution",
    "GradientCheck",
    "ReturnCode",
    "SSRootfind",
    "Solution",
    "Statistics",
    "SteadyStateProblem",
    "TerminateSteadyState",
    "check_gradient",
    "default_algorithm",
    "solve",
]
