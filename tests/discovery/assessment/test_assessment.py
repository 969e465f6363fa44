"""How far a formula can be believed: right numbers where they are known, plain words where nothing can be said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sympy as sp
import torch
from scipy.integrate import solve_ivp
from scipy.stats import t as student_t
from torch import Tensor, nn

import ude
from ude.discovery import Candidate, Discovery, Samples, SelectionOptions, SupportWarning, discover
from ude.discovery.assessment.confounding import confounding_table
from ude.discovery.assessment.inclusion import InclusionOptions, probabilities, summands
from ude.discovery.assessment.intervals import profile_interval, wald_intervals
from ude.discovery.assessment.stability import equilibria, screen
from ude.discovery.assessment.support import TermSupport
from ude.discovery.complexity import complexity
from ude.discovery.refit.closed_system import ClosedSystem, Constant, Forcing, ObservedTrajectory
from ude.discovery.refit.embedding import RefitOptions, fit_closed_form
from ude.discovery.refit.integration import Integrator
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.sampling import forcing
from ude.discovery.selection.selection import select
from ude.errors import DataError, InputError
from ude.fitting import Fit
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.fitting.objective.measurement import Measurement
from ude.models import UDE, Neural

x, y, c0, c1, a, k = sp.symbols("x y c0 c1 a k")
FAST = SelectionOptions(max_candidates=4, fit=RefitOptions(max_rhs_calls=50_000, max_seconds=4.0))


class Given(nn.Module):
    """A network that has learned a function of its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        return self.function(u)[..., None] + self.weight


class Offers:
    """A search that knows a few formulas."""

    def __init__(self, *formulas: sp.Expr) -> None:
        self.formulas = formulas

    def search(self, samples: Samples) -> list[Candidate]:
        found = []
        for formula in self.formulas:
            constants = {str(s): 0.5 for s in formula.free_symbols if str(s).startswith("c")}
            found.append(Candidate(formula, constants, complexity(formula, constants), 0.05, "given", True))
        return found


def made_fit(model: UDE, data: Dataset, observe: str | None = None) -> Fit:
    """A fit as `ude.fit` would leave it, without the training."""
    measurement = Measurement.of(model, data, observe, ())
    u0 = np.stack([np.resize(trajectory.u[0], len(model.states)) for trajectory in data.trajectories])
    return Fit(
        model=model,
        data=data,
        train=data,
        held_out=None,
        u0=u0,
        history=pd.DataFrame(),
        interrupted=False,
        seed=0,
        options=ude.FitOptions(),
        positive=np.zeros(len(model.states), dtype=bool),
        scale=np.ones(len(data.states)),
        noise=np.zeros(len(data.states)),
        measurement=measurement,
        state_scale=np.ones(len(model.states)),
    )


def decay(function: Callable[[Tensor], Tensor], values: Array, t: Array, *formulas: sp.Expr) -> Discovery:
    """dx/dt = -.5 x + U(x), with what the network says of U, on data (T,)."""
    model = UDE("dx/dt = -k*x + U(x)", parameters={"k": 0.5}, unknown=Neural(Given(function), "x", "U"))
    data = Dataset.from_arrays(t, values[:, None], "x")
    return discover(made_fit(model, data), Offers(*formulas), options=FAST, progress=False)


T = np.linspace(0.0, 6.0, 25)


def noise(size: int, level: float, seed: int = 0) -> Array:
    return level * np.random.default_rng(seed).standard_normal(size)


# ---- verdicts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero() -> Discovery:
    values = 3.0 * np.exp(-0.5 * T) + noise(25, 0.03)
    return decay(lambda u: 0.02 * torch.cos(2 * u[..., 0]), values, T, sp.S.Zero, c0 * x, c0 * x**2, c0 + c1 * x)


def test_a_term_that_is_zero_is_said_to_be_zero(zero: Discovery) -> None:
    assert zero.terms == {"U": 0}
    assert zero.verdict.kind == "zero"
    assert zero.verdict.sentences[0] == "The data show no sign of U: zero describes them."
    [row] = [r for _, r in zero.inclusion.iterrows() if r["chosen"]]
    assert (row["summand"], row["probability"] > 0.9) == ("0", True)
    assert ude.export(zero, digits=4) == "dx/dt = -0.5*x"
    assert zero.front["probability"].sum() == pytest.approx(1.0)


def test_a_form_that_another_equals_with_as_few_constants_is_not_identified() -> None:
    """So short a way does not tell x and x**4/(1 + x) apart: that the second is longer to write is no evidence."""
    t = np.linspace(0.0, 0.5, 25)
    values = 2.0 * np.exp(-0.8 * t) + noise(25, 0.03)
    found = decay(lambda u: -0.3 * u[..., 0], values, t, c0 * x, c0 * x**4 / (1 + x))
    [row] = [r for _, r in found.inclusion.iterrows() if r["chosen"]]
    assert (row["summand"], row["probability"] > 0.9) == ("x", True)
    assert found.verdict.kind == "several forms equally good"
    assert found.verdict.terms == {"U": "several forms equally good"}
    assert [rival.formulas["U"] for rival in found.verdict.rivals] == ["c0*x", "c0*x**4/(x + 1)"]
    assert "beside the one shown, U = c0*x**4/(x + 1)" in found.verdict.sentences[0]
    t = np.linspace(0.0, 4.0, 25)
    told = decay(lambda u: -0.3 * u[..., 0], 2.0 * np.exp(-0.8 * t) + noise(25, 0.03), t, c0 * x, c0 * x**4 / (1 + x))
    assert told.verdict.kind == "identified"


def test_noise_around_rest_is_not_called_an_equation() -> None:
    values = 2.0 + noise(25, 0.3)
    found = decay(lambda u: 1.0 + 0.1 * torch.sin(3 * u[..., 0]), values, T, sp.S.Zero, c0, c0 * x, c0 + c1 * x)
    assert found.verdict.kind == "not enough data"
    assert found.verdict.terms == {"U": "not enough data"}
    assert str(found).startswith("Not enough data: states that do not change at all describe the data as well")


def test_data_that_never_change_are_refused() -> None:
    with pytest.raises(DataError, match="the data never change.*constant x.*Measure a transient"):
        decay(lambda u: u[..., 0], np.full(25, 2.0), T, c0 * x)


def two_states(formulas: Sequence[sp.Expr], slope: float) -> Discovery:
    """Both states decay; y does so with another rate when slope is not one. U(x, y) = -.5 x."""
    model = UDE(
        "dx/dt = U(x, y)\ndy/dt = -m*y", parameters={"m": 0.5 * slope},
        unknown=Neural(Given(lambda u: -0.5 * u[..., 0]), "x, y", "U"),
    )  # fmt: skip
    values = np.stack([3.0 * np.exp(-0.5 * T), 3.0 * np.exp(-0.5 * slope * T)], axis=1)
    values += noise(50, 0.02, 1).reshape(25, 2)
    data = Dataset.from_arrays(T, values, "x, y")
    fit = replace(made_fit(model, data), u0=np.array([[3.0, 3.0]]))
    return discover(fit, Offers(*formulas), options=FAST, progress=False)


def test_inputs_that_move_together_leave_the_form_open() -> None:
    found = two_states([c0 * x, c0 * y], 1.0)
    assert found.verdict.kind == "several forms equally good"
    assert any("x and y of U move together" in sentence for sentence in found.verdict.sentences)
    apart = two_states([c0 * x, c0 * y, sp.S.Zero], 3.0)
    assert (str(apart.chosen), apart.verdict.kind) == ("U = c0*x", "identified")


def test_formulas_worse_than_the_network_are_called_so() -> None:
    values = 3.0 * np.exp(-0.5 * T) + np.sin(T) + noise(25, 0.001)
    found = decay(lambda u: 0.0 * u[..., 0], values, T, sp.S.Zero, c0)
    found = replace(found, fit=replace(found.fit, noise=np.array([0.001])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "rmse", lambda self, data=None: {"x": 0.001})
        assert found.verdict.kind == "no formula fits"


def test_a_formula_is_not_called_identified_while_its_residuals_hang_together() -> None:
    """Something swings beside the decay, too little to be worth a misfit: the network misses it as well."""
    t = np.linspace(0.0, 6.0, 60)
    errors = noise(60, 0.01)
    swinging = decay(lambda u: 0.0 * u[..., 0], 3.0 * np.exp(-0.5 * t) + 0.03 * np.sin(3 * t) + errors, t, sp.S.Zero)
    assert swinging.verdict.kind == "no formula fits"
    assert str(swinging.verdict).startswith("Close, but not the whole truth: neighboring residuals of x (correlation 0")
    still = decay(lambda u: 0.0 * u[..., 0], 3.0 * np.exp(-0.5 * t) + errors, t, sp.S.Zero)
    assert still.verdict.kind == "zero"


# ---- inclusion ------------------------------------------------------------------------------------------------------


def test_summands_read_the_same_whatever_their_constants_are_called() -> None:
    def named(expression: sp.Expr, *constants: str) -> tuple[str, ...]:
        return summands(Candidate(expression, dict.fromkeys(constants, 1.0), 1, 0.0, "test"))

    c5 = sp.Symbol("c5")
    assert named(c0 * x * y / (c1 + x), "c0", "c1") == named(c1 * x * y / (c5 + x), "c1", "c5") == ("x*y/(K + x)",)
    assert named(c0 * (x + c1 * y), "c0", "c1") == ("x", "y")
    assert named(c0 + x, "c0") == ("1", "x")
    assert named(sp.S.Zero) == ("0",)


def test_without_resampling_the_weights_are_those_of_the_scores_and_with_it_less_sure() -> None:
    system = PartialSystem(("x",), {"x": sp.Function("U")(x)}, {"U": ("x",)})
    data = [ObservedTrajectory(T, (3.0 * np.exp(-0.5 * T) + noise(25, 0.15))[:, None])]
    front = Offers(c0 * x, c0 + c1 * x, c0 * x**2).search(Samples({"x": T}, T))
    ranked = select(system, {"U": front}, data, options=replace(FAST, simplify=False)).ranked
    plain = probabilities(ranked, 1e-3, InclusionOptions(resamples=0))
    scores = np.array([combination.score for combination in ranked])
    expected = np.exp(-0.5 * (scores - scores.min()))
    assert plain == pytest.approx(expected / expected.sum())
    bagged = probabilities(ranked, 1e-3)
    assert bagged.sum() == pytest.approx(1.0)
    assert 0.5 < bagged[0] < plain[0]
    assert np.array_equal(bagged, probabilities(ranked, 1e-3))


# ---- constants ------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_linear_regression_where_the_model_is_a_line() -> None:
    system = ClosedSystem(("x",), {"x": c0}, {"c0": Constant(0.5)})
    values = 1.0 + 0.7 * T + noise(25, 0.2)
    data = [ObservedTrajectory(T, values[:, None])]
    fit = fit_closed_form(system, data, options=RefitOptions(rtol=1e-10))
    slope, level = np.polyfit(T, values, 1)
    variance = np.sum((values - level - slope * T) ** 2) / 23
    half = student_t.ppf(0.975, 23) * np.sqrt(variance / np.sum((T - T.mean()) ** 2))
    [row] = wald_intervals(system, fit, data).to_dict("records")
    assert (row["value"], row["lower"], row["upper"]) == pytest.approx((slope, slope - half, slope + half), rel=1e-5)
    low, high = profile_interval(system, fit, data, "c0", RefitOptions(rtol=1e-10))
    assert (low, high) == pytest.approx((slope - half, slope + half), rel=1e-3)
    with pytest.raises(InputError, match="c9 is not a fitted constant: expected one of c0"):
        profile_interval(system, fit, data, "c9", RefitOptions())


def test_a_constant_that_leaves_no_trace_has_no_interval() -> None:
    system = ClosedSystem(("x",), {"x": -(c0 + c1) * x}, {"c0": Constant(0.2), "c1": Constant(0.3)})
    data = [ObservedTrajectory(T, (np.exp(-0.5 * T) + noise(25, 0.01))[:, None])]
    fit = fit_closed_form(system, data)
    table = wald_intervals(system, fit, data)
    assert np.isneginf(table["lower"]).all()
    assert np.isposinf(table["upper"]).all()


# ---- support, stability, confounding --------------------------------------------------------------------------------


def test_outside_is_beyond_the_hull_and_not_only_the_box() -> None:
    angle = np.linspace(0.0, 2 * np.pi, 60)
    support = TermSupport("U", ("x", "y"), np.stack([np.cos(angle), np.sin(angle)], axis=1))
    asked = {"x": np.array([0.0, 0.69, 0.95, 2.0, np.nan]), "y": np.array([0.0, 0.69, 0.95, 0.0, 0.0])}
    assert support.outside(asked).tolist() == [False, False, True, True, True]
    line = TermSupport("U", ("x", "y"), np.stack([angle, angle], axis=1))  # no hull: the box
    assert line.hull is None
    assert line.outside({"x": np.array([3.0]), "y": np.array([1.0])}).tolist() == [False]


def test_predictions_away_from_the_data_warn(zero: Discovery) -> None:
    zero.predict(np.linspace(0.0, 5.0, 6))
    moved = replace(zero, final=replace(zero.final, u0=np.array([[30.0]])))
    moved.__dict__["assessment"] = zero.assessment
    with pytest.warns(SupportWarning, match="leaves the states that the formulas were found from: U from t = 0 on"):
        moved.predict(np.array([0.0, 1.0]))


def test_rest_and_runaway_are_told() -> None:
    logistic = ClosedSystem(("x",), {"x": a * x * (1 - x)}, {"a": Constant(1.0)})
    data = [ObservedTrajectory(T, np.full((25, 1), np.nan))]
    calm = screen(logistic, {"a": 1.0}, np.array([[0.1]]), data, np.ones(1))
    assert (calm.bounded, calm.checked) == (True, True)
    assert [(e.state["x"], e.kind, e.visited) for e in calm.equilibria] == [
        (pytest.approx(1.0), "stable node", True),
        (pytest.approx(0.0, abs=1e-8), "unstable node", False),
    ]
    assert calm.equilibria[0].eigenvalues == pytest.approx((-1.0,))
    wild = screen(replace(logistic, equations={"x": a * x**2}), {"a": 0.1}, np.array([[1.0]]), data, np.ones(1))
    assert not wild.bounded  # at t = 10, of 60
    assert wild.reached[0] == pytest.approx(10 / 60, abs=0.06)
    assert "blow up" in wild.sentence


def test_a_parameter_is_confounded_with_a_term_that_can_imitate_it() -> None:
    angle = np.linspace(0.0, 6.2, 200)
    along = {"x": 2 + np.cos(angle), "y": 2 + np.sin(angle), "t": angle, "a": 0.5}
    correlations = pd.DataFrame(index=pd.Index([], dtype=object))

    def share(inputs: str) -> float:
        names = inputs.split()
        equations = {"x": a * x - sp.Function("U")(*map(sp.Symbol, names)), "y": -y}
        samples = {"U": Samples({name: np.asarray(along[name]) for name in names}, np.cos(angle))}
        table = confounding_table(equations, ("a",), samples, along, np.ones(2), correlations)
        return float(table["share"].iloc[0])

    assert share("x y") == pytest.approx(1.0)
    assert 0.7 < share("y") < 0.95  # the mean of x, and no more: x is no function of y on a circle


# ---- what is measured, and under what conditions --------------------------------------------------------------------


def test_forcing_is_that_of_interpolation() -> None:
    times, values = np.array([0.0, 1.0, 2.5, 4.0]), np.array([0.0, 2.0, 1.0, 3.0])
    at = np.linspace(-0.5, 4.5, 41)
    for kind in ("constant", "linear", "cubic", "pchip", "akima"):
        expected = ude.Interpolation(times, values, kind)(torch.tensor(at)).detach().numpy()
        own = forcing(times, values, kind)  # type: ignore[arg-type]
        assert [own(t) for t in at.tolist()] == pytest.approx(expected, abs=1e-12)


def test_a_forced_system_is_integrated_with_its_corners() -> None:
    """dx/dt = f(t) with f a step: the integral is known."""
    system = ClosedSystem(("x",), {"x": k * a}, {"k": Constant(1.0), "a": Constant(0.0, fitted=False)})
    step = Forcing((0.0, 2.0, 6.0), (1.0, 3.0, 3.0), None, True)
    found = Integrator(system).solve(T, np.array([0.0]), {"k": 1.0, "a": step}, np.ones(1))
    assert found is not None
    assert found[:, 0] == pytest.approx(np.where(T < 2.0, T, 2.0 + 3.0 * (T - 2.0)), abs=1e-6)


def test_observables_and_conditions_reach_the_discovery() -> None:
    """Two experiments at different doses; measured is three times the state."""
    doses = [0.5, 1.5]
    runs = [
        solve_ivp(lambda t, u, d=dose: d - 0.8 * u**2, (0.0, 6.0), [0.2], t_eval=T, rtol=1e-9).y.T for dose in doses
    ]
    data = Dataset.from_arrays([T, T], [3.0 * u + noise(25, 0.02)[:, None] for u in runs], "z")
    data = data.with_conditions({"dose": doses})
    model = UDE(
        "dx/dt = dose - U(x)", parameters={"dose": 1.0}, observe="z = 3*x",
        unknown=Neural(Given(lambda u: 0.8 * u[..., 0] ** 2), "x", "U"),
    )  # fmt: skip
    fit = replace(made_fit(model, data), u0=np.full((2, 1), 0.2))
    found = discover(fit, Offers(sp.S.Zero, c0 * x, c0 * x**2, c0 * x**3), options=FAST, progress=False)
    assert str(found.chosen) == "U = c0*x**2"
    assert found.constants["U_c0"] == pytest.approx(0.8, rel=0.02)
    assert found.verdict.kind == "identified"
    assert found.rmse()["z"] == pytest.approx(0.02, rel=0.3)
    assert found.intervals["lower"].iloc[0] < 0.8 < found.intervals["upper"].iloc[0]


def test_rest_is_found_where_a_formula_has_a_corner() -> None:
    """dx/dt = 1 - x |x|, at rest at 1 with slope -2; SymPy alone writes d|x|/dx with real and imaginary parts."""
    x = sp.Symbol("x")
    [rest] = equilibria(ClosedSystem(("x",), {"x": 1 - x * sp.Abs(x)}), {}, np.linspace(0.1, 2.0, 20)[:, None])
    assert rest.state == pytest.approx({"x": 1.0})
    assert np.real(rest.eigenvalues) == pytest.approx([-2.0])
