"""Order conditions of Runge-Kutta methods by rooted trees (Butcher's theory).

A tree is a sorted tuple of trees; the single node is ``()``. A method has order p when
``sum_i b_i Phi_i(tree) = 1/gamma(tree)`` for every tree of at most p nodes, and its continuous
extension when ``sum_i b_i(theta) Phi_i(tree) = theta^|tree| / gamma(tree)``.

Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.2 and II.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product
from math import prod
from typing import Protocol

from ude.methods.tableau import ExplicitTableau, Number

Tree = tuple["Tree", ...]


class RungeKuttaTableau(Protocol):
    """What order conditions need of a Runge-Kutta method; the rows of `a` may be shorter than the number of stages."""

    @property
    def a(self) -> tuple[tuple[Number, ...], ...]: ...
    @property
    def interpolant(self) -> tuple[tuple[Number, ...], ...]: ...


@cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees of exactly `nodes` nodes; 1, 1, 2, 4, 9, 20, 48, ... of them."""
    if nodes == 1:
        return ((),)
    found: set[Tree] = set()
    for sizes in _partitions(nodes - 1, nodes - 1):
        for tree in _forests(sizes):
            found.add(tuple(sorted(tree)))
    return tuple(sorted(found))


def _partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    if total == 0:
        yield ()
    for first in range(min(total, largest), 0, -1):
        for rest in _partitions(total - first, first):
            yield (first, *rest)


def _forests(sizes: tuple[int, ...]) -> Iterator[tuple[Tree, ...]]:
    if not sizes:
        yield ()
        return
    count = sizes.count(sizes[0])
    for chosen in combinations_with_replacement(rooted_trees(sizes[0]), count):
        for rest in _forests(sizes[count:]):
            yield (*chosen, *rest)


def size(tree: Tree) -> int:
    return 1 + sum(size(child) for child in tree)


def density(tree: Tree) -> int:
    """gamma(tree) = |tree| * prod(gamma(children))."""
    return size(tree) * prod(density(child) for child in tree)


def stage_weights(
    a: Sequence[Sequence[Number]], tree: Tree, sums: dict[Tree, list[Number]] | None = None
) -> list[Number]:
    """Phi_i(tree) of every stage i: the product over children of ``sum_j a_ij Phi_j(child)``.

    Args:
        sums: Those sums by child, found here and added to: trees of one set share most of their branches.
    """
    sums = {} if sums is None else sums
    weights: list[Number] = [1] * len(a)
    for child in tree:
        if child not in sums:
            inner = stage_weights(a, child, sums)
            sums[child] = [sum(entry * inner[j] for j, entry in enumerate(row) if entry) for row in a]
        weights = [weight * total for weight, total in zip(weights, sums[child], strict=True)]
    return weights


def rosenbrock_weights(alpha: Sequence[Sequence[Number]], beta: Sequence[Sequence[Number]], tree: Tree) -> list[Number]:
    """Phi_i(tree) of a Rosenbrock method: a node with one child sums with beta = alpha + gamma, others with alpha.

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, IV.7.
    """
    rows = beta if len(tree) == 1 else alpha
    weights: list[Number] = [1] * len(alpha)
    for child in tree:
        inner = rosenbrock_weights(alpha, beta, child)
        weights = [weight * _dot(row, inner) for weight, row in zip(weights, rows, strict=True)]
    return weights


def order_defects(tableau: RungeKuttaTableau, weights: Sequence[Number], order: int) -> dict[Tree, Number]:
    """``sum_i weights_i Phi_i(tree) - 1/gamma(tree)`` for every tree up to `order`; all zero when it holds."""
    sums: dict[Tree, list[Number]] = {}
    return {
        tree: _dot(weights, stage_weights(tableau.a, tree, sums)) - Fraction(1, density(tree))
        for nodes in range(1, order + 1)
        for tree in rooted_trees(nodes)
    }


#: A tree whose every node but the root has a color: which of the parts of f it stands for.
ColoredTree = tuple[tuple[int, "ColoredTree"], ...]


@cache
def colored_trees(nodes: int, colors: int) -> tuple[ColoredTree, ...]:
    """All rooted trees of exactly `nodes` nodes with every node but the root in one of the colors."""
    if nodes == 1:
        return ((),)
    found: set[ColoredTree] = set()
    for sizes in _partitions(nodes - 1, nodes - 1):
        branches = [[(c, tree) for c in range(colors) for tree in colored_trees(n, colors)] for n in sizes]
        found |= {tuple(sorted(chosen)) for chosen in product(*branches)}
    return tuple(sorted(found))


def additive_defects(
    parts: Sequence[Sequence[Sequence[Number]]], columns: Sequence[Sequence[Number]], order: int
) -> dict[ColoredTree, list[Number]]:
    """Order conditions of an additive method, coupling of its parts included; all zero up to `order` when they hold.

    Args:
        parts: The rows a of every part; all have the same weights.
        columns: Weights of theta^1, theta^2, ... of a continuous extension; with one column, those of the new state.

    Source: A. L. Araujo, A. Murua, J. M. Sanz-Serna, SIAM J. Numer. Anal. 34 (1997) 1926; C. A. Kennedy & M. H.
    Carpenter, Appl. Numer. Math. 44 (2003) 139.
    """
    stages = len(parts[0])

    @cache
    def weights(tree: ColoredTree) -> tuple[Number, ...]:
        phi: list[Number] = [1] * stages
        for color, child in tree:
            inner = weights(child)
            phi = [x * _dot(row, inner[: len(row)]) for x, row in zip(phi, parts[color], strict=True)]
        return tuple(phi)

    def plain(tree: ColoredTree) -> Tree:
        return tuple(plain(child) for _, child in tree)

    defects: dict[ColoredTree, list[Number]] = {}
    for nodes in range(1, order + 1):
        for tree in colored_trees(nodes, len(parts)):
            powers = [_dot(column, weights(tree)) for column in columns]
            power = nodes - 1 if len(columns) > 1 else 0
            powers += [0] * (power + 1 - len(powers))
            powers[power] = powers[power] - Fraction(1, density(plain(tree)))
            defects[tree] = powers
    return defects


def interpolant_defects(tableau: RungeKuttaTableau, order: int) -> dict[Tree, list[Number]]:
    """Coefficients of theta^1, theta^2, ... of the continuous order conditions; all zero when they hold."""
    rows = tableau.all_a if isinstance(tableau, ExplicitTableau) else tableau.a
    defects: dict[Tree, list[Number]] = {}
    sums: dict[Tree, list[Number]] = {}
    for nodes in range(1, order + 1):
        for tree in rooted_trees(nodes):
            phi = stage_weights(rows, tree, sums)
            powers = [_dot(column, phi) for column in zip(*tableau.interpolant, strict=True)]
            powers += [0] * (nodes - len(powers))
            powers[nodes - 1] = powers[nodes - 1] - Fraction(1, density(tree))
            defects[tree] = powers
    return defects


def _dot(left: Sequence[Number], right: Sequence[Number]) -> Number:
    return sum((x * y for x, y in zip(left, right, strict=True)), start=0)
