"""Data, losses, derivative matching, shooting and the staged fit."""

from __future__ import annotations

from ude.training.checkpoints import load_fit
from ude.training.collocation import Smoothing, smooth
from ude.training.data import Dataset, Trajectory
from ude.training.fit import Fit, FitOptions, fit
from ude.training.initial_states import InitialValue
from ude.training.readers import read_csv
from ude.training.shooting import SolverOptions
from ude.training.sources import from_dict, from_xarray, read_parquet

__all__ = [
    "Dataset",
    "Fit",
    "FitOptions",
    "InitialValue",
    "Smoothing",
    "SolverOptions",
    "Trajectory",
    "fit",
    "from_dict",
    "from_xarray",
    "load_fit",
    "read_csv",
    "read_parquet",
    "smooth",
]
