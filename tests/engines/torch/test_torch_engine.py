"""The torch engine: accuracy, order, batches, dense output, ways to fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from tests.problems_for_tests import LV, forced, lotka_volterra, lotka_volterra_problem, scipy_lotka_volterra

METHODS = [ude.methods.BS3(), ude.methods.DP5(), ude.Tsit5()]
GRID = np.linspace(0.0, 10.0, 101)


def name(value: object) -> str:
    return getattr(value, "name", str(value))


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_error_scales_with_reltol(alg):
    tolerances = [1e-4, 1e-6, 1e-8] if alg.name == "BS3" else [1e-4, 1e-6, 1e-8, 1e-10]
    truth = scipy_lotka_volterra(GRID)
    errors = []
    for tolerance in tolerances:
        sol = ude.solve(lotka_volterra_problem(), alg, saveat=0.1, abstol=tolerance, reltol=tolerance)
        errors.append(np.abs(sol.u.numpy() - truth).max())
    # the tolerance bounds the local error; over ten time units of this orbit it grows by a few hundred at most
    assert all(error < 300 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    assert slope > 0.75, (slope, errors)


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_measured_order_is_the_stated_one(alg):
    prob = ude.ODEProblem(forced, [1.0], (0.0, 3.0), dict(rate=4.0))
    exact = math.exp(4.0 * math.sin(3.0))
    errors = []
    for steps in (40, 80, 160):
        sol = ude.solve(prob, alg, dt=3.0 / steps, adaptive=False)
        assert int(sol.stats.accepted_steps) == steps
        errors.append(abs(float(sol.u[-1, 0]) - exact))
    order = math.log2(errors[1] / errors[2])
    assert math.log2(errors[0] / errors[1]) == pytest.approx(alg.tableau.order, abs=0.2), errors
    assert order == pytest.approx(alg.tableau.order, abs=0.2), errors


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_dense_output_has_its_order_between_the_steps(alg):
    prob = ude.ODEProblem(forced, [1.0], (0.0, 2.0), dict(rate=1.3))
    errors = []
    times = torch.linspace(0.0, 2.0, 331, dtype=torch.float64)
    exact = torch.exp(1.3 * torch.sin(times))
    for steps in (16, 32, 64):
        sol = ude.solve(prob, alg, dt=2.0 / steps, adaptive=False)
        errors.append(float((sol(times)[:, 0] - exact).abs().max()))
    order = math.log2(errors[1] / errors[2])
    # over a fixed span the error of an interpolant of order q on top of steps of order p is min(p, q + 1)
    assert order > min(alg.tableau.order, alg.tableau.interpolant_order + 1) - 0.35, (order, errors)


def test_the_lotka_volterra_solution_agrees_with_scipy_at_every_save():
    sol = ude.solve(lotka_volterra_problem(), ude.Tsit5(), saveat=GRID, abstol=1e-11, reltol=1e-11)
    np.testing.assert_allclose(sol.u.numpy(), scipy_lotka_volterra(GRID), rtol=2e-9)


def test_steps_are_about_as_many_as_scipys_for_the_same_tolerance():
    sol = ude.solve(lotka_volterra_problem(), ude.methods.DP5(), abstol=1e-8, reltol=1e-8)
    f = lambda t, u: [1.5 * u[0] - u[0] * u[1], u[0] * u[1] - 3 * u[1]]  # noqa: E731
    peer = solve_ivp(f, (0, 10), [1.0, 1.0], method="RK45", rtol=1e-8, atol=1e-8)
    assert sol.stats.nf <= 1.5 * peer.nfev


def test_integration_runs_backward_in_time():
    there = ude.solve(lotka_volterra_problem(tspan=(0.0, 3.0)), abstol=1e-10, reltol=1e-10)
    back = ude.solve(
        lotka_volterra_problem(u0=there.u[-1], tspan=(3.0, 0.0)), saveat=[3.0, 1.5, 0.0], abstol=1e-10, reltol=1e-10
    )
    assert back.u[-1].tolist() == pytest.approx([1.0, 1.0], rel=1e-8)
    assert back.u[1].tolist() == pytest.approx(there(1.5).tolist(), rel=1e-8)
    assert bool((back.t[1:] < back.t[:-1]).all())


@pytest.mark.parametrize("count", [2, 7])
def test_a_trajectory_does_not_depend_on_its_neighbors(count: int):
    generator = torch.Generator().manual_seed(3)
    u0 = 0.3 + 3 * torch.rand(count, 2, dtype=torch.float64, generator=generator)
    spans = 2 + 6 * torch.rand(count, dtype=torch.float64, generator=generator)
    alpha = 1.0 + torch.rand(count, dtype=torch.float64, generator=generator)
    prob = ude.ODEProblem(lotka_volterra, u0, (0.0, spans), {**LV, "alpha": alpha})
    together = ude.solve(prob, abstol=1e-8, reltol=1e-8)
    for i in range(count):
        alone = ude.solve(
            ude.ODEProblem(lotka_volterra, u0[i], (0.0, float(spans[i])), {**LV, "alpha": alpha[i]}),
            abstol=1e-8,
            reltol=1e-8,
        )
        steps = int(alone.stats.accepted_steps)
        assert int(together.stats.accepted_steps[i]) == steps
        assert int(together.stats.rejected_steps[i]) == int(alone.stats.rejected_steps)
        torch.testing.assert_close(together.t[i, : steps + 1], alone.t, rtol=0, atol=0)
        torch.testing.assert_close(together.u[i, : steps + 1], alone.u, rtol=1e-12, atol=1e-12)


def test_a_failing_neighbor_spoils_nothing():
    # u' = u^2 blows up at t = 1/u0
    prob = ude.ODEProblem(lambda u, p, t: u**2, [[0.1], [2.0], [0.2]], (0.0, 1.0))
    sol = ude.solve(prob, saveat=[0.25, 0.5, 1.0], abstol=1e-9, reltol=1e-9)
    assert sol.success.tolist() == [True, False, True]
    assert sol.retcode[1] in (ude.ReturnCode.Unstable, ude.ReturnCode.DtLessThanMin, ude.ReturnCode.MaxIters)
    good = sol.partial[[0, 2], -1, 0]
    torch.testing.assert_close(good, torch.tensor([0.1 / 0.9, 0.2 / 0.8], dtype=torch.float64), rtol=1e-8, atol=0)
    assert sol.partial[1, 0, 0].item() == pytest.approx(4.0, rel=1e-6)
    assert sol.partial[1, 2].isnan().all()


def test_trajectories_may_have_their_own_spans_saves_and_parameters():
    rate = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    t0, t1 = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 3.0, 2.5]).double()
    saveat = t0.unsqueeze(-1) + (t1 - t0).unsqueeze(-1) * torch.tensor([0.0, 0.3, 1.0]).double()
    prob = ude.ODEProblem(forced, torch.ones(3, 1, dtype=torch.float64), (t0, t1), dict(rate=rate))
    sol = ude.solve(prob, saveat=saveat, abstol=1e-11, reltol=1e-11)
    exact = torch.exp(rate.unsqueeze(-1) * (torch.sin(saveat) - torch.sin(t0).unsqueeze(-1)))
    torch.testing.assert_close(sol.u[..., 0], exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(sol.t, saveat)


def test_batch_axes_keep_their_shape():
    u0 = torch.ones(2, 3, 2, dtype=torch.float64)
    sol = ude.solve(ude.ODEProblem(lotka_volterra, u0, (0.0, 1.0), LV), saveat=0.5)
    assert sol.u.shape == (2, 3, 3, 2)
    assert sol(0.3).shape == (2, 3, 2)
    assert sol([0.3, 0.4]).shape == (2, 3, 2, 2)
    assert sol.retcode.shape == (2, 3)
    assert sol.stats.accepted_steps.shape == (2, 3)


def test_many_saves_in_one_step_and_many_steps_between_saves():
    rough = ude.solve(lotka_volterra_problem(), saveat=np.linspace(0, 10, 1001), abstol=1e-5, reltol=1e-5)
    sparse = ude.solve(lotka_volterra_problem(), saveat=[0.0, 10.0], abstol=1e-5, reltol=1e-5)
    assert rough.stats.nf == sparse.stats.nf
    torch.testing.assert_close(rough.u[[0, -1]], sparse.u, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rough(2.345), rough([9.0, 2.345])[1], rtol=0, atol=0)


def test_saves_do_not_depend_on_how_many_steps_are_evaluated_at_once(monkeypatch):
    from ude.engines.torch import step_rows

    u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    prob = lotka_volterra_problem(u0=u0)
    whole = ude.solve(prob, saveat=0.05, abstol=1e-7, reltol=1e-7).u
    monkeypatch.setattr(step_rows, "_ROWS_AT_ONCE", 3)
    torch.testing.assert_close(ude.solve(prob, saveat=0.05, abstol=1e-7, reltol=1e-7).u, whole, rtol=1e-14, atol=1e-14)


def test_a_rejected_step_does_not_move_time():
    # a first step far too large is rejected, and the solution is right all the same
    sol = ude.solve(lotka_volterra_problem(tspan=(0.0, 1.0)), dt=1.0, abstol=1e-9, reltol=1e-9)
    assert int(sol.stats.rejected_steps) > 0
    assert bool((sol.t[1:] > sol.t[:-1]).all())
    assert float(sol.t[-1]) == 1.0
    np.testing.assert_allclose(sol.u[-1].numpy(), scipy_lotka_volterra(np.array([0.0, 1.0]))[-1], rtol=1e-7)


def test_maxiters_ends_a_trajectory_with_its_code_and_advice():
    sol = ude.solve(lotka_volterra_problem(), maxiters=5)
    assert sol.retcode == ude.ReturnCode.MaxIters
    with pytest.raises(ude.SolveFailed, match=r"the solve failed with MaxIters at t=.*: it used all of its maxiters"):
        _ = sol.u
    with pytest.raises(ude.SolveFailed, match="Raise maxiters"):
        sol(1.0)


def test_a_singularity_ends_in_a_code_not_in_a_number():
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: u**2, [1.0], (0.0, 2.0)), saveat=[0.5, 2.0])
    assert sol.retcode != ude.ReturnCode.Success
    assert sol.partial[0].item() == pytest.approx(2.0, rel=1e-3)
    assert sol.partial[1].isnan().all()


def test_leaving_the_domain_of_f_is_unstable():
    # u' = -1 - sqrt(u): the root is NaN below zero
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: -1 - u.sqrt(), [1.0], (0.0, 5.0)), saveat=[0.1, 5.0])
    assert sol.retcode == ude.ReturnCode.Unstable
    assert torch.isfinite(sol.partial[0]).all()


def test_a_step_below_dtmin_is_reported():
    sol = ude.solve(lotka_volterra_problem(), abstol=1e-12, reltol=1e-12, dtmin=0.05)
    assert sol.retcode == ude.ReturnCode.DtLessThanMin


def test_a_span_of_length_zero_returns_the_initial_state():
    sol = ude.solve(lotka_volterra_problem(tspan=(1.0, 1.0)), saveat=[1.0])
    assert sol.success.item()
    assert sol.u.tolist() == [[1.0, 1.0]]
    assert ude.solve(lotka_volterra_problem(tspan=(1.0, 1.0))).u.tolist() == [[1.0, 1.0]]


def test_dtmax_bounds_every_step():
    sol = ude.solve(lotka_volterra_problem(tspan=(0.0, 1.0)), dtmax=0.01)
    assert float((sol.t[1:] - sol.t[:-1]).max()) <= 0.01 + 1e-12


def test_tolerances_may_differ_by_state():
    # the second state is carried along: with a loose tolerance of its own it costs no steps
    def f(u, p, t):
        x, y = u.unbind(-1)
        return torch.stack([-x, 50 * torch.cos(50 * t) * y], -1)

    prob = ude.ODEProblem(f, [1.0, 1.0], (0.0, 2.0))
    tight = ude.solve(prob, abstol=1e-8, reltol=1e-8)
    loose = ude.solve(prob, abstol=[1e-8, 10.0], reltol=[1e-8, 1.0])
    assert loose.stats.nf < 0.5 * tight.stats.nf
    assert float(loose.u[-1, 0]) == pytest.approx(math.exp(-2), rel=1e-6)


def test_float32_problems_stay_float32():
    prob = ude.ODEProblem(lotka_volterra, torch.ones(2, dtype=torch.float32), (0.0, 5.0), LV)
    sol = ude.solve(prob, saveat=1.0, abstol=1e-5, reltol=1e-5)
    assert sol.u.dtype == torch.float32
    np.testing.assert_allclose(sol.u[-1].numpy(), scipy_lotka_volterra(np.array([0.0, 5.0]))[-1], rtol=1e-3)


def test_every_step_is_saved_without_saveat_and_shorter_trajectories_repeat_their_end():
    prob = lotka_volterra_problem(u0=[[1.0, 1.0], [3.0, 1.0]], tspan=(0.0, 4.0))
    sol = ude.solve(prob, abstol=1e-7, reltol=1e-7)
    counts = sol.stats.accepted_steps
    assert counts[0] != counts[1]
    assert len(sol) == int(counts.max()) + 1
    for i in range(2):
        assert float(sol.t[i, 0]) == 0.0
        assert sol.t[i, int(counts[i]) :].tolist() == [4.0] * (len(sol) - int(counts[i]))
        assert bool((sol.t[i, 1 : int(counts[i]) + 1] > sol.t[i, : int(counts[i])]).all())


def test_a_trajectory_that_begins_with_nan_ends_at_once_and_leaves_the_gradient_of_others():
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([[1.0], [float("nan")]], dtype=torch.float64)
    sol = ude.solve(
        ude.ODEProblem(lambda u, p, t: -p.k * u, u0, (0.0, 1.0), p={"k": rate}),
        ude.Tsit5(),
        saveat=[1.0],
        reltol=1e-9,
        abstol=1e-9,
    )
    assert [code.name for code in sol.retcode] == ["Success", "Unstable"]
    assert int(sol.stats.rejected_steps[1]) < 100
