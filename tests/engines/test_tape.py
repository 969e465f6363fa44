"""Steps whose graph was kept give the gradient of steps computed again, and the same states."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

import ude

tape = importlib.import_module("ude.engines.torch_engine.tape")
parallel = importlib.import_module("ude.engines.torch_engine.parallel_pullback")
pullback = importlib.import_module("ude.engines.torch_engine.pullback")
METHODS = [ude.BS3(), ude.Tsit5(), ude.RK4(), ude.Vern7(), ude.DP8()]


@pytest.fixture(autouse=True)
def large(monkeypatch) -> None:
    """Every solve counts as large."""
    monkeypatch.setattr(parallel, "MOST_IN_A_STEP", 0)


@pytest.fixture
def pulled(monkeypatch) -> list[int]:
    """Rows pulled back through a kept graph."""
    rows: list[int] = []
    original = pullback.pull_taped

    def noting(*arguments):
        rows.append(arguments[-1][1])
        return original(*arguments)

    monkeypatch.setattr(pullback, "pull_taped", noting)
    return rows


def solved(alg, *, stretched: bool = False) -> tuple[Tensor, list[Tensor]]:
    """States and gradients of five trajectories; when stretched, some are stiffer and their steps are rejected."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    rate = torch.tensor([0.3, 0.5, 0.7, 0.9, 40.0 if stretched else 1.1], dtype=torch.float64).requires_grad_()
    u0 = torch.rand(5, 2, dtype=torch.float64).requires_grad_()

    def f(u, p, t):
        return p.net(u) + (torch.sin(t * p.rate) * p.rate).unsqueeze(-1)

    prob = ude.ODEProblem(f, u0, (0.0, 3.0), dict(net=net, rate=rate))
    fixed = {"adaptive": False, "dt": 0.1} if alg.name == "RK4" else {}
    sol = ude.solve(prob, alg, saveat=[0.0, 0.7, 0.7, 1.5, 3.0], abstol=1e-7, reltol=1e-7, **fixed)
    loss = (sol.u**2).sum() + sol(1.234).prod()
    return sol.u.detach(), list(torch.autograd.grad(loss, [u0, rate, *net.parameters()]))


@pytest.mark.parametrize("stretched", [False, True])
@pytest.mark.parametrize("alg", METHODS, ids=lambda alg: alg.name)
def test_kept_graphs_give_the_gradient_of_steps_computed_again(alg, stretched: bool, pulled, monkeypatch):
    u, kept = solved(alg, stretched=stretched)
    assert pulled
    count = len(pulled)
    monkeypatch.setattr(tape, "MOST_BYTES", 0)
    same, again = solved(alg, stretched=stretched)
    assert len(pulled) == count
    assert torch.equal(u, same)
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12 * float(other.abs().max()) + 1e-14)


def test_no_more_graphs_are_kept_than_there_is_room_for(pulled, monkeypatch):
    _, every = solved(ude.Tsit5())
    count = len(set(pulled))
    pulled.clear()
    monkeypatch.setattr(tape, "MOST_BYTES", 20_000)
    _, some = solved(ude.Tsit5())
    assert 0 < len(set(pulled)) < count
    for one, other in zip(every, some, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_graphs_take_no_more_memory_than_they_may(monkeypatch):
    budget = 2**20
    monkeypatch.setattr(tape, "MOST_BYTES", budget)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    p = torch.rand(1000, 1, dtype=torch.float64).requires_grad_()
    u0 = torch.ones(1000, 3, dtype=torch.float64)
    prob = ude.ODEProblem(lambda u, p, t: torch.tanh(-p * u), u0, (0.0, 5.0), p)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sol = ude.solve(prob, ude.Tsit5(), dt=0.05, adaptive=False, saveat=[5.0])
    # a hundred steps of six stages of one tanh would take 20 MB
    assert budget / 4 < sum(held.values()) <= budget + 2 * u0.nbytes
    assert bool(sol.success.all())


def test_a_step_that_one_trajectory_rejected_keeps_no_graph(pulled):
    prob = ude.ODEProblem(
        lambda u, p, t: -p * u, torch.ones(2, 1), (0.0, 1.0), torch.tensor([[1.0], [500.0]]).requires_grad_()
    )
    sol = ude.solve(prob, ude.Tsit5(), dt=0.1, saveat=[1.0], abstol=1e-8, reltol=1e-8)
    assert int(sol.stats.rejected_steps[1]) > 0
    sol.u.sum().backward()
    assert 0 not in pulled


def test_a_solution_can_be_differentiated_twice_over(pulled):
    torch.manual_seed(0)
    p = torch.rand(4, 1, dtype=torch.float64).requires_grad_()
    prob = ude.ODEProblem(lambda u, p, t: -p * u, torch.ones(4, 1, dtype=torch.float64), (0.0, 1.0), p)
    sol = ude.solve(prob, ude.Tsit5(), saveat=[1.0], abstol=1e-9, reltol=1e-9)
    (first,) = torch.autograd.grad(sol.u.sum(), p, retain_graph=True)
    (second,) = torch.autograd.grad(sol.u.sum(), p)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    torch.testing.assert_close(first, -torch.exp(-p.detach()), rtol=1e-7, atol=0)


def test_without_a_gradient_no_graph_is_kept(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a tape was made")

    monkeypatch.setattr(tape.Tape, "__init__", refuse)
    with torch.no_grad():
        u, _ = ude.solve(
            ude.ODEProblem(lambda u, p, t: -u, torch.ones(3, 2), (0.0, 1.0)), ude.Tsit5(), saveat=[0.5, 1.0]
        ).u.unbind(1)
    assert u.shape == (3, 2)
