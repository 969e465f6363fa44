"""Gauss-Newton steps: their Jacobian against reverse sweeps, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from ude.fitting.optimizers.gauss_newton import GaussNewton
from ude.fitting.posterior.variational import Grid, Variational
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.shooting import Shooting, SolverOptions, cut
from ude.fitting.simulation.stiffness import algorithm_for
from ude.fitting.smoothing.smooth import interpolate_rare, smooth

T = np.linspace(0.0, 3.0, 16)


def volterra(t, u):
    return [1.3 * u[0] - 0.9 * u[0] * u[1], 0.8 * u[0] * u[1] - 1.8 * u[1]]


def network(seed=0, fit="delta"):
    return ude.UDE(
        "dx/dt = 1.3*x - U1(x, y)\ndy/dt = U2(x, y) - delta*y",
        parameters={"delta": 1.8},
        fit=fit,
        unknown=ude.MLP("U1, U2", inputs="x, y", width=4, seed=seed),
    )


def data(level=0.005, missing=()):
    clean = solve_ivp(volterra, (0.0, 3.0), [0.44, 4.6], t_eval=T, rtol=1e-10, atol=1e-12).y.T
    values = clean + level * clean.mean(0) * np.random.default_rng(0).standard_normal(clean.shape)
    for row in missing:
        values[row, 1] = np.nan
    return ude.Dataset.from_arrays(T, values, "x, y")


@pytest.mark.parametrize("positive", [[True, True], [False, True]])
def test_sensitivities_are_the_derivatives_of_the_solve(positive):
    model, windows = network(), cut(data(), 8)
    field = InnerField(model, Coordinates(positive, [1.0, 2.0]))
    case = Shooting(field, windows, torch.ones(2), torch.ones(2), SolverOptions(tolerance=1e-9))
    parameters = list(model.parameters())
    starts = field.coordinates.inner(windows.u[:, 0]).requires_grad_()
    grid = Grid.of(windows.t, case.accepted_times(starts))
    with torch.no_grad():
        found = Variational(field, parameters)(grid, case.at(starts, grid.nodes))
    z, _ = case.simulated(starts)
    for window, time, state in ((0, 8, 0), (1, 3, 1), (1, 8, 1)):
        parts = torch.autograd.grad(z[window, time, state], [*parameters, starts], retain_graph=True)
        expected = torch.cat([*(part.reshape(-1) for part in parts[:-1]), parts[-1][window]])
        torch.testing.assert_close(found[window, time, state], expected, rtol=1e-5, atol=1e-6)


def test_the_linear_equation_is_integrated_with_order_five():
    model = ude.UDE("dx/dt = -k*x", parameters={"k": 2.0}, fit="k")
    field = InnerField(model, Coordinates([False], [1.0]))
    wrong = []
    for steps in (4, 8):
        t = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64).unsqueeze(0)
        grid = Grid.of(t, t)
        s = Variational(field, list(model.parameters()))(grid, torch.exp(-2.0 * grid.nodes).unsqueeze(-1))
        exact = torch.exp(-2.0 * t[0])
        # of log k, in which k is fitted
        torch.testing.assert_close(s[0, :, 0, 0], -2.0 * t[0] * exact, rtol=1e-4, atol=1e-12)
        wrong.append(float((s[0, -1, 0, -1] - exact[-1]).abs()))
    assert abs(np.log2(wrong[0] / wrong[1]) - 5.0) < 0.2


def test_the_noise_and_not_more_is_left_and_the_prior_follows_it():
    fits = {level: ude.fit(network(fit=None), data(level), holdout=0, progress=False) for level in (0.005, 0.1)}
    for level, fit in fits.items():
        sigma = level * np.nanmean(fit.data.values(), axis=0)
        relative = np.array([fit.rmse()[state] for state in "xy"]) / sigma
        assert (relative > 0.4).all()
        assert (relative < 1.2).all()
    assert max(fits[0.005].history.query("stage == 'single shooting'").iteration) <= 40


def test_a_column_of_few_values_is_not_called_noise():
    rare = data(missing=[row for row in range(16) if row % 6])
    smoothing = interpolate_rare(smooth(rare, [True, True]), rare)
    own = rare.trajectories[0].measured[:, 1]
    np.testing.assert_allclose(smoothing(0, T[own])[0][:, 1], rare.values()[own, 1], rtol=1e-9)
    assert smoothing.noise[1] < 0.1 * np.nanstd(rare.values()[:, 1])


def test_stiff_equations_get_a_stiff_method_and_others_tsit5():
    z = torch.ones(10, 1, dtype=torch.float64)
    t, rows = torch.linspace(0.0, 1.0, 10, dtype=torch.float64), torch.zeros(10, dtype=torch.long)
    for rate, name in ((1.0, "Tsit5"), (1e5, "KenCarp4")):
        model = ude.UDE("dx/dt = -k*(x - 1.0)", parameters={"k": rate})
        field = InnerField(model, Coordinates([False], [1.0]))
        assert algorithm_for(field, z, t, rows, 10).name == name


def test_gauss_newton_says_when_it_cannot_be_used():
    model, stage = network(), ude.stages.DerivativeMatching((GaussNewton(3),))
    with pytest.raises(ude.errors.InputError, match="GaussNewton needs a shooting stage"):
        ude.fit(model, data(), holdout=0, progress=False, stages=stage)


def test_a_stiff_fit_runs_from_the_data_to_the_prediction():
    """Robertson's kinetics: found stiff, trained and predicted with a method that stays cheap."""
    t = np.concatenate([[0.0], np.logspace(-2.0, 3.0, 14)])
    model = ude.UDE(
        ["da/dt = -k1*a + k3*b*c", "db/dt = k1*a - k3*b*c - 3e7*b**2", "dc/dt = 3e7*b**2"],
        parameters={"k1": 0.04, "k3": ude.Parameter(3e3, lower=0.0)},
        fit="k3",
    )
    start = [1.0, 0.0, 0.0]
    truth = model.replace({})
    truth.set_values({"k3": 1e4})
    clean = ude.solve(truth.problem(start, (0.0, 1e3)), ude.KenCarp4(), saveat=t, reltol=1e-8, abstol=1e-12).u
    data = ude.Dataset.from_arrays(t, clean.detach().numpy(), "a, b, c")
    fit = ude.fit(model, data, holdout=0, u0=[start], positive=False, progress=False, stages="single shooting")
    assert any("KenCarp4" in note for note in fit.notes)
    assert fit.model.values()["k3"] == pytest.approx(1e4, rel=1e-4)
    np.testing.assert_allclose(fit.predict()[0], clean.detach().numpy(), rtol=2e-3, atol=1e-6)
