"""Methods that switch: they find stiffness, cost what the better method costs, and differentiate exactly."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from tests.problems_for_tests import lotka_volterra_problem
from tests.stiff_problems_for_tests import (
    ROBERTSON_END,
    VAN_DER_POL_1E3_END,
    robertson_problem,
    van_der_pol,
    van_der_pol_problem,
)
from ude.methods.switching import stability_size

STIFF = [ude.Rodas5P(), ude.KenCarp4()]


def orego(u, p, t):
    a, b, c = u.unbind(-1)
    return torch.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1)


@pytest.mark.parametrize(
    ("alg", "published"),
    [
        (ude.Tsit5(), 3.5068),
        (ude.methods.DP5(), 3.3066),
        (ude.methods.Vern6(), 4.8553),
        (ude.Vern7(), 4.6400),
        (ude.methods.Vern9(), 4.4762),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_stability_size_is_the_published_one_and_where_steps_begin_to_grow(alg, published):
    """Published: `alg_stability_size` of OrdinaryDiffEq.jl."""
    size = stability_size(alg.tableau)
    assert size == pytest.approx(published, abs=1e-4)
    for factor, grows in ((0.999, False), (1.001, True)):
        prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, factor * size))
        sol = ude.solve(prob, alg, adaptive=False, dt=factor * size)
        assert (abs(float(sol.u[-1])) > 1.0) is grows


@pytest.mark.parametrize(
    ("explicit", "switching"), [(ude.Tsit5(), ude.AutoTsit5), (ude.Vern7(), ude.methods.AutoVern7)]
)
def test_a_problem_that_is_not_stiff_takes_the_explicit_steps_and_calls(explicit, switching):
    u0 = torch.tensor([[1.0, 1.0], [2.0, 0.7], [0.5, 1.4]], dtype=torch.float64)
    for prob in (lotka_volterra_problem(), lotka_volterra_problem(u0=u0)):
        plain = ude.solve(prob, explicit, saveat=0.3)
        auto = ude.solve(prob, switching(ude.Rodas5P()), saveat=0.3)
        assert torch.equal(plain.u, auto.u)
        assert auto.stats.nf == plain.stats.nf
        assert auto.stats.njacs == 0
        assert not bool(auto.stats.switches.any())
        assert auto.stats.switches.shape == prob.u0.shape[:-1]
        torch.testing.assert_close(plain(0.77), auto(0.77), rtol=0, atol=0)


@pytest.mark.parametrize("stiff", STIFF, ids=lambda alg: alg.name)
@pytest.mark.parametrize(
    ("prob", "end"),
    [
        (robertson_problem(), ROBERTSON_END),
        (van_der_pol_problem(1e3, 2000.0), VAN_DER_POL_1E3_END),
        (ude.ODEProblem(orego, [1.0, 2.0, 3.0], (0.0, 360.0)), None),
    ],
    ids=["Robertson", "van der Pol", "OREGO"],
)
def test_stiff_problems_cost_about_what_the_stiff_method_alone_costs(prob, end, stiff):
    options = dict(reltol=1e-4, abstol=1e-4 * (1e-10 if prob.tspan[1] > 1e9 else 1e-4), saveat=[prob.tspan[1]])
    auto, alone = ude.solve(prob, ude.AutoTsit5(stiff), **options), ude.solve(prob, stiff, **options)
    truth = alone.u[-1] if end is None else end
    error = float(((auto.u[-1] - truth) / truth).abs().max())
    assert error < (0.05 if end is None else 0.02)
    assert auto.stats.nf < 1.25 * alone.stats.nf
    assert int(auto.stats.switches) >= 1
    explicit = ude.solve(prob, ude.Tsit5(), maxiters=3 * int(auto.stats.accepted_steps), **options)
    assert explicit.retcode == ude.ReturnCode.MaxIters


def test_a_limit_cycle_switches_to_and_fro():
    sol = ude.solve(van_der_pol_problem(100.0, 500.0), ude.AutoTsit5(ude.Rodas5P()), reltol=1e-5, abstol=1e-8)
    assert int(sol.stats.switches) >= 4
    never = ude.AutoTsit5(ude.Rodas5P(), switch_max=1)
    assert int(ude.solve(van_der_pol_problem(100.0, 500.0), never, reltol=1e-5, abstol=1e-8).stats.switches) <= int(
        sol.stats.switches
    )
    first = ude.AutoTsit5(ude.Rodas5P(), stiffalgfirst=True)
    sol = ude.solve(lotka_volterra_problem(), first)
    assert int(sol.stats.switches) == 1
    assert sol.stats.njacs > 0


def mixed_batch() -> ude.ODEProblem:
    """One trajectory is never stiff, two are, at different times."""
    mu = torch.tensor([1.0, 60.0, 200.0], dtype=torch.float64)

    def f(u, p, t):
        x, y = u.unbind(-1)
        return torch.stack([y, p.mu * ((1 - x * x) * y) - x], -1)

    u0 = torch.tensor([[2.0, 0.0], [1.5, 0.0], [2.0, -0.1]], dtype=torch.float64)
    return ude.ODEProblem(f, u0, (0.0, 60.0), dict(mu=mu))


@pytest.mark.parametrize("stiff", STIFF, ids=lambda alg: alg.name)
def test_a_trajectory_switches_alone_as_it_does_in_a_batch(stiff):
    prob, options = mixed_batch(), dict(alg=ude.AutoTsit5(stiff), reltol=1e-5, abstol=1e-7)
    together = ude.solve(prob, **options)
    assert int(together.stats.switches[0]) == 0
    assert bool((together.stats.switches[1:] > 0).all())
    for i in range(3):
        alone = ude.solve(ude.remake(prob, u0=prob.u0[i], p=dict(mu=prob.p.mu[i])), **options)
        steps = int(alone.stats.accepted_steps)
        assert int(together.stats.accepted_steps[i]) == steps
        assert int(together.stats.rejected_steps[i]) == int(alone.stats.rejected_steps)
        assert int(together.stats.switches[i]) == int(alone.stats.switches)
        torch.testing.assert_close(together.t[i, : steps + 1], alone.t, rtol=0, atol=0)
        torch.testing.assert_close(together.u[i, : steps + 1], alone.u, rtol=1e-7, atol=1e-8)


MIXED_TIMES = torch.linspace(0.0, 60.0, 41, dtype=torch.float64)


@cache
def mixed_by_scipy(lane: int) -> np.ndarray:
    prob = mixed_batch()
    mu = float(prob.p.mu[lane])
    solved = solve_ivp(
        lambda t, u: [u[1], mu * (1 - u[0] ** 2) * u[1] - u[0]],
        (0.0, 60.0),
        prob.u0[lane].numpy(),
        method="Radau",
        rtol=1e-9,
        atol=1e-10,
        t_eval=MIXED_TIMES.numpy(),
    )
    return solved.y[0]


@pytest.mark.parametrize("switching", [ude.AutoTsit5, ude.methods.AutoVern7])
@pytest.mark.parametrize("stiff", STIFF, ids=lambda alg: alg.name)
def test_saves_and_dense_output_agree_with_scipy_across_switches(stiff, switching):
    sol = ude.solve(mixed_batch(), switching(stiff), saveat=MIXED_TIMES, reltol=1e-7, abstol=1e-8)
    for i in (0, 1):
        np.testing.assert_allclose(sol.u[i, :, 0].numpy(), mixed_by_scipy(i), atol=2e-4)
    # implicit stages are solved again for the dense output, to a hundredth of the tolerance
    torch.testing.assert_close(sol(MIXED_TIMES.tolist()), sol.u, rtol=1e-9, atol=5e-9)


END = 2.6


def relaxation(u, p, t):
    """u' = -rate (u - level cos t) becomes slow for one trajectory and stays fast for the other; linear in u."""
    fast = torch.tensor([3e4, 2e4], dtype=torch.float64) * torch.stack([torch.sigmoid(20 * (2.0 - t[0])), t[1] * 0 + 1])
    x, y = u.unbind(-1)
    return torch.stack([-(1 + fast) * (x - p.level * torch.cos(t)), 0.3 * x - y], -1)


def relaxed(alg, tolerance, start, **options):
    u0, level = start
    sol = ude.solve(
        ude.ODEProblem(relaxation, u0, (0.0, END), dict(level=level)),
        alg,
        saveat=[0.5, 2.45, END],
        reltol=tolerance,
        abstol=tolerance,
        **options,
    )
    return torch.cat([sol.u.reshape(-1), sol(2.5).reshape(-1)]), sol


@lru_cache(maxsize=1)
def relaxed_truth():
    """The derivative by (u0, level): everything is linear in them, so differences of any size are exact."""
    start = torch.tensor([1.2, 0.3, 0.9, 0.1, 1.1], dtype=torch.float64)

    def values(numbers):
        return relaxed(ude.Rodas5P(), 1e-8, (numbers[:4].view(2, 2), numbers[4]))[0]

    rows = torch.eye(5, dtype=torch.float64)
    return start, torch.stack([(values(start + row) - values(start - row)) / 2 for row in rows], -1)


@pytest.mark.parametrize(
    ("sensealg", "stiff"),
    [
        pytest.param(ude.DiscreteAdjoint(), ude.KenCarp4(), id="DiscreteAdjoint-KenCarp4"),
        *(  # minutes: a graph of every step of every method
            pytest.param(sensealg, stiff, id=f"{sensealg.name}-{stiff.name}", marks=pytest.mark.slow)
            for sensealg in (ude.DiscreteAdjoint(), ude.DiscreteAdjoint("logarithmic"), ude.sensitivity.Autograd())
            for stiff in STIFF
            if (sensealg.name, stiff.name) != ("DiscreteAdjoint", "KenCarp4")
        ),
    ],
)
def test_the_gradient_across_switches_in_a_batch_is_that_of_the_flow(sensealg, stiff):
    start, truth = relaxed_truth()
    numbers = start.clone().requires_grad_()
    values, sol = relaxed(ude.AutoTsit5(stiff), 1e-8, (numbers[:4].view(2, 2), numbers[4]), sensealg=sensealg)
    assert sol.stats.switches.tolist() == [2, 1]
    weights = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64)
    (ours,) = torch.autograd.grad((weights * values).sum(), numbers)
    expected = weights @ truth
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_events_keep_the_method_of_each_trajectory():
    prob = van_der_pol_problem(200.0, 300.0)
    crossing = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - 1.4, lambda u, p, t: u, direction=-1)
    options = dict(reltol=1e-6, abstol=1e-8)
    sol = ude.solve(prob, ude.AutoTsit5(ude.Rodas5P()), callback=crossing, **options)
    truth = ude.solve(prob, ude.Rodas5P(), callback=crossing, **options)
    assert len(sol.events) == len(truth.events) > 0
    for ours, other in zip(sol.events, truth.events, strict=True):
        torch.testing.assert_close(ours.t, other.t, rtol=1e-4, atol=0)
    assert int(sol.stats.switches) >= 1


def test_fixed_steps_are_refused_by_methods_that_switch():
    with pytest.raises(
        ude.errors.EngineRefused, match="AutoTsit5.Rodas5P. chooses by the steps it takes, so it needs adapt"
    ):
        ude.solve(lotka_volterra_problem(), ude.AutoTsit5(ude.Rodas5P()), adaptive=False, dt=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ude.methods.AutoSwitch(ude.methods.BS3(), ude.Rodas5P()),
            "this method cannot tell a stiff problem: expected an ad",
        ),
        (lambda: ude.AutoTsit5(ude.Vern7()), "this is no method for the stiff part: expected an adaptive ESDIRK or R"),
        (
            lambda: ude.AutoTsit5(ude.Rodas5P(), maxstiffstep=-1),
            "maxstiffstep counts steps: expected 0 or more",
        ),
        (lambda: ude.AutoTsit5(ude.Rodas5P(), dtfac=0.0), "dtfac is out of range: expected a positive number, got 0.0"),
    ],
)
def test_methods_and_options_that_cannot_switch_are_refused(make, message):
    with pytest.raises(ude.errors.InputError, match=message):
        make()


def test_van_der_pol_problem_of_the_tests_is_the_one_used_here():
    prob = mixed_batch()
    u = torch.tensor([[1.5, -0.2]] * 3, dtype=torch.float64)
    expected = torch.stack(
        [van_der_pol(u[i], ude.problems.Parameters(mu=prob.p.mu[i]), torch.tensor(0.0)) for i in range(3)]
    )
    torch.testing.assert_close(prob.f(u, prob.p, torch.zeros(3)), expected)


def test_a_stiff_method_without_a_matrix_is_refused():
    with pytest.raises(
        ude.errors.InputError, match=r"needs the Jacobian of its stiff part as a matrix.*got linsolve=GMRES"
    ):
        ude.AutoTsit5(ude.KenCarp4(linsolve=ude.methods.GMRES()))
