"""Callbacks: event times against closed forms, jumps, doses, batches, and gradients through all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import ude

TIGHT = {"abstol": 1e-11, "reltol": 1e-11}
SENSITIVITIES = [ude.DiscreteAdjoint(), ude.BacksolveAdjoint()]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def falling(u, p, t):
    height, speed = u.unbind(-1)
    return torch.stack([speed, -p.g * torch.ones_like(speed)], -1)


def bounce(u, p, t):
    height, speed = u.unbind(-1)
    return torch.stack([torch.zeros_like(height), -p.restitution * speed], -1)


GROUND = ude.ContinuousCallback(lambda u, p, t: u[..., 0], bounce, direction=-1)


def ball(height, g, restitution, end: float = 3.0) -> ude.ODEProblem:
    u0 = torch.stack([height, torch.zeros_like(height)], -1) if isinstance(height, Tensor) else [height, 0.0]
    return ude.ODEProblem(falling, u0, (0.0, end), dict(g=g, restitution=restitution))


def bounce_times(height: float, g: float, restitution: float, count: int) -> list[float]:
    first = math.sqrt(2 * height / g)
    times = [first]
    for k in range(1, count):
        times.append(times[-1] + 2 * first * restitution**k)
    return times


def height_after(t: Tensor, height: Tensor, g: Tensor, restitution: Tensor) -> Tensor:
    """Closed form of the ball between its first and second bounce."""
    first = torch.sqrt(2 * height / g)
    speed = restitution * g * first
    return speed * (t - first) - g * (t - first) ** 2 / 2


def test_a_bouncing_ball_bounces_when_it_should():
    sol = ude.solve(ball(1.0, 9.81, 0.8), saveat=0.01, callback=GROUND, **TIGHT)
    times = [float(event.t[0]) for event in sol.events]
    expected = [t for t in bounce_times(1.0, 9.81, 0.8, 20) if t < 3.0]
    assert times == pytest.approx(expected, abs=1e-9)
    assert float(sol["height"].min()) > -1e-9
    for event in sol.events:
        assert float(event.before[0, 0]) == pytest.approx(0.0, abs=1e-9)
        assert float(event.after[0, 1]) == pytest.approx(-0.8 * float(event.before[0, 1]), rel=1e-12)


def test_dense_output_follows_every_leg():
    sol = ude.solve(ball(1.0, 9.81, 0.8), saveat=[0.0, 3.0], callback=GROUND, **TIGHT)
    t = torch.linspace(0.46, 1.15, 50, dtype=torch.float64)
    parameters = [torch.tensor(x, dtype=torch.float64) for x in (1.0, 9.81, 0.8)]
    torch.testing.assert_close(sol(t)[:, 0], height_after(t, *parameters), rtol=0, atol=1e-9)


def test_without_saveat_both_sides_of_an_event_are_saved():
    sol = ude.solve(ball(1.0, 9.81, 0.8, end=0.6), callback=GROUND, **TIGHT)
    at = (sol.t == sol.events[0].t[0]).nonzero().reshape(-1)
    assert len(at) == 2
    assert float(sol.u[at[1], 1]) == pytest.approx(-0.8 * float(sol.u[at[0], 1]))
    assert bool((sol.t[1:] >= sol.t[:-1]).all())
    assert float(sol.t[-1]) == 0.6


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
def test_gradients_run_through_event_times_and_jumps(sensealg):
    values = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 9.81, 0.8)]
    height, g, restitution = values
    # two bounces before the last save
    sol = ude.solve(ball(height, g, restitution), saveat=[0.7, 1.0, 1.3], callback=GROUND, sensealg=sensealg, **TIGHT)
    assert len([e for e in sol.events if e.t[0].item() < 1.3]) == 2
    first = torch.sqrt(2 * height / g)
    second = first * (1 + 2 * restitution)
    speed = restitution**2 * g * first
    last = speed * (1.3 - second) - g * (1.3 - second) ** 2 / 2
    exact = torch.stack([*height_after(torch.tensor([0.7, 1.0], dtype=torch.float64), *values), last])
    torch.testing.assert_close(sol["height"], exact, rtol=0, atol=1e-8)
    ours = torch.autograd.grad(sol["height"].prod() + sol["height"].sum(), values)
    theirs = torch.autograd.grad(exact.prod() + exact.sum(), values)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_the_time_of_an_event_is_differentiable():
    height = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    sol = ude.solve(ball(height, g, 0.8, end=1.0), saveat=[1.0], callback=GROUND, **TIGHT)
    ours = torch.autograd.grad(sol.events[0].t[0], (height, g))
    theirs = torch.autograd.grad(torch.sqrt(2 * height / g), (height, g))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


def test_gradients_of_a_condition_that_depends_on_time_and_parameters():
    # u' = -k u until u = level(t) = c + t, then u jumps to s u
    k, c, s = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, 0.1, 2.5))
    reach = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - p.c - t, lambda u, p, t: p.s * u + t.unsqueeze(-1))
    prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k, c=c, s=s))
    sol = ude.solve(prob, saveat=[1.0], callback=reach, **TIGHT)
    ours = torch.autograd.grad(sol.u.sum(), (k, c, s))

    def by_scipy(k: float, c: float, s: float) -> float:
        def event(t, u):
            return u[0] - c - t

        event.terminal = True
        options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
        first = solve_ivp(lambda t, u: -k * u, (0, 1), [1.0], events=event, **options)
        t = first.t[-1]
        return float((s * first.y[0, -1] + t) * math.exp(-k * (1 - t)))

    at = np.array([0.7, 0.1, 2.5])
    step = 1e-5
    numeric = [(by_scipy(*(at + e)) - by_scipy(*(at - e))) / (2 * step) for e in step * np.eye(3)]
    assert sol.u[0, 0].item() == pytest.approx(by_scipy(*at), rel=1e-9)
    assert [float(x) for x in ours] == pytest.approx(numeric, rel=1e-6)


def test_each_trajectory_of_a_batch_has_its_own_events():
    heights = torch.tensor([1.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([9.81, 1.62, 9.81], dtype=torch.float64)
    sol = ude.solve(ball(heights, g, 0.8, end=1.5), saveat=[0.5, 1.0, 1.5], callback=GROUND, **TIGHT)
    for i in range(3):
        height = heights[i].detach().requires_grad_()
        alone = ude.solve(ball(height, g[i], 0.8, end=1.5), saveat=[0.5, 1.0, 1.5], callback=GROUND, **TIGHT)
        torch.testing.assert_close(sol.u[i], alone.u, rtol=1e-7, atol=1e-9)
        (own,) = torch.autograd.grad(alone.u[-1, 0], height)
        (shared,) = torch.autograd.grad(sol.u[i, -1, 0], heights, retain_graph=True)
        assert shared[i].item() == pytest.approx(own.item(), rel=1e-6)
        assert shared.count_nonzero() <= 1
        times = [event.t[i].item() for event in sol.events if event.which[i]]
        assert times == pytest.approx([event.t[0].item() for event in alone.events], abs=1e-9)


def test_doses_add_up():
    # one compartment: u' = -k u, doses at given times; superposition is the exact answer
    k = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    dose = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    times = [0.0, 2.0, 5.0]
    prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 8.0), dict(k=k, dose=dose))
    dosing = ude.PresetTimeCallback(times, lambda u, p, t: u + p.dose)
    saves = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0], dtype=torch.float64)
    sol = ude.solve(prob, saveat=saves, callback=dosing, **TIGHT)
    exact = torch.exp(-k * saves)
    for time in times:
        # a save at the time of a dose sees the state before it; the dose at the start comes before the first save
        since = saves - time
        exact = exact + torch.where(since > 0, dose * torch.exp(-k * since.clamp(min=0)), torch.zeros_like(saves))
    torch.testing.assert_close(sol.u[:, 0], exact, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((sol.u**2).sum(), (k, dose))
    theirs = torch.autograd.grad((exact**2).sum(), (k, dose))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_doses_may_differ_by_trajectory_and_rows_may_be_short():
    times = torch.tensor([[1.0, 3.0], [2.0, float("nan")]], dtype=torch.float64)
    prob = ude.ODEProblem(lambda u, p, t: 0 * u, torch.zeros(2, 1, dtype=torch.float64), (0.0, 4.0))
    sol = ude.solve(prob, saveat=[0.5, 1.5, 2.5, 4.0], callback=ude.PresetTimeCallback(times, lambda u, p, t: u + 1))
    assert sol.u[..., 0].tolist() == [[0.0, 1.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0]]


def test_a_periodic_callback_acts_every_period_also_backwards():
    prob = ude.ODEProblem(lambda u, p, t: 0 * u, [0.0], (0.0, 1.0))
    sol = ude.solve(
        prob, saveat=[0.25, 0.35, 0.95, 1.0], callback=ude.callbacks.PeriodicCallback(0.3, lambda u, p, t: u + 1)
    )
    assert sol["u1"].tolist() == [0.0, 1.0, 3.0, 3.0]
    back = ude.remake(prob, tspan=(1.0, 0.0))
    sol = ude.solve(
        back, saveat=[0.75, 0.65, 0.05], callback=ude.callbacks.PeriodicCallback(0.3, lambda u, p, t: u + 1)
    )
    assert sol["u1"].tolist() == [0.0, 1.0, 3.0]


def test_terminate_ends_the_trajectory_where_the_condition_holds():
    stop = ude.ContinuousCallback(lambda u, p, t: u[..., 0], ude.terminate)
    sol = ude.solve(ball(1.0, 9.81, 0.8), saveat=0.1, callback=stop, **TIGHT)
    assert sol.retcode == ude.ReturnCode.Terminated
    assert sol.success
    assert float(sol.events[0].t[0]) == pytest.approx(math.sqrt(2 / 9.81), abs=1e-10)
    assert float(sol.t[-1]) == pytest.approx(0.4)
    assert sol.u.isfinite().all()
    with pytest.raises(ude.errors.InputError, match="must lie within its span"):
        sol(1.0)


def test_a_terminated_trajectory_of_a_batch_has_no_values_after_its_end():
    stop = ude.ContinuousCallback(lambda u, p, t: u[..., 0], ude.terminate)
    heights = torch.tensor([1.0, 100.0], dtype=torch.float64)
    sol = ude.solve(ball(heights, 9.81, 0.8, end=1.0), saveat=[0.2, 1.0], callback=stop, **TIGHT)
    assert [str(code) for code in sol.retcode] == ["Terminated", "Success"]
    assert sol.u[0, 1].isnan().all()
    assert sol.u[1].isfinite().all()
    assert sol.u[0, 0].isfinite().all()


def test_a_discrete_callback_acts_at_the_end_of_a_step():
    seen: list[float] = []

    def keep(u, p, t):
        seen.append(float(t))
        return u

    watch = ude.DiscreteCallback(lambda u, p, t: u[..., 0] < 0.5, keep)
    prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 2.0))
    sol = ude.solve(prob, callback=watch, dt=0.1, adaptive=False)
    assert seen[0] == pytest.approx(0.7)
    assert len(seen) == 14
    assert float(sol.u[-1, 0]) == pytest.approx(math.exp(-2), rel=1e-6)


def test_a_vector_condition_tells_which_component_passed_zero():
    # a point on a circle passes the axes in turn
    def circle(u, p, t):
        x, y = u.unbind(-1)
        return torch.stack([-y, x], -1)

    hits: list[int] = []

    def note(u, p, t, index):
        hits.append(int(index))
        return u

    axes = ude.callbacks.VectorContinuousCallback(lambda u, p, t: u, note)
    sol = ude.solve(ude.ODEProblem(circle, [1.0, 0.5], (0.0, 6.28)), callback=axes, **TIGHT)
    start = math.atan2(0.5, 1.0)
    assert hits == [0, 1, 0, 1]
    assert [float(e.t[0]) for e in sol.events] == pytest.approx(
        [k * math.pi / 2 - start for k in (1, 2, 3, 4)], abs=1e-9
    )


def test_the_earliest_of_several_events_comes_first_and_all_happen():
    order: list[str] = []

    def note(label):
        def affect(u, p, t):
            order.append(label)
            return u

        return affect

    callbacks = ude.CallbackSet(
        ude.ContinuousCallback(lambda u, p, t: u[..., 0] - 0.7, note("upper")),
        ude.ContinuousCallback(lambda u, p, t: u[..., 0] - 0.3, note("lower")),
        ude.PresetTimeCallback([1.0], note("preset")),
    )
    # one huge step would hold all of them
    ude.solve(ude.ODEProblem(lambda u, p, t: -torch.ones_like(u), [0.9], (0.0, 1.2)), callback=callbacks)
    assert order == ["upper", "lower", "preset"]


def test_direction_selects_passages():
    prob = ude.ODEProblem(lambda u, p, t: torch.cos(t).unsqueeze(-1), [0.1], (0.0, 13.0))
    for direction, expected in ((1, 2), (-1, 2), (0, 4)):
        count = ude.ContinuousCallback(lambda u, p, t: u[..., 0], lambda u, p, t: u, direction=direction)
        times = [float(event.t[0]) for event in ude.solve(prob, callback=count, **TIGHT).events]
        assert len(times) == expected
        for t in times:
            assert math.sin(t) + 0.1 == pytest.approx(0, abs=1e-9)
            assert direction == 0 or math.copysign(1, math.cos(t)) == direction


def test_an_excursion_inside_a_step_is_found():
    # u = sin^2-like dip below zero that begins and ends inside one long fixed step
    prob = ude.ODEProblem(lambda u, p, t: (2 * (t - 0.5)).unsqueeze(-1) + 0 * u, [0.2], (0.0, 1.0))
    dip = ude.ContinuousCallback(lambda u, p, t: u[..., 0], lambda u, p, t: u)
    sol = ude.solve(prob, callback=dip, dt=1.0, adaptive=False)
    expected = [0.5 - math.sqrt(0.05), 0.5 + math.sqrt(0.05)]
    assert [float(e.t[0]) for e in sol.events] == pytest.approx(expected, abs=1e-12)


def test_tstops_are_hit_and_make_a_switched_input_exact():
    def switched(u, p, t):
        return (t >= 0.5).to(u.dtype).unsqueeze(-1) * torch.ones_like(u)

    sol = ude.solve(ude.ODEProblem(switched, [0.0], (0.0, 1.0)), tstops=[0.5], **TIGHT)
    assert bool((sol.t == 0.5).any())
    assert float(sol.u[-1, 0]) == pytest.approx(0.5, abs=1e-9)
    free = ude.solve(ude.ODEProblem(switched, [0.0], (0.0, 1.0)), **TIGHT)
    # the switch is found in f itself
    assert float(free.u[-1, 0]) == pytest.approx(0.5, abs=1e-9)
    assert free.stats.nf == sol.stats.nf


def test_events_that_accumulate_end_with_their_code():
    sol = ude.solve(ball(1.0, 9.81, 0.3), saveat=[3.0], callback=GROUND, max_events=8, abstol=1e-8, reltol=1e-8)
    assert sol.retcode == ude.ReturnCode.MaxEvents
    with pytest.raises(ude.SolveFailed, match="more events happened than max_events. Events may accumulate"):
        _ = sol.u


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: ude.ContinuousCallback(GROUND.condition, bounce, direction=2),
            "direction must be 1 .from below., -1 .from above. or 0: direction=2.",
        ),
        (lambda: ude.callbacks.PeriodicCallback(0.0, bounce), "every must be positive and finite: every=0.0."),
        (lambda: ude.CallbackSet(3), "a CallbackSet must hold callbacks: int."),
        (lambda: ude.PresetTimeCallback([math.inf], bounce), "times of a callback must be finite"),
        (lambda: ude.solve(ball(1.0, 9.8, 0.8), callback=bounce), "callback must be a callback object: expected e.g."),
        (
            lambda: ude.solve(ball(1.0, 9.8, 0.8), callback=ude.ContinuousCallback(lambda u, p, t: 0.0, bounce)),
            "a condition must return one number for each trajectory",
        ),
        (
            lambda: ude.solve(ball(1.0, 9.8, 0.8), callback=ude.PresetTimeCallback([0.1], lambda u, p, t: u[:1])),
            "an affect must return the new state of the whole batch",
        ),
        (
            lambda: ude.solve(ball(1.0, 9.8, 0.8), ude.TorchDiffEq(), saveat=1.0, callback=GROUND),
            "torchdiffeq's steps cannot be watched",
        ),
    ],
)
def test_unusable_callbacks_are_refused_with_the_reason(make, text):
    with pytest.raises(ude.UdeError, match=text):
        make()


@pytest.mark.parametrize("sensealg", [None, ude.InterpolatingAdjoint(), ude.ForwardSensitivity()])
def test_what_an_event_captures_has_a_gradient_where_nothing_else_is_trainable(sensealg):
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 2.0), {"k": 2.0})
    dose = ude.PresetTimeCallback([1.0], lambda u, p, t: u + c)
    end = ude.solve(prob, ude.Tsit5(), callback=dose, saveat=[2.0], sensealg=sensealg, **TIGHT).u.sum()
    assert torch.autograd.grad(end, c)[0].item() == pytest.approx(math.exp(-2), rel=1e-8)
    # u falls to c four times, and each time it rises by 1: u(2) = ((c + 1) / c)**4 exp(-4)
    refill = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - c, lambda u, p, t: u + 1)
    end = ude.solve(prob, ude.Tsit5(), callback=refill, saveat=[2.0], sensealg=sensealg, **TIGHT).u.sum()
    assert end.item() == pytest.approx(81 * math.exp(-4), rel=1e-8)
    assert torch.autograd.grad(end, c)[0].item() == pytest.approx(-4 * 81 * math.exp(-4) * 4 / 3, rel=1e-7)
