"""The knots of a forcing are known to the step control: what that saves, where they are looked for, and the switch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import ude
from ude.problems.find_interpolations import interpolations_in

END = 20.0


def wiggles(count: int, kind: str, **options) -> ude.Interpolation:
    generator = torch.Generator().manual_seed(count)
    values = torch.rand(count + 1, generator=generator, dtype=torch.float64)
    return ude.Interpolation(torch.linspace(0.0, END, count + 1, dtype=torch.float64), values, kind, **options)


def oscillator(u, p, t):
    x, v = u.unbind(-1)
    return torch.stack([v, -x - 0.3 * v + p.forcing(t)], -1)


def driven(forcing: ude.Interpolation) -> ude.ODEProblem:
    return ude.ODEProblem(oscillator, [1.0, 0.0], (0.0, END), dict(forcing=forcing))


def run(forcing: ude.Interpolation, tolerance: float = 1e-6, **options) -> ude.Solution:
    return ude.solve(driven(forcing), saveat=[5.0, 12.0, END], abstol=tolerance, reltol=tolerance, **options)


@pytest.mark.parametrize(
    ("kind", "rejected", "calls", "error"),
    # measured with 40 knots at 1e-6, known against unknown: rejected steps 17 of 945 and 0 of 151, calls of f 971 of
    # 8113 and 791 of 2041, errors 6e-6 of 2e-4 and 6e-8 of 8e-5
    [("constant", 0.05, 0.2, 0.1), ("linear", 0.01, 0.5, 0.01)],
)
def test_known_knots_save_rejected_steps_and_calls_and_error(kind, rejected, calls, error):
    truth = run(wiggles(40, kind), 1e-12).u
    known, unknown = run(wiggles(40, kind)), run(wiggles(40, kind, known=False))
    assert int(known.stats.rejected_steps) <= rejected * int(unknown.stats.rejected_steps)
    assert known.stats.nf < calls * unknown.stats.nf
    assert float((known.u - truth).abs().max()) < error * float((unknown.u - truth).abs().max())


def test_knots_are_hit_exactly():
    forcing = wiggles(10, "linear")
    sol = ude.solve(driven(forcing), abstol=1e-6, reltol=1e-6)
    for knot in forcing.knots[0]:
        assert bool((sol.t == knot).any())


@pytest.mark.parametrize(("kind", "count"), [("cubic", 40), ("pchip", 40), ("akima", 40), ("linear", 102)])
def test_smooth_kinds_and_very_many_kinks_are_left_to_the_error_control(kind, count):
    known, unknown = run(wiggles(count, kind)), run(wiggles(count, kind, known=False))
    assert known.stats.nf == unknown.stats.nf
    assert torch.equal(known.u, unknown.u)


def test_many_jumps_are_stops_still():
    known = run(wiggles(200, "constant"), 1e-4)
    assert int(known.stats.accepted_steps) >= 200
    assert int(known.stats.rejected_steps) < 10


def test_stops_of_ones_own_are_added():
    forcing = wiggles(10, "linear")
    sol = ude.solve(driven(forcing), abstol=1e-6, reltol=1e-6, tstops=[3.3])
    assert bool((sol.t == 3.3).any())
    assert bool((sol.t == 4.0).any())


def test_fixed_steps_do_not_stop_by_themselves():
    sol = ude.solve(driven(wiggles(30, "linear")), adaptive=False, dt=0.5)
    assert int(sol.stats.accepted_steps) == 40


def test_knots_outside_the_span_and_at_its_ends_are_no_stops():
    forcing = wiggles(10, "linear")  # every 2.0
    prob = ude.remake(driven(forcing), tspan=(2.0, 4.0))
    plain = ude.solve(prob, abstol=1e-6, reltol=1e-6)
    silent = ude.solve(ude.remake(prob, p=dict(forcing=wiggles(10, "linear", known=False))), abstol=1e-6, reltol=1e-6)
    assert torch.equal(plain.t, silent.t)


def test_backwards_too():
    forcing = wiggles(10, "constant")
    there = ude.solve(driven(forcing), saveat=[END], abstol=1e-10, reltol=1e-10)
    prob = ude.ODEProblem(oscillator, there.u[-1], (END, 0.0), dict(forcing=forcing))
    back = ude.solve(prob, saveat=[0.0], abstol=1e-10, reltol=1e-10)
    torch.testing.assert_close(back.u[-1], torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_ragged_grids_give_every_trajectory_its_own_stops():
    t = [[0.0, 1.0, 2.0, 3.0], [0.0, 0.7, 2.9]]
    values = [[0.0, 1.0, -1.0, 2.0], [1.0, 0.0, 1.0]]
    both = ude.Interpolation(t, values, "constant")
    u0 = torch.ones(2, 1, dtype=torch.float64)
    sol = ude.solve(ude.ODEProblem(lambda u, p, t: p.f(t).unsqueeze(-1) - u, u0, (0.0, 4.0), dict(f=both)))
    for lane, own, other in ((0, 1.0, 0.7), (1, 0.7, 1.0)):
        assert bool((sol.t[lane] == own).any())
        assert not bool((sol.t[lane] == other).any())
        alone = ude.Interpolation(t[lane], values[lane], "constant")
        single = ude.ODEProblem(lambda u, p, t: p.f(t).unsqueeze(-1) - u, u0[lane], (0.0, 4.0), dict(f=alone))
        expected = torch.unique_consecutive(ude.solve(single).t)
        assert torch.equal(torch.unique_consecutive(sol.t[lane]), expected)


FORCING = ude.Interpolation([0.0, 1.0, 2.0], [0.0, 1.0, 0.0], "linear")


def uses_a_global(u, p, t):
    return FORCING(t).unsqueeze(-1) - u


def calls_a_helper(u, p, t):
    return uses_a_global(u, p, t)


def takes_it_first(forcing, u, p, t):
    return forcing(t).unsqueeze(-1) - u


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"forcing": FORCING})

    def forward(self, u, p, t):
        return self.parts["forcing"](t).unsqueeze(-1) - u

    def method(self, u, p, t):
        return self(u, p, t)


def in_a_closure():
    forcing = FORCING
    return lambda u, p, t: forcing(t).unsqueeze(-1) - u


def in_an_inner_function(u, p, t):
    return (lambda: FORCING(t))().unsqueeze(-1) - u


@pytest.mark.parametrize(
    "f",
    [
        uses_a_global,
        calls_a_helper,
        partial(takes_it_first, FORCING),
        Owner(),
        Owner().method,
        in_a_closure(),
        in_an_inner_function,
    ],
    ids=["global", "helper", "partial", "module", "method", "closure", "inner function"],
)
def test_a_forcing_is_found_wherever_f_has_it(f):
    assert interpolations_in(f) == (FORCING,)
    sol = ude.solve(ude.ODEProblem(f, [0.0], (0.0, 2.0)))
    assert bool((sol.t == 1.0).any())


def test_a_forcing_is_found_in_parameters_and_only_once():
    nested = ude.problems.Parameters(a=1.0, inner=[{"net": nn.Sequential(nn.Linear(1, 1)), "f": FORCING}])
    assert interpolations_in(uses_a_global, nested) == (FORCING,)
    assert interpolations_in(lambda u, p, t: u, {"a": torch.ones(3)}) == ()


def test_the_gradient_through_known_knots_is_right():
    values = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    grid = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)

    def end(values: torch.Tensor, **options) -> tuple[torch.Tensor, ude.Interpolation]:
        forcing = ude.Interpolation(grid, values, "constant", trainable=True)
        prob = ude.ODEProblem(lambda u, p, t: p.f(t).unsqueeze(-1) - u, [1.0], (0.0, 4.0), dict(f=forcing))
        return ude.solve(prob, saveat=[4.0], abstol=1e-11, reltol=1e-11, **options).u[0, 0], forcing

    value, forcing = end(values)
    (grad,) = torch.autograd.grad(value, forcing.values)
    # u(4) = e^-4 + sum_i v_i (e^-(4 - t_{i+1}) - e^-(4 - t_i))
    edges = torch.exp(torch.tensor([-4.0, -3.0, -2.0, -1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(grad[0, :, 0], edges.diff(), rtol=1e-9, atol=1e-10)
    exact = edges[0] + (values * edges.diff()).sum()
    assert float(value.detach()) == pytest.approx(float(exact), abs=1e-9)


def test_statistics_of_a_solve_with_stops_are_complete():
    sol = ude.solve(driven(wiggles(5, "constant")), ude.Rodas5P(), saveat=[END])
    assert sol.stats.njacs > 0
    assert sol.stats.nw > 0
