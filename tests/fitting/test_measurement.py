"""Measurements that are formulas of states: reading them, their gradients, and fits that need them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import ude
from ude.errors import DataError, InputError, ModelError
from ude.fitting import Dataset, FitOptions, SolverOptions, fit, load_fit
from ude.fitting.objective.measurement import Measurement
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.shooting import Shooting, cut
from ude.models import Observation

SHORT = FitOptions(derivative_iterations=(5, 5), continuity=(1.0,), multiple_iterations=2, single_iterations=(0, 2))


def chain_model(fitted: str = "a, b, s", observe: str | None = "y = s*(x1 + x2)") -> ude.UDE:
    return ude.UDE(["dx1/dt = -a*x1", "dx2/dt = a*x1 - b*x2"], fit=fitted, observe=observe)


def chain_data(s: float = 1.7, noise: float = 0.0) -> Dataset:
    """a = 0.9, b = 0.4, from (2, 0.3); columns y = s(x1 + x2) and x2."""
    t = np.linspace(0.0, 6.0, 25)
    x1 = 2.0 * np.exp(-0.9 * t)
    x2 = (0.3 + 2.0 * 0.9 / 0.5) * np.exp(-0.4 * t) - 2.0 * 0.9 / 0.5 * np.exp(-0.9 * t)
    u = np.stack([s * (x1 + x2), x2], -1) + noise * np.random.default_rng(0).normal(size=(25, 2))
    return Dataset.from_arrays(t, u, "y, x2")


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "formulas",
    [
        "y = s*(x1 + x2); w = log(x1)",
        "y = s*(x1 + x2)  # total\n\nw = log(x1)",
        ["y = s*(x1 + x2)", "w = log(x1)"],
        {"y": "s*(x1 + x2)", "w": "log(x1)"},
    ],
)
def test_formulas_may_be_text_lines_or_a_dict(formulas):
    observation = Observation(formulas)
    assert observation.formulas == {"y": "s*(x1 + x2)", "w": "log(x1)"}
    assert observation.used == {"s", "x1", "x2"}


@pytest.mark.parametrize(
    ("formulas", "error", "claim"),
    [
        ("", InputError, r'observe has no formula: expected text such as "y = scale\*x"'),
        ("y", ModelError, r"an observable does not read: .* got 'y'"),
        ("t = x", ModelError, r"an observable does not read"),
        ("y = x; y = 2*x", ModelError, r"the observable y is given twice"),
        ("y = U(x)", ModelError, r"unknown function U in an observable"),
        ("y = 2*(x", ModelError, r"this '\(' is never closed"),
        (5, InputError, r"observe is not usable: expected text such as"),
    ],
)
def test_formulas_that_do_not_read_are_refused(formulas, error, claim):
    with pytest.raises(error, match=claim):
        Observation(formulas)


def test_an_unknown_name_in_a_formula_has_a_caret_under_it():
    with pytest.raises(ModelError, match=r"unknown symbol X2 in an observable: .*Did you mean x2\?") as caught:
        chain_model(observe="y = s*(x1 + X2)")
    line, caret = str(caught.value).splitlines()[-2:]
    assert line[caret.index("^") :].startswith("X2")


def test_a_parameter_must_occur_in_the_equations_or_in_an_observable():
    assert set(chain_model().parameters_table) == {"a", "b", "s"}
    with pytest.raises(ModelError, match=r"fit names s, which is not in the equations"):
        chain_model(observe=None)


def test_a_model_keeps_its_observables_when_it_is_described_or_pickled():
    model = chain_model()
    assert ude.UDE.from_dict(model.to_dict()).observables == {"y": "s*(x1 + x2)"}
    assert pickle.loads(pickle.dumps(model)).observables == model.observables


# ---------------------------------------------------------------- what they compute


def test_columns_are_matched_with_observables_then_with_states():
    model = chain_model(observe=None, fitted="a, b")
    data = Dataset.from_arrays([0.0, 1.0], np.ones((2, 3)), "x2, x1, other")
    measured = Measurement.of(model, data, "x2 = 3*x1*t", ["x2"])
    assert (measured.names, measured.column_of, measured.unmeasured) == (("x2", "x1"), {"x1": 1}, ("x2",))
    u = torch.tensor([[2.0, 5.0], [4.0, 7.0]], dtype=torch.float64)
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        measured(u, t, model.parameter_tensors()), torch.tensor([[6.0, 2.0], [6.0, 4.0]]).double()
    )
    again = pickle.loads(pickle.dumps(measured))
    assert torch.equal(again(u, t, model.parameter_tensors()), measured(u, t, model.parameter_tensors()))


def test_an_observable_that_is_just_a_state_counts_as_measuring_it():
    measured = Measurement.of(
        chain_model("a, b", observe="hare = x1"), Dataset.from_arrays([0, 1], [1.0, 2.0], "hare"), None, ["x2"]
    )
    assert measured.column_of == {"x1": 0}


def case(b: float = 0.4) -> tuple[ude.models.Model, Shooting, torch.Tensor]:
    model = chain_model()
    model.set_values(dict(a=0.8, b=b, s=1.5))
    data = chain_data()
    measured = Measurement.of(model, data, None, ())
    ones = torch.ones(2, dtype=torch.float64)
    field = InnerField(model, Coordinates([True, False], [1.0, 1.0]))
    windows = cut(data.select(measured.names), 8)
    shooting = Shooting(field, windows, ones, ones, SolverOptions(1e-11), measured)
    starts = torch.tensor([[0.6, 0.5]], dtype=torch.float64).repeat(len(windows), 1)
    return model, shooting, starts.requires_grad_()


def test_gradient_of_shooting_through_a_formula_agrees_with_differences():
    model, shooting, starts = case()
    leaves = [starts, *model.parameters()]
    gradient = torch.autograd.grad(shooting(starts, 2.0), leaves)
    for leaf, part in zip(leaves, gradient, strict=True):
        flat = leaf.detach().view(-1)
        for i in range(flat.numel()):
            kept, values = float(flat[i]), []
            for h in (1e-5, -1e-5):
                flat[i] = kept + h
                values.append(float(shooting(starts, 2.0).detach()))
            flat[i] = kept
            assert float(part.reshape(-1)[i]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_a_formula_of_a_failed_simulation_has_a_finite_gradient():
    model = ude.UDE("dx/dt = b*x**2", fit="b=0.55, s=1", observe="y = s*log(x)")
    t = np.linspace(0.0, 4.0, 9)
    data = Dataset.from_arrays(t, np.ones((9, 1)), "y")
    measured = Measurement.of(model, data, None, ())
    one = torch.ones(1, dtype=torch.float64)
    field = InnerField(model, Coordinates([False], [1.0]))
    shooting = Shooting(field, cut(data), one, one, SolverOptions(1e-6, 300), measured)
    starts = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    loss = shooting(starts)
    assert 50.0 < float(loss.detach()) < 60.0  # 5 of 9 points are not reached
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [starts, *model.parameters()]))


# ---------------------------------------------------------------- fits


def test_scale_and_rates_are_recovered_from_a_sum_and_a_state():
    result = fit(chain_model(), chain_data(), holdout=0, progress=False, u0={"x1": 2.0})
    for name, value in dict(a=0.9, b=0.4, s=1.7).items():
        assert result.model.values()[name] == pytest.approx(value, rel=2e-3)
    assert list(result.rmse()) == ["y", "x2"]
    assert max(result.rmse().values()) < 2e-3
    np.testing.assert_allclose(result.observe()[0], chain_data().trajectories[0].u, atol=5e-3)


def test_formulas_alone_are_enough_and_the_stage_left_out_is_said():
    t = np.linspace(0.0, 4.0, 21)
    data = Dataset.from_arrays(t, np.log(3.0 * np.exp(-0.7 * t)) + 0.1, "y")
    model = ude.UDE("dx/dt = -k*x", fit="k, c", observe="y = log(x) + c")
    result = fit(model, data, holdout=0, progress=False, u0={"x": 3.0}, positive="x")
    assert result.notes == ("derivatives left out: no column measures just one state",)
    assert result.model.values()["k"] == pytest.approx(0.7, rel=1e-3)
    assert result.model.values()["c"] == pytest.approx(0.1, abs=2e-3)


def test_observables_given_to_fit_go_before_those_of_the_model():
    result = fit(
        chain_model("a, b, s"), chain_data(), observe={"y": "s*x1 + x2"}, u0={"x1": 2.0}, progress=False, options=SHORT
    )
    assert result.measurement.formulas == {"y": "s*x1 + x2"}


def test_a_fit_with_formulas_is_loaded_as_it_was_saved(tmp_path):
    result = fit(chain_model(), chain_data(noise=0.01), progress=False, u0={"x1": 2.0}, options=SHORT)
    loaded = load_fit(result.save(tmp_path))
    assert loaded.measurement.formulas == {"y": "s*(x1 + x2)"}
    np.testing.assert_array_equal(loaded.observe()[0], result.observe()[0])
    assert loaded.rmse(loaded.held_out) == result.rmse(result.held_out)
    assert loaded.notes == result.notes
    assert len(result.plot().axes) == 2


def test_an_observable_without_a_column_is_named():
    with pytest.raises(DataError, match=r"the data have no column 'Y' for the observable: .*Did you mean 'y'\?"):
        fit(chain_model(observe="Y = s*(x1 + x2)"), chain_data(), progress=False)
