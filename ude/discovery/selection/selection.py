"""Which combination of candidate formulas the observed trajectories choose.

The error of a trained network is smooth, so formulas scored on its samples come out too complex. Here every
combination (one candidate for each unknown term) is put back into the differential equation, all constants are refitted
on the *observed* trajectories, and

    score = N log(SSE/N + floor^2) + complexity log N          (lower is better)

decides, with N the observed numbers, SSE the sum of their squared scaled errors and complexity that of all terms
together, see `joint_complexity` (Schwarz 1978, with complexity in the place of the number of constants). The floor, a
relative accuracy below which differences are those of arithmetic rather than of formulas, keeps noiseless data from
choosing by rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.canonical_form import family
from ude.discovery.edits import simplifications, summand_pool
from ude.discovery.joint_complexity import joint_complexity
from ude.discovery.refit.closed_system import Array, ClosedSystem, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, fit_closed_form
from ude.discovery.refit.integration import ColumnFunctions, Integrator, simulate
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.refit.residuals import DEPENDENT, dependence
from ude.discovery.selection.combination import SEARCH, Combination
from ude.discovery.selection.refits_cache import Refit
from ude.discovery.selection.score_test import ScoreTest, changes
from ude.discovery.selection.shortlist import NETWORK_ERROR, closeness, near, score, shortlist
from ude.errors import InputError, ModelError

Progress = Callable[[int, int, str], None]
Allowed = Callable[[str, Candidate], bool]
_OPEN = 6.0  # difference of scores ("strong evidence", Kass & Raftery 1995) below which the choice counts as open
_EXTENDED = 4  # combinations that are tried with other summands
_ROUNDS = 4  # of that
_REDUCED = 8  # combinations, those among them, whose constants are tried at zero
# Errors of the samples (as NETWORK_ERROR) where something is left that no formula tried describes: many and clean data
# train better networks, and where the samples come from smoothed data they are as good as these.
_FINER = (0.03, 0.01, 3e-3, 1e-3, 3e-4)
_WIDENED = 3  # candidates of each term that are tried at each of these


@dataclass(frozen=True)
class SelectionOptions:
    """How many combinations are tried, and how each is fitted.

    max_candidates: candidates of one term that are put back into the equations, see `shortlist`.
    max_combinations: when there are more, a coordinate search from the likeliest combination takes the place of trying
        all. max_seconds: of the processor; after these the best so far is returned with ``complete=False``.
    floor: relative error that is not worth a more complex formula.
    margin: difference of scores that does not count; 2 is "not worth more than a bare mention" (Kass & Raftery 1995).
    simplify: whether the winner's constants are tried at zero, singly and in pairs, refitted and scored.
    extend: so many changes of each of the best combinations are tried, one more summand or another one, of those that
        the trajectories ask for (see `growth`): with few or noisy data the true form may lie far from all that the
        networks suggest. 0: none.
    widen: where the residuals of the best are no errors of measurement (neighbors are alike, see `residuals`),
        whether formulas closer to the networks are tried, however complex they are.
    """

    max_candidates: int = 10
    max_combinations: int = 64
    max_seconds: float = 120.0
    floor: float = 1e-3
    margin: float = 2.0
    simplify: bool = True
    extend: int = 8
    widen: bool = True
    fit: RefitOptions = RefitOptions(max_rhs_calls=100_000, max_seconds=4.0)

    def __post_init__(self) -> None:
        if not isinstance(self.fit, RefitOptions):
            raise InputError(
                "SelectionOptions(fit) must be a RefitOptions, which says how constants are refitted",
                got=repr(self.fit),
                fix="ude.FitOptions belong to ude.fit." if type(self.fit).__name__ == "FitOptions" else "",
            )
        for name in ("max_candidates", "max_combinations", "max_seconds", "floor"):
            if not getattr(self, name) > 0:
                raise InputError(f"SelectionOptions({name})", expected="above 0", got=str(getattr(self, name)))


@dataclass(frozen=True)
class Selection:
    """Combinations in order of their score, best first, and the one chosen.

    chosen: the simplest of those whose score is within ``margin`` of the best.
    interrupted: Ctrl-C ended it early. complete: every combination that was planned has been tried.
    options: those it was made with.
    """

    ranked: list[Combination]
    chosen: Combination
    interrupted: bool
    complete: bool
    options: SelectionOptions = SelectionOptions()


@dataclass(frozen=True)
class Hooks:
    """What a selection calls on its way.

    on_progress: with (done, total, best so far). refit: `fit_closed_form`, or the same with a memory (`RefitsCache`).
    allowed: whether a formula that no search offered may stand for a term.
    """

    on_progress: Progress | None = None
    refit: Refit = fit_closed_form
    allowed: Allowed = lambda term, candidate: True


def select(
    system: PartialSystem,
    fronts: Mapping[str, Sequence[Candidate]],
    train: Sequence[ObservedTrajectory],
    *,
    u0: Array | None = None,
    held_out: Sequence[ObservedTrajectory] = (),
    options: SelectionOptions = SelectionOptions(),
    hooks: Hooks = Hooks(),
) -> Selection:
    """Fit combinations of candidates on the observed trajectories and rank them (see the module's own text).

    fronts: candidates of each unknown term. u0: starting initial states (trajectory, state). held_out: one trajectory
    for each training trajectory, continuing it.

    Raises ModelError where a term has no candidates, or nothing could be fitted at all.
    """
    empty = [term for term in system.calls if not fronts.get(term)]
    if empty:
        raise ModelError(f"no candidate formulas for {', '.join(empty)}", fix="Search with another regressor.")
    trial = _Trial(system, train, u0, held_out, options, hooks)
    lists = {term: shortlist(fronts[term], options.max_candidates, trial.n) for term in system.calls}
    try:
        total = int(np.prod([len(choices) for choices in lists.values()]))
        if total <= options.max_combinations:
            trial.total = total
            trial.all_of(lists)
        else:
            trial.total = options.max_combinations
            trial.coordinate_search(lists)
        trial.refine({term: fronts[term] for term in system.calls})
    except KeyboardInterrupt:
        trial.interrupted = True
    if not trial.done:
        raise ModelError("interrupted before any formula had been fitted", fix="Let it run a little longer.")
    ranked = sorted(trial.done.values(), key=lambda c: c.rank)
    return Selection(ranked, trial.best, trial.interrupted, trial.complete, options)


class _OutOfTime(Exception):
    pass


class _Trial:
    """The combinations fitted so far, by the families of functions that they stand for."""

    def __init__(
        self,
        system: PartialSystem,
        train: Sequence[ObservedTrajectory],
        u0: Array | None,
        held_out: Sequence[ObservedTrajectory],
        options: SelectionOptions,
        hooks: Hooks,
    ) -> None:
        self.system, self.train, self.u0, self.held_out = system, list(train), u0, list(held_out)
        self.options, self.on_progress = options, hooks.on_progress
        self.refit, self.allowed = hooks.refit, hooks.allowed
        self.scale, self.sizes = system.residual_scale(self.train), system.sizes(self.train)
        self.n = int(sum(np.isfinite(trajectory.u).sum() for trajectory in self.train))
        self.done: dict[tuple[str, ...], Combination] = {}
        self.total, self.interrupted, self.complete = 0, False, True
        self.deadline = time.thread_time() + options.max_seconds

    def evaluate(self, candidates: Mapping[str, Candidate], step: str = SEARCH) -> Combination:
        key = tuple(family(candidates[term]) for term in self.system.calls)
        if key in self.done:
            return self.done[key]
        if self.done and time.thread_time() > self.deadline:
            self.complete = False
            raise _OutOfTime
        combination = self._fitted(candidates, step)
        self.done[key] = combination
        if self.on_progress is not None:
            self.total = max(self.total, len(self.done))
            self.on_progress(len(self.done), self.total, str(self.best))
        return combination

    def vary(self, varied: Combination, candidates: Mapping[str, Candidate], step: str) -> None:
        """Evaluate a variation of a combination, where what is known of the terms allows it."""
        changed = {term: own for term, own in candidates.items() if own is not varied.candidates[term]}
        if all(self.allowed(term, own) for term, own in changed.items()):
            self.evaluate(candidates, step if varied.step == SEARCH else f"{varied.step}; {step}")

    def _fitted(self, candidates: Mapping[str, Candidate], step: str) -> Combination:
        """The candidates put into the system, all constants refitted on the training trajectories, scored."""
        closed, names = self.system.close(candidates)
        fit = self.refit(closed, self.train, self.u0, self.scale, self.options.fit, self.sizes)
        total = joint_complexity(candidates)
        refitted = {
            term: replace(candidate, constants={c: fit.values[name] for c, name in names[term].items()})
            for term, candidate in candidates.items()
        }
        value = score(fit.sse, fit.n_observations, total, self.options.floor)
        error = continuation_rmse(closed, fit, self.train, self.held_out, self.sizes) if np.isfinite(value) else {}
        return Combination(refitted, closed, fit, total, value, error, step)

    @property
    def best(self) -> Combination:
        """The simplest combination that the data do not tell from the one of lowest score."""
        lowest = min(c.score for c in self.done.values())
        close = [c for c in self.done.values() if c.score <= lowest + self.options.margin]
        return min(close, key=lambda c: (c.complexity, c.score, str(c)))

    def all_of(self, lists: Mapping[str, Sequence[Candidate]]) -> None:
        """Every combination, simplest first, so that an early end leaves the simple ones tried."""
        every = [dict(zip(lists, choice, strict=True)) for choice in product(*lists.values())]
        every.sort(key=joint_complexity)
        try:
            for chosen in every:
                self.evaluate(chosen)
        except _OutOfTime:
            return

    def coordinate_search(self, lists: Mapping[str, Sequence[Candidate]]) -> None:
        """Change one term at a time, keeping what lowers the score, from the likeliest start and the simplest near one.

        With more than a few terms the product of their lists is out of reach, while a wrong formula for one term is
        mostly seen whatever the others are.
        """
        starts = [
            {term: min(choices, key=lambda c: closeness(c, self.n)) for term, choices in lists.items()},
            {term: min(near(choices), key=lambda c: (c.complexity, c.nmse)) for term, choices in lists.items()},
        ]
        try:
            for start in starts:
                current, changed = self.evaluate(start), True
                while changed:
                    changed = False
                    for term, choices in lists.items():
                        for choice in choices:
                            if len(self.done) >= self.options.max_combinations:
                                self.complete = False
                                return
                            found = self.evaluate({**start, term: choice})
                            if found.score < current.score:
                                start, current, changed = {**start, term: choice}, found, True
        except _OutOfTime:
            return

    def refine(self, fronts: Mapping[str, Sequence[Candidate]]) -> None:
        """What the lists did not hold: simpler forms of the best, other summands in them, closer ones where
        something is missed."""
        options = self.options
        if options.simplify:
            self.simplify()
        if options.extend:
            # samples that no formula comes near to say little, so that what is tried rests on chance; those of a term
            # that the trajectories find to be zero are noise by nature
            poor = [term for term, found in fronts.items() if min(c.nmse for c in found) > NETWORK_ERROR**2]
            poor = [term for term in poor if self.best.candidates[term].expression != 0]
            self.extend({term: summand_pool(found) for term, found in fronts.items()}, bool(poor))
        if options.widen and self.widen(fronts) and options.simplify:
            self.simplify()

    def is_open(self) -> bool:
        """Whether some other combination is so nearly as good as the best that a better one may have been missed."""
        scores = sorted(combination.score for combination in self.done.values())
        return len(scores) > 1 and scores[1] - scores[0] < _OPEN

    def extend(self, pools: Mapping[str, Sequence[sp.Expr]], poor: bool) -> None:
        """Other summands for the best combinations, and without constants what came of it, while that helps.

        poor: the samples say little, so that constants are tried at zero whatever was found.
        """
        looked_at: set[str] = set()
        try:
            for _ in range(_ROUNDS):
                before, tried = self.best, len(self.done)
                best = sorted(self.done.values(), key=lambda c: c.rank)[:_EXTENDED]
                best += [self.best] if not any(c is self.best for c in best) else []
                for combination in best:
                    if str(combination) not in looked_at:
                        looked_at.add(str(combination))
                        self._change(combination, pools)
                if self.options.simplify and (len(self.done) > tried or poor or self.is_open()):
                    self.reduce_rivals()
                    self.simplify()
                if self.best is before:
                    return
        except _OutOfTime:
            return

    def _change(self, combination: Combination, pools: Mapping[str, Sequence[sp.Expr]]) -> None:
        options = self.options
        test = ScoreTest(self.system, self.train, self.scale, self.sizes, options.fit, options.floor)
        for change in changes(test, combination, pools, options.extend):
            if change.score < min(c.score for c in self.done.values()) + _OPEN:
                self.vary(combination, change.candidates, change.step)

    def misses_something(self) -> bool:
        """Whether the residuals of the best are correlated, so that something is left unexplained."""
        alike = dependence(self.train, self.best.fit, self.options.floor)
        return any(own.deviations > DEPENDENT for own in alike.values())

    def widen(self, fronts: Mapping[str, Sequence[Candidate]]) -> bool:
        """Candidates ever closer to the networks, until the residuals are errors; whether any was tried.

        All terms at once first, as what one of them misses hides what the others do; then one after another.
        """
        widened = False
        try:
            for error in _FINER:
                if not self.misses_something():
                    break
                widened = True
                nearest = {
                    term: sorted(found, key=lambda c: closeness(c, self.n, error))[:_WIDENED]
                    for term, found in fronts.items()
                }
                self.evaluate({term: found[0] for term, found in nearest.items()})
                for term, found in nearest.items():
                    for candidate in found:
                        self.evaluate({**self.best.candidates, term: candidate})
        except _OutOfTime:
            pass
        return widened

    def reduce_rivals(self) -> None:
        """Each constant of the best combinations at zero.

        A form may be missing from all fronts while one with a summand too many is there, too dear to be the best:
        ``c0*y3 + c1*y5``, the best of all for pinene, is reached from ``c0 + c1*y3 + c2*y5`` alone.
        """
        try:
            for combination in sorted(self.done.values(), key=lambda c: c.rank)[:_REDUCED]:
                for step, simpler in simplifications(combination.candidates, 1):
                    self.vary(combination, simpler, step)
        except _OutOfTime:
            return

    def simplify(self) -> None:
        """Constants of the best combination at zero: refitted, scored, and the new best treated likewise."""
        try:
            improved = True
            while improved:
                improved, best = False, self.best
                for at_once in (1, 2):  # two small terms can stand in for each other, so that neither goes alone
                    for step, simpler in simplifications(best.candidates, at_once):
                        self.vary(best, simpler, step)
                    improved = self.best is not best
                    if improved:
                        break
        except _OutOfTime:
            return


def continuation_rmse(
    closed: ClosedSystem,
    fit: EmbeddedFit,
    train: Sequence[ObservedTrajectory],
    held_out: Sequence[ObservedTrajectory],
    scale: Array,
) -> dict[str, float]:
    """Root mean square error per column, in its own units, of simulating on from the fitted u0 over held-out times."""
    errors: list[Array] = []  # where the solution blows up, the error is infinite
    for index, later in enumerate(held_out):
        if not len(later.t):
            continue
        start = train[index].t[0]
        span = ObservedTrajectory(
            np.concatenate([[start], later.t]), np.concatenate([later.u[:1] * np.nan, later.u]), later.inputs
        )
        [found] = simulate(Integrator(closed), [span], fit.u0[index : index + 1], fit.values, scale)
        if found is not None:
            found, _ = ColumnFunctions(closed)(span.t, found, {**fit.values, **later.inputs})
        errors.append(np.full_like(later.u, np.inf) if found is None else found[1:] - later.u)
    if not errors:
        return {}
    with np.errstate(over="ignore"):
        squares = np.concatenate(errors) ** 2
    seen = np.isfinite(np.concatenate([later.u for later in held_out if len(later.t)]))
    return {
        state: float(np.sqrt(np.mean(squares[seen[:, i], i]))) if seen[:, i].any() else float("nan")
        for i, state in enumerate(closed.columns)
    }
