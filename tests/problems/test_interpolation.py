"""Interpolation against SciPy's, its gradients, ragged grids, and as the forcing of a solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import Akima1DInterpolator, CubicSpline, PchipInterpolator, interp1d

import ude

T = np.array([0.0, 0.4, 1.0, 1.1, 2.5, 3.0, 4.2])
Y = np.array([1.0, 1.5, -0.3, -0.2, -0.2, 2.0, 0.5])
ASKED = np.linspace(0.0, 4.2, 173)
PEERS = {
    "constant": interp1d(T, Y, kind="previous"),
    "linear": interp1d(T, Y),
    "cubic": CubicSpline(T, Y, bc_type="natural"),
    "pchip": PchipInterpolator(T, Y),
    "akima": Akima1DInterpolator(T, Y),
}


@pytest.mark.parametrize("kind", PEERS)
def test_values_agree_with_scipy(kind):
    ours = ude.Interpolation(T, Y, kind)(torch.as_tensor(ASKED))
    np.testing.assert_allclose(ours.numpy(), PEERS[kind](ASKED), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PEERS)
def test_channels_are_interpolated_each_by_itself(kind):
    two = ude.Interpolation(T, np.stack([Y, Y[::-1]], -1), kind)(torch.as_tensor(ASKED))
    for channel, values in enumerate((Y, Y[::-1].copy())):
        alone = ude.Interpolation(T, values, kind)(torch.as_tensor(ASKED))
        torch.testing.assert_close(two[:, channel], alone, rtol=0, atol=0)


@pytest.mark.parametrize("kind", PEERS)
def test_gradients_reach_the_values_and_the_time(kind):
    function = ude.Interpolation(T, Y, kind, trainable=True)
    # away from knots, where kinds jump
    t = torch.tensor([0.2, 0.7, 1.05, 2.0, 2.7, 4.0], dtype=torch.float64, requires_grad=kind != "constant")

    def at(values: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(function, {"values": values}, (times,))

    values = function.values.detach().clone().requires_grad_()
    # the flat stretch of Y is a corner of Akima's and Fritsch's weights: move off it
    values.data += 0.05 * torch.sin(torch.arange(len(T)).double()).view(1, -1, 1)
    assert torch.autograd.gradcheck(at, (values, t))


def test_outside_the_grid_the_ends_hold_or_nan_says_so():
    t = torch.tensor([-1.0, 0.0, 4.2, 9.0], dtype=torch.float64)
    for kind in PEERS:
        assert ude.Interpolation(T, Y, kind)(t).tolist() == pytest.approx([Y[0], Y[0], Y[-1], Y[-1]])
        strict = ude.Interpolation(T, Y, kind, outside="error")(t)
        assert strict.isnan().tolist() == [True, False, False, True]
    assert ude.Interpolation(T, Y).covers(0.0, 4.2)
    assert not ude.Interpolation(T, Y).covers(-0.1, 1.0)


@pytest.mark.parametrize("kind", PEERS)
def test_ragged_grids_are_read_each_by_its_trajectory(kind):
    grids, values = [T, T[:4] + 0.1], [Y, 2 * Y[:4]]
    together = ude.Interpolation(grids, values, kind)
    t = torch.tensor([[0.3, 0.9], [3.7, 1.2]], dtype=torch.float64)
    for i in range(2):
        alone = ude.Interpolation(grids[i], values[i], kind)(t[:, i])
        torch.testing.assert_close(together(t)[:, i], alone, rtol=1e-14, atol=1e-14)
    with pytest.raises(
        ude.errors.InputError, match=r"t must be one time for each grid: expected one time for each of 2 trajectories"
    ):
        together(torch.tensor(0.3))


def test_a_forced_solve_integrates_the_forcing():
    forcing = ude.Interpolation(T, Y, "pchip")
    prob = ude.ODEProblem(lambda u, p, t: forcing(t).unsqueeze(-1) * torch.ones_like(u), [0.0], (0.0, 4.2))
    sol = ude.solve(prob, saveat=[4.2], abstol=1e-10, reltol=1e-10)
    assert float(sol.u[-1, 0]) == pytest.approx(quad(PEERS["pchip"], 0, 4.2, points=T[1:-1], epsabs=1e-12)[0], abs=1e-8)


def test_the_gradient_of_a_forced_solve_reaches_the_forcing():
    forcing = ude.Interpolation(T, Y, "linear", trainable=True)
    prob = ude.ODEProblem(lambda u, p, t: p.forcing(t).unsqueeze(-1) - 0 * u, [0.0], (0.0, 4.2), dict(forcing=forcing))
    ude.solve(prob, saveat=[4.2], abstol=1e-10, reltol=1e-10).u.sum().backward()
    # the trapezoidal rule is linear in the values: its weights are the gradient
    width = np.diff(T)
    weights = np.concatenate([[width[0]], width[1:] + width[:-1], [width[-1]]]) / 2
    np.testing.assert_allclose(forcing.values.grad[0, :, 0].numpy(), weights, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (T, Y, "quintic"),
            "there is no such kind of interpolation: expected one of constant, linear, cubic, pchip, akima, got",
        ),
        (([0.0, 0.0, 1.0], [1.0, 2.0, 3.0]), r"times of an interpolation must increase .*: t\[0:2\] = \[0.0, 0.0\]"),
        ((T, Y[:3]), r"values must be one for each time: expected shape \(7,\) or \(7, channel\), got \(3,\)"),
        (([0.0], [1.0]), r"linear interpolation needs at least 2 times: expected shape \(time,\), got shape \(1,\)"),
        ((T, Y * np.nan), "values of an interpolation must be finite: NaN or infinity. Drop those times."),
        (([T, T], [Y]), "values must be one list for each grid: expected 2 lists, got 1."),
    ],
)
def test_unusable_points_are_refused_with_the_reason(arguments, text):
    with pytest.raises(ude.errors.InputError, match=text):
        ude.Interpolation(*arguments)
