"""States that nobody measured: simulated along those that were, and recovered by the whole fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from ude.errors import DataError, InputError
from ude.fitting import Dataset, FitOptions, InitialValue, SolverOptions, fit, load_fit
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.hidden_states import HiddenStateMatching, HiddenStates
from ude.fitting.smoothing.smooth import smooth

TRUTH = dict(a=0.9, b=0.4, c=0.3, d=0.6)
SHORT = FitOptions(derivative_iterations=(5, 5), continuity=(1.0,), multiple_iterations=2, single_iterations=(0, 2))


def chain(t, u):
    x, y, z = u
    return [-0.9 * x + 0.4 * y, 0.9 * x - 0.4 * y - 0.5 * y * z, 0.3 * y - 0.6 * z]


def course(z0: float = 0.2, x0: float = 3.0, end: float = 8.0, points: int = 41) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(0.0, end, points)
    return t, solve_ivp(chain, (0, end), [x0, 0.5, z0], t_eval=t, rtol=1e-10, atol=1e-12).y.T


def hidden_z() -> ude.UDE:
    return ude.UDE(["dx/dt = -a*x + b*y", "dy/dt = a*x - b*y - 0.5*y*z", "dz/dt = c*y - d*z"], fit="a, b, c, d")


def two_columns(noise: float = 0.0, seed: int = 0) -> Dataset:
    t, u = course()
    return Dataset.from_arrays(t, u[:, :2] + noise * np.random.default_rng(seed).normal(size=(len(t), 2)), "x, y")


def driven(k: float = 0.6) -> tuple[ude.models.Model, HiddenStates, torch.Tensor]:
    """z' = y(t) - k z along y = sin t, with x between them in the order of states and never used."""
    model = ude.UDE(["dz/dt = y - k*z", "dy/dt = -y"], fit=f"k={k}")
    t = torch.stack([torch.linspace(0, 4, 401), torch.linspace(1, 3, 401)]).double()
    z = torch.stack([torch.full_like(t, torch.nan), torch.sin(t)], -1)
    field = InnerField(model, Coordinates([False, False], [1.0, 1.0]))
    return model, HiddenStates(field, [0], t, z), torch.tensor([[0.5, 0.0], [2.0, 0.0]], dtype=torch.float64)


# ---------------------------------------------------------------- simulated along the others


def test_hidden_states_follow_the_measured_ones_as_scipy_says():
    _, states, starts = driven()
    found = states.along(starts, SolverOptions(1e-9))
    for i in range(2):
        t = states.t[i].numpy()
        exact = solve_ivp(
            lambda s, z: np.sin(s) - 0.6 * z, (t[0], t[-1]), [float(starts[i, 0])], t_eval=t, rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(found[i, :, 0].detach(), exact.y[0], atol=1e-6)
        np.testing.assert_array_equal(found[i, :, 1].detach(), states.z[i, :, 1])


def test_gradient_of_driven_states_agrees_with_differences():
    model, states, starts = driven()
    starts.requires_grad_()
    leaves = [starts, *model.parameters()]
    gradient = torch.autograd.grad(states.along(starts, SolverOptions(1e-10)).square().sum(), leaves)
    for leaf, part in zip(leaves, gradient, strict=True):
        flat = leaf.detach().view(-1)
        for i in range(0, flat.numel(), 2):  # the second start is of a state that is given
            kept, values = float(flat[i]), []
            for h in (1e-5, -1e-5):
                flat[i] = kept + h
                values.append(float(states.along(starts, SolverOptions(1e-10)).square().sum().detach()))
            flat[i] = kept
            assert float(part.reshape(-1)[i]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_hidden_state_that_blows_up_holds_its_last_value():
    model = ude.UDE(["dz/dt = b*z**2 + 0*y", "dy/dt = -y"], fit="b=1")
    t = torch.linspace(0, 2, 21).double().unsqueeze(0)
    z = torch.stack([torch.full_like(t, torch.nan), torch.ones_like(t)], -1)
    states = HiddenStates(InnerField(model, Coordinates([False, False], [1.0, 1.0])), [0], t, z)
    starts = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = states.along(starts, SolverOptions(1e-6, maxiters=60))[0, :, 0]
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found[:9].detach(), 1.0 / (1.0 - t[0, :9]), rtol=1e-4)
    assert len(set(found[-5:].tolist())) == 1
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), [starts, *model.parameters()]))


def test_the_true_model_matches_the_rates_and_another_does_not():
    model = hidden_z()
    model.set_values(TRUTH)
    data = two_columns()
    field = InnerField(model, Coordinates([False] * 3, [1.0] * 3))
    match = HiddenStateMatching.along(
        field, [2], data, smooth(data), lambda c: np.concatenate([c, np.full((*c.shape[:-1], 1), np.nan)], -1)
    )
    starts = torch.tensor([[3.0, 0.5, 0.2]], dtype=torch.float64)
    at_truth = float(match(starts, SolverOptions(1e-8)).detach())
    model.set_values({"d": 0.3})
    assert at_truth < 1e-3 < 0.02 < float(match(starts, SolverOptions(1e-8)).detach())


# ---------------------------------------------------------------- recovered by a fit


@pytest.mark.parametrize("z0", [pytest.param(0.2, marks=pytest.mark.slow), "fit"])
def test_one_hidden_state_of_three_is_recovered_with_its_equation(z0):
    result = fit(hidden_z(), two_columns(), holdout=0, progress=False, u0={"z": z0})
    for name, value in TRUTH.items():
        assert result.model.values()[name] == pytest.approx(value, rel=2e-3)
    np.testing.assert_allclose(result.predict()[0], course()[1], atol=2e-3)
    assert set(result.rmse()) == {"x", "y"}
    assert result.observe([0.0, 1.0])[0].shape == (2, 2)


def test_noisy_data_of_two_states_give_the_third_at_the_noise_level():
    result = fit(hidden_z(), two_columns(0.02, seed=1), holdout=0, progress=False, u0={"z": 0.2})
    assert max(result.rmse().values()) < 0.022
    assert np.sqrt(np.mean((result.predict()[0] - course()[1]) ** 2, axis=0)).max() < 0.01


@pytest.mark.slow
def test_an_unknown_function_of_a_hidden_state_is_found():
    model = ude.UDE(
        ["dx/dt = -a*x + b*y", "dy/dt = a*x - b*y - U(y, z)", "dz/dt = 0.3*y - 0.6*z"],
        fit="a, b",
        unknown=ude.MLP("U", "y, z", width=8),
    )
    result = fit(model, two_columns(0.005), holdout=0, progress=False, u0={"z": 0.2})
    u = course()[1]
    with torch.no_grad():
        found = result.model.record_calls(torch.as_tensor(u))["U"][0].output.numpy()
    exact = 0.5 * u[:, 1] * u[:, 2]
    assert np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)) < 0.05


@pytest.mark.slow
def test_several_runs_share_a_hidden_start_where_they_are_told_to():
    starts = (3.0, 1.0, 2.0)
    runs = [
        course(z0=0.7, x0=x0, end=end, points=points)
        for x0, end, points in zip(starts, (8, 4, 6), (33, 17, 20), strict=True)
    ]
    data = Dataset.from_arrays([t for t, _ in runs], [u[:, :2] for _, u in runs], "x, y")
    result = fit(hidden_z(), data, holdout=0, progress=False, u0={"z": "shared"})
    assert len(set(result.u0[:, 2].tolist())) == 1
    assert result.u0[0, 2] == pytest.approx(0.7, rel=0.01)
    assert result.model.values()["d"] == pytest.approx(0.6, rel=0.01)


def test_bounds_of_a_hidden_start_hold():
    value = InitialValue(lower=0.3, upper=0.5)
    result = fit(hidden_z(), two_columns(), holdout=0, progress=False, u0={"z": value}, stages=["single shooting"])
    assert 0.3 <= result.u0[0, 2] <= 0.5
    assert result.u0[0, 2] < 0.32  # 0.2 would be right


def test_a_hidden_state_said_to_be_positive_stays_so():
    result = fit(hidden_z(), two_columns(), holdout=0, progress=False, u0={"z": "fit"}, positive="x, z", options=SHORT)
    assert result.positive.tolist() == [True, False, True]
    assert (result.predict()[0][:, 2] > 0).all()
    assert not fit(hidden_z(), two_columns(), u0={"z": "fit"}, progress=False, stages=[]).positive[2]


def test_a_fit_with_a_hidden_state_is_loaded_as_it_was_saved(tmp_path):
    result = fit(hidden_z(), two_columns(), progress=False, u0={"z": "fit"}, options=SHORT)
    loaded = load_fit(result.save(tmp_path))
    np.testing.assert_array_equal(loaded.predict()[0], result.predict()[0])
    assert loaded.rmse(loaded.held_out) == result.rmse(result.held_out)
    result.plot()


# ---------------------------------------------------------------- errors


def test_a_state_without_data_must_be_given_a_start():
    with pytest.raises(
        DataError,
        match=r"no column 'z' for the state: .*A state that is not measured needs a start: u0=\{\"z\": \"fit\"\}",
    ):
        fit(hidden_z(), two_columns(), progress=False)


def test_a_model_of_which_nothing_was_measured_is_refused():
    data = Dataset.from_arrays([0.0, 1.0], [1.0, 2.0], "w")
    u0 = {"x": 1.0, "y": 1.0, "z": 1.0}
    with pytest.raises(
        DataError, match=r"nothing of the model was measured: expected a column for one of x, y, z, got w"
    ):
        fit(hidden_z(), data, progress=False, u0=u0)


def test_a_start_that_is_not_positive_is_refused_for_a_state_that_is():
    with pytest.raises(InputError, match="u0 is not positive for a state that is: expected numbers above zero"):
        fit(hidden_z(), two_columns(), progress=False, u0={"z": 0.0}, positive=True)
