"""From a fitted model to equations. The fits are put together by hand, except in the one end-to-end test."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy as sp
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import ude
from ude.discovery import (
    Candidate,
    Discovery,
    LibraryRegressor,
    Samples,
    SavedDiscovery,
    SelectionOptions,
    discover,
    load,
)
from ude.discovery.refit.closed_system import ObservedTrajectory
from ude.discovery.refit.embedding import fit_closed_form
from ude.discovery.refit.stabilized import residual_scale
from ude.discovery.sampling import expected_residuals, gauge_directions, open_system, sample_terms, trajectory_points
from ude.errors import DataError, InputError, ModelError
from ude.fitting import Fit, FitOptions, fit
from ude.fitting.data.dataset import Dataset
from ude.fitting.objective.measurement import Measurement
from ude.models import MLP, UDE, FunctionModel, Model, Neural

A, B, C, D = 0.5, 0.03, 0.02, 0.8  # dx = A x - B x y, dy = C x y - D y


class Almost(nn.Module):
    """The true interactions with a smooth error of 5 %, and some of `a*x` moved into U1: as a network would have it."""

    def __init__(self, shift: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([shift, 0.05], dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        x, y = u.unbind(-1)
        bump = self.weight[1] * torch.cos(x / 15.0 + y / 20.0)
        return torch.stack([B * x * y * (1 + bump) + self.weight[0] * x, C * x * y * (1 - bump)], -1)


def _dataset(noise: float = 0.03, runs: int = 1) -> Dataset:
    random = np.random.default_rng(1)
    times, states = [], []
    for run in range(runs):
        t = np.linspace(0.0, 20.0, 41)
        solution = solve_ivp(
            lambda _, u: [A * u[0] - B * u[0] * u[1], C * u[0] * u[1] - D * u[1]],
            (0, 20),
            [30.0 + 8.0 * run, 8.0],
            t_eval=t,
            rtol=1e-9,
        ).y.T
        times.append(t)
        states.append(solution * np.exp(noise * random.standard_normal(solution.shape)))
    return Dataset.from_arrays(times, states, ["x", "y"])


def _fit(model: Model, data: Dataset, holdout: float = 0.25) -> Fit:
    train, held_out = data.split(holdout)
    return Fit(
        model=model,
        data=data,
        train=train,
        held_out=held_out,
        u0=np.stack([trajectory.u[0] for trajectory in data.trajectories]),
        history=pd.DataFrame(),
        interrupted=False,
        seed=0,
        options=FitOptions(),
        positive=np.array([True, True]),
        scale=np.array([20.0, 15.0]),
        noise=np.zeros(2),
        measurement=Measurement(model, data.states, {}),
        state_scale=np.array([20.0, 15.0]),
    )


def _model() -> UDE:
    return UDE(
        "dx/dt = a*x - U1(x, y)\ndy/dt = U2(x, y) - d*y",
        parameters={"a": A + 0.1, "d": D},
        fit="a, d",
        unknown=Neural(Almost(), "x, y", "U1, U2"),
    )


FAST = SelectionOptions(max_candidates=4)


@pytest.fixture(scope="module")
def found() -> Discovery:
    return discover(_fit(_model(), _dataset()), LibraryRegressor(), options=FAST, progress=False)


def test_each_equation_gets_its_one_interaction(found: Discovery) -> None:
    x, y = sp.symbols("x y")
    values = found.constants
    assert str(found.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    assert values == pytest.approx({"a": A, "d": D, "U1_c0": B, "U2_c0": C}, rel=0.05)
    expected = {"x": values["a"] * x - values["U1_c0"] * x * y, "y": values["U2_c0"] * x * y - values["d"] * y}
    assert {state: sp.expand(rate - expected[state]) for state, rate in found.equations.items()} == {"x": 0, "y": 0}
    assert found.terms == {"U1": values["U1_c0"] * x * y, "U2": values["U2_c0"] * x * y}
    assert not found.interrupted


class _Interrupted:
    """Fits formulas, and is interrupted in the given call (or in every call on all data)."""

    def __init__(self, at: int | None = None, observations: int | None = None) -> None:
        self.at, self.observations, self.calls = at, observations, 0

    def __call__(self, system: Any, trajectories: Any, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at or sum(own.u.size for own in trajectories) == self.observations:
            raise KeyboardInterrupt
        return fit_closed_form(system, trajectories, *arguments, **named)


@pytest.mark.parametrize("when", ["while formulas are fitted", "while the best is refitted on all data"])
def test_ctrl_c_keeps_the_best_formula_with_residuals_of_all_data(
    when: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Data were held out, so that the fit of the formula is one of the training data alone."""
    fit = _fit(_model(), _dataset())
    everything = fit.data.values().size
    interrupted = _Interrupted(at=3) if when.endswith("are fitted") else _Interrupted(observations=everything)
    monkeypatch.setattr(importlib.import_module("ude.discovery.discover"), "fit_closed_form", interrupted)
    found = discover(fit, LibraryRegressor(), options=FAST, progress=False)
    assert found.interrupted
    assert found.final.n_observations == everything
    assert found.final.residuals is not None
    assert len(found.final.residuals) == everything
    assert found.final.values == pytest.approx(found.chosen.fit.values, rel=1e-12)
    # what is told about a discovery can be told about this one too
    assert found.verdict.kind
    assert len(found.constants) == len(found.intervals)
    found.save(tmp_path)
    assert (tmp_path / "equations.txt").read_text(encoding="utf-8").startswith("dx/dt")


def test_a_refit_on_all_data_that_fails_keeps_the_training_values(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = _fit(_model(), _dataset())
    everything = fit.data.values().size

    def failing(system: Any, trajectories: Any, *arguments: Any, **named: Any) -> Any:
        result = fit_closed_form(system, trajectories, *arguments, **named)
        whole = sum(own.u.size for own in trajectories) == everything
        return replace(result, sse=float("inf"), residuals=None, jacobian=None) if whole else result

    monkeypatch.setattr(importlib.import_module("ude.discovery.discover"), "fit_closed_form", failing)
    found = discover(fit, LibraryRegressor(), options=FAST, progress=False)
    assert found.final.residuals is not None
    assert len(found.final.residuals) == everything
    assert found.verdict.kind
    assert not found.interrupted


def test_both_sets_of_constants_are_kept(found: Discovery) -> None:
    """On all data and on training data alone: the forecast error belongs to the latter."""
    assert found.constants != found.training_constants
    assert found.constants == pytest.approx(found.training_constants, rel=0.05)
    assert found.fit.held_out is not None
    assert found.rmse(found.fit.held_out, training_constants=True) == pytest.approx(found.held_out_rmse, rel=1e-4)
    assert found.final.n_observations == 82
    assert found.chosen.fit.n_observations == 62


def test_front_shows_every_combination_and_which_was_chosen(found: Discovery) -> None:
    front = found.front
    assert list(front.columns) == [
        "U1", "U2", "complexity", "sse", "score", "nmse U1", "nmse U2",
        "held-out rmse x", "held-out rmse y", "step", "chosen", "bic", "probability",
    ]  # fmt: skip
    assert front["chosen"].sum() == 1
    assert front["score"].is_monotonic_increasing
    row = front[front["chosen"]].iloc[0]
    assert (row["U1"], row["U2"], row["complexity"]) == ("c0*x*y", "c0*x*y", 10)  # x*y is written out once
    assert len(front) == len(found.selection.ranked) >= 10


def test_model_has_the_formulas_and_their_constants(found: Discovery) -> None:
    u = torch.tensor([[30.0, 8.0], [12.0, 25.0]], dtype=torch.float64)
    rates = found.model(u).detach().numpy()
    x, y, v = u[:, 0].numpy(), u[:, 1].numpy(), found.constants
    assert rates == pytest.approx(
        np.stack([v["a"] * x - v["U1_c0"] * x * y, v["U2_c0"] * x * y - v["d"] * y], axis=1), rel=1e-12
    )
    assert found.model.unknown_outputs == ()
    assert found.problem().tspan == (0.0, 20.0)
    assert np.asarray(found.problem().u0).ravel() == pytest.approx(found.u0[0])


def test_predictions_start_at_the_fitted_state_and_make_the_error(found: Discovery) -> None:
    [states] = found.predict()
    data = found.fit.data.trajectories[0]
    assert states[0] == pytest.approx(found.u0[0])
    assert found.rmse() == pytest.approx(dict(zip("xy", np.sqrt(np.mean((states - data.u) ** 2, axis=0)), strict=True)))
    [later] = found.predict(np.array([10.0, 20.0]))
    assert later[1] == pytest.approx(states[-1], rel=1e-5)


def test_written_forms_are_the_same_model(found: Discovery, tmp_path: Path) -> None:
    assert ude.export(found, digits=3).splitlines()[0].startswith("dx/dt = 0.")
    assert ude.export(found, to="latex", digits=4).count(r"\frac{d") == 2
    assert "function f!(du, u, p, t)" in ude.export(found, to="julia")
    namespace: dict[str, object] = {}
    exec(ude.export(found, to="python"), namespace)
    u = np.array([30.0, 8.0])
    ours = found.model(torch.tensor(u)).detach().numpy()
    assert namespace["rhs"](0.0, u) == pytest.approx(ours, rel=1e-12)  # type: ignore[operator]
    again = UDE(ude.export(found))
    assert again(torch.tensor(u)).detach().numpy() == pytest.approx(ours, rel=1e-12)
    folder = found.save(tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {
        "equations.txt", "equations.tex", "equations.py", "equations.jl", "front.csv", "discovery.json", "model.json",
    }  # fmt: skip
    saved = json.loads((folder / "discovery.json").read_text())
    assert saved["constants"] == found.constants
    assert len(pd.read_csv(folder / "front.csv")) == len(found.front)


def test_same_answer_every_time(found: Discovery) -> None:
    again = discover(_fit(_model(), _dataset()), LibraryRegressor(), options=FAST, progress=False)
    assert again.constants == found.constants
    assert ude.export(again) == ude.export(found)


def test_samples_are_what_the_network_says_on_the_trajectory() -> None:
    fitted = _fit(_model(), _dataset(runs=2))
    samples = sample_terms(fitted, trajectory_points(fitted, 100))
    assert list(samples) == ["U1", "U2"]
    one = samples["U1"]
    assert one.size == 2 * (30 * 2 + 1)  # two samples an interval, and the last time
    expected = Almost()(torch.tensor(np.stack([one.inputs["x"], one.inputs["y"]], axis=1)))[:, 0].detach().numpy()
    assert one.output == pytest.approx(expected, rel=1e-12)
    assert one.nuisance == pytest.approx(-one.inputs["x"][:, None])
    assert samples["U2"].nuisance == pytest.approx(-one.inputs["y"][:, None])


@pytest.mark.parametrize(
    ("equations", "fitted", "expected"),
    [
        ("dx/dt = a*x - U1(x, y)\ndy/dt = x - y", "a", ["-x"]),
        ("dx/dt = a*x + b*U1(x, y)\ndy/dt = x - y", "a", ["x/b"]),
        ("dx/dt = a*x + b - U1(x, y)\ndy/dt = x - y", "a, b", ["-x", "-1"]),
        ("dx/dt = x*a - U1(x, y)\ndy/dt = U1(x, y) - y", "a", []),  # dy would show it
        ("dx/dt = a*x - U1(x, y)\ndy/dt = U1(x, y) - a*x", "a", ["-x"]),
        ("dx/dt = x - U1(x, y)\ndy/dt = a*x - y", "a", []),  # another equation
        ("dx/dt = x/(a + x) - U1(x, y)\ndy/dt = x - y", "a", []),  # not linear
        ("dx/dt = a*x - U1(x, y)\ndy/dt = x - y", "", []),  # not fitted
        ("dx/dt = a*x - U1(x, y) - U1(y, x)\ndy/dt = x - y", "a", []),  # two calls
    ],
)
def test_free_directions_leave_no_trace_in_any_equation(equations: str, fitted: str, expected: list[str]) -> None:
    given = {name: 0.5 for name in ("a", "b") if name in equations.replace("tan", "")}
    model = UDE(equations, parameters=given, fit=fitted or None, unknown=Neural(nn.Linear(2, 1), "x, y", "U1"))
    assert [str(direction) for direction in gauge_directions(model, "U1")] == expected


def test_parameters_keep_bounds_and_fixed_ones_stay() -> None:
    model = UDE(
        "dx/dt = a*x - U1(x, y)\ndy/dt = U2(x, y) - d*y",
        parameters={"d": D},
        fit="a=0.6 in [0.1, 2]",
        unknown=Neural(Almost(), "x, y", "U1, U2"),
    )
    system = open_system(_fit(model, _dataset()))
    assert (system.parameters["a"].lower, system.parameters["a"].upper) == (0.1, 2.0)
    assert not system.parameters["d"].fitted
    assert system.positive == ("x", "y")
    result = discover(_fit(model, _dataset()), LibraryRegressor(), options=FAST, progress=False)
    assert result.constants["d"] == D


def test_without_held_out_data_the_final_constants_are_those_of_the_selection() -> None:
    result = discover(_fit(_model(), _dataset(), holdout=0.0), LibraryRegressor(), options=FAST, progress=False)
    assert result.constants == result.training_constants
    assert result.held_out_rmse == {}
    assert "held-out rmse x" not in result.front


def test_a_torch_function_is_read_as_equations_first(found: Discovery) -> None:
    def rates(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y = u.unbind(-1)
        u1, u2 = p.U1_U2(x, y)
        return torch.stack([p.a * x - u1, u2 - p.d * y], -1)

    model = FunctionModel(rates, "x, y", {"a": A + 0.1, "d": D}, fit="a, d", terms=[Neural(Almost(), "x, y", "U1, U2")])
    result = discover(_fit(model, _dataset()), LibraryRegressor(), options=FAST, progress=False)
    assert ude.export(result, digits=4) == ude.export(found, digits=4)


def test_a_torch_function_keeps_the_parameters_of_what_was_measured() -> None:
    def rates(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return p.U(u[..., 0])[..., None]

    t = np.linspace(0.0, 3.0, 16)
    data = Dataset.from_arrays(t, 4.0 * np.exp(-0.8 * t), "seen")
    model = FunctionModel(rates, "x", {"scale": 2.0, "spare": 1.0}, terms=[MLP("U", "x", width=4)])
    quick = FitOptions(derivative_iterations=(30, 60), multiple_iterations=5, gauss_newton_iterations=5)
    trained = fit(
        model, data, observe="seen = scale*x", u0={"x": 2.0}, stages="single shooting", options=quick, holdout=0,
        progress=False,
    )  # fmt: skip
    search = LibraryRegressor(degree=2, max_terms=1, unary=False, atoms=False)
    result = discover(trained, search, max_candidates=2, progress=False)
    assert result.constants["U_c0"] == pytest.approx(-0.8, rel=1e-3)
    assert result.rmse()["seen"] < 1e-3


def test_a_saved_discovery_is_loaded_and_simulated(found: Discovery, tmp_path: Path) -> None:
    loaded = load(found.save(tmp_path / "run"))
    assert isinstance(loaded, SavedDiscovery)
    assert loaded.constants == pytest.approx(found.model.values())
    assert str(loaded) == ude.export(found, digits=4)
    assert loaded.fit is None
    times = found.fit.data.trajectories[0].t
    np.testing.assert_allclose(loaded.predict(times), found.predict()[0], rtol=1e-4)
    with pytest.raises(InputError, match="increasing times"):
        loaded.predict(times[::-1])
    (tmp_path / "run" / "model.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "run")
    with pytest.raises(InputError, match="neither a fit nor a discovery"):
        load(tmp_path / "nothing")


def test_any_object_with_a_search_will_do() -> None:
    class Oracle:
        def search(self, samples: Samples) -> list[Candidate]:
            x, y, c0 = sp.symbols("x y c0")
            return [Candidate(c0 * x * y, {"c0": 0.01}, 6, 0.02, "oracle", True)]

    result = discover(_fit(_model(), _dataset()), Oracle(), progress=False)
    assert {c.source for c in result.chosen.candidates.values()} == {"oracle"}
    assert len(result.selection.ranked) == 4  # the one; and with U1, U2 or both dropped
    both = discover(_fit(_model(), _dataset()), [Oracle(), LibraryRegressor()], max_candidates=2, progress=False)
    assert str(both.chosen) == "U1 = c0*x*y, U2 = c0*x*y"


def test_formulas_are_judged_by_the_noise_that_the_fit_was_given() -> None:
    """Of log-normal noise the whole way counts logarithms: a tenth off is a tenth off, at 2 and at 80."""
    noise = {"x": ude.noise.LogNormal(0.1), "y": ude.noise.Gaussian(0.5)}
    given = replace(_fit(_model(), _dataset(0.1)), noise_models=noise, noise=np.array([3.0, 0.4]))
    assert open_system(given).noise == {"x": noise["x"]}
    judged = discover(given, LibraryRegressor(), options=FAST, progress=False)
    assert str(judged.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    x, y = given.data.values().T
    model_x, model_y = judged.predict()[0].T
    wrong = (np.log(model_x) - np.log(x)) / 0.1, model_y - y
    found = np.array(list(judged.final.sse_per_state.values()))
    values = given.train.values()[:, 0]
    error = 3.0 / np.sqrt(np.mean((0.1 * values) ** 2)), 0.4
    scale = np.array([np.std(np.log(x) / 0.1), np.std(y)])
    logs = np.log(error / scale)
    scale *= np.exp(len(x) / (len(x) + 16) * (logs - logs.mean()))
    expected = [np.sum((own / size) ** 2) for own, size in zip(wrong, scale, strict=True)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected_residuals(given)["x"] == pytest.approx(max(1.0, error[0]))


def test_a_column_measured_more_precisely_weighs_more() -> None:
    """Of many numbers the weights are those of the likelihood, of few nearly those of the spreads."""
    random = np.random.default_rng(0)
    for count, least, most in ((2000, 9.5, 10.0), (4, 1.3, 2.0)):
        data = [ObservedTrajectory(np.arange(count * 1.0), random.standard_normal((count, 2)))]
        spread = residual_scale({}, ("x", "y"), data)
        weighed = residual_scale({}, ("x", "y"), data, {"x": 0.01 * spread[0], "y": 0.1 * spread[1]})
        assert least < (weighed[1] / spread[1]) / (weighed[0] / spread[0]) < most
        assert np.prod(weighed) == pytest.approx(np.prod(spread))
        # below a thousandth of the spread there is no noise to be told from arithmetic, and one column has no other
        exact = residual_scale({}, ("x", "y"), data, {"x": 1e-9, "y": 0.0})
        assert exact == pytest.approx(spread)
        assert residual_scale({}, ("x", "y"), data, {"x": 0.1}) == pytest.approx(spread)


def test_what_is_known_holds_for_what_selection_makes_too() -> None:
    """A summand more would be a better fit, and a constant less a simpler one."""
    fit, plain = _fit(_model(), _dataset(0.05)), LibraryRegressor()
    known = "U1: max_complexity 8; required x"
    found = discover(fit, plain, options=FAST, constraints=known, progress=False)
    tried = [c.candidates["U1"] for c in found.selection.ranked]
    assert max(own.complexity for own in tried) <= 8
    assert all(own.expression.has(sp.Symbol("x")) for own in tried)
    free = discover(fit, plain, options=FAST, progress=False).selection.ranked
    assert max(c.candidates["U1"].complexity for c in free) > 8


def test_wrong_input_is_refused_in_words(found: Discovery) -> None:
    data = _dataset()

    def sorting(u: Tensor, p: object, t: Tensor) -> Tensor:
        return torch.sort(u, dim=-1).values

    with pytest.raises(ModelError, match="the right-hand side uses aten.sort.default, which formulas here do not have"):
        discover(_fit(FunctionModel(sorting, "x, y"), data), progress=False)
    with pytest.raises(ModelError, match="the model has no network left to replace"):
        discover(_fit(UDE("dx/dt = x\ndy/dt = -y"), data), progress=False)
    with pytest.raises(InputError, match=r"regressors must have a method search\(samples\): expected objects such as"):
        discover(_fit(_model(), data), [3], progress=False)  # type: ignore[list-item]
    with pytest.raises(InputError, match="seed must be an integer, zero or more: -1"):
        discover(_fit(_model(), data), seed=-1, progress=False)
    with pytest.raises(DataError, match="the data have other trajectories than the fit: expected 1, got 2"):
        found.rmse(_dataset(runs=2))
    with pytest.raises(InputError, match="t lies before the start of a trajectory: expected times from 0 on, got -1"):
        found.predict(np.array([-1.0, 2.0]))


def test_a_folder_that_cannot_be_written_is_said(found: Discovery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into .*file"):
        found.save(tmp_path / "file")


# slow: the command line, the tutorial and the README run the same discovery from their sides
@pytest.mark.slow
@pytest.mark.end_to_end
def test_hudson_bay_has_one_interaction_in_each_equation() -> None:
    """Hewitt's pelts 1900-1920: the networks trained on 1900-1915 turn out to be one hare*lynx term each."""
    hare = [
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
    lynx = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
    data = Dataset.from_arrays(np.arange(1900.0, 1921.0), np.stack([hare, lynx], axis=1), ["hare", "lynx"])
    model = UDE("dhare/dt = a*hare - U1(hare, lynx)\ndlynx/dt = U2(hare, lynx) - d*lynx", fit="a, d")
    result = discover(fit(model, data, progress=False), progress=False)
    assert str(result.chosen) == "U1 = c0*hare*lynx, U2 = c0*hare*lynx"
    rmse = result.rmse()
    assert rmse["hare"] < 4.6
    assert rmse["lynx"] < 3.5


def test_shared_terms_get_one_formula_with_one_set_of_constants() -> None:
    fitted = _fit(_model(), _dataset())
    result = discover(fitted, LibraryRegressor(max_terms=2), options=FAST, constraints="U1 = k*U2", progress=False)
    assert str(result.chosen) == "U2 = c0*x*y"
    assert result.constants == pytest.approx({"a": A, "d": D, "k": B / C, "U2_c0": C}, rel=0.05)
    assert list(result.samples) == ["U2"]
    assert result.samples["U2"].nuisance.shape[1] == 2  # what a could take of U1, and d of U2
    x, y = sp.symbols("x y")
    assert sp.expand(result.equations["x"] / x).coeff(y) == pytest.approx(-B, rel=0.05)
    assert result.model.values()["k"] == result.constants["k"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("U1 = -k*U2", "shared: expected a factor k above zero, got -1.[0-9]+ from the networks"),
        ("U1 = k*U3", "shared: expected a multiple of another term"),
        ("U1 = k + U2", "shared: expected a multiple of another term"),
        ("U1 = a*U2", "shared: expected a new name for the factor, got a"),
    ],
)
def test_relations_that_cannot_hold_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        discover(_fit(_model(), _dataset()), LibraryRegressor(), constraints=text, progress=False)


def test_what_is_known_is_left_standing_by_the_whole_way() -> None:
    """The closest formulas of these networks have more terms; the true ones are the only products of both."""
    known = [f"U{i}: zero_at x=0 or y=0; positive; max_complexity 8" for i in (1, 2)]
    result = discover(_fit(_model(), _dataset()), LibraryRegressor(), options=FAST, constraints=known, progress=False)
    assert str(result.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    for candidates in result.candidates.values():
        assert all(c.complexity <= 8 for c in candidates)
        assert all(c.expression.subs({"x": 0}) == 0 == c.expression.subs({"y": 0}) for c in candidates)
