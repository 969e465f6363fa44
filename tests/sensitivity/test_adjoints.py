"""Gradients of both adjoints against derivatives that share nothing with them."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import ude
from tests.problems_for_tests import LV, forced, lotka_volterra, scipy_lotka_volterra

SENSITIVITIES = [ude.DiscreteAdjoint(), ude.BacksolveAdjoint()]
METHODS = [ude.methods.BS3(), ude.methods.DP5(), ude.Tsit5(), ude.TorchDiffEq("dopri5"), ude.TorchDiffEq("rk4")]
# with extra stages for reads inside a step: fixed steps, first-same-as-last, an unused last stage, two error estimates
METHODS += [ude.RK4(), ude.methods.Vern6(), ude.Vern7(), ude.methods.Vern9(), ude.methods.DP8()]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def options(alg, tolerance: float) -> dict:
    if alg.name == "TorchDiffEq(rk4)":
        return {"dt": 0.01}
    if alg.name == "RK4":
        return {"dt": 0.01, "adaptive": False}
    return {"abstol": tolerance, "reltol": tolerance}


def read_everything(theta: torch.Tensor, alg, sensealg, tolerance: float) -> torch.Tensor:
    """A loss that reads saves inside steps, the end, and the dense output, of u0 and all parameters."""
    p = dict(zip(LV, theta[2:], strict=True))
    prob = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 3.0), p)
    sol = ude.solve(prob, alg, saveat=0.37, sensealg=sensealg, **options(alg, tolerance))
    return (sol.u**2).sum() + sol(1.234).prod() + sol["x"][3]


def read_everything_with_scipy(theta: np.ndarray) -> float:
    """The same loss of a tight SciPy solution: no code in common with ours."""
    saves = [*np.arange(0, 3, 0.37), 3.0]
    times = np.unique([*saves, 1.234])
    u = scipy_lotka_volterra(times, theta[:2], dict(zip(LV, theta[2:], strict=True)))
    at = {time: u[i] for i, time in enumerate(times)}
    return float(sum((at[t] ** 2).sum() for t in saves) + at[1.234].prod() + at[saves[3]][0])


@pytest.fixture(scope="module")
def numeric_gradient() -> torch.Tensor:
    """Five-point differences (error of order step^4) of the SciPy solution."""
    theta, step = np.array([1.0, 1.2, *LV.values()]), 3e-4
    f = read_everything_with_scipy
    return torch.tensor(
        [
            (8 * (f(theta + e) - f(theta - e)) - (f(theta + 2 * e) - f(theta - 2 * e))) / (12 * step)
            for e in step * np.eye(6)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_gradient_agrees_with_central_differences(alg, sensealg, numeric_gradient):
    tolerance = 1e-8 if alg.name == "BS3" else 1e-10
    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(read_everything(theta, alg, sensealg, tolerance), theta)
    error = (gradient - numeric_gradient).abs() / numeric_gradient.abs()
    assert float(error.max()) < 1e-6, error


def test_discrete_adjoint_is_the_exact_derivative_of_a_rough_solve():
    """At a loose tolerance the discrete adjoint is still the derivative of the numbers returned."""

    # with fixed steps the solve is a smooth function of theta, so differences of it converge to its own derivative
    def loss(theta: torch.Tensor) -> torch.Tensor:
        prob = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 3.0), dict(zip(LV, theta[2:], strict=True)))
        sol = ude.solve(prob, ude.Tsit5(), saveat=0.37, dt=0.3, adaptive=False)
        return (sol.u**2).sum() + sol(1.234).prod()

    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step = 1e-5
    with torch.no_grad():
        numeric = torch.stack(
            [(loss(theta + e) - loss(theta - e)) / (2 * step) for e in step * torch.eye(6, dtype=torch.float64)]
        )
        exact_problem = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 3.0), dict(zip(LV, theta[2:], strict=True)))
        exact = ude.solve(exact_problem, saveat=0.37, abstol=1e-12, reltol=1e-12)
        rough = ude.solve(exact_problem, saveat=0.37, dt=0.3, adaptive=False)
    assert float((exact.u - rough.u).abs().max()) > 1e-4, "the solve must be rough for this test to say something"
    torch.testing.assert_close(gradient, numeric, rtol=1e-7, atol=1e-7)


def test_discrete_adjoint_equals_autograd_through_the_same_steps():
    """An independent route: plain autograd through a Runge-Kutta step written out by hand."""
    tableau = ude.Tsit5().tableau
    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)

    def by_hand() -> torch.Tensor:
        u, p, dt = theta[:2], ude.problems.Parameters(dict(zip(LV, theta[2:], strict=True))), 0.2
        for _ in range(7):
            k: list[torch.Tensor] = []
            for row in tableau.a:
                k.append(lotka_volterra(u + dt * sum((a * ki for a, ki in zip(row, k, strict=True)), u * 0), p, None))
            u = u + dt * sum(b * ki for b, ki in zip(tableau.b, k, strict=True))
        return u

    prob = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 1.4), dict(zip(LV, theta[2:], strict=True)))
    sol = ude.solve(prob, ude.Tsit5(), dt=0.2, adaptive=False)
    torch.testing.assert_close(sol.u[-1], by_hand(), rtol=1e-13, atol=1e-13)
    (ours,) = torch.autograd.grad(sol.u[-1].sum(), theta)
    (theirs,) = torch.autograd.grad(by_hand().sum(), theta)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
def test_gradients_of_a_batch_with_own_spans_saves_and_parameters(sensealg):
    rate = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64, requires_grad=True)
    t0, t1 = torch.tensor([0.0, 1.0, 2.5]).double(), torch.tensor([1.0, 3.0, 2.0]).double()
    saveat = t0.unsqueeze(-1) + (t1 - t0).unsqueeze(-1) * torch.tensor([0.0, 0.3, 0.6, 1.0]).double()
    prob = ude.ODEProblem(forced, u0, (t0, t1), dict(rate=rate))
    sol = ude.solve(prob, saveat=saveat, abstol=1e-11, reltol=1e-11, sensealg=sensealg)
    ours = torch.autograd.grad((sol.u**2).sum(), (rate, u0))
    phase = torch.sin(saveat) - torch.sin(t0).unsqueeze(-1)
    exact = u0 * torch.exp(rate.unsqueeze(-1) * phase)
    theirs = torch.autograd.grad((exact**2).sum(), (rate, u0))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.TorchDiffEq("dopri5")], ids=name)
def test_gradients_reach_a_module_in_p_and_a_module_as_f(alg, sensealg):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, u, p, t):
            return self.net(u) - 0.5 * u

    def field(u, p, t):
        return p.net(u) - 0.5 * u

    losses = []
    u0 = torch.tensor([[1.0, 0.5], [0.2, -1.0], [2.0, 2.0]], dtype=torch.float64)
    for prob in (
        ude.ODEProblem(Field(), u0, (0.0, 1.0)),
        ude.ODEProblem(field, u0, (0.0, 1.0), dict(net=net)),
    ):
        net.zero_grad()
        sol = ude.solve(prob, alg, saveat=[0.5, 1.0], abstol=1e-10, reltol=1e-10, sensealg=sensealg)
        (sol.u**2).sum().backward()
        losses.append([q.grad.clone() for q in net.parameters()])
    # central differences of one weight and one bias, by a solve that is not differentiated
    for index, at in ((0, (1, 1)), (3, (0,))):
        weight = list(net.parameters())[index]
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += step
                sol = ude.solve(ude.ODEProblem(Field(), u0, (0.0, 1.0)), saveat=[0.5, 1.0], abstol=1e-12, reltol=1e-12)
                values.append(float((sol.u**2).sum()))
                weight[at] -= step
        numeric = (values[0] - values[1]) / 2e-5
        assert float(losses[0][index][at]) == pytest.approx(numeric, rel=1e-6)
    for left, right in zip(*losses, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_gradients_do_not_write_to_the_modules_parameters():
    net = nn.Linear(2, 2).double()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    prob = ude.ODEProblem(lambda u, p, t: p.net(u), [1.0, 2.0], (0.0, 1.0), dict(net=net))
    grads = torch.autograd.grad(ude.solve(prob, saveat=1.0).u.sum(), list(net.parameters()))
    assert all(bool((g != 0).any()) for g in grads)
    assert all(q.grad is None for q in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_leaf_that_f_ignores_gets_no_gradient_and_a_constant_f_works():
    unused = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    for sensealg in SENSITIVITIES:
        prob = ude.ODEProblem(lambda u, p, t: torch.ones_like(u), u0, (0.0, 2.0), dict(unused=unused))
        grad_u0, grad_p = torch.autograd.grad(
            ude.solve(prob, sensealg=sensealg, saveat=1.0).u.sum(), (u0, unused), allow_unused=True
        )
        assert grad_u0.tolist() == [3.0]
        assert grad_p is None or float(grad_p) == 0.0


def test_frozen_parameters_get_no_gradient():
    net = nn.Linear(1, 1).double()
    net.bias.requires_grad_(False)
    prob = ude.ODEProblem(lambda u, p, t: p.net(u), [1.0], (0.0, 1.0), dict(net=net))
    ude.solve(prob, saveat=1.0).u.sum().backward()
    assert net.weight.grad is not None
    assert net.bias.grad is None


def test_a_second_derivative_is_refused_clearly():
    u0 = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    sol = ude.solve(ude.ODEProblem(lotka_volterra, u0, (0.0, 1.0), LV), saveat=1.0)
    (first,) = torch.autograd.grad((sol.u**2).sum(), u0, create_graph=True)
    with pytest.raises(
        ude.errors.InputError, match=r"DiscreteAdjoint has a first derivative only.*Use sensealg=Autograd\(\)"
    ):
        first.sum().backward()


def test_no_graph_is_built_where_none_is_wanted():
    u0 = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lotka_volterra, u0, (0.0, 1.0), LV)
    with torch.no_grad():
        sol = ude.solve(prob)
    assert not sol.u.requires_grad
    assert sol.stats.sensealg == "none"
    assert ude.solve(prob).stats.sensealg == "DiscreteAdjoint"


def test_memory_of_the_discrete_adjoint_is_one_state_a_step():
    count, states = 50, 40
    u0 = torch.ones(count, states, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: -u * torch.cos(t).unsqueeze(-1), u0, (0.0, 5.0))
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sol = ude.solve(prob, saveat=[5.0], dt=0.05, adaptive=False)
    # autograd itself saves no stage and no state but u0, which is there anyway; the record holds steps + 1 states
    assert sum(kept) <= 2 * count + u0.numel()
    assert int(sol.stats.accepted_steps[0]) == 100


def test_a_failed_backsolve_gives_nan_never_a_number():
    u0 = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lotka_volterra, u0, (0.0, 3.0), {**LV, "alpha": alpha})
    # sixty steps do for the rough forward solve and not for the tight backward one
    sensealg = ude.BacksolveAdjoint(abstol=1e-13, reltol=1e-13)
    sol = ude.solve(prob, saveat=[3.0], abstol=1e-4, reltol=1e-3, sensealg=sensealg, maxiters=60)
    for gradient in torch.autograd.grad(sol.u.sum(), (u0, alpha)):
        assert gradient.isnan().all()


def test_numpy_is_not_needed_to_read_a_detached_solution():
    sol = ude.solve(ude.ODEProblem(lotka_volterra, [1.0, 1.0], (0.0, 1.0), LV), saveat=0.5)
    assert isinstance(sol.u.numpy(), np.ndarray)


def test_logarithmic_checkpoints_hold_a_logarithm_of_states(monkeypatch):
    checkpoints = importlib.import_module("ude.engines.torch.checkpoints")
    most = 0
    original = checkpoints.Starts.__call__

    def counting(self, row):
        nonlocal most
        found = original(self, row)
        most = max(most, len(self._held) + len(self._record.u))
        return found

    monkeypatch.setattr(checkpoints.Starts, "__call__", counting)
    u0 = torch.tensor([1.0], dtype=torch.float64).requires_grad_()
    prob = ude.ODEProblem(lambda u, p, t: torch.cos(t) * u, u0, (0.0, 10.0))
    sensealg = ude.DiscreteAdjoint(checkpoints="logarithmic")
    sol = ude.solve(prob, ude.RK4(), dt=0.01, adaptive=False, saveat=[10.0], sensealg=sensealg)
    sol.u.sum().backward()
    # 1000 steps: ten states on the way, and the first and the last of the record
    assert 8 <= most <= 14
    assert int(sol.stats.accepted_steps) == 1000
