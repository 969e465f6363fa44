"""check_gradient agrees where the gradient is right, and says so where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import ude
from tests.problems_for_tests import forced, lotka_volterra_problem

TIGHT = {"abstol": 1e-9, "reltol": 1e-9}


@pytest.mark.parametrize("sensealg", [ude.DiscreteAdjoint(), ude.BacksolveAdjoint(), ude.ForwardSensitivity()], ids=str)
def test_a_right_gradient_agrees_to_six_digits(sensealg):
    check = ude.check_gradient(
        lotka_volterra_problem(tspan=(0.0, 3.0)),
        lambda sol: (sol.u**2).sum() + sol(1.1).prod(),
        ude.Tsit5(),
        ude.solving.SolveOptions(sensealg=sensealg, saveat=0.5, **TIGHT),
    )
    assert check.agrees(1e-6), str(check)
    assert len(check.entries) == 6
    assert [entry.name for entry in check.entries[:3]] == ["u0[0]", "u0[1]", "p.alpha"]


@dataclass(frozen=True)
class WrongByAPercent:
    """An adjoint with an error, as somebody's own might have."""

    name: str = "WrongByAPercent"

    def attach(self, solved, times, values, u0, p):
        right = ude.DiscreteAdjoint().attach(solved, times, values, u0, p)
        return values + 1.01 * (right - right.detach())


def test_a_wrong_gradient_is_found():
    check = ude.check_gradient(
        lotka_volterra_problem(tspan=(0.0, 1.0)),
        lambda sol: sol.u.sum(),
        options=ude.solving.SolveOptions(sensealg=WrongByAPercent(), saveat=0.5, **TIGHT),
    )
    assert not check.agrees(1e-3)
    assert check.worst == pytest.approx(0.01, rel=0.1)
    assert "WrongByAPercent with AutoVern7(Rodas5P): worst disagreement 9." in str(check)


def test_modules_in_p_and_as_f_are_checked_and_left_as_they_are():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    before = [q.clone() for q in net.parameters()]

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, u, p, t):
            return self.net(u)

    for prob, prefix in (
        (ude.ODEProblem(lambda u, p, t: p.net(u), [1.0, 0.5], (0.0, 1.0), dict(net=net)), "p.net."),
        (ude.ODEProblem(Field(), [1.0, 0.5], (0.0, 1.0)), "f.net."),
    ):
        options = ude.solving.SolveOptions(saveat=0.5, **TIGHT)
        check = ude.check_gradient(prob, lambda sol: (sol.u**2).sum(), options=options, most=3)
        assert check.agrees(1e-6), str(check)
        assert {entry.name.rsplit("[", 1)[0] for entry in check.entries if entry.name != "u0"} >= {prefix + "0.weight"}
    assert all(torch.equal(q, old) for q, old in zip(net.parameters(), before, strict=True))


def test_forward_sensitivities_of_a_batch_with_own_parameters_and_spans():
    rate = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64, requires_grad=True)
    t0, t1 = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 1.0, 2.5], [1.0, 3.0, 2.0]))
    saveat = t0.unsqueeze(-1) + (t1 - t0).unsqueeze(-1) * torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    prob = ude.ODEProblem(forced, u0, (t0, t1), dict(rate=rate))
    sol = ude.solve(prob, saveat=saveat, abstol=1e-11, reltol=1e-11, sensealg=ude.ForwardSensitivity())
    assert sol.stats.sensealg == "ForwardSensitivity"
    ours = torch.autograd.grad((sol.u**2).sum(), (rate, u0))
    exact = u0 * torch.exp(rate.unsqueeze(-1) * (torch.sin(saveat) - torch.sin(t0).unsqueeze(-1)))
    theirs = torch.autograd.grad((exact**2).sum(), (rate, u0))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(
        ude.errors.InputError, match=r"the loss must be a scalar tensor: shape \(2,\). Sum or average it."
    ):
        ude.check_gradient(lotka_volterra_problem(tspan=(0.0, 1.0)), lambda sol: sol.u[-1])
