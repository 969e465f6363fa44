"""From samples of a term to the formula that the data choose."""

from __future__ import annotations

from ude.discovery.discover import discover
from ude.discovery.fronts import SearchWarning
from ude.discovery.knowledge import Knowledge
from ude.discovery.library import LibraryRegressor
from ude.discovery.operon import Operon
from ude.discovery.pysr import PySR
from ude.discovery.regressor import Candidate, Samples, SymbolicRegressor
from ude.discovery.result import Discovery
from ude.discovery.selection import SelectionOptions
from ude.discovery.sindy import Sindy

__all__ = [
    "Candidate",
    "Discovery",
    "Knowledge",
    "LibraryRegressor",
    "Operon",
    "PySR",
    "Samples",
    "SearchWarning",
    "SelectionOptions",
    "Sindy",
    "SymbolicRegressor",
    "discover",
]
