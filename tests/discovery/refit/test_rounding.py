"""Printed constants follow the trajectory of the full ones."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

from ude.discovery.refit.closed_system import ClosedSystem, Constant, ObservedTrajectory
from ude.discovery.refit.rounding import as_printed, digits_needed

T = np.linspace(1900.0, 1950.0, 26)
PHASE = {"w": 0.5235987755982988, "c": 995.1371426}


def forced() -> ClosedSystem:
    """dx/dt = cos(w t - c), whose phase near t = 1900 is a small difference of two large numbers."""
    t, w, c = sp.symbols("t w c")
    return ClosedSystem(("x",), {"x": sp.cos(w * t - c)}, {"w": Constant(0.5), "c": Constant(995.0)})


def solved(w: float, c: float) -> np.ndarray:
    return (np.sin(w * T - c) - np.sin(w * T[0] - c)) / w


def needed(system: ClosedSystem, values: dict[str, float], noise: dict[str, float], t: np.ndarray = T) -> int:
    seen = [ObservedTrajectory(t, np.zeros((len(t), len(system.states))))]
    u0 = np.zeros((1, len(system.states)))
    u0[:, 0] = 0.5 if len(system.states) == 1 and "r" in values else 0.0
    return digits_needed(system, values, u0, seen, np.ones(len(system.states)), noise)


def test_a_phase_is_printed_with_the_digits_that_the_curve_needs() -> None:
    digits = needed(forced(), PHASE, {})
    whole = solved(**PHASE)
    error = {n: np.abs(solved(**{k: float(f"{v:.{n}g}") for k, v in PHASE.items()}) - whole).max() for n in (4, digits)}
    assert error[4] > 0.03 * np.ptp(whole)
    assert error[digits] <= 1e-3 * np.ptp(whole)
    assert digits <= 9


def test_a_tenth_of_the_noise_is_allowed_where_it_is_more() -> None:
    exact, noisy = needed(forced(), PHASE, {}), needed(forced(), PHASE, {"x": 2.0})
    error = np.abs(solved(**{k: float(f"{v:.{noisy}g}") for k, v in PHASE.items()}) - solved(**PHASE)).max()
    assert error <= 0.2
    assert noisy < exact


def test_four_digits_are_enough_for_a_curve_that_forgives() -> None:
    x, r, k = sp.symbols("x r k")
    logistic = ClosedSystem(("x",), {"x": r * x - k * x**2}, {"r": Constant(1.0), "k": Constant(1.0)})
    values = {"r": 0.80004321, "k": 0.1000321}
    assert needed(logistic, values, {}, np.linspace(0.0, 12.0, 20)) == 4


def test_the_printed_system_has_the_rounded_numbers_and_solves_as_they_do() -> None:
    [rate] = as_printed(forced(), PHASE, 4).equations.values()
    found = solve_ivp(lambda t, x: [float(rate.subs("t", t))], (T[0], T[-1]), [0.0], t_eval=T, rtol=1e-8, atol=1e-10)
    assert found.y[0] == pytest.approx(solved(0.5236, 995.1), abs=1e-5)


def test_inputs_of_a_trajectory_keep_their_names() -> None:
    x, k, dose = sp.symbols("x k dose")
    system = ClosedSystem(("x",), {"x": dose - k * x}, {"k": Constant(1.0), "dose": Constant(0.0)})
    assert as_printed(system, {"k": 0.123456}, 4).equations == {"x": dose - sp.Float(0.1235) * x}
    seen = [ObservedTrajectory(np.linspace(0, 5, 6), np.zeros((6, 1)), {"dose": 2.0})]
    assert digits_needed(system, {"k": 0.123456}, np.zeros((1, 1)), seen, np.ones(1), {}) == 4
