"""Switches of f: the time at which one happens moves with the parameters, and the gradient knows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ude
from tests.sensitivities_for_tests import SENSITIVITIES
from ude.errors import EngineRefused, InputError

DOUBLE = torch.float64
ALL = [*SENSITIVITIES, ude.DiscreteAdjoint(checkpoints=3)]
METHODS = [ude.Tsit5(), ude.Vern7(), ude.Rodas5P(), ude.KenCarp4(), ude.FBDF(), ude.AutoTsit5(ude.Rodas5P())]

#: f, its parameters, and u(2) from u(0) = 1 in closed form.
Case = tuple[Callable[..., Tensor], dict[str, float], Callable[..., Tensor]]
CASES: dict[str, Case] = {
    "where": (
        lambda u, p, t: torch.where(t > p.lag, -p.k * u, 0.0 * u),
        dict(lag=0.75, k=0.9),
        lambda lag, k: torch.exp(-k * (2 - lag)),
    ),
    "heaviside": (
        lambda u, p, t: -torch.heaviside(t - p.lag, torch.ones((), dtype=DOUBLE)) * u,
        dict(lag=0.7),
        lambda lag: torch.exp(lag - 2),
    ),
    "sign": (lambda u, p, t: u * torch.sign(p.s - 2 * t), dict(s=1.3), lambda s: torch.exp(s / 2 - (2 - s / 2))),
    "a mask times a number": (
        lambda u, p, t: p.h * (t >= p.a) * u,
        dict(a=0.3, h=-0.5),
        lambda a, h: (h * (2 - a)).exp(),
    ),
    "a pulse": (
        lambda u, p, t: torch.where((t > p.a) & (t < p.a + p.w), p.h, 0.0) - u,
        dict(a=0.5, w=0.01, h=3.0),
        lambda a, w, h: math.exp(-2) + h * (torch.exp(a + w - 2) - torch.exp(a - 2)),
    ),
    "floor division": (
        lambda u, p, t: -(t // p.period) * u,
        dict(period=0.7),
        lambda period: torch.exp(3 * period - 4),
    ),
    "floor division in a comparison": (
        lambda u, p, t: torch.where(t // p.period <= 1.5, p.c, 0.0) + 0.0 * u,
        dict(period=0.7, c=0.9),
        lambda period, c: 1 + 2 * period * c,
    ),
    "doses": (
        lambda u, p, t: torch.where(t % p.period < p.w, 1.0, 0.0) + 0.0 * u,
        dict(period=0.7, w=0.2),
        lambda period, w: 1 + 3 * w + 0 * period,
    ),
    "a square wave": (
        lambda u, p, t: torch.where(torch.sin(p.w * t) > 0, 1.0, -1.0) + 0.0 * u,
        dict(w=4.0),
        lambda w: 1 + 2 - 2 * torch.pi / w,
    ),
    "a switch to an integer": (
        lambda u, p, t: (p.c * t).long() + 0.0 * u,
        dict(c=1.2),
        lambda c: 1 + 2 * 2 - 1 / c - 2 / c,
    ),
    "a nested switch": (
        lambda u, p, t: torch.where(t < p.a, 1.0, torch.where(t < p.b, -2.0, 0.5)) + 0.0 * u,
        dict(a=0.4, b=1.1),
        lambda a, b: 1 + a - 2 * (b - a) + 0.5 * (2 - b),
    ),
}


def solved(
    case: Case, alg: ude.methods.Algorithm, engine: str = "auto", **options: object
) -> tuple[Tensor, list[Tensor]]:
    f, numbers, _ = case
    p = {name: torch.tensor(value, dtype=DOUBLE, requires_grad=True) for name, value in numbers.items()}
    prob = ude.ODEProblem(f, [1.0], (0.0, 2.0), p)
    sol = ude.solve(prob, alg, saveat=[2.0], reltol=1e-9, abstol=1e-9, engine=engine, **options)
    end = sol.u[-1, 0]
    return end.detach(), list(torch.autograd.grad(end, list(p.values())))


def exact(case: Case) -> tuple[Tensor, list[Tensor]]:
    _, numbers, closed = case
    p = {name: torch.tensor(value, dtype=DOUBLE, requires_grad=True) for name, value in numbers.items()}
    end = closed(**p)
    return end.detach(), list(torch.autograd.grad(end, list(p.values())))


def require_equal(case: Case, found: tuple[Tensor, list[Tensor]]) -> None:
    end, gradient = exact(case)
    assert float(found[0]) == pytest.approx(float(end), abs=3e-7)
    assert torch.stack(found[1]).tolist() == pytest.approx(torch.stack(gradient).tolist(), abs=3e-7)


@pytest.mark.parametrize("sensealg", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize("name", CASES)
def test_the_time_of_a_switch_moves_with_its_parameters(name: str, sensealg: ude.sensitivity.SensitivityAlgorithm):
    require_equal(CASES[name], solved(CASES[name], ude.Tsit5(), sensealg=sensealg))


@pytest.mark.parametrize("alg", METHODS[1:], ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["where", "heaviside", "a pulse"])
def test_every_method_stops_at_switches(name: str, alg: ude.methods.Algorithm):
    require_equal(CASES[name], solved(CASES[name], alg))


def test_a_fixed_step_stops_at_a_switch_that_moves():
    require_equal(CASES["where"], solved(CASES["where"], ude.Vern7(), dt=0.1, adaptive=False))


def test_every_trajectory_of_a_batch_has_its_own_switch():
    lag = torch.tensor([0.3, 1.1, 1.9, 5.0], dtype=DOUBLE, requires_grad=True)
    late = torch.tensor([0.0, 0.5, 0.2, 0.1], dtype=DOUBLE)
    f = lambda u, p, t: torch.where((t > p.lag)[..., None], -u, 0.0 * u)  # noqa: E731
    prob = ude.ODEProblem(f, torch.ones(4, 2, dtype=DOUBLE), (late, late + 2.0), dict(lag=lag))
    end = ude.solve(prob, ude.Tsit5(), reltol=1e-10, abstol=1e-10).u[:, -1]
    on = (late + 2.0 - lag).clamp(min=0.0)
    true = torch.exp(-on)
    assert torch.allclose(end, true.unsqueeze(-1).expand(4, 2), atol=1e-8)
    assert torch.autograd.grad(end.sum(), lag)[0].tolist() == pytest.approx((2 * true * (on > 0)).tolist(), abs=1e-8)


def test_a_switch_backwards_in_time():
    lag = torch.tensor(0.75, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: torch.where(t > p.lag, -u, 0.0 * u), [1.0], (2.0, 0.0), dict(lag=lag))
    end = ude.solve(prob, ude.Tsit5(), reltol=1e-10, abstol=1e-10).u[-1, 0]
    assert float(end.detach()) == pytest.approx(math.exp(1.25), abs=1e-8)
    assert float(torch.autograd.grad(end, lag)[0]) == pytest.approx(-math.exp(1.25), abs=1e-8)


def test_switches_of_several_components_at_several_times():
    lags = torch.tensor([0.4, 0.9, 1.3], dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: (t > p.lags).to(u.dtype), [0.0, 0.0, 0.0], (0.0, 2.0), dict(lags=lags))
    end = ude.solve(prob, ude.Tsit5()).u[-1]
    assert end.tolist() == pytest.approx([1.6, 1.1, 0.7], abs=1e-9)
    (gradient,) = torch.autograd.grad(end @ torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), lags)
    assert gradient.tolist() == pytest.approx([-1.0, -2.0, -3.0], abs=1e-9)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("width", [0.1, 1e-3, 1e-6])
def test_a_pulse_shorter_than_every_step_is_not_jumped_over(width: float, engine: str):
    on, off = 57.3, 57.3 + width
    f = lambda u, p, t: torch.where((t > on) & (t < off), 1.0 / width, 0.0) - 0.01 * u  # noqa: E731
    sol = ude.solve(ude.ODEProblem(f, [0.0], (0.0, 100.0)), ude.Tsit5(), engine=engine)
    assert float(sol.u[-1, 0]) == pytest.approx(
        100 / width * (math.exp(-1 + off / 100) - math.exp(-1 + on / 100)), rel=1e-3
    )


def test_a_fused_solve_by_name_says_that_it_may_pass_a_pulse():
    prob = ude.ODEProblem(
        lambda u, p, t: torch.where((t > 57.3) & (t < 57.4), 1.0, 0.0) - 0.01 * u, [0.0], (0.0, 100.0)
    )
    sol = ude.solve(prob, ude.Tsit5(), engine="fused")
    assert sol.notes == ("f has switches in time at which this solve does not stop, and may pass them unseen.",)


def test_the_fused_engine_does_not_differentiate_past_a_switch_that_moves():
    with pytest.raises(EngineRefused, match="events and stops"):
        solved(CASES["where"], ude.Tsit5(), engine="fused")


def test_knots_of_an_interpolation_are_not_switches():
    forcing = ude.Interpolation(torch.linspace(0, 2, 200), torch.rand(200), kind="cubic")
    prob = ude.ODEProblem(lambda u, p, t: forcing(t).unsqueeze(-1) - u, [1.0], (0.0, 2.0))
    sol = ude.solve(prob, ude.Tsit5(), engine="torch")
    assert sol.notes == ()
    assert int(sol.stats.accepted_steps) < 100


# -- switches of the state ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sensealg", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "f",
    [
        lambda u, p, t: torch.where(u > p.k, -2.0 * u, -u),
        lambda u, p, t: -p.k * u * torch.heaviside(u - 0.6, torch.zeros((), dtype=DOUBLE)) - 0.1,
        lambda u, p, t: -p.k * torch.ceil(2 * u),
        lambda u, p, t: -p.k * (1 + torch.where(u > 0.6, t, 2 * t)),  # which does not jump at t = 0
        lambda u, p, t: -p.k * (torch.sign(u - 0.5) + 2),
    ],
)
def test_passing_a_switch_of_the_state_is_refused_with_the_remedy(f, sensealg):
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(f, [1.0], (0.0, 2.0), dict(k=k))
    with pytest.raises(InputError, match=r"the state passes a switch of f .*test_switches.py.* ude.ContinuousCallback"):
        ude.solve(prob, ude.Tsit5(), sensealg=sensealg)
    with torch.no_grad():
        assert "f jumps where the state passes a switch" in ude.solve(prob, ude.Tsit5()).notes[0]


@pytest.mark.parametrize(
    "f",
    [
        lambda u, p, t: -p.k * torch.where(u > 0.6, u, 0.6 + 0 * u),
        lambda u, p, t: -p.k * u * torch.sign(u - 5.0) ** 2,
        lambda u, p, t: -p.k * torch.relu(u - 0.5) - 0.2,
        lambda u, p, t: -p.k * (u - 0.6) * torch.sign(u - 0.6) - 0.1,
        lambda u, p, t: -p.k * torch.where(u > 3.0, 7.0 * u, 1.0 + 0.0 * u),
    ],
)
def test_kinks_and_switches_that_are_not_passed_are_differentiated(f):
    def end(k: Tensor) -> Tensor:
        prob = ude.ODEProblem(f, [1.0], (0.0, 1.0), dict(k=k))
        return ude.solve(prob, ude.Tsit5(), reltol=1e-10, abstol=1e-10).u[-1, 0]

    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(k), k)
    with torch.no_grad():
        difference = (end(k + 1e-4) - end(k - 1e-4)) / 2e-4
    # the step across a kink is as long as its error allows, and its derivative is known to the order of its length
    assert float(gradient) == pytest.approx(float(difference), abs=2e-4)


def test_a_switch_that_python_decides_is_refused_where_it_moves():
    lag = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: -u if t > p.lag else 0.0 * u, [1.0], (0.0, 2.0), dict(lag=lag))
    with pytest.raises(InputError, match=r"f decides by the value of p.lag in Python.*torch.where"):
        ude.solve(prob, ude.Tsit5())
    with torch.no_grad():
        assert "f takes p.lag and t out of torch by __bool__()" in ude.solve(prob, ude.Tsit5()).notes[0]
