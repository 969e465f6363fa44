"""What a formula says, apart from its constants: its summands, and the family of functions that it stands for.

The same family is met in many writings, ``c0*lynx*(c1 + hare)`` and ``c0*hare*lynx + c1*lynx``. Tried twice it costs
twice, takes two places of a ranking, and counts twice where probabilities are shared out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count

import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.evaluation import as_text
from ude.models import to_text

ZERO = "0"


def summands(candidate: Candidate) -> tuple[str, ...]:
    """The summands of a formula as text, without their leading constants: ``c0*x*y + c1*x`` has ``x*y`` and ``x``.

    Constants inside a summand are called K, L, M... in their order, so that equal forms read equal. The formula 0 has
    the one summand "0"; a summand that is a constant alone is "1".
    """
    expanded = sp.expand(candidate.expression)
    if expanded == 0:
        return (ZERO,)
    constants = frozenset(map(sp.Symbol, candidate.constants))
    return tuple(sorted(dict.fromkeys(_named(split(part, constants)[1], constants) for part in parts(expanded))))


def family(candidate: Candidate) -> str:
    """A text that is the same for all writings of one family, and different for different families.

    Where every summand has a leading constant of its own, and every constant within one stands there alone, the
    summands tell the family. Others (``c0*(c1 + x)*(c2 + y)``, four summands with three constants) are told by their
    text, so that a writing may be missed, but no two families are taken for one.
    """
    return _family(candidate.expression, tuple(candidate.constants))


@lru_cache(maxsize=4096)
def _family(expression: sp.Expr, names: tuple[str, ...]) -> str:
    constants = frozenset(map(sp.Symbol, names)) & expression.free_symbols
    fixed: list[sp.Expr] = []
    leading: dict[sp.Expr, sp.Expr] = {}  # rest of a summand -> its coefficient
    for part in parts(sp.expand(expression)):
        coefficient, rest = split(part, constants)
        if coefficient.free_symbols:
            leading[rest] = leading.get(rest, sp.S.Zero) + coefficient
        else:
            fixed.append(part)
    outer = set().union(*(coefficient.free_symbols for coefficient in leading.values()))
    inner = [symbol for rest in (*leading, *fixed) for symbol in rest.free_symbols & constants]
    free = len(set(inner)) == len(inner) and not outer & set(inner) and len(outer) == len(leading)
    if not free or not _independent(list(leading.values()), sorted(outer, key=str)):
        return as_text(expression)
    own = sorted(_named(rest, constants) for rest in leading)
    return " + ".join([*(f"_*({text})" for text in own), *sorted(_named(part, constants) for part in fixed)]) or ZERO


def _independent(coefficients: Sequence[sp.Expr], constants: Sequence[sp.Symbol]) -> bool:
    """Whether the coefficients can take any values near where they are: their Jacobian has full rank."""
    if all(coefficient.is_Symbol for coefficient in coefficients):
        return len(set(coefficients)) == len(coefficients)
    somewhere = {symbol: sp.Rational(sp.prime(i + 3), 7) for i, symbol in enumerate(constants)}
    jacobian = sp.Matrix(coefficients).jacobian(list(constants)).subs(somewhere)
    return not jacobian.has(sp.nan, sp.zoo, sp.oo) and int(jacobian.rank()) == len(coefficients)


def parts(expanded: sp.Expr) -> tuple[sp.Expr, ...]:
    return () if expanded == 0 else sp.Add.make_args(expanded)


def split(part: sp.Expr, constants: frozenset[sp.Symbol]) -> tuple[sp.Expr, sp.Expr]:
    """(coefficient of numbers and constants alone, rest) of a summand."""
    factors = sp.Mul.make_args(part)
    leading = [factor for factor in factors if factor.is_number or factor.free_symbols <= constants]
    return sp.Mul(*leading), sp.Mul(*[factor for factor in factors if factor not in leading])


def _named(rest: sp.Expr, constants: frozenset[sp.Symbol]) -> str:
    inner = sorted((symbol for symbol in rest.free_symbols if symbol in constants), key=str)
    letters = (letter for letter in _letters() if sp.Symbol(letter) not in rest.free_symbols)
    renamed: Mapping[sp.Symbol, sp.Symbol] = {symbol: sp.Symbol(next(letters)) for symbol in inner}
    return to_text(rest.xreplace(renamed))


def _letters() -> Iterator[str]:
    yield from ("K", "L", "M", "N_", "P", "Q")
    yield from (f"K{i}" for i in count(1))
