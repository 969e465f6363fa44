"""Searches for formulas: exact best subsets, Operon, PySR and SINDy, each behind `SymbolicRegressor`."""

from ude.discovery.candidate import Candidate, SymbolicRegressor
from ude.discovery.samples import Samples
from ude.discovery.search.library import LibraryRegressor
from ude.discovery.search.operon import Operon
from ude.discovery.search.pysr import PySR
from ude.discovery.search.sindy import SINDy

__all__ = [
    "Candidate",
    "LibraryRegressor",
    "Operon",
    "PySR",
    "SINDy",
    "Samples",
    "SymbolicRegressor",
]
