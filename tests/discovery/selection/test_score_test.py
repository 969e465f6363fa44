"""Changes of formulas that the trajectories ask for: estimates against fits, and the true summand found."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.canonical_form import family
from ude.discovery.complexity import complexity
from ude.discovery.edits import with_summand, without
from ude.discovery.joint_complexity import joint_complexity
from ude.discovery.refit.closed_system import ClosedSystem, Constant, ObservedTrajectory
from ude.discovery.refit.embedding import RefitOptions, fit_closed_form
from ude.discovery.refit.integration import Integrator
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.score_test import ScoreTest, changes
from ude.discovery.selection.selection import SelectionOptions, select
from ude.discovery.selection.shortlist import score

x, y, c0, c1, c2 = sp.symbols("x y c0 c1 c2")
U1, U2 = sp.Function("U1"), sp.Function("U2")
SYSTEM = PartialSystem(("x", "y"), {"x": U1(x, y), "y": U2(x, y)}, {"U1": ("x", "y"), "U2": ("x", "y")})
POOL = [sp.S.One, x, y, x * y, x * y**2, x**2, sp.sin(y), sp.log(x - 0.3)]
FLOOR = 1e-3


def _data(noise: float = 0.02) -> ObservedTrajectory:
    """Glycolysis after Sel'kov: x' = .5 - .5 x - x y**2, y' = x y**2 - .1 y."""
    a, b, k = sp.symbols("a b k")
    rates = {"x": a - a * x - k * x * y**2, "y": k * x * y**2 - b * y}
    truth = {"a": 0.5, "b": 0.1, "k": 1.0}
    times = np.linspace(0.0, 12.0, 80)
    closed = ClosedSystem(("x", "y"), rates, {name: Constant(value) for name, value in truth.items()})
    u = Integrator(closed).solve(times, np.array([1.4, 0.2]), truth, np.ones(2))
    assert u is not None
    return ObservedTrajectory(times, u * (1 + noise * np.random.default_rng(1).standard_normal(u.shape)))


def _candidate(expression: sp.Expr, **constants: float) -> Candidate:
    return Candidate(expression, constants, complexity(expression, constants), 0.1, "test")


def _fitted(candidates: dict[str, Candidate], data: ObservedTrajectory) -> Combination:
    closed, _ = SYSTEM.close(candidates)
    fit = fit_closed_form(closed, [data])
    size = joint_complexity(candidates)
    return Combination(candidates, closed, fit, size, score(fit.sse, fit.n_observations, size, FLOOR), {})


def _score_test(data: ObservedTrajectory, rtol: float = 1e-8) -> ScoreTest:
    sizes = SYSTEM.sizes([data])
    return ScoreTest(SYSTEM, [data], SYSTEM.residual_scale([data]), sizes, RefitOptions(rtol=rtol), FLOOR)


NEARLY = {
    "U1": _candidate(c0 + c1 * x * y**2, c0=0.3, c1=-0.8),
    "U2": _candidate(c0 * x * y**2 + c1 * y, c0=1.0, c1=-0.1),
}


def test_the_summand_that_is_missing_is_among_the_most_promising() -> None:
    """That far from the optimum the estimate may put another in front; the fits decide."""
    data = _data()
    combination = _fitted(NEARLY, data)
    first, second, *others = changes(_score_test(data), combination, {"U1": POOL, "U2": POOL}, 5)
    [found] = [change for change in (first, second) if change.step == "added x to U1 = c0 + c1*x*y**2"]
    assert len(others) == 3
    assert found.score < combination.score - 100
    fits = [_fitted(change.candidates, data) for change in (first, second, *others)]
    assert str(min(fits, key=lambda c: c.score)).startswith("U1 = c0 + c1*x*y**2 + c2*x,")


def test_the_true_form_is_reached_from_one_that_no_search_offered() -> None:
    """Two summands of three on the front, the third only on its own, among others."""
    data = _data()
    singles = [_candidate(c0 * shape, c0=0.1) for shape in POOL if shape != 1 and not shape.has(sp.log)]
    fronts = {"U1": [NEARLY["U1"], *singles], "U2": [NEARLY["U2"], _candidate(c0 * x * y**2, c0=0.9)]}
    assert select(SYSTEM, fronts, [data], options=SelectionOptions(extend=0)).chosen.score > -800
    found = select(SYSTEM, fronts, [data]).chosen
    assert family(found.candidates["U1"]) == family(_candidate(c0 + c1 * x + c2 * x * y**2, c0=1.0, c1=1.0, c2=1.0))


def test_near_the_optimum_the_estimate_is_what_the_fit_finds() -> None:
    data = _data()
    full = {"U1": _candidate(c0 + c1 * x * y**2 + c2 * x, c0=0.5, c1=-1.0, c2=-0.5), "U2": NEARLY["U2"]}
    for change in changes(_score_test(data), _fitted(full, data), {"U1": POOL, "U2": POOL}, 4):
        if "dropped" not in change.step:
            assert change.score == pytest.approx(_fitted(change.candidates, data).score, abs=1.0)


def test_a_wrong_summand_is_exchanged() -> None:
    data = _data()
    wrong = {"U1": _candidate(c0 + c1 * x * y**2 + c2 * x**2, c0=0.4, c1=-0.9, c2=-0.3), "U2": NEARLY["U2"]}
    combination = _fitted(wrong, data)
    best, *_ = changes(_score_test(data), combination, {"U1": POOL, "U2": POOL}, 8)
    assert best.step == "dropped c2 of U1 = c0 + c1*x*y**2 + c2*x**2; added x to U1 = c0 + c1*x*y**2"
    assert best.score < combination.score
    assert best.score == pytest.approx(_fitted(best.candidates, data).score, abs=3.0)


def test_what_is_there_already_or_has_no_value_is_not_offered() -> None:
    """log(x - .3) does not exist along the trajectory; the others, integrated with it, do."""
    data = _data()
    found = changes(_score_test(data), _fitted(NEARLY, data), {"U1": POOL, "U2": []}, 100)
    added = {
        change.step.split("added ")[1].split(" to ")[0] for change in found if not change.step.startswith("dropped")
    }
    assert added == {"x", "y", "x*y", "x**2", "sin(y)"}


def test_summands_come_with_a_constant_of_their_own_and_leave_without_it() -> None:
    grown = with_summand(_candidate(c0 * x, c0=2.0), x * y, 0.25)
    assert (grown.expression, grown.constants, grown.complexity) == (c0 * x + c1 * x * y, {"c0": 2.0, "c1": 0.25}, 9)
    back = without(grown, ["c1"])
    assert back is not None
    assert (back.expression, back.constants) == (c0 * x, {"c0": 2.0})
    assert without(_candidate(c0 / (x - x + c1), c0=1.0, c1=2.0), ["c1"]) is None
