"""FBDF: formulas, order, stiff problems, work against SciPy's BDF, batches, failures."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import ude
from benchmarks.reference_problems import get
from tests.problems_for_tests import forced, lotka_volterra_problem
from tests.stiff_problems_for_tests import robertson, robertson_problem, van_der_pol
from ude.engines.torch.engine import TorchEngine
from ude.engines.torch.families.bdf_history import (
    PAST,
    base_weights,
    dense_stages,
    distances,
    lagrange_weights,
    newton_terms,
)
from ude.engines.torch.stages import extend
from ude.methods.bdf import leading_coefficient

ORDERS = range(1, 6)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- the formulas ----------------------------------------------------------------------------------------------------

# what multiplies u_n, u_{n-1}, ... where the new state has 1 (E. Hairer & G. Wanner, Solving ODEs I, III.1)
CLASSICAL = {
    1: ["1"],
    2: ["4/3", "-1/3"],
    3: ["18/11", "-9/11", "2/11"],
    4: ["48/25", "-36/25", "16/25", "-3/25"],
    5: ["300/137", "-300/137", "200/137", "-75/137", "12/137"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_with_even_steps_the_formula_is_the_classical_one(order):
    r = torch.arange(PAST + 1, dtype=torch.float64).unsqueeze(-1)
    weights = base_weights(r, torch.tensor([order]))[:, 0].tolist()
    classical = [float(Fraction(w)) for w in CLASSICAL[order]]
    assert weights == pytest.approx(classical + [0.0] * (PAST + 1 - order), abs=1e-13)


def fixed_order_error(order: int, sizes: Tensor) -> float:
    """Solve ``u' = cos(t) u`` with formulas of one order from exact starting values; the equations are linear."""
    times = torch.cat([numbers(0.0), sizes.cumsum(0)])
    u = [float(torch.exp(torch.sin(t))) for t in times[: PAST + 1]]
    for n in range(PAST, len(sizes)):
        dt = sizes[n : n + 1]
        r = distances(sizes[n - PAST : n].flip(0).unsqueeze(-1), dt, torch.tensor([PAST]))
        weights = base_weights(r, torch.tensor([order]))[:, 0]
        base = sum(float(w) * u[n - j] for j, w in enumerate(weights))
        step = float(dt) / float(leading_coefficient(order))
        u.append(base / (1 - step * math.cos(float(times[n + 1]))))
    # over the whole span: at one time errors may cancel
    return max(abs(value - math.exp(math.sin(float(t)))) for value, t in zip(u, times, strict=True))


@pytest.mark.parametrize("ratio", [1.0, 1.4], ids=["even steps", "steps that alternate"])
@pytest.mark.parametrize("order", ORDERS)
def test_measured_order_of_each_formula_is_the_stated_one(order, ratio):
    errors = []
    for steps in (80, 160):
        pattern = torch.ones(steps, dtype=torch.float64)
        pattern[1::2] = ratio
        errors.append(fixed_order_error(order, 3.0 * pattern / pattern.sum()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2), errors


@pytest.mark.parametrize("order", ORDERS)
def test_prediction_and_dense_output_reproduce_polynomials_of_their_degree(order):
    coefficients = numbers(0.3, -1.0, 0.7, 0.4, -0.2, 0.1)[: order + 1]

    def polynomial(theta: Tensor) -> Tensor:
        return sum(c * theta**m for m, c in enumerate(coefficients))

    r = numbers(0.0, 0.8, 2.1, 2.9, 4.4, 5.0).unsqueeze(-1)
    states = polynomial(-r).unsqueeze(-1)
    terms = newton_terms(states, r)
    one = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(terms[: order + 1].sum(0), polynomial(one), rtol=1e-12, atol=1e-12)
    dt, theta = numbers(0.25), numbers(0.37)
    k = dense_stages(terms, r, torch.tensor([order]), polynomial(one), dt)
    read = extend(torch.eye(PAST).double(), states[0], dt, theta, k.transpose(0, 1))
    torch.testing.assert_close(read[:, 0], polynomial(theta), rtol=1e-12, atol=1e-12)
    nodes, used = torch.cat([one, -r]), (torch.arange(PAST + 2) <= order).unsqueeze(-1)
    weights = lagrange_weights(nodes, used, theta)
    torch.testing.assert_close((weights * polynomial(nodes)).sum(0), polynomial(theta), rtol=1e-12, atol=1e-12)


# --- solves ----------------------------------------------------------------------------------------------------------


def record_of(prob: ude.ODEProblem, alg: ude.FBDF, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Solve, and catch the record on its way out of the engine."""
    caught = []
    forward = TorchEngine.forward

    def listening(self: Any, *args: Any) -> Any:
        caught.append(forward(self, *args))
        return caught[-1]

    monkeypatch.setattr(TorchEngine, "forward", listening)
    ude.solve(prob, alg, **options)
    monkeypatch.undo()
    return caught[0].record


def test_a_smooth_problem_reaches_high_orders_from_order_one(monkeypatch):
    prob = ude.ODEProblem(forced, [1.0], (0.0, 10.0), dict(rate=2.0))
    order = record_of(prob, ude.FBDF(), monkeypatch, abstol=1e-8, reltol=1e-8).order[:, 0]
    assert order[0] == 1
    assert int((order[1:] - order[:-1]).max()) == 1
    assert float((order >= 4).double().mean()) > 0.5
    assert int(order.max()) == 5


@pytest.mark.parametrize("highest", ORDERS)
def test_max_order_bounds_the_order_and_sets_how_steps_grow_with_the_tolerance(highest, monkeypatch):
    prob = ude.ODEProblem(forced, [1.0], (0.0, 10.0), dict(rate=1.0))
    tolerances = (1e-4, 1e-6) if highest < 3 else (1e-6, 1e-8)
    counts = []
    for tolerance in tolerances:
        order = record_of(prob, ude.FBDF(max_order=highest), monkeypatch, abstol=tolerance, reltol=tolerance).order
        assert int(order.max()) == highest
        counts.append(len(order))
    assert math.log(100) / math.log(counts[1] / counts[0]) == pytest.approx(highest + 1, rel=0.25)


def test_with_fixed_steps_the_order_rises_to_the_highest(monkeypatch):
    prob = ude.ODEProblem(forced, [1.0], (0.0, 1.0), dict(rate=1.0))
    record = record_of(prob, ude.FBDF(), monkeypatch, dt=0.1, adaptive=False)
    assert record.order[:, 0].tolist() == [1, 1, 2, 3, 4, 5, 5, 5, 5, 5]


def test_error_scales_with_the_tolerance_also_between_the_steps():
    prob = ude.ODEProblem(forced, [1.0], (0.0, 10.0), dict(rate=2.0))
    times = torch.linspace(0.0, 10.0, 501, dtype=torch.float64)
    exact = torch.exp(2.0 * torch.sin(times))
    tolerances = (1e-4, 1e-6, 1e-8, 1e-10)
    for tolerance in tolerances:
        sol = ude.solve(prob, ude.FBDF(), saveat=times, abstol=tolerance, reltol=tolerance)
        assert float(((sol.u[:, 0] - exact).abs() / (1 + exact)).max()) < 300 * tolerance
        torch.testing.assert_close(sol(times), sol.u, rtol=1e-12, atol=1e-13)


FLOORS = {
    "hires": torch.tensor(1e-4),
    "orego": torch.tensor(1.0),
    "vdpol": numbers(1e-2, 1e-5),
    "rober": numbers(1e-8, 1e-14, 1e-2),
}


def scaled_error(value: Tensor, end: Tensor, floor: Tensor) -> float:
    return float(((value - end).abs() / (end.abs() + floor)).max())


# the bars that the one-step methods meet: a scaled error of 100 reltol; multistep errors add up over thousands of steps
@pytest.mark.parametrize("name", FLOORS)
def test_stiff_problems_end_at_their_published_values(name):
    reference, floor = get(name), FLOORS[name]
    reltol = 1e-6
    end = reference.problem.tspan[1]
    sol = ude.solve(reference.problem, ude.FBDF(), saveat=[end], reltol=reltol, abstol=reltol * floor)
    assert scaled_error(sol.u[-1], reference.end_values, floor) < 200 * reltol
    assert int(sol.stats.accepted_steps) < 5000
    assert sol.stats.njacs < 0.1 * int(sol.stats.accepted_steps)
    assert sol.stats.nw < 0.6 * int(sol.stats.accepted_steps)


# error of SciPy's BDF (1.17, the exact Jacobian given) and its calls of f, at reltol 1e-4 ... 1e-8 with the same
# absolute tolerances
SCIPY = {
    "hires": [(1.21e-3, 462), (8.25e-5, 648), (8.48e-6, 911), (1.25e-6, 1281), (7.58e-8, 1981)],
    "orego": [(6.37e-4, 1926), (1.87e-4, 2753), (6.75e-5, 3913), (1.08e-5, 5878), (1.57e-6, 8724)],
    "vdpol": [(7.99e-4, 1867), (1.38e-5, 2644), (1.08e-5, 3832), (1.00e-6, 5724), (1.39e-7, 7769)],
    "rober": [(2.00e-4, 1250), (2.40e-5, 1720), (3.85e-6, 2454), (8.51e-7, 3522), (1.48e-8, 5260)],
}


def calls_against_scipy(name: str, reltols: list[float]) -> list[float]:
    """Logarithms of our calls of f over SciPy's at our error, by a line through its logarithms."""
    reference, floor = get(name), FLOORS[name]
    errors, calls = (np.log(column) for column in zip(*SCIPY[name], strict=True))
    slope, level = np.polyfit(errors, calls, 1)
    ratios = []
    for reltol in reltols:
        end = reference.problem.tspan[1]
        sol = ude.solve(reference.problem, ude.FBDF(), saveat=[end], reltol=reltol, abstol=reltol * floor)
        error = scaled_error(sol.u[-1], reference.end_values, floor)
        ratios.append(math.log(sol.stats.nf) - (slope * math.log(error) + level))
    return ratios


def test_hires_takes_no_more_calls_than_scipys_bdf_at_equal_error():
    assert math.exp(np.mean(calls_against_scipy("hires", [1e-4, 1e-6, 1e-8]))) < 1.2


@pytest.mark.slow
def test_calls_at_equal_error_are_those_of_scipys_bdf_over_problems_and_tolerances():
    ratios = [x for name in FLOORS for x in calls_against_scipy(name, [1e-4, 1e-5, 1e-6, 1e-7, 1e-8])]
    assert math.exp(np.mean(ratios)) < 1.2


def test_a_trajectory_takes_the_same_steps_and_orders_alone_and_in_any_batch(monkeypatch):
    mu = numbers(1.0, 1000.0, 30.0)
    ends = numbers(6.0, 900.0, 7.0)
    u0 = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.3, 0.2]], dtype=torch.float64)
    prob = ude.ODEProblem(van_der_pol, u0, (0.0, ends), dict(mu=mu))
    together = record_of(prob, ude.FBDF(), monkeypatch, abstol=1e-5, reltol=1e-5)
    for i in range(3):
        one = ude.ODEProblem(van_der_pol, u0[i], (0.0, float(ends[i])), dict(mu=mu[i]))
        alone = record_of(one, ude.FBDF(), monkeypatch, abstol=1e-5, reltol=1e-5)
        moved = together.dt[:, i] != 0
        assert together.order[moved, i].tolist() == alone.order[:, 0].tolist()
        assert bool((together.order[~moved, i] == 0).all())
        torch.testing.assert_close(together.dt[moved, i], alone.dt[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(together.u[:-1][moved, i], alone.u[:-1, 0], rtol=1e-10, atol=1e-10)


def test_integration_runs_backward_in_time():
    there = ude.solve(lotka_volterra_problem(tspan=(0.0, 3.0)), ude.FBDF(), abstol=1e-10, reltol=1e-10)
    back = ude.solve(
        lotka_volterra_problem(u0=there.u[-1], tspan=(3.0, 0.0)),
        ude.FBDF(), saveat=[1.5, 0.0], abstol=1e-10, reltol=1e-10,
    )  # fmt: skip
    assert back.u[-1].tolist() == pytest.approx([1.0, 1.0], rel=1e-6)
    assert back.u[0].tolist() == pytest.approx(there(1.5).tolist(), rel=1e-6)


def test_float32_problems_stay_float32():
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float32)
    sol = ude.solve(
        ude.ODEProblem(robertson, u0, (0.0, 40.0), dict(k1=0.04, k2=3e7, k3=1e4)), ude.FBDF(), abstol=1e-8, reltol=1e-4
    )
    assert sol.u.dtype == torch.float32
    assert float(sol.u[-1, 0]) == pytest.approx(0.71582707, rel=2e-3)


def test_a_jump_of_the_state_restarts_at_order_one_and_loses_no_accuracy(monkeypatch):
    """``u' = -2 (u - cos t)`` with kicks at preset times and a stop, in closed form between them."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return -2.0 * (u - torch.cos(t).unsqueeze(-1))

    def particular(t: float) -> float:
        return (4 * math.cos(t) + 2 * math.sin(t)) / 5

    kicks = ude.PresetTimeCallback([1.0, 2.0], lambda u, p, t: u + 1.0)
    prob = ude.ODEProblem(f, [0.0], (0.0, 3.0))
    sol = ude.solve(prob, ude.FBDF(), saveat=[0.5, 1.5, 3.0], callback=kicks, tstops=[2.5], abstol=1e-9, reltol=1e-9)
    exact = []
    for t in (0.5, 1.5, 3.0):
        decay = -particular(0.0) * math.exp(-2 * t)
        decay += sum(math.exp(-2 * (t - kick)) for kick in (1.0, 2.0) if t > kick)
        exact.append(particular(t) + decay)
    assert sol.u[:, 0].tolist() == pytest.approx(exact, abs=2e-7)


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_equation_without_a_solution_ends_in_convergence_failure_and_spoils_no_neighbor():
    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.where(u > 0, -1.0, 1.0).to(u.dtype) + 0 * u

    prob = ude.ODEProblem(f, torch.tensor([[1.0], [-0.1]], dtype=torch.float64), (0.0, numbers(3.0, 0.05)))
    sol = ude.solve(prob, ude.FBDF(), maxiters=5000)
    assert list(sol.retcode) == [ude.ReturnCode.ConvergenceFailure, ude.ReturnCode.Success]
    assert float(sol.partial[1, -1, 0]) == pytest.approx(-0.05, abs=1e-9)


def test_a_failing_neighbor_spoils_nothing():
    # u' = u^2 blows up at t = 1/u0
    prob = ude.ODEProblem(lambda u, p, t: u**2, [[0.1], [2.0], [0.2]], (0.0, 1.0))
    sol = ude.solve(prob, ude.FBDF(), saveat=[0.25, 1.0], abstol=1e-7, reltol=1e-7)
    assert sol.success.tolist() == [True, False, True]
    assert sol.partial[1, -1].isnan().all()
    torch.testing.assert_close(sol.partial[[0, 2], -1, 0], numbers(0.1 / 0.9, 0.2 / 0.8), rtol=1e-5, atol=0)


def test_a_step_below_dtmin_and_too_many_steps_are_reported():
    prob = lotka_volterra_problem()
    assert ude.solve(prob, ude.FBDF(), dtmin=0.05, abstol=1e-9, reltol=1e-9).retcode == ude.ReturnCode.DtLessThanMin
    assert ude.solve(prob, ude.FBDF(), maxiters=20, abstol=1e-12).retcode == ude.ReturnCode.MaxIters


def test_leaving_the_domain_of_f_is_unstable():
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: -1 - u.sqrt(), [1.0], (0.0, 5.0)), ude.FBDF(), saveat=[0.1, 5.0])
    assert sol.retcode == ude.ReturnCode.Unstable
    assert torch.isfinite(sol.partial[0]).all()


def test_a_linear_invariant_is_kept():
    sol = ude.solve(robertson_problem(), ude.FBDF(), abstol=1e-12, reltol=1e-6)
    torch.testing.assert_close(sol.u.sum(-1), torch.ones(len(sol), dtype=torch.float64), rtol=0, atol=1e-11)


def test_options_that_cannot_be_used_are_refused():
    with pytest.raises(ude.errors.InputError, match="max_order is no order of FBDF: expected 1 to 5, got 6"):
        ude.FBDF(max_order=6)
    with pytest.raises(
        ude.errors.InputError, match="newton_tolerance is a part of the tolerance: expected a number between"
    ):
        ude.FBDF(newton_tolerance=1.0)
    with pytest.raises(
        ude.errors.InputError, match="newton_maxiters allows no estimate of the rate of convergence: expected"
    ):
        ude.FBDF(newton_maxiters=1)


def test_a_step_into_a_forbidden_region_is_cut_and_the_solve_stays_outside_it():
    seen = []

    def negative(u: Tensor, p: Any, t: Tensor) -> Tensor:
        seen.append(u.detach())
        return (u < 0).any(-1)

    # z' = -40 sqrt(z) reaches zero at 0.05 and has no steps beyond
    prob = ude.ODEProblem(lambda u, p, t: -40.0 * u.clamp(min=0.0) ** 0.5 - 40.0 * (u < 0), [1.0], (0.0, 0.049))
    sol = ude.solve(prob, ude.FBDF(), abstol=1e-3, reltol=1e-3, dt=0.2, dtmax=0.2, isoutofdomain=negative)
    assert bool((sol.u >= 0).all())
    assert any(bool((u < 0).any()) for u in seen)
    refused = next(i for i, u in enumerate(seen) if bool((u < 0).any()))
    assert refused + 1 < len(seen)


def test_order_and_step_go_by_the_norm_that_the_user_gives():
    prob = lotka_volterra_problem(tspan=(0.0, 3.0))
    options = {"saveat": [3.0], "abstol": 1e-6, "reltol": 1e-6}
    plain = ude.solve(prob, ude.FBDF(), **options)
    own = ude.solve(prob, ude.FBDF(), internalnorm=lambda e, t: e.square().mean(-1).sqrt(), **options)
    assert torch.equal(plain.stats.accepted_steps, own.stats.accepted_steps)
    assert torch.equal(plain.stats.rejected_steps, own.stats.rejected_steps)
    strict = ude.solve(prob, ude.FBDF(), internalnorm=lambda e, t: 100 * e.square().mean(-1).sqrt(), **options)
    tighter = ude.solve(prob, ude.FBDF(), saveat=[3.0], abstol=1e-8, reltol=1e-8)
    # Newton's iteration keeps the looser tolerance, so the steps are nearly those of the tighter solve
    assert int(strict.stats.accepted_steps) == pytest.approx(int(tighter.stats.accepted_steps), rel=0.1)
    assert int(strict.stats.rejected_steps) <= 0.3 * int(strict.stats.accepted_steps)


def test_a_stop_starts_again_at_a_step_that_order_one_can_take():
    prob = lotka_volterra_problem(tspan=(0.0, 3.0))
    options = {"saveat": [3.0], "abstol": 1e-8, "reltol": 1e-8}
    straight = ude.solve(prob, ude.FBDF(), **options)
    stopped = ude.solve(prob, ude.FBDF(), tstops=[1.0, 2.0], **options)
    torch.testing.assert_close(stopped.u, straight.u, rtol=1e-6, atol=0.0)
    assert int(stopped.stats.rejected_steps) <= int(straight.stats.rejected_steps) + 6


def test_checkpoints_are_refused_in_one_sentence():
    u0 = numbers(1.0).requires_grad_()
    with pytest.raises(
        ude.errors.EngineRefused,
        match="FBDF's steps are made of the states before them, so DiscreteAdjoint holds them all: leave its "
        "checkpoints out",
    ):
        ude.solve(
            ude.ODEProblem(lambda u, p, t: -u, u0, (0.0, 1.0)), ude.FBDF(),
            saveat=[1.0], sensealg=ude.DiscreteAdjoint(checkpoints="logarithmic"),
        )  # fmt: skip


def test_the_gradient_of_a_step_of_order_two_is_that_of_its_equation():
    """Steps of 0.1 of ``u' = -a u^3``: order 1 twice, then 2, differentiated by hand."""
    u0 = numbers(1.3).requires_grad_()
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    alg = ude.FBDF(max_order=2, newton_tolerance=1e-6, newton_maxiters=60)
    prob = ude.ODEProblem(lambda u, p, t: -p.a * u**3, u0, (0.0, 0.3), dict(a=a))
    sol = ude.solve(prob, alg, dt=0.1, adaptive=False, abstol=1e-9, reltol=1e-9)
    u = [float(x) for x in sol.u.detach()[:, 0]]
    assert u[3] + 0.1 / 1.5 * 0.4 * u[3] ** 3 == pytest.approx(4 / 3 * u[2] - u[1] / 3, rel=1e-12)
    of_u0, of_a = [1.0], [0.0]
    for n, (new, step) in enumerate(((u[1], 0.1), (u[2], 0.1), (u[3], 0.1 / 1.5))):
        back = (1.0, 0.0) if n < 2 else (4 / 3, -1 / 3)
        slope = 1 + 3 * step * 0.4 * new**2
        before = [back[0] * d[n] + back[1] * d[n - 1] for d in (of_u0, of_a)]
        of_u0.append(before[0] / slope)
        of_a.append((before[1] - step * new**3) / slope)
    found = torch.autograd.grad(sol.u[-1, 0], (u0, a))
    assert [float(x) for x in found] == pytest.approx([of_u0[-1], of_a[-1]], rel=1e-11)


@pytest.mark.slow
def test_the_gradient_of_hires_agrees_with_differences_of_scipys_radau():
    reference = get("hires")
    u0 = reference.problem.u0.clone().requires_grad_()
    prob = ude.remake(reference.problem, u0=u0, tspan=(0.0, 20.0))
    sol = ude.solve(prob, ude.FBDF(), saveat=[20.0], abstol=1e-13, reltol=1e-10)
    (gradient,) = torch.autograd.grad(sol.u[-1, 0], u0)

    def at(start: np.ndarray) -> float:
        def f(t: float, y: np.ndarray) -> np.ndarray:
            return reference.problem.f(torch.from_numpy(np.array(y)), None, torch.tensor(t)).numpy()

        return float(solve_ivp(f, (0.0, 20.0), start, method="Radau", rtol=1e-11, atol=1e-15).y[0, -1])

    start = reference.problem.u0.numpy()
    for i in (0, 7):
        shift = np.zeros(8)
        shift[i] = 1e-3
        numeric = (at(start + shift) - at(start - shift)) / 2e-3
        assert float(gradient[i]) == pytest.approx(numeric, rel=1e-4)
