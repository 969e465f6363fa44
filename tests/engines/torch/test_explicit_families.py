"""The explicit methods beyond BS3, DP5 and Tsit5 in the torch engine: orders, extra stages and their cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from tests.problems_for_tests import LV, forced, lotka_volterra, lotka_volterra_problem, scipy_lotka_volterra

LOW = [ude.methods.Euler(), ude.methods.Midpoint(), ude.methods.Heun(), ude.methods.Ralston(), ude.RK4()]
HIGH = [ude.methods.Vern6(), ude.Vern7(), ude.methods.Vern9(), ude.methods.DP8()]
LAZY = [*LOW[1:], *HIGH]
ADAPTIVE = [alg for alg in LOW + HIGH if alg.tableau.b_error]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def coupled(u: torch.Tensor, p: ude.problems.Parameters, t: torch.Tensor) -> torch.Tensor:
    """Two states that depend on each other and on time, smooth and without a known solution."""
    x, y = u.unbind(-1)
    return torch.stack([torch.cos(y) * p.w, torch.sin(t) * x / (1 + x**2)], -1)


W = torch.linspace(0.5, 1.5, 16, dtype=torch.float64)


@pytest.fixture(scope="module")
def coupled_end() -> torch.Tensor:
    """The state at t = 4 of every member of an ensemble, by SciPy."""
    ends = []
    for w in W.tolist():
        f = lambda t, u, w=w: [math.cos(u[1]) * w, math.sin(t) * u[0] / (1 + u[0] ** 2)]  # noqa: E731
        ends.append(solve_ivp(f, (0.0, 4.0), [w, 1 - w], method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1])
    return torch.tensor(np.array(ends))


def mean_error(alg, steps: int, truth: torch.Tensor) -> float:
    """Geometric mean over the ensemble: the error of a single problem changes its sign as the step varies."""
    prob = ude.ODEProblem(coupled, torch.stack([W, 1 - W], -1), (0.0, 4.0), dict(w=W))
    sol = ude.solve(prob, alg, dt=4.0 / steps, adaptive=False)
    assert sol.stats.accepted_steps.tolist() == [steps] * len(W)
    return float((sol.u[:, -1] - truth).norm(dim=-1).log().mean().exp())


# Numbers of steps for which the error is asymptotic and stands above rounding: high orders need few, large steps.
ASYMPTOTIC = {"Euler": 400, "Midpoint": 100, "Heun": 100, "Ralston": 100, "RK4": 40, "Vern7": 32, "Vern9": 5, "DP8": 8}


@pytest.mark.parametrize("alg", [alg for alg in LOW + HIGH if alg.name in ASYMPTOTIC], ids=name)
def test_measured_order_is_the_stated_one(alg, coupled_end):
    steps = ASYMPTOTIC[alg.name]
    if alg.name == "Vern7":
        # its error constants on the coupled problem are those of order 8; on this one they are not
        rate = torch.linspace(0.5, 3.0, 64, dtype=torch.float64)
        exact = torch.exp(rate * math.sin(4.0)).unsqueeze(-1)
        errors = []
        for count in (steps, 2 * steps):
            prob = ude.ODEProblem(forced, torch.ones(64, 1, dtype=torch.float64), (0.0, 4.0), dict(rate=rate))
            u = ude.solve(prob, alg, dt=4.0 / count, adaptive=False).u[:, -1]
            errors.append(float(((u - exact) / exact).abs().log().mean().exp()))
    else:
        errors = [mean_error(alg, count, coupled_end) for count in (steps, 2 * steps)]
    assert errors[1] > 1e-13, "the error must stand above rounding for this test to say something"
    assert math.log2(errors[0] / errors[1]) == pytest.approx(alg.tableau.order, abs=0.2), errors


def test_vern6_has_at_least_its_order(coupled_end):
    # the error constants of its sixth order are so small that in double precision the seventh is seen; arithmetic of
    # 60 digits, where the steps can be small enough, shows the sixth (tests/methods)
    errors = [mean_error(ude.methods.Vern6(), count, coupled_end) for count in (11, 22)]
    assert 6 - 0.2 < math.log2(errors[0] / errors[1]) < 8.5, errors


@pytest.mark.parametrize("alg", LOW + HIGH, ids=name)
def test_dense_output_has_its_order_between_the_steps(alg):
    steps = {"Euler": 64, "Vern6": 10, "Vern7": 8, "Vern9": 3, "DP8": 4}.get(alg.name, 40)
    prob = ude.ODEProblem(forced, [1.0], (0.0, 2.0), dict(rate=1.3))
    times = torch.linspace(0.0, 2.0, 331, dtype=torch.float64)
    exact = torch.exp(1.3 * torch.sin(times))
    errors = []
    for count in (steps, 2 * steps):
        saved = ude.solve(prob, alg, dt=2.0 / count, adaptive=False, saveat=times)
        later = ude.solve(prob, alg, dt=2.0 / count, adaptive=False)
        torch.testing.assert_close(later(times), saved.u, rtol=1e-12, atol=1e-12)
        errors.append(float((saved.u[:, 0] - exact).abs().max()))
    # over a fixed span the error of an interpolant of order q on top of steps of order p is min(p, q + 1)
    order = math.log2(errors[0] / errors[1])
    assert order > min(alg.tableau.order, alg.tableau.interpolant_order + 1) - 0.4, (order, errors)


@pytest.mark.parametrize("alg", ADAPTIVE, ids=name)
def test_error_follows_the_tolerance(alg):
    tolerances = [1e-2, 1e-4] if alg.tableau.order == 2 else [1e-5, 1e-8, 1e-10]
    truth = scipy_lotka_volterra(np.array([0.0, 10.0]))[-1]
    errors = []
    for tolerance in tolerances:
        sol = ude.solve(lotka_volterra_problem(), alg, abstol=tolerance, reltol=tolerance)
        errors.append(np.abs(sol.u[-1].numpy() - truth).max())
    assert all(error < 300 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    assert errors[-1] < errors[0] / 10, errors


@pytest.mark.parametrize("alg", [ude.methods.Euler(), ude.RK4()], ids=name)
def test_methods_without_an_error_estimate_ask_for_fixed_steps(alg):
    with pytest.raises(
        ude.errors.EngineRefused, match=f"{alg.name} estimates no error, so it needs adaptive=False and dt"
    ):
        ude.solve(lotka_volterra_problem(), alg)


def calls(alg, saveat) -> int:
    prob = ude.ODEProblem(lotka_volterra, [1.0, 1.0], (0.0, 1.0), LV)
    return ude.solve(prob, alg, dt=0.1, adaptive=False, saveat=saveat).stats.nf


@pytest.mark.parametrize("alg", LAZY, ids=name)
def test_extra_stages_are_evaluated_only_in_steps_that_hold_a_read(alg):
    extra = len(alg.tableau.extra_a) - alg.tableau.first_extra_is_next
    at_the_ends = calls(alg, [0.0, 1.0])
    stages = alg.tableau.stages - alg.tableau.first_same_as_last
    # the first derivative belongs to the check of the problem
    assert at_the_ends == 10 * stages
    # 0.3 and 0.7 are ends of steps only up to rounding, so read well inside
    assert calls(alg, [0.0, 0.35, 1.0]) == at_the_ends + extra
    assert calls(alg, [0.0, 0.33, 0.35, 0.37, 0.72, 1.0]) == at_the_ends + 2 * extra


@pytest.mark.parametrize("alg", [ude.methods.BS3(), ude.methods.DP5(), ude.Tsit5(), ude.methods.Euler()], ids=name)
def test_free_interpolants_stay_free(alg):
    assert calls(alg, [0.0, 0.15, 0.25, 0.35, 1.0]) == calls(alg, [0.0, 1.0])


@pytest.mark.parametrize("alg", [ude.methods.Heun(), ude.Vern7(), ude.methods.DP8()], ids=name)
def test_a_read_at_the_end_of_a_step_is_its_state(alg):
    every = ude.solve(lotka_volterra_problem(), alg, abstol=1e-4, reltol=1e-4)
    saved = ude.solve(lotka_volterra_problem(), alg, abstol=1e-4, reltol=1e-4, saveat=every.t)
    torch.testing.assert_close(saved.u, every.u, rtol=1e-14, atol=1e-14)
    assert saved.stats.nf == every.stats.nf
    torch.testing.assert_close(every(every.t), every.u, rtol=0, atol=0)


@pytest.mark.parametrize(
    "alg", [ude.methods.Ralston(), ude.methods.Vern6(), ude.methods.Vern9(), ude.methods.DP8()], ids=name
)
def test_a_trajectory_does_not_depend_on_its_neighbors(alg):
    u0 = torch.tensor([[1.0, 1.0], [3.0, 0.5], [0.4, 2.0]], dtype=torch.float64)
    spans = torch.tensor([4.0, 1.5, 3.0], dtype=torch.float64)
    saveat = spans.unsqueeze(-1) * torch.tensor([0.0, 0.21, 0.22, 0.6, 1.0], dtype=torch.float64)
    options = dict(abstol=1e-4, reltol=1e-4) if alg.tableau.order == 2 else dict(abstol=1e-8, reltol=1e-8)
    together = ude.solve(ude.ODEProblem(lotka_volterra, u0, (0.0, spans), LV), alg, saveat=saveat, **options)
    for i in range(3):
        prob = ude.ODEProblem(lotka_volterra, u0[i], (0.0, float(spans[i])), LV)
        alone = ude.solve(prob, alg, saveat=saveat[i], **options)
        assert int(together.stats.accepted_steps[i]) == int(alone.stats.accepted_steps)
        assert int(together.stats.rejected_steps[i]) == int(alone.stats.rejected_steps)
        # sums in another order: the weights of Vern6's dense output are as large as 1e5 and nearly cancel
        torch.testing.assert_close(together.u[i], alone.u, rtol=2e-11, atol=0)


@pytest.mark.parametrize("alg", [ude.RK4(), ude.methods.Vern6(), ude.Vern7(), ude.methods.DP8()], ids=name)
def test_the_discrete_adjoint_is_the_exact_derivative_of_a_rough_solve(alg):
    """Reads inside steps, at ends of steps and of the end, with steps so large that the solve is rough."""

    def loss(theta: torch.Tensor) -> torch.Tensor:
        prob = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 3.0), dict(zip(LV, theta[2:], strict=True)))
        sol = ude.solve(prob, alg, saveat=[0.37, 0.6, 1.5, 2.9, 3.0], dt=0.3, adaptive=False)
        return (sol.u**2).sum() + sol(1.234).prod()

    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step, numeric = 1e-3, []
    with torch.no_grad():
        for e in step * torch.eye(6, dtype=torch.float64):
            near, far = loss(theta + e) - loss(theta - e), loss(theta + 2 * e) - loss(theta - 2 * e)
            numeric.append((8 * near - far) / (12 * step))
    torch.testing.assert_close(gradient, torch.stack(numeric), rtol=1e-6, atol=1e-6)


def test_two_error_estimates_of_zero_are_an_error_of_zero():
    # a constant right-hand side: both estimates vanish, and 0/0 must not end the solve
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: torch.ones_like(u), [0.0], (0.0, 2.0)), ude.methods.DP8())
    assert float(sol.u[-1, 0]) == pytest.approx(2.0, rel=1e-15)
    assert int(sol.stats.rejected_steps) == 0
