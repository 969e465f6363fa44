"""PositiveDomain, SavingCallback, FunctionCallingCallback, IterativeCallback: against closed forms, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ude

TIGHT = {"abstol": 1e-11, "reltol": 1e-11}
SENSITIVITIES = [ude.DiscreteAdjoint(), ude.BacksolveAdjoint(), ude.GaussAdjoint()]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def decay(u0=(1.0,), end=2.0, **p) -> ude.ODEProblem:
    return ude.ODEProblem(lambda u, p, t: -p.k.unsqueeze(-1) * u, u0, (0.0, end), {"k": 0.7, **p})


def away_from_zero(u, p, t):
    # below zero its solution runs away: the second test problem of Shampine et al. 2005
    return -u.abs()


def knee(u, p, t):
    # the third: after t=1 zero is the stable branch, and 1 - t, which is negative, is another
    return ((1 - t).unsqueeze(-1) * u - u * u) / 1e-6


# --- PositiveDomain -----------------------------------------------------------------------------------------------


def test_a_decay_to_zero_does_not_run_away_below_it():
    prob = ude.ODEProblem(away_from_zero, [1.0], (0.0, 40.0))
    free = ude.solve(prob)
    assert float(free.u[-1, 0]) < -0.1
    kept = ude.solve(prob, callback=ude.callbacks.PositiveDomain())
    assert bool((kept.u >= 0).all())
    torch.testing.assert_close(kept.u[:, 0], torch.exp(-kept.t), rtol=0, atol=2e-3)


@pytest.mark.parametrize("alg", [ude.Rodas5P(), ude.KenCarp4(), ude.methods.Rosenbrock23()], ids=name)
def test_the_knee_problem_follows_the_branch_at_zero(alg):
    prob = ude.ODEProblem(knee, [1.0], (0.0, 2.0))
    # free steps follow the other branch, which is unstable, or fall off it toward minus infinity
    free = ude.solve(prob, alg, saveat=[2.0])
    assert not free.success or float(free.u[-1, 0]) == pytest.approx(-1.0, abs=1e-3)
    kept = ude.solve(prob, alg, saveat=[0.5, 1.5, 2.0], callback=ude.callbacks.PositiveDomain())
    assert kept.u[:, 0].tolist() == pytest.approx([0.5, 0.0, 0.0], abs=1e-5)


def test_nothing_that_is_read_is_negative_between_steps_either():
    # free steps pass below zero, and so may what is read inside the step that is mended
    prob = ude.ODEProblem(away_from_zero, [1.0, 3.0], (0.0, 40.0))
    t = torch.linspace(0, 40, 400, dtype=torch.float64)
    free = ude.solve(prob, ude.methods.BS3(), saveat=t)
    assert float(free.u.min()) < 0
    saved = ude.callbacks.SavedValues()
    keep = [ude.callbacks.PositiveDomain(), ude.callbacks.SavingCallback(lambda u, p, t: u, saved, saveat=t)]
    kept = ude.solve(prob, ude.methods.BS3(), saveat=t, callback=keep)
    for values in (kept.u, kept(t), saved.saveval):
        assert float(values.min()) == 0.0


def test_a_step_that_leaves_the_domain_is_tried_again_scalefactor_times_as_long():
    tried: list[float] = []

    def note(u, p, t):
        tried.append(float(t))
        return torch.zeros(())

    # u reaches -1 at the end of a step of size 1; 0.3 ** 3 is the first power of 0.3 with which it stays
    prob = ude.ODEProblem(lambda u, p, t: -torch.ones_like(u), [0.0], (0.0, 1.0))
    domain = ude.callbacks.PositiveDomain(abstol=0.05, scalefactor=0.3)
    ude.solve(prob, callback=domain, isoutofdomain=note, dt=1.0, max_events=1)
    assert tried[:4] == pytest.approx([1.0, 0.3, 0.09, 0.027])


def test_idxs_leave_other_states_alone():
    def spring(u, p, t):
        x, v, c = u.unbind(-1)
        return torch.stack([v, -x, -c.abs()], -1)

    prob = ude.ODEProblem(spring, [1.0, 0.0, 1.0], (0.0, 40.0), names="x, v, c")
    sol = ude.solve(prob, saveat=0.5, abstol=1e-4, reltol=1e-4, callback=ude.callbacks.PositiveDomain(idxs=[2]))
    assert float(sol["c"].min()) >= 0.0
    torch.testing.assert_close(sol["x"], torch.cos(sol.t), rtol=0, atol=2e-2)


def test_save_decides_whether_ends_of_steps_that_were_mended_are_saved():
    prob = ude.ODEProblem(away_from_zero, [1.0], (0.0, 40.0))
    with_them = ude.solve(prob, callback=ude.callbacks.PositiveDomain())
    without = ude.solve(prob, callback=ude.callbacks.PositiveDomain(save=False))
    mended = [float(event.t[0]) for event in with_them.events]
    assert mended
    assert [t for t in with_them.t.tolist() if t not in mended] == without.t.tolist()
    assert len(set(with_them.t.tolist())) == len(with_them.t)


def test_each_trajectory_of_a_batch_is_mended_by_itself_and_a_nan_stays_alone():
    u0 = torch.tensor([[1.0], [math.nan], [5.0]], dtype=torch.float64)
    prob = ude.ODEProblem(away_from_zero, u0, (0.0, 40.0))
    sol = ude.solve(prob, saveat=1.0, callback=ude.callbacks.PositiveDomain(), maxiters=300)
    assert sol.success.tolist() == [True, False, True]
    for i in (0, 2):
        alone = ude.solve(ude.remake(prob, u0=u0[i]), saveat=1.0, callback=ude.callbacks.PositiveDomain())
        torch.testing.assert_close(sol.partial[i], alone.u, rtol=1e-9, atol=1e-12)
        assert float(alone.u.min()) == 0.0


# BacksolveAdjoint is left out: a decay through nine decades cannot be integrated backwards
@pytest.mark.parametrize("sensealg", [ude.DiscreteAdjoint(), ude.InterpolatingAdjoint(), ude.GaussAdjoint()], ids=name)
def test_the_gradient_of_a_mended_solution_is_that_of_the_exact_one(sensealg):
    # y decays through the tolerance and is put on zero; z collects what y lost: z = y0 (1 - exp(-k t))
    def transfer(u, p, t):
        y, z = u.unbind(-1)
        return torch.stack([-p.k * y.abs(), p.k * y.abs()], -1)

    k, y0 = number(2.0), number(1.3)
    prob = ude.ODEProblem(transfer, torch.stack([y0, torch.zeros_like(y0)]), (0.0, 30.0), dict(k=k))
    options = {"abstol": 1e-9, "reltol": 1e-9, "callback": ude.callbacks.PositiveDomain(), "sensealg": sensealg}
    sol = ude.solve(prob, saveat=[0.5, 30.0], **options)
    assert sol.events
    assert sol.u[-1, 0].item() == 0.0
    exact = y0 * (1 - torch.exp(-k * torch.tensor([0.5, 30.0], dtype=torch.float64)))
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64)
    ours = torch.autograd.grad((weights * sol["z"]).sum(), (k, y0))
    theirs = torch.autograd.grad((weights * exact).sum(), (k, y0))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_gradient_through_the_clamp_is_that_of_the_maximum_with_zero():
    # constant slopes, which every method integrates exactly, so that only the clamp is left to differentiate
    a, b = number(0.8), number(0.5)

    def f(u, p, t):
        x, y = u.unbind(-1)
        return torch.stack([-p.a * torch.ones_like(x), p.b * x], -1)

    prob = ude.ODEProblem(f, [0.3, 0.0], (0.0, 1.0), dict(a=a, b=b))
    sol = ude.solve(prob, callback=ude.callbacks.PositiveDomain(abstol=10.0), dtmax=0.2, dt=0.1)
    assert len(sol.events) > 2
    x, y = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for dt in (sol.t[1:] - sol.t[:-1]).tolist():
        x, y = torch.maximum(x - a * dt, torch.zeros_like(x)), y + b * (x * dt - a * dt**2 / 2)
    # what is handed out is put on zero too, so the loss takes a sum that stays positive
    drop = sol.events[-1].before[0, 1]
    ours = torch.autograd.grad(drop, (a, b))
    theirs = torch.autograd.grad(y, (a, b))
    assert drop.item() == pytest.approx(y.item(), rel=1e-9)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


# --- SavingCallback -----------------------------------------------------------------------------------------------


def test_values_are_saved_at_times_that_need_not_be_those_of_the_solution():
    saved = ude.callbacks.SavedValues()
    energy = ude.callbacks.SavingCallback(lambda u, p, t: p.k * u.square().sum(-1) + t, saved, saveat=[0.5, 1.0, 1.7])
    ude.solve(decay(), saveat=[2.0], callback=energy, **TIGHT)
    assert saved.t.tolist() == [0.5, 1.0, 1.7]
    torch.testing.assert_close(saved.saveval, 0.7 * torch.exp(-1.4 * saved.t) + saved.t, rtol=1e-9, atol=0)


def test_a_number_saves_from_the_start_every_so_much_and_at_the_end_also_backwards():
    saved = ude.callbacks.SavedValues()
    every = ude.callbacks.SavingCallback(lambda u, p, t: t, saved, saveat=0.3)
    ude.solve(decay(end=1.0), callback=every)
    assert saved.saveval.tolist() == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0])
    ude.solve(ude.remake(decay(), tspan=(0.6, 0.0)), callback=every)
    assert saved.t.tolist() == pytest.approx([0.6, 0.3, 0.0])


def test_every_step_saves_what_the_solution_saves_without_saveat():
    hit = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - 0.5, lambda u, p, t: u + 0.2, direction=-1)
    saved = ude.callbacks.SavedValues()
    callbacks = [hit, ude.callbacks.SavingCallback(lambda u, p, t: u, saved)]
    sol = ude.solve(decay(end=4.0), callback=callbacks, **TIGHT)
    torch.testing.assert_close(saved.t, sol.t, rtol=0, atol=0)
    torch.testing.assert_close(saved.saveval, sol.u, rtol=0, atol=0)
    at = (saved.t == sol.events[0].t[0]).nonzero().reshape(-1)
    assert (saved.saveval[at[1]] - saved.saveval[at[0]]).item() == pytest.approx(0.2)


def test_saving_does_not_change_the_solution():
    plain = ude.solve(decay())
    saved = ude.callbacks.SavedValues()
    watched = ude.solve(
        decay(), callback=ude.callbacks.SavingCallback(lambda u, p, t: u, saved, saveat=0.1, save_everystep=True)
    )
    assert watched.t.tolist() == plain.t.tolist()
    assert watched.u.tolist() == plain.u.tolist()
    assert saved.t.tolist() == sorted({*plain.t.tolist(), *(float(x) for x in saved.t)})
    assert {*plain.t.tolist()} <= {*saved.t.tolist()}


def test_trajectories_save_as_much_as_they_have():
    # fast ones take more steps, one has no span, one ends early, one is not a number
    k = torch.tensor([0.1, 30.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    u0 = torch.tensor([[1.0], [1.0], [1.0], [1.0], [math.nan]], dtype=torch.float64)
    end = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    saved, at = ude.callbacks.SavedValues(), ude.callbacks.SavedValues()
    rows = torch.tensor([[0.1, 0.9], [0.5, math.nan], [0.0, math.nan], [0.1, 0.9], [0.0, 0.9]], dtype=torch.float64)
    callbacks = [
        ude.ContinuousCallback(lambda u, p, t: u[..., 0] - torch.where(p.k == 1, 0.7 + 0 * p.k, -1.0), ude.terminate),
        ude.callbacks.SavingCallback(lambda u, p, t: u[..., 0], saved),
        ude.callbacks.SavingCallback(lambda u, p, t: torch.stack([u[..., 0], t], -1), at, saveat=rows),
    ]
    prob = ude.ODEProblem(lambda u, p, t: -p.k.unsqueeze(-1) * u, u0, (0.0, end), dict(k=k))
    sol = ude.solve(prob, ude.Vern7(), callback=callbacks, maxiters=1000, **TIGHT)
    counts = [len(t) for t in saved.t]
    assert counts[:3] == [*(sol.stats.accepted_steps[:2] + 1).tolist(), 1]
    assert counts[0] < counts[1]
    assert counts[4] == 0
    assert saved.t[3][-1].item() == pytest.approx(-math.log(0.7), abs=1e-9)
    assert [t.tolist() for t in at.t] == [[0.1, 0.9], [0.5], [0.0], [0.1], []]
    for i in range(4):
        torch.testing.assert_close(saved.saveval[i], torch.exp(-k[i] * saved.t[i]), rtol=1e-8, atol=1e-10)
        exact = torch.stack([torch.exp(-k[i] * at.t[i]), at.t[i]], -1)
        torch.testing.assert_close(at.saveval[i], exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
@pytest.mark.parametrize("everystep", [False, True])
def test_saved_values_are_differentiable_through_events(sensealg, everystep):
    k, level, u0 = number(0.7), number(0.5), number(1.0)
    # u falls to `level`, doubles there, and falls again; the first passage is at log(u0 / level) / k = 0.99
    double = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - p.level, lambda u, p, t: 2 * u, direction=-1)
    saved = ude.callbacks.SavedValues()
    flux = ude.callbacks.SavingCallback(
        lambda u, p, t: p.k * u[..., 0] ** 2, saved, saveat=[0.4, 1.5], save_everystep=everystep
    )
    prob = decay(u0.reshape(1), 1.8, k=k, level=level)
    ude.solve(prob, saveat=[1.8], callback=[double, flux], sensealg=sensealg, **TIGHT)
    places = [saved.t.tolist().index(t) for t in (0.4, 1.5)]
    times = torch.tensor([0.4, 1.5], dtype=torch.float64)
    state = u0 * torch.exp(-k * times) * torch.tensor([1.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    # after the event u = 2 level exp(-k (t - t*)) with exp(k t*) = u0 / level, which no longer depends on level
    ours = torch.autograd.grad((weights * saved.saveval[places]).sum(), (k, level, u0))
    theirs = torch.autograd.grad((weights * k * state**2).sum(), (k, u0))
    torch.testing.assert_close(saved.saveval[places], k * state**2, rtol=1e-8, atol=0)
    torch.testing.assert_close((ours[0], ours[2]), theirs, rtol=1e-6, atol=1e-7)
    assert ours[1].item() == pytest.approx(0.0, abs=1e-7)


def test_the_gradient_of_what_one_trajectory_saved_is_not_spoilt_by_another_that_blows_up():
    # u' = k u^2: u = u0 / (1 - k u0 t), which the second trajectory leaves at t = 0.36
    k = number(0.7)
    u0 = torch.tensor([[0.5], [4.0]], dtype=torch.float64)
    saved = ude.callbacks.SavedValues()
    callback = ude.callbacks.SavingCallback(lambda u, p, t: p.k * u[..., 0], saved, saveat=[0.2, 1.0])
    prob = ude.ODEProblem(lambda u, p, t: p.k * u * u, u0, (0.0, 1.0), dict(k=k))
    sol = ude.solve(prob, callback=callback, maxiters=1000, **TIGHT)
    assert sol.success.tolist() == [True, False]
    assert [len(t) for t in saved.t] == [2, 1]
    (ours,) = torch.autograd.grad(saved.saveval[0][1], k)
    assert ours.item() == pytest.approx(0.5 / (1 - 0.35) ** 2, rel=1e-7)


def test_saved_values_are_written_anew_and_a_detached_function_keeps_no_graph():
    saved = ude.callbacks.SavedValues()
    assert repr(saved) == "SavedValues(empty)"
    callback = ude.callbacks.SavingCallback(lambda u, p, t: u.detach().sum(-1), saved, saveat=[0.5, 1.0])
    for _ in range(2):
        ude.solve(decay(k=number(0.7)), callback=callback)
        assert repr(saved) == "SavedValues(2 values)"
        assert not saved.saveval.requires_grad


# --- FunctionCallingCallback --------------------------------------------------------------------------------------


def test_a_function_is_called_in_the_order_of_time_with_the_state_there():
    calls: list[tuple[float, float]] = []
    callback = ude.callbacks.FunctionCallingCallback(
        lambda u, p, t, which: calls.append((float(t), float(u))), funcat=0.5
    )
    ude.solve(decay(), callback=callback, **TIGHT)
    assert [t for t, _ in calls] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [u for _, u in calls] == pytest.approx([math.exp(-0.7 * t) for t, _ in calls], rel=1e-9)
    steps: list[float] = []
    sol = ude.solve(
        decay(), callback=ude.callbacks.FunctionCallingCallback(lambda u, p, t, which: steps.append(float(t)))
    )
    assert steps == sol.t.tolist()


def test_a_call_says_for_which_trajectories_it_is_meant():
    seen: dict[int, list[float]] = {0: [], 1: []}

    def note(u, p, t, which):
        assert u.shape == (2, 1)
        assert not u.requires_grad
        for i in which.nonzero().reshape(-1).tolist():
            seen[i].append(float(t[i]))

    k = torch.tensor([0.7, 20.0], dtype=torch.float64, requires_grad=True)
    dose = ude.PresetTimeCallback([[0.5], [1.0]], lambda u, p, t: u + 1)
    prob = ude.ODEProblem(lambda u, p, t: -p.k.unsqueeze(-1) * u, torch.ones(2, 1, dtype=torch.float64), (0.0, 2.0))
    prob = ude.remake(prob, p=dict(k=k))
    rows = [[0.2, 0.7, math.nan], [0.0, 0.1, 1.9]]
    ude.solve(prob, callback=[dose, ude.callbacks.FunctionCallingCallback(note, funcat=rows)])
    assert seen == {0: [0.2, 0.7], 1: [0.0, 0.1, 1.9]}


# --- IterativeCallback --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=name)
def test_an_iterative_callback_chooses_its_times_and_the_gradient_runs_through_them(sensealg):
    # the next dose comes when the state will have fallen to `level`: log(u / level) / k after this one
    k, level, dose = number(0.7), number(0.5), number(0.9)
    again = ude.callbacks.IterativeCallback(
        lambda u, p, t: t + torch.log(u[..., 0] / p.level) / p.k, lambda u, p, t: u + p.dose, initial_affect=False
    )
    sol = ude.solve(
        decay(end=4.0, k=k, level=level, dose=dose), saveat=[4.0], callback=again, sensealg=sensealg, **TIGHT
    )
    times = [torch.log(1 / level) / k]
    while times[-1] + torch.log((level + dose) / level) / k < 4.0:
        times.append(times[-1] + torch.log((level + dose) / level) / k)
    assert len(times) == 3
    assert [e.t[0].item() for e in sol.events] == pytest.approx([t.item() for t in times], abs=1e-9)
    exact = (level + dose) * torch.exp(-k * (4.0 - times[-1]))
    ours = torch.autograd.grad(sol.u[0, 0], (k, level, dose))
    theirs = torch.autograd.grad(exact, (k, level, dose))
    torch.testing.assert_close(sol.u[0, 0], exact, rtol=1e-8, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_each_trajectory_chooses_for_itself_and_may_stop_choosing():
    prob = ude.ODEProblem(lambda u, p, t: 0 * u, torch.tensor([[1.0], [2.0]], dtype=torch.float64), (0.0, 10.0))
    # after each act u has doubled, and so has the wait; a trajectory above 5 acts no more
    again = ude.callbacks.IterativeCallback(
        lambda u, p, t: torch.where(u[..., 0] > 5, math.nan, t + u[..., 0]), lambda u, p, t: 2 * u
    )
    sol = ude.solve(prob, saveat=[0.5, 1.5, 2.5, 3.5, 9.0], callback=again)
    assert sol.u[..., 0].tolist() == [[1.0, 2.0, 2.0, 4.0, 8.0], [2.0, 2.0, 4.0, 4.0, 8.0]]
    times = [[e.t[i].item() for e in sol.events if e.which[i]] for i in (0, 1)]
    assert times == [[1.0, 3.0, 7.0], [2.0, 6.0]]


def test_an_iterative_callback_may_act_at_the_start_and_never_again():
    once = ude.callbacks.IterativeCallback(lambda u, p, t: None, lambda u, p, t: u + 1, initial_affect=True)
    sol = ude.solve(decay(end=1.0), saveat=[0.0, 1.0], callback=once, **TIGHT)
    assert sol.u[:, 0].tolist() == pytest.approx([2.0, 2 * math.exp(-0.7)], rel=1e-9)
    assert len(sol.events) == 1


def test_an_iterative_callback_runs_backwards():
    prob = ude.ODEProblem(lambda u, p, t: 0 * u, [0.0], (1.0, 0.0))
    again = ude.callbacks.IterativeCallback(lambda u, p, t: t - 0.25, lambda u, p, t: u + 1)
    sol = ude.solve(prob, saveat=[0.8, 0.7, 0.3, 0.1], callback=again)
    assert sol["u1"].tolist() == [0.0, 1.0, 2.0, 3.0]


# --- refusals -----------------------------------------------------------------------------------------------------


def save(function=lambda u, p, t: t, **options):
    return ude.callbacks.SavingCallback(function, ude.callbacks.SavedValues(), **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: ude.callbacks.PositiveDomain(scalefactor=1.0),
            "scalefactor must be between 0 and 1: scalefactor=1.0.",
        ),
        (
            lambda: ude.callbacks.PositiveDomain(abstol=-1.0),
            "abstol of PositiveDomain must be zero or more: abstol=-1.0.",
        ),
        (
            lambda: ude.solve(decay([-1.0]), callback=ude.callbacks.PositiveDomain()),
            "u0 must lie inside the PositiveDomain: expected no state below zero, got -1 as state 0 of trajectory 0",
        ),
        (
            lambda: ude.solve(decay(), callback=ude.callbacks.PositiveDomain(idxs=[3])),
            "idxs of PositiveDomain must be indices of states: expected indices below 1, got 3.",
        ),
        (
            lambda: ude.solve(decay(), callback=ude.callbacks.PositiveDomain(abstol=[1.0, 2.0])),
            r"abstol of PositiveDomain must be one number or one number for each .*or 1 numbers, got shape \(2,\)",
        ),
        (
            lambda: ude.solve(decay(), ude.RK4(), adaptive=False, dt=0.1, callback=ude.callbacks.PositiveDomain()),
            "PositiveDomain requires adaptive steps: adaptive=False. Leave it out.",
        ),
        (lambda: ude.callbacks.SavingCallback(3, ude.callbacks.SavedValues()), "save_func must be a function: 3."),
        (
            lambda: ude.callbacks.SavingCallback(lambda u, p, t: u, []),
            r"saved_values must be a SavedValues: expected SavedValues\(\), got list.",
        ),
        (lambda: save(saveat=-0.1), "saveat must be a positive number or a list of times: -0.1."),
        (lambda: save(saveat=[0.1, math.inf]), "saveat must be finite: infinity among the times."),
        (
            lambda: save(save_everystep=False),
            "saveat or save_everystep must be given: neither. Give saveat=0.1, or save_everystep=True.",
        ),
        (
            lambda: ude.solve(decay(), callback=save(saveat=[0.5, 3.0])),
            "saveat of a callback must lie within tspan: expected times from 0 to 2, got 3 at index 1.",
        ),
        (
            lambda: ude.solve(decay(), callback=save(saveat=[[0.5], [1.0]])),
            r"saveat of a callback must have one row of times, .*: expected shape \(time,\) or \(time,\), got \(2, 1\)",
        ),
        (
            lambda: ude.solve(decay(torch.ones(2, 1, dtype=torch.float64)), callback=save(lambda u, p, t: u.sum())),
            r"save_func must return a tensor with one row for each trajectory: expected shape \(2, ...\), got \(\).",
        ),
        (
            lambda: ude.solve(ude.EnsembleProblem(decay()), trajectories=2, callback=save()),
            "an ensemble is several solves, each of which would overwrite SavedValues. Solve a batch",
        ),
        (lambda: ude.callbacks.FunctionCallingCallback("print"), "func must be a function: 'print'."),
        (
            lambda: ude.solve(decay(), callback=ude.callbacks.FunctionCallingCallback(print, funcat=[-1.0])),
            "funcat of a callback must lie within tspan: expected times from 0 to 2, got -1 at index 0.",
        ),
        (
            lambda: ude.solve(
                decay(), callback=ude.callbacks.IterativeCallback(lambda u, p, t: t - 1, lambda u, p, t: u)
            ),
            "time_choice must return a time after the current one: -1 at t=0. Return t [+] delay",
        ),
        (
            lambda: ude.solve(
                decay(), callback=ude.callbacks.IterativeCallback(lambda u, p, t: 0.5, lambda u, p, t: u)
            ),
            r"time_choice must return one time for each trajectory: expected shape \(\), or None, got 0.5.",
        ),
    ],
)
def test_unusable_callbacks_are_refused_with_the_reason(make, text):
    with pytest.raises(ude.errors.InputError, match=text):
        make()
