"""What the first call of f shows: right-hand sides that differentiate by themselves, are random, or are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ude
from tests.sensitivities_for_tests import SENSITIVITIES
from ude.errors import EngineRefused, InputError

START = [1.0, 0.5]
SPAN = (0.0, 1.5)
TIGHT: dict[str, Any] = dict(reltol=1e-9, abstol=1e-9)


class Energy(nn.Module):
    """H(q, p), a network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, u: Tensor) -> Tensor:
        value: Tensor = self.net(u).sum()
        return value


def hamiltonian(prepare: Any) -> Any:
    """A Hamiltonian network as it is usually written; `prepare` makes the state that it differentiates by."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        with torch.enable_grad():
            state = prepare(u)
            slope = torch.autograd.grad(p.energy(state), state, create_graph=True)[0]
        return torch.stack([slope[..., 1], -slope[..., 0]], -1)

    return f


def bare(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Without enable_grad and requires_grad_, as under a solver that keeps a graph."""
    slope = torch.autograd.grad(p.energy(u), u, create_graph=True)[0]
    return torch.stack([slope[..., 1], -slope[..., 0]], -1)


def by_hand(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """The same with the derivative of the network written out."""
    first, _, last = p.energy.module.net if hasattr(p.energy, "module") else p.energy.net
    weights = dict(p.energy.tensors) if hasattr(p.energy, "tensors") else dict(p.energy.named_parameters())
    inner = (u @ weights["net.0.weight"].T + weights["net.0.bias"]).tanh()
    slope = ((1 - inner**2) * weights["net.2.weight"][0]) @ weights["net.0.weight"]
    return torch.stack([slope[..., 1], -slope[..., 0]], -1)


FORMS = {
    "in place": hamiltonian(lambda u: u.requires_grad_()),
    "in place, as an argument": hamiltonian(lambda u: u.requires_grad_(True)),
    "bare": bare,
}


def gradients(f: Any, alg: Any, sensealg: Any) -> list[Tensor]:
    energy = Energy()
    u0 = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(f, u0, SPAN, dict(energy=energy))
    u = ude.solve(prob, alg, saveat=[1.0, 1.5], sensealg=sensealg, engine="torch", **TIGHT).u
    loss = (u**2).sum()
    return [u.detach(), *torch.autograd.grad(loss, [u0, *energy.parameters()], allow_unused=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "sensealg",
    [one for one in SENSITIVITIES if one.name != "Autograd"],
    ids=lambda one: one.name,
)
def test_hamiltonian_network_has_the_gradient_of_its_written_out_form(form: str, sensealg: Any) -> None:
    found = gradients(FORMS[form], ude.Tsit5(), sensealg)
    right = gradients(by_hand, ude.Tsit5(), ude.DiscreteAdjoint())
    for one, other in zip(found[:-1], right[:-1], strict=True):  # the last bias shifts H and changes nothing
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "alg", [ude.Vern7(), ude.KenCarp4(), ude.Rodas5P(), ude.FBDF(), ude.AutoTsit5(ude.Rodas5P())], ids=lambda a: a.name
)
def test_every_family_of_methods_solves_a_hamiltonian_network(alg: Any) -> None:
    found, right = gradients(FORMS["in place"], alg, None), gradients(by_hand, alg, None)
    for one, other in zip(found[:-1], right[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_hamiltonian_network_conserves_its_energy() -> None:
    energy = Energy()
    prob = ude.ODEProblem(FORMS["in place"], START, (0.0, 5.0), dict(energy=energy))
    with torch.no_grad():
        u = ude.solve(prob, ude.Tsit5(), saveat=0.5, **TIGHT).u
        values = torch.stack([energy(row) for row in u])
    torch.testing.assert_close(values, values[:1].expand_as(values), rtol=1e-7, atol=1e-7)


def test_state_of_the_solver_is_left_alone() -> None:
    prob = ude.ODEProblem(FORMS["in place"], START, SPAN, dict(energy=Energy()))
    with torch.no_grad():
        sol = ude.solve(prob, ude.Tsit5())
    assert not prob.u0.requires_grad
    assert not sol.u.requires_grad
    assert sol.stats.engine == "torch"


def test_continuous_normalizing_flow_has_the_density_of_its_linear_field() -> None:
    """d log p/dt = -tr(df/dz): for f = A z the log density falls by tr(A) t, and its gradient by A is -t on the
    diagonal."""

    def flow(u: Tensor, p: Any, t: Tensor) -> Tensor:
        with torch.set_grad_enabled(True):
            z = u[..., :2].requires_grad_(True)
            dz = z @ p.matrix.T
            trace = sum(torch.autograd.grad(dz[..., i].sum(), z, create_graph=True)[0][..., i] for i in range(2))
        return torch.cat([dz, -trace[..., None]], -1)

    matrix = torch.tensor([[0.3, -1.0], [1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1.0, 0.0, 0.0], [0.2, -0.4, 0.0]], dtype=torch.float64)
    sol = ude.solve(ude.ODEProblem(flow, z0, (0.0, 2.0), dict(matrix=matrix)), ude.Tsit5(), saveat=[2.0], **TIGHT)
    exact = z0[:, :2] @ torch.matrix_exp(2.0 * matrix.detach()).T
    torch.testing.assert_close(sol.u[:, 0, :2].detach(), exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol.u[:, 0, 2].detach(), torch.full((2,), 0.4, dtype=torch.float64), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(sol.u[0, 0, 2], matrix)
    torch.testing.assert_close(gradient, -2.0 * torch.eye(2, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_fused_engine_refuses_it_and_auto_runs_it() -> None:
    prob = ude.ODEProblem(FORMS["in place"], START, SPAN, dict(energy=Energy()))
    with pytest.raises(EngineRefused):
        ude.solve(prob, ude.Tsit5(), engine="fused")
    assert bool(ude.solve(prob, ude.Tsit5()).success)


def test_tensor_captured_beside_an_own_derivative_is_still_refused() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.requires_grad_()
            slope = torch.autograd.grad((scale * u**2).sum(), u, create_graph=True)[0]
        return -slope

    with pytest.raises(InputError, match="f depends on trainable tensors that are not in p"):
        ude.solve(ude.ODEProblem(f, [1.0], SPAN), ude.Tsit5())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_own_derivative_that_is_cut_off_is_refused_where_a_gradient_is_asked_for(dtype: torch.dtype) -> None:
    cut = hamiltonian(lambda u: u.detach().requires_grad_())
    u0 = torch.tensor(START, dtype=dtype)
    prob = ude.ODEProblem(cut, u0, SPAN, dict(energy=Energy().to(dtype)))
    with torch.no_grad():
        assert bool(ude.solve(prob, ude.Tsit5()).success)
    with pytest.raises(
        InputError, match=r"f must keep the graph of the derivative that it takes.* got 0\. Write u\.req"
    ):
        ude.solve(prob, ude.Tsit5())
    whole = ude.remake(prob, f=FORMS["in place"])
    assert bool(ude.solve(whole, ude.Tsit5()).success)


@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.BatchNorm1d(2)], ids=lambda x: str(x)[:12])
def test_layers_in_training_mode_are_refused_and_work_in_evaluation_mode(layer: nn.Module, batch: tuple[int]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), layer.train()).double()
    u0 = torch.rand(*batch, 2, dtype=torch.float64)

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return p.net(u.reshape(-1, 2)).reshape(u.shape)  # type: ignore[no-any-return]

    prob = ude.ODEProblem(f, u0, SPAN, dict(net=net))
    name = type(layer).__name__
    with pytest.raises(InputError, match=rf"the same value for the same arguments: {name} in training mode\. Put the"):
        ude.solve(prob, ude.Tsit5())
    net.eval()
    assert bool(ude.solve(prob, ude.Tsit5()).success.all())


@pytest.mark.parametrize(
    "noise",
    [
        torch.randn_like,
        lambda u: nn.functional.dropout(u, 0.5, training=True),
        lambda u: torch.bernoulli(torch.full_like(u, 0.5)),
    ],
)
def test_random_numbers_in_f_are_refused(noise: Any) -> None:
    prob = ude.ODEProblem(lambda u, p, t: noise(u), START, SPAN)
    with pytest.raises(InputError, match="f must give the same value for the same arguments: an f that draws random"):
        ude.solve(prob, ude.Tsit5())


def test_f_that_seeds_its_random_numbers_is_a_function() -> None:
    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return -u * torch.rand(2, dtype=u.dtype)

    assert bool(ude.solve(ude.ODEProblem(f, START, SPAN), ude.Tsit5()).success)


def test_own_errors_of_f_pass_unchanged() -> None:
    class Mine(Exception):
        pass

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        raise Mine("stop")

    with pytest.raises(Mine, match="stop"):
        ude.solve(ude.ODEProblem(f, START, SPAN), ude.Tsit5())


def test_error_inside_f_keeps_its_cause() -> None:
    with pytest.raises(InputError, match=r"f\(u, p, t\) must work for u of shape \(2,\)") as raised:
        ude.solve(ude.ODEProblem(lambda u, p, t: u @ torch.ones(3, dtype=u.dtype), START, SPAN), ude.Tsit5())
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_one_bad_trajectory_of_a_batch_is_data_and_all_bad_ones_are_an_error() -> None:
    u0 = torch.tensor([[1.0], [float("nan")]], dtype=torch.float64)
    prob = ude.ODEProblem(lambda u, p, t: -u, u0, SPAN)
    assert ude.solve(prob, ude.Tsit5()).success.tolist() == [True, False]
    with pytest.raises(InputError, match=r"u0 must be finite: nan at index 0, 0\."):
        ude.solve(ude.remake(prob, u0=u0[1:]), ude.Tsit5())
