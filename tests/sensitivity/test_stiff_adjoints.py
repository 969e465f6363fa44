"""Gradients of implicit and Rosenbrock solves against derivatives that share nothing with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import ude
from tests.stiff_problems_for_tests import ROBERTSON, robertson, van_der_pol
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.scheme import Cotangents
from ude.solving.validation import validate

NEWTON = {"newton_tolerance": 1e-6, "newton_maxiters": 60}
ESDIRK = [
    ude.methods.ImplicitEuler, ude.methods.Trapezoid, ude.methods.TRBDF2, ude.methods.KenCarp3, ude.KenCarp4,
    ude.methods.KenCarp5, ude.methods.Kvaerno3, ude.methods.Kvaerno4, ude.methods.Kvaerno5,
]  # fmt: skip
ROSENBROCK = [ude.methods.Rosenbrock23, ude.methods.Rodas4, ude.Rodas5P]
EVERY = [alg(**NEWTON) for alg in ESDIRK] + [alg() for alg in ROSENBROCK] + [ude.FBDF(**NEWTON)]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def five_point(f: Callable[[np.ndarray], float], theta: np.ndarray, relative_step: float) -> np.ndarray:
    """Differences of order four in every component, each in its own units."""
    found = []
    for i, size in enumerate(np.abs(theta)):
        step = np.zeros_like(theta)
        step[i] = relative_step * size
        found.append(
            (8 * (f(theta + step) - f(theta - step)) - (f(theta + 2 * step) - f(theta - 2 * step))) / (12 * step[i])
        )
    return np.array(found)


# --- the exact derivative of the discretization itself --------------------------------------------------------------


def driven(u: Tensor, p, t: Tensor) -> Tensor:
    """A van der Pol oscillator whose Jacobian and time derivative depend on the parameters, per trajectory."""
    x, y = u.unbind(-1)
    beat = torch.sin(3 * t)
    return torch.stack([y + 0.1 * beat * x * p.a, p.mu * (1 - x * x) * y - x + p.a * torch.cos(2 * t) * y], -1)


def read_driven(theta: Tensor, alg) -> Tensor:
    """A loss of two trajectories with spans and parameters of their own, read inside steps and at their ends."""
    mu = torch.stack([theta[0], 2 * theta[0]])
    u0 = torch.stack([theta[1:3], theta[1:3] * 1.1])
    span = (torch.tensor([0.0, 0.2], dtype=torch.float64), torch.tensor([1.0, 1.6], dtype=torch.float64))
    saveat = torch.tensor([[0.13, 0.5, 1.0], [0.2, 0.7, 1.6]], dtype=torch.float64)
    prob = ude.ODEProblem(driven, u0, span, dict(mu=mu, a=theta[3]))
    sol = ude.solve(prob, alg, saveat=saveat, dt=0.1, adaptive=False, abstol=1e-9, reltol=1e-9)
    return (sol.u**2).sum() + sol(0.777).prod()


@pytest.mark.parametrize("alg", EVERY, ids=name)
def test_discrete_adjoint_is_the_exact_derivative_of_a_rough_solve(alg):
    """With fixed steps the solve is smooth in theta: differences of it converge to its own derivative, far from that
    of the exact solution."""
    theta = torch.tensor([3.0, 2.0, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(read_driven(theta, alg), theta)
    direction = torch.tensor([0.7, -0.4, 0.5, 0.9], dtype=torch.float64)
    step = 1e-4
    with torch.no_grad():
        at = {k: float(read_driven(theta + k * step * direction, alg)) for k in (-2, -1, 1, 2)}
    numeric = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-8)


def test_the_gradient_of_an_implicit_euler_step_is_that_of_its_equation():
    """``u1 = u0 - h a u1^3`` differentiated by hand."""
    u0 = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: -p.a * u**3, u0, (0.0, 0.5), dict(a=a))
    sol = ude.solve(prob, ude.methods.ImplicitEuler(**NEWTON), dt=0.5, adaptive=False, abstol=1e-9, reltol=1e-9)
    u1 = float(sol.u[-1, 0].detach())
    assert u1 + 0.5 * 0.4 * u1**3 == pytest.approx(1.3, abs=1e-12)
    of_u0, of_a = torch.autograd.grad(sol.u[-1, 0], (u0, a))
    assert float(of_u0) == pytest.approx(1 / (1 + 0.6 * u1**2), rel=1e-12)
    assert float(of_a) == pytest.approx(-0.5 * u1**3 / (1 + 0.6 * u1**2), rel=1e-12)


# --- against SciPy -------------------------------------------------------------------------------------------------

ROBERTSON_SAVES = [0.5, 7.3, 40.0]
ROBERTSON_WEIGHTS = np.array([1.0, 1e4, 1.0])


def robertson_with_scipy(theta: np.ndarray) -> float:
    k1, k2, k3 = theta

    def f(t: float, y: np.ndarray) -> list[float]:
        return [
            k3 * y[1] * y[2] - k1 * y[0], k1 * y[0] - k2 * y[1] ** 2 - k3 * y[1] * y[2], k2 * y[1] ** 2
        ]  # fmt: skip

    tolerances = {"rtol": 3e-14, "atol": [1e-15, 1e-19, 1e-15]}
    solved = solve_ivp(f, (0, 40), [1, 0, 0], method="LSODA", t_eval=ROBERTSON_SAVES, **tolerances)
    return float((ROBERTSON_WEIGHTS * solved.y.T * (1 + solved.y.T)).sum())


@pytest.fixture(scope="module")
def robertson_gradient() -> np.ndarray:
    return five_point(robertson_with_scipy, np.array([*ROBERTSON.values()]), 1e-3)


@pytest.mark.parametrize(
    ("alg", "tolerance"),
    [
        (ude.Rodas5P(), 1e-9),
        pytest.param(ude.methods.Rodas4(), 1e-9, marks=pytest.mark.slow),
        (ude.methods.KenCarp5(), 1e-10),
        pytest.param(ude.methods.Kvaerno5(), 1e-11, marks=pytest.mark.slow),
        pytest.param(ude.KenCarp4(), 1e-11, marks=pytest.mark.slow),
        pytest.param(ude.methods.Kvaerno4(), 1e-10, marks=pytest.mark.slow),
    ],
    ids=name,
)
def test_gradient_of_the_robertson_problem_agrees_with_scipy(alg, tolerance, robertson_gradient):
    theta = torch.tensor([*ROBERTSON.values()], dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(robertson, [1.0, 0.0, 0.0], (0.0, 40.0), dict(zip(ROBERTSON, theta, strict=True)))
    abstol = [tolerance, 1e-4 * tolerance, tolerance]
    sol = ude.solve(prob, alg, saveat=ROBERTSON_SAVES, abstol=abstol, reltol=tolerance)
    (gradient,) = torch.autograd.grad((torch.from_numpy(ROBERTSON_WEIGHTS) * sol.u * (1 + sol.u)).sum(), theta)
    np.testing.assert_allclose(gradient.numpy(), robertson_gradient, rtol=1e-6)


VAN_DER_POL_ENDS = [5.0, 3.5]
VAN_DER_POL_SAVES = [[0.5, 2.0, 5.0], [0.4, 1.9, 3.5]]


def van_der_pol_with_scipy(theta: np.ndarray) -> float:
    """Two trajectories: mu and 1.2 mu, over spans of their own."""
    total = 0.0
    for factor, end, saves in zip((1.0, 1.2), VAN_DER_POL_ENDS, VAN_DER_POL_SAVES, strict=True):
        mu = factor * theta[0]
        solved = solve_ivp(
            lambda t, y, mu=mu: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
            (0, end), theta[1:], method="DOP853", rtol=1e-13, atol=1e-14, t_eval=saves,
        )  # fmt: skip
        total += float((solved.y * (1 + solved.y)).sum())
    return total


@pytest.fixture(scope="module")
def van_der_pol_gradient() -> np.ndarray:
    return five_point(van_der_pol_with_scipy, np.array([10.0, 2.0, 0.3]), 1e-3)


@pytest.mark.parametrize(
    ("alg", "tolerance"),
    [
        (ude.KenCarp4(), 1e-9),
        (ude.methods.KenCarp5(), 1e-9),
        (ude.methods.Kvaerno5(), 1e-9),
        (ude.Rodas5P(), 1e-8),
        pytest.param(ude.methods.Kvaerno4(), 1e-9, marks=pytest.mark.slow),
        pytest.param(ude.methods.Rodas4(), 1e-8, marks=pytest.mark.slow),
        pytest.param(ude.methods.KenCarp3(), 1e-9, marks=pytest.mark.slow),
        pytest.param(ude.methods.Kvaerno3(), 1e-9, marks=pytest.mark.slow),
        pytest.param(ude.methods.TRBDF2(), 1e-10, marks=pytest.mark.slow),
        pytest.param(ude.methods.Trapezoid(), 1e-10, marks=pytest.mark.slow),
        pytest.param(ude.methods.Rosenbrock23(), 1e-9, marks=pytest.mark.slow),
    ],
    ids=name,
)
def test_gradient_of_van_der_pol_with_own_spans_and_parameters_agrees_with_scipy(alg, tolerance, van_der_pol_gradient):
    theta = torch.tensor([10.0, 2.0, 0.3], dtype=torch.float64, requires_grad=True)
    mu = theta[0] * torch.tensor([1.0, 1.2], dtype=torch.float64)
    ends = torch.tensor(VAN_DER_POL_ENDS, dtype=torch.float64)
    prob = ude.ODEProblem(van_der_pol, theta[1:].expand(2, 2), (0.0, ends), dict(mu=mu))
    sol = ude.solve(prob, alg, saveat=VAN_DER_POL_SAVES, abstol=tolerance, reltol=tolerance)
    (gradient,) = torch.autograd.grad((sol.u * (1 + sol.u)).sum(), theta)
    np.testing.assert_allclose(gradient.numpy(), van_der_pol_gradient, rtol=1e-6)


# --- networks, continuous adjoint, small things --------------------------------------------------------------------


@pytest.mark.parametrize("alg", [ude.KenCarp4(**NEWTON), ude.methods.Rodas4()], ids=name)
def test_gradients_reach_a_network_and_leave_it_alone(alg):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    u0 = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64)

    def field(u: Tensor, p, t: Tensor) -> Tensor:
        return p.net(u) - torch.tensor([0.5, 40.0], dtype=torch.float64) * u

    def loss() -> Tensor:
        prob = ude.ODEProblem(field, u0, (0.0, 1.0), dict(net=net))
        return (ude.solve(prob, alg, saveat=[0.45, 1.0], dt=0.1, adaptive=False, abstol=1e-9, reltol=1e-9).u ** 2).sum()

    gradients = torch.autograd.grad(loss(), list(net.parameters()))
    assert all(q.grad is None for q in net.parameters())
    for index, at in ((0, (1, 1)), (1, (2,)), (3, (0,))):
        weight = list(net.parameters())[index]
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += step
                values.append(float(loss()))
                weight[at] -= step
        assert float(gradients[index][at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("alg", [ude.methods.Kvaerno5(), ude.Rodas5P()], ids=name)
def test_the_continuous_adjoint_is_solved_by_implicit_methods_too(alg):
    # their Jacobian of the augmented system asks for second derivatives of f
    gradients = []
    for sensealg in (ude.DiscreteAdjoint(), ude.BacksolveAdjoint()):
        theta = torch.tensor([1.5, 1.0, 0.3], dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(van_der_pol, theta[1:], (0.0, 1.0), dict(mu=theta[0]))
        sol = ude.solve(prob, alg, saveat=[0.3, 1.0], abstol=1e-9, reltol=1e-9, sensealg=sensealg)
        gradients += torch.autograd.grad((sol.u**2).sum(), theta)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.methods.Rodas4()], ids=name)
def test_a_constant_right_hand_side_and_an_unused_leaf_have_simple_gradients(alg):
    unused = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: torch.ones_like(u), u0, (0.0, 2.0), dict(unused=unused))
    of_u0, of_p = torch.autograd.grad(ude.solve(prob, alg, saveat=1.0).u.sum(), (u0, unused), allow_unused=True)
    assert of_u0.tolist() == [3.0]
    assert of_p is None or float(of_p) == 0.0


@pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.methods.Rodas4()], ids=name)
def test_a_span_of_length_zero_and_a_read_of_the_start_give_the_identity(alg):
    for end in (0.0, 1.0):
        u0 = torch.tensor([2.0, 0.3], dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, end), dict(mu=5.0))
        sol = ude.solve(prob, alg, saveat=[0.0])
        assert sol.u.tolist() == [[2.0, 0.3]]
        (gradient,) = torch.autograd.grad(sol.u.sum(), u0)
        assert gradient.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.methods.Rodas4()], ids=name)
def test_the_gradient_of_a_trajectory_does_not_depend_on_its_neighbors(alg):
    mu = torch.tensor([1.0, 300.0], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([3.0, 1.5], dtype=torch.float64)

    def gradient(prob: ude.ODEProblem, leaf: Tensor) -> Tensor:
        sol = ude.solve(prob, alg, abstol=1e-6, reltol=1e-6)
        return torch.autograd.grad((sol.u[..., -1, :] ** 2).sum(), leaf)[0]

    start = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    together = gradient(ude.ODEProblem(van_der_pol, start, (0.0, ends), dict(mu=mu)), mu)
    for i in range(2):
        own = mu[i].detach().clone().requires_grad_()
        alone = gradient(ude.ODEProblem(van_der_pol, start[i], (0.0, float(ends[i])), dict(mu=own)), own)
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=0)


def test_stages_that_newtons_iteration_solves_slowly_are_solved_for_the_gradient_too():
    """With the Jacobian of the step's start it needs some hundred iterations here; 60 left a gradient of -6e-3."""

    def exchange(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y = u.unbind(-1)
        flow = p.rate * (y - x * x)
        return torch.stack([flow + 0.8 * torch.sin(3 * t) * y, -flow + torch.cos(2 * t) * x - 0.8 * x * y], -1)

    def end(rate: Tensor) -> Tensor:
        alg = ude.KenCarp4(newton_maxiters=1000, newton_tolerance=1e-6)
        options = {"dt": 0.5, "adaptive": False, "abstol": 1e-6, "reltol": 1e-6}
        prob = ude.ODEProblem(exchange, [1.0, 0.5], (0.0, 2.0), dict(rate=rate))
        return ude.solve(prob, alg, saveat=[2.0], **options).u.sum()

    rate = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(rate), rate)
    with torch.no_grad():
        numeric = (end(rate + 1e-3) - end(rate - 1e-3)) / 2e-3
    assert float(gradient) == pytest.approx(float(numeric), rel=1e-5)


def test_a_step_whose_own_jacobian_misleads_is_solved_again_all_the_same():
    """From u = 0 the Jacobian of ``10 - 1000 u^3`` is zero and its simplified iteration diverges; the step may have
    been taken with the Jacobian of one before. Its neighbor in the batch needs no rescue and keeps its digits."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return 10 - p.rate * u**3

    rate = torch.tensor(1000.0, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[0.0], [0.2]], dtype=torch.float64)
    alg = ude.methods.ImplicitEuler()
    spec = validate(ude.ODEProblem(f, start, (0.0, 1.0), dict(rate=rate)), alg, ude.solving.SolveOptions())
    scheme = EsdirkScheme(spec, (rate,))
    dt = torch.tensor([1.0, 0.01], dtype=torch.float64)
    step = (start, f(start, ude.problems.Parameters(rate=rate.detach()), dt), torch.zeros_like(dt), dt)
    end, _ = scheme.advance(step)
    column, r = dt.unsqueeze(-1), float(rate.detach())
    assert float((end - start - column * (10 - r * end**3)).abs().max()) < 1e-13
    cotangents = Cotangents(torch.ones_like(start), torch.zeros_like(start))
    back, (by_rate,) = scheme.pull_step(step, cotangents, [rate])
    slope = 1 + 3 * column * r * end**2
    torch.testing.assert_close(back.u, 1 / slope, rtol=1e-11, atol=0)
    torch.testing.assert_close(by_rate, (-column * end**3 / slope).sum(), rtol=1e-11, atol=0)


def test_a_step_that_cannot_be_solved_again_is_told():
    wrong = False

    def jac(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return (-50 + torch.cos(u) + (80.0 if wrong else 0.0)).unsqueeze(-1)

    u0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    f = ude.ODEFunction(lambda u, p, t: -50 * u + torch.sin(u), jac=jac)
    sol = ude.solve(ude.ODEProblem(f, u0, (0.0, 1.0)), ude.KenCarp4(), saveat=[1.0])
    wrong = True
    told = "a step could not be solved again as exactly as gradients and dense output need: no convergence near t="
    with pytest.raises(ude.errors.SolveFailed, match=told):
        sol.u.sum().backward()
