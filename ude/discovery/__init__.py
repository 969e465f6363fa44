"""From samples of a term to the formula that the data choose."""

from __future__ import annotations

from ude.discovery.discover import discover
from ude.discovery.library import LibraryRegressor
from ude.discovery.pysr import PySR
from ude.discovery.regressor import Candidate, Samples, SymbolicRegressor
from ude.discovery.result import Discovery
from ude.discovery.selection import SelectionOptions

__all__ = [
    "Candidate",
    "Discovery",
    "LibraryRegressor",
    "PySR",
    "Samples",
    "SelectionOptions",
    "SymbolicRegressor",
    "discover",
]
