"""One formula for every unknown term, as it came out on the observed trajectories."""

from __future__ import annotations

from dataclasses import dataclass

from ude.discovery.candidate import Candidate
from ude.discovery.refit.closed_system import ClosedSystem
from ude.discovery.refit.embedding import EmbeddedFit

SEARCH = "search"


@dataclass(frozen=True)
class Combination:
    """One candidate for every unknown term, fitted together on the observed trajectories.

    candidates: term -> candidate, with the constants as refitted. closed: the system they make.
    complexity: of all terms together, see `joint_complexity`. score: lower is better. held_out_rmse: column -> error
    of simulating on over the held-out times from the fitted initial states; empty where nothing was held out; not used
    for ranking.
    step: "search" for a combination of what the searches found, "dropped c0 of U1 = c0 + c1*x" for one simplified.
    """

    candidates: dict[str, Candidate]
    closed: ClosedSystem
    fit: EmbeddedFit
    complexity: int
    score: float
    held_out_rmse: dict[str, float]
    step: str = SEARCH

    @property
    def rank(self) -> tuple[float, int, str]:
        """By what combinations are sorted, best first."""
        return self.score, self.complexity, str(self)

    def __str__(self) -> str:
        return ", ".join(f"{term} = {candidate.expression}" for term, candidate in self.candidates.items())
