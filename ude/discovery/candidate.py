"""What a search for formulas is given and gives back: samples, candidates, and the front of the best of them.

A symbolic regressor is anything with ``search(samples) -> list[Candidate]``. Everything here is shared by all of
them, so that candidates of different searches can be compared: one measure of complexity, one of error, one test of
whether a formula is defined between the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ude.errors import DataError, InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """What one unknown term did along the fitted trajectories.

    inputs: the term's arguments by name, each of shape (N,), in natural units.
    output: the term's value, shape (N,).
    name: the term, for messages.
    nuisance: directions, shape (N, k), that free parameters of the model can take up as well as the term. With
        ``dx/dt = a*x - U(x, y)`` and ``a`` fitted, ``U`` is known only up to a multiple of ``x``, so ``x`` is a
        nuisance column: every search fits it freely and charges nothing for it.
    weights: how much each sample counts, shape (N,), not negative.

    Raises DataError where a number is missing or infinite, or the lengths disagree.

    >>> x = np.linspace(0.1, 3.0, 40)
    >>> samples = ude.search.Samples({"x": x}, 2.0 * x - 0.5 * x**2)
    >>> samples.nuisance.shape, samples.weights.shape
    ((40, 0), (40,))
    """

    inputs: dict[str, Array]
    output: Array
    name: str = "U"
    nuisance: Array = field(default_factory=lambda: np.empty((0, 0)))
    weights: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        output = _column(f"output of {self.name}", self.output)
        size = output.shape[0]
        if size < 2:
            raise DataError(
                f"too few samples of {self.name}",
                expected="at least 2",
                got=str(size),
                fix="Sample the term more densely in time.",
            )
        if not self.inputs:
            raise DataError(f"no inputs for {self.name}", expected="at least one named input", fix="Name an argument.")
        inputs = {key: _column(f"input {key} of {self.name}", value, size) for key, value in self.inputs.items()}
        nuisance = np.asarray(self.nuisance, dtype=np.float64)
        if nuisance.size == 0:
            nuisance = np.empty((size, 0))
        if nuisance.ndim != 2 or nuisance.shape[0] != size:
            raise DataError(
                f"nuisance columns of {self.name}", expected=f"shape ({size}, k)", got=f"shape {nuisance.shape}"
            )
        for index in range(nuisance.shape[1]):
            _column(f"nuisance column {index} of {self.name}", nuisance[:, index], size)
        weights = (
            np.ones(size) if np.size(self.weights) == 0 else _column(f"weights of {self.name}", self.weights, size)
        )
        if np.any(weights < 0) or not np.any(weights > 0):
            raise DataError(f"weights of {self.name}", expected="none negative and some positive", got=str(weights))
        for key, value in {"inputs": inputs, "output": output, "nuisance": nuisance, "weights": weights}.items():
            object.__setattr__(self, key, value)

    @property
    def size(self) -> int:
        return int(self.output.shape[0])


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


def evaluate(expression: sp.Expr, values: Mapping[str, Array | float]) -> Array:
    """The expression's values at arrays (N,) and numbers; NaN or infinite where it is not defined.

    Raises InputError where a symbol has no value.
    """
    names = sorted(str(symbol) for symbol in expression.free_symbols)
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(
            f"cannot evaluate {expression}", expected=f"values for {', '.join(missing)}", got=", ".join(values)
        )
    function = _compiled(expression, tuple(names))
    with np.errstate(all="ignore"):
        result = function(*(np.asarray(values[name], dtype=np.float64) for name in names))
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values())) if values else ()
    return np.array(np.broadcast_to(np.asarray(result, dtype=np.float64), shape))


@lru_cache(maxsize=16384)
def as_text(expression: sp.Expr) -> str:
    """The expression as SymPy prints it, to sort and to tell apart by; printing is slow, and the same ones recur."""
    return str(expression)


@lru_cache(maxsize=4096)
def _compiled(expression: sp.Expr, names: tuple[str, ...]) -> Callable[..., Array]:
    function: Callable[..., Array] = sp.lambdify([sp.Symbol(name) for name in names], expression, modules="numpy")
    return function


def project_out(samples: Samples, columns: Array) -> Array:
    """Columns (N, m) times sqrt(weight), less what the nuisance columns explain of them (Frisch & Waugh 1933)."""
    root = np.sqrt(samples.weights)[:, None]
    weighted = columns * root
    if samples.nuisance.shape[1] == 0:
        return weighted
    nuisance = samples.nuisance * root
    norms = np.linalg.norm(nuisance, axis=0)
    basis, sizes, _ = np.linalg.svd(nuisance[:, norms > 0] / norms[norms > 0], full_matrices=False)
    basis = basis[:, sizes > 1e-12 * max(sizes.max(initial=0.0), 1e-300)]
    return np.asarray(weighted - basis @ (basis.T @ weighted))


def normalized_error(samples: Samples, values: Array) -> float:
    """``|P(y - values)|^2 / |P y|^2`` with P the weighted projection beside the nuisance columns."""
    both = project_out(samples, np.stack([samples.output - values, samples.output], axis=1))
    wrong, whole = float(both[:, 0] @ both[:, 0]), float(both[:, 1] @ both[:, 1])
    if is_negligible(samples):
        return 0.0 if wrong <= whole * (1 + 1e-9) else float("inf")
    return wrong / whole


def is_negligible(samples: Samples) -> bool:
    """Whether the nuisance columns explain the output to rounding, so that the formula 0 is a perfect one."""
    rest = project_out(samples, samples.output[:, None])
    whole = np.sqrt(samples.weights) * samples.output
    return float(np.linalg.norm(rest)) <= 1e-10 * float(np.linalg.norm(whole))


def is_regular(
    expression: sp.Expr, inputs: Mapping[str, Array], constants: Mapping[str, float], points: int = 65
) -> bool:
    """Whether a formula stays finite, and real, everywhere in the box that the inputs span.

    A pole between two samples is invisible at the samples, so the sign of every denominator, logarithm and root is
    followed over a grid of the box and along the path through the samples; a denominator that comes within 1e-6 of
    its largest size counts as a pole.
    """
    values = {name: probe(inputs, name, points) for name in inputs}
    where: dict[str, Array | float] = {**values, **constants}
    for part, kind in _delicate_parts(expression):
        found = evaluate(part, where)
        if not np.all(np.isfinite(found)):
            return False
        if kind == "not negative" and np.any(found < 0):
            return False
        if kind == "positive" and np.any(found <= 0):
            return False
        if kind == "not zero":
            largest = float(np.max(np.abs(found)))
            if np.any(np.abs(found) <= 1e-6 * largest) or (np.any(found > 0) and np.any(found < 0)):
                return False
    return bool(np.all(np.isfinite(evaluate(expression, where))))


def _delicate_parts(expression: sp.Expr) -> list[tuple[sp.Expr, str]]:
    parts: list[tuple[sp.Expr, str]] = []
    for part in sp.preorder_traversal(expression):
        if isinstance(part, sp.Pow) and part.base != sp.E:
            if not part.exp.is_integer:
                parts.append((part.base, "not negative"))
            if part.exp.is_negative or not part.exp.is_number:
                parts.append((part.base, "not zero"))
        elif isinstance(part, sp.log):
            parts.append((part.args[0], "positive"))
        elif isinstance(part, sp.tan):
            parts.append((sp.cos(part.args[0]), "not zero"))
    return parts


def probe(inputs: Mapping[str, Array], name: str, points: int) -> Array:
    """Points of one input: the samples, half-way between them, and a grid of the whole box (a Halton set above 2)."""
    path = np.asarray(inputs[name], dtype=np.float64)
    low, high = float(path.min()), float(path.max())
    index, size = list(inputs).index(name), len(inputs)
    if size <= 2:
        axis = np.linspace(0.0, 1.0, points)
        grid = axis if size == 1 else np.stack(np.meshgrid(axis, axis, indexing="ij"))[index].ravel()
    else:
        corners = np.array(np.meshgrid(*[[0.0, 1.0]] * min(size, 10), indexing="ij")).reshape(min(size, 10), -1)
        corner = corners[index] if index < 10 else np.resize([0.0, 1.0], corners.shape[1])
        grid = np.concatenate([_halton(2000, index), corner])
    return np.concatenate([path, 0.5 * (path[1:] + path[:-1]), low + (high - low) * grid])


def _halton(size: int, index: int) -> Array:
    """The radical inverse of 1..size in the base of the index-th prime (Halton 1960)."""
    base = int(sp.prime(index + 1))
    numbers, result, weight = np.arange(1, size + 1), np.zeros(size), 1.0 / base
    while np.any(numbers > 0):
        result += weight * (numbers % base)
        numbers, weight = numbers // base, weight / base
    return result


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


def thin(samples: Samples, most: int) -> Samples:
    """An even selection of at most so many samples."""
    if samples.size <= most:
        return samples
    rows = np.unique(np.linspace(0, samples.size - 1, most).round().astype(int))
    if not np.any(samples.weights[rows] > 0):
        return samples
    return Samples(
        {name: value[rows] for name, value in samples.inputs.items()},
        samples.output[rows],
        samples.name,
        samples.nuisance[rows],
        samples.weights[rows],
    )


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


def _column(what: str, value: Array, size: int | None = None) -> Array:
    column = np.asarray(value, dtype=np.float64)
    if column.ndim != 1 or (size is not None and column.shape[0] != size):
        wanted = "one number a sample" if size is None else f"shape ({size},)"
        raise DataError(what, expected=wanted, got=f"shape {column.shape}")
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise DataError(
            what,
            expected="finite numbers",
            got=f"{column[bad[0]]} at sample {bad[0]} ({bad.size} in all)",
            fix="Leave those samples out.",
        )
    return column
