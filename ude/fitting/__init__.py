"""Data, losses, noise, derivative matching, shooting and the staged fit."""

from __future__ import annotations

from ude.fitting.data.dataset import Dataset
from ude.fitting.data.readers import from_dict, from_xarray, read_csv, read_parquet
from ude.fitting.data.trajectory import Trajectory
from ude.fitting.fit import fit
from ude.fitting.initial_states import InitialValue
from ude.fitting.noise import Gaussian, LogNormal, NegativeBinomial, NoiseModel, Poisson, RelativeAbsolute, StudentT
from ude.fitting.optimizers.gauss_newton import GaussNewton
from ude.fitting.optimizers.optimizers import LBFGS, Adam, LevenbergMarquardt
from ude.fitting.options import FitOptions
from ude.fitting.penalties import LogNormalPrior, MagnitudePenalty, NormalPrior, ResidualPenalty
from ude.fitting.result import Fit
from ude.fitting.shooting import SolverOptions
from ude.fitting.smoothing import Smoothing, smooth
from ude.fitting.stages.stages import DerivativeMatching, GrowingHorizon, Iteration, MultipleShooting, SingleShooting
from ude.fitting.storage.saved_fit import load_fit
from ude.fitting.tensorboard import TensorBoard
from ude.fitting.uncertainty.ensembles import FitEnsemble, bootstrap, fit_ensemble, multistart
from ude.fitting.uncertainty.intervals import ParameterIntervals, fisher_intervals, profile_intervals

__all__ = [
    "LBFGS",
    "Adam",
    "Dataset",
    "DerivativeMatching",
    "Fit",
    "FitEnsemble",
    "FitOptions",
    "GaussNewton",
    "Gaussian",
    "GrowingHorizon",
    "InitialValue",
    "Iteration",
    "LevenbergMarquardt",
    "LogNormal",
    "LogNormalPrior",
    "MagnitudePenalty",
    "MultipleShooting",
    "NegativeBinomial",
    "NoiseModel",
    "NormalPrior",
    "ParameterIntervals",
    "Poisson",
    "RelativeAbsolute",
    "ResidualPenalty",
    "SingleShooting",
    "Smoothing",
    "SolverOptions",
    "StudentT",
    "TensorBoard",
    "Trajectory",
    "bootstrap",
    "fisher_intervals",
    "fit",
    "fit_ensemble",
    "from_dict",
    "from_xarray",
    "load_fit",
    "multistart",
    "profile_intervals",
    "read_csv",
    "read_parquet",
    "smooth",
]
