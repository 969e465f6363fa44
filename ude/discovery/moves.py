"""Formulas that no search offered, made of those that were: one more summand, where the data leave the choice open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import sympy as sp

from ude.discovery.regressor import Candidate, complexity, rename_constants

_SHARE = 0.1  # of a summand's own constant, with which it joins others


def summand_pool(front: Sequence[Candidate], limit: int) -> list[Candidate]:
    """The simplest formulas of one summand and one constant, ``c0*f``."""
    single = [
        c
        for c in front
        if len(c.constants) == 1 and not isinstance(sp.expand(c.expression), sp.Add) and _leading(c) is not None
    ]
    return sorted(single, key=lambda c: (c.complexity, c.nmse, str(c.expression)))[:limit]


def _leading(candidate: Candidate) -> sp.Expr | None:
    """The summand without its constant; None where that stands elsewhere than in front."""
    [name] = candidate.constants
    rest = candidate.expression / sp.Symbol(name)
    return None if rest.has(sp.Symbol(name)) else rest


def additions(
    candidates: Mapping[str, Candidate], pools: Mapping[str, Sequence[Candidate]]
) -> Iterator[tuple[str, dict[str, Candidate]]]:
    """The combination with one more summand in one term, and in words what was added."""
    for term, candidate in candidates.items():
        ones = dict.fromkeys(map(sp.Symbol, candidate.constants), sp.S.One)
        present = set(sp.Add.make_args(sp.expand(candidate.expression.xreplace(ones))))
        for extra in pools[term]:
            shape = _leading(extra)
            if shape is None or shape in present:
                continue
            [value] = extra.constants.values()
            added = sp.Symbol("_added")
            values = {sp.Symbol(name): number for name, number in candidate.constants.items()}
            values[added] = _SHARE * value
            whole = candidate.expression + added * shape
            inputs = [str(symbol) for symbol in whole.free_symbols if symbol not in values]
            expression, constants = rename_constants(whole, values, inputs)
            grown = replace(
                candidate,
                expression=expression,
                constants=constants,
                complexity=complexity(expression, constants),
                source=f"{candidate.source} + {extra.source}" if candidate.source != extra.source else extra.source,
                pareto=False,
            )
            yield f"added {shape} to {term} = {candidate.expression}", {**candidates, term: grown}
