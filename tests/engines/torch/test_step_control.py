"""Options of the step control: controllers, dtmin by force, domains, norms; and that no trajectory feels another's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ude
from tests.problems_for_tests import lotka_volterra, lotka_volterra_problem, scipy_lotka_volterra
from ude.errors import EngineRefused, InputError

GRID = np.linspace(0.0, 10.0, 101)
SHARP = [
    ude.methods.IController(),
    ude.methods.PIDController(0.7, -0.4),
    ude.methods.PIDController(0.6, -0.2),
    ude.methods.PIDController(0.58, -0.21, 0.1),
]
SMOOTH = [ude.methods.PIDController(1 / 6, 1 / 6), ude.methods.PIDController(1 / 18, 1 / 9, 1 / 18)]


def name(value: object) -> str:
    return getattr(value, "name", type(value).__name__)


def steps_of(sol: ude.Solution, lane: int) -> list[float]:
    """Times of a trajectory's accepted steps, the repeated end left out."""
    return torch.unique_consecutive(sol.t[lane] if sol.t.ndim == 2 else sol.t).tolist()


@pytest.mark.parametrize("controller", SHARP, ids=name)
@pytest.mark.parametrize("alg", [ude.methods.BS3(), ude.Tsit5(), ude.KenCarp4(), ude.Rodas5P()], ids=name)
def test_every_controller_keeps_the_error_near_the_tolerance(alg, controller):
    truth = scipy_lotka_volterra(GRID)
    errors = []
    for tolerance in (1e-4, 1e-7):
        sol = ude.solve(
            lotka_volterra_problem(), alg, saveat=0.1, abstol=tolerance, reltol=tolerance, controller=controller
        )
        assert sol.success
        errors.append(np.abs(sol.u.numpy() - truth).max() / tolerance)
    assert max(errors) < 1000, errors


@pytest.mark.parametrize("controller", SMOOTH, ids=name)
def test_smooth_filters_change_the_step_by_little(controller):
    """What they are for: the step sizes of neighboring steps differ less, at errors above the tolerance."""
    jerks = []
    for chosen in (ude.methods.IController(), controller):
        sol = ude.solve(lotka_volterra_problem(), abstol=1e-7, reltol=1e-7, controller=chosen)
        sizes = sol.t.diff()[3:-1]
        jerks.append(float((sizes[1:] / sizes[:-1]).log().abs().diff().abs().mean()))
        assert np.abs(sol(torch.as_tensor(GRID)).numpy() - scipy_lotka_volterra(GRID)).max() < 1e-3
    assert jerks[1] < 0.6 * jerks[0], jerks


@pytest.mark.parametrize("controller", [*SHARP, *SMOOTH], ids=name)
def test_with_every_controller_a_trajectory_steps_as_it_does_alone(controller):
    u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5], [0.3, 3.0]], dtype=torch.float64)
    options = {"abstol": 1e-7, "reltol": 1e-7, "controller": controller}
    together = ude.solve(lotka_volterra_problem(u0=u0), **options)
    for lane in range(3):
        alone = ude.solve(lotka_volterra_problem(u0=u0[lane]), **options)
        assert steps_of(together, lane) == steps_of(alone, 0)


def test_a_steady_controller_repeats_step_sizes():
    sol = ude.solve(
        lotka_volterra_problem(),
        abstol=1e-7,
        reltol=1e-7,
        controller=ude.methods.IController(qsteady_min=0.8, qsteady_max=1.3),
    )
    sizes = sol.t.diff().numpy()
    assert np.isclose(sizes[1:], sizes[:-1], rtol=1e-12).sum() > 5


def jump(u, p, t):
    """u' = -rate sign(t - 1) |t - 1|^-1/2: not smooth enough at t = 1 for any step."""
    return -p.rate.unsqueeze(-1) * torch.ones_like(u) / (t - 1.0).abs().clamp(min=1e-13).sqrt().unsqueeze(-1)


def test_force_dtmin_takes_the_smallest_step_and_goes_on():
    prob = ude.ODEProblem(jump, torch.ones(2, 1, dtype=torch.float64), (0.0, 2.0), dict(rate=torch.tensor([1.0, 0.0])))
    options = {"abstol": 1e-9, "reltol": 1e-9, "dtmin": 1e-3}
    stopped = ude.solve(prob, saveat=[2.0], **options)
    assert stopped.retcode.tolist() == [ude.ReturnCode.DtLessThanMin, ude.ReturnCode.Success]
    forced = ude.solve(prob, force_dtmin=True, **options)
    assert forced.retcode.tolist() == [ude.ReturnCode.Success, ude.ReturnCode.Success]
    sizes = np.diff(steps_of(forced, 0))
    assert sizes[:-1].min() == pytest.approx(1e-3, rel=1e-9)
    # u(2) = 1 - 4 rate; the forced steps near t = 1 cost accuracy, not the solve
    assert float(forced.u[0, -1, 0]) == pytest.approx(1.0 - 4.0, abs=0.1)


def test_a_forced_trajectory_leaves_the_steps_of_others_alone():
    rate = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def f(u, p, t):
        x, y = u.unbind(-1)
        wild = p.rate / (t - 1.0).abs().clamp(min=1e-13).sqrt()
        return torch.stack([1.5 * x - x * y - wild, x * y - 3.0 * y], -1)

    u0 = torch.ones(2, 2, dtype=torch.float64)
    options = {"abstol": 1e-9, "reltol": 1e-9, "dtmin": 1e-4, "force_dtmin": True}
    both = ude.solve(ude.ODEProblem(f, u0, (0.0, 2.0), dict(rate=rate)), **options)
    calm = ude.solve(ude.ODEProblem(f, u0[:1], (0.0, 2.0), dict(rate=rate[:1])), **options)
    assert bool(both.success.all())
    assert steps_of(both, 0) == steps_of(calm, 0)
    assert torch.equal(both.u[0, : len(steps_of(calm, 0))], calm.u[0, : len(steps_of(calm, 0))])


def test_force_dtmin_does_not_take_a_step_into_infinity():
    prob = ude.ODEProblem(lambda u, p, t: u**2, [1.0], (0.0, 2.0))
    sol = ude.solve(prob, saveat=[2.0], dtmin=1e-5, force_dtmin=True)
    assert sol.retcode in (ude.ReturnCode.Unstable, ude.ReturnCode.MaxIters)


def test_isoutofdomain_rejects_the_step_and_shrinks_it():
    """u' = -rate with an error estimate of zero: only the domain bounds the steps."""
    seen: list[float] = []

    def outside(u, p, t):
        seen.append(float(t))
        return u[..., 0] < p.floor

    prob = ude.ODEProblem(lambda u, p, t: -torch.ones_like(u), [1.0], (0.0, 0.9), dict(floor=-1.0))
    free = ude.solve(prob)
    bounded = ude.solve(ude.remake(prob, p=dict(floor=0.05)), isoutofdomain=outside)
    assert int(free.stats.rejected_steps) == 0
    assert bounded.success
    assert float(bounded.u.min()) >= 0.05
    late = ude.solve(ude.remake(prob, p=dict(floor=0.5)), isoutofdomain=outside, saveat=[0.9])
    assert late.retcode == ude.ReturnCode.DtLessThanMin
    # each rejected step is qmin times the one before, down to the resolution of time
    assert int(late.stats.rejected_steps) > 15


def test_the_domain_of_one_trajectory_leaves_the_steps_of_others_alone():
    u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    floor = torch.tensor([-1.0, 1.5], dtype=torch.float64)

    def f(u, p, t):
        return lotka_volterra(u, ude.problems.Parameters(alpha=1.5, beta=1.0, gamma=1.0, delta=3.0), t)

    def outside(u, p, t):
        return u[..., 0] < p.floor

    options = {"abstol": 1e-6, "reltol": 1e-6}
    free = ude.solve(ude.ODEProblem(f, u0, (0.0, 4.0), dict(floor=floor)), **options)
    both = ude.solve(ude.ODEProblem(f, u0, (0.0, 4.0), dict(floor=floor)), isoutofdomain=outside, **options)
    assert steps_of(both, 0) == steps_of(free, 0)
    assert both.retcode.tolist() == [ude.ReturnCode.Success, ude.ReturnCode.DtLessThanMin]
    assert float(free.u[1, :, 0].min()) < 1.5


def test_force_dtmin_passes_through_a_forbidden_domain():
    prob = ude.ODEProblem(lambda u, p, t: -torch.ones_like(u), [1.0], (0.0, 1.0))
    options = {"isoutofdomain": lambda u, p, t: ((u < 0.5) & (u > 0.4)).any(-1), "dtmin": 1e-2, "dtmax": 0.05}
    assert not ude.solve(prob, saveat=[1.0], **options).success
    forced = ude.solve(prob, force_dtmin=True, **options)
    assert forced.success
    assert float(forced.u[-1, 0]) == pytest.approx(0.0, abs=1e-12)


def test_a_state_that_is_nan_outside_its_domain_is_kept_inside():
    """u' = -2 sqrt(u), u(0) = 1: u = (1 - t)^2, and a root of a negative number just beyond t = 1."""
    prob = ude.ODEProblem(lambda u, p, t: -2 * u.sqrt(), [1.0], (0.0, 0.999))
    sol = ude.solve(prob, isoutofdomain=lambda u, p, t: (u < 0).any(-1), abstol=1e-8, reltol=1e-8)
    assert sol.success
    assert float(sol.u[-1, 0]) == pytest.approx(1e-6, abs=1e-7)


def test_unstable_check_gives_a_trajectory_up_and_no_other():
    u0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    prob = ude.ODEProblem(lambda u, p, t: u, u0, (0.0, 3.0))
    free = ude.solve(prob, abstol=1e-8, reltol=1e-8)
    sizes: list[float] = []

    def unstable(dt, u, p, t):
        sizes.append(float(dt[0]))
        return u[..., 0] > 25.0

    sol = ude.solve(prob, abstol=1e-8, reltol=1e-8, unstable_check=unstable)
    assert sol.retcode.tolist() == [ude.ReturnCode.Success, ude.ReturnCode.Unstable]
    assert steps_of(sol, 0) == steps_of(free, 0)
    assert sum(sizes) == pytest.approx(3.0)


def test_internalnorm_decides_which_errors_count():
    """A state that nobody looks at need not be resolved."""

    def f(u, p, t):
        slow, fast = u.unbind(-1)
        return torch.stack([-slow, 50.0 * torch.cos(50.0 * t)], -1)

    prob = ude.ODEProblem(f, [1.0, 0.0], (0.0, 2.0))
    full = ude.solve(prob, abstol=1e-7, reltol=1e-7)
    first = ude.solve(prob, abstol=1e-7, reltol=1e-7, internalnorm=lambda error, t: error[..., 0].abs())
    assert int(first.stats.accepted_steps) * 3 < int(full.stats.accepted_steps)
    assert float(first.u[-1, 0]) == pytest.approx(math.exp(-2.0), rel=1e-6)
    same = ude.solve(prob, abstol=1e-7, reltol=1e-7, internalnorm=lambda e, t: (e**2).mean(-1).sqrt())
    assert steps_of(same, 0) == steps_of(full, 0)


def test_the_largest_error_is_a_norm_too_and_bounds_every_state():
    u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    options = {"abstol": 1e-6, "reltol": 1e-6}
    largest = ude.solve(lotka_volterra_problem(u0=u0), internalnorm=lambda e, t: e.abs().amax(-1), **options)
    mean = ude.solve(lotka_volterra_problem(u0=u0), **options)
    assert (largest.stats.accepted_steps > mean.stats.accepted_steps).all()


def test_gradients_know_nothing_of_the_conditions_on_steps():
    """Continuous adjoints integrate other systems, whose states the user's conditions do not fit."""
    grads = []
    for sensealg in (ude.DiscreteAdjoint(), ude.InterpolatingAdjoint(), ude.ForwardSensitivity()):
        u0 = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
        sol = ude.solve(
            lotka_volterra_problem(u0=u0, tspan=(0.0, 2.0)),
            saveat=[2.0],
            abstol=1e-10,
            reltol=1e-10,
            sensealg=sensealg,
            isoutofdomain=lambda u, p, t: u[..., 0] + u[..., 1] < 0.01,
            internalnorm=lambda e, t: e[..., :2].abs().amax(-1),
            unstable_check=lambda dt, u, p, t: u[..., 1] > 1e3,
        )
        grads.append(torch.autograd.grad(sol.u.sum(), u0)[0])
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"controller": ude.methods.IController}, "controller must be a controller object: expected e.g. IController"),
        ({"controller": "pid"}, "controller must be a controller object"),
        ({"isoutofdomain": 3}, r"isoutofdomain must be callable as isoutofdomain\(u, p, t\): int"),
        (
            {"internalnorm": lambda e, t: e},
            r"internalnorm must return one number for each trajectory: expected shape \(\)",
        ),
        (
            {"isoutofdomain": lambda u, p, t: u < 0},
            r"isoutofdomain must return one number .* got shape \(2,\). Reduce over the last axis",
        ),
        ({"unstable_check": lambda dt, u, p, t: u < 0}, "unstable_check must return one number for each trajectory"),
        ({"force_dtmin": True, "adaptive": False, "dt": 0.1}, "require adaptive steps: adaptive=False"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, text):
    with pytest.raises(InputError, match=text.replace(": got", ".*")):
        ude.solve(lotka_volterra_problem(), **options)


def test_torchdiffeq_says_that_it_takes_no_conditions():
    with pytest.raises(EngineRefused, match="torchdiffeq takes no isoutofdomain"):
        ude.solve(lotka_volterra_problem(), ude.TorchDiffEq("dopri5"), saveat=1.0, isoutofdomain=lambda u, p, t: False)
