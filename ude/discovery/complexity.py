"""How much a formula says: one measure for the formulas of every search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sympy as sp


def complexity(expression: sp.Expr, constants: Sequence[str] | Mapping[str, float] = ()) -> int:
    """Nodes of the expression as a binary tree, + 1 per fitted constant, + 1 per unary function.

    Nodes: a symbol or a number is 1. A sum or product of n parts has n - 1 operators. ``a - b`` and ``a/b`` are one
    operator each, as written by hand: a sign costs nothing, and a reciprocal factor is a division. ``x**2`` is 3
    (base, operator, exponent), ``sqrt(x)`` and ``f(x)`` one more than ``x`` and, being unary functions, 1 extra. A sum
    whose summands all share a factor counts as the shorter of its two writings, ``c0*x + c1*x*y`` as ``x*(c0 + c1*y)``,
    and so does a quotient whose numerator can go into the denominator, ``c0*x**2/(c1 + x**2)`` as ``c0/(1 + c1/x**2)``:
    the charge is for what a formula says. Otherwise Hill's function would cost more than ``c0 + c1/(c2 + x**2)``, of
    which it is a special case.

    ``x*y`` = 3; ``c0*x*y`` = 5 nodes + 1 constant = 6; ``c0*x*y/(c1 + x)`` = 9 nodes + 2 constants = 11;
    ``c0*sin(x)`` = 4 nodes + 1 constant + 1 function = 6.
    """
    names = {str(symbol) for symbol in expression.free_symbols}
    return _nodes(expression) + len(names & set(constants))


def _nodes(expression: sp.Expr) -> int:
    if expression.is_Atom:
        return 1
    if isinstance(expression, sp.Add):
        written = sum(_nodes(part) for part in expression.args) + len(expression.args) - 1
        shared = _shared_factor(expression)
        if shared == 1:
            return written
        rest = sp.Add(*(part / shared for part in expression.args))
        return min(written, _nodes(shared) + 1 + _nodes(rest))
    if isinstance(expression, sp.Mul):
        parts = [part for part in expression.args if part != -1]
        below = [part for part in parts if _is_reciprocal(part)]
        above = [part for part in parts if not _is_reciprocal(part)]
        leading = 0 if above else 2  # the numerator 1 and its division
        written = leading + sum(map(_nodes, above)) + sum(_nodes(1 / part) for part in below) + len(parts) - 1
        return min([written, *(_nodes(other) for other in _divided(parts))])
    if isinstance(expression, sp.Pow):
        if _is_reciprocal(expression):
            return 2 + _nodes(1 / expression)
        if expression.exp == sp.Rational(1, 2):
            return _nodes(expression.base) + 2
        return _nodes(expression.base) + _nodes(expression.exp) + 1
    if len(expression.args) == 1:
        return _nodes(expression.args[0]) + 2
    return sum(_nodes(part) for part in expression.args) + len(expression.args)


def _divided(factors: Sequence[sp.Expr]) -> Iterator[sp.Expr]:
    """A quotient's factors with a power of a symbol taken from the numerator into one sum of the denominator."""
    for below in factors:
        if not (isinstance(below, sp.Pow) and below.exp == -1 and isinstance(below.base, sp.Add)):
            continue
        for factor in factors:
            base, power = factor.as_base_exp()
            if not (base.is_Symbol and power.is_Integer and power > 0):
                continue
            inside = [part.as_powers_dict().get(base, sp.S.Zero) for part in below.base.args]
            taken = min(power, max(inside))
            # a factor of the whole denominator is one to cancel, and a writing that does not costs what it costs
            if taken.is_Integer and taken > 0 >= min(inside):
                divided = sp.Add(*(part / base**taken for part in below.base.args))
                rest = [other for other in factors if other is not below and other is not factor]
                yield sp.Mul(*rest, base ** (power - taken), 1 / divided)


def _shared_factor(total: sp.Add) -> sp.Expr:
    """The product of the factors (no numbers, no divisors) that all summands share; 1 where there is none."""
    shared: dict[sp.Expr, sp.Expr] | None = None
    for part in total.args:
        powers = dict(factor.as_base_exp() for factor in sp.Mul.make_args(part) if not factor.is_number)
        own = {base: power for base, power in powers.items() if power.is_Integer and power > 0}
        shared = own if shared is None else {b: min(p, own[b]) for b, p in shared.items() if b in own}
        if not shared:
            return sp.S.One
    return sp.Mul(*(base**power for base, power in (shared or {}).items()))


def _is_reciprocal(expression: sp.Expr) -> bool:
    return isinstance(expression, sp.Pow) and bool(expression.exp.is_number) and bool(expression.exp.is_negative)
