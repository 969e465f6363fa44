"""Legs of a solve go on with the step they had: calls of f saved, and nothing else changed."""

from __future__ import annotations

import math

import pytest
import torch

import ude
from tests.events.test_events import GROUND, ball
from ude.events import progress


def two_compartments(u, p, t):
    gut, blood = u.unbind(-1)
    return torch.stack([-p.ka * gut, p.ka * gut - p.ke * blood], -1)


PATIENT = ude.ODEProblem(two_compartments, [1.0, 0.0], (0.0, 72.0), dict(ka=1.5, ke=0.1))
TIMES = [6.0 * i for i in range(1, 12)]
DOSES = ude.PresetTimeCallback(TIMES, lambda u, p, t: u + torch.tensor([1.0, 0.0], dtype=u.dtype))


def blood_after_doses(t: float, ka: float = 1.5, ke: float = 0.1) -> float:
    """Sum of the closed forms of every dose so far (Bateman's function)."""
    since = [t - at for at in (0.0, *TIMES) if at < t]
    return sum(ka / (ka - ke) * (math.exp(-ke * s) - math.exp(-ka * s)) for s in since)


def balls(tolerance: float) -> ude.Solution:
    height = torch.linspace(0.5, 1.5, 20, dtype=torch.float64)
    return ude.solve(ball(height, 9.81, 0.8, 2.0), saveat=0.1, callback=GROUND, abstol=tolerance, reltol=tolerance)


def doses(tolerance: float) -> ude.Solution:
    return ude.solve(PATIENT, saveat=1.0, callback=DOSES, abstol=tolerance, reltol=tolerance)


def stops(tolerance: float) -> ude.Solution:
    return ude.solve(PATIENT, saveat=1.0, tstops=TIMES, abstol=tolerance, reltol=tolerance)


@pytest.mark.parametrize(
    ("run", "tolerance", "at_most"),
    # measured: 66 calls of 76, 961 of 1110, 733 of 966, 313 of 378
    [(balls, 1e-4, 0.9), (doses, 1e-4, 0.9), (stops, 1e-8, 0.8), (stops, 1e-4, 0.87)],
)
def test_a_leg_that_goes_on_with_its_step_saves_calls_of_f(run, tolerance, at_most, monkeypatch):
    carried = run(tolerance)
    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "resume", lambda state: None)
        afresh = run(tolerance)
    assert carried.stats.nf < at_most * afresh.stats.nf
    torch.testing.assert_close(carried.u, afresh.u, rtol=30 * tolerance, atol=30 * tolerance)


def test_doses_are_as_exact_as_before():
    sol = doses(1e-9)
    for t in (5.0, 30.0, 71.0):
        at = int((sol.t == t).nonzero()[0])
        assert float(sol.u[at, 1]) == pytest.approx(blood_after_doses(t), abs=1e-7)


def test_a_trajectory_without_a_jump_goes_on_with_its_step_and_memory(monkeypatch):
    seen = []
    original = progress.Progress.resume

    def spy(state):
        control = original(state)
        seen.append(control)
        return control

    monkeypatch.setattr(progress.Progress, "resume", spy)
    rate = torch.tensor([1.0, 2.0], dtype=torch.float64)
    prob = ude.ODEProblem(
        lambda u, p, t: -p.rate.unsqueeze(-1) * u, torch.ones(2, 1, dtype=torch.float64), (0.0, 4.0), dict(rate=rate)
    )
    nan = float("nan")
    dose = ude.PresetTimeCallback([[nan], [2.0]], lambda u, p, t: u + 1.0)
    ude.solve(prob, ude.Tsit5(), callback=dose, tstops=[[2.0], [nan]], saveat=[4.0], abstol=1e-8, reltol=1e-8)
    assert seen[0] is None
    assert seen[1].jumped.tolist() == [False, True]
    # the step before the stop was cut short; what is carried over is the longer one that it would have been
    assert (seen[1].dt > 0.05).all()
    assert (seen[1].memory[0] != 1e-4).all()


def test_a_carried_step_that_is_too_long_is_rejected_and_not_believed():
    """At the stop the rate becomes a thousand times larger: the first step after it cannot be the one before."""
    prob = ude.ODEProblem(lambda u, p, t: -torch.where(t < 1.0, 1.0, 1000.0).unsqueeze(-1) * u, [1.0], (0.0, 1.01))
    sol = ude.solve(prob, tstops=[1.0], saveat=[1.0, 1.01], abstol=1e-10, reltol=1e-10)
    assert float(sol.u[0, 0]) == pytest.approx(math.exp(-1.0), rel=1e-9)
    assert float(sol.u[1, 0]) == pytest.approx(math.exp(-11.0), abs=1e-9)
    assert int(sol.stats.rejected_steps) >= 1


def test_a_state_put_to_zero_has_no_time_scale_and_chooses_its_step_anew():
    reset = ude.PresetTimeCallback([1.0], lambda u, p, t: u * 0.0)
    prob = ude.ODEProblem(lambda u, p, t: 1.0 - u, [3.0], (0.0, 2.0))
    sol = ude.solve(prob, callback=reset, saveat=[2.0], abstol=1e-9, reltol=1e-9)
    assert float(sol.u[0, 0]) == pytest.approx(1 - math.exp(-1.0), abs=1e-8)


def test_fixed_steps_are_not_touched():
    sol = ude.solve(PATIENT, callback=DOSES, adaptive=False, dt=0.25, saveat=1.0)
    assert float(sol.u[-1, 1]) == pytest.approx(blood_after_doses(72.0), abs=1e-4)
    assert int(sol.stats.accepted_steps) == 4 * 72


def test_gradients_through_doses_do_not_feel_the_carried_steps():
    p = torch.tensor([1.5, 0.1], dtype=torch.float64, requires_grad=True)
    prob = ude.remake(PATIENT, p=dict(ka=p[0], ke=p[1]))
    sol = ude.solve(prob, saveat=[30.0, 71.0], callback=DOSES, abstol=1e-10, reltol=1e-10)
    grad = torch.autograd.grad(sol.u[:, 1].sum(), p)[0]
    step = 1e-5
    for i, (ka, ke) in enumerate([(step, 0.0), (0.0, step)]):
        ahead, behind = (
            sum(blood_after_doses(t, 1.5 + sign * ka, 0.1 + sign * ke) for t in (30.0, 71.0)) for sign in (1, -1)
        )
        assert float(grad[i]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)
