"""What a search for formulas gives back: candidates, and the front of the best of them.

A symbolic regressor is anything with ``search(samples) -> list[Candidate]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import sympy as sp

from ude.discovery.evaluation import Array, as_text, evaluate
from ude.discovery.samples import Samples, is_negligible, project_out


@dataclass(frozen=True)
class Candidate:
    """One formula for one term.

    expression: in the input names and in constants, all of them SymPy symbols.
    constants: the value of each constant that was fitted, by name ("c0", "c1", ...).
    complexity: see `complexity`.
    nmse: weighted squared error on the samples over the weighted square of the output, both after the nuisance
        directions have been fitted; 1 for the formula 0, 0 for a perfect one.
    source: which search found it.
    pareto: no other candidate of the search is both simpler and closer.

    >>> x = np.linspace(0.1, 3.0, 40)
    >>> samples = ude.search.Samples({"x": x}, 2.0 * x - 0.5 * x**2)
    >>> front = ude.search.LibraryRegressor(degree=2, unary=False, atoms=False).search(samples)
    >>> simplest = front[0]
    >>> simplest.complexity <= front[-1].complexity, simplest.nmse >= 0.0
    (True, True)
    """

    expression: sp.Expr
    constants: dict[str, float]
    complexity: int
    nmse: float
    source: str
    pareto: bool = False

    @property
    def substituted(self) -> sp.Expr:
        """The formula with its constants put in."""
        return self.expression.subs({sp.Symbol(name): sp.Float(value) for name, value in self.constants.items()})

    def evaluate(self, inputs: Mapping[str, Array]) -> Array:
        """The formula's values, shape (N,), on inputs of shape (N,)."""
        return evaluate(self.expression, {**inputs, **self.constants})


@runtime_checkable
class SymbolicRegressor(Protocol):
    """A search for formulas: candidates, simplest first, those on the Pareto front marked."""

    def search(self, samples: Samples) -> list[Candidate]: ...


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other is both as simple and as close as, simplest first, marked ``pareto=True``."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.complexity, c.nmse, as_text(c.expression))):
        if not front or candidate.nmse < front[-1].nmse:
            front.append(replace(candidate, pareto=True))
    return front


def mark_pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All the candidates, simplest first, with ``pareto`` set where one is on the front."""
    front = {(c.complexity, c.nmse, as_text(c.expression)) for c in pareto_front(candidates)}
    ordered = sorted(candidates, key=lambda c: (c.complexity, c.nmse, as_text(c.expression)))
    return [replace(c, pareto=(c.complexity, c.nmse, as_text(c.expression)) in front) for c in ordered]


def zero_formula(samples: Samples, source: str) -> Candidate:
    """The formula 0, which every search offers."""
    return Candidate(sp.S.Zero, {}, 1, 0.0 if is_negligible(samples) else 1.0, source)


def distinct(candidates: Sequence[Candidate], samples: Samples, tolerance: float = 1e-7) -> list[Candidate]:
    """One candidate, the simplest, of those that have the same values on the samples.

    tolerance: relative difference of norms below which values are the same. Nuisance directions are no difference.
    """
    kept: list[tuple[Candidate, Array]] = []
    for candidate in sorted(candidates, key=lambda c: (c.complexity, c.nmse, as_text(c.expression))):
        values = project_out(samples, candidate.evaluate(samples.inputs)[:, None])[:, 0]
        size = float(np.linalg.norm(values))
        if all(np.linalg.norm(values - other) > tolerance * size or size == 0.0 for _, other in kept):
            kept.append((candidate, values))
    return [candidate for candidate, _ in kept]


def rename_constants(
    expression: sp.Expr, values: Mapping[sp.Symbol, float], taken: Sequence[str]
) -> tuple[sp.Expr, dict[str, float]]:
    """Call the constants c0, c1, ... in order, skipping names that inputs have taken."""
    free = (name for name in (f"c{index}" for index in count()) if name not in taken)
    names = {symbol: next(free) for symbol in values if symbol in expression.free_symbols}
    renamed = expression.xreplace({symbol: sp.Symbol(name) for symbol, name in names.items()})
    return renamed, {name: float(values[symbol]) for symbol, name in names.items()}


def merged_constants(expression: sp.Expr, values: Mapping[sp.Symbol, float]) -> tuple[sp.Expr, dict[sp.Symbol, float]]:
    """Constants and numbers that always stand together as one constant: ``c0*sin(1)*x -> c*x``, ``x + c0/c1 -> x + c``.

    values: the value of each constant. Constants that stand elsewhere as well are left as they are.
    """
    merged = dict(values)

    def fold(parts: tuple[sp.Expr, ...], build: Callable[..., sp.Expr]) -> sp.Expr:
        alone = [part for part in parts if part.free_symbols <= set(merged)]
        lump = build(*alone)
        own = lump.free_symbols
        rest = [part for part in parts if part not in alone]
        private = all(_occurrences(expression, symbol) == _occurrences(lump, symbol) for symbol in own)
        if not own or lump.is_Symbol or not private:
            return build(*parts)
        value = complex(lump.subs({symbol: merged[symbol] for symbol in own}))
        if value.imag != 0.0 or not np.isfinite(value.real):
            return build(*parts)
        symbol = min(own, key=str)
        merged[symbol] = value.real
        return build(symbol, *rest)

    def walk(part: sp.Expr) -> sp.Expr:
        if not part.args:
            return part
        inner = tuple(part.args if part.free_symbols <= set(merged) else map(walk, part.args))
        return fold(inner, part.func) if isinstance(part, sp.Add | sp.Mul) else part.func(*inner)

    result = walk(expression)
    if result.free_symbols and result.free_symbols <= set(merged) and not result.is_Symbol:  # a constant as a whole
        value = complex(result.subs({symbol: merged[symbol] for symbol in result.free_symbols}))
        symbol = min(result.free_symbols, key=str)
        if value.imag == 0.0 and np.isfinite(value.real):
            merged[symbol], result = value.real, symbol
    return result, {symbol: value for symbol, value in merged.items() if symbol in result.free_symbols}


def _occurrences(expression: sp.Expr, symbol: sp.Symbol) -> int:
    return sum(1 for node in sp.preorder_traversal(expression) if node == symbol)
