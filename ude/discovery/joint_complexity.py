"""How complex the formulas of several unknown terms are together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.canonical_form import parts, split
from ude.discovery.complexity import complexity


def joint_complexity(candidates: Mapping[str, Candidate]) -> int:
    """Complexity of all the formulas together, with what several of them share written out once.

    What one quantity loses another gains: a predator grows by the encounters in which prey dies, and the product of a
    reaction appears at the rate at which its educts go. A system with ``c0*x*y`` in both equations says less than one
    with ``c0*x*y`` and ``c0*y``, as it says the rate once; counted apart, the second would cost less, and with few and
    noisy data would win by that alone. Shared is what summands of different formulas have in common apart from their
    leading constants, when it holds no constant of its own and is more than a single input; the first formula writes
    it out, in the others it counts as one node.

    U1 = ``c0*x*y``, U2 = ``c0*x*y``: 6 + 4 = 10, as for U1 = ``c0*x*y``, U2 = ``c0*y``.
    """
    apart = sum(candidate.complexity for candidate in candidates.values())
    if len(candidates) < 2:
        return apart
    constants = {term: frozenset(map(sp.Symbol, candidate.constants)) for term, candidate in candidates.items()}
    written = {
        term: [split(part, constants[term]) for part in parts(sp.expand(candidate.expression))]
        for term, candidate in candidates.items()
    }
    uses = Counter(
        rest for term, own in written.items() for rest in {r for _, r in own if not r.free_symbols & constants[term]}
    )
    shared = {rest: sp.Dummy() for rest, times in uses.items() if times > 1 and not rest.is_Atom}
    if not shared:
        return apart
    together = sum(complexity(rest) - 1 for rest in shared)
    for term, own in written.items():
        formula = sp.Add(*(coefficient * shared.get(rest, rest) for coefficient, rest in own))
        together += complexity(formula, candidates[term].constants)
    return min(apart, together)
