"""Which candidates are worth putting back into the equations, as far as the samples of the networks tell."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log

import numpy as np

from ude.discovery.candidate import Candidate
from ude.discovery.evaluation import as_text

NETWORK_ERROR = 0.1  # relative error that a trained network is taken to have
NEAR = 0.1  # normalized squared error below which a simple candidate is worth a trial whatever else there is


def score(sse: float, n: int, complexity: int, floor: float) -> float:
    """``N log(SSE/N + floor^2) + complexity log N``; infinite for a fit that did not come off."""
    return n * log(sse / n + floor**2) + complexity * log(n) if np.isfinite(sse) else inf


def shortlist(candidates: Sequence[Candidate], limit: int, n: int) -> list[Candidate]:
    """The ``limit`` candidates worth putting back into the equations, simplest first; and 0, where it is offered.

    Half of them are the best by ``n log(nmse + NETWORK_ERROR^2) + complexity log n``: n is the number of *observed*
    numbers (that many independent facts went into the samples, however many samples there are), and closeness beyond
    the relative error of a trained network earns little. That error is smooth, hence easily fitted by more terms, and
    with noisy data larger than usual; so the other half are simply the simplest that are near at all (``NEAR``).
    Where even the closest is far from the samples (derivatives of noisy data), its error is taken for theirs.
    """
    nothing = [c for c in candidates if c.expression == 0][:1]  # far from any network, and the truth at times
    candidates = [c for c in candidates if c.expression != 0]
    least = min((c.nmse for c in candidates), default=0.0)
    order = sorted(candidates, key=lambda c: closeness(c, n, max(NETWORK_ERROR, least**0.5)))
    chosen = order[: (limit + 1) // 2]
    close = sorted(near(candidates), key=lambda c: (c.complexity, c.nmse, as_text(c.expression)))
    chosen += [c for c in close if c not in chosen][: limit - len(chosen)]
    chosen += [c for c in order if c not in chosen][: limit - len(chosen)]
    return nothing + sorted(chosen, key=lambda c: (c.complexity, c.nmse, as_text(c.expression)))


def near(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are near the samples at all: as near as ``NEAR``, or half as near as the closest."""
    least = min((c.nmse for c in candidates), default=0.0)
    return [c for c in candidates if c.nmse <= max(NEAR, 2.0 * least)]


def closeness(candidate: Candidate, n: int, error: float = NETWORK_ERROR) -> tuple[float, str]:
    return score(candidate.nmse * n, n, candidate.complexity, error), as_text(candidate.expression)
