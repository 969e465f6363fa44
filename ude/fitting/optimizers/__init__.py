"""Adam, L-BFGS, Levenberg-Marquardt and Gauss-Newton behind one protocol."""

from ude.fitting.optimizers.gauss_newton import GaussNewton
from ude.fitting.optimizers.optimizers import LBFGS, Adam, LevenbergMarquardt

__all__ = [
    "LBFGS",
    "Adam",
    "GaussNewton",
    "LevenbergMarquardt",
]
