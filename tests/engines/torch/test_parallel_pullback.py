"""Both reverse sweeps give the same gradient, and the faster one is chosen only where it holds."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ude

pullback = importlib.import_module("ude.engines.torch.families.explicit")
parallel = importlib.import_module("ude.engines.torch.parallel_pullback")
METHODS = [ude.methods.BS3(), ude.Tsit5(), ude.Vern7(), ude.methods.DP8()]


@pytest.fixture
def chosen(monkeypatch) -> list[bool]:
    """What `pays` decided, call by call: once for the saves and once for the dense output."""
    decisions: list[bool] = []

    def noting(*arguments: Any) -> bool:
        decisions.append(parallel.pays(*arguments))
        return decisions[-1]

    monkeypatch.setattr(pullback, "pays", noting)
    return decisions


def gradients(f, alg, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    shape = (batch,) if batch > 1 else ()
    rate = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
    u0 = torch.rand((*shape, 2), dtype=torch.float64, generator=generator).requires_grad_()
    prob = ude.ODEProblem(f, u0, (0.0, 3.0), dict(net=net, rate=rate))
    sol = ude.solve(prob, alg, saveat=[0.0, 0.7, 0.7, 1.5, 3.0], abstol=1e-7, reltol=1e-7)
    loss = (sol.u**2).sum() + sol(1.234).prod()
    return list(torch.autograd.grad(loss, [u0, rate, *net.parameters()]))


def learned(u, p, t):
    return p.net(u) + (torch.sin(t) * p.rate).unsqueeze(-1)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("alg", METHODS, ids=lambda alg: alg.name)
def test_both_sweeps_agree_to_rounding(alg, batch: int, chosen, monkeypatch):
    together = gradients(learned, alg, batch)
    assert set(chosen) == {True}
    # a few steps at a time
    monkeypatch.setattr(parallel, "MOST_POINTS", 60)
    chunked = gradients(learned, alg, batch)
    monkeypatch.setattr(pullback, "pays", lambda *arguments: False)
    apart = gradients(learned, alg, batch)
    for one, two, other in zip(together, chunked, apart, strict=True):
        scale = float(other.abs().max()) + 1e-12
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * scale)
        torch.testing.assert_close(two, other, rtol=1e-12, atol=1e-12 * scale)


def test_a_function_written_for_one_state_vector_goes_step_by_step(chosen):
    def indexing(u, p, t):
        return torch.stack([p.net(u)[0] + torch.sin(t) * p.rate, u[0] * u[1]])

    def stepping(u, p, t):
        return torch.stack([p.net(u)[..., 0] + torch.sin(t) * p.rate, u[..., 0] * u[..., 1]], -1)

    for left, right in zip(gradients(indexing, ude.Tsit5(), 1), gradients(stepping, ude.Tsit5(), 1), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert chosen == [False, False, True, True]


def test_a_function_that_mixes_its_leading_axes_goes_step_by_step(chosen):
    def centered(u, p, t):
        # the mean over everything: with one more axis it would be another mean
        return p.net(u) - p.rate * u.mean()

    gradients(centered, ude.Tsit5(), 1)
    assert set(chosen) == {False}


def test_large_systems_and_large_batches_go_step_by_step(chosen):
    for shape in ((parallel.MOST_STATES + 1,), (parallel.MOST_IN_A_STEP, 1)):
        u0 = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        ude.solve(ude.ODEProblem(lambda u, p, t: -u, u0, (0.0, 1.0)), saveat=1.0).u.sum().backward()
        torch.testing.assert_close(u0.grad, 1 + torch.exp(-torch.ones_like(u0)), rtol=1e-4, atol=0)
    assert chosen == [False, False]
