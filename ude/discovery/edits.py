"""Formulas that no search offered, made of those that were: with one more summand, or with a constant less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import sympy as sp

from ude.discovery.candidate import Candidate, merged_constants, rename_constants
from ude.discovery.complexity import complexity


def summand_pool(front: Sequence[Candidate]) -> list[sp.Expr]:
    """What stands behind the constant of every formula ``c0*f`` of a front, simplest first."""
    single = [
        (c, shape)
        for c in front
        if len(c.constants) == 1 and not isinstance(sp.expand(c.expression), sp.Add)
        for shape in [_leading(c)]
        if shape is not None
    ]
    single.sort(key=lambda pair: (pair[0].complexity, pair[0].nmse, str(pair[1])))
    return list(dict.fromkeys(shape for _, shape in single))


def _leading(candidate: Candidate) -> sp.Expr | None:
    """The summand without its constant; None where that stands elsewhere than in front."""
    [name] = candidate.constants
    rest = candidate.expression / sp.Symbol(name)
    return None if rest.has(sp.Symbol(name)) else rest


def with_summand(candidate: Candidate, shape: sp.Expr, value: float) -> Candidate:
    """The formula with another summand, whose constant starts at `value`."""
    added = sp.Symbol("_added")
    values = {sp.Symbol(name): number for name, number in candidate.constants.items()} | {added: value}
    whole = candidate.expression + added * shape
    inputs = [str(symbol) for symbol in whole.free_symbols if symbol not in values]
    expression, constants = rename_constants(whole, values, inputs)
    return replace(
        candidate,
        expression=expression,
        constants=constants,
        complexity=complexity(expression, constants),
        pareto=False,
    )


def simplifications(candidates: Mapping[str, Candidate], at_once: int) -> Iterator[tuple[str, dict[str, Candidate]]]:
    """The combination with one constant, or two, at zero, wherever a formula is left; with what was done in words."""
    constants = [(term, name) for term, candidate in candidates.items() for name in candidate.constants]
    for dropped in combinations(constants, at_once):
        simpler, words = dict(candidates), []
        for term in dict.fromkeys(term for term, _ in dropped):
            names = [name for owner, name in dropped if owner == term]
            smaller = without(simpler[term], names)
            if smaller is None:
                break
            words.append(f"dropped {', '.join(names)} of {term} = {simpler[term].expression}")
            simpler[term] = smaller
        else:
            yield "; ".join(words), simpler


def without(candidate: Candidate, names: Sequence[str]) -> Candidate | None:
    """The formula with constants at zero; None where it is no formula then."""
    expression = candidate.expression.subs(dict.fromkeys(map(sp.Symbol, names), 0))
    if expression.has(sp.nan, sp.zoo, sp.oo):
        return None
    left = {sp.Symbol(name): value for name, value in candidate.constants.items() if name not in names}
    expression, left = merged_constants(expression, left)
    inputs = [str(symbol) for symbol in expression.free_symbols if symbol not in left]
    simple, constants = rename_constants(expression, left, inputs)
    return Candidate(simple, constants, complexity(simple, constants), candidate.nmse, candidate.source)
