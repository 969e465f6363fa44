"""Which change of a formula the trajectories ask for: another summand, or one in the place of one that is there.

With noisy data the searches see derivatives that are far off, and the true form may be in none of their fronts, while
the trajectories, once some formula follows them roughly, tell it clearly. To first order a summand g with a small
constant changes the residuals r by the sensitivities G of the trajectories, which one integration gives for many g at
once (a score test: Rao 1948; Engle 1984). With J the derivatives by the unknowns of the fit, projected out of r and G,

    SSE - (G'r)^2 / G'G

is what would be left with it. The same with the i-th constant moved to zero, ``r - J_i c_i`` in the place of r and J
without its column, is what would be left with g instead; as the two changes nearly cancel where g is a good choice,
the linear estimate is good where it matters. It only ranks: what is promising is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.complexity import complexity
from ude.discovery.edits import with_summand, without
from ude.discovery.joint_complexity import joint_complexity
from ude.discovery.refit.closed_system import Array, ObservedTrajectory
from ude.discovery.refit.embedding import RefitOptions, linearized
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.shortlist import score

_AT_ONCE = 16  # summands in one integration
_ALIKE = 1e-4  # part of a summand's effect below which, squared, the fit's unknowns do the same
_CLOSER_LOOK = 4  # times as many changes as are wanted have their complexity computed, which takes SymPy's time
_JOINING = 3  # what a summand costs beside itself: a constant in front, and two operators


@dataclass(frozen=True)
class Change:
    """Candidates with one summand more or another, the score they are expected to have, and in words what was done."""

    candidates: dict[str, Candidate]
    score: float
    step: str


@dataclass(frozen=True)
class _Base:
    """The formulas that a summand of `term` is added to, what is left of residuals and unknowns, and `words` for it."""

    term: str
    candidates: dict[str, Candidate]
    residuals: Array
    unknowns: Array
    words: str


@dataclass(frozen=True)
class ScoreTest:
    """On what changes are judged: the equations, the data with the scales of residuals and states, and how to fit."""

    system: PartialSystem
    trajectories: Sequence[ObservedTrajectory]
    scale: Array
    state_scale: Array
    options: RefitOptions
    floor: float


def changes(
    test: ScoreTest, combination: Combination, pools: Mapping[str, Sequence[sp.Expr]], most: int
) -> list[Change]:
    """The `most` changes of a fitted combination that promise the lowest scores, best first.

    pools: term -> summands that may be added to it, without constants.
    """
    candidates, fit, floor = combination.candidates, combination.fit, test.floor
    bases = list(_bases(combination))
    if not bases:
        return []
    shapes = {term: _new_shapes(candidates[term], pool) for term, pool in pools.items()}
    effects = _effects(test, combination, shapes)
    found: list[tuple[float, _Base, sp.Expr, float, float]] = []
    for base in bases:
        known = effects[base.term]
        if not known:
            continue
        size = joint_complexity(base.candidates)
        sse, values = _outcomes(base, np.stack(list(known.values()), axis=1))
        for shape, left, value in zip(known, sse, values, strict=True):
            if np.isfinite(left):
                guess = score(left, fit.n_observations, size + complexity(shape) + _JOINING, floor)
                found.append((guess, base, shape, left, value))
    found.sort(key=lambda row: (row[0], row[1].words, str(row[2])))
    result = []
    for _, base, shape, left, value in found[: _CLOSER_LOOK * most]:
        grown = {**base.candidates, base.term: with_summand(base.candidates[base.term], shape, value)}
        expected = score(left, fit.n_observations, joint_complexity(grown), floor)
        step = f"added {shape} to {base.term} = {base.candidates[base.term].expression}"
        result.append(Change(grown, expected, f"{base.words}; {step}" if base.words else step))
    return sorted(result, key=lambda change: (change.score, change.step))[:most]


def _new_shapes(candidate: Candidate, pool: Sequence[sp.Expr]) -> list[sp.Expr]:
    ones = dict.fromkeys(map(sp.Symbol, candidate.constants), sp.S.One)
    present = set(sp.Add.make_args(sp.expand(candidate.expression.xreplace(ones))))
    return [shape for shape in pool if shape not in present]


def _bases(combination: Combination) -> Iterator[_Base]:
    """The combination as it is, once for every term, and with each constant of that term at zero; none where no
    solution was found."""
    candidates, fit, fitted = combination.candidates, combination.fit, combination.closed.fitted
    residuals, jacobian, slopes = fit.residuals, fit.jacobian, fit.slopes
    if residuals is None or jacobian is None or slopes is None:
        return
    for term, candidate in candidates.items():
        yield _Base(term, dict(candidates), residuals, jacobian, "")
        for name in candidate.constants:
            simpler = without(candidate, [name])
            if simpler is None:
                continue
            place = fitted.index(f"{term}_{name}")
            gone = fit.values[f"{term}_{name}"] / slopes[place]
            words = f"dropped {name} of {term} = {candidate.expression}"
            rest = np.delete(jacobian, place, axis=1)
            yield _Base(term, {**candidates, term: simpler}, residuals - jacobian[:, place] * gone, rest, words)


def _outcomes(base: _Base, effects: Array) -> tuple[Array, Array]:
    """For each effect (N, M): the sum of squares left, infinite where it does nothing new; its constant."""
    left, sizes, _ = np.linalg.svd(base.unknowns, full_matrices=False)
    basis = left[:, sizes > 1e-9 * max(sizes.max(initial=0.0), 1e-300)]
    rest = base.residuals - basis @ (basis.T @ base.residuals)
    own = effects - basis @ (basis.T @ effects)
    squares, before = np.sum(own**2, axis=0), np.sum(effects**2, axis=0)
    along = own.T @ rest
    with np.errstate(divide="ignore", invalid="ignore"):
        sse = np.maximum(rest @ rest - along**2 / squares, 0.0)
        values = -along / squares
    return np.where(squares > _ALIKE * before, sse, np.inf), values


def _effects(
    test: ScoreTest, combination: Combination, shapes: Mapping[str, Sequence[sp.Expr]]
) -> dict[str, dict[sp.Expr, Array]]:
    """term -> summand -> derivative (N,) of the residuals by a constant in front of it, where that exists."""
    fit = combination.fit
    found: dict[str, dict[sp.Expr, Array]] = {term: {} for term in shapes}
    waiting = [
        [(term, shape) for shape in own[start : start + _AT_ONCE]]
        for term, own in shapes.items()
        for start in range(0, len(own), _AT_ONCE)
    ]
    while waiting:
        batch = waiting.pop()
        grown, owners = dict(combination.candidates), {}
        for i, (term, shape) in enumerate(batch):
            own, name = grown[term], f"_g{i}"
            whole = own.expression + sp.Symbol(name) * shape
            grown[term] = replace(own, expression=whole, constants={**own.constants, name: 0.0})
            owners[term, name] = shape
        closed, names = test.system.close(grown)
        placed = {names[term][name]: (term, shape) for (term, name), shape in owners.items()}
        parameters = {
            name: replace(constant, start=fit.values.get(name, 0.0), fitted=name in placed)
            for name, constant in closed.parameters.items()
        }
        held = replace(closed, parameters=parameters)
        slopes = linearized(held, test.trajectories, fit.u0, test.scale, test.state_scale, test.options)
        if slopes is not None:
            for name, column in zip(held.fitted, slopes.T, strict=True):
                term, shape = placed[name]
                found[term][shape] = column
        elif len(batch) > 1:  # one of them may not exist along the trajectory: log(x) where x dips below zero
            waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return found
