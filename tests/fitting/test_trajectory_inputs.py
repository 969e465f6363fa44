"""What differs between trajectories: parameters of their own, conditions and forcing, in values, gradients and fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from ude.errors import DataError, InputError, ModelError
from ude.fitting import Dataset, FitOptions, SolverOptions, fit, load_fit
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.shooting import Shooting, cut
from ude.fitting.simulation.trajectory_inputs import Inputs

SHORT = FitOptions(derivative_iterations=(5, 5), continuity=(1.0,), multiple_iterations=2, single_iterations=(0, 2))
RATES, DOSES = (0.4, 0.9, 1.6), (1.0, 0.2, 0.6)


def runs_of(rate, dose, forcing=None, points=(13, 17, 21)) -> Dataset:
    """x' = -k x + dose + rain(t), from x(0) = 2."""
    times, values = [], []
    for k, d, n in zip(rate, dose, points, strict=True):
        t = np.linspace(0.0, 0.25 * n, n)
        rain = (lambda s: 0.0) if forcing is None else (lambda s: np.interp(s, *forcing))
        rhs = lambda s, x, k=k, d=d, rain=rain: -k * x + d + rain(s)  # noqa: E731
        found = solve_ivp(rhs, (0, t[-1]), [2.0], t_eval=t, rtol=1e-9, atol=1e-11, max_step=0.1)
        times.append(t)
        values.append(found.y.T)
    return Dataset.from_arrays(times, values, "x")


def test_each_run_may_have_its_own_parameter():
    model = ude.UDE("dx/dt = -k*x + c", fit="k in [0, 10], c")
    result = fit(model, runs_of(RATES, [0.5] * 3), holdout=0, progress=False, per_trajectory="k")
    np.testing.assert_allclose(result.per_trajectory["k"], RATES, rtol=2e-3)
    assert result.model.values()["c"] == pytest.approx(0.5, rel=2e-3)
    assert result.model.values()["k"] == pytest.approx(np.mean(RATES), rel=2e-3)
    assert result.rmse()["x"] < 1e-3


def test_a_condition_of_the_data_stands_in_for_the_parameter_of_its_name():
    model = ude.UDE("dx/dt = -k*x + dose", parameters={"dose": 0.0}, fit="k")
    data = runs_of([0.7] * 3, DOSES).with_conditions({"dose": DOSES})
    result = fit(model, data, holdout=0.2, progress=False)
    assert result.model.values() == {"dose": 0.0, "k": pytest.approx(0.7, rel=1e-3)}
    assert result.rmse(result.held_out)["x"] < 2e-3
    assert fit(model, runs_of([0.7] * 3, DOSES), holdout=0, progress=False).rmse()["x"] > 0.1  # without the condition


@pytest.mark.parametrize("u0", [None, pytest.param({"x": 2.0}, marks=pytest.mark.slow)])
def test_a_covariate_drives_the_right_hand_side(u0):
    grid = (np.linspace(0.0, 6.0, 13), np.random.default_rng(0).uniform(0.0, 2.0, 13))
    data = runs_of([0.7] * 3, [0.0] * 3, grid).with_covariates("rain", *grid)
    model = ude.UDE("dx/dt = -k*x + g*rain", parameters={"rain": 0.0}, fit="k, g")
    result = fit(model, data, holdout=3, progress=False, u0=u0)
    assert result.model.values()["k"] == pytest.approx(0.7, rel=5e-3)
    assert result.model.values()["g"] == pytest.approx(1.0, rel=5e-3)
    assert result.rmse(result.held_out)["x"] < 5e-3


# slow: the same covariate drives a known term above
@pytest.mark.slow
def test_a_network_may_read_a_covariate():
    grid = (np.linspace(0.0, 6.0, 13), np.random.default_rng(0).uniform(0.0, 2.0, 13))
    data = runs_of([0.7] * 3, [0.0] * 3, grid).with_covariates("rain", *grid)

    def rhs(u, p, t):
        (x,) = u.unbind(-1)
        return torch.stack([-0.7 * x + p.U(p.rain + 0.0 * x)], -1)

    model = ude.FunctionModel(rhs, "x", {"rain": 0.0}, terms=ude.MLP("U", "rain", width=6))
    options = FitOptions(continuity=(1.0,), multiple_iterations=10, single_iterations=(0, 5))
    result = fit(model, data, holdout=0, progress=False, options=options)
    assert result.rmse()["x"] < 0.05


def test_values_of_lanes_are_those_of_their_trajectories():
    model = ude.UDE("dx/dt = -k*x + dose + rain", parameters={"dose": 0.0, "rain": 0.0}, fit="k")
    data = runs_of(RATES, DOSES).with_conditions({"dose": DOSES, "unused": 3.0})
    data = data.with_covariates("rain", [[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]], [[0.0, 1.0]] * 3)
    inputs = Inputs(model, data, "k")
    inputs.set("k", RATES)
    index = torch.tensor([2, 0, 2])
    t = torch.tensor([[1.0, 2.0], [0.5, 1.0], [4.0, 3.0]], dtype=torch.float64)
    values = inputs.lanes(index).along(t)
    assert set(values) == {"k", "dose", "rain"}
    torch.testing.assert_close(values["k"].flatten(), torch.tensor(RATES).double()[index])
    torch.testing.assert_close(values["dose"].flatten(), torch.tensor(DOSES).double()[index])
    rain = torch.tensor([[0.25, 0.5], [0.5, 1.0], [1.0, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(values["rain"], rain)
    torch.testing.assert_close(inputs.lanes(index)(t.T)["rain"], rain.T)  # engines have the lanes last
    torch.testing.assert_close(inputs.forcing_at(index, t[:, 0])["rain"], rain[:, 0])
    assert Inputs(ude.UDE("dx/dt = -k*x", fit="k"), data).lanes(index) is None


def test_gradient_by_parameters_of_trajectories_agrees_with_differences():
    model = ude.UDE("dx/dt = -k*x + c + rain", parameters={"rain": 0.0}, fit="k in [0, 5], c=0.3")
    data = runs_of(RATES, DOSES).with_covariates("rain", [0.0, 2.0, 6.0], [0.0, 1.0, 0.5])
    inputs = Inputs(model, data, "k")
    inputs.set("k", [0.5, 1.0, 1.5])
    windows = cut(data, 6)
    assert len(windows) > 6
    one = torch.ones(1, dtype=torch.float64)
    field = InnerField(model, Coordinates([True], [1.0]), inputs.lanes(windows.trajectory))
    shooting = Shooting(field, windows, one, one, SolverOptions(1e-11))
    starts = field.coordinates.inner(windows.u[:, 0])
    leaves = [p for name, p in field.named_parameters() if p.requires_grad and "model.store.raw_k" not in name]
    gradient = torch.autograd.grad(shooting(starts, 1.0), leaves)
    assert len(leaves) == 4  # c and three k
    for leaf, part in zip(leaves, gradient, strict=True):
        kept, values = float(leaf.detach()), []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                leaf.fill_(kept + h)
            values.append(float(shooting(starts, 1.0).detach()))
        with torch.no_grad():
            leaf.fill_(kept)
        assert float(part) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_a_fit_with_all_of_them_and_a_hidden_state_is_loaded_as_it_was_saved(tmp_path):
    model = ude.UDE(
        ["dx/dt = -k*x + z + rain", "dz/dt = -z + dose"],
        parameters={"dose": 0.0, "rain": 0.0},
        fit="k, s",
        observe="y = s*x",
    )
    data = runs_of(RATES, DOSES).with_conditions({"dose": DOSES}).with_covariates("rain", [0.0, 9.0], [0.0, 0.1])
    data = Dataset(("y",), data.trajectories, units={"y": "mg"})
    result = fit(model, data, progress=False, u0={"x": 2.0, "z": "fit"}, per_trajectory=["k"], options=SHORT)
    loaded = load_fit(result.save(tmp_path))
    for name in ("predict", "observe"):
        for one, other in zip(getattr(result, name)(), getattr(loaded, name)(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert loaded.data.digest == result.data.digest
    assert loaded.data.units == {"y": "mg"}
    assert loaded.holdout == 0.25
    assert loaded.rmse(loaded.held_out) == result.rmse(result.held_out)
    result.plot()


def test_conditions_and_covariates_are_part_of_the_digest():
    data = runs_of(RATES, DOSES)
    some = [
        data,
        data.with_conditions({"dose": 1.0}),
        data.with_conditions({"dose": 2.0}),
        data.with_covariates("r", [0.0, 1.0], [0.0, 1.0]),
        data.with_covariates("r", [0.0, 1.0], [0.0, 2.0]),
    ]
    assert len({own.digest for own in some}) == 5


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("per_trajectory", "claim"),
    [
        ("q", r"q is not a parameter of the model: expected one of dose, k"),
        ("dose", r"per_trajectory names dose, which is not fitted\. Have it fitted"),
        (3, r"per_trajectory must be names, such as \"k, m\": 3"),
    ],
)
def test_unusable_names_of_own_parameters_are_refused(per_trajectory, claim):
    model = ude.UDE("dx/dt = -k*x + dose", parameters={"dose": 0.0}, fit="k")
    with pytest.raises(InputError, match=claim):
        fit(model, runs_of(RATES, DOSES), progress=False, per_trajectory=per_trajectory)


def test_a_condition_that_is_a_fitted_parameter_is_refused():
    model = ude.UDE("dx/dt = -k*x", fit="k")
    data = runs_of(RATES, DOSES).with_conditions({"k": 1.0})
    with pytest.raises(
        InputError, match=r"the condition 'k' of the data is a fitted parameter of the model: expected a"
    ):
        fit(model, data, progress=False)


def test_conditions_and_covariates_that_do_not_fit_are_refused():
    data = runs_of(RATES, DOSES)
    with pytest.raises(
        DataError, match=r"the condition 'dose' does not fit the data: expected one finite number, or 3"
    ):
        data.with_conditions({"dose": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"the covariate 'r' of trajectory '0' does not fit its times: expected shape"):
        data.with_covariates("r", [0.0, 1.0], [0.0, 1.0, 2.0])
    with pytest.raises(DataError, match=r"the covariate 'r' of trajectory '0' is not usable: expected at least two"):
        data.with_covariates("r", [0.0, 0.0], [0.0, 1.0])
    with pytest.raises(DataError, match=r"the covariate 'r' does not fit the data: expected arrays for 3 trajectories"):
        data.with_covariates("r", [[0.0, 1.0]], [[0.0, 1.0]])


def test_discovery_refuses_parameters_that_differ_in_words():
    model = ude.UDE("dx/dt = -k*x + U(x)", fit="k")
    result = fit(model, runs_of(RATES, DOSES), progress=False, per_trajectory="k", stages=[])
    with pytest.raises(
        ModelError, match=r"discover needs one set of fitted parameters for all trajectories: .*k fitted for each"
    ):
        ude.discover(result, progress=False)
