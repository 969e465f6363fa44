"""Steady states: found by integration and by Newton's iteration, with the gradient of the implicit function theorem."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ude

METHODS = [
    ude.steady_state.DynamicSS(abstol=1e-11, reltol=1e-11),
    ude.steady_state.DynamicSS(ude.KenCarp4(), abstol=1e-9, reltol=1e-9),
    ude.steady_state.SSRootfind(),
]
TIGHT = dict(abstol=1e-10, reltol=1e-8)


def brusselator(u, p, t):
    """Steady at x = a, y = b / a."""
    x, y = u.unbind(-1)
    return torch.stack([p.a - p.b * x + x * x * y - x, p.b * x - x * x * y], -1)


def problem():
    a = torch.tensor([1.0, 1.5], dtype=torch.float64, requires_grad=True)
    b = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    return ude.SteadyStateProblem(brusselator, [[1.2, 0.9], [1.0, 0.8]], dict(a=a, b=b)), a, b


@pytest.mark.parametrize("alg", METHODS, ids=lambda alg: f"{alg.name}{getattr(alg, 'alg', None)}")
def test_state_first_and_second_derivatives_are_those_of_the_closed_form(alg):
    prob, a, b = problem()
    sol = ude.solve(prob, alg, **TIGHT)
    exact = torch.stack([a, b / a], -1)
    torch.testing.assert_close(sol[-1], exact, rtol=1e-8, atol=1e-8)
    assert sol.u.shape == (2, 1, 2)
    assert list(sol.retcode) == [ude.ReturnCode.Success] * 2
    assert sol.stats.sensealg == "SteadyStateAdjoint"
    assert sol.stats.nf > 0
    found = [
        torch.autograd.grad((state**2).sum() + state.prod(), (a, b), create_graph=True) for state in (sol[-1], exact)
    ]
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
    seconds = [torch.autograd.grad((first[0] ** 2).sum() + first[1] ** 2, (a, b)) for first in found]
    for left, right in zip(*seconds, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_the_gradient_by_u0_is_zero_and_none_is_recorded_for_it():
    prob, _, _ = problem()
    u0 = prob.u0.clone().requires_grad_()
    sol = ude.solve(ude.remake(prob, u0=u0), ude.steady_state.SSRootfind())
    (of_u0,) = torch.autograd.grad(sol.u.sum(), u0, allow_unused=True)
    assert of_u0 is None


class Decay(nn.Module):
    """``u' = net(1) - u / 2 - u^3``: the network's parameters are those of f."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def forward(self, u, p, t):
        return self.net(torch.ones(1, dtype=torch.float64)) - u / 2 - u**3


@pytest.mark.parametrize(
    "alg", [ude.steady_state.DynamicSS(abstol=1e-12, reltol=1e-12), ude.steady_state.SSRootfind()], ids=lambda a: a.name
)
def test_parameters_of_modules_get_the_gradient_that_differences_give(alg):
    f = Decay()
    prob = ude.SteadyStateProblem(f, [0.1, 0.2])

    def loss():
        return (ude.solve(prob, alg, **TIGHT)[-1] ** 2).sum()

    gradients = torch.autograd.grad(loss(), list(f.parameters()))
    for parameter, gradient in zip(f.parameters(), gradients, strict=True):
        flat = parameter.detach().view(-1)
        values = []
        for step in (1e-5, -2e-5):
            flat[0] += step
            values.append(loss().item())
        flat[0] += 1e-5
        assert float(gradient.reshape(-1)[0]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_each_trajectory_of_a_batch_has_its_own_end():
    """u' = p - u^2 has no steady state for p < 0; Newton's iteration from zero slope goes nowhere."""
    p = torch.tensor([4.0, -1.0], dtype=torch.float64, requires_grad=True)
    prob = ude.SteadyStateProblem(lambda u, p, t: p.c.unsqueeze(-1) - u * u, [[1.0], [1.0]], dict(c=p))
    for alg in (ude.steady_state.SSRootfind(), ude.steady_state.DynamicSS(abstol=1e-11, reltol=1e-11)):
        sol = ude.solve(prob, alg, **TIGHT)
        assert sol.success.tolist() == [True, False]
        with pytest.raises(ude.SolveFailed, match="1 of 2 trajectories .first: 1. failed with"):
            _ = sol.u
        assert bool(sol.partial[1].isnan().all())
        (of_p,) = torch.autograd.grad(sol.partial[0].sum(), p)
        torch.testing.assert_close(of_p, torch.tensor([0.25, 0.0], dtype=torch.float64), rtol=1e-7, atol=0)
    assert sol.retcode[0] == ude.ReturnCode.Success
    newton = ude.solve(prob, ude.steady_state.SSRootfind())
    assert newton.retcode[1] == ude.ReturnCode.NotSteady
    with pytest.raises(ude.SolveFailed, match="NotSteady at t=0: no steady state was found. Start nearer to it"):
        _ = newton.u


def test_damping_saves_an_iteration_that_full_steps_lose():
    """Newton's full steps for arctan diverge from beyond 1.39."""
    sol = ude.solve(ude.SteadyStateProblem(lambda u, p, t: -torch.atan(u), [5.0]), ude.steady_state.SSRootfind())
    assert float(sol[-1]) == pytest.approx(0.0, abs=1e-10)
    assert int(sol.stats.rejected_steps) > 0


def test_an_integration_that_is_too_short_is_not_steady():
    prob = ude.SteadyStateProblem(lambda u, p, t: 1.0 - u, [0.0])
    assert ude.solve(prob, ude.steady_state.DynamicSS(tspan=1.0)).retcode == ude.ReturnCode.NotSteady


def test_a_state_that_a_conserved_quantity_leaves_free_has_no_gradient_and_says_so():
    k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    prob = ude.SteadyStateProblem(
        lambda u, p, t: torch.stack([u[..., 1] - p.k * u[..., 0], p.k * u[..., 0] - u[..., 1]], -1),
        [1.0, 0.0],
        dict(k=k),
    )
    with pytest.raises(
        ude.errors.InputError, match="the steady state has no derivative by p, since df/du is singular there"
    ):
        ude.solve(prob)
    with torch.no_grad():
        torch.testing.assert_close(
            ude.solve(prob, **TIGHT)[-1], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), rtol=1e-5, atol=0
        )


def test_terminate_steady_state_ends_each_trajectory_by_itself_with_an_exact_gradient():
    rate = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: 1.0 - p.rate.unsqueeze(-1) * u, [[0.0], [0.0]], (0.0, 1e3), dict(rate=rate))
    sol = ude.solve(
        prob, ude.Rodas5P(), callback=ude.steady_state.TerminateSteadyState(1e-9, 1e-9), abstol=1e-11, reltol=1e-9
    )
    assert list(sol.retcode) == [ude.ReturnCode.Terminated] * 2
    first, second = sol.reached.tolist()
    assert second < first < 100.0
    torch.testing.assert_close(sol.u[:, -1, 0], 1 / rate, rtol=1e-8, atol=0)
    (gradient,) = torch.autograd.grad(sol.u[:, -1].sum(), rate)
    torch.testing.assert_close(gradient, -1 / rate**2, rtol=1e-6, atol=0)
    late = ude.solve(prob, ude.Rodas5P(), callback=ude.steady_state.TerminateSteadyState(1e-3, 1e-3, min_t=50.0))
    assert bool((late.reached >= 50.0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ude.steady_state.DynamicSS(abstol=0.0), "abstol must be positive and reltol zero or more: abstol=0.0"),
        (
            lambda: ude.steady_state.DynamicSS(tspan=0.0),
            "tspan of DynamicSS must be positive: tspan=0.0",
        ),
        (lambda: ude.steady_state.SSRootfind(maxiters=0), "maxiters must be at least 1: maxiters=0"),
        (lambda: ude.steady_state.TerminateSteadyState(abstol=-1.0), "abstol must be positive and reltol zero or more"),
        (
            lambda: ude.solve(problem()[0], ude.Tsit5()),
            "requires an algorithm for steady states: expected DynamicSS",
        ),
        (
            lambda: ude.solve(problem()[0], sensealg=ude.DiscreteAdjoint()),
            "DiscreteAdjoint differentiates solves in time: expected sensealg=SteadyStateAdjoint",
        ),
        (
            lambda: ude.solve(
                ude.ODEProblem(lambda u, p, t: -p * u, [1.0], (0.0, 1.0), torch.ones(1).double().requires_grad_()),
                sensealg=ude.sensitivity.SteadyStateAdjoint(),
            ),
            "SteadyStateAdjoint differentiates steady states, and this is a solve in time",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(make, message):
    with pytest.raises(ude.errors.InputError, match=message):
        make()
