"""Data, losses, noise, derivative matching, shooting and the staged fit."""

from __future__ import annotations

from ude.training.checkpoints import load_fit
from ude.training.collocation import Smoothing, smooth
from ude.training.data import Dataset, Trajectory
from ude.training.ensembles import FitEnsemble, bootstrap, fit_ensemble, multistart
from ude.training.fit import fit
from ude.training.gauss_newton import GaussNewton
from ude.training.initial_states import InitialValue
from ude.training.noise import (
    Gaussian,
    LogNormal,
    NegativeBinomial,
    NoiseModel,
    Poisson,
    RelativeAbsolute,
    StudentT,
)
from ude.training.optimisers import LBFGS, Adam, LevenbergMarquardt
from ude.training.options import FitOptions
from ude.training.penalties import LogNormalPrior, NormalPrior, Residual, Smallness
from ude.training.readers import read_csv
from ude.training.result import Fit
from ude.training.shooting import SolverOptions
from ude.training.sources import from_dict, from_xarray, read_parquet
from ude.training.stages import DerivativeMatching, GrowingHorizon, Iteration, MultipleShooting, SingleShooting
from ude.training.tensorboard import TensorBoard
from ude.training.uncertainty import ParameterIntervals, fisher_intervals, profile_intervals

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
    "MultipleShooting",
    "NegativeBinomial",
    "NoiseModel",
    "NormalPrior",
    "ParameterIntervals",
    "Poisson",
    "RelativeAbsolute",
    "Residual",
    "SingleShooting",
    "Smallness",
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
