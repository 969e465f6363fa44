"""Windows, coordinates and losses of shooting, on a system whose solution is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ude
from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.objective.losses import COST_OF_A_MISSING_POINT, Prior, residuals
from ude.fitting.simulation.coordinates import Coordinates, InnerField, positive_states
from ude.fitting.simulation.shooting import Shooting, SolverOptions, cut, simulate


def decay_data(n: int = 9) -> Dataset:
    """x' = -x/2, y' = 1/4: x = 4 exp(-t/2), y = t/4 - 1."""
    t = np.linspace(0.0, 4.0, n)
    return Dataset.from_arrays(t, np.stack([4.0 * np.exp(-0.5 * t), 0.25 * t - 1.0], -1), "x, y")


def decay_model(k: float = 0.5) -> ude.models.Model:
    return ude.UDE(["dx/dt = -k*x", "dy/dt = c"], fit=f"k={k}, c=0.25")


def shooting(model: ude.models.Model, data: Dataset, steps: int | None, tolerance: float = 1e-9) -> Shooting:
    coordinates = Coordinates([True, False], [1.0, 0.5])
    ones = torch.ones(2, dtype=torch.float64)
    return Shooting(InnerField(model, coordinates), cut(data, steps), ones, ones, SolverOptions(tolerance))


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(("n", "steps", "number"), [(9, None, 1), (9, 4, 2), (9, 3, 3), (10, 4, 2), (2, 4, 1)])
def test_every_point_is_data_of_exactly_one_window(n, steps, number):
    data = decay_data(n)
    windows = cut(data, steps)
    assert len(windows) == number
    assert torch.equal(windows.mask[..., 0], windows.mask[..., 1])
    counts = windows.mask[..., 0]
    np.testing.assert_array_equal(np.sort(windows.t[counts]), data.trajectories[0].t)
    assert sorted(windows.u[counts][:, 1].tolist()) == data.trajectories[0].u[:, 1].tolist()


def test_windows_hold_every_measured_number_once_and_no_gap():
    data = decay_data(10)
    u = data.trajectories[0].u.copy()
    u[::2, 0] = np.nan
    u[[3, 6], 1] = np.nan  # 3 and 6 are where windows meet
    u[3, 0] = u[6, 0] = 9.0
    gappy = Dataset.from_arrays(data.trajectories[0].t, u, "x, y")
    windows = cut(gappy, 3)
    assert len(windows) == 3
    for i in range(2):
        own = windows.mask[..., i]
        np.testing.assert_array_equal(windows.t[own].sort().values, gappy.trajectories[0].t[np.isfinite(u[:, i])])
        assert sorted(windows.u[..., i][own].tolist()) == sorted(u[np.isfinite(u[:, i]), i].tolist())
    assert torch.isfinite(windows.u).all()


def test_windows_end_where_the_next_one_starts():
    data = Dataset.from_arrays([np.arange(8.0), np.arange(10.0, 15.0)], [np.ones((8, 1)), np.ones((5, 1))], "x")
    windows = cut(data, 3)
    assert windows.trajectory.tolist() == [0, 0, 1]
    assert windows.linked.tolist() == [0]
    rows = torch.arange(len(windows))
    ends = windows.t[rows, windows.last]
    assert float(ends[0]) == float(windows.t[1, 0])
    np.testing.assert_array_equal(ends[1:], [7.0, 14.0])
    assert (windows.t[:, 1:] >= windows.t[:, :-1]).all()


# ---------------------------------------------------------------- coordinates


def test_coordinates_invert_and_rates_obey_the_chain_rule():
    coordinates = Coordinates([True, False], [3.0, 10.0])
    u = torch.tensor([[2.0, -4.0], [1e-8, 30.0]], dtype=torch.float64)
    z = coordinates.inner(u)
    torch.testing.assert_close(z, torch.stack([u[:, 0].log(), u[:, 1] / 10.0], -1))
    torch.testing.assert_close(coordinates.natural(z), u)
    du = torch.tensor([[0.5, 1.0], [2e-8, -3.0]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jvp(coordinates.natural, z, coordinates.inner_rate(u, du))[1]
    torch.testing.assert_close(jacobian, du)


def test_negative_states_in_natural_coordinates_have_finite_gradients():
    coordinates = Coordinates([True, False], [1.0, 1.0])
    u = torch.tensor([1.0, -5.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([0.0, 800.0], dtype=torch.float64, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(coordinates.inner(u).sum(), u)[0]).all()
    assert torch.isfinite(torch.autograd.grad(coordinates.natural(z).sum(), z)[0]).all()


def test_positive_states_are_told_from_the_data_or_named():
    data = decay_data()
    assert positive_states(data, "auto").tolist() == [True, False]
    assert positive_states(data, False).tolist() == [False, False]
    assert positive_states(data, "x").tolist() == positive_states(data, ["x"]).tolist() == [True, False]
    with pytest.raises(DataError, match=r"state 'y' is said to be positive: expected data above zero, got -1\. Leave"):
        positive_states(data, True)
    with pytest.raises(InputError, match=r'positive names \'z\': expected "auto", True, False or some of x, y'):
        positive_states(data, "z")


# ---------------------------------------------------------------- losses


def misfit(predicted, observed, scale, mask, reached=None):
    reached = torch.ones(mask.shape[:-1], dtype=torch.bool) if reached is None else reached
    return (residuals(predicted, observed, scale, mask, reached) ** 2).sum()


def test_misfit_is_the_mean_square_in_scales():
    predicted = torch.tensor([[[3.0, 1.0], [5.0, 5.0]]], dtype=torch.float64)
    observed = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    scale = torch.tensor([2.0, 4.0], dtype=torch.float64)
    every = torch.ones(1, 2, 2, dtype=torch.bool)
    some = torch.tensor([[[True, True], [False, True]]])
    assert float(misfit(predicted, observed, scale, every)) == pytest.approx((1.0 + 0.0 + 4.0 + 1.0) / 4)
    assert float(misfit(predicted, observed, scale, some)) == pytest.approx((1.0 + 0.0 + 1.0) / 3)


def test_misfit_does_not_see_what_was_not_measured():
    g = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 3, 2, generator=g, dtype=torch.float64).requires_grad_()
    observed = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    mask = torch.rand(2, 3, 2, generator=g) < 0.6
    other = torch.where(mask, observed, 1e6)
    scale = torch.ones(2, dtype=torch.float64)
    assert torch.equal(misfit(predicted, observed, scale, mask), misfit(predicted, other, scale, mask))
    gradient = torch.autograd.grad(misfit(predicted, other, scale, mask), predicted)[0]
    assert torch.equal(gradient != 0, mask)


def test_a_missing_point_costs_its_price_and_pulls_the_last_point_reached():
    predicted = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64, requires_grad=True)
    observed = torch.zeros(1, 2, 1, dtype=torch.float64)
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    loss = misfit(predicted, observed, torch.ones(1, dtype=torch.float64), mask, torch.tensor([[True, False]]))
    assert float(loss.detach()) == pytest.approx((1.0 + COST_OF_A_MISSING_POINT + np.log(10.0)) / 2)
    # of r²/2 and of log(1 + r²)/2
    np.testing.assert_allclose(torch.autograd.grad(loss, predicted)[0].flatten(), [1.0, 3.0 / 10.0])


def test_prior_charges_a_drawn_network_about_one_a_weight():
    # Σ w²/σ² over M weights drawn with variance σ² is M on average.
    model = ude.UDE(["dx/dt = U(x, y)", "dy/dt = -k*y"], fit="k", unknown=ude.MLP("U", "x, y", width=64))
    number = 2 * 64 + 64 * 64 + 64
    prior = Prior.of(model, noise=0.5, observations=10, strength=1.0)
    assert float(prior().detach()) == pytest.approx(number * 0.25 / 10, rel=0.05)
    assert float(Prior.of(model, 0.5, 10, 0.0)().detach()) == 0.0


# ---------------------------------------------------------------- the loss of windows


@pytest.mark.parametrize("steps", [None, 2, 3])
def test_true_model_and_starts_have_no_loss(steps):
    case = shooting(decay_model(), decay_data(), steps)
    starts = case.coordinates.inner(case.windows.u[:, 0])
    assert float(case(starts, continuity=1.0).detach()) < 1e-12


def test_continuity_charges_the_gap_between_windows():
    case = shooting(decay_model(), decay_data(), 4)
    starts = case.coordinates.inner(case.windows.u[:, 0]).clone()
    starts[1, 1] += 0.3
    without = float(case(starts).detach())
    # one link, two states, one of them 0.3 apart
    assert float(case(starts, continuity=10.0).detach()) - without == pytest.approx(10.0 * 0.3**2 / 2, rel=1e-5)


@pytest.mark.parametrize("steps", [None, 3])
def test_gradient_of_the_loss_agrees_with_differences(steps):
    model = decay_model(0.7)
    case = shooting(model, decay_data(), steps, tolerance=1e-11)
    starts = (case.coordinates.inner(case.windows.u[:, 0]) + 0.1).requires_grad_()
    leaves = [starts, *model.parameters()]
    gradient = torch.autograd.grad(case(starts, 2.0), leaves)
    for leaf, part in zip(leaves, gradient, strict=True):
        flat = leaf.detach().view(-1)
        for i in range(flat.numel()):
            kept = float(flat[i])
            values = []
            for h in (1e-5, -1e-5):
                flat[i] = kept + h
                values.append(float(case(starts, 2.0).detach()))
            flat[i] = kept
            assert float(part.reshape(-1)[i]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def explosive_case(b: float) -> tuple[ude.models.Model, Shooting, torch.Tensor]:
    """x' = b x², from x(0) = 1, blows up at t = 1/b."""
    model = ude.UDE(["dx/dt = b*x**2"], fit=f"b={b}")
    t = np.linspace(0.0, 4.0, 9)
    data = Dataset.from_arrays(t, np.ones((9, 1)), "x")
    one = torch.ones(1, dtype=torch.float64)
    case = Shooting(InnerField(model, Coordinates([True], [1.0])), cut(data), one, one, SolverOptions(1e-6, 300))
    return model, case, torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)


def test_a_solve_that_blows_up_costs_a_finite_penalty_with_a_finite_gradient():
    model, case, starts = explosive_case(0.55)
    z = simulate(case.field, starts, case.windows.t, case.options).partial
    reached = torch.isfinite(z[0, :, 0])
    assert reached.tolist() == [True] * 4 + [False] * 5  # t = 0 ... 1.5; it is infinite at t = 1.82
    loss = case(starts)
    gradient = torch.autograd.grad(loss, [starts, *model.parameters()])
    assert COST_OF_A_MISSING_POINT * 5 / 9 < float(loss.detach()) < 1.2 * COST_OF_A_MISSING_POINT
    assert all(torch.isfinite(g).all() for g in gradient)
    assert float(gradient[1]) > 0  # a smaller b is better


def test_getting_further_costs_less():
    losses = [float(explosive_case(b)[1](torch.zeros(1, 1, dtype=torch.float64)).detach()) for b in (2.0, 0.7, 0.3)]
    assert losses[0] > losses[1] > losses[2]


def test_steps_are_limited_by_what_the_start_took():
    case = shooting(decay_model(), decay_data(), None, tolerance=1e-6)
    starts = case.coordinates.inner(case.windows.u[:, 0])
    taken = int(simulate(case.field, starts, case.windows.t, case.options).stats.accepted_steps.max())
    assert taken < case.most_steps(starts) <= 8 * taken + 20 < case.options.steps(9)
