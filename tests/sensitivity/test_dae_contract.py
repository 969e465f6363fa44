"""Every sensitivity with every family of methods on a DAE whose solution is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ude
from tests.sensitivities_for_tests import SENSITIVITIES

ALL = [*SENSITIVITIES, ude.DiscreteAdjoint(checkpoints=3)]
# the values between steps are compared to 1e-7, which the dense output of KenCarp5's long steps does not reach for an
# algebraic variable; its steps are checked in tests/engines/test_dae.py
METHODS = {
    ude.KenCarp4(): 1e-9,
    ude.methods.Kvaerno4(): 1e-9,
    ude.methods.Rodas4(): 1e-9,
    ude.Rodas5P(): 1e-9,
    ude.FBDF(): 1e-11,
}

#: What the solve gives, the same in closed form, and the numbers that both depend on.
Outcome = tuple[Tensor, Tensor, tuple[Tensor, ...]]


def number(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# x' = rate (x - capacity z) with z + z^3 = y^2 + y^6, y = x / capacity: the logistic equation, since z = y^2. Rows are
# mixed by ROWS and the state is TURN (x, z), so that neither equations nor variables are algebraic by name.
ROWS = torch.tensor([[1.0, 0.5], [-0.7, 2.0]]).double()
TURN = torch.tensor([[2.0, 0.3], [0.4, 1.0]]).double()
BACK = torch.linalg.inv(TURN)
MASS = ROWS @ torch.diag(torch.tensor([1.0, 0.0]).double()) @ BACK


def logistic(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, z = (u @ BACK.T).unbind(-1)
    y = x / p.capacity
    return torch.stack([p.rate * (x - p.capacity * z), z + z**3 - y**2 - y**6], -1) @ ROWS.T


def closed_form(u0: Tensor, rate: Tensor, capacity: Tensor, elapsed: Tensor) -> Tensor:
    start = (u0 @ BACK.T)[..., :1]
    x = capacity / (1 + (capacity / start - 1) * torch.exp(-rate.unsqueeze(-1) * elapsed))
    return torch.stack([x, (x / capacity) ** 2], -1) @ TURN.T


def plain(**options: Any) -> Outcome:
    """Two trajectories with their own spans (one backwards) and rates, from inconsistent starts; read at the start, at
    saves and between."""
    u0, rate, capacity = number([[0.9, 0.3], [1.3, 0.9]]), number([1.5, 2.0]), number(2.0)
    span = torch.tensor([0.0, 0.5]).double(), torch.tensor([1.0, 0.0]).double()
    saveat = torch.tensor([[0.0, 0.4, 1.0], [0.5, 0.3, 0.1]]).double()
    f = ude.ODEFunction(logistic, mass_matrix=MASS)
    sol = ude.solve(ude.ODEProblem(f, u0, span, dict(rate=rate, capacity=capacity)), saveat=saveat, **options)
    elapsed = torch.tensor([[0.0, 0.4, 1.0, 0.23], [0.0, -0.2, -0.4, -0.27]]).double()
    exact = closed_form(u0, rate, capacity, elapsed)
    return torch.cat([sol.u, sol(0.23).unsqueeze(1)], 1), exact, (u0, rate, capacity)


def event(**options: Any) -> Outcome:
    """The differential variable halves when the algebraic one reaches a level; the algebraic one must follow."""
    u0, rate, capacity = number([0.9, 0.3]), number(1.5), number(2.0)
    level = 0.2
    halved = torch.diag(torch.tensor([0.5, 1.0]).double())
    at_level = ude.ContinuousCallback(
        lambda u, p, t: (u @ BACK.T)[..., 1] - level, lambda u, p, t: u @ (TURN @ halved @ BACK).T, direction=1
    )
    f = ude.ODEFunction(logistic, mass_matrix=MASS)
    prob = ude.ODEProblem(f, u0, (0.0, 1.3), dict(rate=rate, capacity=capacity))
    sol = ude.solve(prob, saveat=[0.3, 1.2], callback=at_level, **options)
    assert len(sol.events) == 1
    before = closed_form(u0, rate, capacity, torch.tensor([0.3]).double())
    start = (u0 @ BACK.T)[0]
    since = 1.2 - torch.log((capacity / start - 1) / (1 / level**0.5 - 1)) / rate
    restarted = torch.stack([capacity * level**0.5 / 2, capacity * 0]) @ TURN.T
    after = closed_form(restarted, rate, capacity, since.unsqueeze(-1))
    return sol.u, torch.cat([before, after]), (u0, rate, capacity)


def check(outcome: Outcome) -> None:
    ours, exact, inputs = outcome
    torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-8)
    weights = torch.linspace(0.5, 1.5, ours.numel(), dtype=torch.float64).view(ours.shape)
    for left, right in zip(
        torch.autograd.grad((weights * ours**2).sum(), inputs),
        torch.autograd.grad((weights * exact**2).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6 * float(right.abs().max()))


def check_each(case: Callable[..., Outcome], alg: Any, sensealg: Any) -> None:
    if isinstance(alg, ude.FBDF) and getattr(sensealg, "checkpoints", "all") != "all":
        with pytest.raises(ude.errors.EngineRefused, match="FBDF's steps are made of the states before them, so"):
            case(alg=alg, sensealg=sensealg)
        return
    check(case(alg=alg, sensealg=sensealg, abstol=METHODS[alg], reltol=METHODS[alg]))


# Kvaerno4 and Rodas4 stand beside KenCarp4 and Rodas5P of the same families, and take a minute together
@pytest.mark.parametrize(
    "alg",
    [
        pytest.param(alg, id=alg.name, marks=[pytest.mark.slow] if alg.name in ("Kvaerno4", "Rodas4") else [])
        for alg in METHODS
    ],
)
@pytest.mark.parametrize("sensealg", ALL, ids=lambda sensealg: sensealg.name)
def test_gradient_of_a_dae_is_that_of_the_closed_form(sensealg, alg):
    check_each(plain, alg, sensealg)


@pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.Rodas5P(), ude.FBDF()], ids=lambda alg: alg.name)
@pytest.mark.parametrize("sensealg", ALL, ids=lambda sensealg: sensealg.name)
def test_gradient_runs_through_an_event_of_a_dae_and_the_start_made_consistent_after_it(sensealg, alg):
    check_each(event, alg, sensealg)
