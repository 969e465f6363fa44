"""From samples of a term to the formula that the data choose."""

from __future__ import annotations

from ude.discovery.belief import Belief, BeliefOptions
from ude.discovery.discover import discover
from ude.discovery.fronts import SearchWarning
from ude.discovery.knowledge import Knowledge
from ude.discovery.library import LibraryRegressor
from ude.discovery.operon import Operon
from ude.discovery.pysr import PySR
from ude.discovery.regressor import Candidate, Samples, SymbolicRegressor
from ude.discovery.result import Discovery, SupportWarning
from ude.discovery.saved import SavedDiscovery, load
from ude.discovery.selection import SelectionOptions
from ude.discovery.sindy import Sindy
from ude.discovery.stability import Equilibrium, Stability
from ude.discovery.support import Support, TermSupport
from ude.discovery.verdict import Rival, Verdict

__all__ = [
    "Belief",
    "BeliefOptions",
    "Candidate",
    "Discovery",
    "Equilibrium",
    "Knowledge",
    "LibraryRegressor",
    "Operon",
    "PySR",
    "Rival",
    "Samples",
    "SavedDiscovery",
    "SearchWarning",
    "SelectionOptions",
    "Sindy",
    "Stability",
    "Support",
    "SupportWarning",
    "SymbolicRegressor",
    "TermSupport",
    "Verdict",
    "discover",
    "load",
]
