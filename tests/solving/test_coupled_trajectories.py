"""States of several axes, trajectories that share their steps, and right-hand sides that couple trajectories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ude
from tests.sensitivities_for_tests import SENSITIVITIES
from ude.errors import EngineRefused, InputError

NODES, FEATURES = 6, 2
ENGINES = ["torch", "fused", "torchdiffeq"]
PATH = torch.diag(torch.ones(NODES - 1, dtype=torch.float64), 1)
# minus the graph Laplacian of a path of nodes
LAPLACIAN = PATH + PATH.T - torch.diag((PATH + PATH.T).sum(0))
TIGHT: dict[str, Any] = dict(reltol=1e-10, abstol=1e-10)


def diffusion(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return p.rate[..., None, None] * (LAPLACIAN @ u)


def start(*batch: int) -> Tensor:
    return torch.linspace(-1.0, 2.0, NODES * FEATURES, dtype=torch.float64).sin().reshape(NODES, FEATURES).expand(
        *batch, NODES, FEATURES
    ) + 0.1 * torch.arange(torch.Size(batch).numel(), dtype=torch.float64).reshape(*batch, 1, 1)


def algorithm(engine: str) -> Any:
    return ude.TorchDiffEq("dopri5") if engine == "torchdiffeq" else ude.Tsit5()


def exact(u0: Tensor, rate: float, t: float) -> Tensor:
    return torch.matrix_exp(rate * t * LAPLACIAN) @ u0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_a_graph_is_one_state(engine: str, batch: tuple[int, ...]) -> None:
    u0 = start(*batch)
    prob = ude.ODEProblem(diffusion, u0, (0.0, 1.0), dict(rate=0.7), state_dims=2)
    sol = ude.solve(prob, algorithm(engine), saveat=[0.5, 1.0], engine=engine, **TIGHT)
    assert sol.u.shape == (*batch, 2, NODES, FEATURES)
    assert sol.batch == batch
    assert sol.retcode is not None
    assert bool(sol.success.all())
    torch.testing.assert_close(sol[-1], exact(u0, 0.7, 1.0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol[0], exact(u0, 0.7, 0.5), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.KenCarp4(), ude.Rodas5P(), ude.FBDF(), ude.AutoTsit5(ude.Rodas5P())])
def test_dense_output_and_single_trajectories_have_the_axes_of_the_state(alg: Any) -> None:
    u0 = start(3)
    sol = ude.solve(
        ude.ODEProblem(diffusion, u0, (0.0, 1.0), dict(rate=0.7), state_dims=2), alg, reltol=1e-9, abstol=1e-9
    )
    torch.testing.assert_close(sol(0.3), exact(u0, 0.7, 0.3), rtol=1e-5, atol=1e-5)
    assert sol([0.3, 0.4]).shape == (3, 2, NODES, FEATURES)
    one = sol.trajectory(1)
    assert one.u.shape[1:] == (NODES, FEATURES)
    assert one.batch == ()
    torch.testing.assert_close(one(0.3), sol(0.3)[1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_the_matrix_exponential(engine: str, shared: bool) -> None:
    u0, rate = start().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    dims = None if shared else 2
    prob = ude.ODEProblem(diffusion, u0, (0.0, 1.0), dict(rate=rate), state_dims=dims)
    sol = ude.solve(prob, algorithm(engine), saveat=[1.0], engine=engine, shared_steps=shared, **TIGHT)
    weights = torch.linspace(0.0, 1.0, NODES * FEATURES, dtype=torch.float64).reshape(NODES, FEATURES)
    end = sol.u[0] if dims else sol.u[:, 0]
    found = torch.autograd.grad((weights * end).sum(), (u0, rate))
    wanted = torch.autograd.grad((weights * (torch.matrix_exp(rate * LAPLACIAN) @ u0)).sum(), (u0, rate))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sensealg", [*SENSITIVITIES, ude.DiscreteAdjoint(checkpoints=2)], ids=lambda one: one.name)
def test_every_sensitivity_takes_a_state_of_two_axes(sensealg: Any) -> None:
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(diffusion, start(2), (0.0, 1.0), dict(rate=rate), state_dims=2)
    sol = ude.solve(prob, ude.Tsit5(), saveat=[1.0], sensealg=sensealg, **TIGHT)
    (found,) = torch.autograd.grad(sol.u.square().sum(), rate)
    (wanted,) = torch.autograd.grad((torch.matrix_exp(rate * LAPLACIAN) @ start(2)).square().sum(), rate)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_shared_steps_solve_coupled_trajectories(engine: str) -> None:
    prob = ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=0.7))
    sol = ude.solve(prob, algorithm(engine), saveat=[0.5, 1.0], engine=engine, shared_steps=True, **TIGHT)
    assert sol.u.shape == (NODES, 2, FEATURES)
    assert sol.success.shape == (NODES,)
    torch.testing.assert_close(sol[-1], exact(start(), 0.7, 1.0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol(0.5), exact(start(), 0.7, 0.5), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol.trajectory(4).u[-1], exact(start(), 0.7, 1.0)[4], rtol=1e-8, atol=1e-8)
    assert len(set(sol.stats.accepted_steps.tolist())) == 1


def test_shared_steps_give_f_the_batch_that_it_was_written_for() -> None:
    """f sees t and the parameters of each trajectory as without shared steps, and the answer is the same."""
    k = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    prob = ude.ODEProblem(
        lambda u, p, t: -p.k[:, None] * u + t.cos()[:, None], [[1.0], [2.0], [3.0]], (0.0, 2.0), dict(k=k)
    )
    alone = ude.solve(prob, ude.Tsit5(), saveat=0.5, **TIGHT)
    together = ude.solve(prob, ude.Tsit5(), saveat=0.5, shared_steps=True, **TIGHT)
    torch.testing.assert_close(together.u, alone.u, rtol=1e-8, atol=1e-8)
    assert together.t.shape == alone.t.shape
    assert len(set(together.stats.accepted_steps.tolist())) == 1 < len(set(alone.stats.accepted_steps.tolist()))


class Mix(nn.Module):
    """A graph network as it is written everywhere: nodes are rows, features the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES, dtype=torch.float64)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.tanh(self.layer(LAPLACIAN @ u))


class Attention(nn.Module):
    state_dims = 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(FEATURES, 1, batch_first=True, dtype=torch.float64)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        rows = u.reshape(-1, NODES, FEATURES)
        return self.layer(rows, rows, rows)[0].reshape(u.shape)


def test_a_module_says_by_an_attribute_that_its_state_has_two_axes() -> None:
    prob = ude.ODEProblem(Attention(), start(2), (0.0, 0.5))
    sol = ude.solve(prob, ude.Tsit5(), saveat=[0.5])
    assert sol.batch == (2,)
    assert sol.u.shape == (2, 1, NODES, FEATURES)
    one = ude.solve(ude.remake(prob, u0=start(2)[1]), ude.Tsit5(), saveat=[0.5])
    torch.testing.assert_close(sol.u[1], one.u, rtol=1e-6, atol=1e-6)


COUPLED = {
    "graph": lambda u, p, t: LAPLACIAN @ u - 0.1 * u**3,
    "one edge": lambda u, p, t: torch.cat([u[:1] + u[-1:], -u[1:]]),
    "mean over the batch": lambda u, p, t: -(u - u.mean(0)),
    "attention": lambda u, p, t: torch.softmax(u @ u.mT, -1) @ u,
    "convolution": lambda u, p, t: (
        nn.functional.conv1d(u.T[:, None], torch.ones(1, 1, 3, dtype=torch.float64), padding=1)[:, 0].T
    ),
    "cumulative sum": lambda u, p, t: -u.cumsum(0),
    "sorted": lambda u, p, t: u - u.roll(1, 0),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("engine", ["auto", "torch", "fused"])
def test_coupled_trajectories_are_refused_with_both_remedies(name: str, engine: str) -> None:
    prob = ude.ODEProblem(COUPLED[name], start(), (0.0, 1.0))
    with pytest.raises(InputError, match=r"must not depend on another.*state_dims=2.*shared_steps=True"):
        ude.solve(prob, ude.Tsit5(), engine=engine)
    # the remedies work
    ude.solve(prob, ude.Tsit5(), shared_steps=True)
    ude.solve(ude.remake(prob, state_dims=2), ude.Tsit5())


def test_a_network_over_rows_is_refused_too() -> None:
    with pytest.raises(InputError, match="must not depend on another"):
        ude.solve(ude.ODEProblem(Mix(), start(), (0.0, 1.0)), ude.Tsit5())


@pytest.mark.parametrize("count", [2, 3, 64, 200])
def test_independent_trajectories_are_not_refused(count: int) -> None:
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    u0 = (
        torch.linspace(-1.0, 1.0, 2 * count, dtype=torch.float64).reshape(count, 2)
        * torch.logspace(-3, 3, count)[:, None]
    )
    prob = ude.ODEProblem(
        lambda u, p, t: p.net(u) - u * p.k[:, None], u0, (0.0, 0.1), dict(net=net, k=torch.rand(count))
    )
    assert bool(ude.solve(prob, ude.Tsit5()).success.all())


def test_the_check_is_made_once_for_each_function() -> None:
    calls = 0

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -u

    prob = ude.ODEProblem(f, torch.ones(4, 1, dtype=torch.float64), (0.0, 1.0))
    counts = []
    for _ in range(3):
        calls = 0
        sol = ude.solve(prob, ude.Tsit5(), engine="torch")
        counts.append(calls - sol.stats.nf)
    assert counts[1] == counts[2] <= 1 < counts[0]


def test_a_random_right_hand_side_is_told_from_a_coupled_one() -> None:
    prob = ude.ODEProblem(lambda u, p, t: -u * torch.rand_like(u), start(), (0.0, 1.0))
    with pytest.raises(InputError, match="f must give the same value for the same arguments"):
        ude.solve(prob, ude.Tsit5())


def test_events_see_the_axes_of_the_state() -> None:
    seen = []

    def condition(u: Tensor, p: Any, t: Tensor) -> Tensor:
        seen.append(u.shape)
        return t - 0.5

    def halve(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return u / 2

    prob = ude.ODEProblem(diffusion, start(2), (0.0, 1.0), dict(rate=0.7), state_dims=2)
    sol = ude.solve(prob, ude.Tsit5(), saveat=[1.0], callback=ude.ContinuousCallback(condition, halve), **TIGHT)
    assert set(seen) == {torch.Size([2, NODES, FEATURES])}
    torch.testing.assert_close(sol[-1], exact(start(2), 0.7, 1.0) / 2, rtol=1e-8, atol=1e-8)


def test_conditions_on_steps_see_the_axes_of_the_state() -> None:
    shapes = set()

    def outside(u: Tensor, p: Any, t: Tensor) -> Tensor:
        shapes.add((u.shape, t.shape))
        return (u.abs() > 1e3).flatten(1).any(-1)

    prob = ude.ODEProblem(diffusion, start(2), (0.0, 1.0), dict(rate=0.7), state_dims=2)
    assert bool(ude.solve(prob, ude.Tsit5(), isoutofdomain=outside).success.all())
    shared = ude.ODEProblem(lambda u, p, t: -u, torch.ones(3, 2, dtype=torch.float64), (0.0, 1.0))
    norm = lambda error, t: error.square().mean(-1).sqrt()  # noqa: E731
    worst = ude.solve(shared, ude.Tsit5(), shared_steps=True, internalnorm=norm)
    assert shapes == {(torch.Size([2, NODES, FEATURES]), torch.Size([2]))}
    assert worst.success.tolist() == [True] * 3


def test_ensembles_batch_variants_of_a_graph() -> None:
    prob = ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=0.7), state_dims=2)
    many = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, u0=start() * (i + 1)))
    found = ude.solve(many, ude.Tsit5(), trajectories=3, saveat=[1.0], **TIGHT)
    assert found.batches == 1
    torch.testing.assert_close(found[2].u[0], 3 * exact(start(), 0.7, 1.0), rtol=1e-8, atol=1e-8)


def test_the_steady_state_of_a_graph_has_its_axes() -> None:
    source = torch.arange(NODES * FEATURES, dtype=torch.float64).reshape(NODES, FEATURES)
    operator = LAPLACIAN - torch.eye(NODES, dtype=torch.float64)
    prob = ude.SteadyStateProblem(lambda u, p, t: operator @ u + source, start(), state_dims=2)
    for alg in (ude.steady_state.SSRootfind(), ude.steady_state.DynamicSS()):
        sol = ude.solve(prob, alg)
        torch.testing.assert_close(sol[-1], torch.linalg.solve(-operator, source), rtol=1e-3, atol=1e-3)


def test_plots_have_a_curve_for_each_number_of_a_state() -> None:
    prob = ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=0.7), names="a, b", state_dims=2)
    sol = ude.solve(prob, ude.Tsit5(), saveat=0.5)
    assert sol["b"].shape == (3, NODES)
    labels = [line.get_label() for line in sol.plot().axes[0].lines]
    assert "a[0]" in labels
    assert "b[5]" in labels


MISTAKES = [
    (lambda: ude.ODEProblem(diffusion, start(), (0.0, 1.0), state_dims=3), "state_dims must be a number of axes of u0"),
    (lambda: ude.ODEProblem(diffusion, start(), (0.0, 1.0), state_dims=0), "from 1 to 2"),
    (lambda: ude.ODEProblem(diffusion, start(), (0.0, 1.0), state_dims=True), "state_dims must be a number"),
    (lambda: ude.ODEProblem(diffusion, start(), (0.0, torch.ones(NODES)), state_dims=2), r"a number or shape \(\)"),
    (
        lambda: ude.solve(
            ude.ODEProblem(diffusion, start(), (0.0, torch.rand(NODES) + 1), dict(rate=1.0)),
            ude.Tsit5(),
            shared_steps=True,
        ),
        "trajectories that share their steps start and end together",
    ),
    (
        lambda: ude.solve(
            ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=1.0)),
            ude.Tsit5(),
            shared_steps=True,
            callback=ude.ContinuousCallback(lambda u, p, t: u[..., 0], lambda u, p, t: u),
        ),
        "callbacks act on one trajectory of a batch",
    ),
    (
        lambda: ude.solve(
            ude.ODEProblem(
                ude.ODEFunction(diffusion, jac=lambda u, p, t: u), start(), (0.0, 1.0), dict(rate=1.0), state_dims=2
            ),
            ude.KenCarp4(),
        ),
        "matrices over states of one axis",
    ),
    (
        lambda: ude.solve(
            ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=1.0), state_dims=2),
            ude.Tsit5(),
            abstol=[1.0, 2.0, 3.0],
        ),
        r"a number or shape \(6, 2\)",
    ),
    (
        lambda: ude.solve(
            ude.SecondOrderODEProblem(lambda v, u, p, t: -u, start(), start(), (0.0, 1.0)),
            ude.Tsit5(),
            shared_steps=True,
        ),
        "a partitioned problem has states of one axis",
    ),
    (
        lambda: ude.solve(ude.ODEProblem(lambda u, p, t: u[0], start(), (0.0, 1.0), state_dims=2), ude.Tsit5()),
        r"must return the shape of u: expected \(6, 2\), got \(2,\)",
    ),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_mistakes_are_named(mistake: Any, message: str) -> None:
    with pytest.raises((InputError, EngineRefused), match=message):
        mistake()


def test_tolerances_may_have_the_shape_of_the_state() -> None:
    loose = torch.full((NODES, FEATURES), 1e-3, dtype=torch.float64)
    prob = ude.ODEProblem(diffusion, start(), (0.0, 1.0), dict(rate=0.7), state_dims=2)
    sol = ude.solve(prob, ude.Tsit5(), abstol=loose, reltol=loose)
    assert int(sol.stats.accepted_steps) <= int(ude.solve(prob, ude.Tsit5(), **TIGHT).stats.accepted_steps)
