"""Where each unknown function has been seen: elsewhere its formula is a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from ude.discovery.evaluation import evaluate
from ude.discovery.refit.closed_system import Array
from ude.discovery.samples import Samples

# The hull of more inputs than this costs more than it is worth; the box serves.
_MOST_HULL_INPUTS = 4


@dataclass(frozen=True, eq=False)
class TermSupport:
    """The inputs with which one unknown function was met along the fitted trajectories.

    inputs: their names. points: (N, inputs). lower, upper: their box. margin: share of the box's width that is still
    counted as inside.
    """

    term: str
    inputs: tuple[str, ...]
    points: Array
    margin: float = 0.05

    @property
    def lower(self) -> dict[str, float]:
        return dict(zip(self.inputs, self.points.min(axis=0).tolist(), strict=True))

    @property
    def upper(self) -> dict[str, float]:
        return dict(zip(self.inputs, self.points.max(axis=0).tolist(), strict=True))

    @cached_property
    def _width(self) -> Array:
        width = np.ptp(self.points, axis=0)
        result: Array = np.where(width > 0, width, np.maximum(np.abs(self.points).max(axis=0), 1.0))
        return result

    @cached_property
    def _hull(self) -> ConvexHull | None:
        """The convex hull in units of the box; None where there is none, as of points on a line."""
        if not 2 <= len(self.inputs) <= _MOST_HULL_INPUTS:
            return None
        try:
            return ConvexHull(self.points / self._width)
        except QhullError:
            return None

    @property
    def hull(self) -> Array | None:
        """Corners (k, inputs) of the convex hull, in order around it for two inputs; None where there is none."""
        return None if self._hull is None else self.points[self._hull.vertices]

    def outside(self, inputs: Mapping[str, Array]) -> NDArray[np.bool_]:
        """(N,): whether the function was never met near these inputs, each (N,): beyond the hull, or the box."""
        asked = np.stack([np.asarray(inputs[name], dtype=np.float64) for name in self.inputs], axis=-1)
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        room = self.margin * self._width
        beyond = np.any((asked < low - room) | (asked > high + room) | ~np.isfinite(asked), axis=-1)
        if self._hull is not None:
            distance = asked / self._width @ self._hull.equations[:, :-1].T + self._hull.equations[:, -1]
            beyond |= np.max(distance, axis=-1) > self.margin
        return np.asarray(beyond)


@dataclass(frozen=True, eq=False)
class Support:
    """The support of every unknown function: ``found.support["U1"]``.

    arguments: term -> its arguments as expressions in the states, parameters and time.
    """

    terms: dict[str, TermSupport]
    states: tuple[str, ...]
    arguments: dict[str, list[tuple[sp.Expr, ...]]]
    constants: Mapping[str, float]
    time: str = "t"

    def __getitem__(self, term: str) -> TermSupport:
        return self.terms[term]

    def outside(self, states: Array, t: Array | None = None) -> dict[str, NDArray[np.bool_]]:
        """term -> (T,): whether the states (T, state) ask it for inputs at which it was never seen.

        t: (T,), where an argument depends on the time.
        """
        u = np.atleast_2d(np.asarray(states, dtype=np.float64))
        where: dict[str, Array | float] = {state: u[:, i] for i, state in enumerate(self.states)}
        where |= {**self.constants, self.time: np.zeros(len(u)) if t is None else np.asarray(t, dtype=np.float64)}
        found = {}
        for term, support in self.terms.items():
            beyond = np.zeros(len(u), dtype=bool)
            for call in self.arguments[term]:
                values = [np.broadcast_to(evaluate(argument, where), len(u)) for argument in call]
                beyond |= support.outside(dict(zip(support.inputs, values, strict=True)))
            found[term] = beyond
        return found


def support_of(
    samples: Mapping[str, Samples],
    equations: Mapping[str, sp.Expr],
    constants: Mapping[str, float],
    time: str,
    visited: Mapping[str, Array | float],
) -> Support:
    """The support of each term: its samples, and what it is asked for along the trajectories of the system found.

    equations: state -> right-hand side with the unknown functions. visited: states, parameters and time there (N,).
    """
    terms, arguments = {}, {}
    for name, own in samples.items():
        points = [np.stack(list(own.inputs.values()), axis=-1)]
        calls = {
            node.args
            for rate in equations.values()
            for node in rate.atoms(sp.core.function.AppliedUndef)
            if str(node.func) == name
        }
        arguments[name] = sorted(calls, key=str)
        size = max(np.size(value) for value in visited.values())
        for call in arguments[name]:
            asked = np.stack([np.broadcast_to(evaluate(argument, visited), size) for argument in call], axis=-1)
            points.append(asked[np.isfinite(asked).all(axis=-1)])
        terms[name] = TermSupport(name, tuple(own.inputs), np.concatenate(points))
    return Support(terms, tuple(equations), arguments, constants, time)
