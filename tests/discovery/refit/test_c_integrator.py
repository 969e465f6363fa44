"""The C program that integrates formulas, against LSODA on plain Python functions, differences and known solutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp

from ude.compile.build import why_no_compiler
from ude.discovery.evaluation import evaluate
from ude.discovery.refit import c_integrator as native
from ude.discovery.refit.c_integrator import DONE, NOWHERE, SPENT, STIFF, FormulaProgram
from ude.discovery.refit.closed_system import ClosedSystem, Constant, Forcing, ObservedTrajectory
from ude.discovery.refit.integration import BudgetSpent, Integrator, simulate
from ude.errors import EngineRefused
from ude.models import UDE, parse_expression
from ude.models.equations.functions import sigmoid

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="needs a C compiler")

X, Y, A, B, T = sp.symbols("x y a b t")
TIMES = np.linspace(0.0, 2.0, 21)
START = np.array([0.7, 0.4])
VALUES = {"a": 0.8, "b": 0.6}


def _system(dx: sp.Expr, dy: sp.Expr = -Y / 2) -> ClosedSystem:
    return ClosedSystem(("x", "y"), {"x": dx, "y": sp.sympify(dy)}, {"a": Constant(0.8), "b": Constant(0.6)})


def _python_only(system: ClosedSystem) -> Integrator:
    integrator = Integrator(system)
    integrator._native = {True: None, False: None}
    return integrator


OPERATIONS = [
    *(
        A * X + B * Y,
        A * X * Y - X,
        X / (B + Y),
        1 / (A * X + 1) ** 3,
        X**7 - A,
        (A + Y) ** B,
        X**2.5,
        X**B,
        3.0 * X**-2,
    ),
    *(sp.sqrt(A * X), sp.exp(-B * X), sp.log(A + X), sp.sin(A * X), sp.cos(B * X), sp.tan(X * B), sp.tanh(X - Y)),
    *(sp.sinh(B * X), sp.cosh(A * Y), sp.asin(X * B / 2), sp.acos(X * B / 3), sp.atan(A / X), sp.Abs(X - A)),
    *(sp.sign(X - 2) * A, sigmoid(A * X), sp.Heaviside(X + B), sp.Min(X, 2 * Y, 5), sp.Max(A * X, Y)),
    *(A + T * X, sp.pi * X - sp.E * B, sp.Integer(0), A - sp.Rational(1, 3)),
]


@pytest.mark.parametrize("rate", OPERATIONS, ids=str)
def test_solutions_and_sensitivities_are_those_of_lsoda(rate: sp.Expr) -> None:
    system = _system(rate / 2)
    compiled, plain = Integrator(system), _python_only(system)
    u, s = compiled.sensitivities(TIMES, START, VALUES, np.ones(2), np.ones(4))  # type: ignore[misc]
    expected, slopes = plain.sensitivities(TIMES, START, VALUES, np.ones(2), np.ones(4))  # type: ignore[misc]
    assert isinstance(compiled._native[True], FormulaProgram)
    assert u == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert s == pytest.approx(slopes, rel=1e-5, abs=1e-6)
    assert compiled.solve(TIMES, START, VALUES, np.ones(2)) == pytest.approx(u, rel=1e-6, abs=1e-7)


def test_sensitivities_are_differences_of_solutions() -> None:
    integrator = Integrator(_system(A * X - B * X * Y, X * Y - A * sp.sin(Y)), rtol=1e-11)
    _, slopes = integrator.sensitivities(TIMES, START, VALUES, np.ones(2), np.ones(4))  # type: ignore[misc]
    for column in range(4):
        ends = []
        for sign in (1, -1):
            moved, start = dict(VALUES), START.copy()
            if column < 2:
                moved["ab"[column]] += sign * 1e-5
            else:
                start[column - 2] += sign * 1e-5
            ends.append(integrator.solve(TIMES, start, moved, np.ones(2)))
        assert slopes[..., column] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_errors_follow_the_tolerance_at_and_between_steps(rtol: float) -> None:
    times = np.sort(np.random.default_rng(0).uniform(0.0, 20.0, 200))
    found = Integrator(_system(Y, -X), rtol).solve(times, START, VALUES, np.ones(2))
    assert found is not None
    shift = times - times[0]
    exact = START[0] * np.cos(shift) + START[1] * np.sin(shift)
    assert np.abs(found[:, 0] - exact).max() < 20 * rtol


def test_a_step_over_many_times_and_many_steps_between_two() -> None:
    dense, sparse = np.linspace(0.0, 0.1, 500), np.array([0.0, 30.0])
    for times in (dense, sparse):
        found = Integrator(_system(-A * X)).solve(times, START, VALUES, np.ones(2))
        assert found is not None
        assert found[:, 0] == pytest.approx(0.7 * np.exp(-0.8 * times), rel=1e-7, abs=1e-10)


@pytest.mark.parametrize(
    "rate", [X**2 * 3, 1 / (X - sp.Rational(1, 2)) ** 2 * -1, sp.log(X) / 2, sp.exp(sp.exp(9 * X)), -sp.sqrt(X)]
)
def test_what_has_no_solution_has_none(rate: sp.Expr) -> None:
    outcome, _, calls = FormulaProgram(_system(rate), None).run(
        TIMES, START, [0.8, 0.6], 1e-8, np.full(2, 1e-10), 10**6
    )
    assert outcome == NOWHERE
    assert calls < 200_000
    assert Integrator(_system(rate)).solve(TIMES, START, VALUES, np.ones(2)) is None


def test_stiff_solutions_are_left_to_lsoda() -> None:
    system = _system(-1e5 * (X - sp.cos(T)) - sp.sin(T))
    outcome, _, calls = FormulaProgram(system, [0]).run(
        TIMES, np.append(START, np.zeros(6)), [0.8, 0.6], 1e-8, np.full(8, 1e-9), 10**6
    )
    assert outcome == STIFF
    assert calls < 3000
    found = Integrator(system).solve(TIMES, np.array([1.0, 0.4]), VALUES, np.ones(2))
    assert found is not None
    assert found[:, 0] == pytest.approx(np.cos(TIMES), abs=1e-6)


def test_calls_are_counted_and_end_with_the_budget() -> None:
    integrator = Integrator(_system(Y * 30, -X * 30))
    integrator.max_calls = 100
    with pytest.raises(BudgetSpent):
        integrator.solve(TIMES, START, VALUES, np.ones(2))
    assert 100 <= integrator.calls < 130
    assert FormulaProgram(_system(-X), None).run(TIMES, START, [0.8, 0.6], 1e-8, np.full(2, 1e-10), 0)[0] == SPENT
    outcome, _, calls = FormulaProgram(_system(-X), None).run(TIMES, START, [0.8, 0.6], 1e-8, np.full(2, 1e-10), 10**6)
    assert outcome == DONE
    assert calls < 200


def test_measured_inputs_and_rare_functions_are_left_to_lsoda() -> None:
    forced = Integrator(_system(A - X))
    course = Forcing((0.0, 2.0), (0.0, 2.0))
    found = forced.solve(TIMES, START, {"a": course, "b": 0.6}, np.ones(2))
    assert found is not None
    assert found[:, 0] == pytest.approx(TIMES - 1 + 1.7 * np.exp(-TIMES), abs=1e-6)
    rare = Integrator(_system(-sp.erf(X)))
    assert rare.solve(TIMES, START, VALUES, np.ones(2)) is not None
    assert rare._native == {False: None}


def test_without_a_compiler_formulas_are_integrated_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise EngineRefused("there is no C compiler")

    monkeypatch.setattr(native, "_library", refuse)
    found = Integrator(_system(-A * X)).solve(TIMES, START, VALUES, np.ones(2))
    assert found is not None
    assert found[:, 0] == pytest.approx(0.7 * np.exp(-0.8 * TIMES), rel=1e-6)


def test_what_occurs_twice_is_computed_once() -> None:
    once = len(FormulaProgram(_system(sp.sin(X * Y), X), None)._code)
    twice = len(FormulaProgram(_system(sp.sin(X * Y), B * sp.sin(X * Y)), None)._code)
    assert (once, twice) == (2, 3)


def test_a_closed_system_with_conditions_is_integrated_and_differentiated() -> None:
    switched = "dx/dt = where(x >= 1.0 and t != 9, -k*x, where(t < 1 or x <= 0.1, -0.5, -x))"
    t = np.array([0.0, 0.5, 1.0])
    system = ClosedSystem(("x",), UDE(switched, fit="k=1.2").explicit(values=False), {"k": Constant(1.2)})
    observed = ObservedTrajectory(t, np.zeros((3, 1)))
    [x] = simulate(Integrator(system), [observed], np.array([[2.0]]), {"k": 1.2}, np.ones(1))
    assert x[:, 0] == pytest.approx([2.0, 2 * math.exp(-0.6), 1 - 0.5 * (1 - math.log(2) / 1.2)], rel=1e-5)
    values = evaluate(parse_expression("where(x < 1, x, 2*x)"), {"x": t})
    assert values.tolist() == [0.0, 0.5, 2.0]
