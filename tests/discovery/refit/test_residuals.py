"""Residuals that hang together betray a form that is wrong, however small they are; errors of measurement do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.complexity import complexity
from ude.discovery.refit.closed_system import ClosedSystem, Constant, ObservedTrajectory
from ude.discovery.refit.embedding import fit_closed_form
from ude.discovery.refit.integration import Integrator
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.refit.residuals import dependence, residual_tables
from ude.discovery.selection.selection import SelectionOptions, select

x, c0, c1, c2, c3 = sp.symbols("x c0 c1 c2 c3")
LINE = ClosedSystem(("x",), {"x": sp.Symbol("k")}, {"k": Constant(1.0)})
T = np.linspace(0.0, 1.0, 40)


def lines(values: np.ndarray) -> list[ObservedTrajectory]:
    return [ObservedTrajectory(T, row[:, None]) for row in values]


def test_independent_errors_are_hardly_ever_taken_for_something_else() -> None:
    """The statistic is about standard normal, also where the errors grow along the trajectory."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(100):
        data = lines(T + (0.02 + 0.1 * T) * random.standard_normal((2, 40)))
        found.append(dependence(data, fit_closed_form(LINE, data), 0.0)["x"].deviations)
    assert abs(np.mean(found)) < 0.5
    assert 0.7 < np.std(found) < 1.3
    assert max(found) < 3.5


def test_a_curve_taken_for_a_line_is_seen_where_the_noise_is_as_large() -> None:
    errors = 0.02 * np.random.default_rng(1).standard_normal((4, 40))
    data = lines(T + 0.25 * T**2 + errors)  # 0.019 from the closest line
    fit = fit_closed_form(LINE, data)
    seen = dependence(data, fit, 1e-3)["x"]
    assert seen.deviations > 3.5
    assert 0.2 < seen.correlation < 1.0
    assert dependence(data, fit, 1.0) == {}  # as small as that needs no explanation


def test_residuals_come_back_in_their_places() -> None:
    values = np.array([[1.0, np.nan, 2.0], [np.nan, 5.0, 6.0]]).T
    system = ClosedSystem(("x", "y"), {"x": c0, "y": c0}, {"c0": Constant(0.5)})
    data = [ObservedTrajectory(np.arange(3.0), values), ObservedTrajectory(np.arange(3.0), 2.0 * values)]
    fit = fit_closed_form(system, data, np.array([[1.0, 4.0], [2.0, 8.0]]))
    tables = residual_tables(data, fit)
    assert [np.isnan(table).tolist() for table in tables] == [np.isnan(values).tolist()] * 2
    assert np.nansum([table**2 for table in tables]) == pytest.approx(fit.sse)
    assert residual_tables(data, replace(fit, residuals=None)) == []


def test_formulas_are_tried_however_complex_until_nothing_is_left() -> None:
    """dx/dt = 1 - x + .5 sin 3x: far beyond what is tried first, where simple formulas are near."""
    system = PartialSystem(("x",), {"x": sp.Function("U1")(x)}, {"U1": ("x",)})
    true = ClosedSystem(("x",), {"x": 1 - x + sp.sin(3 * x) / 2}, {})
    times = np.linspace(0.0, 4.0, 80)
    states = [Integrator(true).solve(times, np.array([start]), {}, np.ones(1)) for start in (0.0, 3.0)]
    data = [ObservedTrajectory(times, own) for own in states if own is not None]
    assert len(data) == 2

    def candidate(expression: sp.Expr, nmse: float, **constants: float) -> Candidate:
        return Candidate(expression, constants, complexity(expression, constants), nmse, "test", True)

    near = [candidate(c0 + c1 * x**i, 5e-4 + 1e-4 * i, c0=1.2, c1=-1.0) for i in (1, 2, 3, 4, 5, 6)]
    right = candidate(c0 + c1 * x + c2 * sp.sin(c3 * x), 1e-9, c0=1.0, c1=-1.0, c2=0.4, c3=3.1)
    narrow = SelectionOptions(max_candidates=4, widen=False)
    assert "sin" not in str(select(system, {"U1": [*near, right]}, data, options=narrow).chosen)
    found = select(system, {"U1": [*near, right]}, data, options=replace(narrow, widen=True))
    assert str(found.chosen) == "U1 = c0 + c1*x + c2*sin(c3*x)"
    assert found.chosen.fit.values == pytest.approx({"U1_c0": 1.0, "U1_c1": -1.0, "U1_c2": 0.5, "U1_c3": 3.0}, rel=1e-4)
