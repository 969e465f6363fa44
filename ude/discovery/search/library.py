"""Exact best-subset search over a library of terms: the search that is always there, fast, and gives one answer.

The formula is a sum of at most ``max_terms`` library columns, each times a constant. Columns are *fixed* (monomials,
``sin(x)``, ``1/x``, ``x*|x|``...) or *atoms* with inner constants (``x/(K + x)``, ``exp(-k*x)``, ``sin(k*x)``, times
small monomials), which enter the search once for each value on a grid of the inner constants. All subsets are compared
through the Gram matrix of the normalized columns, after the nuisance directions have been projected out of columns and
target (Frisch & Waugh 1933), so that no subset costs more than a few multiplications; only the best subsets of each
size and kind are then polished by variable projection (Golub & Pereyra 1973).

Compared subsets: every pair of columns; and, for three and more terms, every set of fixed columns and every set of
fixed columns with one atom. (Three atoms at once are left out: on a few hundred smooth samples they fit anything.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, combinations_with_replacement
from math import comb

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ude.discovery.candidate import Candidate, distinct, mark_pareto, rename_constants, zero_formula
from ude.discovery.complexity import complexity
from ude.discovery.constraints.term_constraints import TermConstraints, operators_of
from ude.discovery.evaluation import Array, is_regular
from ude.discovery.samples import Samples, is_negligible, normalized_error, project_out, thin
from ude.errors import InputError

_COLLINEAR = 1e-9  # squared sine of the angle between a column and the others below which the subset is no basis


@dataclass(frozen=True)
class Column:
    """A library term: a SymPy template in the inputs and its inner constants, and the grid of those (grid, inner)."""

    template: sp.Expr
    inner: tuple[sp.Symbol, ...] = ()
    grid: Array | None = None

    @property
    def fixed(self) -> bool:
        return not self.inner

    def values(self, inputs: dict[str, Array], inner: Array | None = None) -> Array:
        """The term at the samples for rows of inner constants, shape (N, rows); one column where it is fixed."""
        function = _compiled(self.template, tuple(inputs), self.inner)
        rows = np.empty((1, 0)) if inner is None else np.atleast_2d(inner)
        with np.errstate(all="ignore"):
            result = function(*(value[:, None] for value in inputs.values()), *rows.T)
        size = len(next(iter(inputs.values())))
        return np.array(np.broadcast_to(np.asarray(result, dtype=np.float64), (size, rows.shape[0])))


@lru_cache(maxsize=4096)
def _compiled(template: sp.Expr, names: tuple[str, ...], inner: tuple[sp.Symbol, ...]) -> Callable[..., Array]:
    function: Callable[..., Array] = sp.lambdify([*(sp.Symbol(name) for name in names), *inner], template, "numpy")
    return function


@dataclass(frozen=True)
class LibraryRegressor:
    """Exact best-subset search (see the module's own text); implements `SymbolicRegressor`.

    degree: highest degree of the monomials; None chooses 4, 3, 3, 2, 2... for 1, 2, 3, 4, 5... inputs.
    max_terms: largest number of terms in a sum, 1 to 4.
    unary: whether to offer sin, cos, exp, log, sqrt, 1/x, |x| where they are defined on the samples' range.
    atoms: whether to offer the terms with inner constants.
    grid: values of an inner constant on its grid.
    keep: how many subsets of each size to polish, for those without and with an atom each; twice as many of two fixed
        columns, and all single ones.
    max_samples: above this, an even selection of the samples is used to compare subsets (all are used to polish).
    constraints: leaves columns out that they exclude, see `informed`.

    Raises InputError where an option is out of range. Deterministic.

    >>> x = np.linspace(0.1, 3.0, 40)
    >>> samples = ude.search.Samples({"x": x}, 2.0 * x - 0.5 * x**2)
    >>> front = ude.search.LibraryRegressor(degree=3, unary=False, atoms=False).search(samples)
    >>> best = min(front, key=lambda candidate: candidate.nmse)
    >>> sorted(round(value, 6) for value in best.constants.values())
    [-0.5, 2.0]
    """

    degree: int | None = None
    max_terms: int = 4
    unary: bool = True
    atoms: bool = True
    grid: int = 24
    keep: int = 8
    max_samples: int = 400
    constraints: TermConstraints | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_terms <= 4:
            raise InputError("LibraryRegressor(max_terms)", expected="1, 2, 3 or 4", got=str(self.max_terms))
        if self.degree is not None and self.degree < 1:
            raise InputError("LibraryRegressor(degree)", expected="None or 1 and above", got=str(self.degree))
        for name in ("grid", "keep", "max_samples"):
            if getattr(self, name) < 1 + (name == "grid"):
                raise InputError(
                    f"LibraryRegressor({name})", expected="a positive number", got=str(getattr(self, name))
                )

    def search(self, samples: Samples) -> list[Candidate]:
        """Distinct candidates, simplest first, the Pareto front marked; the formula 0 is always among them."""
        found = [zero_formula(samples, "library")]
        if not is_negligible(samples):
            columns = self.library(samples.inputs)
            for subset in best_subsets(columns, thin(samples, self.max_samples), self.max_terms, self.keep):
                candidate = polish(subset, samples)
                if candidate is not None:
                    found.append(candidate)
        return mark_pareto(distinct(found, samples))

    def informed(self, constraints: TermConstraints) -> LibraryRegressor:
        """The same search with less to look through."""
        return replace(self, constraints=constraints)

    def _offers(self, column: Column) -> bool:
        """Whether a column may stand in a formula by itself; what only sums may not do is left to the filter."""
        known = self.constraints
        return known is None or all(known.allows(name) for name in operators_of(column.template) - {"*"})

    def library(self, inputs: dict[str, Array]) -> list[Column]:
        """The columns offered for these inputs: those that are finite, and not constant where they need not be."""
        varying = {name: value for name, value in inputs.items() if np.ptp(value) > 1e-12 * np.max(np.abs(value))}
        degree = self.degree or {0: 1, 1: 4, 2: 3, 3: 3}.get(len(varying), 2)
        columns = [Column(template) for template in _monomials(list(varying), degree)]
        if self.unary:
            columns += [Column(template) for template in _unary_templates(varying)]
        if self.atoms:
            columns += list(_atoms(varying, self.grid))
        return [column for column in columns if self._offers(column)]


# ---- the library ----------------------------------------------------------------------------------------------------


def _monomials(names: Sequence[str], degree: int) -> list[sp.Expr]:
    symbols = [sp.Symbol(name) for name in names]
    return [sp.Mul(*parts) for d in range(degree + 1) for parts in combinations_with_replacement(symbols, d)]


def _unary_templates(inputs: dict[str, Array]) -> Iterator[sp.Expr]:
    """Functions of one input, and those times another input, where they are defined and not out of all proportion.

    Of products of two functions only those of sines and cosines: others are rare, and every column costs time.
    """
    for name, value in inputs.items():
        x, low, high = sp.Symbol(name), float(value.min()), float(value.max())
        size = max(abs(low), abs(high))
        functions: list[sp.Expr] = []
        if 0.3 <= size <= 50.0:  # an angle in radians; below that sin(x) is x, far above it is noise
            functions += [sp.sin(x), sp.cos(x)]
        if 0.1 <= size <= 20.0:
            functions += [sp.exp(x), sp.exp(-x)]
        if low >= 0:
            functions.append(sp.sqrt(x))
        # A pole just outside the samples makes a formula that explodes on the next trajectory, and near which it can
        # imitate anything; so it must lie at least a tenth of the largest input away.
        if low > 0.1 * size:
            functions.append(sp.log(x))
        if low > 0.1 * size or high < -0.1 * size:
            functions += [1 / x, 1 / x**2]
        if low < 0 < high:
            functions += [sp.Abs(x), x * sp.Abs(x)]
        for function in functions:
            yield function
            for other in inputs:
                if other != name:
                    yield sp.Symbol(other) * function
    angles = [name for name, value in inputs.items() if 1.0 <= np.max(np.abs(value)) <= 50.0]
    for first, second in combinations(map(sp.Symbol, angles), 2):  # coupled oscillators; sin(x - y) is two of these
        for one in (sp.sin, sp.cos):
            for two in (sp.sin, sp.cos):
                yield one(first) * two(second)


def _atoms(inputs: dict[str, Array], size: int) -> Iterator[Column]:
    """Terms with inner constants, each with the grid on which the search meets it; K and L are scales, k a rate."""
    big, small, rate, wave = sp.Symbol("_K"), sp.Symbol("_L"), sp.Symbol("_k"), sp.Symbol("_w")
    spread = np.geomspace(0.03, 30.0, size)
    few = np.geomspace(0.05, 20.0, max(3, size // 3))
    for name, value in inputs.items():
        x, top, positive = sp.Symbol(name), float(np.max(np.abs(value))), _not_negative(value)
        others = [sp.Symbol(other) for other in inputs if other != name]
        pairs = [sp.Mul(*pair) for pair in combinations(others, 2)] if len(inputs) <= 3 else []
        scales = (top * spread)[:, None]
        for factor in [sp.S.One, *others, *pairs]:
            if positive:
                yield Column(factor * x / (big + x), (big,), scales)
                yield Column(factor / (big + x), (big,), scales)
            # the square of a scale is one constant, so that c0 + x**2 is not charged for a power it need not have
            yield Column(factor * x**2 / (big + x**2), (big,), scales**2)
            yield Column(factor * x / (big + x**2), (big,), scales**2)
            yield Column(factor / (big + x**2), (big,), scales**2)
            for power in (sp.S.One, x) if positive else (sp.S.One,):
                yield Column(factor * power * sp.exp(-rate * x), (rate,), (spread / top)[:, None])
            if not positive:
                yield Column(factor * sp.exp(rate * x), (rate,), (spread / top)[:, None])
            if value.min() > 0.02 * top:  # Arrhenius: far from the pole, with the barrier up to some ten times x
                yield Column(factor * sp.exp(-big / x), (big,), scales)
            waves = (2 * np.pi / float(np.ptp(value)) * np.linspace(0.15, 6.0, 2 * size))[:, None]
            yield Column(factor * sp.sin(wave * x), (wave,), waves)
            yield Column(factor * sp.cos(wave * x), (wave,), waves)
        if positive:
            haldane = _mesh(top * few, top * few)
            for factor in [sp.S.One, *others]:
                yield Column(factor * x / (big + x + x**2 / small), (big, small), haldane)
    for first, second in combinations([name for name, value in inputs.items() if _not_negative(value)], 2):
        x, y = sp.Symbol(first), sp.Symbol(second)
        tops = float(np.max(inputs[first])), float(np.max(inputs[second]))
        saturation = _mesh(tops[0] * few, tops[1] * few)
        yield Column(x * y / ((big + x) * (small + y)), (big, small), saturation)
        ratio = (tops[0] / tops[1] * np.geomspace(0.1, 10.0, size))[:, None]
        yield Column(x * y / (x + big * y), (big,), ratio)
        for one, other, scale in ((x, y, tops), (y, x, tops[::-1])):
            inhibition = _mesh(scale[0] * few, scale[1] * few)
            yield Column(one / ((big + one) * (small + other)), (big, small), inhibition)
            competition = _mesh(scale[0] * few, scale[0] / scale[1] * few)
            yield Column(one / (big + one + small * other), (big, small), competition)


def _not_negative(value: Array) -> bool:
    """Whether an input is a quantity that is not negative, such as a concentration.

    A fitted trajectory may end a little below zero, which must not cost the saturating atoms. They stay defined: their
    inner constants are at least 3 % of the largest value, and what is negative is less than 1 %.
    """
    return bool(value.min() >= -0.01 * value.max())


def _mesh(first: Array, second: Array) -> Array:
    return np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)


# ---- comparing subsets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subset:
    """Library columns that together explain the share ``gain`` of the target, with the grid values of their atoms."""

    columns: tuple[Column, ...]
    inner: tuple[Array, ...]
    gain: float


@dataclass(frozen=True)
class _Gram:
    """Inner products of the normalized columns; the columns of one family (a library entry) stand side by side."""

    families: list[Column]
    starts: NDArray[np.intp]  # (families,) index of each family's first column
    inner: list[Array]  # inner constants of every column
    matrix: Array  # (P, P)
    target: Array  # (P,) inner products with the normalized target
    fixed: int  # the first so many columns are fixed ones


def best_subsets(columns: Sequence[Column], samples: Samples, max_terms: int, keep: int) -> list[Subset]:
    """The best ``keep`` (see `LibraryRegressor`) subsets of every size, with atoms and without, no family twice."""
    gram = _gram(columns, samples)
    if gram is None:
        return []
    # All fixed columns, of which other formulas are made later, and twice as many pairs of them as of others: they cost
    # least and, simplest being best, are the likeliest.
    found = _best(iter([_fixed_singles(gram)]), gram.fixed, gram) + _best(_atom_singles(gram), keep, gram)
    limit = min(max_terms, samples.size - samples.nuisance.shape[1] - 1)
    if limit >= 2:
        found += _best(_pairs(gram), keep, gram)
    for size in range(2, limit + 1):
        if comb(gram.fixed, size) <= 300_000:
            found += _best(_fixed_sets(gram, size, keep), 2 * keep if size == 2 else keep, gram)
        if size > 2 and comb(gram.fixed, size - 1) * len(gram.target) <= 30_000_000:
            found += _best(_sets_with_atom(gram, size, keep), keep, gram)
    unique = {members: gain for gain, members in found}
    order = np.asarray(gram.starts)
    family_of = [int(np.searchsorted(order, index, side="right")) - 1 for index in range(len(gram.target))]
    return [
        Subset(tuple(gram.families[family_of[i]] for i in members), tuple(gram.inner[i] for i in members), gain)
        for members, gain in sorted(unique.items(), key=lambda item: (len(item[0]), -item[1], item[0]))
    ]


def _gram(columns: Sequence[Column], samples: Samples) -> _Gram | None:
    blocks, families, starts, inner = [], [], [], []
    ordered = sorted(columns, key=lambda column: not column.fixed)
    total = fixed = 0
    for column in ordered:
        grid = np.empty((1, 0)) if column.grid is None else column.grid
        raw = column.values(samples.inputs, grid)
        with np.errstate(all="ignore"):
            before = np.linalg.norm(raw * np.sqrt(samples.weights)[:, None], axis=0)
            fine = np.isfinite(before) & (before > 0)
            after = project_out(samples, raw[:, fine] / before[fine])
        norms = np.linalg.norm(after, axis=0)
        useful = norms > 1e-7  # less is left only of a column that the nuisance directions explain to rounding
        if not np.any(useful):
            continue
        blocks.append(after[:, useful] / norms[useful])
        families.append(column)
        starts.append(total)
        inner += list(grid[fine][useful])
        total += int(useful.sum())
        fixed = total if column.fixed else fixed
    if not blocks:
        return None
    matrix = np.concatenate(blocks, axis=1)
    target = project_out(samples, samples.output[:, None])[:, 0]
    target = target / np.linalg.norm(target)
    return _Gram(families, np.array(starts), inner, matrix.T @ matrix, matrix.T @ target, fixed)


Scored = tuple[Array, NDArray[np.intp]]  # gains (n,), members (n, size)


def _best(scored: Iterator[Scored], keep: int, gram: _Gram) -> list[tuple[float, tuple[int, ...]]]:
    """The best ``keep`` of what an iterator of blocks offers; of several grid values of one family only the best."""
    best: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
    for gains, members in scored:
        for row in np.argsort(-gains, kind="stable")[: 4 * keep]:
            if not np.isfinite(gains[row]):
                break
            chosen = tuple(sorted(int(i) for i in members[row]))
            kind = tuple(int(np.searchsorted(gram.starts, i, side="right")) for i in chosen)
            if kind not in best or gains[row] > best[kind][0]:
                best[kind] = (float(gains[row]), chosen)
    return sorted(best.values(), key=lambda item: (-item[0], item[1]))[:keep]


def _family_best(gains: Array, gram: _Gram, first: int) -> Scored:
    """Along the last axis (columns from ``first`` on): the best gain of each family and the column that reached it."""
    starts = gram.starts[gram.starts >= first] - first
    ends = np.append(starts[1:], gains.shape[-1])
    best = np.maximum.reduceat(gains, starts, axis=-1)
    where = np.stack(
        [first + a + np.argmax(gains[..., a:b], axis=-1) for a, b in zip(starts, ends, strict=True)], axis=-1
    )
    return best, where


def _fixed_singles(gram: _Gram) -> Scored:
    return gram.target[: gram.fixed] ** 2, np.arange(gram.fixed)[:, None]


def _atom_singles(gram: _Gram) -> Iterator[Scored]:
    if gram.fixed < len(gram.target):
        best, where = _family_best(gram.target[gram.fixed :] ** 2, gram, gram.fixed)
        yield best, where[:, None]


def _pairs(gram: _Gram) -> Iterator[Scored]:
    """Every pair of columns of different families, family by family."""
    total = len(gram.target)
    ends = np.append(gram.starts[1:], total)
    for start, end in zip(gram.starts[:-1], ends[:-1], strict=True):
        r = gram.matrix[start:end, end:]
        g, h = gram.target[start:end, None], gram.target[None, end:]
        free = 1.0 - r * r
        with np.errstate(all="ignore"):
            gains = np.where(free > _COLLINEAR, (g * g + h * h - 2 * r * g * h) / free, -np.inf)
        rows = np.argmax(gains, axis=0)
        best, where = _family_best(gains[rows, np.arange(total - end)], gram, int(end))
        yield best, np.stack([start + rows[where - end], where], axis=1)


def _solved(gram: _Gram, members: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Gains (n,) of subsets (n, m) with the inverse Gram blocks (n, m, m) and coefficients (n, m)."""
    blocks = gram.matrix[members[:, :, None], members[:, None, :]]
    right = gram.target[members]
    usable = np.linalg.det(blocks) > _COLLINEAR
    inverse = np.zeros_like(blocks)
    inverse[usable] = np.linalg.inv(blocks[usable])
    coefficients = np.einsum("nij,nj->ni", inverse, right)
    gains = np.where(usable, np.einsum("ni,ni->n", coefficients, right), -np.inf)
    return gains, inverse, coefficients


def _chunks(count: int, size: int, chunk: int) -> Iterator[NDArray[np.intp]]:
    block: list[tuple[int, ...]] = []
    for members in combinations(range(count), size):
        block.append(members)
        if len(block) == chunk:
            yield np.array(block)
            block = []
    if block:
        yield np.array(block)


def _fixed_sets(gram: _Gram, size: int, keep: int) -> Iterator[Scored]:
    for members in _chunks(gram.fixed, size, 20_000):
        gains, _, _ = _solved(gram, members)
        yield _top(gains, members, 4 * keep)


def _sets_with_atom(gram: _Gram, size: int, keep: int) -> Iterator[Scored]:
    """Every set of ``size - 1`` fixed columns with every atom: the atom's gain is that of its part outside the set."""
    if gram.fixed == len(gram.target):
        return
    atoms = slice(gram.fixed, len(gram.target))
    for members in _chunks(gram.fixed, size - 1, 200):
        gains, inverse, coefficients = _solved(gram, members)
        cross = gram.matrix[members, atoms]
        outside = 1.0 - np.einsum("nia,nia->na", np.matmul(inverse, cross), cross)
        along = gram.target[None, atoms] - np.einsum("nia,ni->na", cross, coefficients)
        with np.errstate(all="ignore"):
            both = np.where(outside > _COLLINEAR, gains[:, None] + along**2 / outside, -np.inf)
        best, where = _family_best(both, gram, gram.fixed)
        width = best.shape[1]
        every = np.concatenate([np.repeat(members, width, axis=0), where.reshape(-1, 1)], axis=1)
        yield _top(best.ravel(), every, 4 * keep)


def _top(gains: Array, members: NDArray[np.intp], count: int) -> Scored:
    if len(gains) <= count:
        return gains, members
    rows = np.argpartition(-gains, count)[:count]
    return gains[rows], members[rows]


# ---- from a subset to a candidate -----------------------------------------------------------------------------------


def polish(subset: Subset, samples: Samples) -> Candidate | None:
    """Least squares over all constants in float64; None where the result is singular, degenerate or not finite.

    The linear constants are projected out at every step (Golub & Pereyra 1973), so only the inner constants, as
    logarithms, are iterated on. An inner constant that runs out of the grid's range says that the atom is a simpler
    term in disguise (``x/(K + x)`` with K far above every x is a multiple of x); that term is in the library itself.
    """
    atoms = [(i, column) for i, column in enumerate(subset.columns) if not column.fixed]
    target = project_out(samples, samples.output[:, None])[:, 0]
    inner = list(subset.inner)
    if atoms:
        grids = [column.grid for _, column in atoms if column.grid is not None]
        low = np.concatenate([np.log(grid.min(axis=0) / 1.5) for grid in grids])
        high = np.concatenate([np.log(grid.max(axis=0) * 1.5) for grid in grids])
        start = np.clip(np.log(np.concatenate([inner[i] for i, _ in atoms])), low + 1e-6, high - 1e-6)

        size = float(np.linalg.norm(target))  # the optimizer's tolerance on the gradient is an absolute one

        def residual(theta: Array) -> Array:
            return _linear_fit(subset.columns, _spread(theta, subset), samples, target)[1] / size

        result = least_squares(residual, start, bounds=(low, high), xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=60)
        if np.any(result.x < low + 1e-3) or np.any(result.x > high - 1e-3):
            return None
        inner = _spread(result.x, subset)
    outer, _ = _linear_fit(subset.columns, inner, samples, target)
    if not np.all(np.isfinite(outer)) or np.any(outer == 0):
        return None
    return _candidate(subset.columns, outer, inner, samples)


def _spread(theta: Array, subset: Subset) -> list[Array]:
    """Logarithms of the inner constants in one vector -> the inner constants of every column."""
    result, used = [], 0
    for column in subset.columns:
        result.append(np.exp(theta[used : used + len(column.inner)]))
        used += len(column.inner)
    return result


def _linear_fit(
    columns: Sequence[Column], inner: Sequence[Array], samples: Samples, target: Array
) -> tuple[Array, Array]:
    raw = np.concatenate(
        [c.values(samples.inputs, np.atleast_2d(v)) for c, v in zip(columns, inner, strict=True)], axis=1
    )
    sizes = np.max(np.abs(raw), axis=0)
    if not np.all(np.isfinite(sizes)) or np.any(sizes == 0):
        return np.full(len(columns), np.nan), target
    matrix = project_out(samples, raw / sizes)
    norms = np.linalg.norm(matrix, axis=0)
    if np.any(norms == 0):
        return np.full(len(columns), np.nan), target
    coefficients = np.linalg.lstsq(matrix / norms, target, rcond=1e-13)[0]
    return coefficients / norms / sizes, target - (matrix / norms) @ coefficients


def _candidate(columns: Sequence[Column], outer: Array, inner: Sequence[Array], samples: Samples) -> Candidate | None:
    terms, values = [], {}
    for index, (column, factor, own) in enumerate(zip(columns, outer, inner, strict=True)):
        constant = sp.Symbol(f"_outer{index}")
        names = {symbol: sp.Symbol(f"_inner{index}_{symbol}") for symbol in column.inner}
        terms.append(constant * column.template.xreplace(names))
        values[constant] = float(factor)
        values.update({names[symbol]: float(value) for symbol, value in zip(column.inner, own, strict=True)})
    expression, constants = rename_constants(sp.Add(*terms), values, tuple(samples.inputs))
    if not is_regular(expression, samples.inputs, constants):
        return None
    candidate = Candidate(expression, constants, complexity(expression, constants), 0.0, "library")
    error = normalized_error(samples, candidate.evaluate(samples.inputs))
    return replace(candidate, nmse=error) if np.isfinite(error) else None
