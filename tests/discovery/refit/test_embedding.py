"""Closed-form systems on data: published values, exact sensitivities, and formulas that blow up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import solve_ivp

import ude
from ude.discovery.refit.closed_system import ClosedSystem, Constant, ObservedTrajectory, state_scale
from ude.discovery.refit.embedding import RefitOptions, fit_closed_form
from ude.discovery.refit.integration import Integrator
from ude.errors import DataError, InputError, ModelError

hare, lynx, a, b, c, d, k, t = sp.symbols("hare lynx a b c d k t")

# Pelts traded by the Hudson's Bay Company, thousands a year (Hewitt 1921, as tabulated by P. Howard, Texas A&M).
HARE = [
    30,
    47.2,
    70.2,
    77.4,
    36.3,
    20.6,
    18.1,
    21.4,
    22,
    25.4,
    27.1,
    40.3,
    57,
    76.6,
    52.3,
    19.5,
    11.2,
    7.6,
    14.6,
    16.2,
    24.7,
]
LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
PELTS = ObservedTrajectory(np.arange(21.0), np.stack([HARE, LYNX], axis=1))

LOTKA_VOLTERRA = ClosedSystem(
    ("hare", "lynx"),
    {"hare": a * hare - b * hare * lynx, "lynx": d * hare * lynx - c * lynx},
    {"a": Constant(0.5, 0.0), "b": Constant(0.02, 0.0), "c": Constant(0.8, 0.0), "d": Constant(0.02, 0.0)},
)


def test_hudson_bay_least_squares_is_the_published_one() -> None:
    """Unscaled least squares, initial states fitted too: a=.481 b=.0248 c=.926 d=.0275, RMSE 4.28 and 3.17."""
    fit = fit_closed_form(LOTKA_VOLTERRA, [PELTS], scale=np.ones(2))
    assert fit.success
    assert [fit.values[name] for name in "abcd"] == pytest.approx([0.481, 0.0248, 0.926, 0.0275], rel=2e-3)
    rmse = [np.sqrt(fit.sse_per_state[name] / 21) for name in ("hare", "lynx")]
    assert rmse == pytest.approx([4.28, 3.17], abs=0.01)
    assert fit.n_observations == 42


def test_hudson_bay_with_log_normal_noise_is_that_of_stans_case_study() -> None:
    """B. Carpenter, Predator-Prey Population Dynamics (2018): posterior means .55, .028, .80, .024, noise .25."""
    noise = {"hare": ude.noise.LogNormal(0.25), "lynx": ude.noise.LogNormal(0.25)}
    fit = fit_closed_form(replace(LOTKA_VOLTERRA, noise=noise), [PELTS], scale=np.ones(2))
    assert fit.success
    assert [fit.values[name] for name in "abcd"] == pytest.approx([0.55, 0.028, 0.80, 0.024], rel=0.05)
    sigma = [
        0.25 * np.sqrt(fit.sse_per_state[name] / 17) for name in ("hare", "lynx")
    ]  # of 21, two constants each and u0
    assert sigma == pytest.approx([0.25, 0.25], rel=0.15)


def test_jacobian_of_stabilized_counts_is_that_of_differences() -> None:
    rates = {"x": -k * sp.Symbol("x")}
    decay = ClosedSystem(("x",), rates, {"k": Constant(0.4)}, noise={"x": ude.noise.Poisson()})
    data = [ObservedTrajectory(np.arange(6.0), np.array([[50.0], [31.0], [24.0], [14.0], [12.0], [6.0]]))]
    fixed = RefitOptions(max_iterations=1)
    fit = fit_closed_form(decay, data, np.array([[50.0]]), np.ones(1), fixed)

    def residuals(rate: float, start: float) -> np.ndarray:
        """By hand: 2 sqrt(y + 3/8)."""
        return 2 * np.sqrt(start * np.exp(-rate * np.arange(6.0)) + 0.375) - 2 * np.sqrt(data[0].u[:, 0] + 0.375)

    rate, start = fit.values["k"], fit.u0[0, 0]
    np.testing.assert_allclose(fit.residuals, residuals(rate, start), rtol=1e-6, atol=1e-6)
    by_rate = (residuals(rate + 1e-6, start) - residuals(rate - 1e-6, start)) / 2e-6
    np.testing.assert_allclose(fit.jacobian[:, 0] / fit.slopes[0], by_rate, rtol=1e-5, atol=1e-5)
    assert fit.sse == pytest.approx(sum(fit.sse_per_state.values()), rel=1e-6)


def test_a_fit_costs_some_ten_thousand_right_hand_sides() -> None:
    assert fit_closed_form(LOTKA_VOLTERRA, [PELTS]).rhs_calls < 20_000


def test_sensitivities_are_the_derivatives_of_the_solution() -> None:
    """Against central differences of solutions by another integrator (DOP853)."""
    values = {"a": 0.48, "b": 0.025, "c": 0.93, "d": 0.028}
    u0, times, scale = np.array([33.0, 4.0]), np.linspace(0.0, 12.0, 13), np.array([20.0, 15.0])
    units = np.array([0.5, 0.02, 0.9, 0.03, 20.0, 15.0])
    found = Integrator(LOTKA_VOLTERRA, rtol=1e-10).sensitivities(times, u0, values, scale, units)
    assert found is not None

    def solution(p: np.ndarray) -> np.ndarray:
        def rates(_: float, u: np.ndarray) -> list[float]:
            return [p[0] * u[0] - p[1] * u[0] * u[1], p[3] * u[0] * u[1] - p[2] * u[1]]

        return solve_ivp(rates, (0, 12), p[4:], "DOP853", times, rtol=1e-12, atol=1e-12).y.T

    point = np.array([*values.values(), *u0])
    assert found[0] == pytest.approx(solution(point), rel=1e-7)
    for index in range(6):
        step = np.zeros(6)
        step[index] = 1e-5 * point[index]
        difference = (solution(point + step) - solution(point - step)) / (2 * step[index])
        size = np.abs(difference).max()
        assert np.abs(found[1][:, :, index] - difference).max() < 1e-6 * size


def test_several_trajectories_share_constants_and_keep_their_own_initial_states() -> None:
    truth = {"a": 0.5, "b": 0.03, "c": 0.8, "d": 0.02}
    integrator = Integrator(LOTKA_VOLTERRA)
    starts = np.array([[30.0, 5.0], [60.0, 20.0], [20.0, 30.0]])
    times = np.linspace(0.0, 15.0, 25)
    data = [integrator.solve(times, start, truth, np.ones(2)) for start in starts]
    fit = fit_closed_form(
        LOTKA_VOLTERRA, [ObservedTrajectory(times, u) for u in data if u is not None], u0=1.1 * starts
    )
    assert fit.values == pytest.approx(truth, rel=1e-6)
    assert fit.u0 == pytest.approx(starts, rel=1e-6)


def test_states_that_were_not_observed_are_left_out() -> None:
    truth = {"a": 0.5, "b": 0.03, "c": 0.8, "d": 0.02}
    times = np.linspace(0.0, 15.0, 31)
    data = Integrator(LOTKA_VOLTERRA).solve(times, np.array([30.0, 5.0]), truth, np.ones(2))
    assert data is not None
    data[::2, 1] = np.nan
    fit = fit_closed_form(LOTKA_VOLTERRA, [ObservedTrajectory(times, data)])
    assert fit.n_observations == 31 + 15
    assert fit.values == pytest.approx(truth, rel=1e-5)


def test_initial_states_stay_where_they_are_put_when_not_fitted() -> None:
    fit = fit_closed_form(LOTKA_VOLTERRA, [PELTS], u0=np.array([[34.0, 5.0]]), options=RefitOptions(fit_u0=False))
    assert fit.u0.tolist() == [[34.0, 5.0]]
    assert fit.sse > fit_closed_form(LOTKA_VOLTERRA, [PELTS]).sse


def test_fixed_constants_do_not_move_and_bounds_hold() -> None:
    parameters = {**LOTKA_VOLTERRA.parameters, "a": Constant(0.6, fitted=False), "c": Constant(0.7, 0.0, 0.8)}
    system = ClosedSystem(LOTKA_VOLTERRA.states, LOTKA_VOLTERRA.equations, parameters)
    fit = fit_closed_form(system, [PELTS])
    assert fit.values["a"] == 0.6
    assert fit.values["c"] <= 0.8


def test_stiff_constants_are_found() -> None:
    """Robertson's kinetics (1966): rates over nine decades, observed at times over five."""
    y1, y2, y3, k1, k2, k3 = sp.symbols("y1 y2 y3 k1 k2 k3")
    rates = {"y1": -k1 * y1 + k3 * y2 * y3, "y2": k1 * y1 - k2 * y2**2 - k3 * y2 * y3, "y3": k2 * y2**2}
    truth = {"k1": 0.04, "k2": 3e7, "k3": 1e4}
    system = ClosedSystem(
        ("y1", "y2", "y3"), rates, {name: Constant(1.5 * value, 0.0) for name, value in truth.items()}
    )
    times = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 40)])
    u0 = np.array([1.0, 0.0, 0.0])

    def robertson(_: float, u: np.ndarray) -> list[float]:
        r1, r2, r3 = 0.04 * u[0], 3e7 * u[1] ** 2, 1e4 * u[1] * u[2]
        return [-r1 + r3, r1 - r2 - r3, r2]

    data = solve_ivp(robertson, (0, 1e3), u0, "Radau", times, rtol=1e-10, atol=1e-14).y.T
    fit = fit_closed_form(
        system, [ObservedTrajectory(times, data)], u0=u0[None], options=RefitOptions(fit_u0=False, max_seconds=30.0)
    )
    assert fit.values == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(
    "rate",
    [
        k * hare**2,  # a pole in finite time
        sp.exp(k * hare * lynx),  # overflows at once
        k * hare / (hare - 29),  # a pole on the way
        sp.sqrt(25 - hare) * k,  # leaves the reals
        k * sp.log(hare - 60),
    ],
)
def test_a_formula_that_blows_up_costs_little_and_raises_nothing(rate: sp.Expr) -> None:
    system = ClosedSystem(
        ("hare", "lynx"),
        {"hare": rate, "lynx": d * hare * lynx - c * lynx},
        {"k": Constant(0.5), "c": Constant(0.8), "d": Constant(0.02)},
    )
    fit = fit_closed_form(system, [PELTS], options=RefitOptions(max_rhs_calls=20_000, max_seconds=3.0))
    assert fit.rhs_calls <= 20_000
    assert fit.sse > 10.0  # of 42: nothing that could be chosen; infinite where there is no solution at all
    assert not (fit.success and fit.sse == np.inf)


def test_a_power_that_turns_complex_is_no_solution() -> None:
    """x falls below zero, and x**(3/2) is complex there: for Python's floats a value like any other."""
    x = sp.Symbol("x")
    system = ClosedSystem(("x",), {"x": -1 + k * x ** sp.Rational(3, 2)}, {"k": Constant(0.1)})
    integrator = Integrator(system)
    assert integrator.solve(np.array([0.0, 0.3]), np.array([0.5]), {"k": 0.1}, np.ones(1)) is not None
    assert integrator.solve(np.array([0.0, 2.0]), np.array([0.5]), {"k": 0.1}, np.ones(1)) is None
    fit = fit_closed_form(system, [ObservedTrajectory(np.linspace(0.0, 2.0, 9), np.linspace(0.5, -1.5, 9)[:, None])])
    assert fit.sse == np.inf


def test_the_budget_ends_a_fit_and_keeps_the_best_so_far() -> None:
    fit = fit_closed_form(LOTKA_VOLTERRA, [PELTS], options=RefitOptions(max_rhs_calls=3_000))
    assert fit.rhs_calls <= 3_000
    assert not fit.success
    assert fit.message == "stopped after 3000 right-hand-side calls: budget spent"
    assert np.isfinite(fit.sse)
    slow = fit_closed_form(LOTKA_VOLTERRA, [PELTS], options=RefitOptions(max_seconds=1e-4))
    assert "budget spent" in slow.message


def test_growing_stretches_rescue_a_start_that_is_out_of_phase() -> None:
    poor = {name: Constant(constant.start * 2.0, 0.0) for name, constant in LOTKA_VOLTERRA.parameters.items()}
    system = ClosedSystem(LOTKA_VOLTERRA.states, LOTKA_VOLTERRA.equations, poor)
    rescued = fit_closed_form(system, [PELTS])
    alone = fit_closed_form(system, [PELTS], options=RefitOptions(horizons=()))
    assert rescued.sse < 2.0 < alone.sse


def test_more_starts_repeat_themselves_and_never_do_worse() -> None:
    options = RefitOptions(starts=4, seed=3)
    first, second = (fit_closed_form(LOTKA_VOLTERRA, [PELTS], options=options) for _ in range(2))
    assert first.values == second.values
    assert first.sse <= fit_closed_form(LOTKA_VOLTERRA, [PELTS]).sse * (1 + 1e-9)


def test_time_may_stand_in_the_equations() -> None:
    x = sp.Symbol("x")
    system = ClosedSystem(("x",), {"x": k * sp.cos(t)}, {"k": Constant(1.0)})
    times = np.linspace(0.0, 6.0, 20)
    fit = fit_closed_form(system, [ObservedTrajectory(times, 0.5 + 3.0 * np.sin(times)[:, None])])
    assert fit.values["k"] == pytest.approx(3.0, rel=1e-6)
    assert fit.u0[0, 0] == pytest.approx(0.5, rel=1e-5)
    assert str(x) in system.states


def test_absolute_values_have_sensitivities() -> None:
    v = sp.Symbol("v")
    system = ClosedSystem(("v",), {"v": -k * v * sp.Abs(v)}, {"k": Constant(0.2, 0.0)})
    times = np.linspace(0.0, 5.0, 20)
    fit = fit_closed_form(system, [ObservedTrajectory(times, (-3.0 / (1.0 + 0.5 * 3.0 * times))[:, None])])
    assert fit.values["k"] == pytest.approx(0.5, rel=1e-5)


def test_scale_is_the_deviation_of_the_data() -> None:
    assert state_scale([PELTS]) == pytest.approx([np.std(HARE), np.std(LYNX)])
    flat = ObservedTrajectory(np.arange(3.0), np.array([[5.0, np.nan, 0.0]] * 3))
    assert state_scale([flat]).tolist() == [5.0, 1.0, 1.0]


def test_wrong_input_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match=r"unknown symbol in dx/dt = q\*x: expected one of \['t', 'x'\], got q"):
        ClosedSystem(("x",), {"x": sp.Symbol("q") * sp.Symbol("x")})
    with pytest.raises(ModelError, match="no equation for y"):
        ClosedSystem(("x", "y"), {"x": sp.Symbol("x")})
    with pytest.raises(ModelError, match="dx/dt still holds an unknown function: U1"):
        ClosedSystem(("x",), {"x": sp.Function("U1")(sp.Symbol("x"))})
    with pytest.raises(DataError, match="times of a trajectory must increase. Sort the rows"):
        ObservedTrajectory(np.array([0.0, 2.0, 1.0]), np.zeros((3, 1)))
    with pytest.raises(DataError, match=r"trajectory: expected t \(T,\) and u \(T, state\)"):
        ObservedTrajectory(np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match=r"trajectory 0: expected 2 columns \(hare, lynx\), got 1"):
        fit_closed_form(LOTKA_VOLTERRA, [ObservedTrajectory(np.arange(3.0), np.ones((3, 1)))])
    with pytest.raises(DataError, match="no trajectories to fit"):
        fit_closed_form(LOTKA_VOLTERRA, [])
    with pytest.raises(DataError, match="nothing was observed"):
        fit_closed_form(LOTKA_VOLTERRA, [ObservedTrajectory(np.arange(3.0), np.full((3, 2), np.nan))])
    system = ClosedSystem(("x",), {"x": k * sp.Symbol("x")}, {"k": Constant(-1.0, 0.0)})
    with pytest.raises(InputError, match="start value of k: expected within 0 to inf, got -1"):
        fit_closed_form(system, [ObservedTrajectory(np.arange(3.0), np.ones((3, 1)))])
