"""Gradients by the start, the end and the saves of a solve, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

import ude
from ude.errors import InputError

DOUBLE = torch.float64
TIGHT = dict(reltol=1e-10, abstol=1e-10)
SENSITIVITIES = [ude.DiscreteAdjoint(), ude.GaussAdjoint(), ude.ForwardSensitivity(), ude.sensitivity.Autograd()]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE, requires_grad=True)


def grows(u: torch.Tensor, p: object, t: torch.Tensor) -> torch.Tensor:
    """u(t) = u0 exp((t^2 - t0^2) / 2)."""
    return t[..., None] * u


@pytest.mark.parametrize("engine", ["auto", "torch", "fused"])
@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=lambda one: one.name)
def test_the_gradient_by_start_and_end_is_f_there(sensealg, engine: str):
    t0, t1 = number(0.3), number(1.2)
    end = ude.solve(ude.ODEProblem(grows, [1.0], (t0, t1)), ude.Tsit5(), sensealg=sensealg, engine=engine, **TIGHT).u[
        -1, 0
    ]
    value = math.exp((1.2**2 - 0.3**2) / 2)
    assert float(end.detach()) == pytest.approx(value, abs=1e-8)
    assert [float(g) for g in torch.autograd.grad(end, (t0, t1))] == pytest.approx(
        [-0.3 * value, 1.2 * value], abs=1e-7
    )


@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.Rodas5P(), ude.KenCarp4(), ude.FBDF()], ids=lambda one: one.name)
def test_the_gradient_by_saves_is_f_there(alg):
    saves, t0 = torch.tensor([0.3, 0.5, 1.1], dtype=DOUBLE, requires_grad=True), number(0.3)
    sol = ude.solve(ude.ODEProblem(grows, [2.0], (t0, 1.2)), alg, saveat=saves, **TIGHT)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE)
    of_saves, of_start = torch.autograd.grad(sol.u[:, 0] @ weights, (saves, t0))
    u = 2.0 * torch.exp((saves.detach() ** 2 - 0.09) / 2)
    assert of_saves.tolist() == pytest.approx((weights * saves.detach() * u).tolist(), abs=1e-5)
    assert float(of_start) == pytest.approx(float(-0.3 * (weights @ u)), abs=1e-5)


def test_saves_in_a_list_and_at_a_distance_move_too():
    first, t0 = number(0.5), number(0.0)
    sol = ude.solve(ude.ODEProblem(grows, [1.0], (0.0, 1.0)), ude.Tsit5(), saveat=[first, 0.9], **TIGHT)
    assert float(torch.autograd.grad(sol.u[0, 0], first)[0]) == pytest.approx(0.5 * math.exp(0.125), abs=1e-7)
    # u(t0 + 0.4) = exp(((t0 + 0.4)^2 - t0^2) / 2)
    sol = ude.solve(ude.ODEProblem(grows, [1.0], (t0, 1.0)), ude.Tsit5(), saveat=0.4, **TIGHT)
    assert float(torch.autograd.grad(sol.u[1, 0], t0)[0]) == pytest.approx(0.4 * math.exp(0.08), abs=1e-7)


def test_every_trajectory_has_its_own_end():
    t1 = torch.tensor([0.5, 1.5], dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(grows, torch.ones(2, 1, dtype=DOUBLE), (0.0, t1))
    end = ude.solve(prob, ude.Tsit5(), **TIGHT).u[:, -1, 0]
    true = t1.detach() * torch.exp(t1.detach() ** 2 / 2)
    assert torch.autograd.grad(end.sum(), t1)[0].tolist() == pytest.approx(true.tolist(), abs=1e-7)


def test_an_end_that_moves_past_a_switch_and_with_a_parameter():
    lag, t1, k = number(0.4), number(1.5), number(0.8)
    prob = ude.ODEProblem(
        lambda u, p, t: torch.where(t > p.lag, -p.k * u, 0.0 * u), [1.0], (0.0, t1), dict(lag=lag, k=k)
    )
    end = ude.solve(prob, ude.Tsit5(), **TIGHT).u[-1, 0]
    value = math.exp(-0.8 * 1.1)
    gradient = [float(g) for g in torch.autograd.grad(end, (lag, t1, k))]
    assert gradient == pytest.approx([0.8 * value, -0.8 * value, -1.1 * value], abs=1e-7)


def test_a_second_derivative_by_a_time_is_refused():
    t1 = number(1.0)
    end = ude.solve(ude.ODEProblem(grows, [1.0], (0.0, t1)), ude.Tsit5(), sensealg=ude.sensitivity.Autograd()).u[-1, 0]
    (first,) = torch.autograd.grad(end, t1, create_graph=True)
    with pytest.raises((InputError, RuntimeError)):
        torch.autograd.grad(first, t1)


@pytest.mark.parametrize(
    "sensealg", [*SENSITIVITIES, ude.BacksolveAdjoint(), ude.QuadratureAdjoint()], ids=lambda o: o.name
)
@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_what_f_does_not_use_has_a_gradient_of_zero(sensealg, engine: str):
    k, unused = number(0.5), number(2.0)
    net = torch.nn.Linear(1, 1, dtype=DOUBLE)
    for f in (lambda u, p, t: -p.k * u, lambda u, p, t: torch.zeros_like(u)):
        prob = ude.ODEProblem(f, [1.0], (0.0, 1.0), dict(k=k, unused=unused, net=net))
        end = ude.solve(prob, ude.Tsit5(), sensealg=sensealg, engine=engine, saveat=[1.0]).u[-1, 0]
        gradients = torch.autograd.grad(end, (unused, *net.parameters()))
        assert all(float(gradient.abs().sum()) == 0.0 for gradient in gradients)


def test_a_moving_time_of_a_state_with_two_axes_is_refused():
    prob = ude.ODEProblem(lambda u, p, t: -u, torch.ones(3, 2, dtype=DOUBLE), (0.0, number(1.0)), state_dims=2)
    with pytest.raises(InputError, match="a gradient by tspan or saveat takes states of one axis"):
        ude.solve(prob, ude.Tsit5())
