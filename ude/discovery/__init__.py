"""From samples of a term to the formula that the data choose."""

from __future__ import annotations

from ude.discovery.assessment.assessment import Assessment, AssessmentOptions
from ude.discovery.assessment.stability import Equilibrium, Stability
from ude.discovery.assessment.support import Support, TermSupport
from ude.discovery.assessment.verdict import Rival, Verdict
from ude.discovery.candidate import Candidate, SymbolicRegressor
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.discover import discover
from ude.discovery.discovery import Discovery
from ude.discovery.result import SupportWarning
from ude.discovery.samples import Samples
from ude.discovery.saved import SavedDiscovery, load
from ude.discovery.search.fronts import SearchWarning
from ude.discovery.search.library import LibraryRegressor
from ude.discovery.search.operon import Operon
from ude.discovery.search.pysr import PySR
from ude.discovery.search.sindy import SINDy
from ude.discovery.selection.selection import SelectionOptions

__all__ = [
    "Assessment",
    "AssessmentOptions",
    "Candidate",
    "Discovery",
    "Equilibrium",
    "LibraryRegressor",
    "Operon",
    "PySR",
    "Rival",
    "SINDy",
    "Samples",
    "SavedDiscovery",
    "SearchWarning",
    "SelectionOptions",
    "Stability",
    "Support",
    "SupportWarning",
    "SymbolicRegressor",
    "TermConstraints",
    "TermSupport",
    "Verdict",
    "discover",
    "load",
]
