"""Every sensitivity with every family of methods, plain, with events and with forcing, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ude
from tests.sensitivities_for_tests import SENSITIVITIES

CHECKPOINTS = [ude.DiscreteAdjoint(checkpoints="logarithmic"), ude.DiscreteAdjoint(checkpoints=3)]
ALL = [*SENSITIVITIES, *CHECKPOINTS]
# first-same-as-last, with stages that only the dense output needs, diagonally and linearly implicit, multistep, and
# one that begins implicit and switches in every case
METHODS = {
    ude.Tsit5(): 1e-10,
    ude.Vern7(): 1e-10,
    ude.KenCarp4(): 1e-9,
    ude.Rodas5P(): 1e-9,
    ude.FBDF(): 1e-11,
    ude.AutoTsit5(ude.Rodas5P(), stiffalgfirst=True): 1e-9,
}
KNOTS = [0.0, 0.3, 0.7, 1.0]


#: What the solve gives, the same in closed form, and the numbers that both depend on.
Outcome = tuple[Tensor, Tensor, tuple[Tensor, ...]]


def number(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def logistic(u, p, t):
    return p.rate.unsqueeze(-1) * u * (1 - u / p.capacity)


def plain(**options: Any) -> Outcome:
    """Two trajectories with their own spans (one backwards), saves and rates; read at saves and between."""
    u0, rate, capacity = number([[0.3], [0.5]]), number([1.5, 2.0]), number(2.0)
    span = torch.tensor([0.0, 0.5]).double(), torch.tensor([1.0, 0.0]).double()
    saveat = torch.tensor([[0.4, 1.0], [0.5, 0.1]]).double()
    prob = ude.ODEProblem(logistic, u0, span, dict(rate=rate, capacity=capacity))
    sol = ude.solve(prob, saveat=saveat, **options)
    elapsed = torch.tensor([[0.4, 1.0, 0.23], [0.0, -0.4, -0.27]]).double()
    exact = capacity / (1 + (capacity / u0 - 1) * torch.exp(-rate.unsqueeze(-1) * elapsed))
    return torch.cat([sol.u[..., 0], sol(0.23)], -1), exact, (u0, rate, capacity)


def falling(u, p, t):
    return torch.stack([u[..., 1], -p.g * torch.ones_like(u[..., 1])], -1)


def bounce(u, p, t):
    return torch.stack([torch.zeros_like(u[..., 0]), -p.restitution * u[..., 1]], -1)


def event(**options: Any) -> Outcome:
    """A ball that bounces between the saves."""
    height, g, restitution = number(1.0), number(9.81), number(0.8)
    u0 = torch.stack([height, torch.zeros_like(height)])
    ground = ude.ContinuousCallback(lambda u, p, t: u[..., 0], bounce, direction=-1)
    prob = ude.ODEProblem(falling, u0, (0.0, 0.8), dict(g=g, restitution=restitution))
    sol = ude.solve(prob, saveat=[0.2, 0.7], callback=ground, **options)
    first = torch.sqrt(2 * height / g)
    since = 0.7 - first
    exact = torch.stack([height - g * 0.2**2 / 2, restitution * g * first * since - g * since**2 / 2])
    return sol.u[:, 0], exact, (height, g, restitution)


class Forced(nn.Module):
    """``u' = -decay u + F(t)``"""

    def __init__(self) -> None:
        super().__init__()
        self.forcing = ude.Interpolation(KNOTS, [0.2, 1.0, -0.5, 0.4], "linear", trainable=True)
        self.decay = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return -self.decay * u + self.forcing(t).unsqueeze(-1)


def forced(**options: Any) -> Outcome:
    """A measured forcing whose values are trainable, with stops at its knots."""
    u0 = number([0.7])
    field = Forced()
    sol = ude.solve(ude.ODEProblem(field, u0, (0.0, 1.0)), saveat=[0.5, 1.0], tstops=KNOTS[1:-1], **options)
    values = field.forcing.values
    return sol.u[:, 0], exact_forced(u0, field.decay, values[0, :, 0]), (u0, field.decay, values)


def exact_forced(u0: Tensor, decay: Tensor, values: Tensor) -> Tensor:
    """``u0 exp(-k t) + int exp(-k (t - s)) F(s) ds``, by Gauss's rule between the knots."""
    nodes, weights = (torch.tensor(x) for x in np.polynomial.legendre.leggauss(12))
    results = []
    for t in (0.5, 1.0):
        total = u0[0] * torch.exp(-decay * t)
        for i, (low, knot) in enumerate(zip(KNOTS, KNOTS[1:], strict=False)):
            high = min(knot, t)
            if high <= low:
                continue
            s = low + (high - low) * (nodes + 1) / 2
            force = values[i] + (values[i + 1] - values[i]) * (s - low) / (knot - low)
            total = total + (weights * torch.exp(-decay * (t - s)) * force).sum() * (high - low) / 2
        results.append(total)
    return torch.stack(results)


@pytest.mark.parametrize("case", [plain, event, forced], ids=lambda case: case.__name__)
@pytest.mark.parametrize("alg", METHODS, ids=lambda alg: alg.name)
@pytest.mark.parametrize("sensealg", ALL, ids=lambda sensealg: sensealg.name)
def test_gradient_is_that_of_the_closed_form(sensealg, alg, case):
    if isinstance(alg, ude.FBDF) and getattr(sensealg, "checkpoints", "all") != "all":
        with pytest.raises(ude.errors.EngineRefused, match="FBDF's steps are made of the states before them, so"):
            case(alg=alg, sensealg=sensealg)
        return
    ours, exact, inputs = case(alg=alg, sensealg=sensealg, abstol=METHODS[alg], reltol=METHODS[alg])
    torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-8)
    for left, right in zip(
        torch.autograd.grad((ours**2).sum() + ours.prod(), inputs),
        torch.autograd.grad((exact**2).sum() + exact.prod(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6 * float(right.abs().max()))


@pytest.mark.parametrize("sensealg", ALL, ids=lambda sensealg: sensealg.name)
def test_the_solution_says_how_its_gradient_is_computed(sensealg):
    u0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: -u, u0, (0.0, 1.0)), saveat=1.0, sensealg=sensealg)
    assert sol.stats.sensealg == sensealg.name


def test_the_method_that_switches_does_so_in_these_cases():
    alg = list(METHODS)[-1]
    rate = torch.tensor([1.5, 2.0], dtype=torch.float64)
    prob = ude.ODEProblem(logistic, [[0.3], [0.5]], (0.0, 1.0), dict(rate=rate, capacity=2.0))
    assert ude.solve(prob, alg, abstol=METHODS[alg], reltol=METHODS[alg]).stats.switches.tolist() == [1, 1]
