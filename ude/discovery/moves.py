"""Formulas that no search offered, made of those that were: with one more summand, or with a constant less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import sympy as sp

from ude.discovery.regressor import Candidate, complexity, merged_constants, rename_constants

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


def simplifications(candidates: Mapping[str, Candidate], at_once: int) -> Iterator[tuple[str, dict[str, Candidate]]]:
    """The combination with one constant, or two, at zero, wherever a formula is left; with what was done in words."""
    constants = [(term, name) for term, candidate in candidates.items() for name in candidate.constants]
    for dropped in combinations(constants, at_once):
        simpler, words = dict(candidates), []
        for term in dict.fromkeys(term for term, _ in dropped):
            names = [name for owner, name in dropped if owner == term]
            smaller = _without(simpler[term], names)
            if smaller is None:
                break
            words.append(f"dropped {', '.join(names)} of {term} = {simpler[term].expression}")
            simpler[term] = smaller
        else:
            yield "; ".join(words), simpler


def _without(candidate: Candidate, names: Sequence[str]) -> Candidate | None:
    expression = candidate.expression.subs(dict.fromkeys(map(sp.Symbol, names), 0))
    if expression.has(sp.nan, sp.zoo, sp.oo):
        return None
    left = {sp.Symbol(name): value for name, value in candidate.constants.items() if name not in names}
    expression, left = merged_constants(expression, left)
    inputs = [str(symbol) for symbol in expression.free_symbols if symbol not in left]
    simple, constants = rename_constants(expression, left, inputs)
    return Candidate(simple, constants, complexity(simple, constants), candidate.nmse, candidate.source)
